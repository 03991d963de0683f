"""Where checkpoints are due, what is kept of them, and what becomes of them when the disk fails."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from stages import durable
from stages.errors import EnvironmentFailure, StopRequested
from stages.training import checkpoints, keeper
from stages.training.checkpoints import Damaged
from stages.training.course import Best, Course, State
from stages.training.keeper import Keeper
from stages.training.progress import Progress

CALLS = ("open", "write", "fsync", "mkdir", "rename", "replace", "scandir", "lstat", "rmdir")


def course_at(step: int, report: Any) -> Course:
    weights = {"layer": {"lora_a": mx.full((3, 4), float(step))}}
    course = Course(State(weights, [{"step": mx.array(step)}]), Best(weights, step, 1.0),
                    Progress(report, 99, 1))  # fmt: skip
    course.progress.steps = step
    return course


def keep(
    directory: Path, recorder: Any, steps: range, every: int = 1,
    faults: AbstractContextManager[Any] | None = None,
) -> None:  # fmt: skip
    """Go on from what is there, and tell a keeper of these steps as a training does."""
    report = recorder()
    kept = Keeper(directory, SimpleNamespace(checkpoint_every=every, resume="auto"), report)
    kept.resume(course_at(0, report))
    with faults or nullcontext():
        for step in steps:
            kept.after(course_at(step, report))
            kept._end_writing()


def resumed(directory: Path, recorder: Any) -> tuple[int, list[str]]:
    """Return the step that a new keeper goes on after, with the weights of that very step."""
    report = recorder()
    course = course_at(0, report)
    Keeper(directory, SimpleNamespace(checkpoint_every=1, resume="auto"), report).resume(course)
    assert (course.state.parameters["layer"]["lora_a"] == course.progress.steps).all()
    assert course.state.optimizers[0]["step"].item() == course.progress.steps
    assert course.best.parameters is not None
    return course.progress.steps, report.lines


def test_two_newest_are_kept_at_every_so_many_steps(tmp_path: Path, recorder: Any) -> None:
    """Of ten steps, every third is kept, the older ones go, and nothing else lies there."""
    keep(tmp_path, recorder, range(1, 11), every=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000006", "step-00000009"]


def test_minutes_are_counted_by_the_clock(
    tmp_path: Path, recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `2m` and a step of 50 seconds, a checkpoint is due after steps 3 and 6."""
    now = iter(range(0, 10**6, 50))
    clock = {"now": 0.0}
    monkeypatch.setattr(keeper, "monotonic", lambda: clock["now"])
    report = recorder()
    kept = Keeper(tmp_path, SimpleNamespace(checkpoint_every="2m", resume="auto"), report)
    found = []
    for step in range(1, 8):
        clock["now"] = float(next(now)) + 50
        kept.after(course_at(step, report))
        kept._end_writing()
        found.append(checkpoints.names(tmp_path))
    assert [bool(names) for names in found] == [False, False, True, True, True, True, True]
    assert found[-1] == ["step-00000006", "step-00000003"]


@pytest.mark.parametrize("file", ["tensors.safetensors", "course.json", "metrics.jsonl",
                                  "manifest.json"])  # fmt: skip
