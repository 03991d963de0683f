"""The adapted linear layer: one frozen base, K low-rank adapters (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
from mlx import nn

from stages.lora.keys import fold, words


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """What an adapter is apart from its weights."""

    rank: int
    scale: float
    """The low-rank update is multiplied by this."""
    dropout: float = 0.0
    """Share of the adapter's inputs set to zero while training."""
    dora: bool = False
    """Also trains the norm of every row of the weight."""


@dataclass(slots=True)
class Routing:
    """What every adapted layer must know about the batch at hand; the layers share one."""

    adapter: mx.array | None = None
    """Adapter of each row, (B,) integers; None: K equal groups of consecutive rows."""
    dropout_keys: mx.array | None = None
    """Key of each token, (B, T, 2) uint32; None: no dropout."""


class LoRALinear(nn.Module):  # type: ignore[misc]  # MLX's modules are untyped
    """A frozen linear layer plus `scale * (x @ lora_a) @ lora_b` of the row's own adapter.

    `lora_a` is (K, in, r) and `lora_b` (K, r, out), float32 and zero beyond an adapter's own
    rank; the update is computed in the type of `x`, whose leading axis holds the rows.
    """

    trained: ClassVar[tuple[str, ...]] = ("lora_a", "lora_b")
    """Names of the trained weights."""

    def __init__(
        self, linear: nn.Module, path: str, shapes: Sequence[AdapterShape], routing: Routing
    ) -> None:
        super().__init__()
        self.linear = linear
        input_dims, output_dims = linear_dims(linear)
        rank = max(shape.rank for shape in shapes)
        self.lora_a = mx.zeros((len(shapes), input_dims, rank))
        self.lora_b = mx.zeros((len(shapes), rank, output_dims))
        self.scale = tuple(shape.scale for shape in shapes)
        self.dropout = tuple(shape.dropout for shape in shapes)
        self.routing = routing
        self.salt = words(fold(0, "layer", path))

    def put(self, weights: Mapping[str, mx.array]) -> None:
        """Compute with these weights from now on."""
        for name in self.trained:
            self[name] = weights[name]

    def __call__(self, x: mx.array) -> mx.array:
        """Return the base layer's output plus the update."""
        y: mx.array = self.linear(x)
        if self.routing.dropout_keys is not None and any(self.dropout):
            x = self._drop(x, self.routing.dropout_keys)
        lora_a, lora_b = self.lora_a.astype(x.dtype), self.lora_b.astype(x.dtype)
        if len(self.scale) == 1:
            z = x @ mx.squeeze(lora_a, 0)
            return mx.addmm(y, z, mx.squeeze(lora_b, 0), alpha=self.scale[0])
        scale = mx.array(self.scale, dtype=x.dtype)[:, None, None]
        adapter = self.routing.adapter
        if adapter is None:
            z = x.reshape(len(self.scale), -1, x.shape[-1]) @ lora_a
            update = (scale * z) @ lora_b
        else:
            z = x.reshape(adapter.size, -1, x.shape[-1])
            z = mx.gather_mm(z, lora_a, rhs_indices=adapter)
            update = mx.gather_mm(scale[adapter] * z, lora_b, rhs_indices=adapter)
        return y + update.reshape(y.shape)

    def _drop(self, x: mx.array, keys: mx.array) -> mx.array:
        # One key per token and layer: a row's mask does not depend on the batch or its padding.
        keys = keys.reshape(-1, 2) ^ mx.array(self.salt, dtype=mx.uint32)
        draw = mx.vmap(lambda key: mx.random.uniform(shape=(x.shape[-1],), key=key))
        kept = 1 - mx.array(self.dropout)[:, None, None]
        grouped = x.reshape(len(self.dropout), -1, x.shape[-1])
        mask = draw(keys).reshape(grouped.shape) < kept
        dropped: mx.array = mx.where(mask, grouped / kept.astype(x.dtype), 0).reshape(x.shape)
        return dropped


def linear_dims(linear: nn.Module) -> tuple[int, int]:
    """Return (in, out) of a plain or quantized linear layer."""
    output_dims, input_dims = linear.weight.shape
    if isinstance(linear, nn.QuantizedLinear):
        input_dims = linear.scales.shape[-1] * linear.group_size
    return input_dims, output_dims


def plain_weight(linear: nn.Module) -> mx.array:
    """Return the weight of a plain or quantized linear layer: float32 (out, in)."""
    weight: mx.array = linear.weight
    if not isinstance(linear, nn.QuantizedLinear):
        return weight.astype(mx.float32)
    scales, biases = linear.scales, linear.get("biases")
    if biases is not None:
        # In the type of the scales the weights would be rounded once more.
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    weight = mx.dequantize(
        weight, scales, biases,
        group_size=linear.group_size, bits=linear.bits, mode=linear.mode,
    )  # fmt: skip
    return weight.astype(mx.float32)
