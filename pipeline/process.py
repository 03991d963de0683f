"""The orchestrator's end of the worker: start it, give it a stage, stop it, notice its death."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline import deaths, environment
from pipeline.durable import reported
from pipeline.errors import Broken, Interrupted, OutOfMemory, PipelineError, Refused, Unable

Event = dict[str, Any]
HandedOver = dict[str, tuple[str, dict[str, Any]]]
"""Keyword of a stage function -> class of the artifact in `stages.artifacts`, and its fields."""


class WorkerProcess:
    """A running worker. It is killed when this process dies, and inherits no lock."""

    def __init__(
        self, log: Path, model_path: str | None = None, threads: int | None = None
    ) -> None:
        variables = environment.worker_variables(model_path, threads)
        variables["PYTHONPATH"] = _import_path()
        self._log = log
        self._kills_before = deaths.kills_for_memory()
        with reported(log), log.open("ab") as stream:
            self._process = subprocess.Popen(
                # Without -P, files of the user's in the working directory would be imported.
                [sys.executable, "-P", "-m", "pipeline.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env={**os.environ, **variables},
                # Ctrl-C on the terminal must reach the worker only through the orchestrator.
                process_group=0,
                text=True,
                encoding="utf-8",
                bufsize=1,
            )

    def run(self, request: Mapping[str, Any], on_event: Callable[[Event], None]) -> Event:
        """Run one stage; pass its events on, return the one that ends it, raise if it failed."""
        self._send({"op": "run", **request})
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event: Event = json.loads(line)
            if event["event"] == "done":
                return event
            if event["event"] == "failed":
                raise _failure(str(request["stage"]), event)
            on_event(event)
        raise self._died(str(request["stage"]))

    def request_stop(self) -> None:
        """Ask the running stage to end at its next safe point."""
        self._send({"op": "stop"})

    def go_on(self) -> None:
        """Take the request to stop back, for whatever is run next."""
        self._send({"op": "go on"})

    def kill(self) -> None:
        """End the worker at once."""
        self._process.kill()

    def close(self) -> None:
        """End the worker: it leaves when its input closes, and is killed if it does not."""
        try:
            if self._process.stdin:
                self._process.stdin.close()
            self._process.wait(timeout=5)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._process.kill()
            self._process.wait()
        finally:
            if self._process.stdout:
                self._process.stdout.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            if self._process.stdin:
                self._process.stdin.write(json.dumps(message) + "\n")
                self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # The worker is gone: reading its events says so, with the reason.

    def _died(self, stage: str) -> PipelineError:
        return deaths.cause(stage, self._process.wait(), self._log_tail(), self._kills_before)

    def _log_tail(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-20:])


def _import_path() -> str:
    """Return where this process imports from, for the worker to do the same."""
    ours = [entry or str(Path.cwd()) for entry in sys.path]
    return os.pathsep.join([*ours, *filter(None, [os.environ.get("PYTHONPATH")])])


def _failure(stage: str, event: Event) -> PipelineError:
    if event["kind"] == "broken":
        return Broken(stage, event["found"], event["traceback"])
    if event["kind"] == "stop":
        return Interrupted(signal.SIGINT)
    kinds = {"unable": Unable, "memory": OutOfMemory}
    kind = kinds.get(event["kind"], Refused)
    return kind(event["where"], event["found"], event["mend"])
