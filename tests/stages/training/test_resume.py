"""Stopped after any step and taken up again, a training ends as if it had never been stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from stages.data.rows import Rows
from stages.errors import StopRequested
from stages.lora.bank import attach, initial
from stages.lora.full import Tuning, all_weights
from stages.lora.layers import AdapterShape
from stages.lora.targets import find_targets
from stages.training import checkpoints
from stages.training.loop import fit
from stages.training_settings import Optimizer, Train

LLAMA = Callable[..., Any]
ROWS = Callable[..., Rows]
SETTINGS = Callable[..., Train]
LENGTHS = [9, 40, 14, 23, 12, 25, 33, 6, 31, 18, 22]
STEPS = 20

ADAMW: dict[str, Any] = {
    "name": "adamw", "learning_rate": 2e-2, "schedule": "cosine", "warmup_fraction": 0.1,
    "final_fraction": 0.1, "max_grad_norm": 1.0, "betas": (0.9, 0.999), "eps": 1e-8,
    "weight_decay": 0.01,
}  # fmt: skip
MOMENTUM = {"betas": None, "eps": None, "momentum": 0.9, "nesterov": True}
MUON = {"name": "muon", "momentum": 0.9, "nesterov": True}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], int]] = {
    # kind of tuning, optimizer, train, validation rows
    "dropout": ({"dropout": 0.2}, {}, {}, 3),
    "accumulation": ({}, {}, {"batch_size": 1, "grad_accumulation_steps": 2}, 3),
    "early best": ({}, {"learning_rate": 1.0, "schedule": "constant", "final_fraction": None}, {
        "validations_per_epoch": 6}, 3),
    "patience": ({}, {"learning_rate": 0.3, "schedule": "constant", "final_fraction": None}, {
        "validations_per_epoch": 6, "patience": 2}, 3),
    "no validation": ({}, {}, {}, 0),
    "dora": ({"dora": True, "dropout": 0.1}, {}, {}, 2),
    "lora plus": ({"ratio": 16.0}, {}, {}, 2),
    "lora plus, muon": ({"ratio": 4.0}, MUON, {}, 2),
    "full, muon": ({"full": True}, MUON, {}, 2),
    "full": ({"full": True}, {"learning_rate": 1e-3}, {}, 2),
    "full, adafactor": ({"full": True}, {"name": "adafactor", "betas": None}, {}, 2),
    "lion": ({}, {"name": "lion", "eps": None, "learning_rate": 1e-3}, {}, 2),
    "sgd": ({}, {"name": "sgd", **MOMENTUM}, {}, 2),
    "gradient checkpointing": ({"dropout": 0.1}, {}, {"gradient_checkpointing": True}, 2),
}  # fmt: skip
EVERY_STEP = ("dropout", "accumulation", "early best", "patience", "lora plus", "full")


def tuning_of(model: Any, dropout: float = 0.0, dora: bool = False, full: bool = False) -> Tuning:
    if full:
        return all_weights(model)
    shape = AdapterShape(4, 2.0, dropout, dora)
    bank = attach(model, find_targets(model, ["*"], None), [shape])
    bank.update(bank.join([initial(bank.layers, shape, 0)]))
    return bank


class Training:
    """One configuration, trained in a directory with stops after the given steps."""

    def __init__(self, case: str, llama: LLAMA, make_rows: ROWS, settings: SETTINGS,
                 recorder: Any) -> None:  # fmt: skip
        kind, optimizer, train, count = CASES[case]
        self.kind = dict(kind)
        self.ratio = self.kind.pop("ratio", None)
        self.llama, self.recorder = llama, recorder
        self.rows = make_rows(LENGTHS)
        self.valid = make_rows([12, 30, 44][:count], seed=1, name="valid")
        self.optimizer = Optimizer(**(ADAMW | optimizer))
        self.train = settings(**{"steps": STEPS, "batch_size": 2, "validations_per_epoch": 2,
                                 "checkpoint_every": 10**9, **train})  # fmt: skip

    def go(self, directory: Path | None, stop_after: int | None = None) -> Any:
        """Return the bytes of the result, its metrics and the rows that were told."""
        report = self.recorder()
        if stop_after is not None:
            report.stop_requested = lambda: bool(report.rows) and report.rows[-1][0] >= stop_after
        best, metrics = fit(
            tuning_of(self.llama(), **self.kind), self.rows, self.valid, optimizer=self.optimizer,
            train=self.train, seed=3, report=report, b_learning_rate_ratio=self.ratio,
            checkpoints=directory,
        )  # fmt: skip
        return outcome(best, metrics, report)


def outcome(best: Any, metrics: dict[str, float], report: Any) -> Any:
    weights = {name: np.array(value).tobytes() for name, value in tree_flatten(best)}
    timed = "train.tokens_per_second"
    metrics = {name: value for name, value in metrics.items() if name != timed}
    rows = [(step, {name: value for name, value in values.items() if name != timed})
            for step, values in report.rows]  # fmt: skip
    return weights, metrics, rows


@pytest.fixture
def training(
    tiny_llama: LLAMA, make_rows: ROWS, settings: SETTINGS, recorder: Any
) -> Callable[[str], Training]:
    return lambda case: Training(case, tiny_llama, make_rows, settings, recorder)


@pytest.mark.parametrize("case", EVERY_STEP)
def test_stopped_after_any_step_it_ends_byte_for_byte_the_same(
    training: Callable[[str], Training], tmp_path: Path, case: str
) -> None:
    """For each of 20 steps: asked to stop there, having gone on from the one before, and taken up
    again, the weights, the metrics and every row told are those of the run that nobody stopped.
    """
    one = training(case)
    whole = one.go(None)
    if case == "early best":
        assert 0 < whole[1]["train.best_step"] < STEPS
    last = int(whole[1]["train.steps"])
    assert (last < STEPS) == (case == "patience")
    for step in range(1, last + 1):
        with pytest.raises(StopRequested):
            one.go(tmp_path / "chain", stop_after=step)
        assert checkpoints.names(tmp_path / "chain")[0] == f"step-{step:08d}"
        shutil.copytree(tmp_path / "chain", tmp_path / str(step))
        assert one.go(tmp_path / str(step)) == whole


@pytest.mark.parametrize("case", [case for case in CASES if case not in EVERY_STEP])
def test_stopped_again_and_again_it_ends_byte_for_byte_the_same(
    training: Callable[[str], Training], tmp_path: Path, case: str
) -> None:
    """Every optimizer and kind of tuning, stopped after one step each time, ends as it should."""
    one = training(case)
    whole = one.go(None)
    for step in range(1, STEPS, 6):
        with pytest.raises(StopRequested):
            one.go(tmp_path / "here", stop_after=step)
    assert one.go(tmp_path / "here") == whole


def test_order_in_memory_is_kept(tmp_path: Path) -> None:
    """Arrays that lie in another order than their axes lie so again, with the same values."""
    rng = np.random.default_rng(0)
    plain = mx.array(rng.normal(size=(3, 5, 2)))
    tree = {"a.b": [plain, plain.transpose(2, 0, 1), mx.array(7, mx.uint64)], "c": None, "d": 0.1}
    mx.eval(tree["a.b"])
    name = checkpoints.write(tmp_path, checkpoints.take(4, tree, b"rows\n"))
    found, rows = checkpoints.read(tmp_path / name)
    assert rows == b"rows\n"
    assert (found["c"], found["d"]) == (None, 0.1)
    for before, after in zip(tree["a.b"], found["a.b"], strict=True):
        assert after.dtype == before.dtype
        assert np.asarray(after).strides == np.asarray(before).strides
        assert np.array_equal(np.asarray(after), np.asarray(before))
