"""The dry run: what would run or be reused, why, and what it is likely to cost; writes nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline import environment, keys, requests, retreats
from pipeline.data_sources import describe
from pipeline.errors import Unable
from pipeline.keys import Plan, Planned
from pipeline.manifest import Entry
from pipeline.parent import Parent
from pipeline.resolved import flat
from pipeline.schema import Config
from pipeline.store import Store
from pipeline.summary import age, render
from pipeline.terminal import duration

COMPARED = 50
"""How many earlier results of a stage are searched for the one most like this."""
SHOWN_CHANGES = 3
CHANGED = " changed"


def explain(config: Config, *, parent: Parent | None = None) -> None:
    """Print the plan of `config`, the data's counts, and a forecast of memory and time.

    Raises what the run itself would be refused for.
    """
    store = Store(Path(config.outputs) / "store")
    plan = retreats.follow(keys.make(config, parent), config, store)
    keys.check_upstream(plan, config, store, parent)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("stage", "would", "key", "why"):
        table.add_column(column)
    entries: dict[str, Entry] = {}
    for planned in plan.steps:
        name = planned.step.name
        if name == "model" and not plan.made_model:
            table.add_row(name, "use", "-", f"{config.model.path} as it is")
            continue
        entry = store.find(name, planned.key)
        if entry:
            entries[name] = entry
            why = f"made {age(entry.created)} in {duration(entry.seconds)}"
            table.add_row(name, "reuse", planned.key[:8], why)
        elif planned.needed:
            requests.require_known(planned)
            begun = _begun(planned, store) if config.train.resume == "auto" else None
            table.add_row(name, "run", planned.key[:8], begun or _why(planned, store))
    lines = [render(table), "", *_data_lines(plan, entries.get("prepare"))]
    if "train" in config.stages and "train" not in entries:
        lines += _forecast(config, store, plan.steps, entries.get("prepare"))
    try:
        environment.require_mlx()
    except Unable as error:
        lines.append(f"missing   {error}")
    sys.stdout.write("\n".join(lines) + "\n")


def _begun(planned: Planned, store: Store) -> str | None:
    """Say which step an unfinished stage is gone on after."""
    place = store.checkpoints(planned.step.name, planned.key)
    newest = max((path.name for path in place.glob("step-*")), default=None)
    return f"continues after step {int(newest.rpartition('-')[2])}" if newest else None


def _why(planned: Planned, store: Store) -> str:
    if not planned.step.stored:
        return "answers until it is stopped"
    # As the manifests have it: JSON knows no tuples.
    now = flat(json.loads(json.dumps(planned.ingredients)))
    nearest: list[str] | None = None
    for entry in islice(store.newest(planned.step.name), COMPARED):
        found = changes(flat(entry.ingredients), now)
        if nearest is None or _distance(found) < _distance(nearest):
            nearest = found
    if nearest is None:
        return "never made"
    more = len(nearest) - SHOWN_CHANGES
    if not nearest:
        return "its result is damaged"
    return ", ".join(nearest[:SHOWN_CHANGES]) + (f" and {more} more" if more > 0 else "")


def _distance(found: list[str]) -> tuple[int, int]:
    """Rank earlier results: first those made from the same rows, base and code as this."""
    return sum(line.endswith(CHANGED) for line in found), len(found)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs, as a person reads it: `lora.rank 8 → 16`; digests by name alone."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        old, new, name = before.get(key), now.get(key), key.removeprefix("settings.")
        if old == new:
            continue
        opaque = any(isinstance(v, str) and len(v) == 64 for v in (old, new))
        found.append(f"{name}{CHANGED}" if opaque else f"{name} {old} → {new}")
    return found


def _data_lines(plan: Plan, prepared: Entry | None) -> list[str]:
    if prepared:
        counts = prepared.metrics
        return [
            f"data      {split}: {counts[f'prepare.{split}.rows']:,.0f} rows, "
            f"{counts[f'prepare.{split}.tokens']:,.0f} tokens, "
            f"{counts[f'prepare.{split}.supervised_tokens']:,.0f} supervised"
            for split in ("train", "valid", "test")
            if f"prepare.{split}.rows" in counts
        ]
    return [f"data      {line}" for line in describe(plan.data, plan.data_commits)]


def _forecast(
    config: Config, store: Store, steps: tuple[Planned, ...], prepared: Entry | None
) -> list[str]:
    """Forecast from the most similar training of the same base on this kind of machine, if any."""
    model_key = next(p.key for p in steps if p.step.name == "model")
    workers = environment.training_workers(config.train)
    execution = environment.execution(config.model.dtype, config.model.path, workers)
    alike = [
        entry
        for entry in islice(store.newest("train"), COMPARED)
        if entry.ingredients["upstream"].get("model") == model_key
        and entry.ingredients["execution"] == execution
    ]
    if not alike:
        return ["forecast  none yet: this base was never trained here; train.steps=10 measures it"]
    wanted = {"lora": asdict(config.lora), "train": asdict(config.train)}
    rows_key = prepared.key if prepared else None

    def likeness(entry: Entry) -> tuple[bool, ...]:
        settings = entry.ingredients["settings"]
        compared = (("train", "batch_size"), ("lora", "type"), ("lora", "rank"))
        same = [settings[group][name] == wanted[group][name] for group, name in compared]
        return (*same, entry.ingredients["upstream"].get("prepare") == rows_key)

    like = max(alike, key=likeness)
    memory, made = like.peak_memory_bytes or 0, like.ingredients["settings"]
    at = f"train.batch_size={made['train']['batch_size']}, lora.type={made['lora']['type']}"
    if not likeness(like)[0]:
        return [f"forecast  none for train.batch_size={config.train.batch_size}; "
                f"{memory / 2**30:.2f} GiB was measured at {at}"]  # fmt: skip
    lines = [f"memory    about {memory / 2**30:.2f} GiB, measured at {at}"]
    if prepared:
        tokens = prepared.metrics["prepare.train.tokens"] * config.train.epochs
        if config.train.steps:
            rows = (
                config.train.steps * config.train.batch_size * config.train.grad_accumulation_steps
            )
            share = rows / (prepared.metrics["prepare.train.rows"] * config.train.epochs)
            tokens *= min(1.0, share)
        speed = like.metrics["train.tokens_per_second"]
        lines.append(
            f"time      about {duration(tokens / speed)} of training at {speed:,.0f} tok/s"
        )
    return lines
