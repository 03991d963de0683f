"""The root of the configuration: one dataclass, registered once; YAML holds only values."""

from __future__ import annotations

import re
from dataclasses import dataclass, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from pipeline.plan import STEPS
from pipeline.spelling import closest
from stages.data_settings import Data
from stages.errors import SettingError
from stages.settings import Evaluate, Lora, Merge, Model, Serve
from stages.training_settings import Optimizer, Train

_MORE_IS_BETTER = frozenset({"exact_match", "json_valid", "slot_f1", "stop_rate"})


@dataclass(kw_only=True, slots=True)
class Sweeper:
    """How a sweep (`-m`) chooses its trials."""

    trials: int | None
    """Trials of a search in all, those of earlier sessions included; null for a grid."""

    def __post_init__(self) -> None:
        if self.trials is not None and self.trials < 1:
            raise SettingError("sweeper.trials", f"found {self.trials}, expected at least 1")


@dataclass(kw_only=True, slots=True)
class Config:
    """Everything a run is decided by."""

    name: str
    """Groups runs: they are written under `outputs/runs/<name>/`."""
    seed: int
    """Decides every random choice."""
    stages: tuple[str, ...]
    """Steps to run, of: prepare, train, merge, evaluate, serve."""
    run: str | None
    """Start from this run's recorded configuration: a run directory, or `latest`."""
    dry_run: bool
    """Say what would run or be reused, and why; write nothing."""
    outputs: str
    """Root of everything written."""
    objective: str
    """Metric that a sweep compares, lower is better: a flat name such as `valid.loss`."""
    model: Model
    data: Data
    lora: Lora
    optimizer: Optimizer
    train: Train
    merge: Merge
    evaluate: Evaluate
    serve: Serve
    sweeper: Sweeper

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            expected = "letters, digits, dots, dashes and underscores"
            raise SettingError("name", f"found {self.name!r}, expected {expected}")
        if not self.stages:
            raise SettingError("stages", "found an empty list", f"choose from {', '.join(STEPS)}")
        for stage in self.stages:
            if stage not in STEPS:
                expected = f"expected some of {', '.join(STEPS)}"
                near = closest(stage, STEPS)
                mend = f"did you mean {near}?" if near else ""
                raise SettingError("stages", f"found {stage!r}, {expected}", mend)
        if not 0 <= self.seed < 2**32:
            raise SettingError("seed", f"found {self.seed}, expected 0 or more and below 2**32")
        if not self.outputs.strip():
            raise SettingError("outputs", "found nothing, expected a directory")
        mend = "such as valid.loss"
        if "valid" not in self.objective.split("."):
            # Choosing by the test rows would make them validation rows.
            raise SettingError("objective", f"found {self.objective!r}, expected a metric of the "
                               "validation rows", mend)  # fmt: skip
        if self.objective.rpartition(".")[2] in _MORE_IS_BETTER:
            raise SettingError("objective", f"found {self.objective!r}, of which more is better, "
                               "but a sweep looks for the lowest", mend)  # fmt: skip
        if self.lora.type == "full" and self.model.quantization is not None:
            raise SettingError("model.quantization", f"found {self.model.quantization}, but "
                               "lora.type=full trains the weights themselves",
                               "leave model.quantization out, or choose lora=lora")  # fmt: skip


def register() -> None:
    """Make the schema known to Hydra, under the name that conf/config.yaml lists first."""
    node = OmegaConf.structured(Config)
    node.data = OmegaConf.structured(Data)
    # Hydra lets no new key into a configuration, but what a mapping holds is the user's own.
    node.data.columns = {}
    OmegaConf.set_struct(node.data.columns, False)
    node.data.columns = None
    ConfigStore.instance().store(name="schema", node=node, replace=True)


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _keys() -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for name, kind in get_type_hints(Config).items():
        if is_dataclass(kind):
            keys |= {f"{name}.{field}": hint for field, hint in get_type_hints(kind).items()}
        else:
            keys[name] = kind
    return keys


KEYS: dict[str, Any] = _keys()
"""The type of every key, by its full name: `lora.rank`."""
MAPPINGS = frozenset({"data.columns"})
"""Keys that hold a mapping, in names of the user's own; they are set whole."""


def expected(key: str) -> str:
    """Say in words which values `key` takes."""
    kinds = _kinds(KEYS[key])
    # A number may be written without a point.
    return " or ".join(_words(kind) for kind in kinds if kind is not int or float not in kinds)


def key_of(name: str) -> str:
    """Return the key that `name` belongs to: of `data.columns.text`, `data.columns`."""
    whole = name.rpartition(".")[0]
    return whole if whole in MAPPINGS else name


def _words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        options = ", ".join(map(str, get_args(kind)))
        return f"one of {options}" if "," in options else options
    if get_origin(kind) is tuple:
        items = get_args(kind)
        return "a list such as [a,b]" if Ellipsis in items else f"{len(items)} numbers in a list"
    if get_origin(kind) is dict:
        return "a mapping such as {a: b}"
    simple = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return {**simple, NoneType: "null"}[kind]
