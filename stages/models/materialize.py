"""The step `model`: make the base ready on disk where the configuration names one that is not."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from mlx_lm.utils import compute_bits_per_weight, quantize_model

from stages.artifacts import BaseModel, Reporter
from stages.errors import SettingError
from stages.models.fresh import draw_model
from stages.models.loading import read_model
from stages.models.saving import is_quantized, save_directory
from stages.settings import Model


def materialize(
    model: Model, *, source: Path, dtype: str, report: Reporter, out: Path
) -> BaseModel:
    """Quantize the model in `source`, or draw its weights anew: `out` opens in `mlx_lm.load`.

    `dtype` is what later steps compute in and goes along unchanged. Raises InputError where
    `source` is no whole model (drawn anew, it need hold no weights), SettingError where it cannot
    be quantized as asked.
    """
    metrics: dict[str, float] = {}
    if model.init_seed is None:
        metrics = _quantize(model, source, report, out)
    else:
        report.log(f"drawing all weights anew from model.init_seed={model.init_seed}")
        module, config = draw_model(source, model.init_seed, model.init)
        save_directory(out, module, config, source)
    return BaseModel(directory=out, dtype=dtype, metrics=metrics)


def _quantize(model: Model, source: Path, report: Reporter, out: Path) -> dict[str, float]:
    module, config = read_model(source)
    if is_quantized(module):
        found = f"found {model.quantization}, but the model is quantized already"
        raise SettingError("model.quantization", found, "leave model.quantization out")
    group = model.group_size or 64
    report.log(f"quantizing the model to {model.quantization} bits in groups of {group}")
    # It prints what the metric below says.
    with contextlib.redirect_stdout(io.StringIO()):
        module, config = quantize_model(module, config, group, model.quantization)
    if not is_quantized(module):
        found = f"found {group}, but no layer's width is a multiple of it"
        raise SettingError("model.group_size", found, "set a smaller one: 32 or 64")
    bits = float(compute_bits_per_weight(module))
    save_directory(out, module, config, source)
    return {"model.bits_per_weight": bits}
