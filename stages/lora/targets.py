"""Which layers of a model are adapted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from mlx import nn

from stages.errors import SettingError

# Their weight has two or more axes, but x is not multiplied by it.
_NOT_LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.QuantizedEmbedding)


@dataclass(frozen=True, slots=True)
class Targets:
    """The adapted layers, as the adapter format names them."""

    num_layers: int
    """Blocks adapted, counted from the last."""
    keys: tuple[str, ...]
    """Paths inside a block, sorted: `self_attn.q_proj`."""
    paths: tuple[str, ...]
    """Paths inside the model, sorted: `model.layers.0.self_attn.q_proj`."""


def find_targets(model: nn.Module, patterns: Sequence[str], num_layers: int | None) -> Targets:
    """Find the linear layers that match `patterns` in the last `num_layers` blocks (None: all).

    A pattern is matched against the end of a path inside a block. Raises SettingError for a
    pattern without a match and for a matching layer that cannot be adapted, by their names.
    """
    blocks = len(model.layers)
    if num_layers is not None and num_layers > blocks:
        raise SettingError(
            "lora.num_layers", f"found {num_layers}, but the model has {blocks} blocks",
            f"set at most {blocks}, or null for all",
        )  # fmt: skip
    layers = linear_layers(model, num_layers or blocks)
    keys = sorted({key for key, _, _ in layers})
    for pattern in patterns:
        if not any(_matches(key, pattern) for key in keys):
            raise _no_match(pattern, keys)
    return select(layers, lambda key: any(_matches(key, p) for p in patterns), num_layers or blocks)


def select(
    layers: Iterable[tuple[str, str, nn.Module]], wanted: Callable[[str], bool], num_layers: int
) -> Targets:
    """Take the layers whose key is wanted; raises SettingError if one cannot be adapted."""
    chosen = [(key, path, layer) for key, path, layer in layers if wanted(key)]
    refused = sorted({f"{key} ({type(layer).__name__})" for key, _, layer in chosen
                      if not _is_supported(layer)})  # fmt: skip
    if refused:
        raise SettingError(
            "lora.targets", f"cannot adapt {', '.join(refused)}",
            "list the linear layers to adapt instead, for example ['self_attn.*']",
        )  # fmt: skip
    keys = tuple(sorted({key for key, _, _ in chosen}))
    return Targets(num_layers, keys, tuple(sorted(path for _, path, _ in chosen)))


def linear_layers(model: nn.Module, num_layers: int) -> list[tuple[str, str, nn.Module]]:
    """List (key, path, layer) of everything that multiplies by a matrix in the last blocks."""
    names = {id(module): name for name, module in model.named_modules()}
    found = []
    for block in model.layers[-num_layers:]:
        for key, module in block.named_modules():
            if key and _is_linear(module):
                found.append((key, f"{names[id(block)]}.{key}", module))
    return found


def _is_linear(module: nn.Module) -> bool:
    if hasattr(module, "to_lora"):
        return True
    has_matrix = "weight" in module and module.weight.ndim >= 2
    return has_matrix and not isinstance(module, _NOT_LINEAR)


def _is_supported(module: nn.Module) -> bool:
    # A layer with a conversion of its own (`to_lora`) computes something else than x @ W.T.
    return isinstance(module, nn.Linear | nn.QuantizedLinear) and not hasattr(module, "to_lora")


def _matches(key: str, pattern: str) -> bool:
    return fnmatchcase(key, pattern) or fnmatchcase(key, f"*.{pattern}")


def _no_match(pattern: str, keys: Sequence[str]) -> SettingError:
    names = {key.rsplit(".", 1)[-1]: key for key in keys} | {key: key for key in keys}
    close = get_close_matches(pattern, names, n=1)
    mend = f"did you mean {close[0]!r}?" if close else f"the model has {', '.join(keys)}"
    return SettingError("lora.targets", f"{pattern!r} matches no linear layer of the model", mend)
