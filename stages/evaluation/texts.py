"""How many bytes of text the predicted tokens of rows of text spell."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from stages.data.rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\ufffd"
"""What bytes that are no whole character decode to."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A token of SentencePiece that stands for one byte."""


def predicted_bytes(
    directory: Path,
    split: str,
    rows: Rows,
    chosen: Collection[int],
    tokenizer: PreTrainedTokenizerBase,
) -> dict[int, int]:
    """Return, for each of the chosen rows that is text, the UTF-8 bytes of its predicted tokens.

    These are the bytes of the text itself, before any normalisation, without the special tokens
    in it and without its first token, unless that is one that the tokenizer puts before any text.
    Where a piece was cut within a character, the bytes of both pieces are right together.
    """
    wanted, found = set(chosen), dict[int, int]()
    added = tokenizer.added_tokens_decoder
    special = {number: token.content for number, token in added.items() if token.special}
    spelled = re.compile("|".join(
        map(re.escape, sorted(special.values(), key=len, reverse=True))) or "(?!)")  # fmt: skip
    # Texts may hold other characters than this one that would be taken for the end of a line.
    with (directory / f"{split}.jsonl").open(encoding="utf-8", newline="\n") as lines:
        for row, line in enumerate(lines):
            if row not in wanted or "text" not in (content := json.loads(line)):
                continue
            text: str = content["text"]
            found[row] = len(spelled.sub("", text).encode())
            first = int(rows[row][0][0])
            if first not in special:
                found[row] -= _token_bytes(tokenizer, first, text)
    return found


def _token_bytes(tokenizer: PreTrainedTokenizerBase, token: int, text: str) -> int:
    """Return how many bytes of a text its first token spells."""
    backend = tokenizer.backend_tokenizer
    name: str = backend.id_to_token(token)
    if token in tokenizer.added_tokens_decoder:
        return len(name.encode())
    # Behind another token, since decoders take a space away at the beginning.
    spelled: str = backend.decoder.decode(["x", name])[1:] if backend.decoder else name
    if _INCOMPLETE in spelled and _INCOMPLETE not in name:
        # Byte-level BPE (GPT-2) writes each byte as one letter.
        return 1 if _BYTE.fullmatch(name) else len(name)
    # SentencePiece puts a space before any text.
    return len((spelled if text.startswith(spelled) else spelled.removeprefix(" ")).encode())
