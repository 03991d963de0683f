"""Plain text and Markdown: one document a file, a long one cut where a paragraph ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from stages.data.reading.batches import Record, batched
from stages.data.reading.encodings import BLOCK_BYTES, Encoding, Text
from stages.data.reading.records import Chunk
from stages.errors import InputError
from stages.inputs import DataFile

DOCUMENT_CHARACTERS = 1 << 16
"""A longer file becomes several documents, so that memory holds only one of them."""


def read_document(file: DataFile, encoding: Encoding, size: int = BLOCK_BYTES) -> Iterator[Chunk]:
    """Yield `{"text": …}` with the line it begins on; CRLF becomes a newline.

    A file is cut at the last blank line, else line end, of the second half of a million characters;
    its documents joined are its text. A file without text is an InputError.
    """
    text = Text(file.path, encoding, size)
    return batched(file, _documents(file, _newlines(text)), text.take_repairs)


def _documents(file: DataFile, blocks: Iterable[str]) -> Iterator[Record]:
    number, rest, found = 1, "", False
    for block in chain(blocks, ("",)):
        rest += block
        # At the end what is left is a document, however short.
        while len(rest) > DOCUMENT_CHARACTERS or (rest and not block):
            end = _end(rest)
            document, rest = rest[:end], rest[end:]
            if not document.isspace():
                found = True
                yield number, {"text": document}, end
            number += document.count("\n")
    if not found:
        fault = InputError(file.path, "found no text", "write some, or remove the file")
        yield 1, fault, 0


def _end(text: str) -> int:
    if len(text) <= DOCUMENT_CHARACTERS:
        return len(text)
    half = DOCUMENT_CHARACTERS // 2
    for mark in ("\n\n", "\n"):
        at = text.rfind(mark, half, DOCUMENT_CHARACTERS)
        if at >= 0:
            return at + len(mark)
    return DOCUMENT_CHARACTERS


def _newlines(blocks: Iterable[str]) -> Iterator[str]:
    """Replace CRLF by a newline, also where a block ends between the two."""
    held = ""
    for block in blocks:
        text = held + block
        held = "\r" if text.endswith("\r") else ""
        text = text.removesuffix("\r").replace("\r\n", "\n")
        if text:
            yield text
    if held:
        yield held
