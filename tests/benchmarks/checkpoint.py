"""What checkpoints cost a training: how long a step waits for one, and what writing it takes.

Run `python tests/benchmarks/checkpoint.py [--full]`. A model of 135M parameters, rank 8 on all
linear layers, batches of 4 rows of 256 tokens; with `--full` all weights are trained. The share is
of the time of all steps from one checkpoint to the next, as if writing took a core of its own.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.environment import worker_variables
from stages.models.blas import preload

# Before anything imports MLX.
os.environ.update(worker_variables("tiny"))
preload()

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402
from mlx_lm.models.llama import Model, ModelArgs  # noqa: E402

from stages.data.rows import Rows, write_rows  # noqa: E402
from stages.lora.bank import attach, initial  # noqa: E402
from stages.lora.full import Tuning, all_weights  # noqa: E402
from stages.lora.layers import AdapterShape  # noqa: E402
from stages.lora.targets import find_targets  # noqa: E402
from stages.settings import Train  # noqa: E402
from stages.training import checkpoints  # noqa: E402
from stages.training.keeper import Keeper  # noqa: E402
from stages.training.loop import fit  # noqa: E402
from stages.training_settings import Optimizer  # noqa: E402

STEPS, EVERY = 6, 50
MINUTES = 5


class Clock:
    """Hears of each step, and takes the time of what the keeper does in a step and beside it."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.stalls: list[float] = []
        self.writes: list[tuple[float, float]] = []
        self.size_bytes = 0

    def log(self, message: str) -> None: ...
    def progress(self, done: int, total: int, fields: Any) -> None: ...
    def resumed(self, step: int, seconds: float) -> None: ...
    def stop_requested(self) -> bool:
        return False

    def metrics(self, step: int, values: Any) -> None:
        self.ends.append(time.perf_counter())

    def listen(self) -> None:
        """Take the time of every call of the keeper from now on."""
        after, write = Keeper.after, checkpoints.write

        def timed_after(keeper: Keeper, course: Any, stop: bool) -> None:
            start = time.perf_counter()
            after(keeper, course, stop)
            self.stalls.append(time.perf_counter() - start)

        def timed_write(directory: Path, snapshot: Any) -> str:
            start, cpu = time.perf_counter(), time.thread_time()
            name = write(directory, snapshot)
            self.writes.append((time.perf_counter() - start, time.thread_time() - cpu))
            self.size_bytes = snapshot.size_bytes
            return name

        Keeper.after, checkpoints.write = timed_after, timed_write  # type: ignore[method-assign]


def tuning(full: bool) -> Tuning:
    """Build the model with random weights, and what is trained of it."""
    mx.random.seed(0)
    model = Model(ModelArgs(
        model_type="llama", hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, vocab_size=49152, rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    ))  # fmt: skip
    model.freeze()
    mx.eval(model.parameters())
    if full:
        return all_weights(model)
    shape = AdapterShape(8, 2.0)
    bank = attach(model, find_targets(model, ["*"], None), [shape])
    bank.update(bank.join([initial(bank.layers, shape, 0)]))
    return bank


def main() -> None:
    """Print the cost of a checkpoint and its share of the training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    full = parser.parse_args().full
    clock, rng = Clock(), np.random.default_rng(0)
    clock.listen()
    with tempfile.TemporaryDirectory(dir=".") as place:
        rows = [(rng.integers(0, 49152, 257).astype(np.int32), np.ones(257, np.uint8))
                for _ in range(4 * STEPS)]  # fmt: skip
        for name, found in (("train", rows), ("valid", [])):
            write_rows(Path(place) / f"{name}.safetensors", found)
        optimizer = Optimizer(
            name="adamw", learning_rate=1e-4, schedule="constant", warmup_fraction=0.0, eps=1e-8,
            max_grad_norm=1.0, betas=(0.9, 0.999), weight_decay=0.0,
        )  # fmt: skip
        train = Train(
            epochs=1, batch_size=4, grad_accumulation_steps=1, gradient_checkpointing=False,
            validations_per_epoch=1, log_every=1, checkpoint_every=1, resume="auto", callbacks=(),
        )  # fmt: skip
        fit(tuning(full), Rows(Path(place) / "train.safetensors"),
            Rows(Path(place) / "valid.safetensors"), optimizer=optimizer, train=train, seed=0,
            report=clock, checkpoints=Path(place) / "checkpoints")  # fmt: skip
    step = statistics.median(b - a for a, b in zip(clock.ends, clock.ends[1:], strict=False))
    # The first comes before anything is at work beside it.
    stall = statistics.median(sorted(clock.stalls)[-len(clock.writes) :])
    wall, cpu = (statistics.median(values) for values in zip(*clock.writes, strict=True))
    print(f"{clock.size_bytes / 1e6:,.1f} MB a checkpoint, {step:.2f} s a step")
    print(f"a step waits {1000 * stall:,.1f} ms; writing takes {1000 * wall:,.0f} ms beside it, "
          f"{1000 * cpu:,.0f} ms of a core")  # fmt: skip
    for label, seconds in ((f"{EVERY} steps", EVERY * step), (f"{MINUTES}m", 60.0 * MINUTES)):
        print(f"share at train.checkpoint_every={label}: waiting {stall / seconds:.3%}, "
              f"with writing {(stall + cpu) / seconds:.3%}")  # fmt: skip


if __name__ == "__main__":
    main()
