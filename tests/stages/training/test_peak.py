"""What `optimizer.learning_rate=auto` comes to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stages.errors import SettingError
from stages.training.peak import peak_learning_rate
from stages.training_settings import Optimizer

ADAMW = Callable[..., Optimizer]


@pytest.mark.parametrize(
    ("kind", "width", "expected"),
    [
        # What Tinker's documentation and its 2025 code give for these two, to three digits.
        ("llama", 2048, 4.91e-4),
        ("llama", 4096, 2.86e-4),
        ("qwen3", 4096, 4.73e-4),
        ("qwen3_moe", 2048, 4.99e-4),
        # The embedded model, and the narrowest that counts.
        ("llama", 256, 2.49e-3),
        ("llama", 32, 2.49e-3),
    ],
)
def test_auto_is_the_published_formula(
    adamw: ADAMW, kind: str, width: int, expected: float
) -> None:
    """5e-4 * (2000 / width)^p with the family's p, and a tenth of it for all weights."""
    optimizer = adamw(learning_rate="auto")
    config = {"model_type": kind, "hidden_size": width}
    found = peak_learning_rate(optimizer, config, full=False)
    assert found == pytest.approx(expected, rel=2e-3)
    assert peak_learning_rate(optimizer, config, full=True) == pytest.approx(found / 10)


@pytest.mark.parametrize("width", [512, 8192])
def test_other_families_get_the_lower_rate(adamw: ADAMW, width: int) -> None:
    """A family without an exponent of its own never trains faster than both that have one."""
    optimizer = adamw(learning_rate="auto")
    rates = [peak_learning_rate(optimizer, {"model_type": kind, "n_embd": width}, full=False)
             for kind in ("gpt2", "llama", "qwen2")]  # fmt: skip
    assert rates[0] == min(rates[1:]) < max(rates[1:])


def test_the_text_part_decides(adamw: ADAMW) -> None:
    """A model with more than a text part has width and family one level down."""
    nested: dict[str, Any] = {
        "model_type": "mistral3", "vision_config": {"hidden_size": 64},
        "text_config": {"model_type": "qwen3", "hidden_size": 4096},
    }  # fmt: skip
    optimizer = adamw(learning_rate="auto")
    assert peak_learning_rate(optimizer, nested, full=False) == pytest.approx(4.73e-4, rel=2e-3)


def test_a_given_rate_is_taken_as_it_is(adamw: ADAMW) -> None:
    """A number needs no width and is not divided for all weights."""
    assert peak_learning_rate(adamw(learning_rate=0.125), {}, full=True) == 0.125


def test_a_model_without_width_is_refused(adamw: ADAMW) -> None:
    """auto without a width names the key and what to set."""
    with pytest.raises(SettingError, match=r"learning_rate.*hidden_size; set a number"):
        peak_learning_rate(adamw(learning_rate="auto"), {"model_type": "llama"}, full=False)
