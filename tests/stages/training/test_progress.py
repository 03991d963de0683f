"""What is told of a run: rows of metrics, log lines, and the fields of the live line."""

from __future__ import annotations

import resource
import sys
from typing import Any

import numpy as np
import pytest

from stages.training.batches import Batch, Step
from stages.training.progress import Progress


def step(number: int, epoch: int, tokens: int) -> Step:
    owners = np.zeros(tokens, np.int32)
    batch = Batch((0,), np.zeros((1, 40), np.int32), owners, owners, owners, 30)
    return Step(number, epoch, (batch,))


def test_loss_shown_is_of_the_last_steps_by_their_tokens(recorder: Any) -> None:
    """A short step with a high loss hardly shows; rows of metrics hold each step's own."""
    report = recorder()
    progress = Progress(report, 4, log_every=2)
    sums, counts = [100.0, 120.0, 16.0, 90.0], [50, 60, 2, 45]
    for number, (total, count) in enumerate(zip(sums, counts, strict=True)):
        progress.add(step(number, 0, count), total, 1.0, 1e-3, 0.5)
    assert report.values("train.loss") == [2.0, 2.0, 8.0, 2.0]
    assert report.values("train.step_tokens") == counts
    shown = [fields["loss"] for _, _, fields in report.moves]
    assert shown[:2] == pytest.approx([2.0, 2.0])
    weights = 0.9 ** np.arange(3, -1, -1)
    assert shown[3] == pytest.approx(np.dot(weights, sums) / np.dot(weights, counts))
    assert report.lines[1] == f"step 4/4  loss {shown[3]:8.4f}  lr 1.00e-03         60 tokens/s"


def test_live_line_is_told_all_it_shows(recorder: Any) -> None:
    """Epoch from 1, of how many, validation loss and progress as soon as there is one."""
    report = recorder()
    progress = Progress(report, 2, log_every=1, epochs=2, others_memory_bytes=lambda: 10**15)
    progress.validating(0.5)
    progress.validated(3.25, best=False)
    progress.add(step(0, 0, 10), 20.0, 1.0, 1e-3, 0.5)
    progress.add(step(1, 1, 10), 20.0, 1.0, 1e-3, 0.5)
    first, *steps = [fields for _, _, fields in report.moves]
    assert [(done, total) for done, total, _ in report.moves] == [(0, 2), (1, 2), (2, 2)]
    assert first.pop("memory_bytes") > 10**15
    assert first == {"epoch": 1, "epochs": 2, "validating": 0.5}
    assert [fields["epoch"] for fields in steps] == [1, 2]
    assert steps[0].keys() == {"epoch", "epochs", "loss", "valid_loss", "tokens_per_second",
                               "memory_bytes"}  # fmt: skip
    assert steps[0]["valid_loss"] == 3.25
    assert steps[0]["tokens_per_second"] == 60
    assert report.values("train.epoch") == [1, 2]


def test_memory_is_what_the_process_has_held(recorder: Any) -> None:
    """It is no less than the system's own count, in bytes."""
    report = recorder()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Progress(report, 1, log_every=1).add(step(0, 0, 10), 20.0, 1.0, 1e-3, 0.5)
    unit = 1 if sys.platform == "darwin" else 1024
    assert report.moves[0][2]["memory_bytes"] >= before * unit
