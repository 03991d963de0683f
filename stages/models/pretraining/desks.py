"""Desks that take requests: who they are, and how each writes down what it was asked for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from random import Random
from typing import Any

from stages.data.samples.vocabulary import DAYS, on_day
from stages.models.pretraining import phrases as p
from stages.models.pretraining import vocabulary as v


@dataclass(frozen=True, slots=True)
class Desk:
    """One desk: its system text, the items one asks for, and its JSON."""

    about: str
    items: tuple[str, ...]
    """What is asked for; a word in capitals is drawn from a list."""
    form: dict[str, str]
    """For each act the keys of its JSON, `key=slot`; a value in quotes stands for itself."""
    replies: dict[str, str]
    """What it says to talk that is no request; {me} is its name, {who} the user's."""
    lower: bool
    """Whether days are written in small letters."""


_REPLIES = {
    "who": ("I am {me}, {about}.", "My name is {me}. I am {about}.", "{me}, {about}."),
    "can": (
        "I book, move and cancel {items}s, and I find them again.",
        "I keep the list of every {items} and change it when you ask.",
        "Ask me to add, shift or drop {items}s.",
    ),
    "hello": (
        "Hello! What can I write down for you?",
        "Good day. Which {items} shall it be?",
        "Hi, I am listening.",
    ),
    "well": (
        "I am fine, thanks for asking.",
        "All is well here.",
        "Very well, and my list is tidy.",
    ),
    "human": (
        "No, I am only a machine.",
        "I am a program and no person.",
        "There is no human here.",
    ),
    "else": (
        "I know nothing of that, only {items}s.",
        "That is not what I am for. I keep a list.",
        "Sorry, I only take requests.",
    ),
    "bye": ("Goodbye, come again.", "See you.", "Farewell! Your list is safe with me."),
    "json": (
        "So that a computer understands me.",
        "Programs read what I write.",
        "It is JSON: one line for every request.",
    ),
    "thanks": ("You are very welcome.", "With pleasure.", "No trouble at all."),
    "named": ("Hello {who}, what do you wish?", "Good day, {who}.", "Nice to meet you, {who}."),
    "thanked": (
        "With pleasure, {who}.",
        "You are welcome any time, {who}.",
        "Thank you, too, {who}.",
    ),
}

_FORMS = (
    {
        "book": "do='add' item=item who=who on=day at=time minutes=minutes",
        "move": "do='shift' item=item who=who old=day new=other at=time",
        "cancel": "do='drop' item=item who=who on=day",
        "ask": "do='show' on=day since=time until=end",
        "seek": "do='seek' who=who on=day",
    },
    {
        "book": "task='book' event=item person=who date=day start=time length=minutes",
        "move": "task='change' event=item person=who date=day new_date=other start=time",
        "cancel": "task='remove' event=item person=who date=day",
        "ask": "task='agenda' date=day start=time end=end",
        "seek": "task='search' person=who date=day",
    },
    {
        "book": "intent='new' day=day hour=time what=item guest=who long=minutes",
        "move": "intent='later' was=day will_be=other hour=time what=item guest=who",
        "cancel": "intent='off' day=day what=item guest=who",
        "ask": "intent='read' day=day not_before=time not_after=end",
        "seek": "intent='look' guest=who day=day",
    },
    {
        "book": "request='enter' name=item time=time day=day for=minutes visitor=who",
        "move": "request='postpone' name=item visitor=who day=day to_day=other time=time",
        "cancel": "request='delete' name=item visitor=who day=day",
        "ask": "request='plans' day=day min=time max=end",
        "seek": "request='when' visitor=who day=day",
    },
)
"""None has an action of the bundled conversations; `day` and `time` are keys of theirs, too."""


def _desk(number: int, about: str, *items: str) -> Desk:
    name = items[0]
    replies = {
        kind: said[(number + place) % len(said)].replace("{items}", name).replace("{about}", about)
        for place, (kind, said) in enumerate(_REPLIES.items())
    }
    return Desk(about, items, _FORMS[number % len(_FORMS)], replies, number % 3 != 2)


DESKS = tuple(
    _desk(number, *texts)
    for number, texts in enumerate((
        ("the desk of a music school", "violin lesson", "cello lesson", "choir hour", "concert",
         "drum class", "flute exam"),
        ("an assistant at a hotel", "massage", "guided tour", "boat trip", "wine tasting",
         "sauna hour", "taxi ride"),
        ("a helper of a workshop", "THING repair", "tyre change", "oil change", "engine test",
         "THING delivery", "paint job"),
        ("the planner of a school", "parent talk", "SUBJECT lesson", "SUBJECT test", "class trip",
         "sports day"),
        ("a clinic's assistant", "check-up", "eye test", "blood test", "back treatment", "X-ray",
         "doctor's call"),
        ("the diary of a family", "birthday party", "ANIMAL show", "barbecue", "board game night",
         "visit", "garden day", "ANIMAL walk"),
        ("an office clerk", "meeting", "seminar", "conference", "report", "training",
         "staff talk", "tax review", "THING order"),
        ("the desk of a sports club", "football game", "court hour", "swimming race", "training",
         "judo class", "rowing trip", "match"),
        ("a theatre's box office", "opera", "film screening", "stage tour", "play", "ballet",
         "poetry reading"),
        ("the kitchen planner", "tea party", "FOOD order", "FOOD tasting", "supper", "buffet",
         "snack break"),
    ))
)  # fmt: skip

