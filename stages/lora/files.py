"""Adapter files that `mlx_lm.load(adapter_path=…)` and `mlx_lm.generate` open as they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx import nn
from safetensors.numpy import save_file

from stages.errors import InputError
from stages.lora.bank import Bank, Parameters, attach, fit_rank
from stages.lora.description import CONFIG_FILE, describe, read_config, shape_in, write_config
from stages.lora.dora import DoRALinear
from stages.lora.full import FullWeights, Tuning, Weights, all_weights
from stages.lora.layers import AdapterShape
from stages.lora.targets import Targets, matrix_layers, select

WEIGHTS_FILE = "adapters.safetensors"


def save_adapter(
    directory: Path,
    adapter: Parameters,
    shape: AdapterShape,
    targets: Targets,
    extra: Mapping[str, Any],
    chat_template: str | None = None,
) -> None:
    """Write one adapter; equal arguments give equal bytes. `extra` is added to its configuration.

    Tensors: `<path>.lora_a` (in, rank), `<path>.lora_b` (rank, out) and, of DoRA, `<path>.m`
    (out,), float32. Where layers differ in rank, zeros fill the smaller ones and `lora_b` carries
    what a layer's scale is more than `shape.scale`, so that mlx-lm computes the same. A chat
    template that replaced the tokenizer's own in training is written beside them.
    """
    rank = max(shape.at(path).rank for path in adapter) if shape.patterns else shape.rank
    tensors = {f"{path}.{name}": _stored(value, name, rank, shape.at(path).scale / shape.scale)
               for path, weights in adapter.items() for name, value in weights.items()}  # fmt: skip
    save_file(dict(sorted(tensors.items())), directory / WEIGHTS_FILE, {"format": "mlx"})
    described = describe(shape, rank, targets.num_layers, list(targets.keys))
    write_config(directory, {**extra, **described}, chat_template)


def save_weights(
    directory: Path, weights: Weights, extra: Mapping[str, Any], chat_template: str | None = None
) -> None:
    """Write all weights of a model as mlx-lm does where it trained them without an adapter.

    The chat template is treated as `save_adapter` does.
    """
    tensors = dict(sorted(weights.items()))
    mx.save_safetensors(str(directory / WEIGHTS_FILE), tensors, {"format": "mlx"})
    write_config(directory, {**extra, "fine_tune_type": "full"}, chat_template)


def load_adapter(model: nn.Module, directory: Path) -> Tuning:
    """Put the adapter in `directory` on `model`, or the weights that were trained in its place.

    Ours and mlx-lm's own load alike. Raises InputError with the name of every tensor that is
    missing, unknown or of a wrong shape; the model then has its own layers.
    """
    config = read_config(directory)
    tensors = read_tensors(directory / WEIGHTS_FILE)
    if config.get("fine_tune_type") == "full":
        return _load_weights(model, directory / WEIGHTS_FILE, tensors, whole="format" in config)
    shape, rank = shape_in(directory, config), config["lora_parameters"]["rank"]
    bank = attach(model, _targets(model, config, tensors), [shape])
    try:
        _check_rank(directory / WEIGHTS_FILE, rank, tensors)
        _check_tensors(directory / WEIGHTS_FILE, _expected(bank, rank), tensors)
    except InputError:
        bank.detach()
        raise
    adapter = {path: {name: own_weight(tensors[f"{path}.{name}"], name, shape.at(path), shape.scale)
                      for name in layer.trained}
               for path, layer in bank.layers.items()}  # fmt: skip
    bank.update(bank.join([adapter]))
    for layer in bank.layers.values():
        if isinstance(layer, DoRALinear):
            layer.settle()
    return bank


def _stored(weight: mx.array, name: str, rank: int, factor: float) -> Any:
    array = np.array(fit_rank(weight, name, rank))
    if name != "lora_b" or factor == 1:
        return array
    return (array.astype(np.float64) * factor).astype(np.float32)


def own_weight(tensor: mx.array, name: str, shape: AdapterShape, scale: float) -> mx.array:
    """Return the stored weight as a layer of `shape` has it, where `scale` was stored with it.

    Undoes `save_adapter`, up to one rounding where the factor is no power of two.
    """
    weight = fit_rank(tensor.astype(mx.float32), name, shape.rank)
    if name != "lora_b" or shape.scale == scale:
        return weight
    return mx.array((np.array(weight, np.float64) * (scale / shape.scale)).astype(np.float32))


def _load_weights(
    model: nn.Module, path: Path, tensors: Mapping[str, mx.array], *, whole: bool
) -> FullWeights:
    weights = all_weights(model)
    # mlx-lm trains and saves the blocks alone; we always save the whole model.
    shapes = {name: value.shape for name, value in weights.base.items()
              if whole or name in tensors}  # fmt: skip
    _check_tensors(path, shapes, tensors)
    weights.tuned = {name: tensors.get(name, value).astype(value.dtype)
                     for name, value in weights.base.items()}  # fmt: skip
    weights.attach()
    return weights


def read_tensors(path: Path) -> dict[str, mx.array]:
    """Read a safetensors file; raises InputError where there is none."""
    if not path.is_file():
        raise InputError(str(path), "no such file", "name a directory with an adapter")
    try:
        tensors = mx.load(str(path))
    except RuntimeError as error:
        raise InputError(str(path), f"not a safetensors file ({error})") from None
    return cast("dict[str, mx.array]", tensors)


def _targets(model: nn.Module, config: dict[str, Any], tensors: Mapping[str, Any]) -> Targets:
    # mlx-lm's own reading of num_layers: the last so many; none, too many or -1 takes all.
    count = max(config.get("num_layers", 0), 0)
    layers = matrix_layers(model, count)
    keys = config["lora_parameters"].get("keys")
    if keys is None:
        named = {name.rpartition(".")[0] for name in tensors}
        keys = {layer.path for layer in layers if layer.path in named}
    taken = set(keys)
    return select(layers, lambda layer: bool(taken & {layer.key, layer.path}),
                  count or len(model.layers))  # fmt: skip


def _expected(bank: Bank, rank: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the bank's adapter by its name."""
    return {f"{path}.{name}": fit_rank(layer[name][0], name, rank).shape
            for path, layer in bank.layers.items() for name in layer.trained}  # fmt: skip


def _check_rank(path: Path, rank: int, tensors: Mapping[str, mx.array]) -> None:
    stored = {value.shape[-2 if value.ndim == 3 else -1]
              for name, value in tensors.items() if name.endswith(".lora_a")}  # fmt: skip
    if stored and stored != {rank}:
        ranks = ", ".join(map(str, sorted(stored)))
        raise InputError(str(path), f"rank {ranks}, but {CONFIG_FILE} says {rank}")


def _check_tensors(
    path: Path, expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, mx.array]
) -> None:
    found = [f"missing {name}" for name in sorted(expected.keys() - tensors.keys())]
    found += [f"unknown {name}" for name in sorted(tensors.keys() - expected.keys())]
    found += [
        f"{name} is {tensors[name].shape}, expected {shape}"
        for name, shape in sorted(expected.items())
        if name in tensors and tensors[name].shape != shape
    ]
    if found:
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        raise InputError(str(path), "; ".join(found[:4]) + more,
                         "use the base model that this adapter was trained on")  # fmt: skip
