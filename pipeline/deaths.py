"""Why a worker died that said nothing itself."""

from __future__ import annotations

import re
import resource
import signal
from pathlib import Path

from pipeline.errors import Broken, OutOfMemory, PipelineError, Unable
from stages.memory import lacks_memory

COUNTERS = Path("/proc/vmstat")
"""Where Linux counts, as `oom_kill`, the processes that it killed for lack of memory."""

_MEND = "lower train.batch_size or data.max_seq_length; other programs may be using memory"


def kills_for_memory() -> int | None:
    """Return how many processes were killed for lack of memory so far; None where nobody counts."""
    try:
        found = re.search(r"^oom_kill (\d+)$", COUNTERS.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def cause(stage: str, code: int, last_words: str, kills_before: int | None) -> PipelineError:
    """Return the error that the death of a worker with exit code `code` ends `stage` with.

    `kills_before` is what `kills_for_memory` returned when it was started.
    """
    if code == -signal.SIGKILL:
        if kills_before is not None and kills_for_memory() == kills_before:
            found = "the worker was killed, though not by the system for lack of memory"
            mend = f"run it again; if a guard of the memory has done it, {_MEND}"
            return Unable(stage, found, mend)
        return OutOfMemory(stage, "the worker was killed, most likely for lack of memory", _MEND)
    if _found_none(code, last_words):
        return OutOfMemory(stage, "the worker found no memory for an array", _MEND)
    return Broken(stage, f"the worker ended with code {code}", last_words)


def _found_none(code: int, last_words: str) -> bool:
    """Tell whether a process died by a signal because an array found no place.

    On Metal, what MLX raises in its own thread aborts. On a CPU, MLX 0.32 writes to where malloc
    gave nothing, which it does under a limit of the address space (ulimit -v).
    """
    if code == -signal.SIGABRT:
        return lacks_memory("\n".join(last_words.splitlines()[-3:]))
    limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    return code == -signal.SIGSEGV and limited
