"""Refuse a configuration that names functions, files or directories which do not exist."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pipeline.errors import Refused, Unable
from pipeline.plan import TABLE
from pipeline.schema import KEYS, Config
from pipeline.spelling import closest
from pipeline.stage_names import locate

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


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
        _check_data(config.data.path)
    _check_model(config.model.path)
    _check_outputs(Path(config.outputs))


def _check_data(path: str) -> None:
    if path != "samples" and not Path(path).expanduser().exists():
        mend = _neighbour("data.path", path, ["samples"])
        raise Refused("data.path", f"no file or folder {path!r}", mend)


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
        mend = _neighbour("model.path", path, ["tiny"])
        mend = mend or "a repository of the hub is written owner/name"
        raise Refused("model.path", f"no directory {path!r}", mend)


def _check_outputs(root: Path) -> None:
    there = next(place for place in (root, *root.absolute().parents) if place.exists())
    if not there.is_dir():
        raise Refused("outputs", f"{str(there)!r} is a file, expected a directory")
    if not os.access(there, os.W_OK | os.X_OK):
        mend = "set outputs=<a directory you can write in>"
        raise Unable("outputs", f"cannot write in {str(there)!r}", mend)


def _neighbour(key: str, path: str, special: list[str]) -> str:
    """Suggest what lies in the same directory under a similar name."""
    place = Path(path).expanduser()
    names = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
    near = closest(place.name, names, likeness=0.8)
    meant = str(Path(path).parent / near) if near else closest(path, special)
    return f"did you mean {key}={meant}?" if meant else ""
