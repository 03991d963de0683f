"""train: token rows in, one adapter on the frozen base out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from stages.artifacts import Adapter, BaseModel, Prepared, Reporter
from stages.data.rows import Rows, open_rows
from stages.errors import InputError
from stages.lora.bank import attach, initial, shape_of
from stages.lora.files import save_adapter
from stages.lora.targets import find_targets
from stages.models.loading import load_model
from stages.models.validate import read_json
from stages.settings import Lora, Optimizer, Train
from stages.training.loop import fit
from stages.training.peak import peak_learning_rate


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
) -> Adapter:
    """Train an adapter and write `adapters.safetensors` and `adapter_config.json`.

    The same arguments on the same kind of machine give the same bytes. Raises SettingError for
    targets that the model does not have, InputError without a token to train on, StageError at a
    loss that is not finite, StopRequested when asked to stop.
    """
    rows = open_rows(prepared.directory, "train")
    valid = open_rows(prepared.directory, "valid")
    _require_supervision(rows, prepared.directory / "train.safetensors")
    peak = peak_learning_rate(optimizer, read_json(model.directory / "config.json"), full=False)
    base = load_model(model)
    shape = shape_of(lora)
    targets = find_targets(base, lora.targets or ("*",), lora.num_layers)
    bank = attach(base, targets, [shape])
    adapter = initial(bank.layers, shape.rank, seed)
    bank.update(bank.join([adapter]))
    trainable = sum(matrix.size for weights in adapter.values() for matrix in weights.values())
    report.log(f"{trainable:,} trainable parameters in {len(targets.paths)} layers, "
               f"{len(rows):,} rows, {len(valid):,} to validate, "
               f"learning rate up to {peak:.2e}")  # fmt: skip
    optimizer = replace(optimizer, learning_rate=peak)
    best, metrics = fit(
        bank, rows, valid, optimizer=optimizer, train=train, seed=seed, report=report
    )
    out.mkdir(parents=True, exist_ok=True)
    save_adapter(out, best, shape, targets, {"type": lora.type, "alpha": lora.alpha})
    metrics |= {"train.trainable_parameters": trainable, "train.peak_learning_rate": peak}
    return Adapter(directory=out, metrics=metrics)


def _require_supervision(rows: Rows, path: Path) -> None:
    if not any(rows[index][1][1:].any() for index in range(len(rows))):
        raise InputError(str(path), "no token of any row is a training target",
                         "set data.supervise=all, or add rows with assistant turns")  # fmt: skip
