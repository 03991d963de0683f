"""A search's study: one journal of Optuna under `outputs/studies` that later sessions continue."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.types import Override
from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from pipeline.durable import reported
from pipeline.errors import Refused
from pipeline.locks import hold, holder
from pipeline.overrides import Words
from pipeline.resolved import deciding, differences, flat, redact
from pipeline.schema import Config
from pipeline.sweep import Trial, study_path

SESSION = "session"
"""Attribute of a trial: the lock that its session holds as long as it lives."""
TURN = "turn"
"""Attribute of a trial: its place in the search; an interrupted trial leaves its own to another."""
FAILED = "failed"
"""Attribute of a trial that came to an end of its own; without it a failed one was interrupted."""
COMMAND = "command"
"""Attribute of a trial that succeeded: what runs it alone."""
_SHOWN_CHANGES = 3

# What Optuna would say of a trial, the trial says itself.
optuna.logging.set_verbosity(optuna.logging.ERROR)


def distributions(words: Words) -> dict[str, BaseDistribution]:
    """Return what is searched: the keys of `words` with several values or a range.

    Raises `Refused` where a range cannot be searched.
    """
    found = {w.key_or_group: _distribution(w) for w in words.overrides if w.is_sweep_override()}
    # The order of the words must not decide what is suggested.
    return dict(sorted(found.items()))


def _distribution(word: Override) -> BaseDistribution:
    if not (word.is_interval_sweep() or word.is_range_sweep()):
        return CategoricalDistribution(list(word.sweep_string_iterator()))
    try:
        distribution = create_optuna_distribution_from_override(word)
    except ValueError as error:
        raise Refused(word.key_or_group, str(error).replace("`", "").rstrip(".")) from None
    assert isinstance(distribution, BaseDistribution)
    return distribution


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other searches away from the study in the file `path` for the block."""
    with hold(path.with_name(f".{path.stem}.lock"), wait=True), reported(path):
        yield


def load(path: Path) -> optuna.Study:
    """Return the study in the file `path`, an empty one if there is none.

    Raises `Refused` where the file is damaged.
    """
    try:
        return optuna.create_study(
            study_name=path.stem,
            storage=_storage(path),
            direction="minimize",
            load_if_exists=True,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        mend = "rename it: the same command asks for the same trials, and reuses their results"
        raise Refused(str(path), f"not a study that can be read ({error})", mend) from None


def _storage(path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path)))


def begin(configs: Sequence[Config], words: Words) -> int:
    """Begin a search's study, or check that it is this search's; return how many trials it lacks.

    `configs` are configurations of some of its trials: what these share is not searched.
    Raises `Refused` where the study of this name has trials of another search.
    """
    config = configs[0]
    assert config.sweeper.trials is not None
    searched = {key: distribution_to_json(d) for key, d in distributions(words).items()}
    asked = json.loads(json.dumps({"config": _shared(configs), "searched": searched}))
    path = study_path(config.outputs, config.name)
    with locked(path):
        study = load(path)
        abandon(study)
        found = study.user_attrs
        if found != asked:
            if any(t.state is not TrialState.FAIL for t in study.get_trials(deepcopy=False)):
                mend = f"give this search a name of its own: name={config.name}-2"
                raise Refused(str(path), f"holds another search: {_changes(found, asked)}", mend)
            if found:
                optuna.delete_study(study_name=path.stem, storage=_storage(path))
                study = load(path)
            for name, value in asked.items():
                study.set_user_attr(name, value)
        return config.sweeper.trials - len(turns(study))


def searched(study: optuna.Study) -> dict[str, BaseDistribution]:
    """Return what `begin` wrote down to be searched."""
    return {key: json_to_distribution(d) for key, d in study.user_attrs["searched"].items()}


def _shared(configs: Sequence[Config]) -> dict[str, Any]:
    first, *others = [flat(redact(deciding(asdict(config)))) for config in configs]
    return {k: v for k, v in first.items() if all(other.get(k) == v for other in others)}


def _changes(found: dict[str, Any], asked: dict[str, Any]) -> str:
    there, here = found["searched"], asked["searched"]
    changed = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    both = ({k: v for k, v in one["config"].items() if k not in changed} for one in (found, asked))
    lines = [*(f"other values of {key}" for key in changed), *differences(*both)]
    more = len(lines) - _SHOWN_CHANGES
    return ", ".join(lines[:_SHOWN_CHANGES]) + (f" and {more} more" if more > 0 else "")


def abandon(study: optuna.Study) -> None:
    """Mark as failed the trials whose session has ended without saying how."""
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        session = trial.user_attrs.get(SESSION)
        if session is None or holder(Path(session)) is None:
            study.tell(trial.number, state=TrialState.FAIL)


def turns(study: optuna.Study) -> set[int]:
    """Return the turns that are taken: by all trials but the interrupted ones."""
    made = study.get_trials(deepcopy=False)
    return {trial.user_attrs[TURN] for trial in made if _status(trial) != "interrupted"}


def _status(trial: FrozenTrial) -> str:
    if trial.state is TrialState.FAIL:
        return "failed" if FAILED in trial.user_attrs else "interrupted"
    return "succeeded" if trial.state is TrialState.COMPLETE else "running"


def trials(study: optuna.Study) -> list[Trial]:
    """Return all trials of all sessions, in short."""
    return [
        Trial(
            number=trial.number,
            overrides=tuple(f"{key}={_short(value)}" for key, value in trial.params.items()),
            status=_status(trial),
            objective=math.nan if trial.value is None else trial.value,
            command=trial.user_attrs.get(COMMAND, []),
        )
        for trial in study.get_trials(deepcopy=False)
    ]


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
