"""Weights drawn anew for an architecture: what pretraining from scratch starts from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from stages.models.loading import new_model

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# The projections whose output is added to the residual stream, as architectures call them.
_ADDED = frozenset({"o_proj", "down_proj", "out_proj", "fc2", "c_proj", "wo", "w2"})
_QUANTIZED = ("quantization", "quantization_config")


def draw_model(directory: Path, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """Build the architecture of `directory` in float32 with weights that `seed` decides.

    A weight with n inputs is normal with variance 1/n, an embedding with that of its width. What
    is added to the residual stream is divided by sqrt(2 * layers), so that the stream keeps its
    size whatever the depth (GPT-2, Radford et al. 2019). Biases are 0, all else is as MLX has it.
    The config that comes along says float32 and no quantization. Raises InputError as `read_model`
    does, but for weights: the directory need hold none.
    """
    mx.random.seed(seed)
    module, config = new_model(directory)
    convolved = {name for name, part in module.named_modules() if isinstance(part, _CONVOLUTIONS)}
    shrinking = 1 / math.sqrt(2 * len(module.layers))
    drawn = []
    # Each by its place among the names, not by the order in which the architecture makes them.
    for index, (path, value) in enumerate(sorted(tree_flatten(module.parameters()))):
        layer, _, kind = path.rpartition(".")
        if kind == "bias":
            new = mx.zeros(value.shape, mx.float32)
        elif kind == "weight" and value.ndim >= 2:
            inputs = math.prod(value.shape[1:]) if layer in convolved else value.shape[-1]
            spread = inputs**-0.5 * (shrinking if layer.rpartition(".")[2] in _ADDED else 1)
            normal = np.random.default_rng([seed, index]).standard_normal(value.shape, np.float32)
            new = mx.array(normal * np.float32(spread))
        else:
            new = value.astype(mx.float32) if mx.issubdtype(value.dtype, mx.floating) else value
        drawn.append((path, new))
    module.update(tree_unflatten(drawn))
    return module, {"dtype": "float32", **_plain(config)}


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config, and those within it, in float32 and without quantization."""
    parts = {name: _plain(part) if isinstance(part, dict) else part
             for name, part in config.items() if name not in _QUANTIZED}  # fmt: skip
    return parts | {name: "float32" for name in ("dtype", "torch_dtype") if name in parts}
