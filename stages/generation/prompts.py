"""From what a person writes to the tokens that the model continues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.data.formats import Message, parse
from stages.data.masks import encode_chats
from stages.data.template import read_template, render
from stages.errors import InputError
from stages.models.tokenizer import stop_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ChatEncoder = Callable[[Sequence[Message], str], list[int]]
"""(turns, their name in messages) to the tokens after which the next answer starts."""

TextEncoder = Callable[[str, str], list[int]]
"""(text, its name in messages) to the tokens to be continued."""

_ANSWER: Message = {"role": "assistant", "content": "x"}


def open_chat(tokenizer: PreTrainedTokenizerBase, directory: Path) -> ChatEncoder:
    """Return the encoder of conversations for the model in `directory`.

    It is the one that made the training rows: an answer is generated after the very tokens it
    would have been trained after, and special tokens that a turn spells out stay plain text.
    Opening raises InputError where the model has no chat template, encoding where the turns are
    no conversation or the template refuses them.
    """
    _read_whole(tokenizer)
    template = read_template(tokenizer, directory)
    stops = stop_token_ids(directory, tokenizer)

    def encode(messages: Sequence[Message], where: str) -> list[int]:
        if not messages:
            raise InputError(where, "found no turns", "write one to answer")
        # The turn that the model is to write is there while rendering, and cut off again.
        row = parse({"messages": [*messages, _ANSWER]}, "chat", where, where)
        [(tokens, supervised)] = encode_chats(template, [render(template, row)], stops, "assistant")
        length = int(np.flatnonzero(supervised == 0)[-1]) + 1
        prompt: list[int] = tokens[:length].tolist()
        return prompt

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
