"""What the group `data` names outside itself: pinned, recorded, described."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import data_sources
from pipeline.commits import Repository
from pipeline.parent import Parent
from stages.data_settings import Data

ONE, TWO = "1" * 40, "2" * 40


def data(**given: Any) -> Data:
    values: dict[str, Any] = {
        "stage": "stages.prepare.prepare", "path": "samples", "format": "auto",
        "supervise": "assistant", "max_seq_length": 64, "overlong": "auto", "valid_fraction": 0.1,
        "test_fraction": 0.1, "duplicates": "keep", "leakage": "drop", "redact": False,
        "encoding": "utf-8", "on_error": "fail",
    }  # fmt: skip
    return Data(**values | given)


def parent(revision: str | None, commits: dict[str, str]) -> Parent:
    config = {"data": {"revision": revision}}
    return Parent(
        directory=Path(), config=config, keys={}, model_key=None, model_commit=None,
        data_commits=commits,
    )  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Repository]:
    """A hub on which every name means the commit ONE, and what it was asked."""
    questions: list[Repository] = []

    def find(repository: Repository) -> str:
        questions.append(repository)
        return ONE

    monkeypatch.setattr(data_sources, "find_commit", find)
    return questions


def test_each_data_set_of_the_hub_is_asked_for_once(asked, tmp_path, monkeypatch) -> None:
    """Files, folders and samples are none, even where a folder is called like one of the hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "rows").mkdir(parents=True)
    mixed = data(path=("a/b", "samples", "here/rows", "mine/rows.jsonl", "c/d", "a/b"))
    assert data_sources.find_commits(mixed, None) == {"a/b": ONE, "c/d": ONE}
    assert asked == [Repository("data", "a/b", None), Repository("data", "c/d", None)]
    assert data_sources.find_commits(data(path="here/rows"), None) == {}


def test_a_run_takes_the_commits_of_the_run_it_starts_from(asked) -> None:
    """The recorded commit stands, unless another branch, tag or data set is asked for now."""
    before = parent(None, {"a/b": TWO})
    assert data_sources.find_commits(data(path=("a/b", "c/d")), before) == {"a/b": TWO, "c/d": ONE}
    assert asked == [Repository("data", "c/d", None)]
    other = data(path="a/b", revision="v1")
    assert data_sources.find_commits(other, before) == {"a/b": ONE}
    assert data_sources.find_commits(other, parent("v1", {"a/b": TWO})) == {"a/b": TWO}


def test_the_stage_is_given_commits_not_branches() -> None:
    """As revision, one for each entry of the hub in their order; other data stays as it is."""
    assert data_sources.pinned(data(path="a/b", revision="v1"), {"a/b": ONE}).revision == ONE
    mixed = data(path=("c/d", "samples", "a/b", "c/d"))
    pinned = data_sources.pinned(mixed, {"a/b": ONE, "c/d": TWO})
    assert pinned.revision == f"{TWO},{ONE},{TWO}"
    assert data_sources.pinned(data(), {}) == data()


def test_description_counts_lines_or_bytes(tmp_path: Path) -> None:
    """Files of lines by their lines, others by their size, the hub by its commit."""
    (tmp_path / "train.jsonl").write_text("{}\n\n{}\n{}")
    (tmp_path / "dev.csv").write_text("a\n")
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(b"{}\n", mtime=0))
    (tmp_path / "test.parquet").write_bytes(b"0" * 1_250_000)
    (tmp_path / "notes.pdf").write_bytes(b"")
    size = (tmp_path / "test.jsonl.gz").stat().st_size / 1e3
    lines = data_sources.describe(data(path=("a/b", "samples", str(tmp_path))), {"a/b": ONE})
    assert lines == [
        "the bundled conversations, not counted yet",
        "a/b at 111111111111, not read yet",
        f"{tmp_path}/dev.csv (valid): 1 line, not tokenised yet",
        f"{tmp_path}/test.jsonl.gz (test): {size:.1f} kB, not tokenised yet",
        f"{tmp_path}/test.parquet (test): 1.2 MB, not tokenised yet",
        f"{tmp_path}/train.jsonl (train): 3 lines, not tokenised yet",
        f"passed over: {tmp_path}/notes.pdf",
    ]


def test_description_groups_many_files(tmp_path: Path) -> None:
    """Eight files stand by themselves, the others in one line; gone files in none."""
    for number in range(11):
        (tmp_path / f"{number:02}.txt").write_bytes(b"x" * 100_000)
    lines = data_sources.describe(data(path=str(tmp_path)), {})
    assert len(lines) == 9
    assert lines[-1] == "… and 3 more files, 0.3 MB"
    assert data_sources.describe(data(path=str(tmp_path / "gone")), {}) == []


WORKER = """
import pipeline.data_sources
from pipeline import runner
from pipeline.errors import Unable

def find_commit(repository):
    return {"main": "1", "v1": "2"}[repository.revision or "main"] * 40

class Worker:
    def __init__(self, log, model_path): ...
    def run(self, request, on_event):
        if request["stage"] == "prepare":
            with open("asked.json", "w") as stream:
                json.dump(dict(request["settings"])["data"], stream)
        raise Unable(request["stage"], "is not made here")
    def close(self): ...

pipeline.data_sources.find_commit = find_commit
runner.WorkerProcess = Worker
"""


def test_a_run_records_the_commit_and_gives_it_to_the_stage(commands, tmp_path) -> None:
    """run.json names the commit, the stage is given it, and run= takes it whatever main is now."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    words = [f"model.path={model}", "stages=[prepare]"]
    moved = WORKER.replace('"1"', '"3"')
    (first,) = commands([*words, "data=hub", "data.path=a/b"], before=WORKER, cwd=tmp_path)
    assert first.code == 3
    assert json.loads((tmp_path / "asked.json").read_text())["revision"] == ONE
    (run,) = (tmp_path / "outputs/runs/default").glob("*/run.json")
    recorded = json.loads(run.read_text())
    assert recorded["data"] == [{"path": "a/b", "commit": ONE}]
    assert recorded["config"]["data"]["revision"] is None
    again = [f"run={run.parent}", "stages=[prepare]", "data.max_seq_length=512"]
    commands(again, before=moved, cwd=tmp_path)
    asked = json.loads((tmp_path / "asked.json").read_text())
    assert (asked["revision"], asked["max_seq_length"]) == (ONE, 512)
    commands([*words, "data=hub", "data.path=a/b"], before=moved, cwd=tmp_path)
    assert json.loads((tmp_path / "asked.json").read_text())["revision"] == "3" * 40
