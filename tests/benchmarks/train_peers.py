"""One measurement of tests/benchmarks/train.py, in a process of its own.

`train_peers.py PEER DIRECTORY ROWS STEPS SETTINGS` prints the tokens/s of every step, padding not
counted, as JSON; train_setup.py has written models, tokenizer and rows to DIRECTORY.
All linear layers are adapted at rank 8, batches have four rows, weights are random.
"""

import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

Changes = dict[str, dict[str, Any]]
"""Settings that differ from the usual ones, by group."""

BATCH, RANK = 4, 8
MAX_TOKENS = 513
"""Of a row: 512 go into the model."""
TARGETS = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
           "mlp": ("gate_proj", "up_proj", "down_proj")}  # fmt: skip


def ours(
    directory: Path, rows: str, steps: int, changes: Changes, model: str = "model"
) -> dict[str, Any]:
    """Train as the pipeline does, in its worker processes, with its default settings."""
    import yaml

    from stages.settings import GROUPS

    usual = {"lora": {"rank": RANK, "alpha": 2 * RANK},
             "train": {"batch_size": BATCH, "steps": steps}}  # fmt: skip
    settings = {}
    for group, option in (("lora", "lora"), ("optimizer", "adamw"), ("train", "default")):
        values = yaml.safe_load(files("conf").joinpath(group, f"{option}.yaml").read_text())
        values |= usual.get(group, {}) | changes.get(group, {})
        if unknown := values.keys() - {field.name for field in fields(GROUPS[group])}:
            sys.exit(f"there is no {group}.{min(unknown)}")
        settings[group] = values
    told: list[dict[str, float]] = []

    def listen(event: dict[str, Any], _: Any) -> None:
        if event["event"] == "metrics":
            told.append(event["values"])

    done = in_workers(settings, directory / model, directory / rows, directory / "out", listen)
    rates = [values["train.tokens_per_second"] for values in told if "train.loss" in values]
    half = len(rates) // 2
    return {"rates": rates, "epochs": (rates[:half], rates[half:]),
            "padding": done["metrics"]["train.padding_fraction"]}  # fmt: skip


def in_workers(
    settings: Changes, model: Path, rows: Path, out: Path, listen: Callable[[Any, Any], None]
) -> dict[str, Any]:
    """Train in the worker processes of the pipeline; `listen` gets each event and the worker."""
    from pipeline import environment, replicas
    from pipeline.process import WorkerProcess
    from stages.settings import from_values

    workers = environment.training_workers(from_values("train", settings["train"]))
    settings["train"]["workers"] = workers

    def hear(event: dict[str, Any]) -> None:
        if event["event"] == "log":
            print(event["message"], file=sys.stderr)
        listen(event, worker)

    request = {
        "stage": "train", "function": "stages.train.train", "tensors": True, "extra": {},
        "settings": [*settings.items(), ("seed", 0)], "out": str(out),
        "handed_over": {"model": ("BaseModel", {"directory": str(model), "dtype": "float32"}),
                        "prepared": ("Prepared", {"directory": str(rows)})},
    }  # fmt: skip
    log = out.with_name("ours.log")
    worker = WorkerProcess(log)
    try:
        return replicas.run(worker, request, hear, workers=workers, log=log, model_path="benchmark")
    finally:
        worker.close()


def ours_padding(directory: Path, rows: str, steps: int, changes: Changes) -> dict[str, Any]:
    """Train the small model for one epoch: padding does not depend on the model."""
    return ours(directory, f"{rows}_last", steps, {"train": {"epochs": 1, "steps": None}}, "small")


def mlx_lm(directory: Path, rows: str, steps: int, changes: Changes) -> dict[str, Any]:
    """Run its command line; only what it reports of each step is taken down."""
    import mlx_lm.lora as program

    told: list[dict[str, float]] = []
    callback = SimpleNamespace(on_train_loss_report=told.append, on_val_loss_report=told.append)
    program.get_reporting_callbacks = lambda *_, **__: callback
    config = directory / "mlx_lm.yaml"
    keys = [f"{part}.{name}" for part, names in TARGETS.items() for name in names]
    parameters = {"rank": RANK, "dropout": 0.0, "scale": 2.0, "keys": keys}
    config.write_text(json.dumps({"lora_parameters": parameters}))
    options = {"model": directory / "model", "data": directory / rows, "iters": steps,
               "batch-size": BATCH, "num-layers": -1, "steps-per-report": 1, "config": config,
               "max-seq-length": MAX_TOKENS, "adapter-path": directory / "out"}  # fmt: skip
    sys.argv[1:] = ["--train", *(f"--{name}={value}" for name, value in options.items())]
    program.main()
    before, rates = 0.0, []
    for step in told:
        # It counts the pad token that it trains after each row.
        counted, before = step["trained_tokens"] - before, step["trained_tokens"]
        rates.append(step["tokens_per_second"] * (counted - BATCH) / counted)
    return {"rates": rates}


def mlx_lm_blas(directory: Path, rows: str, steps: int, changes: Changes) -> dict[str, Any]:
    """Run the same with the BLAS that ours preloads."""
    from stages.models.blas import preload

    preload()
    return mlx_lm(directory, rows, steps, changes)


def mlx_lm_padding(directory: Path, rows: str, steps: int, changes: Changes) -> dict[str, Any]:
    """Count what its own batches of one epoch hold."""
    from mlx_lm.tuner.datasets import CacheDataset, TextDataset
    from mlx_lm.tuner.trainer import iterate_batches
    from mlx_lm.utils import load_tokenizer

    tokenizer = load_tokenizer(directory / "model")
    texts = (directory / rows / "train.jsonl").read_text(encoding="utf-8").splitlines()
    found = TextDataset([json.loads(text) for text in texts], tokenizer)
    computed = used = 0
    for batch, spans in iterate_batches(CacheDataset(found), BATCH, MAX_TOKENS):
        computed += batch.shape[0] * (batch.shape[1] - 1)
        used += int((spans[:, 1] - 1).sum().item())
    return {"padding": 1 - used / computed}


def peft(directory: Path, rows: str, steps: int, dtype: str) -> dict[str, Any]:
    """Train with PEFT on a CPU: random batches, padded to the longest row, AdamW."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from stages.data.rows import open_rows

    model = AutoModelForCausalLM.from_pretrained(directory / "model", dtype=getattr(torch, dtype))
    names = [name for part in TARGETS.values() for name in part]
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=names))
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4)
    found = open_rows(directory / rows, "train")
    order, rates = random.Random(0).sample(range(len(found)), len(found)), []
    for step in range(steps):
        batch = [torch.tensor(found[row][0]) for row in order[step * BATCH : (step + 1) * BATCH]]
        start = time.perf_counter()
        tokens = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True).long()
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in batch], True)
        labels = tokens.masked_fill(mask == 0, -100)
        model(input_ids=tokens, attention_mask=mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rates.append(sum(len(row) - 1 for row in batch) / (time.perf_counter() - start))
    return {"rates": rates}


if __name__ == "__main__":
    peer, place, *rest = sys.argv[1:]
    if peer.startswith("torch_"):
        measured = peft(Path(place), rest[0], int(rest[1]), peer.removeprefix("torch_"))
    else:
        settings = json.loads(rest[2])
        measured = globals()[peer](Path(place), rest[0], int(rest[1]), settings)
    print(json.dumps(measured))
