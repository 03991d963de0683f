"""A process that calls one function with each event of a training run.

It is apart from the training so that whatever the function does, even to its own process, cannot
reach what is trained. It knows no MLX.
"""

from __future__ import annotations

import inspect
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

from stages.errors import SettingError
from stages.training.trackio_sink import open_sink

KEY = "train.callbacks"
PATIENCE_SECONDS = 10.0
"""How long the last events may take once the training has ended."""

Callback = Callable[[Mapping[str, Any]], object]


def serve(key: str, setting: str) -> None:
    """Answer that the function is ready, or why it is refused, and call it until the input ends.

    Input: one JSON object an event and line. Output, on what was standard output: JSON objects
    with `ready` or `refused` (key, found, mend); then with `done` or `raised`, where it is over.
    """
    events, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w")
    # What the function prints must not be taken for an answer, nor an event for what it reads.
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)

    def answer(**content: object) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        function = load_callback(setting) if key == KEY else open_sink(setting)
    except SettingError as error:
        answer(refused=(error.where, error.found, error.mend))
        return
    answer(ready=True)
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(events, waiting), daemon=True).start()
    while line := waiting.get():
        try:
            function(json.loads(line))
        # sys.exit too: the training tells of it, instead of a silent end.
        except BaseException as error:
            traceback.print_exc()
            answer(raised=f"{_said(error)}{_place(error)}")
            return
    answer(done=True)


def _read(events: Any, waiting: queue.SimpleQueue[str]) -> None:
    # At once, so that the training never waits for room in the pipe.
    for line in events:
        waiting.put(line)
    waiting.put("")
    time.sleep(PATIENCE_SECONDS)
    os._exit(1)


def load_callback(setting: str) -> Callback:
    """Return what `module:function` or `file.py:function` names.

    A file is run once, here, with nothing written beside it. Modules are found where Python finds
    them and, after that, in the working directory. Raises SettingError.
    """
    name, _, function_name = setting.rpartition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = _run(Path(name).expanduser()) if name.endswith(".py") else import_module(name)
    except BaseException as error:
        traceback.print_exc()
        found = f"cannot load {name}: {_said(error)}{_place(error)}"
        raise SettingError(KEY, found, "mend it, or leave it out") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items()
               if inspect.isfunction(value) and value.__module__ == module.__name__]  # fmt: skip
        close = get_close_matches(function_name, own, 1)
        there = f"it has {', '.join(own)}" if own else "it has none"
        mend = f"did you mean {close[0]}?" if close else there
        raise SettingError(KEY, f"found no function '{function_name}' in {name}", mend)
    try:
        inspect.signature(function).bind({})
    except TypeError as error:
        found = f"found {function_name}{inspect.signature(function)} in {name}"
        raise SettingError(KEY, found, f"write {function_name}(event)") from error
    except ValueError:  # some built-in functions do not tell
        pass
    callback: Callback = function
    return callback


def _run(path: Path) -> ModuleType:
    # A file may define dataclasses, which look their module up by its name.
    name = f"_train_callback_{path.stem}"
    loader = SourceFileLoader(name, str(path))
    spec = spec_from_loader(name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    # Not exec_module, which leaves a cache beside the file, and may take an older one.
    exec(loader.source_to_code(path.read_bytes(), str(path)), module.__dict__)
    return module


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place(error: BaseException) -> str:
    """Return the first line passed that is neither ours nor the import's: ` (mine.py:12)`."""
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename != __file__ and "importlib" not in frame.filename:
            return f" ({Path(frame.filename).name}:{frame.lineno})"
    return ""
