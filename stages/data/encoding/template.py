"""The chat template of a model: how it renders turns, and what it cannot render."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from stages.data.encoding.quoting import Quoting, open_quoting
from stages.data.encoding.rendering import Refused, Renderer, Unsafe, compile_template
from stages.data.formats.messages import Message
from stages.errors import InputError
from stages.models.tokenizer import stop_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MERGED_SYSTEM = (
    "The chat template takes no system turn: its text is put before that of the first user turn, "
    "with an empty line between them, in training and in generation."
)
_OTHER = "use another model, or set data.chat_template"
_PROBE = "Zq7 is a word that no template has."


class TemplateFault(InputError):
    """Refuse a template or a tokenizer: no conversation can be encoded with it."""


@dataclass(frozen=True, slots=True)
class Template:
    """The chat template of one tokenizer."""

    name: str
    """How messages call it."""
    digest: str
    """SHA-256 of the template's text."""
    tokenizer: PreTrainedTokenizerBase
    quoting: Quoting
    stops: frozenset[str]
    """The added tokens that generation stops on, as they are spelled."""
    renderer: Renderer
    merges_system: bool
    """The text of a system turn is put before the first user turn, as the template takes none."""
    known: dict[str, list[int]] = field(default_factory=dict)
    """Short texts that recur before answers, and their ids in the copy of `quoting`."""

    def render(
        self, messages: Sequence[Message], tools: list[Message] | None, where: str, *,
        add_generation_prompt: bool,
    ) -> str:  # fmt: skip
        """Render the turns as they are; raises InputError at `where` if they are refused."""
        try:
            return self.renderer(messages, tools, add_generation_prompt)
        except Refused as error:
            mend = "change the turns of the row, or use another model"
            raise InputError(where, f"{self.name} refuses it ({error})", mend) from error
        except Unsafe as error:
            raise InputError(where, f"{self.name} is not safe to run ({error})", _OTHER) from error


def read_template(
    tokenizer: PreTrainedTokenizerBase, directory: Path, chat_template: str | None = None
) -> Template:
    """Return the chat template of the tokenizer, or `chat_template` in its place.

    Raises TemplateFault where there is none, or where it cannot be used.
    """
    name = f"chat template of {directory}" if chat_template is None else "data.chat_template"
    text = _own(tokenizer, directory) if chat_template is None else chat_template
    stops = stop_token_ids(directory, tokenizer)
    try:
        renderer = compile_template(text, tokenizer.special_tokens_map)
        merges_system = _merges_system(renderer)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        place = f"line {line}: {error}" if line else str(error)
        mend = _OTHER if chat_template is None else "correct it there"
        raise TemplateFault(name, f"is no Jinja template ({place})", mend) from error
    except Unsafe as error:
        raise TemplateFault(name, f"is not safe to run ({error})", _OTHER) from error
    added = tokenizer.added_tokens_decoder
    return Template(
        name=name,
        digest=hashlib.sha256(text.encode()).hexdigest(),
        tokenizer=tokenizer,
        quoting=open_quoting(tokenizer, str(directory), stops),
        stops=frozenset(added[number].content for number in stops if number in added),
        renderer=renderer,
        merges_system=merges_system,
    )


def _own(tokenizer: PreTrainedTokenizerBase, directory: Path) -> str:
    try:
        text: str = tokenizer.get_chat_template()
    except ValueError as error:
        mend = "choose an instruct model, set data.chat_template, or train on rows of text"
        found = "its tokenizer has no chat template"
        raise TemplateFault(str(directory), found, mend) from error
    return text


def _merges_system(renderer: Renderer) -> bool:
    """Tell whether the template refuses or drops a system turn, but takes its text in a user's."""
    question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    merged = {"role": "user", "content": f"{_PROBE}\n\na"}
    system = {"role": "system", "content": _PROBE}
    shown = _shows_probe(renderer, [system, question, answer])
    return not shown and _shows_probe(renderer, [merged, answer])


def _shows_probe(renderer: Renderer, messages: list[Message]) -> bool:
    try:
        return _PROBE in renderer(messages, None, False)
    except Refused:
        return False
