"""A conversation that is too long, shortened at its beginning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from stages.data.formats.messages import Message

Found = TypeVar("Found")


def shorten(
    messages: Sequence[Message], attempt: Callable[[list[Message]], Found | None]
) -> Found | None:
    """Return what `attempt` makes of the longest end of the turns for which it is not None.

    The system turn stays. The oldest turns go, so that what remains begins with a user's: no tool's
    result loses its call. Where the last question with its answers is too long by itself, the
    beginning of the question's words goes. None where that is too long even then.
    """
    system = [turn for turn in messages[:1] if turn["role"] == "system"]
    users = [n for n, turn in enumerate(messages) if turn["role"] == "user"]
    later = [n for n in users if n > len(system)]
    found = _first([[*system, *messages[n:]] for n in later], attempt)
    if found is not None or not users:
        return found
    question, rest = messages[users[-1]], messages[users[-1] + 1 :]
    words: str = question["content"]
    # Of blanks alone there is no question.
    blank = len(words) - len(words.rstrip())

    def end(size: int) -> Found | None:
        shorter = {**question, "content": words[len(words) - blank - size :]}
        return attempt([*system, shorter, *rest])

    return _longest(len(words) - blank, end)


def _first(
    candidates: Sequence[list[Message]], attempt: Callable[[list[Message]], Found | None]
) -> Found | None:
    """Return the result of the first candidate that has one, each fitting better than the last."""
    found, low, high = None, 0, len(candidates)
    while low < high:
        middle = (low + high) // 2
        result = attempt(candidates[middle])
        if result is None:
            low = middle + 1
        else:
            found, high = result, middle
    return found


def _longest(size: int, attempt: Callable[[int], Found | None]) -> Found | None:
    """Return the result for the largest number below `size` that has one.

    The work is that of the result, however long the whole is.
    """
    found, low, high = None, 0, 1
    while high < size and (result := attempt(high)) is not None:
        found, low, high = result, high, 2 * high
    high = min(high, size)
    while low + 1 < high:
        middle = (low + high) // 2
        result = attempt(middle)
        if result is None:
            high = middle
        else:
            found, low = result, middle
    return found
