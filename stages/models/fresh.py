"""Weights drawn anew for an architecture: what pretraining from scratch starts from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from numpy.typing import NDArray

from stages.errors import SettingError
from stages.models import induction
from stages.models.loading import new_model

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# The projections whose output is added to the residual stream, as architectures call them.
_ADDED = frozenset({"o_proj", "down_proj", "out_proj", "fc2", "c_proj", "wo", "w2"})
_QUANTIZED = ("quantization", "quantization_config")


def draw_model(
    directory: Path, seed: int, init: Literal["normal", "induction"] = "normal"
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the architecture of `directory` in float32 with weights that `seed` decides.

    A weight with n inputs is normal with variance 1/n, an embedding with that of its width. What
    is added to the residual stream is divided by sqrt(2 * layers), so that the stream keeps its
    size whatever the depth (GPT-2, Radford et al. 2019). Biases are 0, all else is as MLX has it.
    `induction` then lays induction heads into a Llama. The config that comes along says float32
    and no quantization. Raises InputError as `read_model` does, but for weights: the directory
    need hold none; SettingError where induction heads do not fit the architecture.
    """
    mx.random.seed(seed)
    module, config = new_model(directory)
    if init == "induction" and not induction.fits(config):
        found = (
            f"found 'induction', but {config.get('model_type')!r} here is not a Llama with "
            "tied embeddings, two layers and two heads, wider than 20 and at most half the model"
        )
        raise SettingError("model.init", found, "set model.init=normal")
    convolved = {name for name, part in module.named_modules() if isinstance(part, _CONVOLUTIONS)}
    shrinking = 1 / math.sqrt(2 * len(module.layers))
    drawn: dict[str, NDArray[Any] | mx.array] = {}
    # Each by its place among the names, not by the order in which the architecture makes them.
    for index, (path, value) in enumerate(sorted(tree_flatten(module.parameters()))):
        layer, _, kind = path.rpartition(".")
        if kind == "bias":
            drawn[path] = mx.zeros(value.shape, mx.float32)
        elif kind == "weight" and value.ndim >= 2:
            inputs = math.prod(value.shape[1:]) if layer in convolved else value.shape[-1]
            spread = inputs**-0.5 * (shrinking if layer.rpartition(".")[2] in _ADDED else 1)
            normal = np.random.default_rng([seed, index]).standard_normal(value.shape, np.float32)
            drawn[path] = normal * np.float32(spread)
        else:
            floating = mx.issubdtype(value.dtype, mx.floating)
            drawn[path] = value.astype(mx.float32) if floating else value
    if init == "induction":
        laid = {path: np.array(value, np.float64) for path, value in drawn.items()}
        drawn = {path: value.astype(np.float32)
                 for path, value in induction.lay(laid, config, seed).items()}  # fmt: skip
    module.update(tree_unflatten([(path, mx.array(value)) for path, value in drawn.items()]))
    return module, {"dtype": "float32", **_plain(config)}


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config, and those within it, in float32 and without quantization."""
    parts = {name: _plain(part) if isinstance(part, dict) else part
             for name, part in config.items() if name not in _QUANTIZED}  # fmt: skip
    return parts | {name: "float32" for name in ("dtype", "torch_dtype") if name in parts}
