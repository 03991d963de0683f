"""merge: base and adapter in, one model out, with the proof that the tuning is still in it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.utils import dequantize_model

from stages.artifacts import Adapter, BaseModel, Merged, Prepared, Reporter
from stages.data.encoding.given_template import replace_template
from stages.data.rows import open_rows
from stages.errors import InputError, SettingError, StopRequested
from stages.lora.description import trained_template
from stages.lora.files import load_adapter
from stages.lora.merge import merge_weights
from stages.lora.parity import Row, compare, loss, probe
from stages.models.loading import cast, load_model, read_model
from stages.models.saving import (
    is_quantized,
    main_type,
    restore_types,
    save_directory,
    stored_types,
)
from stages.settings import Merge

FORMAT = 1
UNNOTICED_NATS = 1e-6
"""What an adapter changes per token is held to be at least this: less is nothing to lose."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How much of the tuning the merged model holds, as it was read back from disk."""

    kept_fraction: float
    """1 - KL(adapter ‖ merged) / KL(adapter ‖ base), cut to between 0 and 1."""
    kl_to_adapter: float
    """KL(adapter ‖ merged), nats per supervised token."""
    adapter_kl_to_base: float
    """KL(adapter ‖ base)."""
    max_logit_difference: float
    greedy_agreement: float
    loss: float
    adapter_loss: float
    base_loss: float


def merge(
    merge: Merge,
    *,
    model: BaseModel,
    prepared: Prepared,
    adapter: Adapter,
    report: Reporter,
    out: Path,
) -> Merged:
    """Write base plus adapter to `out`, which `mlx_lm.load` opens, and `merge.json`.

    The weights keep the base's stored types, or take `merge.dtype`; the chat template is that
    which the adapter was trained with. Raises SettingError where less than `merge.min_kept` of
    the tuning survived.
    """
    split, rows = _held_out(prepared.directory, merge.rows)
    form = _write(merge, model, adapter, out)
    verdict = _prove(model, adapter, out, rows, report)
    kept = f"{_figures(verdict)}; {len(rows)} rows of {split}"
    if not verdict.kept_fraction >= merge.min_kept:
        raise _lost(merge, form, kept)
    described = {"format": FORMAT, **form, "split": split, "rows": len(rows), **asdict(verdict)}
    text = json.dumps(described, indent=2) + "\n"
    (out / "merge.json").write_text(text, encoding="utf-8", newline="\n")
    report.log(f"merged as {_words(form)}: {kept}")
    metrics = {f"merge.{name}": value for name, value in asdict(verdict).items()}
    return Merged(directory=out, metrics=metrics)


def _held_out(directory: Path, count: int) -> tuple[str, list[Row]]:
    """Return the first rows of test, else of valid, else the last of train, and which it was."""
    for split in ("test", "valid", "train"):
        rows = open_rows(directory, split)
        order: Sequence[int] = range(len(rows))
        if split == "train":
            order = order[::-1]
        # The first token of a row is predicted from nothing.
        found = (rows[index] for index in order if rows[index][1][1:].any())
        taken = [row for row, _ in zip(found, range(count), strict=False)]
        if taken:
            return split, taken
    raise InputError(str(directory), "has no row with a supervised token", "prepare other rows")


def _write(merge: Merge, model: BaseModel, adapter: Adapter, out: Path) -> dict[str, Any]:
    """Merge lazily, write shard by shard; return `quantized` and `dtype` of what was written."""
    template = trained_template(adapter.directory)
    module, config = read_model(model.directory)
    stored = stored_types(module)
    cast(module, mx.float32)
    if merge.quantized == "dequantize":
        dequantize_model(module)
        # The floating-point modes (mxfp4, nvfp4) unpack to bfloat16.
        cast(module, mx.float32)
    merge_weights(load_adapter(module, adapter.directory))
    if merge.dtype is None:
        restore_types(module, stored)
    else:
        cast(module, getattr(mx, merge.dtype))
    form = {"quantized": is_quantized(module), "dtype": main_type(module)}
    _describe(config, form)
    save_directory(out, module, config, model.directory)
    if template is not None:
        replace_template(out, template)
    return form


def _describe(config: dict[str, Any], form: dict[str, Any]) -> None:
    """Make the base's config that of the merged weights."""
    # Models with more than a text part keep these keys one level down.
    for part in (config, config.get("text_config")):
        if not isinstance(part, dict):
            continue
        if not form["quantized"]:
            part.pop("quantization", None)
            part.pop("quantization_config", None)
        for key in {"dtype", "torch_dtype"} & part.keys():
            part[key] = form["dtype"]


def _prove(
    model: BaseModel, adapter: Adapter, out: Path, rows: Sequence[Row], report: Reporter
) -> Verdict:
    """Compare base, base plus adapter and the merged model from disk, one in memory at a time."""
    done = itertools.count(1)

    def tick() -> None:
        if report.stop_requested():
            raise StopRequested
        report.progress(next(done), 3 * len(rows), {})

    def tuned() -> nn.Module:
        module = load_model(model)
        load_adapter(module, adapter.directory)
        return module

    probes = probe(tuned(), rows, tick)
    base = compare(load_model(model), probes, tick)
    merged = compare(load_model(BaseModel(directory=out, dtype=model.dtype)), probes, tick)
    lost = merged.kl / max(base.kl, UNNOTICED_NATS)
    return Verdict(
        kept_fraction=float(np.clip(1 - lost, 0, 1)),
        kl_to_adapter=merged.kl,
        adapter_kl_to_base=base.kl,
        max_logit_difference=merged.max_logit_difference,
        greedy_agreement=merged.greedy_agreement,
        loss=merged.loss,
        adapter_loss=loss(probes),
        base_loss=base.loss,
    )


def _figures(verdict: Verdict) -> str:
    return (
        f"{verdict.kept_fraction:.1%} of the tuning kept "
        f"(KL {verdict.kl_to_adapter:.2g} to the adapter, {verdict.adapter_kl_to_base:.2g} "
        f"from it to the base), greedy tokens agree {verdict.greedy_agreement:.1%}, "
        f"loss base {verdict.base_loss:.4f}, adapter {verdict.adapter_loss:.4f}, "
        f"merged {verdict.loss:.4f}"
    )


def _words(form: dict[str, Any]) -> str:
    return f"packed weights, the rest {form['dtype']}" if form["quantized"] else form["dtype"]


def _lost(merge: Merge, form: dict[str, Any], kept: str) -> SettingError:
    found = f"found {merge.min_kept}, but only {kept}"
    if form["quantized"]:
        mend = "set merge.quantized=dequantize"
    elif form["dtype"] != "float32":
        mend = "set merge.dtype=float32"
    else:
        mend = "serve the adapter unmerged"
    return SettingError("merge.min_kept", found, mend)
