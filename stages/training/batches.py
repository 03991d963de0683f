"""Which rows make a step, and how rows become arrays: each row once per epoch, little padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise

import numpy as np
from numpy.typing import NDArray

from stages.data.rows import Rows, Supervised, Tokens
from stages.lora.keys import fold, words
from stages.training_settings import Train

WINDOW_STEPS = 25
"""Steps, at least, whose rows are sorted by length together. Of what is computed of WikiSQL and
SNIPS by 4 or by 8, 0.6 to 0.9 % is then padding, 1.7 to 2.6 % in few shapes."""

_PARTS, _PART_ROWS = 4, 2
"""Parts of a step, each of other lengths, and the fewest rows of a part. The default run ends at a
validation loss (two seeds) of 1.40 with four parts, 1.46 with two, 1.59 with one, and 1.40 with
rows at random, a third of the work being padding. On a CPU, 2 rows of 70 tokens a pass take 15 %
more time than 8, and 1 row 43 % more: the weights are read anew."""

_WORTH_A_PASS = 1 / 32
"""Share of what is computed that a pass of its own must save."""

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
    lengths: tuple[int, ...] = ()
    """Packed: the inputs of the rows lie one after the other in one, (1, T), and are so long."""

    @property
    def counts(self) -> NDArray[np.int64]:
        """Count the targets of each row; its first token has nothing before it to predict it."""
        return np.bincount(self.owners, minlength=len(self.rows) + 1)[: len(self.rows)]

    @property
    def supervised_tokens(self) -> int:
        """Count the targets of all rows."""
        return int(self.counts.sum())

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


def validation_steps(per_epoch: int, total: int, per_epoch_validations: int) -> set[int]:
    """Return the steps (from 1) after which to validate: evenly in each epoch, and the last."""
    within = {-(-per_epoch * i // per_epoch_validations)
              for i in range(1, per_epoch_validations + 1)}  # fmt: skip
    return {step for step in range(1, total) if (step - 1) % per_epoch + 1 in within} | {total}


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of a step become batches; what is trained is the same in all."""

    few_shapes: bool = False
    packed: bool = False
    ranks: int = 1
    """Processes that share the batches of a step."""

    def read(self, rows: Rows, indices: Sequence[int]) -> Batch:
        """Read rows as one batch."""
        return pack(rows, indices) if self.packed else collate(rows, indices, self.few_shapes)

    def passes(
        self, parts: Sequence[Sequence[int]], lengths: Sequence[int], batch_size: int
    ) -> list[list[int]]:
        """Return the rows of a step, dealt in `parts`, that are computed together."""
        if not self.packed:
            return passes(parts, lengths, -(-batch_size // self.ranks), self.few_shapes)
        rows = [row for part in parts for row in part]
        count = -(-len(rows) // batch_size) * self.ranks
        together = share([input_width(lengths[row]) for row in rows], count)
        return [[rows[place] for place in places] for places in together if places]


BY_LENGTH = Layout()
"""Rows of about one length together, padded to the longest."""


def training_steps(
    rows: Rows, train: Train, seed: int, layout: Layout = BY_LENGTH, start: int = 0
) -> Iterator[Step]:
    """Yield every step of the run from `start` on, with its rows read, those of all ranks."""
    per_epoch, total = count_steps(rows, train)
    dealt: list[list[list[int]]] = []
    lengths: list[int] = rows.lengths.tolist()
    for number in range(start, total):
        epoch, place = divmod(number, per_epoch)
        if place == 0 or number == start:
            rows_per_step = train.batch_size * train.grad_accumulation_steps
            dealt = deal(lengths, rows_per_step, seed, epoch)
        together = layout.passes(dealt[place], lengths, train.batch_size)
        yield Step(number, epoch, tuple(layout.read(rows, part) for part in together))


def deal(
    lengths: Sequence[int], rows_per_step: int, seed: int, epoch: int
) -> list[list[list[int]]]:
    """Deal all rows into steps of `rows_per_step` rows, each in parts of about one length.

    The shuffled rows are cut into windows of WINDOW_STEPS steps or more. Those of a window are
    sorted by length, ties staying shuffled, and each part takes neighbours: the first part of a
    step at a random place among the shortest rows, the last among the longest. A function of the
    arguments alone: micro-batches, evaluation and resuming cannot change it.
    """
    shuffled = sorted(range(len(lengths)), key=lambda row: fold(seed, "order", epoch, row))
    steps = chunks(shuffled, rows_per_step)
    windows = max(len(steps) // WINDOW_STEPS, 1)
    bounds = [len(steps) * window // windows for window in range(windows + 1)]
    dealt: list[list[list[int]]] = [[] for _ in steps]
    for start, end in pairwise(bounds):
        ranked = iter(sorted((row for step in steps[start:end] for row in step),
                             key=lambda row: lengths[row]))  # fmt: skip
        places: list[tuple[float, int, int]] = []
        for step in range(start, end):
            count = len(steps[step])
            parts = min(_PARTS, max(count // _PART_ROWS, 1))
            for part in range(parts):
                place = (part + fold(seed, "place", epoch, step, part) / 2**64) / parts
                places.append((place, step, count * (part + 1) // parts - count * part // parts))
        for _, step, count in sorted(places):
            dealt[step].append(list(islice(ranked, count)))
    return dealt


def passes(
    parts: Sequence[Sequence[int]], lengths: Sequence[int], batch_size: int, few_shapes: bool
) -> list[list[int]]:
    """Return the rows of a step that are computed together, at most `batch_size`.

    Parts of about one length are joined. The gradient of a step sums over its tokens, however its
    rows are cut.
    """

    def computed(*together: Sequence[int]) -> int:
        return sum(len(rows) * input_width(max(lengths[row] for row in rows), few_shapes)
                   for rows in together)  # fmt: skip

    found: list[list[int]] = []
    for rows in (rows for part in parts for rows in chunks(part, batch_size)):
        joined = [*found[-1], *rows] if found else []
        if 0 < len(joined) <= batch_size and (
            computed(found[-1], rows) >= (1 - _WORTH_A_PASS) * computed(joined)
        ):
            found[-1] = joined
        else:
            found.append(rows)
    return found


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
    supervision = _fill(inputs, read, range(0, inputs.size, width))
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


def pack(rows: Rows, indices: Sequence[int]) -> Batch:
    """Read the rows and lay them out one after the other in one: inputs are (1, T)."""
    read = [rows[index] for index in indices]
    lengths = tuple(input_width(len(tokens)) for tokens, _ in read)
    starts = [0, *accumulate(lengths)]
    inputs = np.zeros((1, starts[-1]), np.int32)
    supervision = _fill(inputs, read, starts)
    if supervision.shape[1] == 0:
        # A batch without a target has a loss, 0, all the same.
        supervision = np.array([[0], [0], [len(read)]], np.int32)
    positions, targets, owners = supervision
    input_tokens = sum(len(tokens) - 1 for tokens, _ in read)
    return Batch(tuple(indices), inputs, positions, targets, owners, input_tokens, lengths)


def _fill(
    inputs: NDArray[np.int32], read: Sequence[tuple[Tokens, Supervised]], starts: Sequence[int]
) -> NDArray[np.int32]:
    """Put rows into `inputs` at these places of it, flattened; returns positions, targets, owners.

    They are (3, N), N the supervised tokens of all rows.
    """
    flat, found = inputs.reshape(-1), []
    for owner, ((tokens, supervised), start) in enumerate(zip(read, starts, strict=False)):
        flat[start : start + len(tokens) - 1] = tokens[:-1]
        predicted = np.flatnonzero(supervised[1:])
        owners = np.full_like(predicted, owner)
        found.append(np.stack([start + predicted, tokens[1:][predicted], owners]))
    return np.concatenate(found, axis=1).astype(np.int32)


def share(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Share things out by their sizes: return the places of those in each part, which may be none.

    The largest first, each to the part that has least so far.
    """
    found: list[list[int]] = [[] for _ in range(parts)]
    taken = [0] * parts
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        part = taken.index(min(taken))
        found[part].append(place)
        taken[part] += sizes[place]
    return found


def validation_batches(
    rows: Rows, batch_size: int, layout: Layout = BY_LENGTH, rank: int = 0
) -> Iterator[Batch]:
    """Yield every row once, longest last, in the same batches each time: those of one rank."""
    order = sorted(range(len(rows)), key=lambda row: int(rows.lengths[row]))
    for part in chunks(order, batch_size)[rank :: layout.ranks]:
        yield layout.read(rows, part)


def dropout_keys(seed: int, epoch: int, rows: Sequence[int]) -> NDArray[np.uint32]:
    """Return one random key per row: (B, 2). The same row drops the same in any batch."""
    return np.array([words(fold(seed, "dropout", epoch, row)) for row in rows], dtype=np.uint32)
