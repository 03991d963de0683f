"""What a finished run left to work with: its base model and its adapter, as a stage takes them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import environment, hub
from pipeline.errors import Refused
from pipeline.hub import Source, is_made
from pipeline.latest import find_run
from pipeline.process import HandedOver
from pipeline.record import read_run
from pipeline.store import Store
from stages.inputs import EMBEDDED
from stages.settings import Model


@dataclass(frozen=True, slots=True)
class Trained:
    """A run that can be talked to."""

    directory: Path
    name: str
    chat: bool
    """Whether any of its rows were conversations; else it is given texts to continue."""
    model_path: str
    handed_over: HandedOver
    """`model`, and `adapter` unless the base alone was asked for."""


def open_trained(
    reference: str, outputs: Path, name: str | None, *, base: bool, say: Callable[[str], None]
) -> Trained:
    """Find the run that `reference` means and what it made; with `base`, without its adapter.

    Raises `Refused` where there is no such run, or its files are gone; `Unable` where the base
    model must be downloaded and cannot be.
    """
    directory = find_run(reference, outputs, name)
    run = read_run(directory)
    handed_over: HandedOver = {"model": ("BaseModel", _base(directory, run, say))}
    if not base:
        key = _trained_key(directory, run)
        handed_over["adapter"] = ("Adapter", {"directory": _stored(directory, "train", key)})
    return Trained(
        directory, str(run["name"]), _is_chat(directory), str(run["model"]["path"]), handed_over
    )


def _base(directory: Path, run: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    recorded, settings = run["model"], run["config"]["model"]
    dtype = environment.compute_dtype(settings.get("dtype"))
    # Every base has a key, but only one that was made lies in the store under it.
    if is_made(settings.get("quantization"), settings.get("init_seed")):
        return {"directory": _stored(directory, "model", recorded["key"]), "dtype": dtype}
    places = {"tiny": EMBEDDED, "local": Path(recorded["path"]).expanduser()}
    source = Source(
        kind=recorded["kind"],
        directory=places.get(recorded["kind"]),
        commit=recorded["commit"],
    )
    # The run's own commit, whatever the branch it was named by holds by now.
    model = Model(path=recorded["path"], revision=recorded["commit"])
    return {"directory": str(hub.download(model, source, say).resolve()), "dtype": dtype}


def _is_chat(directory: Path) -> bool:
    report = directory / "prepare" / "doctor.json"
    try:
        return bool(json.loads(report.read_text(encoding="utf-8"))["kind"] != "text")
    except (OSError, ValueError, KeyError, TypeError):
        raise _gone(report, directory) from None


def _trained_key(directory: Path, run: dict[str, Any]) -> str:
    train = run["stages"].get("train", {})
    if train.get("status") not in ("ran", "reused"):
        mend = "name a run that trained one, or add --base"
        raise Refused(str(directory), "this run made no adapter", mend)
    return str(train["key"])


def _stored(directory: Path, stage: str, key: str) -> str:
    """Return the stage directory that the run links, having looked whether it is whole."""
    link = directory / stage
    if link.is_symlink():
        stored = Path(os.path.realpath(link))
        entry = Store(stored.parent.parent).find(stage, key)
        if entry is not None:
            return str(entry.directory.resolve())
    raise _gone(link, directory)


def _gone(path: Path, directory: Path) -> Refused:
    mend = f"make it again: python -m pipeline run={directory}"
    return Refused(str(path), "what this run made is gone or damaged", mend)
