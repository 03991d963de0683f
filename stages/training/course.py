"""All that a training run is in the middle of: what a checkpoint holds, and a step changes."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from stages.lora.bank import Parameters
from stages.training.progress import Progress


@dataclass(slots=True)
class State:
    """Everything that a step changes; arrays are replaced, never written."""

    parameters: Parameters
    optimizers: list[Any]


@dataclass(slots=True)
class Best:
    """The adapter to keep: the one with the lowest validation loss, else the newest."""

    parameters: Parameters
    step: int = 0
    loss: float = math.inf
    misses: int = 0
    """Validations since the one with the lowest loss."""


@dataclass(slots=True)
class Course:
    """A training run between two steps.

    Nothing else is needed to go on: rows, random keys and learning rates follow from the step's
    number.
    """

    state: State
    best: Best
    progress: Progress
    loss_before: float | None = None
    """Validation loss before the first step; None without rows to validate."""
    settled: int = -1
    """The newest step whose validation, if it had one, is done and told."""

    def as_tree(self) -> dict[str, Any]:
        """Return all of it but the rows told so far, as nested arrays, numbers and texts."""
        return {
            "state": _values(self.state),
            "best": _values(self.best),
            "progress": self.progress.counts(),
            "loss_before": self.loss_before,
            "settled": self.settled,
        }

    def go_on(self, tree: dict[str, Any], rows: bytes) -> None:
        """Become what `as_tree` was taken of, and tell the rows that were told until then."""
        for part, values in ((self.state, tree["state"]), (self.best, tree["best"])):
            for name, value in values.items():
                setattr(part, name, value)
        self.loss_before, self.settled = tree["loss_before"], tree["settled"]
        self.progress.go_on(tree["progress"], rows)


def _values(part: State | Best) -> dict[str, Any]:
    return {spec.name: getattr(part, spec.name) for spec in fields(part)}
