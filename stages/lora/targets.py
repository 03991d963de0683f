"""Which layers of a model are adapted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Literal

from mlx import nn
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from stages.errors import SettingError

Kind = Literal["linear", "embedding", "experts", "other"]
"""What a layer with a matrix is; an `other` one computes something that no adapter fits."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SPELL = "write its name in lora.targets to adapt it"


@dataclass(frozen=True, slots=True)
class Targets:
    """The adapted layers, as the adapter format names them."""

    num_layers: int
    """Blocks adapted, counted from the last."""
    keys: tuple[str, ...]
    """Sorted: a path inside a block (`self_attn.q_proj`) for all adapted blocks that have it, a
    path inside the model for a single layer (`lm_head`, `model.layers.0.self_attn.q_proj`)."""
    paths: tuple[str, ...]
    """Paths inside the model, sorted: `model.layers.0.self_attn.q_proj`."""


@dataclass(frozen=True, slots=True)
class MatrixLayer:
    """A layer that has a matrix, in one of the last blocks or outside the blocks."""

    path: str
    key: str | None
    """Path inside its block; None outside the blocks."""
    module: nn.Module
    kind: Kind

    @property
    def title(self) -> str:
        """Name the layer for a person: `mlp.gate (MoEGate)`."""
        return f"{self.key or self.path} ({type(self.module).__name__})"

    def taken_by(self, pattern: str) -> bool:
        """Tell whether `pattern` asks for this layer.

        Any match takes a linear layer of a block. Others must be spelt: an embedding and what lies
        outside the blocks by its own name, an expert by its own or by that of what holds it.
        """
        if not matches(self.path, pattern):
            return False
        if self.kind == "linear" and self.key is not None:
            return True
        names = self.path.split(".")[-2 if self.kind == "experts" else -1 :]
        return not set(names).isdisjoint(pattern.split("."))


def find_targets(model: nn.Module, patterns: Sequence[str], num_layers: int | None) -> Targets:
    """Find the layers that `patterns` ask for, in the last `num_layers` blocks (None: all).

    A pattern is matched against the end of a layer's path. `*` takes every linear layer of the
    blocks; experts, embeddings and layers outside the blocks are taken where their name is spelt
    (`switch_mlp.*`, `embed_tokens`, `lm_head`). Raises SettingError for a pattern that takes
    nothing and for a layer asked for that cannot be adapted, by their names.
    """
    blocks = len(model.layers)
    if num_layers is not None and num_layers > blocks:
        raise SettingError(
            "lora.num_layers", f"found {num_layers}, but the model has {blocks} blocks",
            f"set at most {blocks}, or null for all",
        )  # fmt: skip
    layers = matrix_layers(model, num_layers or blocks)
    for pattern in patterns:
        if not any(layer.taken_by(pattern) for layer in layers):
            raise _no_match(pattern, layers)
    return select(layers, lambda layer: any(map(layer.taken_by, patterns)), num_layers or blocks)


def left_out(model: nn.Module, patterns: Sequence[str], num_layers: int | None) -> tuple[str, ...]:
    """Name the layers of the blocks that a pattern matches and none takes, sorted, once each.

    They are experts, embeddings and what cannot be adapted: `mlp.gate (MoEGate)`.
    """
    layers = matrix_layers(model, num_layers or len(model.layers))
    return tuple(sorted({layer.title for layer in layers
                         if layer.key is not None
                         and any(matches(layer.path, pattern) for pattern in patterns)
                         and not any(map(layer.taken_by, patterns))}))  # fmt: skip


def select(
    layers: Iterable[MatrixLayer], wanted: Callable[[MatrixLayer], bool], num_layers: int
) -> Targets:
    """Take the layers that are wanted; raises SettingError if one cannot be adapted."""
    layers = list(layers)
    chosen = [layer for layer in layers if wanted(layer)]
    refused = sorted({layer.title for layer in chosen if layer.kind == "other"})
    if refused:
        raise SettingError(
            "lora.targets", f"cannot adapt {', '.join(refused)}",
            "list the linear layers to adapt instead, for example ['self_attn.*']",
        )  # fmt: skip
    paths = {layer.path for layer in chosen}
    partly = {layer.key for layer in layers if layer.path not in paths}
    keys = {layer.path if layer.key in partly or layer.key is None else layer.key
            for layer in chosen}  # fmt: skip
    return Targets(num_layers, tuple(sorted(keys)), tuple(sorted(paths)))


def matrix_layers(model: nn.Module, num_layers: int) -> list[MatrixLayer]:
    """List every layer with a matrix in the last blocks and outside the blocks."""
    names = {id(module): name for name, module in model.named_modules()}
    found = []
    inside = {id(module) for block in model.layers for _, module in block.named_modules()}
    for path, module in model.named_modules():
        if id(module) not in inside and (kind := kind_of(module)):
            found.append(MatrixLayer(path, None, module, kind))
    for block in model.layers[-num_layers:]:
        for key, module in block.named_modules():
            if key and (kind := kind_of(module)):
                found.append(MatrixLayer(f"{names[id(block)]}.{key}", key, module, kind))
    return found


def matches(path: str, pattern: str) -> bool:
    """Tell whether `path`, or the end of it from a dot on, looks like `pattern`."""
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"*.{pattern}")


def kind_of(module: nn.Module) -> Kind | None:
    """Tell what a layer is; None for one without a matrix that it multiplies by."""
    if hasattr(module, "to_lora"):
        # It has a conversion of its own because it computes something else than x @ W.T.
        return "other"
    if "weight" not in module or module.weight.ndim < 2 or isinstance(module, _CONVOLUTIONS):
        return None
    if "norm" in type(module).__name__.lower():
        # Some norms have a weight for each head (cohere).
        return None
    if isinstance(module, nn.Linear | nn.QuantizedLinear):
        return "linear"
    if isinstance(module, nn.Embedding | nn.QuantizedEmbedding):
        return "embedding"
    # A global scale of each expert, which only some nvfp4 models have, is not read by the merge.
    expert = isinstance(module, SwitchLinear | QuantizedSwitchLinear)
    return "experts" if expert and module.get("global_scale") is None else "other"


def _no_match(pattern: str, layers: Sequence[MatrixLayer]) -> SettingError:
    unspelt = sorted({layer.title for layer in layers if matches(layer.path, pattern)})
    if unspelt:
        return SettingError("lora.targets", f"{pattern!r} takes no linear layer and does not spell "
                            f"out {', '.join(unspelt)}", _SPELL)  # fmt: skip
    keys = sorted({layer.key or layer.path for layer in layers if layer.kind != "other"})
    names = {key.rsplit(".", 1)[-1]: key for key in keys} | {key: key for key in keys}
    close = get_close_matches(pattern, names, n=1)
    mend = f"did you mean {close[0]!r}?" if close else f"the model has {', '.join(keys)}"
    return SettingError("lora.targets", f"{pattern!r} matches no linear layer of the model", mend)
