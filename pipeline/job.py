"""Run one configuration in the directory that Hydra made for it, alone or as a sweep's trial."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from pipeline.compose import Composed, Composer
from pipeline.configure import configure
from pipeline.errors import Broken, PipelineError
from pipeline.overrides import read
from pipeline.sweep import STOPPED, STUDY, Trial, study_path, without_sweeper

log = logging.getLogger("pipeline")
PROGRAM = ["python", "-m", "pipeline"]


@dataclass(slots=True)
class Session:
    """One command, from its flags to the end of its last trial."""

    args: argparse.Namespace
    objective: str = ""
    trials: list[Trial] = field(default_factory=list)
    directory: Path | None = None
    """Where the trials lie."""
    exit_code: int = 0
    """The worst of the trials' exit codes."""

    def flags(self) -> list[str]:
        """Return the flags that decide the configuration."""
        given = {"--config-dir": self.args.config_dir, "--config-name": self.args.config_name}
        return [word for flag, value in given.items() if value for word in (flag, value)]


def run(cfg: DictConfig, session: Session) -> float:
    """Run what Hydra composed and return its objective, NaN where it failed or has none.

    One failed trial does not end a sweep. Otherwise exits with the code of the error.
    """
    hydra = HydraConfig.get()
    sweeping = hydra.mode is RunMode.MULTIRUN
    words = without_sweeper([*([] if sweeping else hydra.overrides.hydra), *hydra.overrides.task])
    command = [*PROGRAM, *session.flags(), *words]
    directory = Path(hydra.runtime.output_dir)
    trial = hydra.job.num if sweeping else None
    if sweeping:
        own = [word for word in words if word not in sys.argv]
        log.info("\ntrial %d: %s", trial, " ".join(own) or "as given")
    objective, code = math.nan, 0
    try:
        objective = _execute(cfg, session, command, trial)
    except Exception as error:
        code = report(error)
        _remove_unbegun(directory, Path(cfg.outputs).absolute())
    if sweeping:
        session.directory = directory.parent
        session.exit_code = max(session.exit_code, code)
        status = "interrupted" if code in STOPPED else "failed" if code else "succeeded"
        session.trials.append(
            Trial(
                number=hydra.job.num,
                overrides=tuple(words),
                status=status,
                objective=objective,
                command=command,
            )
        )
    if code in STOPPED or (code and not sweeping):
        raise SystemExit(code)
    return objective


def _execute(cfg: DictConfig, session: Session, command: list[str], trial: int | None) -> float:
    from pipeline.execution import execute

    hydra = HydraConfig.get()
    composer = Composer(GlobalHydra.instance().config_loader(), str(hydra.job.config_name))
    words = read(hydra.overrides.task, composer.loader, sweeping=False)
    composed = Composed(config=cfg, choices=dict(hydra.runtime.choices), params={})
    config, parent = configure(composed, words, composer)
    session.objective = config.objective
    searching = hydra.runtime.choices["hydra/sweeper"] == STUDY and trial is not None
    outcome = execute(
        config,
        directory=Path(hydra.runtime.output_dir),
        command=command,
        parent=parent,
        study=str(study_path(config.outputs, config.name)) if searching else None,
        trial=trial,
    )
    return outcome.metrics.get(config.objective, math.nan)


def _remove_unbegun(directory: Path, outputs: Path) -> None:
    """Remove what Hydra made for a run that was refused before its record began."""
    if (directory / "run.json").exists():
        return
    (directory / "pipeline.log").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # a directory that holds something else
        for place in (directory, *directory.parents):
            if place.is_relative_to(outputs):
                place.rmdir()


def report(error: Exception) -> int:
    """Say on stderr, and in the run's log if it has one, what ended it; return its exit code."""
    if not isinstance(error, PipelineError):
        error = Broken("pipeline", repr(error), traceback.format_exc())
    text = "\n".join(error.lines())
    with contextlib.suppress(OSError):  # nobody reads it any more
        sys.stdout.flush()
    sys.stderr.write(f"{text}\n")
    # Once a run has begun, conf/config.yaml gives this logger the run's file, and nothing else.
    if (errors := logging.getLogger("pipeline.errors")).handlers:
        errors.error("%s", text)
    return error.exit_code
