"""`train.init_adapter`: which adapter is meant, and that its content decides the key."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import starting_point
from pipeline.errors import Refused
from pipeline.hub import Source

TINY = Source(kind="tiny", directory=None, commit=None)


def adapter(directory: Path, weights: bytes = b"weights") -> Path:
    directory.mkdir(parents=True)
    (directory / "adapters.safetensors").write_bytes(weights)
    (directory / "adapter_config.json").write_text("{}")
    return directory


def trained(
    outputs: Path, stamp: str, path: str = "tiny", init_seed: int | None = None, **model: str
) -> Path:
    """Write a run that trained, with its adapter in the store."""
    stored = adapter(outputs / "store/train" / stamp)
    directory = outputs / "runs/default" / stamp
    directory.mkdir(parents=True)
    (directory / "train").symlink_to(stored)
    fields = {
        "format": 1, "status": "succeeded", "name": "default", "config_digest": "",
        "config": {"model": {"init_seed": init_seed, **model}},
        "started": "", "stages": {"train": {"status": "ran"}}, "metrics": {}, "environment": {},
        "model": {"path": path, "kind": "tiny", "commit": None, "key": None},
    }  # fmt: skip
    (directory / "run.json").write_text(json.dumps(fields))
    return directory


def find(outputs: Path, reference: Any, path: str = "tiny") -> Path | None:
    train = SimpleNamespace(init_adapter=reference)
    model = SimpleNamespace(path=path, init_seed=None, init="normal")
    config: Any = SimpleNamespace(train=train, model=model, outputs=str(outputs))
    return starting_point.find(config, TINY)


def test_a_run_a_link_of_it_and_a_directory_are_found(tmp_path: Path) -> None:
    """`latest`, a run's directory and label, its link `train` and a bare directory lead to files;
    null leads to none."""
    trained(tmp_path, "20260101-000000")
    run = trained(tmp_path, "20260102-000000")
    stored = tmp_path / "store/train/20260102-000000"
    for reference in ("latest", str(run), "default/20260102-000000", str(run / "train")):
        assert find(tmp_path, reference) == stored
    outside = adapter(tmp_path / "outside")
    assert find(tmp_path, str(outside)) == outside
    assert find(tmp_path, None) is None


def test_another_base_is_refused(tmp_path: Path) -> None:
    """The run's base and the one of this run are both named, by whichever way the run is meant."""
    run = trained(tmp_path, "20260101-000000", path="other/model")
    for reference in (run, run / "train"):
        with pytest.raises(Refused, match="path 'other/model' there, 'tiny' here"):
            find(tmp_path, str(reference))
    drawn = trained(tmp_path, "20260102-000000", init_seed=4)
    with pytest.raises(Refused, match="init_seed 4 there, None here"):
        find(tmp_path, str(drawn))
    laid = trained(tmp_path, "20260103-000000", init="induction")
    with pytest.raises(Refused, match="init 'induction' there, 'normal' here"):
        find(tmp_path, str(laid))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    """A misspelt run is corrected, and a run without an adapter is none to start from."""
    run = trained(tmp_path, "20260101-000000")
    with pytest.raises(Refused, match=r"did you mean .*default/20260101-000000") as caught:
        find(tmp_path, "default/20260101-00000")
    assert caught.value.where == "train.init_adapter"
    (run / "train").unlink()
    with pytest.raises(Refused, match="has no adapter"):
        find(tmp_path, str(run))


def test_content_alone_is_the_identity(tmp_path: Path) -> None:
    """The same files elsewhere are the same; another byte is not; none is nothing."""
    first, copy = adapter(tmp_path / "first"), adapter(tmp_path / "copy")
    other = adapter(tmp_path / "other", b"weighty")
    assert starting_point.identity(first) == starting_point.identity(copy)
    assert starting_point.identity(first) != starting_point.identity(other)
    assert starting_point.identity(None) == {}
