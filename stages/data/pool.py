"""One function over many chunks in several processes: in order, lazily, in bounded memory.

The processes are started by name and not by `multiprocessing`, which would run the program's main
module again in each and leave a process of its own behind.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle
from multiprocessing.connection import Connection, Pipe
from typing import Generic, NoReturn, Protocol, TypeVar

from stages.errors import EnvironmentFailure, StageError

MOST_PROCESSES = 8
"""Beyond these, the one process that reads and writes is what all others wait for."""
WORTH_A_PROCESS_BYTES = 8 << 20
"""Where what is saved (a process encodes 0.6 MB/s) exceeds what loading tokenizers costs (3 s)."""
_OUTSTANDING = 2
"""Chunks given to each process: one at work, one at hand."""
_CODE = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from stages.data.pool import serve; serve(int(sys.argv[1]))"
)

In = TypeVar("In")
Out = TypeVar("Out")
_Takes = TypeVar("_Takes", contravariant=True)
_Gives = TypeVar("_Gives", covariant=True)


class Pool(Protocol[_Takes, _Gives]):
    """Where chunks are worked on."""

    def map(self, chunks: Iterable[_Takes], /) -> Iterator[_Gives]:
        """Yield the result of each chunk in the order of the chunks, which are read as needed.

        One call at a time, and none after one whose results were not all taken.
        """


def processes_for(total_bytes: int) -> int:
    """Return how many processes are worth starting; it decides no byte of the result."""
    affinity = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity else os.cpu_count() or 1
    return 1 if total_bytes < WORTH_A_PROCESS_BYTES else min(usable, MOST_PROCESSES)


@contextmanager
def open_pool(setup: Callable[[], Callable[[In], Out]], processes: int) -> Iterator[Pool[In, Out]]:
    """Call `setup` once in each process for the function that works on chunks; 1 is this process.

    With more, `setup`, chunks and results must be picklable. What the function raises is raised
    here, and EnvironmentFailure where a process dies. Leaving the block ends the processes.
    """
    if processes == 1:
        yield _Here(setup())
        return
    children: list[_Child[In, Out]] = []
    try:
        wanted = pickle.dumps(setup)
        while len(children) < processes:
            children.append(_Child())
            children[-1].send(wanted)
        yield _Children(children)
    finally:
        for child in children:
            child.process.kill()
        for child in children:
            child.process.wait()
            child.connection.close()


class _Here(Generic[In, Out]):
    def __init__(self, function: Callable[[In], Out]) -> None:
        self._function = function

    def map(self, chunks: Iterable[In], /) -> Iterator[Out]:
        return map(self._function, chunks)


class _Children(Generic[In, Out]):
    def __init__(self, children: list[_Child[In, Out]]) -> None:
        self._children = children

    def map(self, chunks: Iterable[In], /) -> Iterator[Out]:
        waiting: deque[_Child[In, Out]] = deque()
        for chunk, child in zip(chunks, cycle(self._children), strict=False):
            if len(waiting) == _OUTSTANDING * len(self._children):
                yield waiting.popleft().receive()
            child.send(pickle.dumps(chunk, pickle.HIGHEST_PROTOCOL))
            waiting.append(child)
        while waiting:
            yield waiting.popleft().receive()


class _Child(Generic[In, Out]):
    """A process at the other end of a pipe, which ends when this end is closed."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        number = theirs.fileno()
        try:
            with theirs:
                self.process = subprocess.Popen(
                    # Without -P, files of the user's in the working directory would be imported.
                    [sys.executable, "-P", "-u", "-c", _CODE, str(number), *sys.path],
                    # Standard input and output may be somebody's protocol; errors are not.
                    stdin=subprocess.DEVNULL,
                    stdout=2,
                    pass_fds=[number],
                    # Ctrl-C on the terminal is for this process to decide upon.
                    process_group=0,
                )
        except OSError as error:
            self.connection.close()
            found = f"a worker process cannot be started ({error.strerror})"
            raise EnvironmentFailure("data", found, "close other programs") from error

    def send(self, content: bytes) -> None:
        """Hand over a pickled chunk; its result is received in its turn."""
        try:
            self.connection.send_bytes(content)
        except OSError as error:
            raise self._death() from error

    def receive(self) -> Out:
        """Return the result of the oldest chunk not yet received, or raise what it raised."""
        try:
            content = self.connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._death() from error
        result: Out
        raised, result = pickle.loads(content)
        if raised is not None:
            raise _unpacked(*raised)
        return result

    def _death(self) -> EnvironmentFailure:
        code = self.process.wait()
        if code == -signal.SIGKILL:
            found = f"a worker process died (signal {-code}), most likely for lack of memory"
            return EnvironmentFailure("data", found, "close other programs that use memory")
        found = f"a worker process died ({f'signal {-code}' if code < 0 else f'code {code}'})"
        return EnvironmentFailure("data", found, "see the end of the log for what it wrote last")


def serve(descriptor: int) -> NoReturn:
    """Work on chunks until the other end of the pipe is closed: the body of a child process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # There are as many processes as cores: threads of the tokenizer would only wait.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    connection = Connection(descriptor)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    # Both ends send without waiting for each other's turn, or each could wait for the other.
    def read() -> None:
        while True:
            requests.put(connection.recv_bytes())

    def write() -> None:
        while True:
            connection.send_bytes(answers.get())

    for loop in (read, write):
        threading.Thread(target=_until_closed, args=[loop], daemon=True).start()
    function = _set_up(requests.get())
    while True:
        answers.put(_answer(function, requests.get()))


def _until_closed(loop: Callable[[], None]) -> None:
    try:
        loop()
    finally:
        os._exit(1)


def _set_up(setup: bytes) -> Callable[[object], object]:
    try:
        function: Callable[[object], object] = pickle.loads(setup)()
    except BaseException as error:
        refusal = error

        def refuse(_: object) -> NoReturn:
            raise refusal

        return refuse
    return function


def _answer(function: Callable[[object], object], request: bytes) -> bytes:
    """Return, pickled, (None, result), or (what was raised, None)."""
    try:
        return pickle.dumps((None, function(pickle.loads(request))), pickle.HIGHEST_PROTOCOL)
    except BaseException as error:
        return pickle.dumps((_packed(error), None))


def _packed(error: BaseException) -> tuple[bytes, str]:
    """Return the error, pickled by itself because that may fail at either end, and its text."""
    text = "".join(traceback.format_exception(error))
    try:
        return pickle.dumps(error), text
    except Exception:
        return b"", text


def _unpacked(packed: bytes, text: str) -> Exception:
    """Return the error of a child, with the place where it happened if it is a bug."""
    try:
        error = pickle.loads(packed)
    except Exception:
        error = None
    # What only ends a process, such as SystemExit, must not end this one.
    if not isinstance(error, Exception):
        return RuntimeError(text)
    if not isinstance(error, StageError):
        error.add_note(f"In a worker process:\n{text}")
    return error
