"""Turn a configuration into planned steps, each with the key it has in the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline import fingerprint
from pipeline.hub import Source, resolve
from pipeline.parent import Parent
from pipeline.plan import TABLE, Step
from pipeline.resolved import digest
from pipeline.schema import Config

TINY = "stages.models.tiny.build"


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One step of this run."""

    step: Step
    key: str
    function: str
    ingredients: dict[str, Any] | None
    """What the key was made of; None where the parent run recorded the key."""
    selected: bool
    """Named in `stages`; other steps are here because a selected one takes their artifact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All planned steps in order, and the base model they share."""

    steps: tuple[Planned, ...]
    source: Source
    """Where the base model comes from."""
    made_model: bool
    """The base must be made (built, quantized) before use; else its directory is used as is."""


def make(config: Config, parent: Parent | None) -> Plan:
    """Plan the selected steps and all they need, in order.

    With a parent run, the steps that are not selected keep the keys the parent recorded: the
    artifacts of that very run are used, whatever has changed in the code since.
    """
    source = resolve(config.model)
    tiny = {"code": fingerprint.code_digest(TINY)} if source.kind == "tiny" else {}
    wanted = _with_upstream(set(config.stages))
    keys: dict[str, str] = {}
    planned: list[Planned] = []
    for step in TABLE:
        if step.name not in wanted:
            continue
        made_of = None
        selected = step.name in config.stages
        if parent and not selected and step.name in parent.keys:
            keys[step.name] = parent.keys[step.name]
        else:
            identity = source.tokenizer if step.tokenizer_only else source.weights
            # The tokenizer's identity stands for the model where only the tokenizer is read.
            upstream = {name: keys[name] for name in step.upstream
                        if not (step.tokenizer_only and name == "model")}  # fmt: skip
            reads_model = step.name == "model" or step.tokenizer_only
            made_of = fingerprint.ingredients(
                step,
                config,
                model={**identity, **tiny} if reads_model else {},
                inputs=fingerprint.data_identity(config.data.path)
                if "data" in step.settings
                else {},
                upstream=upstream,
            )
            keys[step.name] = digest(made_of)
        planned.append(
            Planned(
                step=step,
                key=keys[step.name],
                function=fingerprint.function_name(step, config),
                ingredients=made_of,
                selected=selected,
            )
        )
    made_model = source.kind == "tiny" or config.model.quantization is not None
    return Plan(steps=tuple(planned), source=source, made_model=made_model)


def _with_upstream(selected: set[str]) -> set[str]:
    wanted = set(selected)
    for step in reversed(TABLE):
        if step.name in wanted:
            wanted.update(step.upstream)
    return wanted
