"""The adapter that `train.init_adapter` names: where it lies, and what its key is made of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, Refused
from pipeline.file_digests import sha256
from pipeline.hub import Source
from pipeline.latest import find_run
from pipeline.record import NAME, read_run
from pipeline.schema import Config

KEY = "train.init_adapter"
WEIGHTS = "adapters.safetensors"
_FILES = (WEIGHTS, "adapter_config.json")


def find(config: Config, source: Source) -> Path | None:
    """Return the directory of the adapter to start from, None where a new one is trained.

    A run that is named must have trained on the base of this one. Raises `Refused`.
    """
    reference = config.train.init_adapter
    if reference is None:
        return None
    given = Path(reference).expanduser()
    if (given / WEIGHTS).is_file():
        # A link of a run directory, perhaps.
        run, place = given.parent, given
    else:
        try:
            run = find_run(reference, Path(config.outputs), None)
        except PipelineError as error:
            found = f"no run and no directory with {WEIGHTS}: {reference!r}"
            raise Refused(KEY, found, error.mend.replace("run=", f"{KEY}=")) from None
        place = run / "train"
        if not (place / WEIGHTS).is_file():
            raise Refused(KEY, f"{run} has no adapter", "name a run that trained one")
    if (run / NAME).is_file():
        _require_base(run, config, source)
    return place.resolve()


def identity(directory: Path | None) -> dict[str, Any]:
    """Return the digests of the files in which the adapter lies; nothing without one."""
    if directory is None:
        return {}
    try:
        return {f"{KEY}: {name}": sha256(directory / name) for name in _FILES}
    except OSError as error:
        found = f"cannot read {error.filename!r}: {(error.strerror or str(error)).lower()}"
        raise Refused(KEY, found, "name the directory of a whole adapter") from error


def _require_base(run: Path, config: Config, source: Source) -> None:
    record = read_run(run)
    theirs, settings = record["model"], record["config"].get("model", {})
    there = {**theirs, "path": _place(theirs["kind"], theirs["path"]),
             "init_seed": settings.get("init_seed"),
             "init": settings.get("init", "normal")}  # fmt: skip
    here = {"path": _place(source.kind, config.model.path), "kind": source.kind,
            "commit": source.commit, "init_seed": config.model.init_seed,
            "init": config.model.init}  # fmt: skip
    differing = [f"{name} {there[name]!r} there, {here[name]!r} here" for name in here
                 if there[name] != here[name]]  # fmt: skip
    if differing:
        found = f"{run} trained on another base: {', '.join(differing)}"
        raise Refused(KEY, found, "name a run of this base, or choose its base here")


def _place(kind: str, path: str) -> str:
    return os.path.realpath(Path(path).expanduser()) if kind == "local" else path
