"""Conversations as the text that a model's chat template makes of them.

What a row says never steers the model: text that spells a special token, such as `<|im_end|>` in a
user's turn, stays plain text, as `stages.data.quoting` tells.
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
from stages.data.quoting import QUOTE, Quoting, open_quoting
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
    tokenizer: PreTrainedTokenizerBase
    quoting: Quoting


@dataclass(frozen=True, slots=True)
class Rendered:
    """One conversation as text, with quotes around the special tokens of the template."""

    text: str
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
    return Template(
        name=f"chat template of {directory}",
        digest=hashlib.sha256(text.encode()).hexdigest(),
        source=_DATE_CALL.sub(lambda call: repr(_DATE.strftime(call[2])), text),
        tokenizer=tokenizer,
        quoting=open_quoting(tokenizer),
    )


def render(template: Template, row: Row) -> Rendered:
    """Render one conversation and find its answers.

    The date that a template asks for is 26 July 2024, always. Raises InputError where the template
    refuses the turns, or where it renders the prompt for an answer otherwise than the same turns in
    the whole row: the model would be asked with another text than it was trained on.
    """
    if any(QUOTE in message["content"] for message in row.messages):
        raise InputError(row.where, "found the private character U+10FFFD", "remove it")
    messages, original = _disguised(row.messages, template.quoting.texts)
    whole = _apply(template, messages, row.where)

    def quoted(end: int) -> str:
        text = template.quoting.quote(whole[:end])
        return text.translate(original) if original else text

    answers = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = _apply(template, messages[:turn], row.where, add_generation_prompt=True)
        if not whole.startswith(prompt):
            found = f"its prompt for messages[{turn}] of {row.where} does not begin the whole row"
            raise InputError(template.name, found, "use another model, or remove the row")
        end = _end(template, messages, turn, whole, row.where)
        answers.append((len(quoted(len(prompt))), len(quoted(end))))
    return Rendered(quoted(len(whole)), tuple(answers), row.where)


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


def _disguised(
    messages: list[Message], special: Sequence[str]
) -> tuple[list[Message], dict[int, str]]:
    """Return the turns with spelled special tokens in unused letters, and the way back.

    So hidden, a special token in the rendered text is known to be the template's own.
    """
    words = "\n".join(message["content"] for message in messages)
    spelled = [text for text in special if text in words]
    if not spelled:
        return messages, {}
    letters = "".join(sorted(set("".join(spelled))))
    disguise = str.maketrans(letters, _unused(words, len(letters)))
    pattern = re.compile("|".join(map(re.escape, spelled)))

    def hide(text: str) -> str:
        return pattern.sub(lambda match: match[0].translate(disguise), text)

    turns = [{**message, "content": hide(message["content"])} for message in messages]
    return turns, {masked: chr(letter) for letter, masked in disguise.items()}


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
