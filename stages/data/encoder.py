"""From rows to tokens, for one tokenizer and one format."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.data.formats import Row
from stages.data.masks import encode_chats, encode_texts
from stages.data.rows import Supervised, Tokens
from stages.data.template import read_template, render
from stages.errors import InputError
from stages.models.tokenizer import stop_token_ids
from stages.settings import Data

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Encoder:
    """What turns rows into tokens, and what identifies it."""

    encode: Callable[[Sequence[Row]], list[tuple[Tokens, Supervised]]]
    identity: dict[str, Any]
    """Digests of tokenizer and template (null for text), and the tokens generation stops on."""


def open_encoder(data: Data, tokenizer: PreTrainedTokenizerBase, directory: Path) -> Encoder:
    """Return the encoder of `data.format` for the tokenizer of `directory`.

    Raises InputError where the tokenizer lacks what this needs: a fast implementation, a token
    that ends an answer, a chat template.
    """
    if not tokenizer.is_fast:
        mend = "set model.path to a model with a tokenizer.json"
        raise InputError(str(directory), "its tokenizer has no fast implementation", mend)
    # A tokenizer file may ask for truncation or padding; rows here are whole.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    stops = stop_token_ids(directory, tokenizer)
    if not stops or (data.format == "text" and tokenizer.eos_token_id is None):
        mend = "set eos_token in tokenizer_config.json"
        raise InputError(str(directory), "its tokenizer names no token that ends a text", mend)
    identity: dict[str, Any] = {
        "tokenizer_sha256": _digest(tokenizer),
        "chat_template_sha256": None,
        "stop_token_ids": list(stops),
    }
    if data.format == "text":
        return Encoder(lambda rows: encode_texts(tokenizer, rows), identity)
    template = read_template(tokenizer, directory)

    def encode(rows: Sequence[Row]) -> list[tuple[Tokens, Supervised]]:
        chats = [render(template, row) for row in rows]
        return encode_chats(template, chats, stops, data.supervise)

    return Encoder(encode, identity | {"chat_template_sha256": template.digest})


def _digest(tokenizer: PreTrainedTokenizerBase) -> str:
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
