"""The frozen blocks below the first adapted one: what they give, and the model without them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map

from stages.lora.bank import Bank
from stages.lora.full import Tuning
from stages.training.checkpointing import called_as

Blocks = tuple[nn.Module, ...]
"""From the lowest on; empty where there is nothing to leave out."""


class _Reached(Exception):
    """The highest of the blocks has given its output; no block above is called."""

    def __init__(self, output: mx.array) -> None:
        super().__init__()
        self.output = output


def frozen_blocks(tuning: Tuning) -> Blocks:
    """Return the blocks below the first that holds an adapted layer; all if none does."""
    if not isinstance(tuning, Bank):
        return ()
    paths = {id(module): path for path, module in tuning.model.named_modules()}
    layers = list(tuning.model.layers)
    if any(layer is None for layer in layers):
        # On another machine.
        return ()
    adapted = [any(path.startswith(f"{paths[id(layer)]}.") for path in tuning.layers)
               for layer in layers]  # fmt: skip
    first = adapted.index(True) if True in adapted else len(layers)
    above = set(map(id, layers[first:]))
    # A block that stands above too must be computed there.
    return () if any(id(layer) in above for layer in layers[:first]) else tuple(layers[:first])


def hidden_below(model: nn.Module, blocks: Blocks, tokens: mx.array) -> mx.array:
    """Return what the highest of `blocks` gives for tokens (B, T): (B, T, H)."""
    kind = type(blocks[-1])

    def stop(block: nn.Module, *arguments: Any, **options: Any) -> Any:
        raise _Reached(kind.__call__(block, *arguments, **options))

    try:
        with called_as(blocks[-1], stop):
            model(tokens)
    except _Reached as reached:
        return reached.output
    raise ValueError("the model does not call its own blocks")


@contextmanager
def given(blocks: Blocks, hidden: Sequence[mx.array]) -> Iterator[None]:
    """Let the highest of `blocks` give these hidden states, (B, T, H), and compute none of them.

    The model's own `__call__` stays, with its masks and positions. Without any hidden states
    nothing is changed.
    """
    if not hidden:
        yield
        return
    [output] = hidden
    with ExitStack() as stack:
        # A block may stand there twice.
        for block in {id(block): block for block in blocks}.values():
            stack.enter_context(called_as(block, lambda _, x, *__, **___: x))
        stack.enter_context(called_as(blocks[-1], lambda *_, **__: output))
        yield


def prove(tuning: Bank, blocks: Blocks) -> mx.array | None:
    """Return hidden states (B, T, H) of a few tokens, if `blocks` can be left out; else None.

    They can where no adapted layer takes part in their output, and that is all that the model
    above needs of them. Some models hand keys, values or a second stream upwards too.
    """
    model, tokens = tuning.model, mx.array([[1, 0, 1], [0, 1, 1]])
    not_numbers = tree_map(lambda weight: mx.full(weight.shape, mx.nan), tuning.parameters())
    model.eval()
    # What a model does when it is cut in the wrong place is its own affair.
    try:
        with tuning.using(not_numbers):
            hidden = hidden_below(model, blocks, tokens)
            mx.eval(hidden)
        tuning.detach()
        own = hidden_below(model, blocks, tokens)
        expected = model(tokens)
        with given(blocks, [own]):
            found = model(tokens)
        same = mx.array_equal(hidden, own) & mx.array_equal(found, expected, equal_nan=True)
        shaped = hidden.ndim == 3 and hidden.shape[:2] == tokens.shape
        return hidden if shaped and same.item() else None
    except Exception:
        return None
    finally:
        tuning.attach()
