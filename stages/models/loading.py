"""The frozen base as an MLX module, in the type it is computed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path
from mlx_lm.utils import _get_classes, dequantize_model, load_config
from mlx_lm.utils import load_model as mlx_lm_load_model

from stages.artifacts import BaseModel
from stages.errors import InputError
from stages.models.validate import validate

_DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


def load_model(model: BaseModel) -> nn.Module:
    """Load the base: validated, cast to `model.dtype`, frozen, in evaluation mode, evaluated.

    Packed weights stay as they are, their scales and biases are cast. One exception: computing in
    float32 on a CPU, quantized layers become plain ones. MLX multiplies packed weights there some
    50 times slower, and scale * q + bias in float32 is the very value the packed weight stands for.

    Raises InputError where the directory is no whole model, or where its tensors do not fit its
    config, with their names.
    """
    module, _ = read_model(model.directory)
    if model.dtype != "stored":
        cast(module, _DTYPES[model.dtype])
        if model.dtype == "float32" and mx.default_device() == mx.cpu:
            dequantize_model(module)
            # The floating-point modes (mxfp4, nvfp4) unpack to bfloat16, which holds them exactly.
            cast(module, mx.float32)
    module.freeze()
    mx.eval(module.parameters())
    return module


def read_model(directory: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Open the model as it is stored, lazily, and return it with its config.

    Raises InputError as `load_model` does.
    """
    validate(directory)
    with _explained(directory, "its weights and its config do not fit together"):
        module, config = mlx_lm_load_model(directory, lazy=True, strict=True)
    return module, config


def new_model(directory: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model that the config in `directory` describes, with the weights MLX starts from.

    The directory need hold no weights. Raises InputError where config or tokenizer are not there,
    or are those of no model that mlx-lm knows.
    """
    validate(directory, weights=False)
    with _explained(directory, "its config describes no model"):
        config = load_config(directory)
        kind, arguments = _get_classes(config)
        module = kind(arguments.from_dict(config))
    return module, config


@contextmanager
def _explained(directory: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= 240 else f"{reason[:240]}…"
        found = f"{what} ({type(error).__name__}: {reason})"
        raise InputError(str(directory), found, "download or copy it again") from error


def cast(module: nn.Module, dtype: mx.Dtype) -> None:
    """Cast every floating-point parameter, except those the model itself keeps as stored."""
    casts: Callable[[str], bool] = getattr(module, "cast_predicate", lambda _: True)

    def convert(path: str, value: mx.array) -> mx.array:
        floating = mx.issubdtype(value.dtype, mx.floating)
        return value.astype(dtype) if floating and casts(path) else value

    module.update(tree_map_with_path(convert, module.parameters()))
