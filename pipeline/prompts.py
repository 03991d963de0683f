"""Files of prompts: what `python -m pipeline.generate --prompts FILE` reads and leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.errors import Refused

Prompt = dict[str, Any]
"""`where`, and `messages` with their `tools`, or `text`: what the worker takes."""


def read_prompts(path: Path, *, chat: bool, system: str | None) -> tuple[list[Prompt], list[Any]]:
    """Return the prompts of a file, and each as it stood there.

    A `.jsonl` file has an object on each line with `prompt` or `messages`, and `tools` where some
    are offered; any other file a prompt on each line; empty lines count for nothing. Raises
    `Refused` at the first line that is none.
    """
    rows = [
        (_row(line, f"{path}:{number}") if path.suffix == ".jsonl" else {"prompt": line}, number)
        for number, line in enumerate(_lines(path), 1)
        if line.strip()
    ]
    if not rows:
        raise Refused(str(path), "no prompts in it", "write one on each line")
    prompts = [as_prompt(row, f"{path}:{number}", chat, system) for row, number in rows]
    return prompts, [row for row, _ in rows]


def as_prompt(row: dict[str, Any], where: str, chat: bool, system: str | None) -> Prompt:
    """Return a prompt in the form that the model was trained on."""
    if not chat and system is not None:
        raise Refused(
            "--system", "this run was trained on text, which has no turns", "leave it out"
        )
    messages, text = row.get("messages"), row.get("prompt")
    if not (isinstance(text, str) if messages is None else isinstance(messages, list)):
        raise Refused(where, 'expected either "prompt", a text, or "messages", a list')
    if not chat:
        if text is None:
            found = 'found "messages", but this run was trained on text, which has no turns'
            raise Refused(where, found, 'give "prompt" instead')
        return {"where": where, "text": text}
    if messages is None:
        messages = [{"role": "user", "content": text}]
    elif messages and isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant":
        found = "ends in an assistant turn, and there is nothing left to answer"
        raise Refused(where, found, "leave its last turn out")
    first = [{"role": "system", "content": system}] if system is not None else []
    return {"where": where, "messages": [*first, *messages], "tools": row.get("tools")}


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        found = f"cannot be read: {error.strerror or error}".lower()
        raise Refused(str(path), found, "name a file of prompts") from None
    except UnicodeDecodeError as error:
        raise Refused(str(path), f"not UTF-8, at byte {error.start}", "save it as UTF-8") from None
    # Not splitlines: texts may hold other characters that it takes for the end of a line.
    return [line.removesuffix("\r") for line in text.split("\n")]


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise Refused(where, f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise Refused(where, 'expected an object with "prompt" or "messages"')
    return row
