"""Adapter files that `mlx_lm.load(adapter_path=…)` and `mlx_lm.generate` open as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx import nn
from safetensors.numpy import save_file

from stages.data.encoding.given_template import (
    TEMPLATE_FILE,
    given_template,
    template_digest,
    write_template,
)
from stages.errors import InputError
from stages.lora.bank import Parameters, attach
from stages.lora.dora import DoRALinear
from stages.lora.full import FullWeights, Tuning, Weights, all_weights
from stages.lora.layers import AdapterShape, linear_dims
from stages.lora.targets import Targets, linear_layers, select

FORMAT = 1
WEIGHTS_FILE = "adapters.safetensors"
CONFIG_FILE = "adapter_config.json"
_DIGEST_KEY = "chat_template_sha256"


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
    (out,), float32. A chat template that replaced the tokenizer's own in training is written
    beside them, and its digest is recorded.
    """
    tensors = {f"{path}.{name}": np.array(value)
               for path, weights in adapter.items() for name, value in weights.items()}  # fmt: skip
    save_file(dict(sorted(tensors.items())), directory / WEIGHTS_FILE, {"format": "mlx"})
    config = {
        **extra,
        "fine_tune_type": "dora" if shape.dora else "lora",
        "num_layers": targets.num_layers,
        "lora_parameters": {
            "rank": shape.rank,
            "scale": shape.scale,
            "dropout": shape.dropout,
            "keys": list(targets.keys),
        },
    }
    _write_config(directory, config, chat_template)


def save_weights(
    directory: Path, weights: Weights, extra: Mapping[str, Any], chat_template: str | None = None
) -> None:
    """Write all weights of a model as mlx-lm does where it trained them without an adapter.

    The chat template is treated as `save_adapter` does.
    """
    tensors = dict(sorted(weights.items()))
    mx.save_safetensors(str(directory / WEIGHTS_FILE), tensors, {"format": "mlx"})
    _write_config(directory, {**extra, "fine_tune_type": "full"}, chat_template)


def load_adapter(model: nn.Module, directory: Path) -> Tuning:
    """Put the adapter in `directory` on `model`, or the weights that were trained in its place.

    Ours and mlx-lm's own load alike. Raises InputError with the name of every tensor that is
    missing, unknown or of a wrong shape.
    """
    config = _read_config(directory / CONFIG_FILE)
    tensors = _read_tensors(directory / WEIGHTS_FILE)
    if config.get("fine_tune_type") == "full":
        return _load_weights(model, directory / WEIGHTS_FILE, tensors, whole="format" in config)
    parameters = config["lora_parameters"]
    dora = config.get("fine_tune_type") == "dora"
    shape = AdapterShape(
        parameters["rank"], parameters["scale"], parameters.get("dropout", 0.0), dora
    )
    targets = _targets(model, config, tensors)
    _check_rank(directory / WEIGHTS_FILE, shape.rank, tensors)
    _check_tensors(directory / WEIGHTS_FILE, _expected(model, targets, shape), tensors)
    bank = attach(model, targets, [shape])
    adapter = {path: {name: tensors[f"{path}.{name}"].astype(mx.float32) for name in layer.trained}
               for path, layer in bank.layers.items()}  # fmt: skip
    bank.update(bank.join([adapter]))
    for layer in bank.layers.values():
        if isinstance(layer, DoRALinear):
            layer.settle()
    return bank


def trained_template(directory: Path) -> str | None:
    """Return the chat template that an adapter was trained with; None: the tokenizer's own.

    Raises InputError where the file is not the one that the adapter's configuration records.
    """
    recorded = _read_config(directory / CONFIG_FILE).get(_DIGEST_KEY)
    if recorded is None:
        return None
    template = given_template(directory)
    if template is None or template_digest(template) != recorded:
        found = "is missing" if template is None else "is not the file that was trained with"
        raise InputError(str(directory / TEMPLATE_FILE), found, "train the adapter again")
    return template


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


def _write_config(directory: Path, config: Mapping[str, Any], chat_template: str | None) -> None:
    described = {**config, "format": FORMAT}
    if chat_template is not None:
        write_template(directory, chat_template)
        described[_DIGEST_KEY] = template_digest(chat_template)
    text = json.dumps(described, indent=2, sort_keys=True) + "\n"
    (directory / CONFIG_FILE).write_text(text, encoding="utf-8")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(str(path), "no such file", "name a directory with an adapter") from None
    except ValueError as error:
        raise InputError(str(path), f"not JSON ({error})", "train the adapter again") from None
    if not isinstance(config, dict) or not isinstance(config.get("format", FORMAT), int):
        raise InputError(str(path), "not the configuration of an adapter")
    if config.get("format", FORMAT) > FORMAT:
        raise InputError(str(path), f"format {config['format']}, but {FORMAT} is the newest known",
                         "update mlx-lora-pipeline")  # fmt: skip
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora", "full"):
        raise InputError(str(path), f"fine_tune_type {kind!r}, expected lora, dora or full")
    parameters = config.get("lora_parameters")
    known = isinstance(parameters, dict) and {"rank", "scale"} <= parameters.keys()
    if kind != "full" and not known:
        raise InputError(str(path), "lora_parameters has no rank or no scale")
    return config


def _read_tensors(path: Path) -> dict[str, mx.array]:
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
    layers = linear_layers(model, count)
    keys = config["lora_parameters"].get("keys")
    if keys is None:
        named = {name.rpartition(".")[0] for name in tensors}
        keys = {key for key, path, _ in layers if path in named}
    return select(layers, set(keys).__contains__, count or len(model.layers))


def _expected(
    model: nn.Module, targets: Targets, shape: AdapterShape
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the adapter by its name."""
    modules = dict(model.named_modules())
    expected: dict[str, tuple[int, ...]] = {}
    for target in targets.paths:
        input_dims, output_dims = linear_dims(modules[target])
        expected[f"{target}.lora_a"] = (input_dims, shape.rank)
        expected[f"{target}.lora_b"] = (shape.rank, output_dims)
        if shape.dora:
            expected[f"{target}.m"] = (output_dims,)
    return expected


def _check_rank(path: Path, rank: int, tensors: Mapping[str, mx.array]) -> None:
    stored = {value.shape[-1] for name, value in tensors.items() if name.endswith(".lora_a")}
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
