"""What old books lack, generated: modern sentences, dates, numbers, lists, JSON, conversations."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from stages.models.pretraining.sentences import paragraph, recall
from stages.models.pretraining.turns import conversation

SEED = 7
SIZE = 20_000_000
"""Characters in all."""
_LONGEST = 1500
_KINDS = ((paragraph, "\n\n"), (recall, "\n\n"), (conversation, ""))
"""What a text is made of, and what stands between two of them."""
_WEIGHTS = (15, 10, 75)


def texts(size: int = SIZE, seed: int = SEED) -> Iterator[str]:
    """Yield texts of up to a page, conversations, lists or paragraphs, `size` characters in all.

    The same on every machine.
    """
    random = Random(seed)
    made = 0
    while made < size:
        make, between = random.choices(_KINDS, _WEIGHTS)[0]
        parts = [make(random)]
        # Many begin a text: what stands first is seen without anything before it.
        wanted = random.choice((0, 0, 0, 0, 400, _LONGEST))
        while sum(map(len, parts)) < wanted:
            parts.append(make(random))
        # What ends a conversation ends the text, too.
        text = between.join(parts).removesuffix("\n")
        made += len(text)
        yield text
