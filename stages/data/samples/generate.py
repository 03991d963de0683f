"""The bundled conversations: requests to a calendar assistant, answered as strict JSON.

Made when they are needed, the same on every machine. Each split has its own wordings, names, clock
times, durations and pairs of title and day: a right answer on test was never seen in train.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from typing import Any

from stages.data.samples import talk, wordings
from stages.data.samples.vocabulary import (
    ALONE,
    TOGETHER,
    WITHOUT_ARTICLE,
    durations,
    names,
    on_day,
    pairs,
    pick,
    shuffled,
    times,
)

SIZES = {"train": 1600, "valid": 120, "test": 120}
"""Rows of each split."""

Turns = list[str]
"""What is said, user and assistant in turn."""
Slots = dict[str, Any]
Kind = Callable[[str, int, tuple[object, ...]], Turns]
"""Makes the n-th conversation of a split; the last argument decides its random choices."""


def rows(split: str) -> list[dict[str, Any]]:
    """Return the rows of train, valid or test, as `{"messages": […]}`; no two are alike."""
    made = [[words, reply] for reply, by_split in talk.TALK.items() for words in by_split[split]]
    seen = {str(turns) for turns in made}
    wanted = SIZES[split] - len(made)
    for kind, share in _SHARES.items():
        rest = share == max(_SHARES.values())
        others = sum(wanted * part // 100 for other, part in _SHARES.items() if other != kind)
        for number in range(wanted - others if rest else wanted * share // 100):
            tries = (kind(split, number, (split, kind.__name__, number, n)) for n in count())
            turns = next(new for new in tries if str(new) not in seen)
            seen.add(str(turns))
            made.append(turns)
    return [{"messages": _messages(turns)} for turns in shuffled(made, "order", split)]


def _messages(turns: Turns) -> list[dict[str, str]]:
    roles = ("user", "assistant") * (len(turns) // 2)
    said = [{"role": role, "content": words} for role, words in zip(roles, turns, strict=True)]
    return [{"role": "system", "content": talk.SYSTEM}, *said]


def _create(split: str, number: int, draw: tuple[object, ...]) -> Turns:
    words, slots = _event(wordings.CREATE, split, number, draw)
    return [words, _created(slots)]


def _move(split: str, number: int, draw: tuple[object, ...]) -> Turns:
    words, slots = _event(wordings.MOVE, split, number, draw)
    return [words, _moved(slots, slots["other"], slots["time"])]


def _cancel(split: str, number: int, draw: tuple[object, ...]) -> Turns:
    words, slots = _event(wordings.CANCEL, split, number, draw)
    return [words, _cancelled(slots)]


def _list(split: str, number: int, draw: tuple[object, ...]) -> Turns:
    words, slots = _event(wordings.LIST, split, number, draw)
    after, before = (slots[key] if slots[key] in words else None for key in ("time", "end"))
    return [words, _json(action="list", day=slots["day"].lower(), after=after, before=before)]


def _find(split: str, number: int, draw: tuple[object, ...]) -> Turns:
    words, slots = _event(wordings.FIND, split, number, draw)
    return [words, _json(action="find", **{"with": slots["name"]}, day=slots["day"].lower())]


def _two_turns(split: str, number: int, draw: tuple[object, ...]) -> Turns:
    words, slots = _event(wordings.CREATE, split, number, draw)
    said, answer = (
        (talk.OTHER_TIME, _moved(slots, slots["day"], slots["end"])),
        (talk.OTHER_DAY, _moved(slots, slots["other"], slots["time"])),
        (talk.TAKE_BACK, _cancelled(slots)),
        (talk.THANKS, talk.WELCOME),
    )[number % 4]
    second = said[split][number // 4 % len(said[split])].format(**slots)
    return [words, _created(slots), second, answer]


def _named(split: str, number: int, draw: tuple[object, ...]) -> Turns:
    said = [(words, reply) for reply, part in talk.NAMED.items() for words in part[split]]
    words, reply = said[number % len(said)]
    name = pick(names(split), *draw)
    return [words.format(name=name), reply.format(name=name)]


_SHARES: dict[Kind, int] = {
    _create: 32, _move: 22, _cancel: 12, _list: 14, _find: 7, _two_turns: 10, _named: 3,
}  # fmt: skip
"""Per cent of the rows that are no small talk."""


def _event(
    kind: wordings.Wordings, split: str, number: int, draw: tuple[object, ...]
) -> tuple[str, Slots]:
    """Return the n-th wording of a kind, filled in, with a value for every slot."""
    template = kind[split][number % len(kind[split])]
    together = "{name}" in template or pick((True, False), *draw, "together")
    dealt = pairs(split, TOGETHER if together else ALONE)
    title, day = pick(dealt, *draw, "title")
    other = pick([d for t, d in dealt if t == title and d != day], *draw, "other")
    time = pick(times(split, title), *draw, "time")
    end = pick([each for each in times(split, title) if each != time], *draw, "end")
    if "{end}" in template:
        time, end = sorted((time, end))
    name = pick(names(split), *draw, "name") if together else None
    what = f"{title} with {name}" if together else title
    article = "" if title in WITHOUT_ARTICLE else "a "
    slots = {
        "title": title, "name": name, "a_title": article + title,
        "what": what, "What": what[0].upper() + what[1:], "a_what": article + what,
        "day": day, "Day": day.capitalize(), "on_day": on_day(day),
        "days": f"{day}'s", "Days": f"{day.capitalize()}'s",
        "other": other, "on_other": on_day(other),
        "time": time, "end": end, "minutes": pick(durations(split), *draw, "minutes"),
    }  # fmt: skip
    return template.format(**slots), slots


def _created(slots: Slots) -> str:
    return _json(
        action="create", title=slots["title"], **{"with": slots["name"]},
        day=slots["day"].lower(), time=slots["time"], duration_minutes=slots["minutes"],
    )  # fmt: skip


def _moved(slots: Slots, to: str, time: str) -> str:
    return _json(
        action="move", title=slots["title"],
        **{"with": slots["name"], "from": slots["day"].lower(), "to": to.lower()}, time=time,
    )  # fmt: skip


def _cancelled(slots: Slots) -> str:
    return _json(
        action="cancel", title=slots["title"],
        **{"with": slots["name"], "day": slots["day"].lower()},
    )  # fmt: skip


def _json(**fields: object) -> str:
    """Return one line of JSON; the order of the keys is part of the task."""
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
