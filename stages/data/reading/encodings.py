"""Bytes and text of one file, block by block: compression, byte order marks, encodings."""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

from stages.errors import InputError

Encoding = Literal["utf-8", "auto"]

BLOCK_BYTES = 2**19
"""How much of a file is read at once."""

_MEND_ENCODING = "save the file as UTF-8, or set data.encoding=auto to read it as Windows-1252"
_PACKED = {
    b"\x1f\x8b": ("gzip data", "call the file .gz"),
    b"PK\x03\x04": ("a ZIP archive", "unpack it, or save a spreadsheet as CSV"),
}
# Python's `surrogateescape` gives the byte 0xE9 as U+DCE9, which no UTF-8 can spell.
_ESCAPED = re.compile("[\udc80-\udcff]")


def blocks(path: str, size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Yield the bytes of a file, unpacked where it ends in .gz, without its byte order mark.

    `size` is 5 or more. Raises InputError for UTF-16 and archives, and where the file cannot be
    read or unpacked, after all that comes before.
    """
    failure: InputError | None = None
    parts: list[bytes] = []
    try:
        place = Path(path).expanduser()
        packed = path.lower().endswith(".gz")
        with gzip.open(place, "rb") if packed else place.open("rb") as stream:
            parts.append(_without_mark(stream.read(4), path))
            held = len(parts[0])
            # read1 gives what could still be unpacked where the end is damaged.
            while part := stream.read1(size - held):
                parts.append(part)
                held += len(part)
                if held >= size:
                    yield b"".join(parts)
                    parts, held = [], 0
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        what = "ends too early" if isinstance(error, EOFError) else f"is damaged ({error})"
        failure = InputError(path, f"the gzip file {what}", "fetch or compress it again")
        failure.__cause__ = error
    except OSError as error:
        failure = InputError(path, f"cannot be read ({error.strerror})", "make it a readable file")
        failure.__cause__ = error
    if any(parts):
        yield b"".join(parts)
    if failure is not None:
        raise failure


def _without_mark(start: bytes, path: str) -> bytes:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        found = "found UTF-16 (it starts with that byte order mark), expected UTF-8"
        raise InputError(path, found, "save the file as UTF-8")
    for magic, (name, mend) in _PACKED.items():
        if start.startswith(magic):
            raise InputError(path, f"found {name}, expected text", mend)
    return start.removeprefix(codecs.BOM_UTF8)


def decode(data: bytes, where: str, encoding: Encoding) -> tuple[str, int]:
    """Return the text of one line at `where`, and how many of its bytes were no UTF-8.

    Raises InputError at `where:column`, the column counted in bytes.
    """
    try:
        return data.decode(), 0
    except UnicodeDecodeError as error:
        if encoding == "utf-8":
            fault = _not_utf8(data[error.start])
            raise InputError(f"{where}:{error.start + 1}", *fault) from error
    return repair(data.decode("utf-8", "surrogateescape"))


def repair(text: str) -> tuple[str, int]:
    """Replace each escaped byte by its character in Windows-1252, else in Latin-1; count them."""
    return (text, 0) if text.isascii() else _ESCAPED.subn(_windows_1252, text)


def _windows_1252(match: re.Match[str]) -> str:
    byte = match[0].encode("utf-8", "surrogateescape")
    try:
        return byte.decode("windows-1252")
    except UnicodeDecodeError:
        return byte.decode("latin-1")


def _not_utf8(byte: int) -> tuple[str, str]:
    return f"byte 0x{byte:02X} is not UTF-8", _MEND_ENCODING


class Text:
    """The text of one file, block by block, empty blocks left out.

    Raises InputError at `file:line:column`, the column counted in bytes, after the text before it.
    """

    def __init__(self, path: str, encoding: Encoding, size: int = BLOCK_BYTES) -> None:
        self._path = path
        self._encoding = encoding
        self._size = size
        self._repairs = 0

    def take_repairs(self) -> int:
        """Return how many bytes were no UTF-8 since this was last asked."""
        taken, self._repairs = self._repairs, 0
        return taken

    def __iter__(self) -> Iterator[str]:
        line, column, rest = 1, 1, b""
        for block in chain(blocks(self._path, self._size), (b"",)):
            data = rest + block
            text, used, fault = self._decode(data, final=not block)
            if text:
                yield text
            last = data.rfind(b"\n", 0, used)
            line += data.count(b"\n", 0, used)
            column = used - last if last >= 0 else column + used
            if fault is not None:
                raise InputError(f"{self._path}:{line}:{column}", *fault)
            rest = data[used:]

    def _decode(self, data: bytes, *, final: bool) -> tuple[str, int, tuple[str, str] | None]:
        """Return the text, the bytes used for it, and what is wrong with the byte after them."""
        fault = None
        if (nul := data.find(b"\0")) >= 0:
            fault = ("found a NUL character, expected text", "remove it, or save the file as UTF-8")
            data, final = data[:nul], True
        errors = "strict" if self._encoding == "utf-8" else "surrogateescape"
        try:
            text, used = codecs.utf_8_decode(data, errors, final)
        except UnicodeDecodeError as error:
            fault = _not_utf8(data[error.start])
            text, used = data[: error.start].decode(), error.start
        text, repairs = repair(text)
        self._repairs += repairs
        return text, used, fault
