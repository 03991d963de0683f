"""metrics.jsonl is JSON whatever a stage measures, and a disk that takes no more is named."""

import json
from pathlib import Path

import pytest

from pipeline.errors import Unable
from pipeline.metrics import MetricsFile


def test_rows_are_json(tmp_path: Path) -> None:
    """NaN and infinity, which JSON does not know, are null as in run.json."""
    rows = MetricsFile(tmp_path / "metrics.jsonl")
    rows.begin("train", tmp_path / "history.jsonl")
    rows.add(3, {"train.loss": float("nan"), "valid.loss": float("inf"), "train.steps": 2})
    rows.end()
    for name in ("metrics.jsonl", "history.jsonl"):
        row = json.loads((tmp_path / name).read_text(), parse_constant=pytest.fail)
        del row["time"]
        assert row == {"stage": "train", "step": 3, "train.loss": None, "valid.loss": None,
                       "train.steps": 2}  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file that is always full: on Linux")
def test_full_disk_is_no_bug(tmp_path: Path) -> None:
    """A row that finds no space ends the run as `Unable`, and closing after it raises nothing."""
    rows = MetricsFile(tmp_path / "metrics.jsonl")
    rows.begin("train", Path("/dev/full"))
    with pytest.raises(Unable, match="no space left"):
        rows.add(1, {"train.loss": 1.0})
    rows.end()


def test_rows_of_an_attempt_are_taken_back(tmp_path: Path) -> None:
    """What a stage told before it starts anew goes; what stood there before it stays."""
    rows = MetricsFile(tmp_path / "metrics.jsonl")
    for stage, fails in (("model", False), ("train", True), ("train", False)):
        rows.begin(stage, tmp_path / "history.jsonl")
        for step in (1, 2):
            rows.add(step, {"loss": 0.5})
        if fails:
            rows.forget()
        rows.end()
    assert rows_of(tmp_path) == [("model", 1), ("model", 2), ("train", 1), ("train", 2)]


def rows_of(folder: Path) -> list[tuple[str, int]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(row["stage"], row["step"]) for row in map(json.loads, lines)]
