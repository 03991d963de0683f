"""Continuous batching over one frozen base with named adapters: insert, step, cancel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mlx import nn
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import make_prompt_cache

from stages.errors import InputError, SettingError
from stages.generation.sampling import Sampling
from stages.generation.text import TextStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from stages.lora.full import Tuning

FinishReason = Literal["stop", "length"]

_PREFILL_ROWS = 16
_PREFILL_TOKENS = 512
"""Prompts, and tokens of each, that one step reads at most: running answers wait meanwhile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One answer to be generated."""

    prompt: Sequence[int]
    """Tokens to continue, at least one."""
    sampling: Sampling
    adapter: str | None = None
    """Name of the adapter; None: the model as it was handed over."""
    where: str = "prompt"
    """What messages call the prompt."""


@dataclass(frozen=True, slots=True)
class Event:
    """What one step made for one request."""

    uid: int
    text: str
    """New text, often none: never half a character, never part of a stop text."""
    finish_reason: FinishReason | None
    """Set in a request's last event: a stop token or stop text, or no room for more."""
    completion_tokens: int
    """Tokens generated so far, the stop token included."""


@dataclass(slots=True)
class _Answer:
    uid: int
    adapter: str | None
    text: TextStream
    tokens: int = 0


class Engine:
    """Answers in progress, one token each per step; belongs to the thread that made it.

    Requests of one adapter share a batch of mlx-lm's generator. Batches of different adapters
    take turns within a step, each with its own bank put on the model meanwhile; between steps the
    model is as it was handed over.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        stop_tokens: Sequence[int],
        *,
        adapters: Mapping[str, Tuning] | None = None,
        batch_size: int,
    ) -> None:
        """Take a model in evaluation mode, and banks on it that are detached.

        `batch_size` is the most answers of one adapter that are generated side by side; others
        wait in order. Raises InputError for a model whose cache cannot be batched.
        """
        caches = make_prompt_cache(model)
        if alone := next((c for c in caches if not hasattr(c, "merge")), None):
            found = f"its {type(alone).__name__} cannot be batched by mlx-lm"
            raise InputError("model.path", found, "use another model")
        self._model = model
        self._tokenizer = tokenizer
        self._stop_tokens = [[token] for token in stop_tokens]
        self._adapters: dict[str | None, Tuning | None] = {None: None}
        self._adapters.update(adapters or {})
        self._batch_size = batch_size
        self.context_tokens: int | None = getattr(
            getattr(model, "args", None), "max_position_embeddings", None
        )
        """Most tokens of prompt and answer together; None where the model does not say."""
        self._inserted = 0
        self._generators: dict[str | None, Any] = {}
        self._answers: dict[tuple[str | None, int], _Answer] = {}

    def __len__(self) -> int:
        """Return the number of unfinished requests."""
        return len(self._answers)

    def insert(self, job: Job) -> int:
        """Take a request and return its uid; its first token comes with a later step.

        Raises SettingError for an unknown adapter, InputError for a prompt that is empty or
        leaves no room in the model's context. An answer ends where the context does.
        """
        if job.adapter not in self._adapters:
            raise SettingError("adapter", f"found {job.adapter!r}, expected {self._names()}")
        if not job.prompt:
            raise InputError(job.where, "an empty prompt", "write something to continue")
        longest = job.sampling.max_tokens
        if self.context_tokens is not None:
            longest = min(longest, self.context_tokens - len(job.prompt))
        if longest < 1:
            found = f"{len(job.prompt):,} tokens, the model takes {self.context_tokens:,}"
            raise InputError(job.where, found, "shorten it")
        text = TextStream(self._tokenizer, job.sampling.stop)
        [row] = self._generator(job.adapter).insert(
            [list(job.prompt)], [longest], samplers=[job.sampling.sampler()]
        )
        self._inserted += 1
        self._answers[job.adapter, row] = _Answer(self._inserted, job.adapter, text)
        return self._inserted

    def step(self) -> list[Event]:
        """Generate the next token of every running request, and read on in waiting prompts."""
        events = []
        for adapter in dict.fromkeys(adapter for adapter, _ in self._answers):
            with self._using(adapter):
                _, responses = self._generators[adapter].next()
            events += [self._event(adapter, response) for response in responses]
        return events

    def cancel(self, uid: int) -> None:
        """Drop a request and its cache; no event follows. Unknown and finished ones are ignored."""
        for (adapter, row), answer in list(self._answers.items()):
            if answer.uid == uid:
                self._drop(adapter, row)

    def reset(self) -> None:
        """Drop every request, and whatever state a failed step may have left."""
        for generator in self._generators.values():
            generator.close()
        self._generators.clear()
        self._answers.clear()

    def _generator(self, adapter: str | None) -> Any:
        if adapter not in self._generators:
            self._generators[adapter] = BatchGenerator(
                self._model,
                stop_tokens=self._stop_tokens,
                completion_batch_size=self._batch_size,
                prefill_batch_size=min(self._batch_size, _PREFILL_ROWS),
                prefill_step_size=_PREFILL_TOKENS,
            )
        return self._generators[adapter]

    def _event(self, adapter: str | None, response: Any) -> Event:
        answer = self._answers[adapter, response.uid]
        answer.tokens += 1
        finish: FinishReason | None = response.finish_reason
        # mlx-lm says "stop" of a stop token alone, which is no part of the text.
        piece = "" if finish == "stop" else answer.text.add(response.token)
        if finish is not None:
            piece += answer.text.finish()
            del self._answers[adapter, response.uid]
        elif answer.text.stopped:
            self._drop(adapter, response.uid)
        if answer.text.stopped:
            finish = "stop"
        return Event(answer.uid, piece, finish, answer.tokens)

    def _drop(self, adapter: str | None, row: int) -> None:
        del self._answers[adapter, row]
        self._generators[adapter].remove([row])

    @contextmanager
    def _using(self, adapter: str | None) -> Iterator[None]:
        bank = self._adapters[adapter]
        if bank is None:
            yield
            return
        # What the step leaves uncomputed holds the bank's arrays, so it may be detached at once.
        bank.attach()
        try:
            yield
        finally:
            bank.detach()

    def _names(self) -> str:
        names = [repr(name) for name in self._adapters if name is not None]
        return f"one of {', '.join(names)}" if names else "none"
