"""The step `model`: make the base ready on disk where the configuration names one that is not."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from pathlib import Path

import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import compute_bits_per_weight, quantize_model, save_config, save_model

from stages.artifacts import BaseModel, Reporter
from stages.errors import SettingError
from stages.models import tiny
from stages.models.loading import read_model
from stages.settings import Model

# The text files of a model directory, without those that describe its old weights.
_COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
_NOT_COPIED = ("config.json", "hf_quant_config.json")


def materialize(
    model: Model, *, source: Path | None, dtype: str, report: Reporter, out: Path
) -> BaseModel:
    """Build the embedded model, quantize one, or do both: `out` then opens in `mlx_lm.load`.

    `source` is the directory of the model to quantize, None for `tiny`; `dtype` is what later
    steps compute in and goes along unchanged. Raises InputError where `source` is no whole model,
    SettingError where it cannot be quantized as asked.
    """
    metrics: dict[str, float] = {}
    if source is not None:
        metrics = _quantize(model, source, report, out)
    elif model.quantization is None:
        report.log("building the embedded model: random weights, nothing learnt yet")
        tiny.build(out)
    else:
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            tiny.build(Path(scratch))
            metrics = _quantize(model, Path(scratch), report, out)
    return BaseModel(directory=out, dtype=dtype, metrics=metrics)


def _quantize(model: Model, source: Path, report: Reporter, out: Path) -> dict[str, float]:
    module, config = read_model(source)
    if _is_quantized(module):
        found = f"found {model.quantization}, but the model is quantized already"
        raise SettingError("model.quantization", found, "leave model.quantization out")
    group = model.group_size or 64
    report.log(f"quantizing the model to {model.quantization} bits in groups of {group}")
    # It prints what the metric below says.
    with contextlib.redirect_stdout(io.StringIO()):
        module, config = quantize_model(module, config, group, model.quantization)
    if not _is_quantized(module):
        found = f"found {group}, but no layer's width is a multiple of it"
        raise SettingError("model.group_size", found, "set a smaller one: 32 or 64")
    bits = float(compute_bits_per_weight(module))
    # mlx-lm needs it again for a model that keeps its vision tower, and only then.
    vision = "vision_tower" in getattr(module, "model", {})
    save_model(out, module, donate_model=True)
    save_config(config, out / "config.json", keep_vision_config=vision)
    for file in sorted({file for pattern in _COPIED for file in source.glob(pattern)}):
        if file.name not in _NOT_COPIED and not file.name.endswith(".index.json"):
            shutil.copyfile(file, out / file.name)
    return {"model.bits_per_weight": bits}


def _is_quantized(module: nn.Module) -> bool:
    return any(path.endswith(".scales") for path, _ in tree_flatten(module.parameters()))
