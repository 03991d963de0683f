"""A tokenizer that takes special tokens only where the template set them.

In a tokenizer's input `<|im_end|>` is special whoever wrote it. Here a special token is one that
stands between quotes, a character that no row may hold; spelled without them it is plain text, in
the very tokens that its letters have beside their neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer

from stages.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUOTE = "\U0010fffd"
"""The last private character of Unicode."""
CUT = QUOTE * 2
"""Where it stands, no token reaches across; it leaves no token itself."""


@dataclass(frozen=True, slots=True)
class Quoting:
    """A copy of a fast tokenizer in which only quoted special tokens are special.

    The ids of the copy are those of the tokenizer, and one more for each quoted token.
    """

    backend: Any
    special: re.Pattern[str]
    """Any special token as it is spelled, the longest where several fit."""
    originals: NDArray[np.int32]
    """The tokenizer's id for each id of the copy, -1 for a cut."""
    quoted: NDArray[np.bool_]
    """Which ids of the copy are quoted tokens or cuts."""

    def quote(self, text: str) -> str:
        """Put quotes around every special token in `text`."""
        return self.special.sub(_quoted, text)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode quoted texts to ids of the copy, without adding special tokens.

        What stands between two quoted tokens is encoded by itself.
        """
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def open_quoting(tokenizer: PreTrainedTokenizerBase, where: str, also: Collection[int]) -> Quoting:
    """Copy the fast tokenizer behind `tokenizer`, which stays as it is.

    Special are the tokens that it calls so, and of its added tokens those in `also`. Raises
    InputError at `where` for a tokenizer to which no token can be added.
    """
    backend: Any = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    special = {
        number: token
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special or number in also
    }
    # In the copy they are special, so that without quotes they are plain text.
    backend.add_special_tokens([token.content for token in special.values() if not token.special])
    backend.add_tokens([AddedToken(CUT, normalized=False)])
    backend.add_tokens([
        AddedToken(f"{QUOTE}{token.content}{QUOTE}", normalized=False, lstrip=token.lstrip,
                   rstrip=token.rstrip)
        for token in special.values()
    ])  # fmt: skip
    stand_ins = {backend.token_to_id(CUT): -1}
    for number, token in special.items():
        stand_ins[backend.token_to_id(f"{QUOTE}{token.content}{QUOTE}")] = number
    if any(tokenizer.backend_tokenizer.id_to_token(number) is not None for number in stand_ins):
        mend = "set model.path to a model with another tokenizer"
        raise InputError(where, "the ids of its tokenizer leave no room for more", mend)
    originals = np.arange(max([*stand_ins, *special]) + 1, dtype=np.int32)
    quoted = np.zeros(len(originals), np.bool_)
    for copied, number in stand_ins.items():
        originals[copied], quoted[copied] = number, True
    texts = sorted((token.content for token in special.values()), key=len, reverse=True)
    # Without special tokens a pattern that matches nothing.
    pattern = re.compile("|".join(map(re.escape, texts)) or "(?!)")
    return Quoting(backend, pattern, originals, quoted)


def _quoted(match: re.Match[str]) -> str:
    return f"{QUOTE}{match[0]}{QUOTE}"
