"""A tokenizer that takes special tokens only where the template set them.

In a tokenizer's input `<|im_end|>` is special whoever wrote it. Here a special token is one that
stands between quotes, a character that no row may hold; spelled without them it is plain text, in
the very tokens that its letters have beside their neighbours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

QUOTE = "\U0010fffd"
"""The last private character of Unicode."""
CUT = QUOTE * 2
"""Where it stands, no token reaches across; it leaves no token itself."""

Located = list[tuple[int, int]]
"""Each token with the position in the text where it starts."""


@dataclass(frozen=True, slots=True)
class Quoting:
    """A copy of a fast tokenizer in which only quoted special tokens are special."""

    backend: Any
    texts: tuple[str, ...]
    """Every special token, longest first."""
    ids: dict[int, int | None]
    """Ids of quoted tokens in the copy, and those they stand for; None for a cut."""

    def quote(self, text: str) -> str:
        """Put quotes around every special token in `text`."""
        if not self.texts:
            return text
        return re.sub("|".join(map(re.escape, self.texts)), rf"{QUOTE}\g<0>{QUOTE}", text)

    def encode(self, texts: Sequence[str]) -> list[Located]:
        """Encode quoted texts, without adding special tokens."""
        encodings = self.backend.encode_batch(list(texts), add_special_tokens=False)
        return [
            [
                (token, start)
                for found, (start, _) in zip(encoding.ids, encoding.offsets, strict=True)
                if (token := self.ids.get(found, found)) is not None
            ]
            for encoding in encodings
        ]


def open_quoting(tokenizer: PreTrainedTokenizerBase) -> Quoting:
    """Copy the fast tokenizer behind `tokenizer`, which stays as it is."""
    backend: Any = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    special = {
        number: token for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    backend.add_tokens([AddedToken(CUT, normalized=False)])
    backend.add_tokens([
        AddedToken(f"{QUOTE}{token.content}{QUOTE}", normalized=False, lstrip=token.lstrip,
                   rstrip=token.rstrip, single_word=token.single_word)
        for token in special.values()
    ])  # fmt: skip
    ids: dict[int, int | None] = {backend.token_to_id(CUT): None}
    for number, token in special.items():
        ids[backend.token_to_id(f"{QUOTE}{token.content}{QUOTE}")] = number
    texts = sorted((token.content for token in special.values()), key=len, reverse=True)
    return Quoting(backend, tuple(texts), ids)
