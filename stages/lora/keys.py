"""Random keys that follow from what they are for, never from what was drawn before."""

from __future__ import annotations

from hashlib import blake2b

import mlx.core as mx


def fold(seed: int, purpose: str, *parts: int | str) -> int:
    """Return 64 bits that depend on the arguments alone, on every machine and version."""
    digest = blake2b(repr((seed, purpose, *parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def words(bits: int) -> tuple[int, int]:
    """Split 64 bits into the two 32-bit words of an MLX key."""
    return bits >> 32, bits & 0xFFFFFFFF


def random_key(seed: int, purpose: str, *parts: int | str) -> mx.array:
    """Return `fold` of the arguments as an MLX key: (2,) uint32."""
    return mx.array(words(fold(seed, purpose, *parts)), dtype=mx.uint32)
