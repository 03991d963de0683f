"""Which models may be given rows packed: one after the other in one, kept apart by attention.

Chosen on a CPU wherever it is right; a GPU computes in few shapes instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import mlx.core as mx
import numpy as np

from stages.data.rows import Rows
from stages.lora.bank import Bank
from stages.lora.full import Tuning
from stages.training.batches import input_width
from stages.training.cpu_functions import packed
from stages.training.head import UNCUT, Cut, hidden_states

_TOLERANCE = 1e-3
"""Of the largest hidden state: positions are counted on from row to row, which rounds otherwise."""


def longest_together(splits: Iterable[Rows], batch_size: int) -> list[int]:
    """Return the input lengths of the longest rows of all splits, a batch of them, ascending."""
    lengths = sorted(length for rows in splits for length in rows.lengths.tolist())
    return [input_width(length) for length in lengths[-batch_size:]]


def can_pack(tuning: Tuning, cut: Cut, lengths: Sequence[int]) -> bool:
    """Tell whether rows of these lengths give the same packed as alone; prove it on the last.

    Not for models in which more than attention mixes tokens (state spaces, convolutions), or whose
    positions are absolute, nor for several adapters at once. Best given the longest rows that are
    packed together, the longest last: it lies across whatever changes at a certain position.
    """
    several = isinstance(tuning, Bank) and len(tuning.shapes) > 1
    if mx.default_device() != mx.cpu or cut == UNCUT or several or len(lengths) < 2:
        return False
    rng = np.random.default_rng(0)
    # Two tokens that every vocabulary has, in an order of their own for each row.
    tokens = mx.array(rng.integers(0, 2, (1, sum(lengths))).astype(np.int32))
    last = lengths[-1]
    tuning.model.eval()
    # What a model does with rows that it was not made for is its own affair.
    try:
        with packed(lengths):
            together = hidden_states(tuning.model, cut, tokens)[0, -last:].astype(mx.float32)
        expected = hidden_states(tuning.model, cut, tokens[:, -last:])[0].astype(mx.float32)
        apart = mx.abs(together - expected).max()
        return bool((apart <= _TOLERANCE * mx.abs(expected).max()).item())
    except Exception:
        return False
