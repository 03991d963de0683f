"""The words of the bundled conversations, and which split may use them.

Titles and days are shared. Names, clock times, durations and pairs of title and day belong to one
split each; those of valid and test are made of letters and digits that train has in plenty.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

T = TypeVar("T")


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text."""
    return tuple(text.split())


DAYS = ("today", "tomorrow", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday",
        "Sunday")  # fmt: skip

ALONE = ("haircut", "dentist visit", "yoga class", "piano lesson", "gym session", "reading group",
         "car service", "vet visit", "swim class", "singing lesson", "job interview",
         "flu shot", "guitar lesson", "dance class", "cooking class", "house viewing",
         "driving lesson", "bike repair", "language class", "film night", "study group",
         "pottery class", "team meeting", "budget review")  # fmt: skip
"""What one does without a named person; all take `a` and `my`."""

TOGETHER = ("lunch", "dinner", "brunch", "coffee", "breakfast", "phone call", "video call",
            "walk", "chess game", "tennis match", "project meeting", "planning session",
            "rehearsal", "picnic", "museum trip", "bike ride")  # fmt: skip
"""What one does with somebody."""

_HOURS = {"breakfast": ("07:00", "10:00"), "brunch": ("10:00", "13:00"),
          "lunch": ("11:00", "14:30"), "dinner": ("17:00", "20:55")}  # fmt: skip

WITHOUT_ARTICLE = ("lunch", "dinner", "brunch", "coffee", "breakfast")

GIVEN_NAMES = words(
    """
Aaron Abigail Agnes Alan Albert Aldo Alex Alfred Alma Amelia Amos Amy Andrew Angela Anita Ann
April Arthur Audrey Barbara Basil Beatrice Bernard Bertha Beth Blanche Boris Brian Bridget Bruce
Carl Caroline Cecil Celia Charles Charlotte Chloe Chris Cyril Daisy Darius David Deborah Denis
Diana Dominic Donald Doris Dorothy Douglas Duncan Edith Edmund Edward Edwin Eleanor Eli Elizabeth
Ella Ellen Elliot Elmer Elsa Emil Emily Eric Ernest Esther Ethan Eugene Evan Evelyn Ezra Faith
Fatima Fay Ferdinand Florence Frances Francis Fred Gabriel Gail Gavin Gerald Gilbert Gloria Gordon
Gregory Harold Harriet Harry Hazel Heidi Herbert Hilda Holly Homer Hope Howard Ian Igor Irene
Isaac Isabel Jacob James Jane Janet Jason Jean Jennifer Jeremy Jerome Jessica Joan John Joseph
Joshua Joyce Juan Judith June Karl Keith Kenneth Kevin Kim Lars Leah Leonard Leopold Lewis Liam
Lily Linda Lisa Lloyd Louis Louise Lucy Luis Luke Lydia Mabel Magnus Marcus Margaret Marian Mark
Martha Mary Matthew Maud Max Melvin Michael Mildred Miles Millicent Minnie Miriam Molly Morris
Moses Naomi Nathan Neil Nicholas Noah Norman Otto Pamela Patrick Paul Pearl Percy Philip Phoebe
Rachel Ralph Raymond Rebecca Richard Robin Roger Roland Ronald Rose Roy Rufus Rupert Sarah Scott
Seth Sheila Sidney Sonia Stanley Stephen Susan Sven Sylvia Teresa Thomas Timothy Toby Tracy Ulrich
Una Ursula Vincent Violet Virginia Vivian Warren Wilfred William Winifred Yasmin Yvonne
"""
)
"""Given names; some of them belong to valid or test."""

_MORE_NAMES = words(
    """
Abel Ada Adele Adrian Agatha Aisha Alba Alec Alessia Alfie Ali Alina Alison Alvin Amanda Amara
Amina Anders Andrea Anton Antonia Ariel Arnold Astrid Aubrey Ava Avery Axel Ayesha Barry Bart
Beatriz Becky Benedict Benjamin Bernadette Bill Bjorn Blake Bob Brenda Bryan Caleb Camilla Carlos
Carmen Cassandra Catherine Chiara Christian Claire Claude Claudia Clement Clive Connor Cora
Cornelius Craig Curtis Cynthia Damian Danielle Darren Dean Denise Derek Desmond Dylan Eddie
Edgardo Eileen Elias Elise Eliza Ellis Elton Emanuel Enrico Enzo Erica Erin Estelle Eugenia Fabian
Felicity Fergus Finn Flavia Floyd Francesca Franz Freda Frederick Gareth Gemma Geoffrey Georgia
Giles Giulia Gladys Glenn Graham Greg Gwen Haley Hamish Hans Harvey Hassan Heather Heinrich
Henrietta Hilary Hugh Ibrahim Imogen Ingrid Irma Isla Ismael Ivy Jade Jaime Jasmine Jasper Javier
Jenny Jill Jim Joanna Jordan Jorge Josephine Josh Justin Kai Kamal Karim Karin Kasper Katya Kelly
Kent Kirsten Klara Klaus Knut Kurt Kyle Lance Lara Larry Lauren Laurence Leila Leon Leroy Leslie
Lionel Lorenzo Lorna Lorraine Lucia Ludwig Lukas Lynn Madeleine Maggie Malcolm Malik Mandy Manuel
Marcel Margot Mario Marion Marius Marlene Marvin Mateo Maureen Maurice Maya Megan Mehmet Mercy Mia
Miguel Mikael Mila Milo Mira Mohammed Monica Muriel Myra Nancy Natalie Ned Nicole Nigel Noel Noor
Octavia Odette Olaf Olive Olivia Orlando Pablo Pascal Pat Patricia Pedro Penelope Philippa Pierre
Polly Quincy Rafael Raj Ramona Randolph Rashid Raul Regina Reuben Rhoda Ricardo Rodney Rosalind
Ross Rowan Ruby Russell Sabrina Salma Samantha Samir Sandra Sasha Saskia Sean Sebastian Selma
Serena Shannon Sharon Shirley Sigrid Silvia Spencer Stefan Stuart Sunil Suzanne Tabitha Tamara
Tanya Tariq Ted Terence Thelma Thora Tilda Tobias Todd Tony Travis Trevor Tristan Ulrike Valerie
Vanya Verena Veronica Vikram Wallace Wayne Wesley Wilma Xenia Yannick Yolanda Yuri Zach Zelda Zita
"""
)
"""Given names that the generated text of pretraining takes beginnings and endings of alone."""

