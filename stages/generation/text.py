"""From the tokens of one answer to its text, piece by piece, up to a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlx_lm.generate import TextStateMachine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\ufffd"
"""What an unfinished UTF-8 sequence decodes to."""


class TextStream:
    """The text of one answer; special tokens are no part of it.

    What might become a stop text, and bytes that are not yet a character, are held back until
    that is known. The pieces together are what the tokenizer makes of all tokens at once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._tokens: list[int] = []
        # Decoding a window that starts before the new tokens keeps what depends on neighbours,
        # such as the space before a word (the method of Hugging Face's text-generation-inference).
        self._start = 0
        self._read = 0
        self._stops = TextStateMachine({"normal": [(text, None) for text in stop]})
        self._state = self._stops.make_state()

    @property
    def stopped(self) -> bool:
        """Tell whether a stop text has occurred."""
        return self._state[0] is None

    def add(self, token: int) -> str:
        """Return the text that is certain with this token, often none."""
        self._tokens.append(token)
        return self._emit(self._decoded())

    def finish(self) -> str:
        """Return what was held back, now that no token follows."""
        piece = self._emit(self._decoded(complete=True))
        if not self.stopped:
            self._state, held, _ = TextStateMachine.flush(self._state)
            piece += held
        return piece

    def _decoded(self, *, complete: bool = False) -> str:
        window = self._tokens[self._start :]
        before = self._decode(window[: self._read - self._start])
        text = self._decode(window)
        if len(text) <= len(before) or (text.endswith(_INCOMPLETE) and not complete):
            return ""
        self._start, self._read = self._read, len(self._tokens)
        return text[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._backend.decode(tokens, skip_special_tokens=True)
        return text

    def _emit(self, text: str) -> str:
        if self.stopped or not text:
            return ""
        self._state, segments = TextStateMachine.split(self._state, text)
        return "".join(piece for _, piece in segments)
