"""The one thread that owns MLX: it loads, prefills, decodes and frees; HTTP talks to it by tickets.

MLX arrays and streams belong to the thread that made them, so nothing else may touch the engine.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from stages.serving.problems import Problem, internal, unavailable

if TYPE_CHECKING:
    from stages.generation.engine import Event, Job

STALE_SECONDS = 60.0
"""A heartbeat older than this means a stuck engine."""

_IDLE_SECONDS = 0.25


class Engine(Protocol):
    """What the thread needs of `stages.generation.engine.Engine`."""

    def insert(self, job: Job) -> int:
        """Take one request and return its uid."""

    def step(self) -> Sequence[Event]:
        """Compute the next token of every request inside."""

    def cancel(self, uid: int) -> None:
        """Drop a request; nothing more comes for it."""

    def reset(self) -> None:
        """Drop every request, and whatever state a failed step may have left."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One request on its way through the engine."""

    job: Job
    deliver: Callable[[Event | Problem], None]
    """Called on the engine's thread; a problem is the last call."""
    cancelled: bool = False


class EngineThread:
    """A loop over one engine that no request can end."""

    def __init__(
        self,
        load: Callable[[], Engine],
        log: Callable[[str], None],
        *,
        slots: int,
        waiting_limit: int,
    ) -> None:
        self._load = load
        self._log = log
        self._slots = slots
        self._limit = slots + waiting_limit
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._running: dict[int, Ticket] = {}
        self._deadline: float | None = None
        self._beat = time.monotonic()
        self._ready = threading.Event()
        self._counts = {"requests": 0, "completion_tokens": 0, "cancelled": 0, "failed": 0}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.failure: BaseException | None = None
        """Why the thread ended, if it was not asked to."""

    def start(self) -> None:
        """Begin to load."""
        self._thread.start()

    def wait_until_ready(self, timeout_seconds: float) -> bool:
        """Tell whether the engine is loaded; raises what loading raised."""
        ready = self._ready.wait(timeout_seconds)
        if self.failure is not None:
            raise self.failure
        return ready

    @property
    def ready(self) -> bool:
        """Whether requests are taken and the loop is turning."""
        return self._open and time.monotonic() - self._beat < STALE_SECONDS

    @property
    def _open(self) -> bool:
        return self._ready.is_set() and self._thread.is_alive() and self._deadline is None

    def metrics(self) -> dict[str, float]:
        """Return counts: answers finished, their tokens, those dropped half-way, those failed."""
        return {f"serve.{name}": float(count) for name, count in self._counts.items()}

    def submit(self, ticket: Ticket) -> None:
        """Queue a request; raises Problem 429 where the queue is full, 503 where nobody serves."""
        with self._changed:
            if not self._open:
                raise unavailable()
            if len(self._waiting) + len(self._running) >= self._limit:
                found = f"{self._limit} requests are running or waiting already"
                raise Problem(429, found, code="queue_full", retry_after_seconds=1)
            self._waiting.append(ticket)
            self._changed.notify()

    def cancel(self, ticket: Ticket) -> None:
        """Drop a request before the next step; harmless once it is finished."""
        with self._changed:
            ticket.cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    def stop(self, drain_seconds: float) -> None:
        """Take nothing new, finish what is there within `drain_seconds`, end the thread."""
        with self._changed:
            self._deadline = time.monotonic() + drain_seconds
            self._changed.notify()
        self._thread.join(drain_seconds + STALE_SECONDS)

    def _run(self) -> None:
        try:
            engine = self._load()
            self._beat = time.monotonic()
            self._ready.set()
            while self._turn(engine):
                self._beat = time.monotonic()
        except BaseException as error:
            self.failure = error
        finally:
            with self._changed:
                self._deadline = self._deadline or 0.0
                left = [*self._running.values(), *self._waiting]
                self._running.clear()
                self._waiting.clear()
            for ticket in left:
                _deliver(ticket, unavailable())
            self._ready.set()

    def _turn(self, engine: Engine) -> bool:
        """Admit, drop, compute one step; return False when it is time to end."""
        with self._changed:
            if not self._waiting and not self._running and self._deadline is None:
                self._changed.wait(_IDLE_SECONDS)
            free = self._slots - len(self._running)
            admitted = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
        for ticket in admitted:
            self._insert(engine, ticket)
        if self._running:
            self._step(engine)
        if self._deadline is None:
            return True
        return time.monotonic() < self._deadline and bool(self._running or self._waiting)

    def _insert(self, engine: Engine, ticket: Ticket) -> None:
        try:
            self._running[engine.insert(ticket.job)] = ticket
        except Exception as error:
            self._fail([ticket], error)

    def _step(self, engine: Engine) -> None:
        try:
            self._drop_cancelled(engine)
            events = engine.step()
        except Exception as error:
            failed = list(self._running.values())
            self._running.clear()
            self._fail(failed, error)
            engine.reset()
            return
        for event in events:
            ticket = self._running[event.uid]
            if event.finish_reason is not None:
                del self._running[event.uid]
                self._counts["requests"] += 1
                self._counts["completion_tokens"] += event.completion_tokens
            _deliver(ticket, event)

    def _drop_cancelled(self, engine: Engine) -> None:
        for uid, ticket in list(self._running.items()):
            if ticket.cancelled:
                del self._running[uid]
                self._counts["cancelled"] += 1
                engine.cancel(uid)

    def _fail(self, tickets: Sequence[Ticket], error: Exception) -> None:
        self._counts["failed"] += len(tickets)
        place = traceback.extract_tb(error.__traceback__)[-1]
        found = f"{type(error).__name__}: {error}, {place.filename}:{place.lineno}"
        self._log(f"requests failed: {len(tickets)} ({found})")
        for ticket in tickets:
            _deliver(ticket, internal())


def _deliver(ticket: Ticket, what: Event | Problem) -> None:
    try:
        ticket.deliver(what)
    except RuntimeError:
        # The event loop that waited for it is closed.
        ticket.cancelled = True
