"""Training holds no more memory than it may."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import mlx.core as mx
import pytest

from stages.errors import OutOfMemory
from stages.lora.bank import attach
from stages.lora.layers import AdapterShape
from stages.lora.targets import find_targets
from stages.training.held import Limited, held_bytes
from stages.training.loop import fit

HELD = """
import numpy as np
from stages.training.held import held_bytes
before = held_bytes()
block = np.ones(16_000_000, np.float32)
print(held_bytes() - before)
"""


def test_what_is_held_counts_at_once() -> None:
    """An array of 64 MB that was written to is seen, to within a tenth."""
    # In a process of its own: in this one, what earlier tests held may be given back meanwhile.
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(64e6, rel=0.1)


def test_more_than_the_limit_ends_the_work() -> None:
    """The check before a call names the key, what is held and the limit."""
    limited = Limited(held_bytes() + 100_000_000)
    double = limited.over(lambda value: value * 2)
    assert double(21) == 42
    block = mx.ones((40_000_000,))
    mx.eval(block)
    with pytest.raises(OutOfMemory, match=r"^train\.memory_limit: training held .* more than"):
        double(21)


PEAK = """
import mmap
from stages.errors import OutOfMemory
from stages.lora.bank import attach
from stages.lora.layers import AdapterShape
from stages.lora.targets import find_targets
from stages.training.held import Limited, held_bytes
from stages.training.loop import fit
limit = held_bytes() + 150_000_000
earlier = Limited(limit)
with mmap.mmap(-1, 200_000_000) as block:  # malloc may keep what it gave
    for place in range(0, len(block), 4096):
        block[place] = 1
assert held_bytes() < limit
Limited(limit).check()
try:
    earlier.check()
except OutOfMemory:
    print("noticed")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only the peak is known")
def test_a_peak_counts_though_it_is_over() -> None:
    """What was held between two checks counts; what another stage held before does not."""
    # In a process of its own, for this one's peak is that of all tests before.
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=False)
    assert done.stdout == "noticed\n", done.stderr


def test_no_limit_lets_everything_pass() -> None:
    """None watches nothing."""
    Limited(None).check()


def test_training_is_watched(
    tiny_llama: Any, make_rows: Any, recorder: Any, adamw: Any, settings: Any
) -> None:
    """A limit below what the process holds ends training before its first step is told."""
    model, report = tiny_llama(), recorder()
    bank = attach(model, find_targets(model, ["*"], None), [AdapterShape(4, 2.0, 0.0)])
    with pytest.raises(OutOfMemory, match=r"train\.memory_limit"):
        fit(bank, make_rows([9, 12]), make_rows([], name="none"), optimizer=adamw(), seed=0,
            train=settings(memory_limit="2MB"), report=report)  # fmt: skip
    assert report.values("train.loss") == []
