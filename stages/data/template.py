"""Conversations as the text that a model's chat template makes of them.

What a row says never steers the model: text that spells a special token, such as `<|im_end|>` in a
user's turn, is marked while the template renders, so that it is encoded as plain text.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from stages.data.formats import Message, Row
from stages.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

# Llama's templates fall back to this day; today's would make other rows tomorrow.
_DATE = datetime.date(2024, 7, 26)
_DATE_CALL = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")


@dataclass(frozen=True, slots=True)
class Template:
    """The chat template of one tokenizer."""

    name: str
    """How messages call it."""
    digest: str
    """SHA-256 of the template's text as it came."""
    source: str
    """The template's text, with a fixed date."""
    special: dict[int, str]
    """Id and text of every special token."""
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Rendered:
    """One conversation as text."""

    text: str
    marked: str
    """The same, with other characters where a turn spells a special token."""
    answers: tuple[tuple[int, int], ...]
    """For each assistant turn the positions where it starts, after the generation prompt, and
    before which it ends: where the words of the next turn start."""
    where: str


def read_template(tokenizer: PreTrainedTokenizerBase, directory: Path) -> Template:
    """Return the chat template of the tokenizer; raises InputError where it has none."""
    try:
        text: str = tokenizer.get_chat_template()
    except ValueError as error:
        mend = "choose an instruct model, or train on text with data=text"
        raise InputError(str(directory), "its tokenizer has no chat template", mend) from error
    added = tokenizer.added_tokens_decoder
    return Template(
        name=f"chat template of {directory}",
        digest=hashlib.sha256(text.encode()).hexdigest(),
        source=_DATE_CALL.sub(lambda call: repr(_DATE.strftime(call[2])), text),
        special={number: token.content for number, token in added.items() if token.special},
        tokenizer=tokenizer,
    )


def render(template: Template, row: Row) -> Rendered:
    """Render one conversation and find its answers.

    The date that a template asks for is 26 July 2024, always. Raises InputError where the template
    refuses the turns, or where it renders the prompt for an answer otherwise than the same turns in
    the whole row: the model would be asked with another text than it was trained on.
    """
    messages, original = _marked(row.messages, list(template.special.values()))
    marked = _apply(template, messages, row.where)
    answers = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = _apply(template, messages[:turn], row.where, add_generation_prompt=True)
        if not marked.startswith(prompt):
            found = f"its prompt for messages[{turn}] of {row.where} does not begin the whole row"
            raise InputError(template.name, found, "use another model, or remove the row")
        answers.append((len(prompt), _end(template, messages, turn, marked, row.where)))
    return Rendered(marked.translate(original), marked, tuple(answers), row.where)


def _end(
    template: Template, messages: Sequence[Message], turn: int, whole: str, where: str
) -> int:  # fmt: skip
    """Return where the words of the next turn start: other words there render differently."""
    if turn + 1 == len(messages):
        return len(whole)
    words = _unused("".join(message["content"] for message in messages), 1)
    other = {**messages[turn + 1], "content": words}
    probe = _apply(template, [*messages[: turn + 1], other], where)
    differing = (at for at, (a, b) in enumerate(zip(whole, probe, strict=False)) if a != b)
    return next(differing, min(len(whole), len(probe)))


def _marked(
    messages: list[Message], special: Sequence[str]
) -> tuple[list[Message], dict[int, str]]:
    """Return the turns with spelled special tokens in unused characters, and the way back."""
    words = "\n".join(message["content"] for message in messages)
    spelled = [text for text in sorted(special, key=len, reverse=True) if text in words]
    if not spelled:
        return messages, {}
    letters = sorted(set("".join(spelled)))
    marks = str.maketrans("".join(letters), _unused(words, len(letters)))
    pattern = re.compile("|".join(map(re.escape, spelled)))

    def mark(text: str) -> str:
        return pattern.sub(lambda match: match[0].translate(marks), text)

    turns = [{**message, "content": mark(message["content"])} for message in messages]
    return turns, {mark: chr(letter) for letter, mark in marks.items()}


def _unused(words: str, count: int) -> str:
    """Return characters of a private plane that do not occur in `words`."""
    there = set(words)
    free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in there)
    return "".join(next(free) for _ in range(count))


def _apply(
    template: Template,
    messages: Sequence[Message],
    where: str,
    *,
    add_generation_prompt: bool = False,
) -> str:
    try:
        text: str = template.tokenizer.apply_chat_template(
            list(messages),
            chat_template=template.source,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except (TemplateError, TypeError) as error:
        mend = "change the turns of the row, or use another model"
        raise InputError(where, f"{template.name} refuses it ({error})", mend) from error
    return text
