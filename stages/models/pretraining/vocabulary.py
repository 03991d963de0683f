"""The words of the generated text, and how values are drawn: all from one seeded generator."""

from __future__ import annotations

import calendar
from datetime import date, timedelta
from random import Random

from stages.data.samples.vocabulary import DAYS as SAMPLE_DAYS
from stages.data.samples.vocabulary import GIVEN_NAMES, HELD_OUT_NAMES, names, words

_FIRST = words(
    """
B Br C Ch D Dr F G Gr H J K Kl L M N P Pr R S Sh St T Th Tr V W Z
"""
)
_MIDDLE = words(
    """
a e i o u ai ea io ou
"""
)
_NEXT = words(
    """
b d f g l ll m n nd r rn s t v x z
"""
)
_LAST = words(
    """
a an e el en er ia in is o on or us y
"""
)
CITIES = words(
    """
Amsterdam Athens Baltimore Berlin Bombay Boston Bristol Brussels Budapest Cairo Chicago Cologne
Copenhagen Dallas Delhi Dover Dublin Edinburgh Florence Geneva Glasgow Hamburg Havana Helsinki
Istanbul Kyoto Leeds Lima Lisbon Liverpool London Lyon Madrid Manchester Melbourne Milan
Montreal Munich Nairobi Naples Oslo Oxford Paris Prague Quebec Riga Rome Rotterdam Seattle
Seville Stockholm Sydney Tokyo Toronto Venice Vienna Warsaw York Zurich
"""
)
FOODS = words(
    """
apples bananas beans beef biscuits bread butter cabbage cake carrots cheese cherries chicken
chocolate coffee cucumbers eggs fish flour grapes ham honey jam lemons lettuce milk mushrooms
noodles nuts oats oil olives onions oranges pasta peaches pears peas pepper plums potatoes rice
salad salt sausages soup spinach sugar tea tomatoes yogurt
"""
)
THINGS = words(
    """
backpack ball basket bell blanket book bottle bowl box broom brush bucket camera candle carpet
chair clock coat cup curtain desk drum fan flag flute fork glove hammer hat helmet jacket jar
kettle key kite knife ladder lamp laptop letter map mirror mug needle notebook oven pan pen
pencil phone piano picture pillow plate purse radio ring rope saw scarf shelf shirt shoe shovel
soap sofa spoon stamp stool suitcase table tent ticket toaster towel toy tray umbrella vase
violin wallet watch wheel whistle window
"""
)
ANIMALS = words(
    """
badger bat bear beaver bee bird camel cat cow crab crow deer dog dolphin donkey dove duck eagle
elephant fish fly fox frog goat goose hare hawk hen horse kitten lamb lion lizard mole monkey
moth mouse otter owl ox parrot pig pony rabbit rat raven rooster seal shark sheep snail snake
spider squirrel swan tiger toad turtle whale wolf worm
"""
)
COLOURS = words(
    """
black blue brown cream gold green grey orange pink purple red silver white yellow
"""
)
PLACES = words(
    """
airport bakery bank barn beach bridge café castle church cinema clinic farm forest garage garden
gym harbour hospital hotel kitchen lake library market museum office park playground pool
restaurant river school shop stadium station street theatre tower town valley village zoo
"""
)
JOBS = words(
    """
baker builder butcher carpenter clerk cook dentist doctor driver farmer fisherman gardener guard
judge lawyer librarian mechanic musician nurse painter pilot plumber postman sailor shopkeeper
singer soldier tailor teacher waiter writer
"""
)
ADJECTIVES = words(
    """
bright broken careful cheap clean clever cold cosy dark dirty dry early easy empty fast fresh
friendly full gentle happy heavy honest hot huge hungry kind large late lazy light little lonely
long loud lucky narrow neat new noisy old patient plain polite poor pretty proud quick quiet
rich round sad safe sharp short shy silly simple slow small soft strong sweet tall thick thin
tidy tiny tired warm weak wet wide wild wise young
"""
)
_AFFAIRS = words(
    """
booking class club course day delivery dinner exam fair game hour interview lesson match meeting
night order party practice race repair review ride round sale service session show swap talk test
tour trip viewing visit walk workshop
"""
)
WEATHER = ("rain", "snow", "sunshine", "fog", "wind", "storms", "clouds", "frost", "hail")
SUBJECTS = ("history", "music", "physics", "drawing", "spelling", "geography", "chemistry",
            "reading", "biology", "grammar", "mathematics")  # fmt: skip
