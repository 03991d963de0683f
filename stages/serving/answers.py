"""The objects of an answer: one completion, or the chunks of a stream (OpenAI API 2.3.0)."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stages.serving.problems import Problem

if TYPE_CHECKING:
    from stages.generation.engine import Event

# Proxies and clients give up on a connection that says nothing.
_SILENCE_SECONDS = 10.0


@dataclass(slots=True)
class Answer:
    """What every object of one answer shares."""

    model: str
    prompt_tokens: int
    events: asyncio.Queue[Event | Problem] = field(default_factory=asyncio.Queue)
    """What the engine says about this request, on the event loop's side."""
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    async def completion(self) -> dict[str, Any]:
        """Wait for the whole answer and return it; raises the Problem that ended it."""
        text = ""
        while True:
            event = await self.events.get()
            if isinstance(event, Problem):
                raise event
            text += event.text
            if event.finish_reason is not None:
                break
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": event.finish_reason,
        }
        usage = self._usage(event.completion_tokens)
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage}

    async def chunks(self, *, include_usage: bool) -> AsyncIterator[bytes]:
        """Yield the answer as server-sent events, `[DONE]` last, also after a failure."""
        usage: dict[str, Any] = {"usage": None} if include_usage else {}
        yield self._chunk({"role": "assistant", "content": ""}, None, usage)
        while True:
            try:
                async with asyncio.timeout(_SILENCE_SECONDS):
                    event = await self.events.get()
            except TimeoutError:
                yield b": still working\n\n"
                continue
            if isinstance(event, Problem):
                yield _data(event.body())
                break
            if event.text:
                yield self._chunk({"content": event.text}, None, usage)
            if event.finish_reason is not None:
                yield self._chunk({}, event.finish_reason, usage)
                if include_usage:
                    counts = self._usage(event.completion_tokens)
                    yield _data({**self._head(_CHUNK), "choices": [], "usage": counts})
                break
        yield b"data: [DONE]\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, delta: dict[str, str], finish: str | None, usage: dict[str, Any]) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _data({**self._head(_CHUNK), "choices": [choice], **usage})

    def _usage(self, completion_tokens: int) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
        }


_CHUNK = "chat.completion.chunk"


def _data(value: dict[str, Any]) -> bytes:
    # Pure ASCII: a client that takes U+2028 for the end of a line keeps the event whole.
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"
