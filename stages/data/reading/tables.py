"""Tables: CSV, TSV and Parquet files, a record for each row, keyed by the names of the columns."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from stages.data.reading.batches import CHUNK_BYTES, CHUNK_RECORDS, RECORD_BYTES, Record, batched
from stages.data.reading.encodings import BLOCK_BYTES, Encoding, Text
from stages.data.reading.records import Chunk
from stages.errors import InputError
from stages.inputs import DataFile, kind

CELL_CHARACTERS = 10 * 2**20
"""A longer cell of CSV is refused: most likely a quote that was never closed."""

_HEADER_LINES = 100  # as far as its end is looked for, to see the delimiter
_QUOTED = re.compile(r'"[^"]*"')
_MEND_CELLS = "fix the row; a cell that holds the delimiter, a quote or a line end is quoted"


def read_delimited(file: DataFile, encoding: Encoding, size: int = BLOCK_BYTES) -> Iterator[Chunk]:
    """Yield the rows of a CSV or TSV file with the line each begins on; all cells are text.

    The first row names the columns. Cells of .csv are parted by commas, or by semicolons where the
    first line has more of them. A row that is broken or has other cells than columns becomes an
    InputError; raises one for an unusable header.
    """
    text = Text(file.path, encoding, size)
    return batched(file, _rows(file, _lines(text, file.path)), text.take_repairs)


def _lines(text: Iterable[str], path: str) -> Iterator[str]:
    """Yield the lines with their ends; only a newline ends one."""
    number, held = 1, 0
    parts: list[str] = []
    for block in text:
        first, *others = block.split("\n")
        parts.append(first)
        held += len(first)
        if held > RECORD_BYTES:
            found = f"a line of more than {RECORD_BYTES >> 20} MiB, expected rows on lines"
            raise InputError(f"{path}:{number}", found, "write each row on a line of its own")
        if others:
            yield "".join([*parts, "\n"])
            for line in others[:-1]:
                yield line + "\n"
            number += len(others)
            parts, held = [others[-1]], len(others[-1])
    if held:
        yield "".join(parts)


def _rows(file: DataFile, lines: Iterator[str]) -> Iterator[Record]:
    start: list[str] = []
    for line in islice(lines, _HEADER_LINES):
        start.append(line)
        if line.strip() and "".join(start).count('"') % 2 == 0:
            break
    delimiter = _delimiter(file, "".join(start))
    reader = csv.reader(chain(start, lines), delimiter=delimiter, strict=True)
    names: list[str] = []
    while True:
        number = reader.line_num + 1
        where = f"{file.path}:{number}"
        try:
            cells = _next(reader)
        except csv.Error as error:
            fault = InputError(where, f"the table is broken here ({error})", _MEND_CELLS)
            if not names:
                raise fault from error
            yield number, fault, 0
            continue
        if cells is None:
            return
        if len(cells) <= 1 and not "".join(cells).strip():
            continue
        if not names:
            names = _header(cells, where)
        elif len(cells) != len(names):
            found = f"found {len(cells)} cells, expected {len(names)} as in the header"
            yield number, InputError(where, found, _MEND_CELLS), 0
        else:
            yield number, dict(zip(names, cells, strict=True)), sum(map(len, cells))


def _delimiter(file: DataFile, start: str) -> str:
    if kind(file.path) == ".tsv":
        return "\t"
    plain = _QUOTED.sub("", start)
    return ";" if plain.count(";") > plain.count(",") else ","


def _next(reader: Iterator[list[str]]) -> list[str] | None:
    # The limit belongs to the whole process: others keep theirs.
    before = csv.field_size_limit(CELL_CHARACTERS)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(before)


def _header(given: list[str], where: str) -> list[str]:
    names = [name.strip() for name in given]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        found = f"found two columns named {twice[0]!r}, expected different names"
        raise InputError(where, found, "rename one of them")
    return names


def read_parquet(file: DataFile) -> Iterator[Chunk]:
    """Yield the rows of a Parquet file, numbered from 1; raises InputError where it is damaged."""
    return batched(file, _parquet_rows(file.path))


def _parquet_rows(path: str) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 1
    try:
        with Path(path).expanduser().open("rb") as stream:
            table = pq.ParquetFile(stream, buffer_size=BLOCK_BYTES)
            _header(table.schema_arrow.names, path)
            groups = (table.metadata.row_group(n) for n in range(table.num_row_groups))
            row_bytes = sum(group.total_byte_size for group in groups) // max(
                1, table.metadata.num_rows
            )
            count = min(CHUNK_RECORDS, max(1, CHUNK_BYTES // max(1, row_bytes)))
            for batch in table.iter_batches(batch_size=count, use_threads=False):
                for value in _values(batch, path, number):
                    yield number, value, batch.nbytes // batch.num_rows
                    number += 1
    except (pa.ArrowException, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise InputError(
            path, f"cannot be read ({reason})", "make it a whole Parquet file"
        ) from error


def _values(batch: Any, path: str, number: int) -> list[object]:
    try:
        rows: list[object] = batch.to_pylist()
    except UnicodeDecodeError:
        if batch.num_rows > 1:
            single = ((n, batch.slice(n, 1)) for n in range(batch.num_rows))
            return [_values(row, path, number + n)[0] for n, row in single]
        found = "found a text that is not UTF-8"
        return [InputError(f"{path}:{number}", found, "write the table with text in UTF-8")]
    return rows
