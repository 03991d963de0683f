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
from stages.lora.adapt import adapt, check_shapes, route_mixtures
from stages.lora.experts import RoutedMixture
from stages.lora.keys import random_key
from stages.lora.layers import AdapterShape, LoRALayer, RankPattern, Routing, rank_axis
from stages.lora.targets import Targets
from stages.settings import Lora

Parameters = dict[str, dict[str, mx.array]]
"""Layer path -> `lora_a` and `lora_b`; stacked (K, in, r) in a bank, (in, r) in one adapter.
DoRA: and `m`, (1, out) or (out,). All weights of a model: module path -> its own names."""


@dataclass(slots=True)
class Bank:
    """K adapters on one model, with the zero padding of their ranks kept to itself."""

    model: nn.Module
    targets: Targets
    shapes: tuple[AdapterShape, ...]
    layers: dict[str, LoRALayer]
    mixtures: dict[str, RoutedMixture] = field(default_factory=dict)
    """Mixtures whose adapted experts must know which token a row is."""
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
        return [{path: {name: fit_rank(value[k], name, self.layers[path].ranks[k])
                        for name, value in weights.items()}
                 for path, weights in stacked.items()}
                for k in range(len(self.shapes))]  # fmt: skip

    def join(self, adapters: Sequence[Parameters]) -> Parameters:
        """Stack the matrices of all K adapters, zero-padded to the largest rank of each layer.

        Raises ValueError for a matrix whose rank is not the one that its adapter has there.
        """
        return {path: {name: _stacked([_padded(adapter[path][name], f"{path}.{name}", layer, k)
                                       for k, adapter in enumerate(adapters)])
                       for name in layer.trained}
                for path, layer in self.layers.items()}  # fmt: skip

    @property
    def has_dropout(self) -> bool:
        """Tell whether any adapter drops inputs while training."""
        return any(shape.dropout for shape in self.shapes)

    def attach(self) -> None:
        """Put the adapted layers on the model again."""
        _put(self.model, self.layers)
        _put(self.model, self.mixtures)

    def detach(self) -> None:
        """Give the model its own layers back."""
        _put(self.model, {path: mixture.mixture for path, mixture in self.mixtures.items()})
        _put(self.model, {path: layer.base for path, layer in self.layers.items()})


def attach(model: nn.Module, targets: Targets, shapes: Sequence[AdapterShape]) -> Bank:
    """Put K adapters of zeros on the targets of `model`; they change nothing until updated.

    Raises SettingError for a rank pattern that matches no target or another rank than a second
    one, and for a layer that cannot hold several adapters, DoRA or dropout, by its name.
    """
    check_shapes(targets, shapes)
    modules = dict(model.named_modules())
    routing = Routing(adapters=len(shapes))
    layers = {path: adapt(modules[path], path, shapes, routing) for path in targets.paths}
    mixtures = route_mixtures(modules, layers, routing)
    bank = Bank(model, targets, tuple(shapes), layers, mixtures, routing)
    bank.attach()
    return bank


def shape_of(lora: Lora) -> AdapterShape:
    """Return what the settings ask for; the scale is alpha/rank, for rslora alpha/sqrt(rank).

    Each layer's scale follows its own rank. Rank-stabilised scale: arXiv 2312.03732.
    """
    rank, alpha = lora.rank, lora.alpha
    if rank is None or alpha is None or lora.dropout is None:
        raise SettingError("lora", "rank, alpha or dropout is null", "set all three")

    def scale(rank: int) -> float:
        return alpha / (math.sqrt(rank) if lora.type == "rslora" else rank)

    patterns = tuple(RankPattern(pattern, own, scale(own))
                     for pattern, own in sorted(lora.ranks().items()))  # fmt: skip
    return AdapterShape(rank, scale(rank), lora.dropout, lora.type == "dora", patterns)


def initial(layers: Mapping[str, LoRALayer], shape: AdapterShape | int, seed: int) -> Parameters:
    """Draw a new adapter of `shape`, or of one rank in all layers, as PEFT does.

    It changes nothing yet. The layers are new too: of DoRA, `m` is taken as they have it.
    """
    ranks = {path: shape if isinstance(shape, int) else shape.at(path).rank for path in layers}
    return {path: layer.initial(ranks[path], random_key(seed, "lora_a", path))
            for path, layer in layers.items()}  # fmt: skip


def fit_rank(weight: mx.array, name: str, rank: int) -> mx.array:
    """Give one adapter's weight another rank: zeros are added, or the last ones cut off."""
    axis = rank_axis(name, weight.ndim)
    if axis is None or weight.shape[axis] == rank:
        return weight
    if weight.shape[axis] > rank:
        return mx.split(weight, [rank], axis=axis)[0]
    widths = [(0, 0)] * weight.ndim
    widths[axis] = (0, rank - weight.shape[axis])
    return mx.pad(weight, widths)


def _stacked(weights: Sequence[mx.array]) -> mx.array:
    # One alone needs no copy.
    return mx.stack(list(weights)) if len(weights) > 1 else mx.expand_dims(weights[0], 0)


def _padded(weight: mx.array, title: str, layer: LoRALayer, k: int) -> mx.array:
    name = title.rpartition(".")[2]
    axis = rank_axis(name, weight.ndim)
    if axis is not None and weight.shape[axis] != layer.ranks[k]:
        raise ValueError(f"{title} has rank {weight.shape[axis]}, its adapter {layer.ranks[k]}")
    return fit_rank(weight, name, max(layer.ranks))


def _put(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    model.update_modules(tree_unflatten(list(modules.items())))
