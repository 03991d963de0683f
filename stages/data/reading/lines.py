"""JSON Lines: the lines of a file, and what one of them says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stages.data.reading.batches import CHUNK_BYTES, CHUNK_RECORDS, RECORD_BYTES, batched
from stages.data.reading.encodings import BLOCK_BYTES, Encoding, blocks, decode
from stages.data.reading.records import Chunk
from stages.data.reading.strict_json import decode_value
from stages.errors import InputError
from stages.inputs import DataFile


def decode_line(line: bytes, where: str, encoding: Encoding) -> tuple[object, int]:
    """Return what a line of JSON says, and how many of its bytes were no UTF-8.

    Raises InputError at `where:column`: in characters, or in bytes for one that is not UTF-8.
    """
    text, repairs = decode(line, where, encoding)
    return decode_value(text, where), repairs


def read_lines(file: DataFile, size: int = BLOCK_BYTES) -> Iterator[Chunk]:
    """Yield the lines that are not blank, as bytes; a line of more than 64 MiB is an InputError.

    Only a newline ends one, as JSON text may hold U+2028.
    """
    number, held = 1, 0
    parts: list[bytes] = []
    for block in blocks(file.path, size):
        first = block.find(b"\n")
        if first < 0:
            parts.append(block)
            held += len(block)
            if held > RECORD_BYTES:
                parts.clear()
            continue
        if held + first > RECORD_BYTES:
            yield _too_long(file, number)
            number += 1
            parts, block = [], block[first + 1 :]
        last = block.rfind(b"\n")
        if last >= 0:
            whole = b"".join([*parts, block[:last]])
            lines = whole.split(b"\n")
            yield from _chunks(file, number, lines, len(whole))
            number += len(lines)
            parts, block = [], block[last + 1 :]
        parts = [block]
        held = len(block)
    if held > RECORD_BYTES:
        yield _too_long(file, number)
    elif held:
        yield from _chunks(file, number, [b"".join(parts)], held)


def _chunks(file: DataFile, number: int, lines: list[bytes], size: int) -> Iterator[Chunk]:
    numbers: Sequence[int] = range(number, number + len(lines))
    if not all(map(bytes.strip, lines)):
        kept = [n for n, line in enumerate(lines) if line.strip()]
        numbers, lines = [number + n for n in kept], [lines[n] for n in kept]
    if size > CHUNK_BYTES:
        yield from batched(file, zip(numbers, lines, map(len, lines), strict=True))
        return
    for start in range(0, len(lines), CHUNK_RECORDS):
        part = slice(start, start + CHUNK_RECORDS)
        size_bytes = sum(map(len, lines[part])) + len(lines[part])
        yield Chunk(file, tuple(numbers[part]), tuple(lines[part]), size_bytes=size_bytes)


def _too_long(file: DataFile, number: int) -> Chunk:
    found = f"a line of more than {RECORD_BYTES >> 20} MiB, expected one JSON object on each line"
    mend = "write each row on a line of its own"
    return Chunk(file, (number,), (InputError(f"{file.path}:{number}", found, mend),))
