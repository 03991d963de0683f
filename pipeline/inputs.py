"""Refuse a configuration that names functions, files or directories which do not exist."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pipeline.data_sources import given_files, hub_names
from pipeline.errors import Refused, Unable
from pipeline.plan import TABLE
from pipeline.schema import KEYS, Config
from pipeline.spelling import closest
from pipeline.stage_names import locate
from stages.data_settings import Data
from stages.errors import InputError
from stages.inputs import data_paths, find_files

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_OF_THE_HUB = ("subset", "split", "revision")


def check(config: Config, *, inherited: bool) -> None:
    """Look for everything that `config` names outside itself, without opening or importing it.

    An inherited configuration is checked for the selected stages alone: what the others made is
    in the store already. Raises `Refused`, or `Unable` where nothing can be written.
    """
    for step in TABLE:
        if step.function in KEYS and (step.name in config.stages or not inherited):
            group, _, field = step.function.partition(".")
            locate(getattr(getattr(config, group), field), step.function)
    if "prepare" in config.stages or not inherited:
        _check_data(config.data)
    _check_model(config.model.path)
    _check_outputs(Path(config.outputs))


def _check_data(data: Data) -> None:
    named = hub_names(data)
    for key in _OF_THE_HUB:
        value = getattr(data, key)
        if value is not None and len(named) != 1:
            count = f"{len(named)} data sets" if named else "no data set"
            found = f"found {value!r}, but data.path names {count} of the hub"
            raise Refused(f"data.{key}", found, f"leave data.{key} out, or name one data set")
    for path in data_paths(data.path):
        try:
            find_files(path)
        except InputError as error:
            near = _neighbour(path, ["samples"]) if error.where == "data.path" else None
            meant = f"data.path={near}" if isinstance(data.path, str) else near
            mend = f"did you mean {meant}?" if near else error.mend
            raise Refused(error.where, error.found, mend) from error
    for key, file in given_files(data).items():
        if not file.is_file():
            near = _neighbour(str(file), [])
            mend = f"did you mean {near}?" if near else f"set {key} to a file that exists"
            raise Refused(key, f"no file {str(file)!r}", mend)


def _check_model(path: str) -> None:
    place = Path(path).expanduser()
    if path == "tiny" or (place / "config.json").is_file():
        return
    if place.is_dir():
        mend = "give a directory with config.json, *.safetensors and a tokenizer"
        raise Refused("model.path", f"no config.json in {path!r}", mend)
    if place.exists():
        raise Refused("model.path", f"{path!r} is a file, expected a directory")
    if not _HUB_NAME.fullmatch(path):
        near = _neighbour(path, ["tiny"])
        mend = f"did you mean model.path={near}?" if near else (
            "a repository of the hub is written owner/name")  # fmt: skip
        raise Refused("model.path", f"no directory {path!r}", mend)


def _check_outputs(root: Path) -> None:
    there = next(place for place in (root, *root.absolute().parents) if place.exists())
    if not there.is_dir():
        raise Refused("outputs", f"{str(there)!r} is a file, expected a directory")
    if not os.access(there, os.W_OK | os.X_OK):
        mend = "set outputs=<a directory you can write in>"
        raise Unable("outputs", f"cannot write in {str(there)!r}", mend)


def _neighbour(path: str, special: list[str]) -> str | None:
    """Return what lies in the same directory under a similar name."""
    place = Path(path).expanduser()
    names = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
    near = closest(place.name, names, likeness=0.8)
    return str(Path(path).parent / near) if near else closest(path, special)
