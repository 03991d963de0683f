"""Token ids and which of them are training targets.

Supervised is every token that the model should have produced: of an answer, all that follows the
generation prompt, up to and with the token that ends generation. A row ends with its last
supervised token, since nothing after it trains anything. The first token of a row is never
supervised, as nothing predicts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stages.data.formats import Row
from stages.data.rows import Supervised, Tokens
from stages.data.template import Rendered, Template
from stages.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Located = list[tuple[int, int]]
"""Each token with the position in the text where it starts."""


def encode_chats(
    template: Template,
    chats: Sequence[Rendered],
    stops: Sequence[int],
    supervise: Literal["assistant", "all"],
) -> list[tuple[Tokens, Supervised]]:
    """Return (tokens, supervised) of each conversation.

    The tokens are those of the whole text. Where that would merge the end of a prompt with the
    start of its answer, each answer is encoded apart: generation starts after the prompt's own
    tokens. Special tokens that a turn spells out become the tokens of plain text. Raises InputError
    where an answer does not end with one of `stops`.
    """
    backend = template.tokenizer.backend_tokenizer
    texts = [
        (text[:cut], marked[:cut])
        for text, marked, answers in ((c.text, c.marked, c.answers) for c in chats)
        for cut in (len(text), *(start for start, _ in answers))
    ]
    encoded = iter(_locate(backend, texts, template))
    pairs = []
    for chat in chats:
        whole, *prompts = [next(encoded) for _ in range(1 + len(chat.answers))]
        if any(whole[: len(prompt)] != prompt for prompt in prompts):
            whole, prompts = _in_pieces(backend, chat, template)
        spans = [
            (len(prompt), _stop(template, whole, len(prompt), end, stops, chat.where))
            for prompt, (_, end) in zip(prompts, chat.answers, strict=True)
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


def _locate(
    backend: Any, texts: Sequence[tuple[str, str]], template: Template
) -> list[Located]:  # fmt: skip
    """Encode texts given as (text, marked), without adding special tokens."""
    encodings = backend.encode_batch([text for text, _ in texts], add_special_tokens=False)
    found = []
    for (text, marked), encoding in zip(texts, encodings, strict=True):
        located: Located = []
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            spelled = token in template.special and text[start:end] != marked[start:end]
            plain = _plain(backend, text[start:end]) if spelled else [token]
            located.extend((part, start) for part in plain)
        found.append(located)
    return found


def _plain(backend: Any, text: str) -> list[int]:
    backend.encode_special_tokens = True
    try:
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    finally:
        backend.encode_special_tokens = False
    return ids


def _in_pieces(
    backend: Any, chat: Rendered, template: Template
) -> tuple[Located, list[Located]]:  # fmt: skip
    """Encode each answer apart, where encoding at once would merge it with its prompt."""
    cuts = [0, *(start for start, _ in chat.answers), len(chat.text)]
    bounds = list(pairwise(cuts))
    pieces = _locate(backend, [(chat.text[a:b], chat.marked[a:b]) for a, b in bounds], template)
    whole: Located = []
    prompts = []
    for (start, _), piece in zip(bounds, pieces, strict=True):
        prompts.append(list(whole))
        whole.extend((token, start + position) for token, position in piece)
    return whole, prompts[1:]
