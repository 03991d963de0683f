"""One frozen base, K adapters: put on a model, taken off again, split into single adapters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten

from stages.errors import SettingError
from stages.lora.keys import random_key
from stages.lora.layers import AdapterShape, LoRALinear, Routing
from stages.lora.targets import Targets
from stages.settings import Lora

Parameters = dict[str, dict[str, mx.array]]
"""Layer path -> `lora_a` and `lora_b`; stacked (K, in, r) in a bank, (in, r) in one adapter."""


@dataclass(slots=True)
class Bank:
    """K adapters on one model, with the zero padding of their ranks kept to itself."""

    model: nn.Module
    targets: Targets
    shapes: tuple[AdapterShape, ...]
    layers: dict[str, LoRALinear]
    routing: Routing = field(default_factory=Routing)

    def parameters(self) -> Parameters:
        """Return the stacked weights of every adapted layer."""
        return {path: {"lora_a": layer.lora_a, "lora_b": layer.lora_b}
                for path, layer in self.layers.items()}  # fmt: skip

    def update(self, parameters: Parameters) -> None:
        """Put stacked weights into the layers."""
        for path, weights in parameters.items():
            self.layers[path].lora_a = weights["lora_a"]
            self.layers[path].lora_b = weights["lora_b"]

    @contextmanager
    def using(
        self,
        parameters: Parameters,
        *,
        adapter: mx.array | None = None,
        dropout_keys: mx.array | None = None,
    ) -> Iterator[None]:
        """Compute with other weights and routing for a while: traced ones never stay behind."""
        kept = self.parameters()
        self.update(parameters)
        self.routing.adapter, self.routing.dropout_keys = adapter, dropout_keys
        try:
            yield
        finally:
            self.update(kept)
            self.routing.adapter, self.routing.dropout_keys = None, None

    def split(self, stacked: Parameters) -> list[Parameters]:
        """Return each adapter's own matrices, unpadded; without a copy where K = 1."""
        if len(self.shapes) == 1:
            return [{path: {name: mx.squeeze(value, 0) for name, value in weights.items()}
                     for path, weights in stacked.items()}]  # fmt: skip
        return [{path: {"lora_a": weights["lora_a"][k, :, : shape.rank],
                        "lora_b": weights["lora_b"][k, : shape.rank]}
                 for path, weights in stacked.items()}
                for k, shape in enumerate(self.shapes)]  # fmt: skip

    def join(self, adapters: Sequence[Parameters]) -> Parameters:
        """Stack the matrices of all K adapters, zero-padded to the largest rank."""
        rank = max(shape.rank for shape in self.shapes)
        return {path: {"lora_a": mx.stack([_pad(a[path]["lora_a"], 1, rank) for a in adapters]),
                       "lora_b": mx.stack([_pad(a[path]["lora_b"], 0, rank) for a in adapters])}
                for path in self.layers}  # fmt: skip

    @property
    def has_dropout(self) -> bool:
        """Tell whether any adapter drops inputs while training."""
        return any(shape.dropout for shape in self.shapes)

    def detach(self) -> None:
        """Give the model its own layers back."""
        originals = [(path, layer.linear) for path, layer in self.layers.items()]
        self.model.update_modules(tree_unflatten(originals))


def attach(model: nn.Module, targets: Targets, shapes: Sequence[AdapterShape]) -> Bank:
    """Put K adapters of zeros on the targets of `model`; they change nothing until updated."""
    modules = dict(model.named_modules())
    routing = Routing()
    layers = {path: LoRALinear(modules[path], path, shapes, routing) for path in targets.paths}
    model.update_modules(tree_unflatten(list(layers.items())))
    return Bank(model, targets, tuple(shapes), layers, routing)


def shape_of(lora: Lora) -> AdapterShape:
    """Return rank, scale and dropout of the settings: alpha/rank, or alpha/sqrt(rank) for rslora.

    Rank-stabilised scale: arXiv 2312.03732.
    """
    if lora.rank is None or lora.alpha is None or lora.dropout is None:
        raise SettingError("lora", "rank, alpha or dropout is null", "set all three")
    scale = lora.alpha / (math.sqrt(lora.rank) if lora.type == "rslora" else lora.rank)
    return AdapterShape(lora.rank, scale, lora.dropout)


def initial(layers: Mapping[str, LoRALinear], rank: int, seed: int) -> Parameters:
    """Draw a new adapter as PEFT does: `lora_a` Kaiming-uniform with a = sqrt(5), `lora_b` zero."""
    drawn: Parameters = {}
    for path, layer in layers.items():
        input_dims, output_dims = layer.lora_a.shape[1], layer.lora_b.shape[2]
        bound = 1 / math.sqrt(input_dims)
        key = random_key(seed, "lora_a", path)
        drawn[path] = {"lora_a": mx.random.uniform(-bound, bound, (input_dims, rank), key=key),
                       "lora_b": mx.zeros((rank, output_dims))}  # fmt: skip
    return drawn


def _pad(matrix: mx.array, axis: int, rank: int) -> mx.array:
    missing = rank - matrix.shape[axis]
    widths = [(0, 0), (0, 0)]
    widths[axis] = (0, missing)
    return mx.pad(matrix, widths) if missing else matrix
