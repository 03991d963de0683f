"""From what a person writes to the tokens that the model continues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from stages.data.encoding.masks import prompt_tokens
from stages.data.encoding.template import read_template
from stages.data.formats.messages import check_turns
from stages.data.formats.parser import Message
from stages.data.formats.tools import read_tools
from stages.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ChatEncoder(Protocol):
    """What turns a conversation into the tokens after which the next answer starts."""

    def __call__(
        self,
        messages: Sequence[Message],
        where: str,
        tools: list[dict[str, Any]] | None = None,
    ) -> list[int]:
        """Encode the turns, which messages call `where`, and the functions offered to call."""


TextEncoder = Callable[[str, str], list[int]]
"""(text, its name in messages) to the tokens to be continued."""


def open_chat(
    tokenizer: PreTrainedTokenizerBase, directory: Path, chat_template: str | None = None
) -> ChatEncoder:
    """Return the encoder of conversations for the model in `directory`.

    It is the one that made the training rows: an answer is generated after the very tokens it
    would have been trained after, and special tokens that a turn spells out stay plain text.
    `chat_template` replaces the tokenizer's own. Opening raises InputError where the model has no
    chat template, encoding where the turns are no conversation or the template refuses them.
    """
    _read_whole(tokenizer)
    template = read_template(tokenizer, directory, chat_template)

    def encode(
        messages: Sequence[Message], where: str, tools: list[dict[str, Any]] | None = None
    ) -> list[int]:
        if not messages:
            raise InputError(where, "found no turns", "write one to answer")
        turns = check_turns(list(messages), where)
        if turns[0]["role"] == "assistant":
            expected = "expected a user or system turn"
            raise InputError(where, f"found an assistant turn first, {expected}", "leave it out")
        offered = read_tools({"tools": tools}, where) or None
        return prompt_tokens(template, turns, where, tools=offered)

    return encode


def open_text(tokenizer: PreTrainedTokenizerBase) -> TextEncoder:
    """Return the encoder of texts to be continued as they stand; special tokens are special.

    Encoding raises InputError where there is no token to continue.
    """
    _read_whole(tokenizer)

    def encode(text: str, where: str) -> list[int]:
        tokens: list[int] = tokenizer.backend_tokenizer.encode(text).ids
        if tokens[-1:] == [tokenizer.eos_token_id]:
            del tokens[-1]
        if not tokens:
            raise InputError(where, "an empty prompt", "write something to continue")
        return tokens

    return encode


def _read_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    # A tokenizer file may ask for truncation or padding.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
