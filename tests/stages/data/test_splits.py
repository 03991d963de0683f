"""Properties of the seeded split."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stages.data.formats import Row, identity
from stages.data.splits import divide

PINNED = [["row 2", "row 13", "row 26"], ["row 14", "row 16", "row 28"]]

SPLITS = ("train", "valid", "test")


def text_rows(texts: list[str]) -> list[Row]:
    return [
        Row({"text": text}, f"rows.jsonl:{n}", f"rows.jsonl:{n}") for n, text in enumerate(texts, 1)
    ]


def homes(parts: dict[str, list[Row]]) -> dict[str, str]:
    return {row.source: split for split in SPLITS for row in parts[split]}


TEXTS = st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyz").flatmap(
    lambda letter: st.sampled_from([letter, letter.upper(), f" {letter}\n", f"{letter}\t"])
), max_size=40)  # fmt: skip
SEEDS = st.integers(0, 2**32 - 1)
FRACTIONS = st.sampled_from([0.0, 0.1, 0.3, 0.45])


@given(texts=TEXTS, seed=SEEDS, valid=FRACTIONS, test=FRACTIONS)
def test_every_row_is_in_one_split_in_its_order(
    texts: list[str], seed: int, valid: float, test: float
) -> None:
    """The splits are disjoint and complete, and keep the order of the rows."""
    rows = text_rows(texts)
    parts = divide(rows, seed, valid_fraction=valid, test_fraction=test)
    assert sorted(int(row.source.split(":")[1]) for split in SPLITS for row in parts[split]) == [
        *range(1, len(rows) + 1)
    ]
    for split in SPLITS:
        numbers = [int(row.source.split(":")[1]) for row in parts[split]]
        assert numbers == sorted(numbers)


@given(texts=TEXTS, seed=SEEDS, valid=FRACTIONS, test=FRACTIONS)
def test_duplicates_share_a_split(texts: list[str], seed: int, valid: float, test: float) -> None:
    """Rows that differ in case and spacing only are never on two sides."""
    parts = divide(text_rows(texts), seed, valid_fraction=valid, test_fraction=test)
    words = {split: {row.text.strip().lower() for row in parts[split]} for split in SPLITS}
    assert not words["train"] & words["valid"]
    assert not words["train"] & words["test"]
    assert not words["valid"] & words["test"]


@given(texts=TEXTS, seed=SEEDS, valid=FRACTIONS, test=FRACTIONS)
def test_wanted_splits_are_not_empty(
    texts: list[str], seed: int, valid: float, test: float
) -> None:
    """Any row gives a training row; two different ones a validation row where one is wanted."""
    parts = divide(text_rows(texts), seed, valid_fraction=valid, test_fraction=test)
    distinct = {text.strip().lower() for text in texts}
    assert bool(parts["train"]) == (len(distinct) > 0)
    if valid:
        assert bool(parts["valid"]) == (len(distinct) > 1)
    else:
        assert not parts["valid"]
    if not test:
        assert not parts["test"]


@given(seed=SEEDS, more=st.integers(1, 60))
def test_appended_rows_move_no_row(seed: int, more: int) -> None:
    """With rows in every split, those appended later change nothing for the earlier ones."""
    texts = [f"row {number}" for number in range(160 + more)]
    before = divide(text_rows(texts[:160]), seed, valid_fraction=0.2, test_fraction=0.2)
    after = homes(divide(text_rows(texts), seed, valid_fraction=0.2, test_fraction=0.2))
    assert homes(before).items() <= after.items()


@given(seed=SEEDS)
def test_another_test_share_moves_no_validation_row(seed: int) -> None:
    """The validation set stays the same when test rows are taken away or added."""
    rows = text_rows([f"row {number}" for number in range(100)])
    chosen = [
        [row.source for row in divide(rows, seed, valid_fraction=0.2, test_fraction=t)["valid"]]
        for t in (0.0, 0.1, 0.5)
    ]
    assert chosen[0] == chosen[1] == chosen[2]


def test_the_seed_decides_and_the_shares_are_kept() -> None:
    """Other seeds choose other rows; the shares come out within five standard deviations."""
    rows = text_rows([f"row {number}" for number in range(4000)])
    parts = [divide(rows, seed, valid_fraction=0.1, test_fraction=0.2) for seed in (0, 1)]
    assert homes(parts[0]) != homes(parts[1])
    for part in parts:
        assert abs(len(part["valid"]) - 400) < 5 * 19
        assert abs(len(part["test"]) - 800) < 5 * 25.3


def test_the_same_seed_gives_the_same_split_on_every_machine() -> None:
    """Pinned, since a changed split makes old and new runs incomparable."""
    rows = text_rows([f"row {number}" for number in range(30)])
    parts = divide(rows, 0, valid_fraction=0.1, test_fraction=0.1)
    assert [[row.text for row in parts[split]] for split in ("valid", "test")] == PINNED


def test_conversations_are_duplicates_by_roles_and_words() -> None:
    """Case and spacing do not tell conversations apart; roles and the cut between turns do."""

    def chat(*turns: tuple[str, str]) -> Row:
        return Row({"messages": [{"role": r, "content": c} for r, c in turns]}, "", "")

    one = identity(chat(("user", "Hi  there"), ("assistant", "Ok")))
    assert one == identity(chat(("user", " hi there\n"), ("assistant", "OK")))
    assert one != identity(chat(("assistant", "Hi there"), ("assistant", "Ok")))
    assert one != identity(chat(("user", "Hi"), ("assistant", "there Ok")))