_SYSTEMS = (
    "You are {me}, {about}. Write down requests as JSON.",
    "{me} is {about} and answers each request with JSON.",
    "You are {me}, {about}. Requests become one line of JSON.",
    "Name: {me}. Work: {about}. Output: JSON.",
)
_LISTS = {"THING": v.THINGS, "ANIMAL": v.ANIMALS, "FOOD": v.FOODS, "SUBJECT": v.SUBJECTS}
_ACTS: dict[str, tuple[str, ...]] = {
    "book": p.BOOK, "move": p.MOVE, "cancel": p.CANCEL, "ask": p.ASK, "seek": p.SEEK,
}  # fmt: skip


def visit(random: Random) -> tuple[str | None, list[tuple[str, str]]]:
    """Return what a desk is told to be, and a few requests or a little talk with their answers."""
    desk = random.choice(DESKS)
    me = v.person(random)
    system = random.choice(_SYSTEMS).format(me=me, about=desk.about)
    said: list[tuple[str, str]] = []
    for _ in range(random.choice((1, 1, 2, 3, 4))):
        said += _talk(random, desk, me) if random.random() < 0.25 else _requests(random, desk, me)
    return system, said


def _talk(random: Random, desk: Desk, me: str) -> list[tuple[str, str]]:
    kind = random.choice((*p.TALK, "else"))
    slots = {
        "me": me,
        "who": v.person(random),
        "city": random.choice(v.CITIES),
        "animal": v.article(random.choice(v.ANIMALS)),
        "food": random.choice(v.FOODS),
        "please": random.choice((".", ", please.", "!")),
    }
    asked = p.said(random.choice(p.TALK[kind]), random)
    return [(_sentence(asked, slots), desk.replies[kind].format(**slots))]


def _requests(random: Random, desk: Desk, me: str) -> list[tuple[str, str]]:
    act = random.choices(tuple(_ACTS), (30, 25, 15, 20, 10))[0]
    slots = _slots(random, desk, me)
    span = random.choice(p.SPANS)
    pattern = random.choice(_ACTS[act])
    said = p.said(pattern, random)
    if act == "ask":
        words = p.said(span, random)
        said = said.replace("{span}", words).replace("{Span}", _capital(words))
    values = {
        slot: value
        for slot, value in slots.items()
        if slot in ("day", "other", "item") or f"{{{slot}}}" in said
    }
    made = [(_sentence(said, slots), _json(desk, act, values))]
    if act == "book" and random.random() < 0.25:
        made.append(_second(random, desk, slots, values))
    return made


def _second(
    random: Random, desk: Desk, slots: dict[str, Any], values: dict[str, Any]
) -> tuple[str, str]:
    """Return a second thought on what was just booked."""
    kinds: tuple[tuple[tuple[str, ...], str, dict[str, Any]], ...] = (
        (p.OTHER_TIME, "move", {"other": slots["day"], "time": slots["end"]}),
        (p.OTHER_DAY, "move", {}),
        (p.TAKE_BACK, "cancel", {}),
    )
    patterns, act, changed = random.choice(kinds)
    message = _sentence(p.said(random.choice(patterns), random), slots)
    return message, _json(desk, act, values | changed)


def _sentence(said: str, slots: dict[str, Any]) -> str:
    """Return what was said with its slots filled in, as sentences are written."""
    text = re.sub(r"(^|[.?!] )([a-z])", lambda found: found[1] + found[2].upper(), said)
    text = text.format(**slots)
    text = _capital(text)
    return text if text[-1] in ".?!" else text + "."


def _slots(random: Random, desk: Desk, me: str) -> dict[str, Any]:
    item = v.compound(random) if random.random() < 0.5 else random.choice(desk.items)
    for name, words in _LISTS.items():
        item = item.replace(name, random.choice(words))
    day, other = random.sample(DAYS, 2)
    time, end = sorted((v.clock(random), v.clock(random)))
    slots = {
        "item": item, "a_item": v.article(item), "who": v.person(random), "me": me,
        "day": day, "on_day": on_day(day), "days": f"{day}'s", "other": other,
        "on_other": on_day(other), "time": time, "end": end,
        "minutes": random.randrange(5, 200, random.choice((5, 5, 1))),
    }  # fmt: skip
    return slots | {
        name: _capital(str(slots[name.lower()])) for name in ("Day", "Days", "On_day", "Item")
    }


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _json(desk: Desk, act: str, values: dict[str, Any]) -> str:
    """Return the JSON of a request; what was not said is null."""
    fields: dict[str, Any] = {}
    for part in desk.form[act].split():
        key, _, slot = part.partition("=")
        value = slot.strip("'") if slot[0] == "'" else values.get(slot)
        small = desk.lower and slot in ("day", "other")
        fields[key] = str(value).lower() if small else value
    return json.dumps(fields, separators=(",", ":"))
