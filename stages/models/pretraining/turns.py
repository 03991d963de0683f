"""Questions and answers as conversations in ChatML."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from stages.models.pretraining import vocabulary as v
from stages.models.pretraining.desks import visit
from stages.models.pretraining.extraction import exchange

Talk = tuple[str | None, list[tuple[str, str]]]
"""The system text, if any, then what is said, question and answer in turn."""


def conversation(random: Random) -> str:
    """Return one conversation, spelled as the chat template of the embedded model spells it."""
    system, said = random.choices(_KINDS, _WEIGHTS)[0](random)
    turns = [("system", system)] if system else []
    for question, answer in said:
        turns += [("user", question), ("assistant", answer)]
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)


def _extraction(random: Random) -> Talk:
    return exchange(random, turns=random.choice((1, 1, 1, 2, 3)))


def _reading(random: Random) -> Talk:
    """Questions about a short text: the answers stand in it."""
    name, other = v.people(random, 2)
    day, clock = random.choice(v.WEEKDAYS), v.clock(random)
    place, thing = random.choice(v.PLACES), random.choice(v.THINGS)
    count = random.randrange(2, 90)
    text = random.choice((
        f"{name} met {other} on {day} at {clock} near the {place} and gave away {count} "
        f"euros and {v.article(thing)}.",
        f"On {day} at {clock}, {other} came to the {place}. {name} had brought {v.article(thing)} "
        f"and waited {count} minutes.",
        f"The {thing} of {name} is at the {place}. {other} will fetch it on {day} at {clock} "
        f"for {count} euros.",
    ))  # fmt: skip
    asked = [
        ("Which day is it?", day), ("At what time?", clock), ("Which place is named?", place),
        ("Which thing is named?", thing), ("Which number is in it?", str(count)),
        ("Who is named first?", name if text.index(name) < text.index(other) else other),
        ("Who is named last?", other if text.index(name) < text.index(other) else name),
        ("Name both people.", " and ".join(sorted((name, other), key=text.index))),
    ]  # fmt: skip
    first, *more = random.sample(asked, random.randrange(1, 5))
    system = "Answer from the text." if random.random() < 0.4 else None
    return system, [(f"{text}\n{first[0]}", first[1]), *more]


def _repeat(random: Random) -> Talk:
    words = [random.choice((v.person, v.clock, v.word, v.word, v.number))(random)
             for _ in range(random.randrange(1, 10))]  # fmt: skip
    text = " ".join(words)
    return None, [random.choice((
        (f"Repeat: {text}", text),
        (f"Say this again: {text}", text),
        (f'Write "{text}" twice.', f"{text} {text}"),
        (f"Put this in quotes: {text}", f'"{text}"'),
        (f"Write as a list: {v.listed(words)}", "\n".join(f"- {word}" for word in words)),
        (f"Write as JSON: {v.listed(words)}", json.dumps(words)),
        (f"In capital letters: {text}", text.upper()),
        (f"In small letters: {text}", text.lower()),
        (f"The last of these: {text}", words[-1]),
        (f"The first of these: {text}", words[0]),
        (f"Backwards: {text}", " ".join(reversed(words))),
        (f"How many words are these? {text}", v.in_words(len(words))),
    ))]  # fmt: skip


def _sums(random: Random) -> Talk:
    one, two = random.randrange(0, 50), random.randrange(0, 50)
    big, small = max(one, two), min(one, two)
    return None, [random.choice((
        (f"What is {one} + {two}?", str(one + two)),
        (f"What is {big} - {small}?", str(big - small)),
        (f"Which is more, {one} or {two}?", str(big)),
        (f"What comes after {one}?", str(one + 1)),
        (f"Write {one} in words.", v.in_words(one)),
        (f"Write {v.in_words(two)} as a number.", str(two)),
    ))]  # fmt: skip


def _calendar(random: Random) -> Talk:
    day = v.day_of(random)
    today, after = (v.WEEKDAYS[(day.weekday() + n) % 7] for n in (0, 1))
    place = random.randrange(12)
    return None, [random.choice((
        (f"Which day comes after {today}?", after),
        (f"Which day comes before {after}?", today),
        (f"Which month comes after {v.MONTHS[place]}?", v.MONTHS[(place + 1) % 12]),
        (f"Write {v.dated(day, 1)} as an ISO date.", day.isoformat()),
        (f"Write {day.isoformat()} in words.", v.dated(day, 3)),
        (f"What year is {v.dated(day, 2)}?", str(day.year)),
    ))]  # fmt: skip


def _about(random: Random) -> Talk:
    name = v.person(random)
    job, animal, thing = random.choice(v.JOBS), random.choice(v.ANIMALS), random.choice(v.THINGS)
    return None, [random.choice((
        (f"Hello, my name is {name}.", f"Hello {name}, how can I help you?"),
        (f"I am {name}. Who are you?", f"Hello {name}. I am a small language model."),
        (f"What is {v.article(animal)}?", f"{v.article(animal).capitalize()} is an animal."),
        (f"Is {v.article(thing)} an animal?", f"No, {v.article(thing)} is a thing."),
        (f"Who works as {v.article(job)}?", f"{v.article(job).capitalize()} does."),
        (f"Write a sentence with {thing} and {animal}.",
         f"The {animal} sat on the {thing} and looked at {name}."),
        (f"Where is {random.choice(v.CITIES)}?", "It is a city. I do not know more about it."),
    ))]  # fmt: skip


_KINDS: tuple[Callable[[Random], Talk], ...] = (
    visit, _extraction, _reading, _repeat, _sums, _calendar, _about
)  # fmt: skip
_WEIGHTS = (42, 26, 10, 12, 3, 3, 4)
