"""What is served: model names, limits, and how a request becomes a job for the engine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stages.errors import InputError
from stages.generation.engine import Job
from stages.generation.prompts import ChatEncoder, open_chat
from stages.generation.sampling import Sampling
from stages.models.tokenizer import load_tokenizer
from stages.models.validate import read_json
from stages.serving.problems import Problem
from stages.serving.wire import ChatMessage, ChatRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One resident model under its names; nothing outside this table can be asked for."""

    adapters: Mapping[str, str | None]
    """Name in a request to the engine's adapter; None: the model as it was loaded."""
    encoders: Mapping[str, ChatEncoder]
    """By the name in a request, since an adapter may have been trained with a chat template of its
    own. Not safe to call from two threads at a time."""
    directory: Path
    context_tokens: int | None
    vocabulary_tokens: int
    max_tokens: int
    created: int = field(default_factory=lambda: int(time.time()))

    def sampling(self, request: ChatRequest) -> Sampling:
        """Check what the model decides about a request; raises Problem."""
        self.check_name(request.model, "model")
        if request.top_k is not None and request.top_k > self.vocabulary_tokens:
            raise _invalid("top_k", request.top_k, f"at most {self.vocabulary_tokens}, the size of "
                           "the vocabulary")  # fmt: skip
        asked = request.max_completion_tokens or request.max_tokens or self.max_tokens
        if asked > self.max_tokens:
            name = "max_completion_tokens" if request.max_completion_tokens else "max_tokens"
            raise _invalid(name, asked, f"at most {self.max_tokens} (serve.max_tokens)")
        return Sampling(
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=request.top_p or 1.0,
            top_k=request.top_k or 0,
            min_p=request.min_p or 0.0,
            max_tokens=asked,
            seed=request.seed,
            stop=tuple(request.stop),
        )

    def check_name(self, name: str, param: str | None) -> None:
        """Raise Problem 404, which lists the names there are, unless `name` is one of them."""
        if name not in self.adapters:
            found = f"there is no model {name!r} here, only {', '.join(map(repr, self.adapters))}"
            raise Problem(404, found, param=param, code="model_not_found")

    def job(self, request: ChatRequest, sampling: Sampling) -> Job:
        """Encode the conversation; raises Problem where it is none, or leaves no room to answer."""
        try:
            turns = [_turn(message) for message in request.messages]
            prompt = self.encoders[request.model](turns, "messages")
        except InputError as error:
            found = f"{error.where}: {error.found}".replace(str(self.directory), "this model")
            raise Problem(400, found, param="messages", code="invalid_value") from error
        if self.context_tokens is not None and len(prompt) >= self.context_tokens:
            found = (
                f"messages: {len(prompt)} tokens leave no room for an answer in this model's "
                f"context of {self.context_tokens} tokens"
            )
            raise Problem(400, found, param="messages", code="context_length_exceeded")
        return Job(prompt=prompt, sampling=sampling, adapter=self.adapters[request.model])


def open_offer(
    directory: Path,
    adapters: Mapping[str, str | None],
    max_tokens: int,
    template: str | None = None,
) -> Offer:
    """Read the limits and the chat template of the model in `directory`, without its weights.

    `template` is that of the adapters, where they were trained with another; the untuned model
    takes it too if it has none itself. The tokenizer is the offer's own: the engine's must not be
    used while another thread encodes with it.
    """
    tokenizer = load_tokenizer(directory)
    tuned = open_chat(tokenizer, directory, template)
    differs = template is not None and tokenizer.chat_template is not None
    untuned = open_chat(tokenizer, directory) if differs else tuned
    config = read_json(directory / "config.json")
    return Offer(
        adapters=adapters,
        encoders={name: tuned if adapter else untuned for name, adapter in adapters.items()},
        directory=directory,
        context_tokens=config.get("max_position_embeddings"),
        vocabulary_tokens=config.get("vocab_size", len(tokenizer)),
        max_tokens=max_tokens,
    )


def _turn(message: ChatMessage) -> dict[str, str]:
    # Chat templates know the instructing role by its older name.
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": message.content}


def _invalid(param: str, found: object, expected: str) -> Problem:
    return Problem(400, f"{param}: found {found!r}, expected {expected}", param=param,
                   code="invalid_value")  # fmt: skip
