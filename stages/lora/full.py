"""All weights of a model, trained themselves: no adapter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from stages.lora.bank import Bank, Parameters

Weights = dict[str, mx.array]
"""By full name: `model.layers.0.self_attn.q_proj.weight`."""


@dataclass(slots=True)
class FullWeights:
    """The weights of a floating-point model and others in their place; used as a Bank is.

    Trained in float32, computed and stored in the types that the model has.
    """

    model: nn.Module
    base: Weights
    tuned: Weights

    @property
    def has_dropout(self) -> bool:
        """There is no adapter whose inputs could be dropped."""
        return False

    def parameters(self) -> Parameters:
        """Return the tuned weights in float32, by module."""
        nested: Parameters = {}
        for name, weight in self.tuned.items():
            path, _, leaf = name.rpartition(".")
            nested.setdefault(path, {})[leaf] = weight.astype(mx.float32)
        return nested

    def stored(self, parameters: Parameters) -> Weights:
        """Return weights by full name, in the types that the model has."""
        return {name: parameters[path][leaf].astype(weight.dtype)
                for name, weight in self.base.items()
                for path, _, leaf in [name.rpartition(".")]}  # fmt: skip

    def update(self, parameters: Parameters) -> None:
        """Put other weights into the model."""
        self.tuned = self.stored(parameters)
        self.attach()

    @contextmanager
    def using(
        self, parameters: Parameters, *, dropout_keys: mx.array | None = None
    ) -> Iterator[None]:
        """Compute with other weights for a while: traced ones never stay behind."""
        _load(self.model, self.stored(parameters))
        try:
            yield
        finally:
            self.attach()

    def split(self, parameters: Parameters) -> list[Parameters]:
        """Return the one set of weights there is."""
        return [parameters]

    def join(self, sets: list[Parameters]) -> Parameters:
        """Return the one set of weights there is."""
        [parameters] = sets
        return parameters

    def attach(self) -> None:
        """Put the tuned weights into the model."""
        _load(self.model, self.tuned)

    def detach(self) -> None:
        """Give the model its own weights back."""
        _load(self.model, self.base)


Tuning = Bank | FullWeights
"""What is trained on one base: adapters, or all its weights."""


def all_weights(model: nn.Module) -> FullWeights:
    """Take every floating-point weight of `model`: embeddings, norms and head too."""
    base = {name: weight for name, weight in tree_flatten(model.parameters())
            if mx.issubdtype(weight.dtype, mx.floating)}  # fmt: skip
    return FullWeights(model, base, base)


def _load(model: nn.Module, weights: Weights) -> None:
    model.update(tree_unflatten(list(weights.items())))
