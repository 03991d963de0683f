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
from stages.lora.dora import DoRALinear
from stages.lora.keys import random_key
from stages.lora.layers import AdapterShape, LoRALinear, Routing
from stages.lora.targets import Targets
from stages.settings import Lora

Parameters = dict[str, dict[str, mx.array]]
"""Layer path -> `lora_a` and `lora_b`; stacked (K, in, r) in a bank, (in, r) in one adapter.
DoRA: and `m`, (1, out) or (out,). All weights of a model: module path -> its own names."""

_RANK_AXIS = {"lora_a": 1, "lora_b": 0}


@dataclass(slots=True)
class Bank:
    """K adapters on one model, with the zero padding of their ranks kept to itself."""

    model: nn.Module
    targets: Targets
    shapes: tuple[AdapterShape, ...]
    layers: dict[str, LoRALinear]
    routing: Routing = field(default_factory=Routing)
    merged: dict[str, mx.array] = field(default_factory=dict)
    """DoRA: what the rows of each weight were multiplied by when they were merged."""

    def parameters(self) -> Parameters:
        """Return the stacked weights of every adapted layer."""
        return {path: {name: layer[name] for name in layer.trained}
                for path, layer in self.layers.items()}  # fmt: skip

    def update(self, parameters: Parameters) -> None:
        """Put stacked weights into the layers."""
        for path, weights in parameters.items():
            self.layers[path].put(weights)

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
        return {path: {name: mx.stack([_pad(a[path][name], name, rank) for a in adapters])
                       for name in layer.trained}
                for path, layer in self.layers.items()}  # fmt: skip

    @property
    def has_dropout(self) -> bool:
        """Tell whether any adapter drops inputs while training."""
        return any(shape.dropout for shape in self.shapes)

    def attach(self) -> None:
        """Put the adapted layers on the model again."""
        self.model.update_modules(tree_unflatten(list(self.layers.items())))

    def detach(self) -> None:
        """Give the model its own layers back."""
        originals = [(path, layer.linear) for path, layer in self.layers.items()]
        self.model.update_modules(tree_unflatten(originals))


def attach(model: nn.Module, targets: Targets, shapes: Sequence[AdapterShape]) -> Bank:
    """Put K adapters of zeros on the targets of `model`; they change nothing until updated.

    Raises SettingError for several adapters of which one is DoRA: its norms are one adapter's own.
    """
    modules = dict(model.named_modules())
    routing = Routing()
    dora = any(shape.dora for shape in shapes)
    if dora and len(shapes) > 1:
        raise SettingError("lora.type", f"found 'dora' for one of {len(shapes)} adapters that "
                           "share a base", "train it alone, or use another type")  # fmt: skip
    kind = DoRALinear if dora else LoRALinear
    layers = {path: kind(modules[path], path, shapes, routing) for path in targets.paths}
    bank = Bank(model, targets, tuple(shapes), layers, routing)
    bank.attach()
    return bank


def shape_of(lora: Lora) -> AdapterShape:
    """Return what the settings ask for; the scale is alpha/rank, for rslora alpha/sqrt(rank).

    Rank-stabilised scale: arXiv 2312.03732.
    """
    if lora.rank is None or lora.alpha is None or lora.dropout is None:
        raise SettingError("lora", "rank, alpha or dropout is null", "set all three")
    scale = lora.alpha / (math.sqrt(lora.rank) if lora.type == "rslora" else lora.rank)
    return AdapterShape(lora.rank, scale, lora.dropout, lora.type == "dora")


def initial(layers: Mapping[str, LoRALinear], rank: int, seed: int) -> Parameters:
    """Draw a new adapter as PEFT does: `lora_a` Kaiming-uniform with a = sqrt(5), `lora_b` zero.

    The layers are new too: of DoRA, `m` is taken as they have it.
    """
    drawn: Parameters = {}
    for path, layer in layers.items():
        input_dims, output_dims = layer.lora_a.shape[1], layer.lora_b.shape[2]
        bound = 1 / math.sqrt(input_dims)
        key = random_key(seed, "lora_a", path)
        drawn[path] = {"lora_a": mx.random.uniform(-bound, bound, (input_dims, rank), key=key),
                       "lora_b": mx.zeros((rank, output_dims))}  # fmt: skip
        if isinstance(layer, DoRALinear):
            drawn[path]["m"] = mx.squeeze(layer.m, 0)
    return drawn


def _pad(weight: mx.array, name: str, rank: int) -> mx.array:
    axis = _RANK_AXIS.get(name)
    if axis is None or weight.shape[axis] == rank:
        return weight
    widths = [(0, 0), (0, 0)]
    widths[axis] = (0, rank - weight.shape[axis])
    return mx.pad(weight, widths)
