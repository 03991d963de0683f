"""Search with Optuna (`sweeper=tpe`, `sweeper=random`): ask the study, run the trial, tell it.

hydra-optuna-sweeper's own sweeper, started anew, runs as many trials again, numbers them from 0
and repeats its suggestions (hydra issue 3328); its samplers and search spaces are used here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from pipeline import job, study, sweep
from pipeline.errors import Interrupted, Refused, Unable
from pipeline.locks import hold
from pipeline.overrides import Words, read
from pipeline.record import LOCK, NAME, read_run
from pipeline.resolved import digest
from pipeline.schema import Config
from pipeline.spelling import closest

SAMPLERS = ("optuna.samplers.*", "hydra_plugins.hydra_optuna_sweeper.*")
"""What a sampler's configuration may name."""


def run(
    configs: Sequence[Config], words: Words, session: job.Session, launch: Callable[[], int]
) -> int:
    """Have Hydra `launch` the trials that the study lacks, show all it has; return the exit code.

    `configs` are configurations of some of the trials, `words` what they are given.
    """
    config = configs[0]
    path = sweep.study_path(config.outputs, config.name)
    lacking = study.begin(configs, words)
    done = (config.sweeper.trials or 0) - lacking
    before = f", {done} made before" if done else ""
    sys.stdout.write(f"{sweep.announcement(words, config)}{before}\n")
    code = 0
    if lacking > 0:
        Plugins.instance().register(StudySweeper)
        try:
            code = launch()
        except KeyboardInterrupt:
            code = job.report(Interrupted(2))
    with study.locked(path):
        made = study.load(path)
        study.abandon(made)
    sweep.show(study.trials(made), config.objective, study=path, sweep=session.directory)
    return code


class StudySweeper(Sweeper):
    """Run one trial after the other, until the study has `sweeper.trials` of them.

    The study knows what is searched: `study.begin` has read `params` and the command line.
    """

    def __init__(self, sampler: DictConfig, params: object) -> None:
        self.sampler = sampler

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take over what Hydra composed without the searched keys."""
        self.loader = hydra_context.config_loader
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.launch = launcher.launch
        self.trials = config.sweeper.trials
        self.directory = Path(config.hydra.sweep.dir).absolute()
        self.path = sweep.study_path(config.outputs, config.name)

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that the study lacks; `arguments` are the words of the command line."""
        try:
            words = read(arguments, self.loader, sweeping=True)
            fixed = [str(w.input_line) for w in words.overrides if not w.is_sweep_override()]
            with study.locked(self.path):
                self.study = study.load(self.path)
            with hold(self.directory / LOCK, wait=False):
                while trial := self._ask():
                    self._run(trial, fixed)
        except Exception as error:
            # Hydra would add a traceback and its own exit code.
            raise SystemExit(job.report(error)) from None

    def _ask(self) -> optuna.Trial | None:
        with study.locked(self.path):
            study.abandon(self.study)
            taken = study.turns(self.study)
            if len(taken) >= self.trials:
                return None
            turn = min({*range(len(taken) + 1)} - taken)
            try:
                self.study.sampler = self._sampler(turn)
                trial = self.study.ask(study.searched(self.study))
            except ImportError as error:
                raise Unable("sampler", str(error), f"pip install {error.name}") from None
            trial.set_user_attr(study.TURN, turn)
            trial.set_user_attr(study.SESSION, str(self.directory / LOCK))
            return trial

    def _sampler(self, turn: int) -> BaseSampler:
        """Build the sampler of one turn.

        A seed for each makes a search that was interrupted or continued equal one that was not.
        """
        seed = int(digest([self.sampler.seed, turn])[:8], 16)
        try:
            sampler = instantiate(self.sampler, seed=seed, _execution_whitelist_=SAMPLERS)
        except HydraException as error:
            raise Refused("hydra.sweeper.sampler", str(error).splitlines()[0]) from None
        if not isinstance(sampler, BaseSampler):
            mend = "sweeper=grid tries every combination"
            raise Refused("hydra/sweeper/sampler", "cannot suggest one trial at a time", mend)
        return sampler

    def _run(self, trial: optuna.Trial, fixed: list[str]) -> None:
        values = [f"{key}={value}" for key, value in trial.params.items()]
        try:
            [end] = self.launch([[*fixed, *values]], initial_job_idx=trial.number)
        except BaseException:
            # Interrupted: the trial does not count.
            self._tell(trial, None)
            raise
        directory, objective = self.directory / str(trial.number), end.return_value
        if math.isfinite(objective):
            trial.set_user_attr(study.COMMAND, read_run(directory)["command"])
            self._tell(trial, objective)
        else:
            trial.set_user_attr(study.FAILED, True)
            self._tell(trial, None)
            self._check_measured(directory)

    def _tell(self, trial: optuna.Trial, objective: float | None) -> None:
        with study.locked(self.path):
            self.study.tell(trial, objective, TrialState.FAIL if objective is None else None)

    def _check_measured(self, directory: Path) -> None:
        """Refuse to go on where a trial succeeded without the metric that is compared."""
        run = read_run(directory) if (directory / NAME).exists() else None
        objective = self.study.user_attrs["config"]["objective"]
        if run and run["status"] == "succeeded" and objective not in run["metrics"]:
            measured = [name for name in run["metrics"] if "valid" in name.split(".")]
            near = closest(objective, measured)
            mend = f"did you mean {near}?" if near else f"there are {', '.join(measured)}"
            raise Refused("objective", f"the trial measured no {objective!r}", mend)
