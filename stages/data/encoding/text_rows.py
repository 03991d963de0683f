"""Token ids of plain texts, and of the pieces of those that are too long.

A text is trained whole. Special tokens that it spells out are special: it is the model's own input,
verbatim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stages.data.encoding.examples import Encoded, Example, too_long
from stages.data.encoding.template import TemplateFault
from stages.data.formats.parser import Row
from stages.data.rows import Supervised, Tokens
from stages.data_settings import Data
from stages.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

# In a piece of fewer tokens next to nothing is predicted.
_FEWEST = 2


@dataclass(frozen=True, slots=True)
class _Text:
    """The tokens of one text, between those with which the tokenizer begins and ends any."""

    text: str
    encoding: Any
    before: list[int]
    ids: list[int]
    after: list[int]
    """What ends the text, unless it spells its end itself."""

    def __len__(self) -> int:
        return len(self.before) + len(self.ids) + len(self.after)

    def row(self, start: int, end: int) -> tuple[Tokens, Supervised]:
        """Return (tokens, supervised) of a row of tokens `start` to `end` of the text."""
        after = self.after if end == len(self.ids) else []
        tokens = np.array([*self.before, *self.ids[start:end], *after], np.int32)
        supervised = np.ones(len(tokens), np.uint8)
        supervised[0] = 0
        return tokens, supervised

    def offsets(self) -> list[tuple[int, int]]:
        """Return where in the text each token starts and ends."""
        first = len(self.before)
        found: list[tuple[int, int]] = self.encoding.offsets[first : first + len(self.ids)]
        return found


def open_texts(
    data: Data, tokenizer: PreTrainedTokenizerBase, directory: Path
) -> Callable[[Sequence[Row]], list[Encoded | InputError]]:
    """Return the encoder of rows of text: one result for each.

    Raises TemplateFault where the tokenizer names no token that ends a text.
    """
    backend, end = tokenizer.backend_tokenizer, tokenizer.eos_token_id
    if end is None:
        mend = "set eos_token in tokenizer_config.json"
        raise TemplateFault(str(directory), "its tokenizer names no token that ends a text", mend)
    # Which of its tokens the tokenizer adds to any text.
    added = backend.encode("x").special_tokens_mask
    first, last = added.index(0), added[::-1].index(0)

    def encode(rows: Sequence[Row]) -> list[Encoded | InputError]:
        found = []
        encodings = backend.encode_batch([row.text for row in rows])
        for row, encoding in zip(rows, encodings, strict=True):
            ids = encoding.ids
            close = [] if ids[-1:] == [end] else [end]
            body = ids[first : len(ids) - last]
            after = [*ids[len(ids) - last :], *close]
            found.append(_finished(data, row, _Text(row.text, encoding, ids[:first], body, after)))
        return found

    return encode


def _finished(data: Data, row: Row, text: _Text) -> Encoded | InputError:
    """Return the examples of a text, one that is too long dealt with as `data` says."""
    if not text.ids or len(text) < _FEWEST:
        return InputError(row.where, "its text encodes to no token", "remove the row")
    if len(text) <= data.max_seq_length:
        return Encoded([Example(row, *text.row(0, len(text.ids)))], ())
    overlong = "split" if data.overlong == "auto" else data.overlong
    if overlong == "error":
        return too_long(row, len(text), data.max_seq_length)
    pieces = [] if overlong == "drop" else _pieces(text, data.max_seq_length, overlong)
    if not pieces:
        return Encoded([], ("dropped_overlong",))
    examples = [
        Example(replace(row, content={"text": piece}), tokens, supervised)
        for piece, tokens, supervised in pieces
    ]
    return Encoded(examples, ("split" if overlong == "split" else "truncated",))


def _pieces(
    text: _Text, longest: int, overlong: Literal["split", "truncate_left"]
) -> list[tuple[str, Tokens, Supervised]]:
    """Return the pieces of a text that is too long, as (text, tokens, supervised).

    truncate_left keeps one, its end. A piece begins and ends between two characters, wherever not
    each of them is several tokens. There are none where `longest` leaves no room for one.
    """
    size, room = len(text.ids), longest - len(text.before)
    last = room - len(text.after)
    if last < _FEWEST + 1:
        return []
    offsets = text.offsets()
    if overlong == "truncate_left":
        cuts = [_clean(offsets, range(size - last, size - _FEWEST)), size]
    else:
        cuts = [0]
        while size - cuts[-1] > last:
            end = min(cuts[-1] + room, size - _FEWEST)
            cuts.append(_clean(offsets, range(end, cuts[-1] + _FEWEST, -1)))
        cuts.append(size)
    places = [0 if not cut else len(text.text) if cut == size else offsets[cut][0] for cut in cuts]
    return [
        (text.text[a:b], *text.row(start, end))
        for (start, end), (a, b) in zip(pairwise(cuts), pairwise(places), strict=True)
    ]


def _clean(offsets: list[tuple[int, int]], indices: range) -> int:
    """Return the first token that does not begin within a character; the first where all do."""
    found = (n for n in indices if offsets[n - 1][1] <= offsets[n][0])
    return next(found, indices.start)
