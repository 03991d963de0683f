"""Rows written by hand, and a reporter that remembers what it is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from stages.data.rows import Rows, write_rows
from stages.training_settings import Optimizer, Train


class Recorder:
    """Remembers everything; asks to stop once `stop_after` steps are reported."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.lines: list[str] = []
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.moves: list[tuple[int, int, dict[str, float]]] = []
        self.stop_after = stop_after
        self.resumed_after: int | None = None

    def log(self, message: str) -> None:
        self.lines.append(message)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.rows.append((step, dict(values)))

    def progress(self, done: int, total: int, fields: Mapping[str, float]) -> None:
        self.moves.append((done, total, dict(fields)))

    def resumed(self, step: int, seconds: float) -> None:
        self.resumed_after = step

    def stop_requested(self) -> bool:
        return self.stop_after is not None and len(self.moves) >= self.stop_after

    def values(self, name: str) -> list[float]:
        """Return every reported value of one metric, in order."""
        return [values[name] for _, values in self.rows if name in values]


@pytest.fixture
def recorder() -> type[Recorder]:
    return Recorder


@pytest.fixture
def make_rows(tmp_path: Path) -> Callable[[Sequence[int]], Rows]:
    """Return a maker of rows of the given lengths: random tokens, the later half supervised."""

    def make(lengths: Sequence[int], seed: int = 0, name: str = "rows") -> Rows:
        rng = np.random.default_rng(seed)
        pairs = [
            (
                rng.integers(1, 64, length).astype(np.int32),
                (np.arange(length) >= max(length // 2, 1)).astype(np.uint8),
            )
            for length in lengths
        ]
        write_rows(tmp_path / f"{name}.safetensors", pairs)
        return Rows(tmp_path / f"{name}.safetensors")

    return make


@pytest.fixture
def adamw() -> Callable[..., Optimizer]:
    def make(**changes: object) -> Optimizer:
        settings = {
            "name": "adamw", "learning_rate": 1e-2, "schedule": "cosine", "warmup_fraction": 0.1,
            "final_fraction": 0.1, "max_grad_norm": 1.0, "betas": (0.9, 0.999), "eps": 1e-8,
            "weight_decay": 0.0,
        }  # fmt: skip
        return Optimizer(**(settings | changes))

    return make


@pytest.fixture
def settings() -> Callable[..., Train]:
    def make(**changes: object) -> Train:
        values = {
            "epochs": 1, "batch_size": 4, "grad_accumulation_steps": 1, "log_every": 1,
            "gradient_checkpointing": False, "callbacks": (), "validations_per_epoch": 1,
            "checkpoint_every": "5m", "resume": "auto",
        }  # fmt: skip
        return Train(**(values | changes))

    return make
