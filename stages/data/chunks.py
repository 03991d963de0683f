"""From a chunk of records to token rows: what each worker process of prepare does."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.data.doctor.privacy import scan
from stages.data.encoding.encoder import Encoded, Encoder, open_encoder
from stages.data.formats.parser import Parser, Row, open_parser
from stages.data.reading.records import Chunk, Fault
from stages.data.reading.sources import decode_line
from stages.data.rows import Supervised, Tokens
from stages.data.selection.identity import digests
from stages.data_settings import Data
from stages.errors import InputError
from stages.inputs import DataFile
from stages.models.tokenizer import load_tokenizer


@dataclass(frozen=True, slots=True)
class Made:
    """What came of one chunk; the arrays have one entry for each token row, in order."""

    file: DataFile
    size_bytes: int
    """Size of the records as written in the file."""
    tokens: Tokens
    supervised: Supervised
    lengths: NDArray[np.int32]
    supervised_counts: NDArray[np.int32]
    texts: list[bytes]
    """Each row as a line of JSON."""
    digests: NDArray[np.uint64]
    """(rows, 4): exact, row, question, home."""
    records: int
    """Records read, those at fault included."""
    tally: Tally
    faults: list[Fault]
    identity: dict[str, Any]
    """What identifies the encoder: digests of tokenizer and template, stop tokens."""


@dataclass(slots=True)
class Tally:
    """What was counted on the way, by name."""

    formats: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    """Rows of turns (`chat`) and of text (`text`)."""
    notes: Counter[str] = field(default_factory=Counter)
    """What the encoder did to rows: see `stages.data.encoding.examples`."""
    private: Counter[str] = field(default_factory=Counter)
    """E-mail addresses and likely secrets by kind."""
    repairs: int = 0
    """Bytes that were no UTF-8."""

    def add(self, other: Tally) -> None:
        """Count what another tally counted."""
        self.formats += other.formats
        self.kinds += other.kinds
        self.notes += other.notes
        self.private += other.private
        self.repairs += other.repairs


def open_maker(data: Data, model: Path, chat_template: str | None) -> Callable[[Chunk], Made]:
    """Return the function that makes token rows of a chunk, with tokenizer and converter loaded.

    Raises InputError or SettingError where these cannot be used; faults of records are returned.
    """
    parser = open_parser(data)
    encoder = open_encoder(data, load_tokenizer(model), model, chat_template)
    return lambda chunk: _make(chunk, data, parser, encoder)


def _make(chunk: Chunk, data: Data, parser: Parser, encoder: Encoder) -> Made:
    tally, faults, rows = Tally(repairs=chunk.repairs), list[Fault](), list[Row]()
    for index, value in enumerate(chunk.values):
        source, where = chunk.source(index), chunk.where(index)
        try:
            if isinstance(value, InputError):
                raise value
            if isinstance(value, bytes):
                decoded, repairs = decode_line(value, where, data.encoding)
                tally.repairs += repairs
            else:
                decoded = value
            parsed = parser(decoded, source, where)
        except InputError as error:
            faults.append(Fault.of(error, source, _shown(value)))
            continue
        for row in parsed:
            clean, found = scan(row, data.redact)
            tally.private.update(found)
            tally.formats[row.format] += 1
            tally.kinds["text" if "text" in row.content else "chat"] += 1
            rows.append(clean)
    encoded = []
    for row, result in zip(rows, encoder.encode(rows), strict=True):
        if isinstance(result, InputError):
            faults.append(Fault.of(result, row.source, _line(row).decode()))
        else:
            tally.notes.update(result.notes)
            encoded.append((row, result))
    return _collected(encoded, chunk, tally, faults, encoder.identity)


def _collected(
    encoded: Sequence[tuple[Row, Encoded]],
    chunk: Chunk,
    tally: Tally,
    faults: list[Fault],
    identity: dict[str, Any],
) -> Made:
    pairs = [(row, example) for row, result in encoded for example in result.examples]
    named = [digests(example.row, row) for row, example in pairs]
    examples = [example for _, example in pairs]
    return Made(
        file=chunk.file,
        size_bytes=chunk.size_bytes,
        tokens=np.concatenate([np.empty(0, np.int32), *(e.tokens for e in examples)]),
        supervised=np.concatenate([np.empty(0, np.uint8), *(e.supervised for e in examples)]),
        lengths=np.array([len(e.tokens) for e in examples], np.int32),
        supervised_counts=np.array([int(e.supervised.sum()) for e in examples], np.int32),
        texts=[_line(e.row) for e in examples],
        digests=np.array(named, np.uint64).reshape(-1, 4),
        records=len(chunk.values),
        tally=tally,
        faults=faults,
        identity=identity,
    )


def _line(row: Row) -> bytes:
    text = json.dumps(row.content | {"source": row.source}, ensure_ascii=False)
    # The name of a file may be no UTF-8: JSON escapes what Python makes of it.
    return text.encode("utf-8", "backslashreplace")


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, InputError):
        return ""
    return json.dumps(value, ensure_ascii=True, default=str)
