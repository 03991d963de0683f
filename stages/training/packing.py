"""Which models may be given rows packed: one after the other in one, kept apart by attention.

Chosen on a CPU wherever it is right; a GPU computes in few shapes instead.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from stages.lora.bank import Bank
from stages.lora.full import Tuning
from stages.training.cpu_functions import packed
from stages.training.head import UNCUT, Cut, hidden_states

_TOLERANCE = 1e-3
"""Of the largest hidden state: positions are counted on from row to row, which rounds otherwise."""


def can_pack(tuning: Tuning, cut: Cut, tokens: int) -> bool:
    """Tell whether rows of `tokens` tokens in all give the same packed as alone; prove it.

    Not for models in which more than attention mixes tokens (state spaces, convolutions), or whose
    positions are absolute, nor for several adapters at once.
    """
    several = isinstance(tuning, Bank) and len(tuning.shapes) > 1
    if mx.default_device() != mx.cpu or cut == UNCUT or several or tokens < 8:
        return False
    lengths = (tokens - 7, 4, 3)
    rng = np.random.default_rng(0)
    # Two tokens that every vocabulary has, in an order of their own for each row.
    rows = [mx.array(rng.integers(0, 2, (1, length)).astype(np.int32)) for length in lengths]
    tuning.model.eval()
    # What a model does with rows that it was not made for is its own affair.
    try:
        with packed(lengths):
            together = hidden_states(tuning.model, cut, mx.concatenate(rows, axis=1))[0, -7:]
        alone = [hidden_states(tuning.model, cut, row)[0] for row in rows[1:]]
        expected = mx.concatenate(alone).astype(mx.float32)
        apart = mx.abs(together.astype(mx.float32) - expected).max()
        return bool((apart <= _TOLERANCE * mx.abs(expected).max()).item())
    except Exception:
        return False
