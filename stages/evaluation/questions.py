"""Which held-out rows are scored, and what of a conversation is asked."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stages.data.formats.parser import Message
from stages.errors import InputError
from stages.lora.keys import fold

SPLITS = ("valid", "test")

Kind = Literal["chat", "mixed", "text"]


@dataclass(frozen=True, slots=True)
class Question:
    """The last trained answer of one held-out conversation, and what comes before it."""

    split: str
    row: int
    """Index in the split, from 0."""
    source: str
    """File and line the row was read from."""
    prompt: tuple[Message, ...]
    reference: str
    tools: list[dict[str, Any]] | None = None
    """The functions that the row offers to call."""


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked of one split."""

    asked: list[Question]
    tool_calls: int
    """Conversations that are not asked, since their last trained answer calls a tool."""


def read_kind(directory: Path) -> Kind:
    """Return what the prepared rows are: conversations, text, or some of both.

    Raises InputError where nothing says.
    """
    path = directory / "doctor.json"
    kinds: dict[str, Kind] = {"chat": "chat", "mixed": "mixed", "text": "text"}
    try:
        return kinds[json.loads(path.read_text(encoding="utf-8"))["kind"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"cannot be read ({type(error).__name__})"
        raise InputError(str(path), found, "prepare the data again") from error


def choose(count: int, limit: int | None, seed: int, split: str) -> list[int]:
    """Return the rows of a split that are scored: all, or `limit` drawn by the seed, in order."""
    if limit is None or count <= limit:
        return list(range(count))
    drawn = sorted(range(count), key=lambda row: fold(seed, "evaluate", split, row))
    return sorted(drawn[:limit])


def read_questions(directory: Path, split: str, rows: Collection[int]) -> Questions:
    """Return the questions of the given rows of a prepared split.

    A prepared conversation ends with its last trained answer. Text is not asked, nor is an answer
    that calls a tool.
    """
    wanted, asked, tool_calls = set(rows), list[Question](), 0
    path = directory / f"{split}.jsonl"
    # Texts may hold other characters than this one that would be taken for the end of a line.
    with path.open(encoding="utf-8", newline="\n") as lines:
        for row, line in enumerate(lines):
            if row not in wanted:
                continue
            content = json.loads(line)
            if "text" in content:
                continue
            *before, answer = content["messages"]
            if "tool_calls" in answer:
                tool_calls += 1
            else:
                asked.append(Question(split, row, content["source"], tuple(before),
                                      answer["content"], content.get("tools")))  # fmt: skip
    return Questions(asked, tool_calls)
