"""Sentences and what they say as JSON: values are copied, keys are the ones asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from stages.models.pretraining import vocabulary as v


@dataclass(frozen=True, slots=True)
class Domain:
    """One kind of message: how it is said, and what a program wants to know of it."""

    about: str
    """What the system text calls it."""
    templates: tuple[str, ...]
    """With the slots as `{slot}`."""
    slots: dict[str, Callable[[Random], Any]]
    """How the value of each slot is drawn."""
    names: dict[str, tuple[str, ...]]
    """What the key of a slot may be called."""


def _of(items: Any) -> Callable[[Random], Any]:
    return lambda random: random.choice(items)


def _between(low: int, high: int, step: int = 1) -> Callable[[Random], int]:
    return lambda random: random.randrange(low, high, step)


def _thing(random: Random) -> str:
    if random.random() < 0.5:
        return str(random.choice(v.THINGS))
    return f"{random.choice(v.ADJECTIVES + v.COLOURS)} {random.choice(v.THINGS)}"


DOMAINS = (
    Domain(
        "orders of a shop",
        ("I would like {count} of the {thing}, please send it to {name} in {city}.",
         "{name} orders {count} times the {thing}. Ship to {city}.",
         "Order for {name}, {city}: {thing}, {count} pieces.",
         "Can you send {name} the {thing}? {count}, to {city}.",
         "Hello, this is {name} from {city}. I want to buy {count} of your {thing}.",
         "{count} x {thing} for {name}, address in {city}.",
         "Please deliver {count} pieces of the {thing} to {city}. My name is {name}."),
        {"count": _between(1, 60), "thing": _thing, "name": v.person, "city": _of(v.CITIES)},
        {"count": ("count", "quantity", "pieces"), "thing": ("item", "product", "article"),
         "name": ("customer", "buyer", "name"), "city": ("city", "to", "place")},
    ),
    Domain(
        "trains",
        ("A train from {start} to {end} {day} at {time}.",
         "I have to be in {end} {day}. Does a train leave {start} at {time}?",
         "From {start} to {end}, leaving at {time} {day}.",
         "One ticket to {end}, please. I leave {start} {day} at {time}.",
         "{day} at {time} I travel from {start} to {end}.",
         "Is there a seat to {end} {day}? I start in {start} at {time}."),
        {"start": _of(v.CITIES), "end": _of(v.CITIES), "time": v.clock, "day": _of(v.WEEKDAYS)},
        {"start": ("from", "start", "origin"), "end": ("to", "destination", "goal"),
         "time": ("time", "departure", "leaves"), "day": ("day", "weekday", "travel_day")},
    ),
    Domain(
        "tables of a restaurant",
        ("A table for {count} people on {day} at {time}, the name is {name}.",
         "{name} here. We are {count} and come on {day} at {time}.",
         "Could we eat at your place on {day}? {time}, {count} people, {name}.",
         "{count} guests, {day}, {time}. It is for {name}.",
         "Do you have room for {count} at {time} on {day}? I am {name}.",
         "Table on {day} for {name}: {time}, {count} guests."),
        {"count": _between(1, 15), "day": _of(v.WEEKDAYS), "time": v.clock, "name": v.person},
        {"count": ("guests", "people", "seats"), "day": ("day", "date", "weekday"),
         "time": ("time", "hour", "at"), "name": ("name", "guest", "host")},
    ),
    Domain(
        "contacts",
        ("{name} lives in {city} and works as a {job}. Call {phone}.",
         "The number of {name} is {phone}. {name} is a {job} in {city}.",
         "Add {name}, {job}, {city}, phone {phone}.",
         "In {city} I met a {job} called {name}; the phone number is {phone}.",
         "{phone} is the phone of {name}, the {job} from {city}."),
        {"name": v.person, "city": _of(v.CITIES), "job": _of(v.JOBS),
         "phone": lambda random: " ".join(f"{random.randrange(1000):03}" for _ in range(2))},
        {"name": ("name", "person", "contact"), "city": ("city", "town", "home"),
         "job": ("job", "profession", "work"), "phone": ("phone", "number", "telephone")},
    ),
    Domain(
        "the weather",
        ("In {city} there will be {weather} and {degrees} degrees {day}.",
         "{day} brings {weather} to {city}, {degrees} degrees.",
         "{degrees} degrees and {weather}: that is {city} {day}.",
         "Expect {weather} in {city} {day} with {degrees} degrees.",
         "They say {city} gets {weather} {day}, about {degrees} degrees."),
        {"city": _of(v.CITIES), "weather": _of(v.WEATHER), "degrees": _between(0, 40),
         "day": _of(("today", "tomorrow", *v.WEEKDAYS))},
        {"city": ("city", "place", "where"), "weather": ("weather", "sky", "what"),
         "degrees": ("degrees", "temperature", "celsius"), "day": ("day", "when", "date")},
    ),
    Domain(
        "things that were lost",
        ("{name} lost the {thing} at the {place}.",
         "Somebody found the {thing} in the {place}. It belongs to {name}.",
         "The {thing} was left at the {place}; ask {name}.",
         "I am {name} and I miss my {thing}. I think it is at the {place}.",
         "At the {place} lies the {thing} of {name}."),
        {"name": v.person, "thing": _thing, "place": _of(v.PLACES)},
        {"name": ("owner", "name", "who"), "thing": ("thing", "object", "lost"),
         "place": ("place", "where", "location")},
    ),
    Domain(
        "recipes",
        ("Take {one} grams of {first} and {two} grams of {second}, then wait {minutes} minutes.",
         "{minutes} minutes, {one} grams of {first}, {two} grams of {second}.",
         "Mix {first} ({one} grams) with {second} ({two} grams) and cook it for {minutes} minutes.",
         "You need {first} and {second}: {one} and {two} grams. It takes {minutes} minutes."),
        {"one": _between(5, 900, 5), "two": _between(5, 900, 5), "minutes": _between(1, 120),
         "first": _of(v.FOODS), "second": _of(v.FOODS)},
        {"first": ("first", "a", "base"), "one": ("first_grams", "a_grams", "base_grams"),
         "second": ("second", "b", "extra"), "two": ("second_grams", "b_grams", "extra_grams"),
         "minutes": ("minutes", "time", "wait")},
    ),
    Domain(
        "a school",
        ("{name} teaches {subject} on {day} from {start} to {end}.",
         "On {day} there is {subject} with {name}, {start} to {end}.",
         "{subject} with {name} starts at {start} and ends at {end} on {day}.",
         "The lesson of {name} is on {day}: {subject}, from {start} until {end}.",
         "From {start} until {end} on {day}, {name} gives {subject}."),
        {"name": v.person, "subject": _of(v.SUBJECTS), "day": _of(v.WEEKDAYS),
         "start": v.clock, "end": v.clock},
        {"name": ("teacher", "name", "by"), "subject": ("subject", "lesson", "class"),
         "day": ("day", "weekday", "on"), "start": ("start", "from", "begins"),
         "end": ("end", "until", "ends")},
    ),
)  # fmt: skip

_SYSTEMS = (
    "Read messages about {about}. Answer with JSON: {keys}.",
    "Answer with one line of JSON. Keys: {keys}.",
    "You note {about} as JSON with the keys {keys}.",
    "Turn the message into JSON ({keys}).",
    "You are {name}. You read {about} and write JSON with {keys}.",
)


def exchange(random: Random, turns: int = 1) -> tuple[str, list[tuple[str, str]]]:
    """Return a system text and `turns` messages, each with its JSON.

    Keys keep one order; those that a message does not speak of are null.
    """
    domain = random.choice(DOMAINS)
    used = random.sample(sorted(domain.slots), random.randrange(2, len(domain.slots) + 1))
    keys = {slot: random.choice(domain.names[slot]) for slot in used}
    constant = {"type": random.choice(("note", "new", "entry"))} if random.random() < 0.3 else {}
    separators = random.choice(((",", ":"), (",", ":"), (", ", ": ")))
    lower = random.random() < 0.5
    spoken = random.random() < 0.2
    system = random.choice(_SYSTEMS).format(
        about=domain.about, keys=v.listed([*constant, *keys.values()]), name=v.person(random)
    )
    said = []
    for _ in range(turns):
        values = {slot: draw(random) for slot, draw in domain.slots.items()}
        message = random.choice(domain.templates).format(**values)
        if lower and "day" in values:
            values["day"] = values["day"].lower()
        if spoken:
            # As a device that listens writes it down: no capitals, no full stops.
            message = message.lower().replace(".", "").replace(",", "")
            values = {slot: value.lower() if isinstance(value, str) else value
                      for slot, value in values.items()}  # fmt: skip
        if random.random() < 0.15:
            message = random.choice((f"Hello! {message}", f"{message} Thank you.",
                                     f"Please note: {message}"))  # fmt: skip
        answer: dict[str, Any] = constant | {key: values[slot] for slot, key in keys.items()}
        if random.random() < 0.15:
            # A part of the message alone: what it does not say is null.
            slot = random.choice(used)
            message = f"Only the {slot}: {values[slot]}."
            answer = constant | {key: values[slot] if s == slot else None
                                 for s, key in keys.items()}  # fmt: skip
        said.append((message, json.dumps(answer, separators=separators)))
    return system, said
