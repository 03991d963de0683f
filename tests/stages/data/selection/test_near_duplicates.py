"""Questions that are nearly the same are found; others are not."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.data.selection.minhash import SHORT, sketch
from stages.data.selection.near_duplicates import near_duplicates, searched

DATA = Path(__file__).parents[5] / "shared" / "data"

WORDS = [f"{first}{second}{n}" for first in "bdfgk" for second in "aeiou" for n in range(80)]


def sentence(seed: int, words: int) -> list[str]:
    return random.Random(seed).sample(WORDS, words)


def replaced(words: list[str], *places: int) -> list[str]:
    return [f"other{n}" if n in places else word for n, word in enumerate(words)]


def groups(text: str) -> set[tuple[str, ...]]:
    """Make the word groups a second, slow way."""
    words = [w for w in "".join(c if c.isalnum() else " " for c in text.lower()).split() if w]
    size = 5 if len(words) >= SHORT else 1
    return {tuple(words[n : n + size]) for n in range(len(words) - size + 1)}


def index(one: str, other: str) -> float:
    return len(groups(one) & groups(other)) / len(groups(one) | groups(other))


def test_planted_pairs_are_found_among_unrelated_rows() -> None:
    """One word of 20 replaced, and one of 60, is near; three of 20, or a reversed text, is not."""
    texts = [" ".join(sentence(seed, 20 if seed < 150 else 60)) for seed in range(300)]
    texts += [
        " ".join(replaced(sentence(3, 20), 7)),
        " ".join(replaced(sentence(160, 60), 30)),
        " ".join(replaced(sentence(5, 20), 1, 9, 17)),
        " ".join(reversed(sentence(170, 60))),
    ]
    found = near_duplicates([(n, 0, text) for n, text in enumerate(texts)], 1000)
    assert (found.searched, found.rows) == (304, 1000)
    assert found.within == {"train": 4, "valid": 0, "test": 0}
    assert found.in_train == {"valid": 0, "test": 0}
    assert [example[:2] for example in found.examples] == [(3, 300), (160, 301)]
    assert [example[2] for example in found.examples] == pytest.approx([19 / 21, 51 / 61])


def test_rows_count_in_their_own_split_and_against_train() -> None:
    """Near rows of different splits are no pair within; copies count as often as they occur."""
    words = sentence(0, 40)
    near = [" ".join(replaced(words, n)) for n in (1, 2, 3)]
    texts = [(5, 0, near[0]), (6, 1, near[1]), (7, 2, near[2]), (8, 2, near[2].upper() + "\n"),
             (9, 2, " ".join(sentence(1, 40)))]  # fmt: skip
    found = near_duplicates(texts, 5)
    assert found.within == {"train": 0, "valid": 0, "test": 0}
    assert found.in_train == {"valid": 1, "test": 2}
    assert [example[:2] for example in found.examples] == [(5, 6)]


def test_equal_rows_are_no_near_duplicates() -> None:
    """What case and outer spaces hide is counted elsewhere; punctuation and order are near."""
    same = [(0, 0, "Play some jazz"), (1, 0, " play SOME jazz\n"), (2, 1, "play some jazz")]
    found = near_duplicates(same, 3)
    assert (found.within["train"], found.in_train["valid"], found.examples) == (0, 0, ())
    found = near_duplicates([*same, (3, 1, "Play some jazz!")], 4)
    assert (found.within["train"], found.within["valid"], found.in_train["valid"]) == (0, 2, 1)
    assert found.examples[0] == (0, 3, 1.0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("我想预订一张明天去北京的火车票", "我想预订一张后天去北京的火车票"),
        ("あした東京へ行く電車の切符を買いたい", "あした京都へ行く電車の切符を買いたい"),
    ],
)
def test_scripts_without_spaces_are_compared_by_character(one: str, other: str) -> None:
    """One replaced character is near, though there is not one space."""
    assert near_duplicates([(0, 0, one), (1, 0, other)], 2).within["train"] == 2


def test_texts_without_words_are_searched_and_match_nothing() -> None:
    """Empty texts and signs are alike in nothing; no rows at all are no error."""
    found = near_duplicates([(0, 0, ""), (1, 0, "?!"), (2, 0, "..."), (3, 1, "??")], 4)
    assert (found.searched, found.within["train"], found.in_train["valid"]) == (4, 0, 0)
    assert near_duplicates([], 0).examples == ()


TEXTS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=70).map(" ".join)


@given(texts=st.lists(TEXTS, min_size=2, max_size=12, unique=True))
def test_the_jaccard_index_is_that_of_the_word_groups(texts: list[str]) -> None:
    """Against sets made the slow way, for short texts and long ones."""
    sketches = sketch((n, 0, text) for n, text in enumerate(texts))
    one, other = np.triu_indices(len(texts), 1)
    expected = [index(texts[a], texts[b]) for a, b in zip(one, other, strict=True)]
    assert sketches.jaccard(one, other).tolist() == pytest.approx(expected)


def test_the_index_of_long_texts_is_estimated() -> None:
    """Beyond 256 groups the smallest ones decide: within five standard deviations of the index."""
    words = [f"w{n}" for n in range(620)]
    texts = [" ".join(words), " ".join(words[60:]), " ".join(f"v{n}" for n in range(620))]
    sketches = sketch((n, 0, text) for n, text in enumerate(texts))
    assert np.diff(sketches.offsets).tolist() == [256] * 3
    near, far = sketches.jaccard(np.array([0, 0]), np.array([1, 2]))
    expected = index(texts[0], texts[1])
    assert abs(near - expected) < 5 * (expected * (1 - expected) / 200) ** 0.5
    assert far == 0


def test_a_long_row_is_compared_by_its_beginning() -> None:
    """Memory and time stay bounded for a row of megabytes."""
    words = " ".join(f"w{n}" for n in range(2000))
    rows = [(0, 0, words + " one" * 10**6), (1, 0, words + " two"), (2, 0, "one " * 10**6 + words)]
    assert near_duplicates(rows, 3).examples == ((0, 1, 1.0),)


def test_many_alike_are_all_found() -> None:
    """Where thousands of rows share one band, each still finds one of the others."""
    words = " ".join(sentence(0, 30))
    found = near_duplicates([(n, n % 2, f"{words} {n}") for n in range(3000)], 3000)
    assert found.within == {"train": 1500, "valid": 1500, "test": 0}
    assert found.in_train == {"valid": 1500, "test": 0}
    assert len(found.examples) == 5
    assert len({row for one, other, _ in found.examples for row in (one, other)}) == 10


def test_the_sample_is_fixed_and_stays_when_rows_are_appended() -> None:
    """A row once left out stays out; one taken leaves for a row of a lower position only."""
    questions = np.random.default_rng(0).integers(0, 2**63, 5000, dtype=np.uint64)
    assert searched(questions, 0).tolist() == list(range(5000))
    chosen = searched(questions, 0, 1000)
    assert len(chosen) == 1000
    assert (np.diff(chosen) > 0).all()
    assert set(searched(questions[:3000], 0, 1000)) >= {row for row in chosen if row < 3000}
    assert set(searched(questions, 1, 1000)) != set(chosen)


@pytest.mark.skipif(not (DATA / "gsm8k").is_dir(), reason="no GSM8K data here")
def test_gsm8k_has_the_near_duplicates_that_comparing_every_pair_finds() -> None:
    """26 rows in 13 pairs by an exact join of the sets; 95 in 100 or more are found, no other."""
    lines = (DATA / "gsm8k" / "train.jsonl").read_text("utf-8").splitlines()
    texts = [json.loads(line)["question"] for line in lines]
    found = near_duplicates([(n, 0, text) for n, text in enumerate(texts)], len(texts))
    assert 24 <= found.within["train"] <= 26
    for one, other, jaccard in found.examples:
        assert index(texts[one], texts[other]) == pytest.approx(jaccard)
        assert jaccard >= 0.8
