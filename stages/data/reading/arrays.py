"""JSON files: a list of records, an object that holds one, or objects one after another."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterable, Iterator
from typing import NoReturn

from stages.data.reading.batches import CHUNK_BYTES, RECORD_BYTES, Record, batched
from stages.data.reading.encodings import BLOCK_BYTES, Encoding, Text
from stages.data.reading.records import Chunk
from stages.data.reading.strict_json import DECODER, explain
from stages.errors import InputError
from stages.inputs import DataFile

_TURNS = ("messages", "conversations", "conversation", "tools", "functions")
"""Lists of objects that are part of a record; any other is taken for a list of records."""
_BLANK = re.compile(r"[ \t\n\r]*")
# As far from the end of what was read, an error or a number is one whatever follows.
_CERTAIN_CHARACTERS = 32


def read_array(file: DataFile, encoding: Encoding, size: int = BLOCK_BYTES) -> Iterator[Chunk]:
    """Yield the records of a JSON file, with the line on which each begins.

    The file is a list of records, an object with one list of objects in it (`{"data": […]}`), one
    record, or records one after another. It is decoded as it is read: memory holds a few blocks or
    the longest record. Raises InputError at `file:line:column`, after the records before it.
    """
    text = Text(file.path, encoding, size)
    return batched(file, _records(_Window(text, file.path)), text.take_repairs)


class _Window:
    """The part of a JSON text around the place reached in it; offsets count from that place."""

    def __init__(self, blocks: Iterable[str], path: str) -> None:
        self._blocks = iter(blocks)
        self._path = path
        self._text = ""
        self._at = 0
        self._column = 1
        self.line = 1

    def skip(self, offset: int) -> tuple[int, str]:
        """Return the offset and the character of what is not blank; no character at the end."""
        while True:
            end = _BLANK.match(self._text, self._at + offset).end()  # type: ignore[union-attr]
            offset = end - self._at
            if end < len(self._text):
                return offset, self._text[end]
            if not self._more():
                return offset, ""

    def value(self, offset: int) -> tuple[object, int]:
        """Decode the value at an offset; return it and the offset behind it."""
        while True:
            start = self._at + offset
            try:
                value, end = DECODER.raw_decode(self._text, start)
            except (ValueError, RecursionError) as error:
                if _is_certain(error, self._text) or not self._more():
                    at, found = explain(self._text, self._at + offset, error)
                    self.refuse(at - self._at, found)
            else:
                # More of a number may follow: `0.` is read as 0 so far.
                certain = end <= len(self._text) - _CERTAIN_CHARACTERS
                if certain or not isinstance(value, int | float) or not self._more():
                    return value, end - self._at

    def release(self, offset: int) -> None:
        """Move on to an offset."""
        end = self._at + offset
        self.line += self._text.count("\n", self._at, end)
        self._at = end

    def starts_with_line(self) -> bool:
        """Tell whether one line holds one whole value, and something follows it."""
        while self._text.find("\n", self._at) < 0 and len(self._text) < CHUNK_BYTES:
            if not self._more():
                return False
        try:
            end = DECODER.raw_decode(self._text, self._at)[1]
        except (ValueError, RecursionError):
            return False
        alone = end <= self._text.find("\n", self._at)
        return alone and self.skip(end - self._at)[1] != ""

    def refuse(self, offset: int, found: str) -> NoReturn:
        """Raise InputError at an offset, by line and column."""
        at = self._at + offset
        line = self.line + self._text.count("\n", self._at, at)
        mend = "make the file one list of objects; one object on each line is a .jsonl file"
        raise InputError(f"{self._path}:{line}:{self._column_of(at)}", found, mend)

    def _column_of(self, at: int) -> int:
        last = self._text.rfind("\n", 0, at)
        return at - last if last >= 0 else self._column + at

    def _more(self) -> bool:
        """Read on, at least as much as is held, so that a long record is decoded few times."""
        held = len(self._text) - self._at
        if held > RECORD_BYTES:
            found = f"a record of more than {RECORD_BYTES >> 20} MiB, expected a list of records"
            raise InputError(f"{self._path}:{self.line}", found, "write it as several records")
        parts: list[str] = []
        gained = 0
        for block in self._blocks:
            parts.append(block)
            gained += len(block)
            if gained >= held:
                break
        if not parts:
            return False
        self._column = self._column_of(self._at)
        self._text = "".join([self._text[self._at :], *parts])
        self._at = 0
        return True


def _is_certain(error: Exception, text: str) -> bool:
    """Tell whether a value is broken whatever follows the text that was read so far."""
    if not isinstance(error, json.JSONDecodeError):
        return True
    unfinished = error.msg.startswith("Unterminated string")
    return not unfinished and error.pos < len(text) - _CERTAIN_CHARACTERS


def _records(window: _Window) -> Iterator[Record]:
    char = _next(window)
    listed = char == "["
    if listed:
        yield from _elements(window)
    elif char == "{" and not window.starts_with_line():
        listed = yield from _object(window)
    while char := _next(window):
        if listed:
            window.refuse(0, "invalid JSON (more text after its end)")
        line = window.line
        value, length = window.value(0)
        window.release(length)
        yield line, value, length


def _next(window: _Window) -> str:
    offset, char = window.skip(0)
    window.release(offset)
    return char


def _elements(window: _Window) -> Iterator[Record]:
    window.release(1)
    if _next(window) == "]":
        window.release(1)
        return
    while True:
        line = window.line
        value, length = window.value(0)
        window.release(length)
        yield line, value, length
        char = _next(window)
        if char not in (",", "]"):
            expected = "Expecting ',' or ']'" if char else "the file ends inside its list"
            window.refuse(0, f"invalid JSON ({expected})")
        window.release(1)
        if char == "]":
            return
        _next(window)


def _object(window: _Window) -> Generator[Record, None, bool]:
    """Yield the records of the one list of objects in it, else itself; tell whether it had one."""
    listed: str | None = None
    line = window.line
    offset, char = window.skip(1)
    while char != "}":
        if char != '"':
            window.refuse(offset, "invalid JSON (Expecting a name in double quotes)")
        key, offset = window.value(offset)
        offset, char = window.skip(offset)
        if char != ":":
            window.refuse(offset, "invalid JSON (Expecting ':')")
        offset, char = window.skip(offset + 1)
        if char == "[" and key not in _TURNS and window.skip(offset + 1)[1] == "{":
            if listed is not None:
                found = f"found two lists of objects, {listed!r} and {key!r}, expected one"
                window.refuse(offset, found)
            listed = str(key)
            window.release(offset)
            yield from _elements(window)
            offset = 0
        else:
            _, offset = window.value(offset)
        if listed is not None:
            window.release(offset)
            offset = 0
        offset, char = window.skip(offset)
        if char == ",":
            offset, char = window.skip(offset + 1)
            if char == "}":
                window.refuse(offset, "invalid JSON (Expecting a name in double quotes)")
        elif char != "}":
            window.refuse(offset, "invalid JSON (Expecting ',' or '}')")
    if listed is None:
        value, offset = window.value(0)
        window.release(offset)
        yield line, value, offset
        return False
    window.release(offset + 1)
    return True
