"""A model cut in two: blocks that give hidden states, and the head that makes logits of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

_BACKBONES = ("model", "language_model", "transformer", "backbone")
"""What mlx-lm's models call their blocks, in the order in which they are looked for."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a model is cut."""

    path: str
    """Path of the blocks: `model`, `language_model.model`; empty where the model cannot be cut."""
    shared: tuple[str, ...] = ()
    """Parts of the blocks that the head uses too: `embed_tokens` where the two are tied."""

    def in_head(self, path: str) -> bool:
        """Tell whether the module at `path` takes part in making logits of hidden states."""
        if not f"{path}.".startswith(f"{self.path}."):
            return True
        return path.removeprefix(f"{self.path}.").partition(".")[0] in self.shared


UNCUT = Cut("")
"""The model that cannot be cut: its head lies within its blocks (gpt_neox, olmo, gemma3n)."""


def find_cut(model: nn.Module) -> Cut:
    """Find where `model` can be cut, and prove it on three tokens; `UNCUT` where it cannot.

    The head is the model's own `__call__` with the blocks taken out, so that soft-caps and scales
    are what the model defines.
    """
    tokens = mx.array([[1, 0, 1]])
    for path in reversed(list(_candidates(model))):
        # What a model does when it is cut in the wrong place is its own affair.
        try:
            blocks = _Blocks(module_at(model, path))
            expected = _without(model, path, blocks)(tokens)
            hidden = blocks.hidden
            if hidden is None or hidden.ndim != 3 or hidden.shape == expected.shape:
                continue
            cut = Cut(path, tuple(sorted(blocks.used & _submodules(blocks.inner))))
            if _same(logits(model, cut, hidden[0, 1:]), expected[0, 1:]):
                return cut
        except Exception:
            continue
    return UNCUT


def hidden_states(model: nn.Module, cut: Cut, tokens: mx.array) -> mx.array:
    """Return the hidden states of `tokens` (B, T) that the head is given: (B, T, H).

    The blocks are called as the model calls them; the logits that it makes are never evaluated.
    """
    blocks = _Blocks(module_at(model, cut.path))
    _without(model, cut.path, blocks)(tokens)
    assert blocks.hidden is not None, "find_cut has seen the blocks called"
    return blocks.hidden


def logits(model: nn.Module, cut: Cut, hidden: mx.array) -> mx.array:
    """Return what the model's head makes of hidden states: (N, H) to (N, V)."""
    blocks = _Blocks(module_at(model, cut.path), hidden[None])
    made: mx.array = _without(model, cut.path, blocks)(mx.zeros((1, hidden.shape[0]), mx.int32))
    # Not made[0]: the gradient of an index is a scatter over all logits.
    return mx.squeeze(made, 0)


def module_at(model: nn.Module, path: str) -> nn.Module:
    """Return the module at `path`, the model itself for an empty one."""
    module = model
    for name in path.split(".") if path else ():
        module = getattr(module, name)
    return module


class _Blocks:
    """Stands in for the blocks: gives known hidden states, or keeps those that the blocks give."""

    def __init__(self, inner: nn.Module, hidden: mx.array | None = None) -> None:
        self.inner, self.hidden = inner, hidden
        self.used: set[str] = set()
        """What else was asked of the blocks."""

    def __call__(self, *arguments: Any, **options: Any) -> mx.array:
        if self.hidden is None:
            self.hidden = self.inner(*arguments, **options)
        return self.hidden

    def __getattr__(self, name: str) -> Any:
        self.used.add(name)
        return getattr(self.inner, name)


def _candidates(model: nn.Module) -> Iterator[str]:
    """Yield the paths of what may be the blocks, from the outside in."""
    path, inner = "", model
    while True:
        name = next((n for n in _BACKBONES if isinstance(getattr(inner, n, None), nn.Module)), None)
        if name is None:
            return
        path, inner = f"{path}.{name}".removeprefix("."), getattr(inner, name)
        yield path


def _without(model: nn.Module, path: str, blocks: _Blocks) -> nn.Module:
    """Copy the modules above the blocks, and put `blocks` in the place of these."""
    name, _, rest = path.partition(".")
    outer = copy.copy(model)
    setattr(outer, name, _without(getattr(model, name), rest, blocks) if rest else blocks)
    return outer


def _submodules(module: nn.Module) -> set[str]:
    return {name for name, child in module.children().items() if isinstance(child, nn.Module)}


def _same(found: mx.array, expected: mx.array) -> bool:
    """Compare logits up to what another shape of the matrix product changes."""
    if found.shape != expected.shape:
        return False
    one, other = (np.nan_to_num(np.array(value.astype(mx.float32)), nan=0, posinf=0, neginf=0)
                  for value in (found, expected))  # fmt: skip
    return bool(np.abs(one - other).max() <= 0.02 * np.abs(other).max())
