"""Killed anywhere, on a disk that fails at any write, with any byte damaged: a training ends bit by
bit as one that nothing happened to, or says plainly why it cannot go on."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import resumable

from stages.errors import EnvironmentFailure
from stages.training.keeper import Keeper

pytestmark = pytest.mark.chaos
ROOT = Path(__file__).parents[3]
COUNTS: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def summary(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print at the end how often what happened."""
    yield
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("\nchaos of resuming:")
        for what, count in sorted(COUNTS.items()):
            print(f"  {count:>5}  {what}")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("rows")
    resumable.prepare(directory)
    return directory


@pytest.fixture(scope="module")
def whole(rows: Path) -> str:
    """The digest of the training that nothing happens to, in this process."""
    return resumable.train(rows, None)[0]


@pytest.fixture(scope="module")
def unkilled(trials: Trials) -> str:
    """The digest of the training that nothing happens to, in a process of the trials."""
    status, done = trials.run(None, None)
    assert status == 0
    return str(done[0])


class Trials:
    """A process that forks one for each trial."""

    def __init__(self, rows: Path) -> None:
        script = str(Path(resumable.__file__))
        self.rows = rows
        self.process = subprocess.Popen(
            [sys.executable, script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def run(self, place: Path | None, kill: dict[str, Any] | None) -> tuple[int, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        trial = {"rows": str(self.rows), "place": place and str(place), "kill": kill}
        self.process.stdin.write(json.dumps(trial) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["status"], answer["done"]


@pytest.fixture(scope="module")
def trials(rows: Path) -> Iterator[Trials]:
    made = Trials(rows)
    with made.process:
        yield made
        assert made.process.stdin is not None
        made.process.stdin.close()


def end(trials: Trials, place: Path, unkilled: str, what: str) -> None:
    """Let the training run to its end, which must be the one of a training without a kill."""
    status, done = trials.run(place, None)
    assert (status, done[0]) == (0, unkilled)
    # What a kill leaves is whole or has no name.
    assert not any("damaged" in line for line in done[1])
    COUNTS[f"trainings killed {what} that ended bit-identical"] += 1


@pytest.mark.parametrize("point", resumable.POINTS)
def test_killed_at_every_named_point(
    trials: Trials, unkilled: str, tmp_path: Path, point: str
) -> None:
    """Before and after each function on the way of a checkpoint, early and late, in a new training
    and in one that goes on from a checkpoint."""
    for when in ("before", "after", *(["within"] if point == "part written" else [])):
        for nth in (1, 2, 5):
            place, kills = tmp_path / f"{when}-{nth}", 0
            if point in ("checkpoint read", "rows told again"):
                trials.run(place, {"point": "step", "when": "after", "nth": 8})
            for _ in range(2):
                status, done = trials.run(place, {"point": point, "when": when, "nth": nth})
                assert status in (0, 9)
                kills += status == 9
                if done:
                    assert done[0] == unkilled
                    break
            COUNTS["kills at named points"] += kills
            if kills:
                end(trials, place, unkilled, "at named points")
    assert COUNTS["kills at named points"] > 0


def test_killed_at_random_moments(trials: Trials, unkilled: str, tmp_path: Path) -> None:
    """At 150 random moments, one to five of them in each training."""
    moments, kills, place, number = random.Random(11), 0, tmp_path / "0", 0
    while kills < 150:
        status, done = trials.run(place, {"seconds": moments.uniform(0.01, 0.3)})
        if status == 9:
            kills += 1
            if kills % 5:
                continue
            end(trials, place, unkilled, "at random moments")
        else:
            assert (status, done[0]) == (0, unkilled)
            COUNTS["trainings killed at random moments that ended bit-identical"] += 1
        number += 1
        place = tmp_path / str(number)
    COUNTS["kills at random moments"] += kills


CALLS = ("open", "write", "fsync", "mkdir", "rename")


@contextmanager
def failing(first: int, number: int, persistent: bool) -> Iterator[dict[str, int]]:
    """Let the Nth call of the file layer, or all from there on, fail; counts the calls."""
    calls = {"made": 0}

    def wrap(function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            calls["made"] += 1
            if calls["made"] == first or (persistent and calls["made"] > first):
                raise OSError(number, os.strerror(number))
            return function(*arguments, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, wrap(getattr(os, name)))
        yield calls


@pytest.mark.parametrize("persistent", [False, True])
def test_every_call_of_the_file_layer_fails_once(
    rows: Path, tmp_path: Path, persistent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever write, fsync, rename … of a training with three checkpoints fails, once or from
    then on: it is refused clearly or ends as it should, and so does the training after it."""
    after = Keeper.after

    def wait(keeper: Keeper, course: Any, stop: bool) -> None:
        after(keeper, course, stop)
        if keeper._writing:
            keeper._writing.join()

    # Else it depends on the clock how many checkpoints are written, and so how many calls.
    monkeypatch.setattr(Keeper, "after", wait)
    whole = resumable.train(rows, None, steps=6)[0]
    for first in range(1, 400):
        place = tmp_path / str(first)
        refusal = None
        number = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO)[first % 4]
        with failing(first, number, persistent) as calls:
            try:
                assert resumable.train(rows, place, steps=6)[0] == whole
                what = "ended bit-identical at once"
            except EnvironmentFailure as error:
                refusal, what = error, "clear refusals, bit-identical afterwards"
        if calls["made"] < first:
            assert first > 150
            return
        assert refusal is None or (str(place) in refusal.where and "needed" in refusal.found)
        COUNTS[f"failing calls: {what}"] += 1
        assert resumable.train(rows, place, steps=6)[0] == whole
        shutil.rmtree(place, ignore_errors=True)
    pytest.fail("no training went through without a fault")


def test_any_damage_of_any_file(rows: Path, whole: str, tmp_path: Path) -> None:
    """Each file of the newest checkpoint, and of both, cut, with a bit flipped, or gone: named,
    and the training ends bit by bit as it should."""
    origin, choose = tmp_path / "origin", random.Random(3)
    steps, take = iter(range(10)), resumable.loop.take_step

    def broken(*arguments: Any) -> Any:
        return take(*arguments) if next(steps, None) is not None else 1 / 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resumable.loop, "take_step", broken)
        with pytest.raises(ZeroDivisionError):
            resumable.train(rows, origin)
    kept = sorted(path.name for path in origin.glob("step-*"))
    assert len(kept) == 2
    files = sorted(path.name for path in (origin / kept[0]).iterdir())
    for targets in (kept[1:], kept):
        for file in files:
            size = (origin / kept[1] / file).stat().st_size
            harms = [("cut", choose.randrange(size)) for _ in range(4)] + [("gone", 0)]
            harms += [("flip", choose.randrange(8 * size)) for _ in range(8)]
            for harm, place in harms:
                damaged = tmp_path / "damaged"
                shutil.copytree(origin, damaged)
                for target in targets:
                    spoil(damaged / target / file, harm, place)
                digest, lines = resumable.train(rows, damaged)
                assert digest == whole
                named = sum(line.startswith("damaged checkpoint") for line in lines)
                # A flipped bit in the layout of the manifest changes nothing that it says.
                assert named == len(targets) or (file == "manifest.json" and harm == "flip")
                COUNTS["damaged files: named, bit-identical" if named else
                       "damaged files: harmless, bit-identical"] += 1  # fmt: skip
                shutil.rmtree(damaged)


def spoil(path: Path, harm: str, place: int) -> None:
    content = bytearray(path.read_bytes())
    if harm == "gone":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(content[: place % len(content)])
    else:
        content[place // 8 % len(content)] ^= 1 << place % 8
        path.write_bytes(content)
