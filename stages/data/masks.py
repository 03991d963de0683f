"""Token ids and which of them are training targets.

Supervised is every token that the model should have produced: of an answer, all that follows the
generation prompt, up to and with the token that ends generation. A row ends with its last
supervised token, since nothing after it trains anything. The first token of a row is never
supervised, as nothing predicts it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from stages.data.formats import Row
from stages.data.quoting import CUT, Located
from stages.data.rows import Supervised, Tokens
from stages.data.template import Rendered, Template
from stages.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_chats(
    template: Template,
    chats: Sequence[Rendered],
    stops: Sequence[int],
    supervise: Literal["assistant", "all"],
) -> list[tuple[Tokens, Supervised]]:
    """Return (tokens, supervised) of each conversation.

    The tokens are those of the whole text, unless a token would reach from a prompt into its
    answer: generation starts after the prompt's own tokens, so the text is then cut there. Raises
    InputError where an answer does not end with one of `stops`.
    """
    cuts = [cut for c in chats for cut in (len(c.text), *(start for start, _ in c.answers))]
    texts = [c.text for c in chats for _ in range(1 + len(c.answers))]
    encoded = iter(template.quoting.encode([t[:cut] for t, cut in zip(texts, cuts, strict=True)]))
    pairs = []
    for chat in chats:
        whole, *prompts = [next(encoded) for _ in range(1 + len(chat.answers))]
        starts = [len(prompt) for prompt in prompts]
        if any(whole[: len(prompt)] != prompt for prompt in prompts):
            whole, starts = _cut(template, chat, whole)
        spans = [
            (start, _stop(template, whole, start, end, stops, chat.where))
            for start, (_, end) in zip(starts, chat.answers, strict=True)
        ]
        if supervise == "all":
            spans = [(0, spans[-1][1])]
        pairs.append(_masked([token for token, _ in whole], spans))
    return pairs


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]
) -> list[tuple[Tokens, Supervised]]:
    """Return (tokens, supervised) of each text row: what the tokenizer makes of it, then its end.

    Special tokens that a text spells out are special: it is the model's own input, verbatim.
    Raises InputError where a text is nothing to the tokenizer.
    """
    pairs = []
    encodings = tokenizer.backend_tokenizer.encode_batch([row.text for row in rows])
    for row, encoding in zip(rows, encodings, strict=True):
        ids = encoding.ids
        if ids[-1:] != [tokenizer.eos_token_id]:
            ids = [*ids, tokenizer.eos_token_id]
        if len(ids) < 2:
            raise InputError(row.where, "its text encodes to no token", "remove the row")
        pairs.append(_masked(ids, [(0, len(ids) - 1)]))
    return pairs


def _masked(ids: list[int], spans: list[tuple[int, int]]) -> tuple[Tokens, Supervised]:
    last = spans[-1][1]
    supervised = np.zeros(last + 1, np.uint8)
    for start, end in spans:
        supervised[max(start, 1) : end + 1] = 1
    return np.array(ids[: last + 1], np.int32), supervised


def _stop(
    template: Template, whole: Located, start: int, end: int, stops: Sequence[int], where: str
) -> int:
    """Return the index of the token that ends the answer starting at token `start`."""
    for index in range(start, len(whole)):
        token, position = whole[index]
        if position >= end:
            break
        if token in stops:
            return index
    names = ", ".join(repr(template.tokenizer.convert_ids_to_tokens(stop)) for stop in stops)
    raise InputError(
        template.name,
        f"an answer of {where} does not end with a token that generation stops on ({names})",
        "use a model whose chat template closes answers, or add its token to eos_token_id in "
        "generation_config.json",
    )


def _cut(template: Template, chat: Rendered, whole: Located) -> tuple[Located, list[int]]:
    """Encode a row with a cut before each answer; return its tokens and the answers' indices."""
    starts = [start for start, _ in chat.answers]
    bounds = list(pairwise([0, *starts, len(chat.text)]))
    (cut,) = template.quoting.encode([CUT.join(chat.text[a:b] for a, b in bounds)])
    # Positions count the cuts before them; they are taken out again.
    shifts = [start + len(CUT) * number for number, start in enumerate(starts, start=1)]
    found = [(token, at - len(CUT) * bisect_right(shifts, at)) for token, at in cut]
    decode = template.tokenizer.decode
    if decode([token for token, _ in found]) != decode([token for token, _ in whole]):
        raise InputError(
            template.name,
            f"its prompt for an answer of {chat.where} shares a token with the answer",
            "let the generation prompt not end in a space",
        )
    return found, [bisect_left([at for _, at in found], start) for start in starts]
