"""Which held-out rows are scored, and what of a conversation is asked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.data.formats import Message
from stages.errors import InputError
from stages.lora.keys import fold

SPLITS = ("valid", "test")


@dataclass(frozen=True, slots=True)
class Question:
    """The last answer of one held-out conversation, and what comes before it."""

    split: str
    row: int
    """Index in the split, from 0."""
    source: str
    """File and line the row was read from."""
    prompt: tuple[Message, ...]
    reference: str


def is_chat(directory: Path) -> bool:
    """Tell whether the prepared rows are conversations; raises InputError where nothing says."""
    path = directory / "prepared.json"
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["data_format"] == "chat")
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"cannot be read ({type(error).__name__})"
        raise InputError(str(path), found, "prepare the data again") from error


def choose(count: int, limit: int | None, seed: int, split: str) -> list[int]:
    """Return the rows of a split that are scored: all, or `limit` drawn by the seed, in order."""
    if limit is None or count <= limit:
        return list(range(count))
    drawn = sorted(range(count), key=lambda row: fold(seed, "evaluate", split, row))
    return sorted(drawn[:limit])


def read_questions(directory: Path, split: str, rows: list[int]) -> list[Question]:
    """Return the questions of the given rows of a prepared split."""
    # Not splitlines: texts may hold other characters that it takes for the end of a line.
    lines = (directory / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")
    return [_question(split, row, json.loads(lines[row])) for row in rows]


def _question(split: str, row: int, content: dict[str, Any]) -> Question:
    messages = content["messages"]
    last = max(n for n, message in enumerate(messages) if message["role"] == "assistant")
    return Question(split, row, content["source"], tuple(messages[:last]),
                    messages[last]["content"])  # fmt: skip
