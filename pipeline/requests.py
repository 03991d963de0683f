"""What the worker is asked to do: a stage's settings, the artifacts it takes, where it writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import environment, hub
from pipeline.errors import Refused
from pipeline.keys import Plan, Planned
from pipeline.manifest import Entry
from pipeline.plan import TABLE, upstream
from pipeline.process import HandedOver
from pipeline.schema import Config
from pipeline.store import Store

_KEYWORDS = {step.name: step.keyword for step in TABLE}


def build(
    planned: Planned, config: Config, handed_over: HandedOver, beside: Mapping[str, Any], out: Path
) -> dict[str, Any]:
    """Return the request for one stage, as it travels to the worker."""
    step = planned.step
    keywords = [_KEYWORDS[name] for name in upstream(step, config.serve.weights)]
    return {
        "stage": step.name,
        "function": planned.function,
        "tensors": step.tensors,
        "settings": [(name, _settings(config, name)) for name in step.settings],
        "handed_over": {keyword: handed_over[keyword] for keyword in keywords},
        "extra": dict(beside),
        "out": str(out.resolve()),
    }


def _settings(config: Config, name: str) -> Any:
    value = getattr(config, name)
    if name == "train":
        value = replace(value, workers=environment.training_workers(value))
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def extra(
    planned: Planned, plan: Plan, config: Config, store: Store, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return what one stage is given beside; a base from the hub is downloaded."""
    step = planned.step
    if step.resumes:
        return {"checkpoints": str(store.checkpoints(step.name, planned.key).resolve())}
    if step.name == "serve":
        return {"name": config.name}
    if step.name != "model":
        return {}
    dtype = environment.compute_dtype(config.model.dtype)
    return {"source": str(hub.download(plan.model, plan.source, say).resolve()), "dtype": dtype}


def artifact(planned: Planned, entry: Entry, config: Config) -> tuple[str, dict[str, Any]]:
    """Return a committed stage as what later stages are given."""
    fields: dict[str, Any] = {
        "directory": str(entry.directory.resolve()),
        "metrics": entry.metrics,
    }
    if planned.step.artifact == "BaseModel":
        fields["dtype"] = environment.compute_dtype(config.model.dtype)
    return planned.step.artifact, fields


def model_directory(plan: Plan, say: Callable[[str], None]) -> tuple[str, dict[str, Any]]:
    """Return the base that is used as it is, downloaded where it comes from the hub."""
    (planned,) = (planned for planned in plan.steps if planned.step.name == "model")
    require_known(planned)
    directory = hub.download(plan.model, plan.source, say)
    dtype = environment.compute_dtype(plan.model.dtype)
    return "BaseModel", {"directory": str(directory.resolve()), "dtype": dtype}


def require_known(planned: Planned) -> None:
    """Refuse to make again what the parent run made in a way that is gone."""
    if planned.ingredients is None:
        found = f"the parent run's {planned.step.name} is gone, and would come out otherwise now"
        raise Refused("run", found, "give the configuration anew, without run=")
