"""Records gathered into chunks, so that memory stays bounded whatever a file holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from stages.data.reading.records import Chunk
from stages.errors import InputError
from stages.inputs import DataFile

CHUNK_RECORDS = 1000
CHUNK_BYTES = 2**20
"""A chunk holds no more, as written in the file, unless one record alone is longer."""
RECORD_BYTES = 64 * 2**20
"""A longer record is refused: more likely a file without line ends than a row to train on."""

Record = tuple[int, object, int]
"""Its line, its value (an `InputError` where it could not be read), its size as written."""


def batched(
    file: DataFile, records: Iterable[Record], take_repairs: Callable[[], int] = int
) -> Iterator[Chunk]:
    """Yield the records in chunks; those read before an InputError are yielded before it."""
    numbers: list[int] = []
    values: list[object] = []
    size = 0
    failure: InputError | None = None
    try:
        for number, value, length in records:
            if values and (len(values) == CHUNK_RECORDS or size + length > CHUNK_BYTES):
                yield Chunk(file, tuple(numbers), tuple(values), take_repairs(), size)
                numbers, values, size = [], [], 0
            numbers.append(number)
            values.append(value)
            size += length
    except InputError as error:
        failure = error
    if values:
        yield Chunk(file, tuple(numbers), tuple(values), take_repairs(), size)
    if failure is not None:
        raise failure
