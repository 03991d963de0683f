from __future__ import annotations

import subprocess
import sys

import mlx.core as mx

from stages.lora.keys import fold, random_key, words


def test_every_argument_counts() -> None:
    """Seed, purpose, number and order of the parts, and their type, each change the key."""
    variants = [
        fold(0, "order", 1, 2), fold(1, "order", 1, 2), fold(0, "dropout", 1, 2),
        fold(0, "order", 2, 1), fold(0, "order", 12), fold(0, "order", "1", 2), fold(0, "order"),
    ]  # fmt: skip
    assert len(set(variants)) == len(variants)


def test_another_process_folds_the_same() -> None:
    """The key does not depend on Python's own hash seed."""
    code = "from stages.lora.keys import fold; print(fold(3, 'order', 'a', 1))"
    found = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], env={"PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert found == {f"{fold(3, 'order', 'a', 1)}\n"}


def test_key_is_an_mlx_key_with_all_64_bits() -> None:
    """The two words make the folded number again."""
    high, low = words(fold(1, "lora_a", "x"))
    assert high << 32 | low == fold(1, "lora_a", "x")
    key = random_key(1, "lora_a", "x")
    assert key.dtype == mx.uint32
    assert key.tolist() == [high, low]
    assert mx.random.uniform(key=key).shape == ()
