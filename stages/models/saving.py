"""A model as a directory that mlx-lm and transformers open."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.utils import save_config, save_model

# Licences go wherever the weights go.
_COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*")
# What describes the old weights, or the directory they lie in.
_NOT_COPIED = ("config.json", "hf_quant_config.json", "manifest.json", "merge.json")


def save_directory(out: Path, module: nn.Module, config: dict[str, Any], source: Path) -> None:
    """Write weights, in shards of 5 GiB, and config; copy the rest of `source` as it is.

    The rest is tokenizer, chat template, generation_config.json and licence; never Python files.
    `module` is empty afterwards, so that no shard stays in memory once it is written.
    """
    # mlx-lm needs it again for a model that keeps its vision tower, and only then.
    vision = "vision_tower" in getattr(module, "model", {})
    save_model(out, module, donate_model=True)
    save_config(dict(config), out / "config.json", keep_vision_config=vision)
    for file in sorted({file for pattern in _COPIED for file in source.glob(pattern)}):
        if file.name not in _NOT_COPIED and not file.name.endswith(".index.json"):
            shutil.copyfile(file, out / file.name)


def is_quantized(module: nn.Module) -> bool:
    """Tell whether any layer holds packed weights."""
    return any(path.endswith(".scales") for path, _ in tree_flatten(module.parameters()))


def stored_types(module: nn.Module) -> dict[str, mx.Dtype]:
    """Return the type of every parameter by path; a packed weight's is the one it unpacks to."""
    types = {path: value.dtype for path, value in tree_flatten(module.parameters())}
    for path in [path for path in types if path.endswith(".scales")]:
        floating = mx.issubdtype(types[path], mx.floating)
        types[path.removesuffix("scales") + "weight"] = types[path] if floating else mx.bfloat16
    return types


def restore_types(module: nn.Module, types: Mapping[str, mx.Dtype]) -> None:
    """Cast every floating-point parameter back to its type in `types`."""

    def convert(path: str, value: mx.array) -> mx.array:
        return value.astype(types[path]) if mx.issubdtype(value.dtype, mx.floating) else value

    module.update(tree_map_with_path(convert, module.parameters()))


def main_type(module: nn.Module) -> str:
    """Name the floating-point type that most parameters have."""
    sizes: Counter[str] = Counter()
    for _, value in tree_flatten(module.parameters()):
        if mx.issubdtype(value.dtype, mx.floating):
            sizes[str(value.dtype).rpartition(".")[2]] += value.size
    return sizes.most_common(1)[0][0]
