"""Properties of the seeded split."""

from __future__ import annotations

from collections.abc import Collection
from hashlib import blake2b

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.data.selection.splits import TEST, TRAIN, VALID, assign, positions

# The first outputs of SplitMix64 with seed 0, as its authors publish them; it mixes k GAMMA.
GAMMA = 0x9E3779B97F4A7C15
OUTPUTS = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]

SEEDS = st.integers(0, 2**32 - 1)
FRACTIONS = st.sampled_from([0.0, 0.1, 0.3, 0.45])
HOMES = st.lists(st.integers(0, 25), max_size=40)


def digest(name: object) -> int:
    return int.from_bytes(blake2b(str(name).encode(), digest_size=8).digest(), "little")


def homes(names: Collection[object]) -> NDArray[np.uint64]:
    return np.array([digest(name) for name in names], np.uint64)


def divide(
    names: Collection[object],
    seed: int,
    valid: float,
    test: float,
    given_splits: Collection[int] = (),
    split: NDArray[np.int8] | None = None,
) -> list[int]:
    files = np.zeros(len(names), np.int8) if split is None else split
    parts = assign(
        homes(names), files, given_splits, seed, valid_fraction=valid, test_fraction=test
    )
    assert parts.dtype == np.int8
    return [int(part) for part in parts]


def test_positions_are_those_of_the_published_generator() -> None:
    """The mixing is SplitMix64's, of the digest and a key of seed and purpose."""
    key = int.from_bytes(blake2b(b"(7, 'split')", digest_size=8).digest(), "little")
    digests = np.array([(n * GAMMA % 2**64) ^ key for n in (1, 2, 3)], np.uint64)
    expected = [(output >> 11) / 2**53 for output in OUTPUTS]
    assert positions(digests, 7, "split").tolist() == expected


def test_positions_are_uniform_and_independent_of_other_purposes() -> None:
    """Each quarter of one purpose spreads evenly over the quarters of another, within 5 sigma."""
    digests = homes(range(16_000))
    one, other = positions(digests, 0, "split"), positions(digests, 0, "weight", 1)
    cells = np.bincount((one * 4).astype(int) * 4 + (other * 4).astype(int), minlength=16)
    assert ((one >= 0) & (one < 1)).all()
    assert (abs(cells - 1000) < 5 * (16_000 / 16 * 15 / 16) ** 0.5).all()


@given(names=HOMES, seed=SEEDS, valid=FRACTIONS, test=FRACTIONS)
def test_rows_of_one_home_share_a_split(
    names: list[int], seed: int, valid: float, test: float
) -> None:
    """Every row has one split, and a home is never on two sides."""
    parts = divide(names, seed, valid, test)
    assert len(parts) == len(names)
    assert set(parts) <= {TRAIN, VALID, TEST}
    assert len(set(zip(names, parts, strict=True))) == len(set(names))


@given(names=HOMES, seed=SEEDS, valid=FRACTIONS, test=FRACTIONS)
def test_wanted_splits_are_not_empty(
    names: list[int], seed: int, valid: float, test: float
) -> None:
    """Any row gives a training row; two homes a validation row where one is wanted."""
    parts = divide(names, seed, valid, test)
    distinct = len(set(names))
    assert (TRAIN in parts) == (distinct > 0)
    assert (VALID in parts) == (distinct > 1 and valid > 0)
    if not test:
        assert TEST not in parts


@given(seed=SEEDS, more=st.integers(1, 60))
def test_appended_rows_move_no_row(seed: int, more: int) -> None:
    """With rows in every split, those appended later change nothing for the earlier ones."""
    before = divide(range(160), seed, 0.2, 0.2)
    assert divide(range(160 + more), seed, 0.2, 0.2)[:160] == before


@given(seed=SEEDS)
def test_another_test_share_moves_no_validation_row(seed: int) -> None:
    """The validation set stays the same when test rows are taken away or added."""
    chosen = [
        [n for n, split in enumerate(divide(range(100), seed, 0.2, test)) if split == VALID]
        for test in (0.0, 0.1, 0.5)
    ]
    assert chosen[0] == chosen[1] == chosen[2]


def test_the_seed_decides_and_the_shares_are_kept() -> None:
    """Other seeds choose other rows; the shares come out within five standard deviations."""
    parts = [divide(range(4000), seed, 0.1, 0.2) for seed in (0, 1)]
    assert parts[0] != parts[1]
    for part in parts:
        assert abs(part.count(VALID) - 400) < 5 * 19
        assert abs(part.count(TEST) - 800) < 5 * 25.3


def test_the_nearest_home_fills_an_empty_split() -> None:
    """Both rules, on homes of known positions: all of the chosen home move, and no other."""
    names = ["a", "b", "c", "a"]
    at = dict(zip(names, positions(homes(names), 0, "split").tolist(), strict=True))
    low, middle, high = sorted(at, key=at.__getitem__)
    tiny = 1 - at[high]
    parts = divide(names, 0, tiny / 2, 0.0)
    assert parts == [VALID if name == high else TRAIN for name in names]
    bound = at[high] + tiny / 2
    parts = divide(names, 0, 0.0, bound)
    nearest = min(at, key=lambda name: abs(at[name] - (bound + 1) / 2))
    assert nearest == high != low != middle
    assert parts == [TRAIN if name == high else TEST for name in names]


@given(names=st.lists(st.integers(0, 25), min_size=2, max_size=40), seed=SEEDS, data=st.data())
def test_given_splits_stay_as_they_are(names: list[int], seed: int, data: st.DataObject) -> None:
    """Rows of given files stay; a given split gets no row of train, a missing one does."""
    files = data.draw(st.lists(st.sampled_from([TRAIN, VALID]), min_size=len(names),
                               max_size=len(names)))  # fmt: skip
    parts = divide(names, seed, 0.45, 0.45, {TRAIN, VALID}, np.array(files, np.int8))
    for file, split in zip(files, parts, strict=True):
        assert split == VALID if file == VALID else split in (TRAIN, TEST)
    supplied = [name for name, file in zip(names, files, strict=True) if file == TRAIN]
    alone = divide(supplied, seed, 0.0, 0.45)
    assert [split for split, file in zip(parts, files, strict=True) if file == TRAIN] == alone


def test_no_rows_make_no_splits() -> None:
    """Nothing in, nothing out, and no error."""
    assert divide([], 0, 0.1, 0.1) == []