WEEKDAYS = SAMPLE_DAYS[2:]
MONTHS = tuple(calendar.month_name[1:])
NAMES = tuple(name for name in GIVEN_NAMES if name not in HELD_OUT_NAMES)
"""Given names; none that the bundled validation or test rows ask about."""

_BEGINNINGS, _ENDINGS = (
    tuple(sorted({name[cut] for name in names("train") for cut in cuts if len(name) > 4}))
    for cuts in ([slice(n) for n in (1, 2, 3, 4)], [slice(-n, None) for n in (1, 2, 3, 4)])
)

_ONES = words(
    """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen
"""
)
_TENS = words(
    """
twenty thirty forty fifty sixty seventy eighty ninety
"""
)


def person(random: Random) -> str:
    """Return a name, seven times in ten one that is made up, so that it must be copied."""
    kind = random.random()
    if kind < 0.3:
        return random.choice(NAMES)
    while True:
        made = _spliced(random) if kind < 0.9 else _syllables(random)
        if made not in HELD_OUT_NAMES:
            return made


def _spliced(random: Random) -> str:
    """Return how one name begins and another ends, every beginning and ending as often as another.

    So that each of the letter groups that a name may be made of has been copied many times.
    """
    return random.choice(_BEGINNINGS) + random.choice(_ENDINGS)


def _syllables(random: Random) -> str:
    middle = random.choice(_MIDDLE) + random.choice(_NEXT) if random.random() < 0.6 else ""
    last = random.choice(_LAST)
    vowel = "" if middle or last[0] not in "aeiouy" else random.choice(_MIDDLE)
    return (
        random.choice(_FIRST) + middle + (f"{vowel}{random.choice(_NEXT)}" if vowel else "") + last
    )


def people(random: Random, count: int) -> list[str]:
    """Return `count` different names."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[person(random)] = None
    return list(found)


def clock(random: Random) -> str:
    """Return a clock time, `08:35`: mostly at a multiple of five minutes."""
    minute = random.randrange(0, 60, 5) if random.random() < 0.8 else random.randrange(60)
    return f"{random.randrange(24):02}:{minute:02}"


def word(random: Random) -> str:
    """Return any of the words."""
    kinds = (THINGS, ANIMALS, FOODS, PLACES, COLOURS, ADJECTIVES, WEEKDAYS, CITIES)
    return random.choice(random.choice(kinds))


def compound(random: Random) -> str:
    """Return two words that hardly any list holds together."""
    first = (THINGS, ANIMALS, FOODS, PLACES, COLOURS, ADJECTIVES, JOBS)
    return f"{random.choice(random.choice(first))} {random.choice(_AFFAIRS)}"


def number(random: Random) -> str:
    """Return a number of up to four digits."""
    return str(random.randrange(10 ** random.randrange(1, 5)))


def day_of(random: Random) -> date:
    """Return a day of the years 1950 to 2030."""
    return date(1950, 1, 1) + timedelta(days=random.randrange(81 * 365))


def ordinal(number: int) -> str:
    """Return `1st`, `2nd`, `11th`, …"""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if 10 < number % 100 < 14 else ending}"


def dated(day: date, style: int) -> str:
    """Return a day in one of four spellings."""
    month = MONTHS[day.month - 1]
    return (
        day.isoformat(),
        f"{day.day} {month} {day.year}",
        f"{month} {day.day}, {day.year}",
        f"the {ordinal(day.day)} of {month} {day.year}",
    )[style % 4]


def in_words(number: int) -> str:
    """Return a whole number below a thousand in words."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")
    hundreds, rest = divmod(number, 100)
    return f"{_ONES[hundreds]} hundred" + (f" and {in_words(rest)}" if rest else "")


def listed(items: list[str]) -> str:
    """Return `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def article(noun: str) -> str:
    """Return the noun with `a` or `an`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
