"""Plain modern English: short paragraphs about people, days, prices and lists."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from stages.models.pretraining import vocabulary as v


def paragraph(random: Random) -> str:
    """Return one paragraph, list or table of plain text."""
    return random.choice(_KINDS)(random)


def _morning(random: Random) -> str:
    name, other = v.people(random, 2)
    start, end = sorted((v.clock(random), v.clock(random)))
    job, place, colour = random.choice(v.JOBS), random.choice(v.PLACES), random.choice(v.COLOURS)
    parts = [
        f"{name} is {v.article(job)} and works near the {place}.",
        f"On {random.choice(v.WEEKDAYS)} {name} gets up at {start} and drinks a cup of "
        f"{random.choice(('tea', 'coffee', 'milk', 'water'))}.",
        f"At {end} the {colour} bus comes, and {name} goes to the {place}.",
        f"{other} is already there with {v.article(random.choice(v.THINGS))}.",
        f'"Good morning, {other}," says {name}. "Did you sleep well?"',
        f'"Yes, thank you, {name}," says {other}.',
        f"They talk about the {random.choice(v.WEATHER)} and then go to work.",
        f"In the evening {name} cooks {random.choice(v.FOODS)} with {random.choice(v.FOODS)}.",
        f"{name} goes to bed at {v.clock(random)}.",
    ]
    kept = [part for part in parts if random.random() < 0.75] or parts
    return " ".join(kept)


def _story(random: Random) -> str:
    name, other = v.people(random, 2)
    animal, thing = random.choice(v.ANIMALS), random.choice(v.THINGS)
    first, second = random.sample(v.ADJECTIVES, 2)
    place, food = random.choice(v.PLACES), random.choice(v.FOODS)
    return " ".join((
        f"There was once {v.article(first)} {animal} that lived behind the {place}.",
        f"Every day the {animal} looked for {food}.",
        f"One day a child called {name} came by with {v.article(second)} {thing}.",
        f'"What do you have there?" asked the {animal}.',
        f'"This is my {thing}," said {name}. "It is {second}, and it belongs to {other}."',
        random.choice((
            f"The {animal} wanted the {thing}, but {name} gave it some {food} instead.",
            f"The {animal} took the {thing} and ran away, and {name} had to tell {other}.",
            f"{name} let the {animal} hold the {thing}, and they became friends.",
        )),
        random.choice((
            f"From that day on the {animal} was not {first} any more.",
            f"{other} laughed when {name} told the story.",
            f"And if the {animal} has not gone away, it still lives behind the {place}.",
        )),
    ))  # fmt: skip


def _shopping(random: Random) -> str:
    items = random.sample(v.FOODS, random.randrange(3, 7))
    counts = [random.randrange(1, 13) for _ in items]
    title = random.choice(("Shopping list", "To buy", "We need", f"List for {v.person(random)}"))
    mark = random.choice(("- ", "* ", ""))
    if random.random() < 0.3:
        lines = [f"{n}. {item}" for n, item in enumerate(items, start=1)]
    else:
        lines = [f"{mark}{count} {item}" for count, item in zip(counts, items, strict=True)]
    return "\n".join([f"{title}:", *lines, f"That makes {len(items)} things."])


def _prices(random: Random) -> str:
    first, second = random.sample(v.THINGS, 2)
    one, two = random.randrange(1, 60), random.randrange(1, 60)
    more = first if one > two else second if two > one else "neither"
    name = v.person(random)
    return (
        f"The {first} costs {one} euros and the {second} costs {two} euros. "
        f"Together they cost {one + two} euros. "
        + (f"The {more} costs more. " if more != "neither" else "They cost the same. ")
        + f"{name} pays with {one + two + 10} euros and gets 10 euros back."
    )


def _date(random: Random) -> str:
    day = v.day_of(random)
    name, what = v.person(random), random.choice(("wedding", "birthday", "exam", "concert", "trip"))
    spelled = v.dated(day, random.randrange(4))
    weekday = v.WEEKDAYS[day.weekday()]
    return random.choice((
        f"The {what} of {name} was on {spelled}, a {weekday}.",
        f"{spelled[0].upper()}{spelled[1:]} was a {weekday}. In that year {name} moved to "
        f"{random.choice(v.CITIES)}.",
        f"Date: {day.isoformat()}\nDay: {weekday}\nEvent: {what}\nGuest: {name}",
    ))  # fmt: skip


def _count(random: Random) -> str:
    start, step = random.randrange(0, 300), random.choice((1, 1, 1, 2, 5, 10))
    numbers = range(start, start + step * random.randrange(5, 12), step)
    if random.random() < 0.5:
        return ", ".join(map(str, numbers)) + "."
    return "\n".join(f"{number} {v.in_words(number)}" for number in numbers if number < 1000)


def _table(random: Random) -> str:
    names = v.people(random, random.randrange(2, 6))
    rows = [(name, random.choice(v.CITIES), random.randrange(18, 80)) for name in names]
    oldest = max(rows, key=lambda row: row[2])
    lines = [f"| {name} | {city} | {age} |" for name, city, age in rows]
    said = " ".join(f"{name} is {age} years old and lives in {city}." for name, city, age in rows)
    return "\n".join(("| name | city | age |", "|---|---|---|", *lines, said,
                      f"The oldest is {oldest[0]}."))  # fmt: skip


def _letter(random: Random) -> str:
    name, other = v.people(random, 2)
    day, clock = random.choice(v.WEEKDAYS), v.clock(random)
    return (
        f"Dear {name},\n\nthank you for the {random.choice(v.ADJECTIVES)} "
        f"{random.choice(v.THINGS)}. We are in {random.choice(v.CITIES)} now, and we have "
        f"{random.choice(v.WEATHER)} every day. Our train comes back on {day} at {clock}. "
        f"Can you meet us at the station on {day}?\n\nYours,\n{other}"
    )


def _week(random: Random) -> str:
    name = v.person(random)
    days = random.sample(v.WEEKDAYS, random.randrange(2, 5))
    lines = [f"{day} {v.clock(random)} {random.choice(v.SUBJECTS)}" for day in days]
    return "\n".join((f"Lessons of {name}:", *lines,
                      f"{name} has lessons on {v.listed(list(days))}."))  # fmt: skip


def recall(random: Random) -> str:
    """Return things in no order that makes sense, then the same once more, or several times.

    What comes next can only be copied: this is what teaches a small model to (induction heads,
    Olsson et al. 2022, arXiv 2209.11895).
    """
    draws = (v.person, v.person, v.clock, v.word, v.word, v.number)
    items = [random.choice(draws)(random) for _ in range(random.randrange(4, 26))]
    between = random.choice((" ", " ", ", ", "\n", " and "))
    first, again = random.choice((
        ("", ""), ("", ""), ("First: ", "Again: "), ("List: ", "The same list: "),
        ("Said: ", "Repeated: "), ('"', '"'),
    ))  # fmt: skip
    said = between.join(items)
    lines = [first + said, *[again + said] * random.randrange(1, 4)]
    return random.choice(("\n", "\n", "\n\n")).join(lines)


_KINDS: tuple[Callable[[Random], str], ...] = (
    _morning, _morning, _story, _story, _shopping, _prices, _date, _count, _table, _letter, _week,
)  # fmt: skip
