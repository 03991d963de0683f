"""Keep checkpoints of a training run while it goes on, and take the run up where one stands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from time import monotonic

from stages.artifacts import Reporter
from stages.durable import disk_failure, disk_reported, require_space
from stages.errors import EnvironmentFailure, StopRequested
from stages.training import checkpoints
from stages.training.checkpoints import Damaged, Snapshot
from stages.training.course import Course
from stages.training.ranks import PeerLost
from stages.training_settings import Train

KEPT = 2
"""Checkpoints kept; each holds the best adapter so far too."""
_SMALL_BYTES = 4 << 20
"""Room for the rows of metrics, the picture and other small files."""


class Keeper:
    """Writes checkpoints beside the training, one at a time; without a directory, none.

    Of processes that train together all resume, and one writes.
    """

    def __init__(
        self, directory: Path | None, train: Train, report: Reporter, *, writes: bool = True
    ) -> None:
        self._source, self._report = directory, report
        self._directory = directory if writes else None
        self._every_steps, self._every_seconds = cadence(train.checkpoint_every)
        self._resumes = train.resume == "auto"
        self._names: list[str] = []
        self._step = 0
        self._earlier_seconds = 0.0
        self._started = self._written_at = monotonic()
        self._writing: Thread | None = None
        self._failure: Exception | None = None

    def resume(self, course: Course) -> None:
        """Take `course` to the newest undamaged checkpoint, if there is one; writes nothing.

        Damaged ones are named. With `train.resume=never` it stays where it is. Raises
        EnvironmentFailure for one that cannot be read now.
        """
        directory = self._source
        found: list[str] = []
        if directory is not None and self._resumes:
            with disk_reported(directory):
                found = checkpoints.names(directory)
        for place, name in enumerate(found):
            assert directory is not None
            try:
                with disk_reported(directory):
                    tree, rows = checkpoints.read(directory / name)
            except Damaged as damage:
                older = f"{found[place + 1]} is used" if place + 1 < len(found) else "starting over"
                self._report.log(f"damaged checkpoint {directory / name}: {damage}; {older}")
                continue
            self._names, self._step = found[place : place + KEPT], checkpoints.step_of(name)
            self._earlier_seconds = tree["seconds"]
            self._report.resumed(self._step, self._earlier_seconds)
            self._report.log(f"continues after step {self._step} of {course.progress.total_steps}")
            course.go_on(tree["course"], rows)
            return

    def require_space(self, course: Course) -> None:
        """Raise EnvironmentFailure unless the disk has room for the checkpoints and the result."""
        if self._directory is None:
            return
        size = checkpoints.forecast_bytes(course.as_tree())
        # One more than is kept, while it is written.
        result = checkpoints.forecast_bytes(course.best.parameters)
        needed = size * (KEPT + 1 - len(self._names)) + result + _SMALL_BYTES
        require_space(self._directory, needed, "checkpoints and adapter")

    def after(self, course: Course, stop: bool = False) -> None:
        """Begin to write a checkpoint where one is due; with `stop`, raise StopRequested.

        Raises EnvironmentFailure where the disk refused the last one.
        """
        if self._writing is not None and not self._writing.is_alive():
            self._end_writing()
        if stop:
            raise StopRequested
        if self._directory is not None and self._writing is None and self._is_due(course):
            snapshot = self._take(course)
            self._writing = Thread(target=self._write, args=(self._directory, snapshot))
            self._writing.start()

    @contextmanager
    def keeping(self, course: Course) -> Iterator[None]:
        """Write a last checkpoint where the block has to stop; let no thread outlive it."""
        try:
            yield
        except (StopRequested, PeerLost):
            self._keep_last(course)
            raise
        finally:
            # A result that is there needs no checkpoint; what else went wrong has been said.
            if self._writing is not None:
                self._writing.join()

    def _keep_last(self, course: Course) -> None:
        try:
            self._end_writing()
            if self._directory is not None and course.progress.steps > self._step:
                self._write(self._directory, self._take(course))
                self._end_writing()
        except EnvironmentFailure as failure:
            # What ends the run is why it had to stop.
            self._report.log(f"no checkpoint of step {course.progress.steps}: {failure}")

    def _is_due(self, course: Course) -> bool:
        if self._every_steps is not None:
            return course.progress.steps - self._step >= self._every_steps
        return monotonic() - self._written_at >= self._every_seconds

    def _take(self, course: Course) -> Snapshot:
        seconds = self._earlier_seconds + monotonic() - self._started
        tree = {"course": course.as_tree(), "seconds": seconds}
        return checkpoints.take(course.progress.steps, tree, bytes(course.progress.told))

    def _write(self, directory: Path, snapshot: Snapshot) -> None:
        try:
            name = checkpoints.write(directory, snapshot)
            self._step, self._written_at = snapshot.step, monotonic()
            self._names = [name, *(own for own in self._names if own != name)][:KEPT]
            checkpoints.keep_only(directory, self._names)
        except Exception as error:
            self._failure = disk_failure(error, directory, snapshot.size_bytes) or error

    def _end_writing(self) -> None:
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        if self._failure is not None:
            raise self._failure


def cadence(every: int | str) -> tuple[int | None, float]:
    """Return `train.checkpoint_every` as steps, or as None and seconds."""
    if isinstance(every, int):
        return every, 0.0
    return None, 60.0 * float(every.removesuffix("m"))
