"""The corpus command: what is held out is not trained on, not even where it is told again."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

from stages.models.pretraining.corpus import HELD_OUT, runs_of_words, without

STORY = "a fox and a crow went out to look for a piece of cheese in the snow"


def test_a_paragraph_that_shares_thirteen_words_in_a_row_goes() -> None:
    held_out = runs_of_words(f"Once upon a time {STORY}, it is said.")
    text = f"Kept.\n\n{STORY.upper()}!\n\nA fox and a hen went out to look for a piece of bread."
    assert without(text, held_out) == (
        "Kept.\n\nA fox and a hen went out to look for a piece of bread."
    )


def test_twelve_words_in_a_row_stay() -> None:
    twelve = " ".join(STORY.split()[:12])
    assert without(f"{twelve} stones", runs_of_words(STORY)) == f"{twelve} stones"


def test_writes_train_and_what_is_held_out(tmp_path: Path) -> None:
    tales, books, out = (tmp_path / name for name in ("tales", "books", "out"))
    _write(books / "a.jsonl.gz", [{"title": t, "text": f"The text of {t}."} for t in HELD_OUT])
    _write(books / "b.jsonl.gz", [{"title": "Other", "text": f"First.\n\nThen {STORY}."}])
    _write(tales / "train.jsonl.gz", [{"text": "A tale."}, {"text": STORY}])
    _write(tales / "test.jsonl.gz", [{"text": STORY}])
    done = _run("--books", books, "--fairytales", tales, "--out", out)
    assert done.returncode == 0, done.stderr
    assert _texts(out / "books/train.jsonl") == ["First."]
    assert _texts(out / "books/valid.jsonl") == [f"The text of {title}." for title in HELD_OUT]
    assert _texts(out / "fairytales/train.jsonl") == ["A tale."]
    assert _texts(out / "fairytales/test.jsonl") == [STORY]
    assert sum(map(len, _texts(out / "generated/train.jsonl"))) >= 20_000_000


def test_says_which_held_out_books_are_lacking(tmp_path: Path) -> None:
    _write(tmp_path / "a.jsonl.gz", [{"title": title, "text": "x"} for title in HELD_OUT[1:]])
    done = _run("--books", tmp_path, "--fairytales", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert f"lacks {HELD_OUT[0]}" in done.stderr
    assert not (tmp_path / "out").exists()


def _write(file: Path, rows: list[dict[str, str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(file, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)


def _texts(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stages.models.pretraining.corpus", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
