"""Turns of one conversation on their way into a chat template.

What a row says never steers the model: text that spells a special token, such as `<|im_end|>` in a
user's turn or in what a tool returned, stays plain text, as `stages.data.encoding.quoting` tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from stages.data.encoding.quoting import QUOTE
from stages.data.encoding.template import Template
from stages.data.formats.messages import Message
from stages.errors import InputError

# A letter that JSON escapes would come back otherwise than it was hidden.
_ESCAPED = frozenset('"\\')


@dataclass(frozen=True, slots=True)
class Turns:
    """The turns as the template is given them, special tokens in their texts hidden."""

    template: Template
    messages: list[Message]
    tools: list[dict[str, Any]] | None
    fewer: int
    """How many turns of the row have become part of another: 1 where a system turn has."""
    letters: dict[int, str]
    """The letters of hidden special tokens, by what stands for them."""
    where: str
    prompts: dict[int, str] = field(default_factory=dict)

    def turn(self, index: int) -> Message:
        """Return the turn which is number `index` of the row."""
        return self.messages[index - self.fewer]

    def render(self, end: int) -> str:
        """Return the text of the turns before number `end` of the row."""
        given = self.messages[: end - self.fewer]
        return self.template.render(given, self.tools, self.where, add_generation_prompt=False)

    def prompt(self, end: int) -> str:
        """Return the text after which turn number `end` of the row is generated."""
        found = self.prompts.get(end)
        if found is None:
            given = self.messages[: end - self.fewer]
            found = self.template.render(given, self.tools, self.where, add_generation_prompt=True)
            self.prompts[end] = found
        return found

    def without_tools(self, end: int, *, prompt: bool) -> str:
        """Return what `prompt` or `render` would if there were no tools."""
        given = self.messages[: end - self.fewer]
        return self.template.render(given, None, self.where, add_generation_prompt=prompt)

    def quote(self, text: str, positions: Sequence[int]) -> tuple[str, list[int]]:
        """Return rendered text with quotes around the special tokens that the template wrote, and
        where the rising `positions` are in it; no special token reaches across one of them."""
        quote, parts, found, size = self.template.quoting.quote, [], [], 0
        for start, end in pairwise([0, *positions, len(text)]):
            part = quote(text[start:end])
            if self.letters:
                part = part.translate(self.letters)
            parts.append(part)
            size += len(part)
            found.append(size)
        return "".join(parts), found[:-1]


def open_turns(
    template: Template,
    messages: Sequence[Message],
    tools: list[dict[str, Any]] | None,
    where: str,
) -> Turns:
    """Return the turns as `template` takes them; raises InputError at `where`."""
    turns, fewer = list(messages), 0
    if template.merges_system and turns and turns[0]["role"] == "system":
        turns, fewer = _merged(turns)
    if all(len(turn) == 2 for turn in turns) and not tools:
        words = "\n".join([turn["content"] for turn in turns])
    else:
        turns = [turn if len(turn) == 2 else _named(turn) for turn in turns]
        words = "\n".join(_texts([turns, tools]))
    if QUOTE in words:
        raise InputError(where, "found the private character U+10FFFD", "remove it")
    letters: dict[int, str] = {}
    special = template.quoting.special
    if special.search(words):
        disguise = _disguise(words, special)
        turns = [_hidden(turn, special, disguise) | {"role": turn["role"]} for turn in turns]
        tools = _hidden(tools, special, disguise)
        letters = {hidden: chr(letter) for letter, hidden in disguise.items()}
    return Turns(template, turns, tools or None, fewer, letters, where)


def _merged(turns: list[Message]) -> tuple[list[Message], int]:
    """Return the turns with the text of the system turn before that of the first user turn."""
    (system, *rest), words = turns, turns[0]["content"]
    if not words.strip():
        return rest, 1
    if rest and rest[0]["role"] == "user":
        question = rest[0]
        return [{**question, "content": f"{words}\n\n{question['content']}"}, *rest[1:]], 1
    return [{**system, "role": "user"}, *rest], 0


def _named(turn: Message) -> Message:
    """Return a turn with the names that templates know."""
    named = {key: value for key, value in turn.items() if key != "train"}
    reasoning = named.get("reasoning_content")
    # As in transformers: gpt-oss reads it by this name.
    return named if reasoning is None else {"thinking": reasoning, **named}


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a value of JSON, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _disguise(words: str, special: re.Pattern[str]) -> dict[int, int]:
    """Return unused letters of a private plane for those of the special tokens in `words`.

    So hidden, a special token in the rendered text is known to be the template's own.
    """
    spelled, there = set("".join(special.findall(words))), set(words)
    free = (code for code in range(0xF0000, 0xFFFFE) if chr(code) not in there)
    letters = sorted(spelled - _ESCAPED or spelled)
    return {ord(letter): next(free) for letter in letters}


def _hidden(value: Any, special: re.Pattern[str], disguise: dict[int, int]) -> Any:
    if isinstance(value, str):
        return special.sub(lambda match: match[0].translate(disguise), value)
    if isinstance(value, dict):
        return {
            _hidden(key, special, disguise): _hidden(inner, special, disguise)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_hidden(inner, special, disguise) for inner in value]
    return value
