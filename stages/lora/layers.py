"""The adapted linear layer: one frozen base, K low-rank adapters (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import mlx.core as mx
from mlx import nn

from stages.lora.keys import fold, words
from stages.lora.targets import matches
from stages.lora.weights import weight_dims


@dataclass(frozen=True, slots=True)
class RankPattern:
    """The layers that have a rank of their own."""

    pattern: str
    """Matched against the end of a layer's path."""
    rank: int
    scale: float


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
    patterns: tuple[RankPattern, ...] = ()
    """Layers with another rank and scale; no layer matches two that differ."""

    def at(self, path: str) -> AdapterShape:
        """Return the shape that the layer at `path` has."""
        for own in self.patterns:
            if matches(path, own.pattern):
                return replace(self, rank=own.rank, scale=own.scale, patterns=())
        return replace(self, patterns=()) if self.patterns else self


@dataclass(slots=True)
class Routing:
    """What every adapted layer must know about the batch at hand; the layers share one."""

    adapter: mx.array | None = None
    """Adapter of each row, (B,) integers; None: K equal groups of consecutive rows."""
    dropout_keys: mx.array | None = None
    """Key of each token, (B, T, 2) uint32; None: no dropout."""
    experts: mx.array | None = None
    """Experts of each token, (…, M), while a mixture's own layers compute."""
    adapters: int = 1
    """K."""

    @contextmanager
    def at(self, positions: mx.array, shape: tuple[int, int]) -> Iterator[None]:
        """Let the layers see some tokens alone, as a head does: places (n,) in a (B, T) batch."""
        kept = self.adapter, self.dropout_keys
        rows, width = shape
        if self.dropout_keys is not None:
            self.dropout_keys = self.dropout_keys.reshape(-1, 2)[positions]
        if self.adapters > 1:
            row = positions // width
            if self.adapter is None:
                self.adapter = row * self.adapters // rows
            else:
                self.adapter = self.adapter[row]
        try:
            yield
        finally:
            self.adapter, self.dropout_keys = kept


class LoRALayer(nn.Module):  # type: ignore[misc]  # MLX's modules are untyped
    """What every adapted layer has: a frozen base, K adapters on it, and the batch's routing.

    Weights are float32, stacked along a first axis K, and zero beyond an adapter's own rank; the
    update is computed in the type of the layer's output.
    """

    trained: ClassVar[tuple[str, ...]] = ("lora_a", "lora_b")
    """Names of the trained weights."""

    def __init__(self, path: str, shapes: Sequence[AdapterShape], routing: Routing) -> None:
        super().__init__()
        own = [shape.at(path) for shape in shapes]
        self.ranks = tuple(shape.rank for shape in own)
        self.scale = tuple(shape.scale for shape in own)
        self.dropout = tuple(shape.dropout for shape in own)
        self.routing = routing
        self.salt = words(fold(0, "layer", path))

    @property
    def base(self) -> nn.Module:
        """Return the frozen layer."""
        return self.linear

    def put(self, weights: Mapping[str, mx.array]) -> None:
        """Compute with these weights from now on."""
        for name in self.trained:
            self[name] = weights[name]

    def initial(self, rank: int, key: mx.array) -> dict[str, mx.array]:
        """Draw a new adapter of this layer that changes nothing yet; the layer is new too."""
        raise NotImplementedError

    def weight_update(self) -> mx.array:
        """Return what the only adapter adds to the base's weight: float32, shaped like it."""
        raise NotImplementedError

    def _only(self, dtype: mx.Dtype = mx.float32) -> tuple[float, mx.array, mx.array]:
        """Return scale, `lora_a` and `lora_b` of the only adapter."""
        (scale,) = self.scale
        lora_a, lora_b = mx.squeeze(self.lora_a, 0), mx.squeeze(self.lora_b, 0)
        return scale, lora_a.astype(dtype), lora_b.astype(dtype)

    @property
    def _drops(self) -> bool:
        return self.routing.dropout_keys is not None and any(self.dropout)

    def _draw(self, width: int, salt: tuple[int, int]) -> mx.array:
        """Draw `width` numbers in [0, 1) for each token of the batch: (tokens, width)."""
        keys = self.routing.dropout_keys
        if keys is None:
            raise ValueError("a batch without dropout keys drops nothing")
        # One key per token and layer: a row's mask does not depend on the batch or its padding.
        keys = keys.reshape(-1, 2) ^ mx.array(salt, dtype=mx.uint32)
        draw = mx.vmap(lambda key: mx.random.uniform(shape=(width,), key=key))
        drawn: mx.array = draw(keys)
        return drawn

    def _drop(self, x: mx.array, salt: tuple[int, int] | None = None) -> mx.array:
        kept = 1 - mx.array(self.dropout)[:, None, None]
        if self.routing.adapter is not None:
            kept = kept[self.routing.adapter]
        grouped = x.reshape(len(kept), -1, x.shape[-1])
        mask = self._draw(x.shape[-1], salt or self.salt).reshape(grouped.shape) < kept
        dropped: mx.array = mx.where(mask, grouped / kept.astype(x.dtype), 0).reshape(x.shape)
        return dropped


class LoRALinear(LoRALayer):
    """A frozen linear layer plus `scale * (x @ lora_a) @ lora_b` of the row's own adapter.

    `lora_a` is (K, in, r) and `lora_b` (K, r, out); the leading axis of `x` holds the rows.
    """

    def __init__(
        self, linear: nn.Module, path: str, shapes: Sequence[AdapterShape], routing: Routing
    ) -> None:
        super().__init__(path, shapes, routing)
        self.linear = linear
        input_dims, output_dims = linear_dims(linear)
        self.lora_a = mx.zeros((len(shapes), input_dims, max(self.ranks)))
        self.lora_b = mx.zeros((len(shapes), max(self.ranks), output_dims))

    def __call__(self, x: mx.array) -> mx.array:
        """Return the base layer's output plus the update."""
        y: mx.array = self.linear(x)
        if self._drops:
            x = self._drop(x)
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

    def initial(self, rank: int, key: mx.array) -> dict[str, mx.array]:
        """Draw as PEFT does: `lora_a` Kaiming-uniform with a = sqrt(5), `lora_b` zero."""
        input_dims, output_dims = linear_dims(self.linear)
        bound = input_dims**-0.5
        return {"lora_a": mx.random.uniform(-bound, bound, (input_dims, rank), key=key),
                "lora_b": mx.zeros((rank, output_dims))}  # fmt: skip

    def weight_update(self) -> mx.array:
        """Return scale * (A @ B)^T: (out, in). LoRA, section 4.1."""
        scale, lora_a, lora_b = self._only()
        update: mx.array = (scale * lora_b.T) @ lora_a.T
        return update


def linear_dims(linear: nn.Module) -> tuple[int, int]:
    """Return (in, out) of a plain or quantized linear layer."""
    output_dims, input_dims = weight_dims(linear)
    return input_dims, output_dims


def rank_axis(name: str, ndim: int) -> int | None:
    """Return which axis of one adapter's weight is its rank; None for one without, DoRA's `m`.

    Matrices are (in, r) and (r, out); those of experts, which have three axes, (experts, r, in)
    and (experts, out, r), as mlx-lm stores them.
    """
    first = {"lora_a": -1, "lora_b": -2}.get(name)
    return -3 - first if first is not None and ndim == 3 else first
