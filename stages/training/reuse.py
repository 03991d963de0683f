"""Hidden states below the adapters, computed once per row and kept for later epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from stages.artifacts import Reporter
from stages.data.rows import Rows
from stages.lora.bank import Bank
from stages.lora.full import Tuning
from stages.training.batches import Batch, chunks, collate, count_steps, input_width
from stages.training.cpu_functions import cpu_functions
from stages.training.hidden_file import HiddenFile, create
from stages.training.loss import BatchArrays, batch_arrays
from stages.training.prefix import Blocks, frozen_blocks, hidden_below, prove
from stages.training.ranks import ALONE, Ranks
from stages.training.step import compiled, few_shapes
from stages.training_settings import Train

Feed = Callable[[Batch], BatchArrays]
"""Hands the batches of one split over to MLX, with hidden states where they are kept."""

_UNSIGNED = {2: (mx.uint16, np.uint16), 4: (mx.uint32, np.uint32)}
"""Types by their bytes; numpy has no bfloat16."""


@dataclass(frozen=True, slots=True)
class Feeds:
    """How the batches of training and of validation reach the model."""

    train: Feed = batch_arrays
    valid: Feed = batch_arrays


PLAIN = Feeds()
"""Nothing is kept."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The rows of one split whose hidden states are kept.

    Rows of neighbouring length make groups of one batch. A group is always computed whole, when
    the first of its rows is needed: a row's hidden states depend on nothing that came before.
    """

    rows: Rows
    groups: list[list[int]]
    group_of: dict[int, int]
    """Row -> place of its group."""
    file: HiddenFile
    below: Callable[[mx.array], mx.array]
    """Gives the hidden states (B, T, H) of tokens (B, T)."""
    dims: int
    dtype: mx.Dtype

    def feed(self, batch: Batch) -> BatchArrays:
        """Hand over a batch, with what is kept if that is all of its rows."""
        arrays = batch_arrays(batch)
        if not all(row in self.group_of for row in batch.rows):
            return arrays
        for group in dict.fromkeys(self.group_of[row] for row in batch.rows):
            if not self.file.holds(group):
                self._compute(group)
        unsigned = _UNSIGNED[self.dtype.size][1]
        if batch.lengths:
            owns = [self.file.read(row, unsigned).reshape(-1, self.dims) for row in batch.rows]
            return *arrays, mx.array(np.concatenate(owns)[None]).view(self.dtype)
        states = np.empty((*batch.inputs.shape, self.dims), unsigned)
        for place, row in enumerate(batch.rows):
            own = self.file.read(row, unsigned).reshape(-1, self.dims)
            # Padding is the last token again: zeros have no direction, on which some norms fail.
            states[place, : len(own)], states[place, len(own) :] = own, own[-1]
        return *arrays, mx.array(states).view(self.dtype)

    def _compute(self, group: int) -> None:
        batch = collate(self.rows, self.groups[group], few_shapes())
        made = self.below(mx.array(batch.inputs)).view(_UNSIGNED[self.dtype.size][0])
        states: NDArray[np.unsignedinteger] = np.array(made)
        self.file.write(group, [states[place, : input_width(int(self.rows.lengths[row]))]
                                for place, row in enumerate(batch.rows)])  # fmt: skip


@contextmanager
def reused_prefix(
    tuning: Tuning, rows: Rows, valid: Rows, *, train: Train, out: Path, report: Reporter,
    ranks: Ranks = ALONE,
) -> Iterator[Feeds]:  # fmt: skip
    """Keep what the frozen blocks below the first adapted one give, in files under `out`.

    The files take `train.prefix_cache_gb` at most and are gone afterwards. Raises
    EnvironmentFailure where the disk has not the space.
    """
    blocks = frozen_blocks(tuning)
    if train.prefix_cache_gb is None or not blocks or not isinstance(tuning, Bank):
        yield PLAIN
        return
    found = f"the lowest {len(blocks)} of {len(tuning.model.layers)} blocks are not adapted"
    sample = prove(tuning, blocks)
    if sample is None:
        report.log(f"{found}, but what they give cannot be reused: their output is not all that "
                   "the blocks above need")  # fmt: skip
        yield PLAIN
        return
    kept = plan_reuse(tuning, blocks, sample, rows, valid, train, out)
    size = sum(split.file.size_bytes for split in kept.values())
    counts = " and ".join(f"{len(split.group_of):,} of {len(split.rows):,} rows of {name}"
                          for name, split in kept.items())  # fmt: skip
    report.log(f"{found}: their output is kept for {counts}, {size / 1e6:,.0f} MB on disk")
    with ExitStack() as stack:
        for split in kept.values():
            if ranks.rank == 0:
                stack.callback(split.file.path.unlink, missing_ok=True)
                create(split.file.path, split.file.size_bytes)
        # All ranks of this machine share the files; those of another have their own.
        ranks.meet()
        for split in kept.values():
            if not split.file.path.exists():
                stack.callback(split.file.path.unlink, missing_ok=True)
                create(split.file.path, split.file.size_bytes)
            split.file.open()
            stack.callback(split.file.close)
        yield Feeds(**{name: split.feed for name, split in kept.items()})


def plan_reuse(
    tuning: Bank,
    blocks: Blocks,
    sample: mx.array,
    rows: Rows,
    valid: Rows,
    train: Train,
    out: Path,
) -> dict[str, Kept]:
    """Return which rows are kept of each split, and where; `sample` is what `prove` returned.

    A function of settings and lengths alone. Rows to validate come first, as they are seen most
    often, then those to train if there is a second epoch; of both the shortest.
    """
    per_epoch, total = count_steps(rows, train)
    model, budget = tuning.model, int((train.prefix_cache_gb or 0) * 1e9)

    def made_below(tokens: mx.array) -> mx.array:
        model.eval()
        with cpu_functions(model):
            return hidden_below(model, blocks, tokens)

    below = compiled(made_below)
    kept: dict[str, Kept] = {}
    for name, split in (("valid", valid), ("train", rows)):
        if len(split) == 0 or (name == "train" and total <= per_epoch):
            continue
        dims, dtype = sample.shape[-1], sample.dtype
        sizes = [input_width(length) * dims * dtype.size for length in split.lengths.tolist()]
        groups = _fitting(sizes, train.batch_size, budget)
        file = HiddenFile(out / f"hidden_{name}", groups, sizes)
        budget -= file.size_bytes
        group_of = {row: number for number, group in enumerate(groups) for row in group}
        kept[name] = Kept(split, groups, group_of, file, below, dims, dtype)
    return kept


def _fitting(sizes: Sequence[int], batch_size: int, budget: int) -> list[list[int]]:
    """Cut the rows, sorted by their size in bytes, into groups, and take those that fit."""
    groups = chunks(sorted(range(len(sizes)), key=lambda row: sizes[row]), batch_size)
    # A byte says whether a group is there.
    ends = accumulate(1 + sum(sizes[row] for row in group) for group in groups)
    return [group for group, end in zip(groups, ends, strict=True) if end <= budget]
