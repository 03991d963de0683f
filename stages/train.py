"""train: token rows in, one adapter on the frozen base out, or all its weights trained."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import mlx.core as mx

from stages.artifacts import Adapter, BaseModel, Prepared, Reporter
from stages.data.encoding.given_template import given_template
from stages.data.rows import Rows, open_rows
from stages.durable import disk_reported
from stages.errors import InputError, SettingError
from stages.lora.bank import Bank, attach, initial, shape_of
from stages.lora.files import save_adapter, save_weights
from stages.lora.full import FullWeights, all_weights
from stages.lora.start import start_from
from stages.lora.targets import find_targets, left_out
from stages.models.loading import load_model, read_model
from stages.models.saving import is_quantized
from stages.models.validate import read_json
from stages.settings import Lora
from stages.training.batches import count_steps
from stages.training.callbacks import Watched, watching
from stages.training.curve import save_curve
from stages.training.footprint import announce
from stages.training.loop import fit
from stages.training.peak import peak_learning_rate
from stages.training.ranks import Ranks, join
from stages.training.reuse import reused_prefix
from stages.training_settings import Optimizer, Train


def train(
    lora: Lora,
    optimizer: Optimizer,
    train: Train,
    seed: int,
    *,
    model: BaseModel,
    prepared: Prepared,
    report: Reporter,
    out: Path,
    checkpoints: Path | None = None,
) -> Adapter:
    """Train and write `adapters.safetensors` and `adapter_config.json`.

    They hold an adapter, or with `lora.type=full` all weights. A chat template that was given to
    prepare is copied beside them, and its digest recorded. The same arguments on the same kind
    of machine give the same bytes. Raises SettingError for targets that the model does not have
    and for all weights of a quantized model, InputError without a token to train on, StageError
    at a loss that is not finite, OutOfMemory where it would hold or holds more than
    train.memory_limit, StopRequested when asked to stop. `loss.png` shows the course.
    `checkpoints` is where unfinished work lies and is kept; one there is gone on from.
    """
    # Before what takes long, so that all come here at about the same time.
    ranks = join(train.workers or 1)
    with watching(report, train.callbacks, train.trackio) as watched, ranks.watched():
        return _train(
            lora,
            optimizer,
            train,
            seed,
            model=model,
            prepared=prepared,
            report=watched,
            out=out,
            checkpoints=checkpoints,
            ranks=ranks,
        )


def _train(
    lora: Lora,
    optimizer: Optimizer,
    train: Train,
    seed: int,
    *,
    model: BaseModel,
    prepared: Prepared,
    report: Watched,
    out: Path,
    checkpoints: Path | None,
    ranks: Ranks,
) -> Adapter:
    rows = open_rows(prepared.directory, "train")
    valid = open_rows(prepared.directory, "valid")
    template = given_template(prepared.directory)
    _require_supervision(rows, prepared.directory / "train.safetensors")
    config = read_json(model.directory / "config.json")
    peak = peak_learning_rate(optimizer, config, full=lora.type == "full")
    tuning = _all_weights(model) if lora.type == "full" else _new_adapter(model, lora, seed, report)
    if train.init_adapter is not None:
        start_from(tuning, Path(train.init_adapter))
        report.log(f"starts from {train.init_adapter}")
    layers = tuning.parameters()
    trainable = sum(weight.size for weights in layers.values() for weight in weights.values())
    report.log(f"{trainable:,} trainable parameters in {len(layers)} layers, "
               f"{len(rows):,} rows, {len(valid):,} to validate, "
               f"learning rate up to {peak:.2e}")  # fmt: skip
    optimizer = replace(optimizer, learning_rate=peak)
    per_epoch, total = count_steps(rows, train)
    facts = {"total_steps": total, "epochs": -(-total // per_epoch), "rows": len(rows),
             "valid_rows": len(valid), "trainable_parameters": trainable, "seed": seed}  # fmt: skip
    for name, group in (("lora", lora), ("optimizer", optimizer), ("train", train)):
        facts |= {f"{name}.{key}": value for key, value in asdict(group).items()}
    report.start(facts)
    announce(tuning, rows, optimizer, train, config, report)
    with reused_prefix(
        tuning, rows, valid, train=train, out=out, report=report, ranks=ranks
    ) as feeds:
        best, metrics = fit(
            tuning, rows, valid, optimizer=optimizer, train=train, seed=seed, report=report,
            b_learning_rate_ratio=lora.b_learning_rate_ratio, feeds=feeds, ranks=ranks,
            checkpoints=checkpoints,
        )  # fmt: skip
    metrics |= {"train.trainable_parameters": trainable, "train.peak_learning_rate": peak,
                "train.micro_batch_size": train.batch_size,
                "train.workers": ranks.size}  # fmt: skip
    if ranks.rank > 0:
        return Adapter(directory=out, metrics=metrics)
    with disk_reported(out, 4 * trainable):
        out.mkdir(parents=True, exist_ok=True)
        if isinstance(tuning, FullWeights):
            save_weights(out, tuning.stored(best), {"type": lora.type}, template)
        else:
            extra = {"type": lora.type, "alpha": lora.alpha}
            save_adapter(out, best, tuning.shapes[0], tuning.targets, extra, template)
    save_curve(out, report.curve, report)
    report.outcome = metrics
    return Adapter(directory=out, metrics=metrics)


def _new_adapter(model: BaseModel, lora: Lora, seed: int, report: Reporter) -> Bank:
    base = load_model(model)
    shape, patterns = shape_of(lora), lora.targets or ("*",)
    targets = find_targets(base, patterns, lora.num_layers)
    if others := left_out(base, patterns, lora.num_layers):
        report.log(f"not adapted: {', '.join(others)}; lora.targets adapts what it names")
    bank = attach(base, targets, [shape])
    bank.update(bank.join([initial(bank.layers, shape, seed)]))
    # A compiled step would otherwise compute anew what they are made from, every time.
    mx.eval(bank.parameters())
    return bank


def _all_weights(model: BaseModel) -> FullWeights:
    # As it is stored: on a CPU, packed weights are unpacked when they are loaded.
    if is_quantized(read_model(model.directory)[0]):
        raise SettingError("lora.type", "found 'full', but the base's weights are quantized",
                           "choose a base that is not, or train an adapter: lora=lora")  # fmt: skip
    return all_weights(load_model(model))


def _require_supervision(rows: Rows, path: Path) -> None:
    if not any(rows[index][1][1:].any() for index in range(len(rows))):
        raise InputError(str(path), "no token of any row is a training target",
                         "set data.supervise=all, or add rows with assistant turns")  # fmt: skip
