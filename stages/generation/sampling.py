"""How the next token is chosen, per request, without any random state that requests share."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p, greedy_sampler

from stages.errors import SettingError
from stages.lora.keys import random_key

Sampler = Callable[[mx.array], mx.array]
"""Log-probabilities (1, V) to token ids (1,): what mlx-lm's batch generator calls for a row."""

_GREEDY_BELOW = 1e-4
"""Dividing by less than this overflows float32, and picks the most likely token anyway."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """What one request asks for; wrong types and ranges raise SettingError by field name."""

    temperature: float = 0.0
    """0 takes the most likely token; 1 draws from the model's own distribution."""
    top_p: float = 1.0
    """Draw from the fewest tokens whose probabilities sum to this; 1 draws from all."""
    top_k: int = 0
    """Draw from so many of the most likely tokens; 0, or more than there are, draws from all."""
    min_p: float = 0.0
    """Draw from tokens at least this share as likely as the likeliest; 0 draws from all."""
    max_tokens: int = 256
    """Longest answer."""
    seed: int | None = None
    """Same seed, prompt and model: same answer, whatever else is generated; None: a new one."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer and are left out of it."""

    def __post_init__(self) -> None:
        number, count = "a number of 0 or more", "a whole number of 0 or more"
        _check(_is_number(self.temperature) and self.temperature >= 0, "temperature",
               self.temperature, number)  # fmt: skip
        _check(_is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", self.top_p,
               "a number above 0, at most 1")  # fmt: skip
        _check(type(self.top_k) is int and self.top_k >= 0, "top_k", self.top_k, count)
        _check(_is_number(self.min_p) and 0 <= self.min_p <= 1, "min_p", self.min_p,
               "a number from 0 to 1")  # fmt: skip
        _check(type(self.max_tokens) is int and self.max_tokens >= 1, "max_tokens",
               self.max_tokens, "a whole number of 1 or more")  # fmt: skip
        _check(self.seed is None or type(self.seed) is int, "seed", self.seed, "a whole number")
        texts = isinstance(self.stop, tuple) and all(isinstance(s, str) and s for s in self.stop)
        _check(texts, "stop", self.stop, "texts, none of them empty")

    def sampler(self) -> Sampler:
        """Return a sampler for one row, to be called once for each of its tokens, in order.

        Filters and their order are mlx-lm's: top-p, min-p, top-k, then temperature. The key of a
        draw follows from the seed and the token's position alone.
        """
        if self.temperature < _GREEDY_BELOW:
            # One object for all rows: the batch generator then calls it once per step.
            greedy: Sampler = greedy_sampler
            return greedy
        seed = secrets.randbits(64) if self.seed is None else self.seed
        position = 0

        def sample(logprobs: mx.array) -> mx.array:
            nonlocal position
            key = random_key(seed, "sample", position)
            position += 1
            kept = self._filter(logprobs.astype(mx.float32))
            return mx.random.categorical(kept / self.temperature, key=key)

        return sample

    def _filter(self, logprobs: mx.array) -> mx.array:
        if self.top_p < 1:
            logprobs = apply_top_p(logprobs, self.top_p)
        if self.min_p > 0:
            logprobs = apply_min_p(logprobs, self.min_p)
        if 0 < self.top_k < logprobs.shape[-1]:
            logprobs = apply_top_k(logprobs, self.top_k)
        return logprobs


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _check(condition: bool, name: str, found: object, expected: str) -> None:
    if not condition:
        raise SettingError(name, f"found {found!r}, expected {expected}")
