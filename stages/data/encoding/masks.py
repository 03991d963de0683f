"""Token ids of conversations, and which of them are training targets.

Supervised is every token that the model should have produced: of an answer, all that follows the
generation prompt, up to and with the token that ends generation. A row ends with its last
supervised token, since nothing after it trains anything. The first token of a row is never
supervised, as nothing predicts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.data.encoding.kept import check_calls, check_tools
from stages.data.encoding.quoting import CUT, QUOTE
from stages.data.encoding.template import Template
from stages.data.encoding.turns import open_turns
from stages.data.encoding.unroll import Passage, answer_starts
from stages.data.formats.messages import Message
from stages.data.rows import Supervised, Tokens
from stages.errors import InputError

_MOST_KNOWN = 10_000
_KNOWN_CHARACTERS = 64


def encode_passages(
    template: Template, passages: Sequence[Passage]
) -> list[tuple[Tokens, Supervised] | InputError]:
    """Return (tokens, supervised) of each text.

    The tokens are those of the whole text, unless a token would reach from a prompt into its
    answer: generation starts after the prompt's own tokens, so the text is then cut there. An
    InputError takes the place of a text that cannot be cut.
    """
    found: list[tuple[Tokens, Supervised] | InputError] = []
    texts = [(passage.text, passage.starts) for passage in passages]
    for passage, aligned in zip(passages, _encode(template, texts), strict=True):
        if aligned is None:
            found.append(_shared(template, passage.where))
            continue
        ids, places, starts = aligned
        supervised = np.full(len(ids), passage.others, np.uint8)
        begins = dict(zip(passage.starts, starts, strict=True))
        for span in passage.answers:
            supervised[begins[span.start] : places[span.stop] + 1] = not passage.others
        supervised[0] = 0
        found.append((template.quoting.originals[ids], supervised))
    return found


def prompt_tokens(
    template: Template,
    messages: Sequence[Message],
    where: str,
    tools: list[dict[str, Any]] | None = None,
) -> list[int]:
    """Return the tokens after which the next answer is generated: those that a training row has
    before it.

    Raises InputError at `where` for turns or tools that the template refuses or leaves out.
    """
    turns = open_turns(template, messages, tools, where)
    end = len(messages)
    earlier = [n for n, turn in enumerate(messages) if turn["role"] == "assistant"]
    prompt = turns.prompt(end)
    check_tools(turns, end, prompt, prompt=True)
    for before, after in zip([None, *earlier], [*earlier, end], strict=True):
        check_calls(turns, before, after, checked=False)
    starts = sorted(answer_starts(turns, messages, prompt))
    [aligned] = _encode(template, [turns.quote(prompt, starts)])
    if aligned is None:
        raise _shared(template, where)
    found: list[int] = template.quoting.originals[aligned[0]].tolist()
    return found


_Ids = NDArray[np.int32]
_Aligned = tuple[_Ids, NDArray[np.int64], list[int]]
"""Ids of the copy of the tokenizer, without cuts, the indices of quoted tokens, and those at which
answers start."""


def _encode(
    template: Template, texts: Sequence[tuple[str, list[int]]]
) -> list[_Aligned | None]:  # fmt: skip
    """Encode quoted texts, each with the positions where its answers start; None for a text that
    would be another if it were cut."""
    encoded = template.quoting.encode([text for text, _ in texts])
    prompts = _encode_ends(template, texts)
    found: list[_Aligned | None] = []
    for (text, starts), ids in zip(texts, encoded, strict=True):
        array = np.array(ids, np.int32)
        places = np.flatnonzero(template.quoting.quoted[array])
        indices = _indices(text, starts, ids, places, prompts)
        if None not in indices:
            found.append((array, places, [index for index in indices if index is not None]))
        else:
            found.append(_cut(template, text, starts, array))
    return found


def _encode_ends(
    template: Template, texts: Sequence[tuple[str, list[int]]]
) -> dict[str, list[int]]:  # fmt: skip
    """Return the ids of how each prompt ends, from its last special token on.

    No token reaches across a special one, so what stands before it is encoded as in the whole.
    """
    known = template.known
    ends = {_end(text, start) for text, starts in texts for start in starts}
    new = [end for end in ends if end not in known]
    encoded = dict(zip(new, template.quoting.encode(new), strict=True)) if new else {}
    if len(known) < _MOST_KNOWN:
        known.update({end: ids for end, ids in encoded.items() if len(end) <= _KNOWN_CHARACTERS})
    return known | encoded if encoded else known


def _end(text: str, start: int) -> str:
    closing = text.rfind(QUOTE, 0, start)
    return text[text.rfind(QUOTE, 0, closing) : start] if closing >= 0 else text[:start]


def _indices(
    text: str, starts: list[int], ids: list[int], places: NDArray[np.int64],
    prompts: dict[str, list[int]],
) -> list[int | None]:  # fmt: skip
    """Return the index of the token at which each answer starts; None where one reaches across."""
    found: list[int | None] = []
    for start in starts:
        prompt = prompts[_end(text, start)]
        special = text.count(QUOTE, 0, start) // 2
        first = int(places[special - 1]) if special else 0
        fits = ids[first : first + len(prompt)] == prompt
        found.append(first + len(prompt) if fits else None)
    return found


def _cut(template: Template, text: str, starts: list[int], whole: _Ids) -> _Aligned | None:
    """Encode a text that is cut before every answer into which a token of its prompt reaches."""
    quoting, starts = template.quoting, list(starts)
    while True:
        [ids] = quoting.encode([text])
        places = np.flatnonzero(quoting.quoted[ids])
        prompts = _encode_ends(template, [(text, starts)])
        indices = _indices(text, starts, ids, places, prompts)
        if None not in indices:
            break
        # From left to right, since a cut changes what follows it up to the next special token.
        start = starts[indices.index(None)]
        text = f"{text[:start]}{CUT}{text[start:]}"
        starts = [at + len(CUT) * (at >= start) for at in starts]
    kept = quoting.originals[ids] >= 0
    array = np.array(ids, np.int32)[kept]
    decode = template.tokenizer.decode
    if decode(quoting.originals[array].tolist()) != decode(quoting.originals[whole].tolist()):
        return None
    before: NDArray[np.int64] = np.cumsum(kept) - kept
    begins = [int(before[index]) for index in indices if index is not None]
    return array, np.flatnonzero(quoting.quoted[array]), begins


def _shared(template: Template, where: str) -> InputError:
    found = f"its prompt for an answer of {where} shares a token with the answer"
    mend = "let the generation prompt not end in a space, or set data.chat_template"
    return InputError(template.name, found, mend)
