"""Start from a recorded run (`run=R`): its configuration plus what is given now."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline import mistakes
from pipeline.compose import Composed, Composer
from pipeline.errors import Refused
from pipeline.latest import find_run
from pipeline.overrides import Words
from pipeline.parent import Parent
from pipeline.plan import STEPS, TABLE, Step
from pipeline.record import read_run
from pipeline.resolved import flat
from pipeline.schema import KEYS, MAPPINGS, Config, key_of

_ITS_OWN = frozenset({"run", "dry_run", "outputs", "sweeper"})
"""What a run never inherits: it says where, whether and what beside it, and R may have moved."""
_TOKENIZER = frozenset({"model", "model.path", "model.revision"})
"""What decides the tokenizer; the other keys of `model` change only the weights."""


def find(config: DictConfig, words: Words) -> Parent:
    """Return the run that the key `run` names; `latest` looks at all names unless one is given."""
    if "experiment" in words.given:
        mend = "leave one of them out: a run brings its whole configuration"
        raise Refused("experiment", "cannot be combined with run=", mend)
    name = config.name if "name" in words.given else None
    directory = find_run(config.run, Path(config.outputs), name)
    recorded = read_run(directory)
    keys = {name: stage["key"] for name, stage in recorded["stages"].items()
            if stage["status"] != "failed"}  # fmt: skip
    return Parent(
        directory=directory,
        config=recorded["config"],
        keys=keys,
        model_key=recorded["model"].get("key"),
        model_commit=recorded["model"].get("commit"),
        data_commits={source["path"]: source["commit"] for source in recorded.get("data", [])},
    )


def inherit(parent: Parent, composed: Composed, words: Words, composer: Composer) -> Composed:
    """Return the parent's configuration with the given options and values in place of its own.

    An option replaces its whole group; a value replaces its key. Raises `Refused` where the
    record has other keys than this version, or a given key would change nothing that is run.
    """
    _check_keys(parent, words)
    taken = _ITS_OWN | {word.key_or_group for word in words.choices}
    given = {key: node for key, node in composed.config.items_ex(resolve=False) if key in taken}
    kept = {key: value for key, value in parent.config.items() if key not in taken}
    replaced = OmegaConf.create()
    # Merged into the parent's own, a given mapping would keep its other names.
    for key in MAPPINGS & words.given:
        OmegaConf.update(replaced, key, None)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), kept, given, replaced)
    except OmegaConfBaseException as error:
        raise mistakes.explain(error, composer.loader) from None
    assert isinstance(merged, DictConfig)
    composer.apply(words.values, merged)
    _check_read(words, tuple(merged.stages))
    return replace(composed, config=merged)


def _check_keys(parent: Parent, words: Words) -> None:
    recorded = {key_of(name) for name in flat(parent.config)}
    where = f"run={parent.directory}"
    if unknown := sorted(recorded - KEYS.keys()):
        found = f"was recorded with keys that this version does not have: {', '.join(unknown)}"
        raise Refused(where, found, "give the configuration anew, without run=")
    missing = sorted(
        key for key in KEYS.keys() - recorded
        if not {key, key.partition(".")[0]} & (words.given | _ITS_OWN)
    )  # fmt: skip
    if missing:
        found = f"was recorded before these keys existed: {', '.join(missing)}"
        raise Refused(where, found, f"give them too: {missing[0]}=<value>")


def _check_read(words: Words, stages: tuple[str, ...]) -> None:
    """Refuse a given key if only steps read it whose results are taken from the parent."""
    for key in sorted(words.given):
        readers = [step.name for step in TABLE if key.partition(".")[0] in step.settings]
        listed = [name for name in readers if name in STEPS]
        if any(name in stages for name in listed):
            continue
        if listed:
            found = f"is only read by {' and '.join(listed)}, which is not in stages"
        elif readers and (listed := _decided_by_model(key, stages)):
            found = f"decides what {listed[0]} made, which is not in stages"
        else:
            continue
        wanted = ",".join(name for name in STEPS if name in {*stages, *listed})
        raise Refused(key, found, f"leave {key} out, or add the stage: 'stages=[{wanted}]'")


def _decided_by_model(key: str, stages: tuple[str, ...]) -> list[str]:
    """Return the unselected steps that a selected one builds on and that depend on `key`."""
    taken = {name for step in TABLE if step.name in stages for name in step.upstream} - {*stages}
    return [step.name for step in TABLE
            if step.name in taken and "model" in step.upstream and _depends(step, key)]  # fmt: skip


def _depends(step: Step, key: str) -> bool:
    return not step.tokenizer_only or key in _TOKENIZER
