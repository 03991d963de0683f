"""The user's own callbacks, told what happens in training: each is called by its own process."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from stages.artifacts import Reporter
from stages.errors import EnvironmentFailure, SettingError, StopRequested
from stages.training.curve import Curve
from stages.training.listener import KEY, PATIENCE_SECONDS
from stages.training.trackio_sink import KEY as TRACKIO
from stages.training.trackio_sink import require_trackio

_LOAD_SECONDS = 60.0
_MOST_UNSENT_BYTES = 1 << 24
_CODE = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from stages.training.listener import serve; serve(*sys.argv[1:3])"
)


class Watched:
    """A reporter that passes on what it is told, and tells the callbacks of the training."""

    def __init__(self, report: Reporter, listeners: Sequence[Listener]) -> None:
        self.curve = Curve()
        self.outcome: Mapping[str, float] = {}
        """The metrics of the whole training, for the event `end`."""
        self._report = report
        self._listeners = listeners
        self._started = False

    def start(self, facts: Mapping[str, object]) -> None:
        """Tell that the first step comes next, and what is known of the run: plain values."""
        self._started = True
        self._tell({"event": "start", **facts})

    def log(self, message: str) -> None:
        """Pass on a line."""
        self._report.log(message)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Pass on a row of metrics, which is one event, `step` or `validation`."""
        self._report.metrics(step, values)
        self.curve.add(step, values)
        kind = "validation" if "valid.loss" in values else "step"
        self._tell({"event": kind, "step": step, **values})

    def progress(self, done: int, total: int, fields: Mapping[str, float]) -> None:
        """Pass on the state of the live line."""
        self._report.progress(done, total, fields)

    def resumed(self, step: int, seconds: float) -> None:
        """Pass on that the training goes on; its rows until `step` are then told once more."""
        self._report.resumed(step, seconds)
        self._tell({"event": "resumed", "step": step})

    def stop_requested(self) -> bool:
        """Tell whether the run was asked to stop."""
        return self._report.stop_requested()

    def end(self, status: str, error: str | None) -> None:
        """Tell how the training ended, and let the callbacks come to an end of their own."""
        if self._started:
            self._tell({"event": "end", "status": status, "error": error, **self.outcome})
        deadline = time.monotonic() + PATIENCE_SECONDS
        for listener in self._listeners:
            listener.finish(deadline)
        for listener in self._listeners:
            listener.wait(deadline, self._report)

    def _tell(self, event: Mapping[str, object]) -> None:
        for listener in self._listeners:
            listener.tell(event, self._report)


@contextmanager
def watching(report: Reporter, callbacks: Sequence[str], trackio: str | None) -> Iterator[Watched]:
    """Give a reporter that also tells the callbacks, and Trackio where a project is named.

    Events are `start`, `resumed` (the steps before are told again), `step`, `validation` and
    `end`. Raises SettingError for a callback that cannot be loaded and EnvironmentFailure without
    Trackio; once the block has begun, nothing that a callback does fails it, changes it or holds
    it up.
    """
    wanted = [(KEY, callback) for callback in callbacks]
    if trackio is not None:
        require_trackio()
        wanted.append((TRACKIO, trackio))
    with ExitStack() as stack:
        listeners = []
        for key, setting in wanted:
            listeners.append(Listener(key, setting))
            stack.callback(listeners[-1].close)
        for listener in listeners:
            listener.wait_loaded()
        if trackio is not None:
            report.log(f'metrics go to Trackio: trackio show --project "{trackio}"')
        watched = Watched(report, listeners)
        try:
            yield watched
        except BaseException as error:
            stopped = isinstance(error, StopRequested)
            watched.end("stopped" if stopped else "failed", None if stopped else str(error))
            raise
        watched.end("succeeded", None)


class Listener:
    """The process that calls one callback, as long as it takes its events."""

    def __init__(self, key: str, setting: str) -> None:
        self._key, self._setting = key, setting
        try:
            self._process = subprocess.Popen(
                # Without -P, files of the user's in the working directory would be imported.
                [sys.executable, "-P", "-c", _CODE, key, setting, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                # Ctrl-C on the terminal is for the training to decide upon.
                process_group=0,
            )
        except OSError as error:
            found = f"no process can be started for it ({error.strerror})"
            raise EnvironmentFailure(key, found, "close other programs") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._events, self._answers = self._process.stdin, self._process.stdout
        # The training never waits for room in the pipe.
        os.set_blocking(self._events.fileno(), False)
        self._unsent = b""
        self._called = True

    def wait_loaded(self) -> None:
        """Wait until the callback is loaded; raise SettingError where it cannot be."""
        answer = self._answer(_LOAD_SECONDS)
        if answer is None or "ended" in answer:
            found = "ended its process" if answer else "takes more than a minute"
            raise SettingError(self._key, f"loading {self._setting} {found}", "leave it out")
        if "refused" in answer:
            raise SettingError(*answer["refused"])

    def tell(self, event: Mapping[str, object], report: Reporter) -> None:
        """Send one event; log once, and send no more, where the callback has failed."""
        if not self._called:
            return
        if (answer := self._answer(0)) is not None:
            self._switch_off(answer, report)
            return
        self._unsent += json.dumps(event).encode() + b"\n"
        self._send()
        if len(self._unsent) > _MOST_UNSENT_BYTES:
            self._switch_off({}, report)

    def finish(self, deadline: float) -> None:
        """Send what is left, until `deadline` of the monotonic clock, and that there is no more."""
        while self._called and self._unsent and (left := deadline - time.monotonic()) > 0:
            select.select([], [self._events], [], left)
            if not self._send():
                break
        self._events.close()

    def wait(self, deadline: float, report: Reporter) -> None:
        """Let the callback take its last events and its process end, until `deadline`."""
        if not self._called:
            return
        answer = self._answer(deadline - time.monotonic())
        if answer is None:
            what = f"was not done {PATIENCE_SECONDS:.0f} seconds after the training, and was ended"
            report.log(f"{self._key}: {self._setting} {what}")
        elif "done" not in answer:
            self._switch_off(answer, report)
        else:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(max(deadline - time.monotonic(), 0))

    def close(self) -> None:
        """End the process, whatever it does."""
        self._events.close()
        self._process.kill()
        self._process.wait()
        self._answers.close()

    def _send(self) -> bool:
        """Send what the pipe has room for; tell whether there is still somebody to read it."""
        try:
            sent = os.write(self._events.fileno(), self._unsent)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._unsent = self._unsent[sent:]
        return True

    def _answer(self, seconds: float) -> dict[str, Any] | None:
        """Return what the process says within `seconds`: None for nothing, `ended` at its end."""
        ready, _, _ = select.select([self._answers], [], [], max(seconds, 0))
        if not ready:
            return None
        answer: dict[str, Any] = json.loads(self._answers.readline() or '{"ended": true}')
        return answer

    def _switch_off(self, answer: Mapping[str, Any], report: Reporter) -> None:
        self._called = False
        what = "ended its process" if "ended" in answer else "does not read its events"
        what = f"raised {answer['raised']}" if "raised" in answer else what
        message = "it is not called any more, and nothing of the training changes"
        report.log(f"{self._key}: {self._setting} {what}; {message}")
