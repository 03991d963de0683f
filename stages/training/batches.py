"""Which rows make a step, and how rows become arrays: each row once per epoch, little padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from stages.data.rows import Rows
from stages.lora.keys import fold, words
from stages.settings import Train

WINDOW_STEPS = 100
"""Steps, at least, whose rows are sorted by length together. Of what is computed of WikiSQL and
SNIPS by 4 or by 8, 0.6 to 0.9 % is then padding, 1.9 to 2.4 % in few shapes; at 50 steps up to 1.6
and 3.2 %. The wider the window, the closer do rows of one length stay together."""

_WIDTHS_PER_DOUBLING = 16
_COUNTS_PER_WIDTH = 8
"""In few shapes: between a power of two and the next, and of supervised tokens by width."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows as arrays, padded on the right with tokens that are never supervised."""

    rows: tuple[int, ...]
    inputs: NDArray[np.int32]
    """(B, T): a row's last token is a target only."""
    positions: NDArray[np.int32]
    """(N,): where in `inputs`, flattened, each supervised token is predicted."""
    targets: NDArray[np.int32]
    """(N,): the supervised tokens, row by row."""
    owners: NDArray[np.int32]
    """(N,): the row of the batch that each belongs to; B where it only fills the shape."""
    input_tokens: int
    """Tokens that go into the model, padding excluded."""

    @property
    def supervised_tokens(self) -> int:
        """Count the targets; a row's first token has nothing before it to be predicted from."""
        return int((self.owners < len(self.rows)).sum())

    @property
    def padded_tokens(self) -> int:
        """Count the tokens that go into the model, padding included."""
        return self.inputs.size


@dataclass(frozen=True, slots=True)
class Step:
    """The rows of one optimizer step, in the batches that are computed one after the other."""

    number: int
    """From 0, over all epochs."""
    epoch: int
    batches: tuple[Batch, ...]

    @property
    def rows(self) -> list[int]:
        """Return the rows of all batches in their order."""
        return [row for batch in self.batches for row in batch.rows]

    @property
    def supervised_tokens(self) -> int:
        """Count the targets of all batches."""
        return sum(batch.supervised_tokens for batch in self.batches)


def count_steps(rows: Rows, train: Train) -> tuple[int, int]:
    """Return the optimizer steps of an epoch and of the whole run."""
    per_epoch = -(-len(rows) // (train.batch_size * train.grad_accumulation_steps))
    return per_epoch, train.steps or train.epochs * per_epoch


def training_steps(
    rows: Rows, train: Train, seed: int, *, few_shapes: bool = False
) -> Iterator[Step]:
    """Yield every step of the run with its rows read and padded."""
    per_epoch, total = count_steps(rows, train)
    dealt: list[list[int]] = []
    for number in range(total):
        epoch, place = divmod(number, per_epoch)
        if place == 0:
            rows_per_step = train.batch_size * train.grad_accumulation_steps
            dealt = deal(rows.lengths.tolist(), rows_per_step, seed, epoch)
        parts = chunks(dealt[place], train.batch_size)
        yield Step(number, epoch, tuple(collate(rows, part, few_shapes) for part in parts))


def deal(lengths: Sequence[int], rows_per_step: int, seed: int, epoch: int) -> list[list[int]]:
    """Deal all rows into steps of `rows_per_step` rows of nearly one length; the last has the rest.

    The shuffled rows are cut into windows of WINDOW_STEPS steps or more. Those of a window are
    sorted by length, ties staying shuffled, and cut into steps, which come in random order. A
    function of the arguments alone: micro-batches, evaluation and resuming cannot change it.
    """
    shuffled = sorted(range(len(lengths)), key=lambda row: fold(seed, "order", epoch, row))
    steps = chunks(shuffled, rows_per_step)
    windows = max(len(steps) // WINDOW_STEPS, 1)
    bounds = [len(steps) * window // windows for window in range(windows + 1)]
    for start, end in pairwise(bounds):
        order = sorted(range(start, end), key=lambda step: fold(seed, "step order", epoch, step))
        sizes = {step: len(steps[step]) for step in order}
        ranked = iter(sorted((row for step in steps[start:end] for row in step),
                             key=lambda row: lengths[row]))  # fmt: skip
        for step in order:
            steps[step] = [next(ranked) for _ in range(sizes[step])]
    return steps


def chunks(rows: Sequence[int], size: int) -> list[list[int]]:
    """Cut `rows` into consecutive parts of `size`; the last may be shorter."""
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def input_width(length: int, few_shapes: bool = False) -> int:
    """Return the padded input width of a row of `length` tokens.

    With `few_shapes` it is one of 16 between each power of two and the next, up to 6 % more.
    """
    width = max(length - 1, 1)
    if not few_shapes:
        return width
    multiple = max((1 << (width - 1).bit_length()) // (2 * _WIDTHS_PER_DOUBLING), 1)
    return -(-width // multiple) * multiple


def collate(rows: Rows, indices: Sequence[int], few_shapes: bool = False) -> Batch:
    """Read the rows and pad them to one width; with `few_shapes`, the supervised tokens too."""
    read = [rows[index] for index in indices]
    width = input_width(max(len(tokens) for tokens, _ in read), few_shapes)
    inputs = np.zeros((len(read), width), np.int32)
    found: list[NDArray[np.int32]] = []
    for place, (tokens, supervised) in enumerate(read):
        inputs[place, : len(tokens) - 1] = tokens[:-1]
        predicted = np.flatnonzero(supervised[1:])
        owner = np.full_like(predicted, place)
        found.append(np.stack([place * width + predicted, tokens[1:][predicted], owner]))
    supervision = np.concatenate(found, axis=1).astype(np.int32)
    # At least one, for a batch without a target has a loss, 0, all the same.
    wanted = max(supervision.shape[1], 1)
    if few_shapes:
        multiple = -(-inputs.size // _COUNTS_PER_WIDTH)
        wanted = -(-wanted // multiple) * multiple
    filler = np.array([[0], [0], [len(read)]], np.int32)
    fill = np.repeat(filler, wanted - supervision.shape[1], axis=1)
    positions, targets, owners = np.concatenate([supervision, fill], axis=1)
    input_tokens = sum(len(tokens) - 1 for tokens, _ in read)
    return Batch(tuple(indices), inputs, positions, targets, owners, input_tokens)


def validation_batches(rows: Rows, batch_size: int, *, few_shapes: bool = False) -> Iterator[Batch]:
    """Yield every row once, longest last, in the same batches each time."""
    order = sorted(range(len(rows)), key=lambda row: int(rows.lengths[row]))
    for part in chunks(order, batch_size):
        yield collate(rows, part, few_shapes)


def dropout_keys(seed: int, epoch: int, rows: Sequence[int]) -> NDArray[np.uint32]:
    """Return one random key per row: (B, 2). The same row drops the same in any batch."""
    return np.array([words(fold(seed, "dropout", epoch, row)) for row in rows], dtype=np.uint32)
