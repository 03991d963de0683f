"""Turn a configuration into planned steps, each with the key it has in the store."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import data_sources, fingerprint, starting_point
from pipeline.errors import Refused
from pipeline.hub import Source, is_made, resolve
from pipeline.parent import Parent
from pipeline.plan import STEPS, TABLE, Step, upstream
from pipeline.resolved import digest
from pipeline.schema import Config
from pipeline.store import Store
from stages.data_settings import Data
from stages.settings import Model
from stages.training_settings import Train


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One step of this run."""

    step: Step
    key: str
    function: str
    ingredients: dict[str, Any] | None
    """What the key was made of; None where it is the parent run's, and could not be made again."""
    selected: bool
    """Named in `stages`."""
    needed: bool
    """Selected, or its artifact is taken by a step that is; the others only led to one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All planned steps in order, and the base model they share."""

    steps: tuple[Planned, ...]
    model: Model
    """The base model as configured, at the commit that this run uses."""
    data: Data
    """The data as configured, at the commits that this run uses."""
    train: Train
    """How rows are trained on: as configured, or in smaller batches as retreats.py has them."""
    data_commits: dict[str, str]
    """The commit of each data set of the hub, by its name."""
    source: Source
    """Where it comes from."""
    init_adapter: Path | None
    """Where the adapter lies that training starts from."""
    made_model: bool
    """The base must be made (quantized, drawn) before use; else its directory is used as is."""

    def pinned(self, config: Config) -> Config:
        """Return the configuration with what it names outside in the place of the names."""
        adapter = str(self.init_adapter) if self.init_adapter else None
        train = replace(self.train, init_adapter=adapter)
        return replace(config, data=self.data, train=train)

    def model_record(self) -> dict[str, Any]:
        """Return what `run.json` says of the base model."""
        made = next((p.key for p in self.steps if p.step.name == "model"), None)
        source = self.source
        return {"path": self.model.path, "kind": source.kind, "commit": source.commit, "key": made}


def make(config: Config, parent: Parent | None) -> Plan:
    """Plan the selected steps and all they need, in order.

    With a parent run, the steps that are not selected keep the keys the parent recorded: the
    artifacts of that very run are used, whatever has changed in the code or on the hub since.
    """
    model = _pinned(config, parent)
    source = resolve(model)
    wanted = _with_upstream(config)
    commits = data_sources.find_commits(config.data, parent)
    # Of a parent run's training, the key is known.
    trains = "train" in config.stages or ("train" in wanted and parent is None)
    init_adapter = starting_point.find(config, source) if trains else None
    inputs = {
        "prepare": fingerprint.data_identity(config.data, commits),
        "train": starting_point.identity(init_adapter),
    }
    recorded = _recorded(config, parent)
    needed = _needed(config)
    keys: dict[str, str] = {}
    planned: list[Planned] = []
    for step in TABLE:
        if step.name not in wanted:
            continue
        reads_model = step.name == "model" or step.tokenizer_only
        identity = source.tokenizer if step.tokenizer_only else source.weights
        above = upstream(step, config.serve.weights)
        made_of: dict[str, Any] | None = fingerprint.ingredients(
            step,
            config,
            model=identity if reads_model else {},
            inputs=inputs.get(step.name, {}),
            # The tokenizer's identity stands for the model where only the tokenizer is read.
            upstream={name: keys[name] for name in above if not step.tokenizer_only},
        )
        key = digest(made_of)
        if recorded.get(step.name, key) != key:
            key, made_of = recorded[step.name], None
        keys[step.name] = key
        planned.append(
            Planned(
                step=step,
                key=key,
                function=fingerprint.function_name(step, config),
                ingredients=made_of,
                selected=step.name in config.stages,
                needed=step.name in needed,
            )
        )
    made_model = is_made(model.quantization, model.init_seed)
    return Plan(
        steps=tuple(planned),
        model=model,
        data=data_sources.pinned(config.data, commits),
        train=config.train,
        data_commits=commits,
        source=source,
        init_adapter=init_adapter,
        made_model=made_model,
    )


def _pinned(config: Config, parent: Parent | None) -> Model:
    """Return the model, at the commit of the parent run where it is the parent's own."""
    if parent and parent.model_commit and asdict(config.model) == parent.config["model"]:
        return replace(config.model, revision=parent.model_commit)
    return config.model


def _recorded(config: Config, parent: Parent | None) -> dict[str, str]:
    """Return the keys that the parent run recorded for the steps that are not selected."""
    if parent is None:
        return {}
    listed = {step.name for step in TABLE if not step.implied}
    keys = {name: key for name, key in parent.keys.items()
            if name in listed and name not in config.stages}  # fmt: skip
    if parent.model_key and asdict(config.model) == parent.config["model"]:
        keys["model"] = parent.model_key
    return keys


def _needed(config: Config) -> set[str]:
    needed = set(config.stages)
    for step in reversed(TABLE):
        if step.name in config.stages or (step.implied and step.name in needed):
            needed.update(upstream(step, config.serve.weights))
    return needed


def _with_upstream(config: Config) -> set[str]:
    wanted = set(config.stages)
    for step in reversed(TABLE):
        if step.name in wanted:
            wanted.update(upstream(step, config.serve.weights))
    return wanted


def check_unchanged(plan: Plan, planned: Planned, config: Config) -> None:
    """Refuse rows of files that changed meanwhile: they are not those of the key."""
    if "data" not in planned.step.settings or planned.ingredients is None:
        return
    now = fingerprint.data_identity(config.data, plan.data_commits)
    if now != planned.ingredients["inputs"]:
        found = "its files, or those it is read by, changed while they were read"
        raise Refused("data.path", found, "run it again once they are complete")


def check_upstream(plan: Plan, config: Config, store: Store, parent: Parent | None) -> None:
    """Refuse steps that take what no listed step makes and the store does not hold."""
    taken = [p for p in plan.steps if p.needed and not p.selected and not p.step.implied]
    missing = [p.step.name for p in taken if store.find(p.step.name, p.key) is None]
    if not missing:
        return
    names = " and ".join(missing)
    if parent and not parent.directory.resolve().is_relative_to(store.root.resolve().parent):
        found = f"{store.root} does not hold the {names} of {parent.directory}"
        raise Refused("outputs", found, "set outputs=<the folder in which that run was made>")
    found = f"needs the result of {names}, which has not been made for this configuration"
    wanted = ",".join(name for name in STEPS if name in {*missing, *config.stages})
    raise Refused("stages", found, f"add it: 'stages=[{wanted}]'")
