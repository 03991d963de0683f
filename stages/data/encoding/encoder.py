"""From rows to tokens, for one tokenizer; rows of conversations and of text may be mixed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from stages.data.encoding.chat_rows import open_chats
from stages.data.encoding.examples import Encoded as Encoded
from stages.data.encoding.examples import Example as Example
from stages.data.encoding.template import MERGED_SYSTEM, TemplateFault, read_template
from stages.data.encoding.text_rows import open_texts
from stages.data.formats.parser import Row
from stages.data_settings import Data
from stages.errors import InputError
from stages.models.tokenizer import stop_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Opened = TypeVar("Opened")


@dataclass(frozen=True, slots=True)
class Encoder:
    """What turns rows into tokens, and what identifies it."""

    encode: Callable[[Sequence[Row]], list[Encoded | InputError]]
    """One result for each row; raises TemplateFault for what concerns every row."""
    identity: dict[str, Any]
    """Digests of tokenizer and template (null where there is none), the tokens that generation
    stops on, and in sentences what is done about turns that the template does not take."""


def open_encoder(
    data: Data,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    chat_template: str | None = None,
) -> Encoder:
    """Return the encoder for the tokenizer of `directory`; `chat_template` replaces its own.

    Raises InputError where the tokenizer lacks what any row needs: a fast implementation, a token
    that generation stops on.
    """
    if not tokenizer.is_fast:
        mend = "set model.path to a model with a tokenizer.json"
        raise InputError(str(directory), "its tokenizer has no fast implementation", mend)
    # A tokenizer file may ask for truncation or padding; rows here are whole.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    stops = stop_token_ids(directory, tokenizer)
    if not stops:
        mend = "set eos_token in tokenizer_config.json"
        raise InputError(str(directory), "its tokenizer names no token that ends a text", mend)
    template = _kept(lambda: read_template(tokenizer, directory, chat_template))
    encode_texts = _kept(lambda: open_texts(data, tokenizer, directory))
    identity: dict[str, Any] = {
        "tokenizer_sha256": _digest(tokenizer),
        "chat_template_sha256": None,
        "stop_token_ids": list(stops),
        "treatments": [],
    }
    if not isinstance(template, TemplateFault):
        identity["chat_template_sha256"] = template.digest
        identity["treatments"] = [MERGED_SYSTEM] * template.merges_system

    def encode(rows: Sequence[Row]) -> list[Encoded | InputError]:
        chats = [row for row in rows if "text" not in row.content]
        texts = [row for row in rows if "text" in row.content]
        chats_made = iter(open_chats(data, _raised(template))(chats) if chats else ())
        texts_made = iter(_raised(encode_texts)(texts) if texts else ())
        return [next(texts_made if "text" in row.content else chats_made) for row in rows]

    return Encoder(encode, identity)


def _kept(opening: Callable[[], Opened]) -> Opened | TemplateFault:
    """Keep a fault until the first row that it concerns: there may be none."""
    try:
        return opening()
    except TemplateFault as fault:
        return fault


def _raised(found: Opened | TemplateFault) -> Opened:
    if isinstance(found, TemplateFault):
        raise found
    return found


def _digest(tokenizer: PreTrainedTokenizerBase) -> str:
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
