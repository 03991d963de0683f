"""What a row says must be in the text that the template makes of it.

A chat template may leave out what it does not know: tools, calls of them, what they returned,
thoughts. A model would then be trained to answer without having been told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from stages.data.encoding.turns import Turns
from stages.errors import InputError


def check_answer(turns: Turns, number: int, text: str, start: int) -> None:
    """Refuse an answer whose words, thoughts or calls are not in its `text` after `start`.

    The prompt may hold the beginning of the words, such as `<think>`. Raises InputError.
    """
    turn = turns.turn(number)
    words = turn["content"].strip()
    at = text.rfind(words)
    if at < 0 or at + len(words) <= start:
        squashed, after = _squash(words), len(_squash(text[:start]))
        at = _squash(text).rfind(squashed)
        if words and (at < 0 or at + len(squashed) <= after):
            raise _lost(turns, f"the words of messages[{number}]")
    if len(turn) > 2:
        answer = text[start:]
        if not _holds(answer, turn.get("reasoning_content") or ""):
            raise _lost(turns, f'"reasoning_content" of messages[{number}]')
        _check_calls_of(turns, number, answer)


def check_tools(turns: Turns, end: int, text: str, *, prompt: bool = False) -> None:
    """Refuse tools that are not in `text`: of the turns before number `end`, or their prompt."""
    if turns.tools:
        names = [tool["function"]["name"] for tool in turns.tools]
        unnamed = [name for name in names if not _holds(text, name)]
        if unnamed or turns.without_tools(end, prompt=prompt) == text:
            raise _lost(turns, f"the tool '{(unnamed or names)[0]}'")


def check_calls(turns: Turns, before: int | None, after: int, checked: bool) -> None:
    """Refuse what a prompt leaves out of the turns between two answers: tool results, and, unless
    `checked`, the calls of the first of them, which `before` is the number of."""
    first = 0 if before is None else before
    between = [(n, turns.turn(n)) for n in range(max(first, turns.fewer), after)]
    if all(len(turn) == 2 and turn["role"] != "tool" for _, turn in between):
        return
    prompt, start = turns.prompt(after), "" if before is None else turns.prompt(before)
    text = prompt[len(start) :] if prompt.startswith(start) else prompt
    for number, turn in between:
        if turn["role"] == "tool" and not _holds(text, turn["content"]):
            raise _lost(turns, f"the tool's result in messages[{number}]")
        if number == before and not checked:
            _check_calls_of(turns, number, text)


def _check_calls_of(turns: Turns, number: int, text: str) -> None:
    for call in turns.turn(number).get("tool_calls", ()):
        function = call["function"]
        for value in [function["name"], *_values(function["arguments"])]:
            if not _holds(text, value):
                raise _lost(turns, f"the tool call in messages[{number}]")


def _values(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _values(inner)


def _holds(text: str, words: str) -> bool:
    """Tell whether words are in a text as they are, as JSON or Python writes them, or respaced."""
    words = words.strip()
    if words in text:
        return True
    forms = [words, json.dumps(words, ensure_ascii=False)[1:-1], repr(words)[1:-1]]
    # Escaped, a hidden special token could not be brought back.
    if max(words) < "\U000f0000":
        forms.append(json.dumps(words)[1:-1])
    squashed = _squash(text)
    return any(form in text or _squash(form) in squashed for form in forms)


def _squash(text: str) -> str:
    return "".join(text.split())


def _lost(turns: Turns, what: str) -> InputError:
    found = f"{what} would be lost: {turns.template.name} leaves it out"
    return InputError(turns.where, found, "use another model, set data.chat_template, or remove it")
