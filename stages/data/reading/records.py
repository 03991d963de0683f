"""What travels from the readers to the encoder: chunks of records, and what was wrong with them."""

from __future__ import annotations

from dataclasses import dataclass

from stages.errors import InputError
from stages.inputs import DataFile


@dataclass(frozen=True, slots=True)
class Chunk:
    """Neighbouring records of one file."""

    file: DataFile
    numbers: tuple[int, ...]
    """Line (of a table without lines: row) on which each record starts, from 1."""
    values: tuple[object, ...]
    """The records: `bytes` is a line of JSON still to be decoded, an InputError a record that could
    not be read, anything else a decoded value."""
    repairs: int = 0
    """Bytes that were no UTF-8 and were read as Windows-1252, in values decoded already."""
    size_bytes: int = 0
    """Size of the records as written in the file."""

    def source(self, index: int) -> str:
        """Name a record the same wherever the folder lies: `train.jsonl:12`."""
        return f"{self.file.name}:{self.numbers[index]}"

    def where(self, index: int) -> str:
        """Name a record for messages: the path as the person wrote it, and the line."""
        return f"{self.file.path}:{self.numbers[index]}"


@dataclass(frozen=True, slots=True)
class Fault:
    """A record that cannot be used."""

    where: str
    """`file:line` or `file:line:column`."""
    found: str
    mend: str
    source: str
    """The record's name, the same wherever the folder lies."""
    record: str
    """What was read, for the quarantine file; empty where it could not be."""

    @classmethod
    def of(cls, error: InputError, source: str, record: str) -> Fault:
        """Keep what an error says about a record."""
        return cls(error.where, error.found, error.mend, source, record)
