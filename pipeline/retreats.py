"""Training that ran out of memory goes on in smaller batches, of which more make a step.

store/.retreats/<key>.json    what was noted of the training that has this key as configured

A retreat is the configuration with another split of the same rows, so its result has the key of
that one; nothing is committed under the key at which memory ran out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import environment
from pipeline.durable import reported
from pipeline.errors import OutOfMemory, Refused
from pipeline.keys import Plan, Planned
from pipeline.resolved import digest
from pipeline.schema import Config
from pipeline.store import Store
from stages.durable import replace_file
from stages.memory import size_bytes, smaller_batch, what_to_change
from stages.training_settings import Train

FORMAT = 1

_log = logging.getLogger("pipeline")


@dataclass(frozen=True, slots=True)
class Retreat:
    """Smaller batches, and the limit under which they were found necessary."""

    batch_size: int
    memory_limit_bytes: int | None
    """None: what the machine had then."""
    when: str
    """ISO time."""

    def binds(self, limit_bytes: int | None) -> bool:
        """Tell whether training under `limit_bytes` has no more memory than there was then."""
        if self.memory_limit_bytes is None:
            return True
        return limit_bytes is not None and limit_bytes <= self.memory_limit_bytes


def follow(plan: Plan, config: Config, store: Store) -> Plan:
    """Plan the training as earlier retreats had it, unless it is in the store as configured.

    Raises `Refused` for a note of a newer format.
    """
    planned = _training(plan)
    if planned is None:
        return plan
    limit = size_bytes("train.memory_limit", config.train.memory_limit)
    path = note_path(plan, config, store)
    sizes = [noted.batch_size for noted in _read(path)
             if noted.binds(limit) and config.train.batch_size % noted.batch_size == 0]  # fmt: skip
    if not sizes or store.find("train", planned.key):
        return plan
    _log.info("train: %d rows at a time, as memory ran out before (%s)", min(sizes), path)
    return split(plan, config.train, min(sizes))


def split(plan: Plan, train: Train, batch_size: int) -> Plan:
    """Return the plan with the rows of each step of `train` in batches of `batch_size`.

    The training and whatever takes its result get the keys of that.
    """
    rows_per_step = train.batch_size * train.grad_accumulation_steps
    accumulated = rows_per_step // batch_size
    smaller = replace(train, batch_size=batch_size, grad_accumulation_steps=accumulated)
    keys: dict[str, str] = {}
    steps = []
    for planned in plan.steps:
        made_of, key = planned.ingredients, planned.key
        if made_of is not None:
            upstream = {name: keys[name] for name in made_of["upstream"]}
            made_of = {**made_of, "upstream": upstream}
            if planned.step.name == "train":
                made_of = _made_of(made_of, smaller)
            key = digest(made_of)
        keys[planned.step.name] = key
        steps.append(replace(planned, ingredients=made_of, key=key))
    return replace(plan, steps=tuple(steps), train=smaller)


def retreat(plan: Plan, config: Config, store: Store, lack: OutOfMemory) -> Plan:
    """Note that the plan's training ran out of memory, and plan it in smaller batches.

    Raises `OutOfMemory` with what to change where it was one row at a time.
    """
    size = smaller_batch(plan.train.batch_size)
    if size is None:
        mend = what_to_change(
            1,
            checkpointing=config.train.gradient_checkpointing,
            packable=environment.device() == "gpu" and config.model.quantization is None,
        )
        if lack.where == "train.memory_limit":
            mend += ", or raise train.memory_limit"
        raise OutOfMemory(lack.where, f"{lack.found}, at one row at a time", mend)
    limit = size_bytes("train.memory_limit", config.train.memory_limit)
    path = note_path(plan, config, store)
    now = Retreat(size, limit, datetime.now(UTC).isoformat(timespec="seconds"))
    with store.lock("retreat", path.stem):
        kept = [noted for noted in _read(path) if noted.memory_limit_bytes != limit]
        _write(path, [*kept, now])
    smaller = split(plan, config.train, size)
    _log.info(
        "memory: %s; training starts anew with %d rows at a time instead of %d, and the same rows "
        "in each step; noted in %s",
        lack.found, size, plan.train.batch_size, path,
    )  # fmt: skip
    return smaller


def note_path(plan: Plan, config: Config, store: Store) -> Path:
    """Return where retreats of this training are noted: by its key as configured."""
    planned = _training(plan)
    assert planned is not None, "a plan without training does not retreat"
    key = digest(_made_of(planned.ingredients or {}, config.train))
    return store.root / ".retreats" / f"{key}.json"


def _training(plan: Plan) -> Planned | None:
    """Return the training that this plan would make; None where it takes one as it is."""
    steps = (p for p in plan.steps if p.step.name == "train" and p.ingredients is not None)
    return next(steps, None)


def _made_of(ingredients: Mapping[str, Any], train: Train) -> dict[str, Any]:
    """Return what training is made of with its rows split as `train` has it."""
    settings = ingredients["settings"]
    sizes = {name: getattr(train, name) for name in ("batch_size", "grad_accumulation_steps")}
    return {**ingredients, "settings": {**settings, "train": {**settings["train"], **sizes}}}


def _read(path: Path) -> list[Retreat]:
    with reported(path):
        try:
            fields = json.loads(path.read_bytes())
            number = fields["format"]
            if number == FORMAT:
                return [Retreat(**entry) for entry in fields["retreats"]]
        except FileNotFoundError:
            return []
        # It costs another try at the full batch, no more.
        except (ValueError, TypeError, LookupError):
            _log.warning("damaged, so it is not followed: %s", path)
            return []
    found = f"written in format {number}, this version reads {FORMAT}"
    raise Refused(str(path), found, "update mlx-lora-pipeline")


def _write(path: Path, retreats: Sequence[Retreat]) -> None:
    fields = {"format": FORMAT, "retreats": [asdict(entry) for entry in retreats]}
    content = (json.dumps(fields, indent=2) + "\n").encode()
    with reported(path, len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
