"""What stages hand over to each other, and the reporter a stage is given.

An artifact is a directory plus the flat metrics that the stage states about it. The directory
is what lives in the store; these classes only name it, so they cost nothing to import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseModel:
    """The frozen base: a directory that `mlx_lm.load` opens (weights, config, tokenizer)."""

    directory: Path
    dtype: str
    """Floating-point type to compute in: float32, bfloat16, float16, or `stored`."""
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """Token rows with a loss mask: `{train,valid,test}.safetensors`, the same rows in the same
    order as `{train,valid,test}.jsonl`, and what is known about them: `doctor.json` (counts,
    findings, tokenizer and template digests) and `doctor.html`.

    With them lie `chat_template.jinja`, if one was given to replace the tokenizer's own, and
    `quarantine.jsonl`, if rows were set aside because they cannot be used.

    Each safetensors file holds `tokens` int32 (N,), `supervised` uint8 (N,): 1 where the token
    is a training target, and `offsets` int64 (rows + 1,).
    """

    directory: Path
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """A trained adapter in the field's format: `adapters.safetensors`, `adapter_config.json`, and
    `chat_template.jinja` if it was trained with another than the tokenizer's own."""

    directory: Path
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged:
    """Base and adapter as one model, which `mlx_lm.load` and transformers open as it is."""

    directory: Path
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Scores on held-out rows: `answers.jsonl` (one row an answer) and, in it, what was scored."""

    directory: Path
    metrics: dict[str, float] = field(default_factory=dict)


Artifact = BaseModel | Prepared | Adapter | Merged | Report
ARTIFACTS: dict[str, type[Artifact]] = {
    kind.__name__: kind for kind in (BaseModel, Prepared, Adapter, Merged, Report)
}
"""Every artifact class by its name, which is how a hand-over travels to the worker."""


class Reporter(Protocol):
    """The only way in which a stage speaks: it never prints."""

    def log(self, message: str) -> None:
        """Write one line for the person and the run's log."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append one row to `metrics.jsonl`; names are flat (`train.loss`)."""

    def progress(self, done: int, total: int, fields: Mapping[str, float]) -> None:
        """Move the live line: `done` of `total` steps, with the newest value of each field."""

    def resumed(self, step: int, seconds: float) -> None:
        """Say that the work goes on after `step`, for which `seconds` were spent before."""

    def stop_requested(self) -> bool:
        """Tell whether the run was asked to stop; the stage then raises `StopRequested`."""
