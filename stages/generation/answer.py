"""Answer prompts with a loaded model: what `python -m pipeline.generate` asks the worker to do."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from stages.artifacts import Adapter, BaseModel, Reporter
from stages.generation.decode import complete
from stages.generation.engine import Engine, Job
from stages.generation.prompts import ChatEncoder, TextEncoder, open_chat, open_text
from stages.generation.sampling import Sampling
from stages.lora.description import trained_template
from stages.lora.files import load_adapter
from stages.models.loading import load_model
from stages.models.tokenizer import load_tokenizer, stop_token_ids

BATCH_SIZE = 16
"""Answers generated side by side."""


class Teller(Reporter, Protocol):
    """A reporter that also passes on what the model says."""

    def text(self, index: int, text: str, finish_reason: str | None) -> None:
        """Say the next piece of the answer to prompt `index`; the last has a finish reason."""


@dataclass(frozen=True, slots=True)
class Answered:
    """How much was generated."""

    metrics: dict[str, float]
    """`generate.tokens`, `generate.seconds` (loading excluded), `generate.tokens_per_second`."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    engine: Engine
    chat: ChatEncoder | None
    """None where the prompts are texts to continue."""
    text: TextEncoder


def answer(
    prompts: Sequence[Mapping[str, Any]],
    sampling: Mapping[str, Any],
    chat: bool,
    *,
    model: BaseModel,
    adapter: Adapter | None = None,
    report: Teller,
) -> Answered:
    """Answer prompts, each `{"where", "messages", "tools"}` or, unless `chat`, `{"where", "text"}`.

    The adapter brings the chat template it was trained with. One answer is told piece by piece,
    several are told whole, each when it ends. The model stays loaded for the next call.
    `sampling` holds fields of Sampling. Raises SettingError and InputError for what cannot be
    answered, before anything is generated; StopRequested when asked to stop.
    """
    # JSON, in which the orchestrator asks, has lists only.
    fields: dict[str, Any] = {**sampling, "stop": tuple(sampling.get("stop", ()))}
    chosen = Sampling(**fields)
    directory = None if adapter is None else adapter.directory
    loaded = _load(model.directory, model.dtype, directory, chat)
    jobs = [Job(prompt=_encode(loaded, prompt), sampling=chosen, where=prompt["where"])
            for prompt in prompts]  # fmt: skip
    started, tokens = time.perf_counter(), 0
    told = (lambda text: report.text(0, text, None)) if len(jobs) == 1 else None
    for done in complete(loaded.engine, jobs, report, told):
        tokens += done.completion_tokens
        report.text(done.index, "" if told else done.text, done.finish_reason)
    seconds = time.perf_counter() - started
    return Answered({
        "generate.tokens": tokens,
        "generate.seconds": seconds,
        "generate.tokens_per_second": tokens / seconds,
    })  # fmt: skip


@lru_cache(maxsize=1)
def _load(directory: Path, dtype: str, adapter: Path | None, chat: bool) -> _Loaded:
    tokenizer = load_tokenizer(directory)
    template = None if adapter is None else trained_template(adapter)
    module = load_model(BaseModel(directory=directory, dtype=dtype))
    if adapter is not None:
        load_adapter(module, adapter)
    module.eval()
    stops = stop_token_ids(directory, tokenizer)
    engine = Engine(module, tokenizer, stops, batch_size=BATCH_SIZE)
    encode = open_chat(tokenizer, directory, template) if chat else None
    return _Loaded(engine, encode, open_text(tokenizer))


def _encode(loaded: _Loaded, prompt: Mapping[str, Any]) -> list[int]:
    if loaded.chat is None:
        return loaded.text(prompt["text"], prompt["where"])
    return loaded.chat(prompt["messages"], prompt["where"], prompt["tools"])
