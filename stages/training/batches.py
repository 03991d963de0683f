"""Which rows make a step, and how rows become arrays: length buckets, each row once per epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.data.rows import Rows
from stages.lora.keys import fold, words
from stages.settings import Train

WIDTH_MULTIPLE = 32
"""Input widths are multiples of this: few shapes to compile."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows as arrays, padded on the right with tokens that are never supervised."""

    rows: tuple[int, ...]
    tokens: NDArray[np.int32]
    """(B, T + 1); T is a multiple of WIDTH_MULTIPLE."""
    supervised: NDArray[np.uint8]
    """(B, T + 1): 1 where the token is a target."""
    input_tokens: int
    """Tokens that go into the model, padding excluded."""

    @property
    def supervised_tokens(self) -> int:
        """Count the targets; a row's first token has nothing before it to be predicted from."""
        return int(self.supervised[:, 1:].sum())

    @property
    def padded_tokens(self) -> int:
        """Count the tokens that go into the model, padding included."""
        rows, width = self.tokens.shape
        return int(rows * (width - 1))


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


def training_steps(rows: Rows, train: Train, seed: int) -> Iterator[Step]:
    """Yield every step of the run with its rows read and padded."""
    per_epoch, total = count_steps(rows, train)
    dealt: list[list[int]] = []
    for number in range(total):
        epoch, place = divmod(number, per_epoch)
        if place == 0:
            rows_per_step = train.batch_size * train.grad_accumulation_steps
            dealt = deal(rows.lengths.tolist(), rows_per_step, seed, epoch)
        parts = chunks(dealt[place], train.batch_size)
        yield Step(number, epoch, tuple(collate(rows, part) for part in parts))


def input_width(length: int) -> int:
    """Return the padded input width of a row of `length` tokens; its last is a target only."""
    return max(1, -(-(length - 1) // WIDTH_MULTIPLE)) * WIDTH_MULTIPLE


def deal(lengths: Sequence[int], rows_per_step: int, seed: int, epoch: int) -> list[list[int]]:
    """Deal all rows into steps of up to `rows_per_step` rows of similar length.

    A function of the arguments alone: micro-batches, evaluation and resuming cannot change it.
    """
    shuffled = sorted(range(len(lengths)), key=lambda row: fold(seed, "order", epoch, row))
    bucketed = sorted(shuffled, key=lambda row: input_width(lengths[row]))
    steps = chunks(bucketed, rows_per_step)
    order = sorted(range(len(steps)), key=lambda step: fold(seed, "step order", epoch, step))
    return [steps[step] for step in order]


def chunks(rows: Sequence[int], size: int) -> list[list[int]]:
    """Cut `rows` into consecutive parts of `size`; the last may be shorter."""
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def collate(rows: Rows, indices: Sequence[int]) -> Batch:
    """Read the rows and pad them to one width."""
    read = [rows[index] for index in indices]
    lengths = [len(tokens) for tokens, _ in read]
    width = input_width(max(lengths)) + 1
    tokens = np.zeros((len(read), width), dtype=np.int32)
    supervised = np.zeros((len(read), width), dtype=np.uint8)
    for place, (row_tokens, row_supervised) in enumerate(read):
        tokens[place, : len(row_tokens)] = row_tokens
        supervised[place, : len(row_tokens)] = row_supervised
    return Batch(tuple(indices), tokens, supervised, sum(lengths) - len(lengths))


def validation_batches(rows: Rows, batch_size: int) -> Iterator[Batch]:
    """Yield every row once, longest last, in the same batches each time."""
    order = sorted(range(len(rows)), key=lambda row: int(rows.lengths[row]))
    for part in chunks(order, batch_size):
        yield collate(rows, part)


def dropout_keys(seed: int, epoch: int, rows: Sequence[int]) -> NDArray[np.uint32]:
    """Return one random key per row: (B, 2). The same row drops the same in any batch."""
    return np.array([words(fold(seed, "dropout", epoch, row)) for row in rows], dtype=np.uint32)
