"""Reading the files that `data.path` names: records in chunks, whatever their form."""

from __future__ import annotations

from collections.abc import Iterator

from stages.data import samples
from stages.data.reading.arrays import read_array
from stages.data.reading.batches import batched
from stages.data.reading.documents import read_document
from stages.data.reading.encodings import Encoding
from stages.data.reading.lines import decode_line, read_lines
from stages.data.reading.records import Chunk
from stages.data.reading.tables import read_delimited, read_parquet
from stages.errors import InputError
from stages.inputs import SPLITS, DataFile, kind

__all__ = ["read", "decode_line"]

_EXPECTED = {
    ".jsonl": "one JSON object on each line",
    ".ndjson": "one JSON object on each line",
    ".json": "a list of objects",
    ".csv": "a header and rows",
    ".tsv": "a header and rows",
    ".parquet": "rows",
}


def read(file: DataFile, encoding: Encoding) -> Iterator[Chunk]:
    """Yield the records of a file in chunks, reading as they are taken, in bounded memory.

    A record that cannot be read stands in its chunk as an `InputError`, and the rest follow. What
    ends the reading is raised, after the records before it: a file that cannot be opened, holds no
    records, is damaged, or is no JSON from some place on.
    """
    if file.path in {f"samples/{split}" for split in SPLITS}:
        rows = samples.rows(file.split)
        yield from batched(file, ((number, row, 0) for number, row in enumerate(rows, start=1)))
        return
    empty = True
    for chunk in _chunks(file, encoding):
        empty = False
        yield chunk
    if empty:
        found = f"found no rows, expected {_EXPECTED[kind(file.path)]}"
        raise InputError(file.path, found, "write some, or remove the file")


def _chunks(file: DataFile, encoding: Encoding) -> Iterator[Chunk]:
    match kind(file.path):
        case ".jsonl" | ".ndjson":
            return read_lines(file)
        case ".json":
            return read_array(file, encoding)
        case ".csv" | ".tsv":
            return read_delimited(file, encoding)
        case ".parquet":
            return read_parquet(file)
        case _:
            return read_document(file, encoding)
