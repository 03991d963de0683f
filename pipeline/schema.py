"""The root of the configuration: one dataclass, registered once; YAML holds only values."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore

from pipeline.plan import STEPS
from stages.errors import SettingError
from stages.settings import Data, Lora, Model, Optimizer, Train


@dataclass(kw_only=True, slots=True)
class Config:
    """Everything a run is decided by."""

    name: str
    """Groups runs: they are written under `outputs/runs/<name>/`."""
    seed: int
    """Decides every random choice."""
    stages: tuple[str, ...]
    """Steps to run, of: prepare, train."""
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

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            expected = "letters, digits, dots, dashes and underscores"
            raise SettingError("name", f"found {self.name!r}, expected {expected}")
        if not self.stages:
            raise SettingError("stages", "found an empty list", f"choose from {', '.join(STEPS)}")
        for stage in self.stages:
            if stage not in STEPS:
                expected = f"expected some of {', '.join(STEPS)}"
                raise SettingError("stages", f"found {stage!r}, {expected}")
        if not 0 <= self.seed < 2**32:
            raise SettingError("seed", f"found {self.seed}, expected 0 or more and below 2**32")


def register() -> None:
    """Make the schema known to Hydra, under the name that conf/config.yaml lists first."""
    ConfigStore.instance().store(name="schema", node=Config)
