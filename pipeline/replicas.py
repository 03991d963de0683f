"""The processes that train beside the worker: started for one stage, gone when it ends."""

from __future__ import annotations

import json
import socket
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipeline.environment import threads_of_each
from pipeline.errors import Interrupted, PipelineError
from pipeline.launched import Place
from pipeline.process import Event, WorkerProcess

GRACE_SECONDS = 10.0
"""How long the worker may take to end by itself once a process beside it has failed."""


def run(
    worker: WorkerProcess,
    request: Mapping[str, Any],
    on_event: Callable[[Event], None],
    *,
    workers: int,
    log: Path,
    model_path: str,
    place: Place | None = None,
) -> Event:
    """Run one stage in `worker` and in others beside it, as `WorkerProcess.run` does alone.

    They add up over a ring of sockets on this machine. Where one fails, all are ended, and what
    is raised is the reason of the one that failed first. With a `place`, the others are there.
    """
    if workers == 1:
        return worker.run(request, on_event)
    threads = threads_of_each(workers, model_path)
    if place is not None:
        return worker.run(as_rank(request, place.rank, threads), on_event)
    with tempfile.TemporaryDirectory() as scratch:
        hostfile = Path(scratch, "hosts.json")
        hostfile.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in _free_ports(workers)]))
        requests = [
            as_rank(request, rank, threads, MLX_RANK=str(rank), MLX_HOSTFILE=str(hostfile))
            for rank in range(workers)
        ]
        others: list[_Other] = []
        try:
            for own in requests[1:]:
                process = WorkerProcess(log, model_path, threads)
                others.append(_Other(process, own, worker.kill))
            done = worker.run(requests[0], on_event)
            for other in others:
                other.thread.join()
        except Interrupted:
            raise
        except PipelineError:
            for other in others:
                if other.failure:
                    raise other.failure from None
            raise
        finally:
            for other in others:
                other.end()
    peaks = sum(other.done["peak_memory_bytes"] for other in others if other.done)
    return {**done, "peak_memory_bytes": done["peak_memory_bytes"] + peaks}


class _Other:
    """One process beside the worker, and the thread that waits for it."""

    def __init__(
        self, process: WorkerProcess, request: Mapping[str, Any], end_all: Callable[[], None]
    ) -> None:
        """Run the request; where it fails, `end_all` is called after a while."""
        self.process, self.request = process, request
        self.done: Event | None = None
        self.failure: PipelineError | None = None
        self.timer = threading.Timer(GRACE_SECONDS, end_all)
        self.timer.daemon = True
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()

    def end(self) -> None:
        """End the process, and what waits for it."""
        self.timer.cancel()
        self.process.kill()
        self.thread.join()
        self.process.close()
        # It may have been set off by the kill.
        self.timer.cancel()

    def _follow(self) -> None:
        try:
            self.done = self.process.run(self.request, lambda _: None)
        except Interrupted:
            pass
        except PipelineError as error:
            self.failure = error
            self.timer.start()


def as_rank(
    request: Mapping[str, Any], rank: int, threads: int, **variables: str
) -> dict[str, Any]:
    """Return the request for one of the processes; only the first tells others what happens.

    MLX reads its place from the `variables`.
    """
    quiet: dict[str, Any] = {"callbacks": [], "trackio": None} if rank else {}
    settings = [(name, {**value, **quiet} if name == "train" else value)
                for name, value in request["settings"]]  # fmt: skip
    place = {"threads": threads, "variables": variables}
    return {**request, "settings": settings, "place": place}


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for found in sockets:
            found.bind(("127.0.0.1", 0))
        return [int(found.getsockname()[1]) for found in sockets]
