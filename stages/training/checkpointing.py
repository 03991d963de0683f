"""Gradient checkpointing: blocks keep their inputs alone, and are computed again for gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import NoneType
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_map

from stages.lora.bank import Bank, Parameters
from stages.lora.full import Tuning
from stages.lora.layers import Routing

_STATELESS = (mx.array, int, float, str, NoneType)
"""What a block may be given; anything else, such as a key-value cache, may change when it is
computed, so that a second time is not like the first."""

_HOLE = object()
"""Stands where one was taken out."""

_Places = Sequence[tuple[nn.Module, str]]


@contextmanager
def gradient_checkpointing(tuning: Tuning, parameters: Parameters) -> Iterator[None]:
    """Let each block of this very model keep only its inputs until its backward pass.

    `parameters` names what is trained. Losses and gradients are those without; the forward pass
    of the blocks is computed twice. Other models, of the same class too, and this one afterwards
    are as they were. Method: arXiv 1604.06174.
    """
    modules: dict[str, nn.Module] = dict(tuning.model.named_modules())
    paths = {id(module): path for path, module in modules.items()}
    routing = Routing()
    if isinstance(tuning, Bank):
        # By its own paths: some experts lie within what routes them.
        modules, routing = modules | tuning.layers, tuning.routing
    with ExitStack() as stack:
        # A block may stand there twice, or be on another machine.
        blocks = {id(block): block for block in tuning.model.layers if block is not None}
        for key, block in blocks.items():
            places = [(modules[path], name)
                      for path, names in parameters.items()
                      if f"{path}.".startswith(f"{paths[key]}.")
                      for name in names]  # fmt: skip
            stack.enter_context(called_as(block, _checkpointed(type(block), places, routing)))
        yield


@contextmanager
def called_as(block: nn.Module, call: Callable[..., Any]) -> Iterator[None]:
    """Let `call` be what calling this very block does, for a while."""
    # A class of its own: paths, attributes and what else holds the block stay as they are.
    kind = type(block)
    block.__class__ = type(
        kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__}
    )
    try:
        yield
    finally:
        block.__class__ = kind


def _checkpointed(kind: type[nn.Module], places: _Places, routing: Routing) -> Callable[..., Any]:
    """Return what calls a block of class `kind` with checkpointing.

    The backward pass runs when the trained weights and the routing of this batch are gone from the
    model: both are put back for it.
    """

    def call(block: nn.Module, *arguments: Any, **options: Any) -> Any:
        leaves = tree_flatten((arguments, options))
        if not all(isinstance(leaf, _STATELESS) for _, leaf in leaves):
            return kind.__call__(block, *arguments, **options)
        given, inputs = _apart((arguments, options))
        count = len(inputs)
        batch = routing.adapter, routing.dropout_keys
        made: list[Any] = []

        def compute(*values: mx.array) -> list[mx.array]:
            arguments, options = _together(given, values[:count])
            with _at(routing, batch), _put(places, values[count:]):
                result, arrays = _apart(kind.__call__(block, *arguments, **options))
            made[:] = [result]
            return arrays

        @mx.custom_function
        def outputs(values: list[mx.array]) -> list[mx.array]:
            return compute(*values)

        @outputs.vjp
        def _(
            values: list[mx.array], cotangents: list[mx.array], _: list[mx.array]
        ) -> list[mx.array]:
            # Not before the blocks above are done; MLX would otherwise compute all of them first.
            _, gradients = mx.vjp(compute, mx.depends(values, cotangents), cotangents)
            below, own = gradients[:count], gradients[count:]
            # And the blocks below not before this one needs its activations no more.
            return [*(mx.depends(below, own) if below and own else below), *own]

        weights = [module[name] for module, name in places]
        arrays: Any = outputs(inputs + weights)
        return _together(made[0], arrays)

    return call


@contextmanager
def _at(routing: Routing, batch: tuple[mx.array | None, mx.array | None]) -> Iterator[None]:
    kept = routing.adapter, routing.dropout_keys
    routing.adapter, routing.dropout_keys = batch
    try:
        yield
    finally:
        routing.adapter, routing.dropout_keys = kept


@contextmanager
def _put(places: _Places, weights: Sequence[mx.array]) -> Iterator[None]:
    kept = [module[name] for module, name in places]
    for (module, name), weight in zip(places, weights, strict=True):
        module[name] = weight
    try:
        yield
    finally:
        for (module, name), weight in zip(places, kept, strict=True):
            module[name] = weight


def _apart(tree: Any) -> tuple[Any, list[mx.array]]:
    """Take the differentiable arrays out of `tree`; returns what is left, and them.

    What is left must not hold them: a block's own result holds all its activations.
    """
    arrays: list[mx.array] = []

    def take(leaf: Any) -> Any:
        if not isinstance(leaf, mx.array) or not mx.issubdtype(leaf.dtype, mx.floating):
            return leaf
        arrays.append(leaf)
        return _HOLE

    return tree_map(take, tree), arrays


def _together(tree: Any, arrays: Sequence[mx.array]) -> Any:
    """Put arrays where `_apart` has taken some out."""
    waiting = iter(arrays)
    return tree_map(lambda leaf: next(waiting) if leaf is _HOLE else leaf, tree)
