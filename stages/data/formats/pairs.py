"""The formats in which a row is a request and its answer, as turns."""

from __future__ import annotations

from typing import Any

from stages.data.formats.messages import Message, read_turns
from stages.data.formats.values import check_text, kind
from stages.errors import InputError

_MEND = "name the columns by data.columns, or use data.convert"


def read_answer(
    record: dict[str, Any], where: str, user: str = "question", assistant: str = "answer"
) -> list[Message]:
    """Return the turns of a question and its answer, two keys of the record."""
    return [
        {"role": "user", "content": _text(record, user, where)},
        {"role": "assistant", "content": _text(record, assistant, where)},
    ]


def read_completion(record: dict[str, Any], where: str) -> list[Message]:
    """Return the turns of a prompt and its completion, both texts or both lists of turns.

    Answers in the prompt are not trained, as in TRL (`docs/source/dataset_formats.md`).
    """
    answered = record.get("completion") is not None or "response" not in record
    key = "completion" if answered else "response"
    given = [record["prompt"], record[key]]
    if not all(isinstance(value, list) for value in given):
        if any(isinstance(value, list) for value in given):
            found = f'found {kind(given[0])} as "prompt" and {kind(given[1])} as "{key}"'
            raise InputError(where, f"{found}, expected two texts or two lists of turns")
        return read_answer(record, where, "prompt", key)
    prompt = read_turns(given[0], where, "prompt")
    for turn in prompt:
        if turn["role"] == "assistant":
            turn["train"] = False
    return prompt + read_turns(given[1], where, key)


def read_alpaca(record: dict[str, Any], where: str) -> list[Message]:
    """Return the turns of `history`, then instruction and input as a request, and the output."""
    turns: list[Message] = []
    history = record.get("history")
    if not isinstance(history, list | None):
        raise InputError(where, f'found {kind(history)} as "history", expected a list')
    for number, pair in enumerate(history or []):
        if not isinstance(pair, list) or len(pair) != 2:
            found = f"a list of {len(pair)}" if isinstance(pair, list) else kind(pair)
            expected = "expected [request, answer]"
            raise InputError(where, f"found {found} as history[{number}], {expected}")
        for role, value in zip(("user", "assistant"), pair, strict=True):
            text = check_text(value, f"text in history[{number}]", where)
            turns.append({"role": role, "content": text})
    request = _text(record, "instruction", where)
    given = record.get("input")
    if given is not None and check_text(given, '"input"', where).strip():
        request = f"{request}\n\n{given}"
    answer = _text(record, "output", where)
    turns += [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
    return turns


def _text(record: dict[str, Any], key: str, where: str) -> str:
    return check_text(record[key], f'"{key}"', where, _MEND)
