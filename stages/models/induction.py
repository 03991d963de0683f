"""Induction heads in a fresh Llama: heads that look for what followed the same token before.

A model finds them by itself only after much text (Olsson et al. 2022, arXiv 2209.11895; the
embedded one had not after 8.6 million tokens), and cannot repeat a name until it has. Here training
starts with a circuit of them instead of noise, as mimetic initialization does (Trockman and
Kolter 2023, arXiv 2305.09828); it is free to change every number of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

_MATCHING = (1, 3)
"""Layers whose first head compares this token with what stood before each other one."""
_STREAM = 4.0
"""Length of an embedding in the residual stream: what it carries outlasts the first steps."""
_QUIETER = 0.5
"""What is added to the stream otherwise, as a share of what it is without the circuit."""
_SHARED = 0.3
"""Length of the part that all embeddings have in common, as a share of the rest: it makes a head
that looks at places, not at tokens."""
_FAST = 8
"""Frequencies of rotation that tell places apart."""
_SLOW = 10
"""The first frequency that turns slowly enough for tokens to be compared at a distance."""
_AT_PLACE, _AT_MATCH = 8.0, 16.0
"""Scores, before softmax: of each fast frequency at the right place, of a token like this one."""
_SECOND = 0.7
"""Weight of the token before this one in the comparison."""
_COPIED, _LIKED = 8.0, 0.5
"""How much of what they look at is written out by the matching heads, and by all other ones."""
_ATTENTION = "model.layers.{layer}.self_attn.{name}_proj.weight"


def fits(config: Mapping[str, Any]) -> bool:
    """Return whether the circuit can be laid into an architecture: a Llama with tied embeddings,
    two layers, and two heads wider than 20 and at most half as wide as the model."""
    return (
        config.get("model_type") == "llama"
        and bool(config.get("tie_word_embeddings", True))
        and min(config["num_hidden_layers"], config["num_attention_heads"]) >= 2
        and config["hidden_size"] >= 2 * _width(config)
        and _width(config) > 2 * _SLOW
    )


def _width(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def lay(drawn: Mapping[str, Matrix], config: Mapping[str, Any], seed: int) -> dict[str, Matrix]:
    """Return the weights of a fresh Llama with the circuit in it.

    `drawn` holds them by name, normal with variance 1/inputs; `config` is one that `fits`. In
    layer 0 two heads look one and two tokens back and write what stands there into parts of the
    stream of their own. In layers 1 and 3 a head compares these with this token and the one
    before, and writes out the token that it finds. Later heads write what they read.
    """
    random = np.random.default_rng([seed, 999])
    weights = {name: weight * _QUIETER if name.endswith(("o_proj.weight", "down_proj.weight"))
               else weight for name, weight in drawn.items()}  # fmt: skip
    width, hidden = _width(config), int(config["hidden_size"])
    group = config["num_attention_heads"] // (config.get("num_key_value_heads")
                                              or config["num_attention_heads"])  # fmt: skip
    root = math.sqrt(hidden)

    def of(layer: int, name: str) -> Matrix:
        return weights[_ATTENTION.format(layer=layer, name=name)]

    shared = random.standard_normal(hidden)
    shared /= np.linalg.norm(shared)
    embeddings = _without(weights["model.embed_tokens.weight"], shared) + _SHARED * shared
    weights["model.embed_tokens.weight"] = embeddings * _STREAM
    # The logits are what they were.
    weights["model.norm.weight"] = weights["model.norm.weight"] / _STREAM

    before = _without(_orthonormal(random, hidden, 2 * width).T, shared).T
    first, second = before[:, :width], before[:, width:]
    token = _without(_orthonormal(random, hidden, width).T, shared)
    query, key, value, output = (of(0, name) for name in "qkvo")
    base = _rope_base(config)
    reading = root * _SHARED / math.sqrt(1 + _SHARED**2)
    for head in (0, 1):
        rows = slice(head // group * width, (head // group + 1) * width)
        if head % group == 0:
            key[rows] = _small(random, width, hidden)
            key[rows] += np.outer(_place(0, width, base) / reading, shared)
            value[rows] = token
    for head, part in enumerate((first, second)):
        rows = slice(head * width, (head + 1) * width)
        query[rows] = _small(random, width, hidden)
        query[rows] += np.outer(_place(head + 1, width, base) / reading, shared)
        output[:, rows] = part * _STREAM / math.sqrt(width)

    slow = [n for n in range(width) if n % (width // 2) >= _SLOW]
    matching = [layer for layer in _MATCHING if layer < config["num_hidden_layers"]]
    # Token, first and second have a third of the stream each.
    size = math.sqrt(_AT_MATCH * math.sqrt(width) * width / len(slow)) * math.sqrt(3) / root
    for layer in matching:
        this, last = (_orthonormal(random, width, width)[:, : len(slow)].T for _ in "12")
        query, key = of(layer, "q"), of(layer, "k")
        query[:width], key[:width] = 0, 0
        key[slow] = size * (this @ first.T + _SECOND * last @ second.T)
        query[slow] = size * (root / math.sqrt(width) * this @ token + _SECOND * last @ first.T)
    for layer in range(1, config["num_hidden_layers"]):
        value, output = of(layer, "v"), of(layer, "o")
        for start in range(0, len(value), width):
            value[start : start + width] = _orthonormal(random, hidden, width).T
            for head in range(start // width * group, (start // width + 1) * group):
                share = _COPIED if layer in matching and head == 0 else _LIKED
                written = share * _STREAM / root * value[start : start + width].T
                output[:, head * width : (head + 1) * width] = written
    return weights


def _rope_base(config: Mapping[str, Any]) -> float:
    return float(config.get("rope_theta", 10000.0))


def _place(back: int, width: int, base: float) -> Matrix:
    """Return a query (width,) that finds the key of `back` = 0 most where it stands so far back."""
    frequencies = base ** (-2.0 * np.arange(_FAST) / width)
    length = math.sqrt(_AT_PLACE * math.sqrt(width))
    made = np.zeros((2, width // 2))
    made[:, :_FAST] = np.cos(frequencies * back), -np.sin(frequencies * back)
    return length * made.reshape(-1)


def _orthonormal(random: np.random.Generator, rows: int, columns: int) -> Matrix:
    """Draw orthonormal columns (rows, columns)."""
    size = max(rows, columns)
    square, _ = np.linalg.qr(random.standard_normal((size, size)))
    return np.asarray(square[:rows, :columns])


def _small(random: np.random.Generator, rows: int, inputs: int) -> Matrix:
    return random.standard_normal((rows, inputs)) * 0.2 / math.sqrt(inputs)


def _without(vectors: Matrix, direction: Matrix) -> Matrix:
    """Return the vectors (n, d) less what they have of a unit vector (d,)."""
    return vectors - np.outer(vectors @ direction, direction)
