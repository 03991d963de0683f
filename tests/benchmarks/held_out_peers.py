"""One process of tests/benchmarks/held_out.py: it trains for some time, or scores an adapter.

`held_out_peers.py PEER DIRECTORY ROWS SECONDS STEPS` trains with the training rows and prints its
steps and seconds as JSON; with PEER `score` it prints the loss of the held-out rows instead.
Loading the model and writing the adapter are not counted.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from train_peers import MAX_TOKENS, TARGETS, in_workers

UNTRAINED = "untrained"
OPTIONS = {"lora": "lora", "optimizer": "adamw", "train": "default"}


def defaults() -> dict[str, Any]:
    """Return the default settings of our training."""
    import yaml

    from stages.settings import from_values

    return {group: from_values(group, yaml.safe_load(
        files("conf").joinpath(group, f"{option}.yaml").read_text()))
        for group, option in OPTIONS.items()}  # fmt: skip


def timed(
    make: Callable[..., Iterator[Any]], seconds: float, starts: list[float]
) -> Callable[..., Iterator[Any]]:
    """Return `make` with an end after `seconds`; the start of each step, and the end, are noted."""

    def limited(*arguments: Any, **named: Any) -> Iterator[Any]:
        begin = time.perf_counter()
        try:
            for item in make(*arguments, **named):
                if time.perf_counter() - begin >= seconds:
                    return
                starts.append(time.perf_counter() - begin)
                yield item
        finally:
            starts.append(time.perf_counter() - begin)

    return limited


def ours(directory: Path, rows: str, seconds: float, steps: int) -> list[float]:
    """Train as the pipeline does, with its default settings; stopped early nothing is written."""
    from pipeline.errors import Interrupted

    starts: list[float] = []
    settings = {group: asdict(values) for group, values in defaults().items()}
    settings["train"]["steps"] = steps
    begin = [0.0]

    def listen(event: dict[str, Any], worker: Any) -> None:
        if event["event"] == "log" and event["message"].startswith("no validation rows"):
            begin[0] = time.perf_counter()
            starts.append(0.0)
        elif event["event"] == "metrics":
            starts.append(time.perf_counter() - begin[0])
            if starts[-1] >= seconds:
                worker.request_stop()

    with suppress(Interrupted):
        in_workers(settings, directory / "model", directory / rows, directory / f"ours_{rows}",
                   listen)  # fmt: skip
    return starts


def mlx_lm(
    directory: Path, rows: str, seconds: float, steps: int, name: str = "mlx_lm"
) -> list[float]:
    """Run its command line with the settings of ours, as far as it has them: it cannot clip."""
    import mlx_lm.lora as program
    from mlx_lm.tuner.trainer import iterate_batches

    from stages.training.peak import peak_learning_rate

    starts: list[float] = []
    program.train = partial(program.train, iterate_batches=timed(iterate_batches, seconds, starts))
    settings = defaults()
    lora, optimizer, train = (settings[group] for group in ("lora", "optimizer", "train"))
    config = json.loads((directory / "model" / "config.json").read_text())
    rate = peak_learning_rate(optimizer, config, full=False)
    warmup = round(optimizer.warmup_fraction * steps)
    keys = [f"{part}.{layer}" for part, layers in TARGETS.items() for layer in layers]
    file = directory / f"{name}_{rows}.yaml"
    file.write_text(json.dumps({
        "lora_parameters": {"rank": lora.rank, "dropout": lora.dropout, "keys": keys,
                            "scale": lora.alpha / lora.rank},
        "optimizer_config": {"adamw": {"betas": optimizer.betas, "eps": optimizer.eps,
                                       "weight_decay": optimizer.weight_decay,
                                       "bias_correction": True}},
        "lr_schedule": {"name": "cosine_decay", "warmup": warmup,
                        "arguments": [rate, max(steps - warmup, 1)]},
    }))  # fmt: skip
    options = {"model": directory / "model", "data": directory / rows, "iters": steps,
               "batch-size": train.batch_size, "num-layers": -1, "optimizer": "adamw",
               "save-every": steps + 1, "max-seq-length": MAX_TOKENS, "config": file,
               "adapter-path": directory / f"{name}_{rows}"}  # fmt: skip
    sys.argv[1:] = ["--train", *(f"--{option}={value}" for option, value in options.items())]
    program.main()
    return starts


def mlx_lm_blas(directory: Path, rows: str, seconds: float, steps: int) -> list[float]:
    """Run the same with the BLAS that ours preloads."""
    from stages.models.blas import preload

    preload()
    return mlx_lm(directory, rows, seconds, steps, "mlx_lm_blas")


def score(directory: Path, rows: str, adapter: str) -> float:
    """Return the mean loss of the held-out rows' tokens with base and adapter, in float32."""
    from stages.models.blas import preload

    preload()
    from stages.artifacts import BaseModel
    from stages.data.rows import open_rows
    from stages.lora.bank import attach, initial, shape_of
    from stages.lora.files import load_adapter
    from stages.lora.targets import find_targets
    from stages.models.loading import load_model
    from stages.training.loop import validation_loss
    from stages.training.step import compile_losses, tuned_cut

    model = load_model(BaseModel(directory=directory / "model", dtype="float32"))
    if adapter == UNTRAINED:
        shape = shape_of(defaults()["lora"])
        tuning = attach(model, find_targets(model, ["*"], None), [shape])
        tuning.update(tuning.join([initial(tuning.layers, shape, 0)]))
    else:
        tuning = load_adapter(model, directory / f"{adapter}_{rows}")
    losses = compile_losses(tuning, tuned_cut(tuning))
    held_out = open_rows(directory / f"{rows}_held_out", "train")
    report = SimpleNamespace(stop_requested=lambda: False)
    return validation_loss(losses, tuning.parameters(), held_out, 16, report)


if __name__ == "__main__":
    peer, place, chosen, *rest = sys.argv[1:]
    if peer == "score":
        print(json.dumps({"loss": score(Path(place), chosen, rest[0])}))
    else:
        noted = globals()[peer](Path(place), chosen, float(rest[0]), int(rest[1]))
        print(json.dumps({"starts": noted}))