@pytest.mark.parametrize("harm", ["truncated", "empty", "flipped", "missing"])
def test_damaged_file_is_named_and_the_checkpoint_before_taken(
    tmp_path: Path, recorder: Any, file: str, harm: str
) -> None:
    """Whatever became of a file of the newest checkpoint, the one before it is gone on from; where
    both are damaged, the training starts over."""
    report = recorder()
    for step in (1, 2):
        checkpoints.write(tmp_path, checkpoints.take(step, {
            "course": course_at(step, report).as_tree(), "seconds": 0.5}, b"[1,{}]\n"))  # fmt: skip
    for step, before in ((2, "step-00000001 is used"), (1, "starting over")):
        path = tmp_path / f"step-{step:08d}" / file
        content = bytearray(path.read_bytes())
        if harm == "missing":
            path.unlink()
        else:
            content[len(content) // 2] ^= 4
            cut = {"truncated": content[:-1], "empty": b"", "flipped": content}
            path.write_bytes(cut[harm])
        found, lines = resumed(tmp_path, recorder)
        assert found == step - 1
        assert any(file in line and str(path.parent) in line and before in line for line in lines)


class Faults:
    """Let the Nth call of the operating system, or all from there on, fail."""

    def __init__(self, first: int, number: int, persistent: bool) -> None:
        self.first, self.number, self.persistent = first, number, persistent
        self.calls = 0

    def wrap(self, function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls == self.first or (self.persistent and self.calls > self.first):
                raise OSError(self.number, os.strerror(self.number))
            return function(*arguments, **named)

        return call


@contextmanager
def failing(faults: Faults) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, faults.wrap(getattr(os, name)))
        yield


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_every_failing_call_leaves_a_checkpoint_to_go_on_from(
    tmp_path: Path, recorder: Any, number: int, persistent: bool
) -> None:
    """With any one call failing, once or from then on, while the third checkpoint is written: the
    second or the third is whole, and the failure names path, needed and free bytes."""
    for first in range(1, 200):
        directory = tmp_path / str(first)
        keep(directory, recorder, range(1, 3))
        failure: EnvironmentFailure | None = None
        faults = Faults(first, number, persistent)
        try:
            keep(directory, recorder, range(3, 4), faults=failing(faults))
        except EnvironmentFailure as error:
            failure = error
        if faults.calls < first:
            assert failure is None
            assert first > 15
            return
        found, lines = resumed(directory, recorder)
        assert found in (2, 3)
        assert not any(line.startswith("damaged") for line in lines)
        if failure is None:
            assert found == 3
        else:
            assert str(directory) in failure.where
            assert "needed" in failure.found
            assert "free" in failure.found
            assert failure.mend
        keep(directory, recorder, range(4, 5))
        assert resumed(directory, recorder)[0] == 4
        assert not list(directory.glob(".*"))
    pytest.fail("no checkpoint was ever written without a fault")


def test_disk_that_is_too_small_is_refused_before_training(
    tmp_path: Path, recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line names the directory, the needed and the free bytes; nothing is written."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(durable.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    report = recorder()
    kept = Keeper(tmp_path / "here", SimpleNamespace(checkpoint_every=1, resume="auto"), report)
    with pytest.raises(EnvironmentFailure, match=r"needed [\d,]+ bytes, free 1,000 bytes") as found:
        kept.require_space(course_at(0, report))
    assert found.value.where == str(tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_last_checkpoint_that_fails_does_not_hide_the_stop(
    tmp_path: Path, recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked to stop on a full disk, the training stops, says so, and the earlier one is there."""
    keep(tmp_path, recorder, range(1, 2))
    report = recorder()
    kept = Keeper(tmp_path, SimpleNamespace(checkpoint_every=99, resume="auto"), report)
    course = course_at(2, report)
    full = failing(Faults(1, errno.ENOSPC, persistent=True))
    with pytest.raises(StopRequested), full, kept.keeping(course):
        kept.after(course, stop=True)
    assert any("no checkpoint of step 2" in line and "no space left" in line
               for line in report.lines)  # fmt: skip
    assert resumed(tmp_path, recorder)[0] == 1


def test_checkpoint_that_cannot_be_read_now_is_not_passed_over(
    tmp_path: Path, recorder: Any
) -> None:
    """A refusal of the system says nothing of the bytes: the training ends, naming the file."""
    keep(tmp_path, recorder, range(1, 3))

    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(EnvironmentFailure, match=r"manifest\.json: permission denied"):
            resumed(tmp_path, recorder)
    assert resumed(tmp_path, recorder)[0] == 2


def test_damage_is_an_error_of_its_own(tmp_path: Path) -> None:
    """An empty directory under a checkpoint's name is damaged, and says by what."""
    (tmp_path / "step-00000001").mkdir()
    with pytest.raises(Damaged, match=r"manifest\.json: missing"):
        checkpoints.read(tmp_path / "step-00000001")
