"""Write the texts that the embedded model is pretrained on: train, and what is held out.

    python -m stages.models.pretraining.corpus --books BOOKS --fairytales TALES --out corpus

BOOKS holds `*.jsonl.gz` with `title` and `text` (mlschmitt/classic-books-markdown), TALES
`train.jsonl.gz` and `test.jsonl.gz` with `text` (uci-soe/FairytaleQAData).
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from stages.models.pretraining.generated import texts

HELD_OUT = (
    "The Monkey's Paw",
    "The Bet",
    "The Canterville Ghost",
    "The Body Snatcher",
    "A Kidnapped Santa Claus",
    "With the Night Mail",
    "The Adventure of the Speckled Band",
    "The Legend of Sleepy Hollow",
    "Alice's Adventures in Wonderland",
    "The Scarlet Plague",
)
"""Whole books that are never trained on: ten authors, 0.6 MB."""
WORDS_ALIKE = 13
"""A paragraph that shares so many words in a row with what is held out is not trained on, either
(the measure of Brown et al. 2020, arXiv 2005.14165, appendix C)."""

_WORD = re.compile(r"\w+")


def read(files: Iterable[Path]) -> Iterator[dict[str, str]]:
    """Yield the rows of gzipped JSON lines."""
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def runs_of_words(text: str) -> set[int]:
    """Return every run of WORDS_ALIKE words in a text, as hashes that hold for this process."""
    words = _WORD.findall(text.lower())
    return {hash(tuple(words[n : n + WORDS_ALIKE])) for n in range(len(words) - WORDS_ALIKE + 1)}


def without(text: str, held_out: set[int]) -> str:
    """Return a text less the paragraphs that share a run of words with what is held out."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(part for part in paragraphs if runs_of_words(part).isdisjoint(held_out))


def write(file: Path, rows: Iterable[str]) -> None:
    """Write texts as rows, and say how many characters they have."""
    file.parent.mkdir(parents=True, exist_ok=True)
    size = count = 0
    with file.open("w", encoding="utf-8") as lines:
        for text in rows:
            if text.strip():
                lines.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                size, count = size + len(text), count + 1
    sys.stdout.write(f"{file}: {count:,} texts, {size:,} characters\n")


def main() -> None:
    """Write three folders of texts, each with its splits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in ("books", "fairytales", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    books = list(read(sorted(given.books.glob("*.jsonl.gz"))))
    if missing := set(HELD_OUT) - {book["title"] for book in books}:
        parser.error(f"--books: {given.books} lacks {', '.join(sorted(missing))}")
    valid = [book["text"] for book in books if book["title"] in HELD_OUT]
    test = [row["text"] for row in read([given.fairytales / "test.jsonl.gz"])]
    held_out = set().union(*map(runs_of_words, (*valid, *test)))
    train = (book["text"] for book in books if book["title"] not in HELD_OUT)
    tales = (row["text"] for row in read([given.fairytales / "train.jsonl.gz"]))
    write(given.out / "books" / "train.jsonl", (without(text, held_out) for text in train))
    write(given.out / "books" / "valid.jsonl", valid)
    write(given.out / "fairytales" / "train.jsonl", (without(text, held_out) for text in tales))
    write(given.out / "fairytales" / "test.jsonl", test)
    write(given.out / "generated" / "train.jsonl", texts())


if __name__ == "__main__":
    main()
