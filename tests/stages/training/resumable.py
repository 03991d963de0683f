"""One small training that may be killed anywhere. As a script it makes trials, each in a process
forked from one that has imported everything."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.llama import Model, ModelArgs

from stages.data.rows import Rows, write_rows
from stages.lora.bank import attach, initial
from stages.lora.layers import AdapterShape
from stages.lora.targets import find_targets
from stages.training import checkpoints, loop
from stages.training.keeper import Keeper
from stages.training.progress import Progress
from stages.training_settings import Optimizer, Train

STEPS = 12
POINTS: dict[str, tuple[Any, str]] = {
    "step": (loop, "take_step"),
    "step counted": (Progress, "add"),
    "validation": (loop, "validation_loss"),
    "best kept": (loop, "_keep_best"),
    "resume": (Keeper, "resume"),
    "checkpoint read": (checkpoints, "read"),
    "rows told again": (Progress, "go_on"),
    "snapshot": (checkpoints, "take"),
    "checkpoint written": (checkpoints, "write"),
    "file written": (checkpoints, "write_file"),
    "directory synced": (checkpoints, "sync_directory"),
    "part written": (os, "write"),
    "file synced": (os, "fsync"),
    "directory made": (os, "mkdir"),
    "checkpoint named": (os, "rename"),
    "older ones removed": (checkpoints, "keep_only"),
    "one removed": (checkpoints, "remove"),
    "file removed": (os, "unlink"),
}
"""Every moment that matters on the way of a checkpoint, by the function that does it."""


class Told:
    """Remembers the rows of metrics and what was logged."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.rows.append([step, {k: v for k, v in values.items() if "per_second" not in k}])

    def progress(self, done: int, total: int, fields: Mapping[str, float]) -> None: ...
    def resumed(self, step: int, seconds: float) -> None: ...
    def stop_requested(self) -> bool:
        return False


def prepare(directory: Path) -> None:
    """Write the rows that every trial trains on."""
    rng = np.random.default_rng(5)
    for name, lengths in (("train", [9, 14, 12, 7, 18, 6, 11]), ("valid", [8, 13])):
        pairs = [(rng.integers(1, 32, n).astype(np.int32), (np.arange(n) > 1).astype(np.uint8))
                 for n in lengths]  # fmt: skip
        write_rows(directory / f"{name}.safetensors", pairs)


def train(rows: Path, place: Path | None, steps: int = STEPS) -> tuple[str, list[str]]:
    """Train with a checkpoint at every second step; return a digest of weights, metrics and rows,
    and the log."""
    args = ModelArgs(
        model_type="llama", hidden_size=8, intermediate_size=12, num_hidden_layers=1, vocab_size=32,
        num_attention_heads=2, num_key_value_heads=1, rms_norm_eps=1e-5,
    )  # fmt: skip
    model, rng = Model(args), np.random.default_rng(7)
    weights = [(name, mx.array(rng.normal(0, 0.3, value.shape), value.dtype))
               for name, value in sorted(tree_flatten(model.parameters()))]  # fmt: skip
    model.update(tree_unflatten(weights))
    model.freeze()
    shape = AdapterShape(2, 2.0, 0.1)
    bank = attach(model, find_targets(model, ["*"], None), [shape])
    bank.update(bank.join([initial(bank.layers, shape, 0)]))
    report = Told()
    optimizer = Optimizer(
        name="adamw", learning_rate=0.02, schedule="cosine", warmup_fraction=0.1, eps=1e-8,
        max_grad_norm=1.0, betas=(0.9, 0.99), weight_decay=0.01,
    )  # fmt: skip
    settings = Train(
        epochs=1, steps=steps, batch_size=1, grad_accumulation_steps=2, callbacks=(), log_every=4,
        gradient_checkpointing=False, validations_per_epoch=2, checkpoint_every=2, resume="auto",
    )  # fmt: skip
    best, metrics = loop.fit(
        bank, Rows(rows / "train.safetensors"), Rows(rows / "valid.safetensors"), seed=1,
        optimizer=optimizer, train=settings, report=report, checkpoints=place,
    )  # fmt: skip
    del metrics["train.tokens_per_second"]
    digest = sha256()
    for name, value in tree_flatten(best):
        digest.update(name.encode() + np.array(value).tobytes())
    digest.update(json.dumps([metrics, report.rows]).encode())
    return digest.hexdigest(), report.lines


def arm(kill: Mapping[str, Any]) -> None:
    """Have this process killed at a named point, or after some time."""
    if "seconds" in kill:
        timer = threading.Timer(kill["seconds"], die)
        timer.daemon = True
        timer.start()
        return
    owner, name = POINTS[kill["point"]]
    setattr(owner, name, deadly(getattr(owner, name), kill["nth"], kill["when"]))


def deadly(function: Callable[..., Any], nth: int, when: str) -> Callable[..., Any]:
    calls = 0

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth and when == "within" and function is WRITE:
            # Half of it reaches the disk.
            function(arguments[0], arguments[1][: len(arguments[1]) // 2])
            die()
        if calls == nth and when == "before":
            die()
        result = function(*arguments, **named)
        if calls == nth:
            die()
        return result

    return call


WRITE = os.write


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def serve() -> None:
    """Answer each trial on standard input with the signal that ended it, or its digest and log."""
    random.seed(0)
    for line in sys.stdin:
        trial = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            if trial["kill"]:
                arm(trial["kill"])
            place = trial["place"] and Path(trial["place"])
            done = train(Path(trial["rows"]), place)
            WRITE(writing, json.dumps(done).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as stream:
            said = stream.read()
        _, status = os.waitpid(child, 0)
        print(json.dumps({"status": status, "done": json.loads(said or "null")}), flush=True)


if __name__ == "__main__":
    serve()
