"""What a chat request may say (OpenAI API 2.3.0), checked before anything of ours sees it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

_MAX_STOPS = 4

# A request may carry these where they say nothing; anything else would be ignored in silence.
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "audio": (),
}


def _join(content: object) -> object:
    """Return text parts as one text; other kinds of parts are refused, and no URL is fetched."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise PydanticCustomError("part", "only text parts are supported")
        if not isinstance(part.get("text"), str):
            raise PydanticCustomError("part", "a text part needs its text")
        texts.append(part["text"])
    return "".join(texts)


def _list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else [] if stop is None else stop


class ChatMessage(BaseModel):
    """One turn; what a client adds to it (`name`, `refusal`) is ignored."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_join)]


class StreamOptions(BaseModel):
    """What a stream carries besides the text."""

    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None


class ChatRequest(BaseModel):
    """The body of `POST /v1/chat/completions`; null is the same as leaving a field out."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        Field(max_length=_MAX_STOPS),
        BeforeValidator(_list),
    ] = Field(default_factory=list)
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, body: Any) -> Any:
        if isinstance(body, dict):
            for name, neutral in _UNSUPPORTED.items():
                if body.get(name) is not None and body[name] not in neutral:
                    expected = "this value is not supported here, leave it out"
                    raise PydanticCustomError("unsupported", expected, {"param": name})
        return body

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends in a chunk with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)
