"""Which rows are kept, and what is counted of those that are not."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.data.formats.parser import Row
from stages.data.selection.identity import digests
from stages.data.selection.ledger import Columns, Ledger
from stages.data.selection.select import Selection, select
from stages.data.selection.splits import TEST, TRAIN, VALID
from stages.data_settings import Data
from stages.errors import InputError

SNIPS = Path(__file__).parents[5] / "shared" / "data" / "snips"

# Split of the file, source, question, answer.
Fact = tuple[int, int, str, str]
WORDS = st.sampled_from(["a", "A ", "b", "c", "d", "e", "f"])
FACTS = st.lists(st.tuples(st.sampled_from([TRAIN, TRAIN, VALID, TEST]), st.integers(0, 1),
                           WORDS, st.sampled_from(["x", "X", "y"])), max_size=30)  # fmt: skip


def make_data(**keys: Any) -> Data:
    defaults: dict[str, Any] = {
        "stage": "prepare.prepare", "path": "x.jsonl", "format": "auto", "supervise": "assistant",
        "max_seq_length": 512, "overlong": "auto", "valid_fraction": 0.0, "test_fraction": 0.0,
        "duplicates": "keep", "leakage": "drop", "redact": False, "encoding": "utf-8",
        "on_error": "fail",
    }  # fmt: skip
    return Data(**defaults | keys)


def make_row(question: str, answer: str) -> Row:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Row({"messages": turns}, "", "")


def make_columns(facts: list[Fact]) -> Columns:
    ledger = Ledger()
    for split, source, question, answer in facts:
        row = make_row(question, answer)
        ledger.append(
            split=split,
            source=source,
            lengths=np.array([len(question)], np.int32),
            supervised=np.array([1], np.int32),
            digests=np.array([digests(row, row)], np.uint64),
        )
    assert len(ledger) == len(facts)
    return ledger.finish()


def plain(text: str) -> str:
    return text.strip().lower()


def rows(selection: Selection, facts: list[Fact], split: str) -> list[Fact]:
    return [facts[index] for index in selection.indices[split].tolist()]


def test_the_ledger_keeps_what_chunks_bring() -> None:
    """Columns come back in order, typed, read-only; a chunk without rows still names its split."""
    ledger = Ledger()
    for split, count in ((0, 2), (1, 0), (0, 1)):
        ledger.append(
            split=split,
            source=300 + split,
            lengths=np.arange(count, dtype=np.int32),
            supervised=np.full(count, 7, np.int32),
            digests=np.arange(4 * count, dtype=np.uint64).reshape(-1, 4) + np.uint64(2**63),
        )
    columns = ledger.finish()
    assert columns.split.tolist() == [0, 0, 0]
    assert columns.source.tolist() == [300, 300, 300]
    assert columns.lengths.tolist() == [0, 1, 0]
    assert columns.supervised.tolist() == [7, 7, 7]
    assert columns.exact.tolist() == [2**63, 2**63 + 4, 2**63]
    assert columns.home.tolist() == [2**63 + 3, 2**63 + 7, 2**63 + 3]
    assert columns.given == {0, 1}
    with pytest.raises(ValueError, match="read-only"):
        columns.exact[0] = 0


def test_a_ledger_refuses_columns_of_other_lengths() -> None:
    """A chunk whose columns disagree is a bug that must not shift all later rows."""
    with pytest.raises(ValueError, match="expected 2 rows"):
        Ledger().append(
            split=0, source=0, lengths=np.zeros(2, np.int32), supervised=np.zeros(2, np.int32),
            digests=np.zeros((3, 4), np.uint64),
        )  # fmt: skip


@given(facts=FACTS)
def test_counts_agree_with_a_look_at_every_row(facts: list[Fact]) -> None:
    """Each count is what comparing every row with all earlier ones gives."""
    facts = [(TRAIN, 0, "only in train", "x"), *facts]
    found = select(make_columns(facts), make_data(), 0).counts
    names = {"train": TRAIN, "valid": VALID, "test": TEST}
    train = [fact for fact in facts if fact[0] == TRAIN]
    for name, number in names.items():
        mine = [fact for fact in facts if fact[0] == number]
        exact = duplicates = asked = answers = 0
        for index, (_, _, question, answer) in enumerate(mine):
            before = mine[:index]
            exact += any(b[2:] == (question, answer) for b in before)
            same = [b for b in before if plain(b[2]) == plain(question)]
            asked += bool(same)
            known = any(plain(b[3]) == plain(answer) for b in same)
            duplicates += known
            answers += bool(same) and not known
        counts = found[name]
        assert counts.rows == len(mine)
        assert (counts.exact_duplicates, counts.duplicates) == (exact, duplicates)
        assert (counts.repeated_questions, counts.other_answers) == (asked, answers)
        if name != "train":
            questions = {plain(fact[2]) for fact in train}
            contents = {fact[2:] for fact in train}
            assert counts.asked_in_train == sum(plain(fact[2]) in questions for fact in mine)
            assert counts.exact_in_train == sum(fact[2:] in contents for fact in mine)
        else:
            questions = {plain(fact[2]) for fact in facts if fact[0] != TRAIN}
            assert counts.removed_leaks == sum(plain(fact[2]) in questions for fact in mine)


@given(facts=FACTS, seed=st.integers(0, 99))
def test_nothing_is_lost_where_nothing_is_dropped(facts: list[Fact], seed: int) -> None:
    """Every row is in exactly one split, in the order of arrival."""
    facts = [(TRAIN, 0, "only in train", "x"), *facts]
    data = make_data(leakage="keep", valid_fraction=0.3, test_fraction=0.3)
    selection = select(make_columns(facts), data, seed)
    for indices in selection.indices.values():
        assert indices.tolist() == sorted(indices.tolist())
    every = np.concatenate(list(selection.indices.values())).tolist()
    assert sorted(every) == list(range(len(facts)))
    assert [selection.assigned[index] for index in every] == [
        number
        for number, name in enumerate(("train", "valid", "test"))
        for _ in selection.indices[name]
    ]


@given(facts=FACTS, seed=st.integers(0, 99), fraction=st.sampled_from([0.0, 0.3]))
def test_no_training_row_asks_what_is_held_out(
    facts: list[Fact], seed: int, fraction: float
) -> None:
    """The drop takes from train what valid and test ask, and nothing else from anywhere."""
    facts = [(TRAIN, 0, "only in train", "x"), *facts]
    shares = {"valid_fraction": fraction, "test_fraction": fraction}
    columns = make_columns(facts)
    whole = select(columns, make_data(leakage="keep", **shares), seed)
    asked = {plain(fact[2]) for name in ("valid", "test") for fact in rows(whole, facts, name)}
    trained = [fact for fact in rows(whole, facts, "train") if plain(fact[2]) not in asked]
    if not trained:
        with pytest.raises(InputError, match="every training row"):
            select(columns, make_data(**shares), seed)
        return
    kept = select(columns, make_data(**shares), seed)
    assert rows(kept, facts, "train") == trained
    for split in ("valid", "test"):
        assert kept.indices[split].tolist() == whole.indices[split].tolist()


@given(facts=FACTS)
def test_of_duplicates_the_first_stays(facts: list[Fact]) -> None:
    """In every split, the first row of each wording is kept, and the rest are counted."""
    facts = [(TRAIN, 0, "only in train", "x"), *facts]
    selection = select(make_columns(facts), make_data(duplicates="drop", leakage="keep"), 0)
    for number, split in enumerate(("train", "valid", "test")):
        first: dict[tuple[str, str], int] = {}
        for index, (file, _, question, answer) in enumerate(facts):
            if file == number:
                first.setdefault((plain(question), plain(answer)), index)
        assert selection.indices[split].tolist() == list(first.values())
        counts = selection.counts[split]
        assert counts.removed_duplicates == counts.duplicates == counts.rows - len(first)


def weighted(weights: tuple[float, ...], count: int = 4000) -> tuple[list[int], Selection]:
    """Return how often each of `count` rows, its source alternating, is in train; test has none."""
    facts = [(TRAIN, n % 2, f"row {n}", "x") for n in range(count)] + [(VALID, 0, "held out", "x")]
    data = make_data(path=("a", "b"), weights=weights)
    selection = select(make_columns(facts), data, 3)
    assert selection.indices["valid"].tolist() == [count]
    times = Counter(selection.indices["train"].tolist())
    return [times[n] for n in range(count)], selection


def test_a_weight_is_how_often_a_row_is_seen() -> None:
    """Whole weights repeat every row, others a half of them, within five standard deviations."""
    times, selection = weighted((2, 0.5))
    assert set(times[::2]) == {2}
    assert set(times[1::2]) == {0, 1}
    assert abs(sum(times[1::2]) - 1000) < 5 * 22.4
    counts = selection.counts["train"]
    assert (counts.repeated, counts.left_out) == (2000, times[1::2].count(0))
    assert selection.indices["train"].tolist() == sorted(selection.indices["train"].tolist())
    times, selection = weighted((0, 1.5))
    assert set(times[::2]) == {0}
    assert set(times[1::2]) == {1, 2}
    assert abs(sum(times[1::2]) - 3000) < 5 * 22.4
    assert weighted((1, 1))[0] == [1] * 4000


def test_weights_choose_the_same_rows_when_others_are_appended() -> None:
    """Whether a row is seen depends on its words, its source and the seed alone."""
    assert weighted((1.5, 0.5), 600)[0][:400] == weighted((1.5, 0.5), 400)[0]
    more = zip(weighted((0.25, 0.25))[0], weighted((0.75, 0.75))[0], strict=True)
    assert all(few <= many for few, many in more)


def test_data_without_a_training_row_is_refused_with_the_mend() -> None:
    """Where leaks, weights or an empty file leave nothing to train on, the message says which."""
    leaked = make_columns([(TRAIN, 0, "a", "x"), (TRAIN, 0, "A", "y"), (TEST, 0, "a ", "x")])
    with pytest.raises(
        InputError, match=r"data\.leakage: every training row \(2\) .* data\.leakage=keep"
    ):
        select(leaked, make_data(), 0)
    assert len(select(leaked, make_data(leakage="keep"), 0).indices["train"]) == 2
    unseen = make_columns([(TRAIN, 0, "a", "x")])
    with pytest.raises(InputError, match=r"data\.weights: they leave out all 1 training rows"):
        select(unseen, make_data(path=("a", "b"), weights=(0, 1)), 0)
    with pytest.raises(InputError, match=r"data\.path: found no row to train on"):
        select(make_columns([(VALID, 0, "a", "x")]), make_data(), 0)


def read_snips(pattern: str) -> list[str]:
    """Read the questions of all intents; one file of the seven is Latin-1."""
    texts = []
    for path in sorted(SNIPS.glob(pattern)):
        encoding = "latin-1" if path.name == "train_PlayMusic_full.json" else "utf-8"
        (entries,) = json.loads(path.read_text(encoding)).values()
        texts += ["".join(part["text"] for part in entry["data"]) for entry in entries]
    return texts


@pytest.mark.skipif(not SNIPS.is_dir(), reason="no SNIPS data here")
def test_snips_has_the_duplicates_and_leaks_that_its_readme_states() -> None:
    """205 repeated questions and 9 leaks, stripped and lower-cased; 161 and 2 to the letter."""
    train, valid = read_snips("train_*_full.json"), read_snips("validate_*.json")
    facts = [(TRAIN, 0, text, "x") for text in train] + [(VALID, 0, text, "x") for text in valid]
    selection = select(make_columns(facts), make_data(), 0)
    counts = selection.counts
    assert (counts["train"].rows, counts["valid"].rows) == (13_784, 700)
    assert counts["train"].repeated_questions == counts["train"].duplicates == 205
    assert counts["train"].exact_duplicates == 161
    assert (counts["valid"].asked_in_train, counts["valid"].exact_in_train) == (9, 2)
    kept = {plain(train[index]) for index in selection.indices["train"].tolist()}
    assert kept.isdisjoint(map(plain, valid))
    assert len(kept) == len(set(map(plain, train))) - len(
        set(map(plain, train)) & set(map(plain, valid))
    )