_NAMES = {
    "train": ("Anna", "Ben", "Carla", "Daniel", "Emma", "Felix", "Grace", "Hugo", "Ines", "Jack",
              "Karen", "Leo", "Maria", "Nora", "Oscar", "Paula", "Quentin", "Rosa", "Simon",
              "Tina", "Uma", "Victor", "Wanda", "Xavier", "Yusuf", "Zoe", "Alice", "Bruno",
              "Clara", "Diego", "Elena", "Frank", "Gina", "Henry", "Iris", "Jonas", "Kate",
              "Lucas", "Mona", "Nils", "Olga", "Peter", "Ruth", "Sam", "Theo", "Vera", "Walter",
              "Yara", "Adam", "Bella", "Colin", "Dora", "Erik", "Fiona", "George", "Hannah",
              "Ivan", "Julia", "Kofi", "Laura", "Martin", "Nadia", "Omar", "Priya", "Robert",
              "Sofia", "Tomas", "Viola", "Wendy", "Zara"),
    "valid": ("Albert", "Carol", "Dina", "Eva", "Gustav", "Helena", "Jan", "Kira", "Lina",
              "Marco", "Nina", "Oliver", "Petra", "Ronan", "Stella", "Tom"),
    "test": ("Arno", "Bea", "Conrad", "Dana", "Edgar", "Flora", "Greta", "Hector", "Ida",
             "Joel", "Lena", "Marta", "Nelson", "Rita", "Silas", "Vanessa"),
}  # fmt: skip

HELD_OUT_NAMES = frozenset(_NAMES["valid"] + _NAMES["test"])
_HELD_OUT_MINUTES = {"valid": (20, 55, 85, 100), "test": (40, 75, 110, 115)}


@cache
def names(split: str) -> tuple[str, ...]:
    """Return the people of a split: in train so many that none of them is worth remembering."""
    if split != "train":
        return _NAMES[split]
    every = (*_NAMES["train"], *GIVEN_NAMES, *_MORE_NAMES)
    return tuple(name for name in dict.fromkeys(every) if name not in HELD_OUT_NAMES)


def on_day(day: str) -> str:
    """Return `on Friday`, but `today` and `tomorrow` as they are."""
    return day if day in DAYS[:2] else f"on {day}"


def durations(split: str) -> tuple[int, ...]:
    """Return the lengths of a split, in minutes."""
    if split != "train":
        return _HELD_OUT_MINUTES[split]
    held_out = {minutes for part in _HELD_OUT_MINUTES.values() for minutes in part}
    return tuple(minutes for minutes in range(5, 155, 5) if minutes not in held_out)


@cache
def times(split: str, title: str) -> tuple[str, ...]:
    """Return the clock times of a split at which one does `title`.

    Every five minutes from 07:00 to 20:55 are dealt out to the splits.
    """
    every = [f"{hour:02}:{minute:02}" for hour in range(7, 21) for minute in range(0, 60, 5)]
    first, last = _HOURS.get(title, ("07:00", "20:55"))
    return tuple(time for time in _dealt(every, "times", split) if first <= time <= last)


@cache
def pairs(split: str, titles: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Return (title, day) of a split: each title has some days in every split."""
    return tuple((title, day) for title in titles for day in _dealt(DAYS, title, split))


def _dealt(items: Sequence[T], purpose: str, split: str) -> list[T]:
    """Return the share of `items` that belongs to `split`, in an order that has no pattern."""
    order = shuffled(items, purpose)
    size = round(len(order) / 5)
    cuts = {"valid": (0, size), "test": (size, 2 * size), "train": (2 * size, len(order))}
    return order[slice(*cuts[split])]


def shuffled(items: Sequence[T], *purpose: object) -> list[T]:
    """Return `items` in an order that depends on `purpose` alone, on every machine."""
    keyed = [(_digest(*purpose, index), item) for index, item in enumerate(items)]
    return [item for _, item in sorted(keyed, key=lambda pair: pair[0])]


def pick(items: Sequence[T], *purpose: object) -> T:
    """Return one of `items`, decided by `purpose` alone."""
    return items[int(_digest(*purpose), 16) % len(items)]


def _digest(*purpose: object) -> str:
    return hashlib.sha256(repr(purpose).encode()).hexdigest()
