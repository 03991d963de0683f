"""Run the planned steps: reuse what the store holds, let the worker make the rest, record all."""

from __future__ import annotations

import logging
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline import environment, keys, launched, meeting, replicas, requests, retreats, summary
from pipeline.errors import Interrupted, OutOfMemory, PipelineError
from pipeline.keys import Plan, Planned
from pipeline.manifest import Entry
from pipeline.metrics import MetricsFile
from pipeline.plan import Step
from pipeline.process import Event, HandedOver, WorkerProcess
from pipeline.record import RunRecord
from pipeline.schema import Config
from pipeline.store import Store
from pipeline.terminal import LiveLine

log = logging.getLogger("pipeline")

GRACE_SECONDS = 30
"""How long a stage may take to reach a safe point after the first Ctrl-C."""


class Run:
    """One run in progress: its record, its store, and the worker once a stage needs it."""

    def __init__(self, config: Config, plan: Plan, record: RunRecord, line: LiveLine | None):
        self.config = config
        self.plan = plan
        self.record = record
        self.line = line
        self.store = Store(Path(config.outputs) / "store")
        self.metrics = MetricsFile(record.directory / "metrics.jsonl")
        self.handed_over: HandedOver = {}
        self.worker: WorkerProcess | None = None
        self.place = launched.place()
        self.meeting = meeting.Meeting()
        self.stop_signal: int | None = None
        self.serving = False
        self.ends_at_once = False
        self.step: Step | None = None
        """The one that the worker is at."""
        self.resumed: tuple[int | None, float] = (None, 0.0)
        """The step that the stage at hand goes on after, and the seconds spent before."""

    def execute(self) -> None:
        """Go through the plan."""
        for position in range(len(self.plan.steps)):
            self.take(position)

    def take(self, position: int) -> None:
        """Take the step at that position of the plan."""
        planned = self.plan.steps[position]
        self.check_stop()
        if planned.step.name == "model" and not self.plan.made_model:
            with self._ending_at_once():
                self.handed_over["model"] = requests.model_directory(self.plan, log.info)
        elif not planned.step.stored:
            self._serve(planned)
        elif planned.needed or self.store.find(planned.step.name, planned.key):
            try:
                self._stage(planned)
            except OutOfMemory as lack:
                # Launched processes would have to plan anew together.
                if planned.step.name != "train" or self._stopping() or self.place:
                    raise
                self.plan = retreats.retreat(self.plan, self.config, self.store, lack)
                self.take(position)

    def _stage(self, planned: Planned) -> None:
        step, key = planned.step, planned.key
        with self.store.lock(step.name, key, on_wait=self._say_waiting, stop=self._stopping):
            entry = self.store.find(step.name, key)
            reused = entry is not None
            if self.place and step.name == "train" and planned.selected:
                self._meet(self.place, planned, reused)
            if entry is None:
                entry = self._make(planned)
            self.store.discard(self.store.checkpoints(step.name, key))
        self.handed_over[step.keyword] = requests.artifact(planned, entry, self.config)
        if step.implied:
            self.record.link_stage(step.name, entry.directory)
        else:
            resumed = None if reused else self.resumed[0]
            self.record.stage(step.name, key, "reused" if reused else "ran", entry, resumed)
        if reused:
            self.metrics.copy(entry.history, step.name)
        log.info("%s", summary.stage_line(entry, reused))
        if step.name == "prepare":
            for line in summary.doctor_lines(entry, self.record.directory, reused):
                log.info("%s", line)

    def _meet(self, place: launched.Place, planned: Planned, reused: bool) -> None:
        """Agree with the other launched processes on what is trained, and from where."""
        log.info("train: waiting for the other processes that mlx.launch started")
        meeting.gather(
            self.meeting,
            place,
            planned.ingredients or {},
            self.store.checkpoints("train", planned.key),
            reused=reused,
            check=self.check_stop,
        )

    def _make(self, planned: Planned) -> Entry:
        step = planned.step
        requests.require_known(planned)
        staging = self.store.stage_directory(step.name, planned.key)
        started = time.monotonic()
        self.metrics.begin(step.name, staging / "metrics.jsonl")
        try:
            done = self.work(planned, staging)
            keys.check_unchanged(self.plan, planned, self.config)
        except PipelineError as error:
            self.store.discard(staging)
            if isinstance(error, OutOfMemory):
                self.metrics.forget()
                self.close()
            raise
        finally:
            self.metrics.end()
        return self.store.commit(
            staging,
            step.name,
            planned.key,
            ingredients=planned.ingredients or {},
            metrics=done["metrics"],
            seconds=time.monotonic() - started + self.resumed[1],
            peak_memory_bytes=done["peak_memory_bytes"],
        )

    def _serve(self, planned: Planned) -> None:
        self.serving = True
        with tempfile.TemporaryDirectory() as out:
            self.work(planned, Path(out))
        log.info("server stopped")
        # Being stopped is how a server ends.
        self.stop_signal = None
        self.record.stage(planned.step.name, planned.key, "ran", None)

    def work(self, planned: Planned, out: Path, given: Mapping[str, Any] | None = None) -> Event:
        """Let the worker make one stage in `out`; `given` replaces what it is given beside."""
        step = planned.step
        self.step, self.resumed = step, (None, 0.0)
        if step.tensors:
            environment.require_mlx()
        if step.name == "train" and self.config.train.memory_limit is not None:
            self.close()  # What earlier stages left in its memory would count.
        if self.worker is None:
            self.worker = WorkerProcess(
                self.record.directory / "pipeline.log", self.config.model.path
            )
        # A signal from before there was a worker has not reached it.
        self.check_stop()
        config = self.plan.pinned(self.config)
        with self._ending_at_once() if step.name == "model" else nullcontext():
            beside = requests.extra(planned, self.plan, config, self.store, log.info)
        request = requests.build(
            planned, config, self.handed_over, {**beside, **(given or {})}, out
        )
        try:
            return replicas.run(
                self.worker,
                request,
                self._on_event,
                workers=environment.training_workers(config.train) if step.name == "train" else 1,
                log=self.record.directory / "pipeline.log",
                model_path=config.model.path,
                place=self.place,
            )
        except PipelineError:
            self.record.stage(step.name, planned.key, "failed", None, self.resumed[0])
            raise
        finally:
            if self.line:
                self.line.clear()

    @contextmanager
    def _ending_at_once(self) -> Iterator[None]:
        """Let a signal end the block where it stands: a download cannot be asked to stop."""
        self.ends_at_once = True
        try:
            yield
        finally:
            self.ends_at_once = False

    def close(self) -> None:
        """End the worker; a stage that needs one starts another."""
        if self.worker:
            self.worker.close()
            self.worker = None

    def _on_event(self, event: Event) -> None:
        if event["event"] == "log":
            log.info("%s", event["message"])
        elif event["event"] == "resumed":
            self.resumed = (event["step"], event["seconds"])
        elif event["event"] == "metrics":
            self.metrics.add(event["step"], event["values"])
        elif self.line:
            self.line.show(self.metrics.stage, event["done"], event["total"], event["fields"])

    def _say_waiting(self, holder: str) -> None:
        log.info("waiting for %s, which is making the same result", holder)

    def _stopping(self) -> bool:
        return self.stop_signal is not None

    def check_stop(self) -> None:
        """Raise `Interrupted` if a signal has asked to stop."""
        if self.stop_signal is not None:
            raise Interrupted(self.stop_signal)

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """End at the next safe point on the first signal, at once on the second."""
        if self.ends_at_once:
            self.stop_signal = number
            raise Interrupted(number)
        if self.stop_signal is not None:
            if self.worker:
                self.worker.kill()
            return
        self.stop_signal = number
        if self.worker:
            what = "answers in progress may end" if self.serving else "the stage will start again"
            if self.step and self.step.resumes:
                what = "this step is ended and kept, and the same command continues"
            log.info("stopping: %s; once more stops at once", what)
            self.worker.request_stop()
            signal.signal(signal.SIGALRM, self.on_signal)
            signal.alarm(GRACE_SECONDS)
