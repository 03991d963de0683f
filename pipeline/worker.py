"""The process that runs stage functions: one per run, started with its environment set.

It reads one JSON request a line on standard input and writes one JSON event a line on what was
its standard output; anything printed goes to standard error. It ends when its input closes, so
it never outlives the orchestrator.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import queue
import resource
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.artifacts import ARTIFACTS, Artifact
from stages.errors import EnvironmentFailure, OutOfMemory, StageError, StopRequested
from stages.memory import lacks_memory
from stages.settings import GROUPS, from_values

Send = Callable[[Mapping[str, Any]], None]


class WorkerReporter:
    """Send what a stage reports to the orchestrator; implements `stages.artifacts.Reporter`."""

    def __init__(self, send: Send, stop: threading.Event) -> None:
        self._send = send
        self._stop = stop

    def log(self, message: str) -> None:
        """Send one line."""
        self._send({"event": "log", "message": message})

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Send one row of metrics."""
        self._send({"event": "metrics", "step": step, "values": dict(values)})

    def progress(self, done: int, total: int, fields: Mapping[str, float]) -> None:
        """Send the state of the live line."""
        self._send({"event": "progress", "done": done, "total": total, "fields": dict(fields)})

    def resumed(self, step: int, seconds: float) -> None:
        """Send that the stage goes on after `step`."""
        self._send({"event": "resumed", "step": step, "seconds": seconds})

    def text(self, index: int, text: str, finish_reason: str | None) -> None:
        """Send a piece of the answer to prompt `index`; implements `generation.answer.Teller`."""
        event = {"event": "text", "index": index, "text": text, "finish_reason": finish_reason}
        self._send(event)

    def stop_requested(self) -> bool:
        """Tell whether the orchestrator asked to stop."""
        return self._stop.is_set()


def run_stage(request: Mapping[str, Any], report: WorkerReporter) -> dict[str, Any]:
    """Call the requested stage function and return the event that ends it."""
    if request["tensors"]:
        importlib.import_module("stages.models.blas").preload()
    module, _, name = request["function"].rpartition(".")
    function = getattr(importlib.import_module(module), name)
    settings = [
        from_values(group, value) if group in GROUPS else value
        for group, value in request["settings"]
    ]
    handed_over: dict[str, Artifact] = {
        keyword: ARTIFACTS[kind](**{**fields, "directory": Path(fields["directory"])})
        for keyword, (kind, fields) in request["handed_over"].items()
    }
    paths = ("source", "checkpoints")
    extra = {k: Path(v) if k in paths and v else v for k, v in request["extra"].items()}
    if "out" in request:
        extra["out"] = Path(request["out"])
    with _placed(request.get("place")):
        artifact = function(*settings, **handed_over, **extra, report=report)
    return {
        "event": "done",
        "metrics": artifact.metrics,
        "peak_memory_bytes": peak_memory_bytes(),
    }


@contextmanager
def _placed(place: Mapping[str, Any] | None) -> Iterator[None]:
    """Give this process its place among those that train together; None: it is alone."""
    if place is None:
        yield
        return
    # Read by MLX's distributed engine when the stage joins the others.
    os.environ.update(place["variables"])
    with importlib.import_module("stages.models.blas").threads(place["threads"]):
        yield


def peak_memory_bytes() -> int:
    """Return the most memory this process has held: resident, or MLX's own count on a GPU."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resident *= 1 if sys.platform == "darwin" else 1024
    core = sys.modules.get("mlx.core")
    return max(resident, int(core.get_peak_memory())) if core else resident


def failure(error: BaseException) -> dict[str, Any]:
    """Return the event that tells the orchestrator what went wrong."""
    if isinstance(error, MemoryError) or lacks_memory(str(error)):
        mend = "lower train.batch_size or data.max_seq_length"
        said = f" ({error})" if str(error) else ""
        error = OutOfMemory("memory", f"the stage ran out of memory{said}", mend)
    elif found := _refused_by_disk(error):
        place = str(getattr(error, "filename", None) or "outputs")
        mend = "free some space, or set outputs=<a folder on another disk>"
        error = EnvironmentFailure(place, found, mend)
    if isinstance(error, StageError):
        kind = "stop" if isinstance(error, StopRequested) else "refused"
        kind = "unable" if isinstance(error, EnvironmentFailure) else kind
        kind = "memory" if isinstance(error, OutOfMemory) else kind
        where, found, mend = error.where, error.found, error.mend
        return {"event": "failed", "kind": kind, "where": where, "found": found, "mend": mend}
    text = "".join(traceback.format_exception(error))
    found = f"{type(error).__name__}: {error}".splitlines()[0]
    return {"event": "failed", "kind": "broken", "found": found, "traceback": text}


def _refused_by_disk(error: BaseException) -> str | None:
    """Return why the disk took no more, where that is what `error` means; else None.

    safetensors and MLX raise errors of their own, that tell it in their text alone.
    """
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
        if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
            return os.strerror(number).lower()
    return str(error) if str(error).startswith("[write] Unable to write") else None


def main() -> None:
    """Serve requests until the input closes."""
    # Keep the event stream to ourselves: a library that prints must not break it.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    stop = threading.Event()
    writing = threading.Lock()

    def send(event: Mapping[str, Any]) -> None:
        with writing:
            events.write(json.dumps(event) + "\n")

    def read() -> None:
        for line in sys.stdin:
            request = json.loads(line)
            if request["op"] == "stop":
                stop.set()
            elif request["op"] == "go on":
                stop.clear()
            else:
                requests.put(request)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    report = WorkerReporter(send, stop)
    while True:
        request = requests.get()
        try:
            event = run_stage(request, report)
        except Exception as error:
            event = failure(error)
        send(event)


if __name__ == "__main__":
    main()
