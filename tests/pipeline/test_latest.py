"""`latest` is the newest run that succeeded and has an adapter; other references are paths."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Refused
from pipeline.latest import find_run, update_latest
from pipeline.record import RunRecord


def finish(
    outputs: Path,
    place: str,
    *,
    fails: bool = False,
    stages: tuple[str, ...] = ("prepare", "train"),
    selected: tuple[str, ...] = ("prepare", "train"),
) -> Path:
    """Leave a run at `outputs/<place>`, as the runner does."""
    directory = outputs / place
    config = {
        "name": directory.parent.name,
        "outputs": str(outputs),
        "stages": list(selected),
    }
    about: dict[str, Any] = {"command": [], "model": {}, "environment": {}}
    try:
        with RunRecord.start(directory, config=config, **about) as record:
            for stage in stages:
                record.stage(stage, "abc", "ran", None)
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    update_latest(directory)
    return directory


def link(outputs: Path, name: str = "a") -> str | None:
    path = outputs / "runs" / name / "latest"
    return str(path.readlink()) if path.is_symlink() else None


def test_latest_is_a_relative_link_to_the_newest_success(tmp_path: Path) -> None:
    """The link moves on with each newer success, and never back to an older run."""
    finish(tmp_path, "runs/a/2")
    assert link(tmp_path) == "2"
    finish(tmp_path, "runs/a/3")
    assert link(tmp_path) == "3"
    finish(tmp_path, "runs/a/1")
    assert link(tmp_path) == "3"
    assert (tmp_path / "runs/a/latest/run.json").is_file()


@pytest.mark.parametrize("how", [{"fails": True}, {"stages": ("prepare",)}, {"stages": ()}])
def test_runs_without_an_adapter_are_never_latest(tmp_path: Path, how: dict[str, Any]) -> None:
    """A run that failed or trained nothing does not become `latest`."""
    finish(tmp_path, "runs/a/2", **how)
    assert link(tmp_path) is None
    finish(tmp_path, "runs/a/1")
    finish(tmp_path, "runs/a/3", **how)
    assert link(tmp_path) == "1"
    assert find_run("latest", tmp_path, "a") == tmp_path / "runs/a/1"


def test_serving_a_run_leaves_it_latest(tmp_path: Path) -> None:
    """A run that only took another's adapter is not `latest`: its steps could not be trained on."""
    finish(tmp_path, "runs/a/1", selected=("prepare", "train"))
    finish(tmp_path, "runs/a/2", selected=("serve",))
    assert link(tmp_path) == "1"
    assert find_run("latest", tmp_path, None) == tmp_path / "runs/a/1"


def test_trials_are_never_latest(tmp_path: Path) -> None:
    """A sweep's trial changes no link, even in a sweep that is named like the runs."""
    finish(tmp_path, "sweeps/runs/2/0")
    assert [path.name for path in tmp_path.iterdir()] == ["sweeps"]
    assert list(tmp_path.rglob("latest")) == []


def test_latest_heals(tmp_path: Path) -> None:
    """Where the run that the link names was deleted, the next success repairs the link."""
    gone = finish(tmp_path, "runs/a/9")
    (gone / "run.json").unlink()
    finish(tmp_path, "runs/a/1")
    assert link(tmp_path) == "1"


def test_latest_without_a_name_searches_all(tmp_path: Path) -> None:
    """Without a name the newest stamp of all names counts, with a name only that name's."""
    newest = finish(tmp_path, "runs/b/5")
    older = finish(tmp_path, "runs/a/4")
    finish(tmp_path, "runs/c/6", fails=True)
    finish(tmp_path, "sweeps/a/7/9")
    assert find_run("latest", tmp_path, None) == newest
    assert find_run("latest", tmp_path, "a") == older


def test_damaged_record_does_not_hide_older_runs(tmp_path: Path) -> None:
    """A run whose record cannot be read is passed over."""
    older = finish(tmp_path, "runs/a/1")
    (finish(tmp_path, "runs/a/2") / "run.json").write_text("{")
    assert find_run("latest", tmp_path, "a") == older


def test_no_run_yet(tmp_path: Path) -> None:
    """Before the first success the message says how to make one; a near name is suggested."""
    with pytest.raises(Refused, match=r"train first: python -m pipeline$"):
        find_run("latest", tmp_path, None)
    finish(tmp_path, "runs/spider/1")
    with pytest.raises(Refused, match=r"did you mean name=spider\?"):
        find_run("latest", tmp_path, "spidr")
    with pytest.raises(Refused, match="train first: python -m pipeline name=wiki"):
        find_run("latest", tmp_path, "wiki")


def test_reference_is_a_path_or_a_label(tmp_path: Path, monkeypatch) -> None:
    """A run is found by its path from here, by what `ls` calls it, and through the link."""
    monkeypatch.chdir(tmp_path)
    outputs = Path("outputs")
    run, trial = finish(outputs, "runs/a/1"), finish(outputs, "sweeps/a/2/0")
    assert find_run("outputs/runs/a/1", outputs, None) == run
    assert find_run(str(tmp_path / run), outputs, None) == tmp_path / run
    assert find_run("a/1", outputs, None) == run
    assert find_run("a/2/0", outputs, None) == trial
    assert find_run("outputs/runs/a/latest", outputs, None) == run


def test_wrong_reference_is_refused(tmp_path: Path) -> None:
    """A directory that is none, or has no record, is named; a near one is suggested."""
    finish(tmp_path, "runs/a/20260101-120000")
    with pytest.raises(Refused, match=r"did you mean a/20260101-120000\?"):
        find_run("a/20260101-120001", tmp_path, None)
    with pytest.raises(Refused, match=r"no such run directory; python -m pipeline\.runs ls"):
        find_run("zzz", tmp_path, None)
    with pytest.raises(Refused, match=r"no run\.json in it"):
        find_run(str(tmp_path / "runs"), tmp_path, None)


def test_newer_record_is_refused(tmp_path: Path) -> None:
    """A run of a later version is named, not guessed at."""
    path = finish(tmp_path, "runs/a/1") / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(Refused, match="format 2"):
        find_run("a/1", tmp_path, None)
