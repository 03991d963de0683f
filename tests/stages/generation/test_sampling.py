"""Draws follow the distribution asked for, and nothing but seed and position decides them."""

import mlx.core as mx
import numpy as np
import pytest

from stages.errors import SettingError
from stages.generation.sampling import Sampling

PROBABILITIES = np.array([0.02, 0.3, 0.08, 0.25, 0.05, 0.2, 0.1])


def draw(sampling: Sampling, count: int = 800) -> list[int]:
    sampler = sampling.sampler()
    row = mx.log(mx.array(PROBABILITIES, dtype=mx.float32))[None]
    return mx.concatenate([sampler(row) for _ in range(count)]).tolist()


def normalised(kept: dict[int, float]) -> np.ndarray:
    expected = np.zeros(len(PROBABILITIES))
    for token, weight in kept.items():
        expected[token] = weight
    return expected / expected.sum()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, PROBABILITIES),
        ({"temperature": 0.5}, normalised(dict(enumerate(PROBABILITIES**2)))),
        ({"top_k": 3}, normalised({1: 0.3, 3: 0.25, 5: 0.2})),
        ({"top_k": 1}, normalised({1: 1})),
        ({"top_k": 7}, PROBABILITIES),
        ({"top_k": 10_000}, PROBABILITIES),
        # 0.3 + 0.25 + 0.2 = 0.75 is the first sum to reach 0.7.
        ({"top_p": 0.7}, normalised({1: 0.3, 3: 0.25, 5: 0.2})),
        # A quarter of the likeliest is 0.075.
        ({"min_p": 0.25}, normalised({1: 0.3, 2: 0.08, 3: 0.25, 5: 0.2, 6: 0.1})),
        # The filters look at the model's own probabilities, the temperature comes after them.
        ({"top_p": 0.5, "temperature": 2.0}, normalised({1: 0.3**0.5, 3: 0.25**0.5})),
        ({"top_k": 4, "min_p": 0.5}, normalised({1: 0.3, 3: 0.25, 5: 0.2})),
    ],
)
def test_draws_follow_the_closed_form(settings: dict, expected: np.ndarray) -> None:
    """Each filter keeps exactly its tokens, and each is drawn as often as its probability says."""
    count = 800
    drawn = draw(Sampling(**{"temperature": 1.0, "seed": 5} | settings), count)
    found = np.bincount(drawn, minlength=len(expected)) / count
    assert set(np.flatnonzero(found)) <= set(np.flatnonzero(expected))
    deviation = np.sqrt(expected * (1 - expected) / count)
    assert (np.abs(found - expected) <= 4 * deviation).all()


@pytest.mark.parametrize("temperature", [0.0, 1e-30])
def test_no_temperature_takes_the_likeliest(temperature: float) -> None:
    """Temperature 0, and one too small to divide by, take the most likely token every time."""
    assert set(draw(Sampling(temperature=temperature), 50)) == {1}


def test_seed_decides_all_draws() -> None:
    """The same seed draws the same, another seed and no seed something else."""
    drawn = [draw(Sampling(temperature=1.0, seed=seed), 100) for seed in (1, 1, 2, -1, None, None)]
    assert drawn[0] == drawn[1]
    assert len({tuple(one) for one in drawn}) == 5


def test_draws_leave_the_global_generator_alone() -> None:
    """A seeded request neither reads nor moves MLX's own random state."""
    mx.random.seed(3)
    undisturbed = mx.random.uniform(shape=(4,)).tolist()
    mx.random.seed(3)
    first = draw(Sampling(temperature=1.0, seed=1), 10)
    assert mx.random.uniform(shape=(4,)).tolist() == undisturbed
    assert draw(Sampling(temperature=1.0, seed=1), 10) == first


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1), ("temperature", float("nan")), ("temperature", float("inf")),
        ("temperature", "1"), ("temperature", True), ("top_p", 0), ("top_p", 1.1), ("top_k", -1),
        ("top_k", 2.0), ("top_k", True), ("min_p", -0.1), ("min_p", 1.5), ("max_tokens", 0),
        ("max_tokens", 1.5), ("seed", 1.0), ("seed", "1"), ("stop", "ab"), ("stop", ("",)),
        ("stop", (123,)), ("stop", ["a"]),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_by_name(field: str, value: object) -> None:
    """What would break inside a step is refused before it, with the field's name."""
    with pytest.raises(SettingError) as caught:
        Sampling(**{field: value})
    assert caught.value.where == field
