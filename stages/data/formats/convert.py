"""The user's own converter of records, `data.convert`: a function in a Python file."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from stages.data.formats.values import kind, shown
from stages.errors import InputError, SettingError

Converter = Callable[[object, str, str], list[dict[str, Any]]]
"""(record, source, where) to records of one of the formats; none where it is left out."""

_KEY = "data.convert"


def load_converter(setting: str) -> Converter:
    """Return the converter that `file.py:function` names.

    Its file is run once, here; nothing is written beside it. Raises SettingError where this
    fails. The converter raises InputError where the function raises, or returns no rows.
    """
    name, _, function_name = setting.rpartition(":")
    path = Path(name).expanduser()
    function = _function(_run(path), function_name, path)

    def convert(record: object, source: str, where: str) -> list[dict[str, Any]]:
        try:
            found = function(record, source)
        # A converter that exits would otherwise end the whole run as if that were a bug.
        except (Exception, SystemExit) as error:
            raised = f"{_KEY} raised {_said(error)}"
            raise InputError(where, raised, f"mend {_place(error, path)}") from error
        return _rows(found, where)

    return convert


def _run(path: Path) -> ModuleType:
    try:
        code = path.read_bytes()
    except OSError as error:
        found = f"cannot read {path} ({error.strerror})"
        raise SettingError(_KEY, found, "name a Python file of yours") from error
    # A file may define dataclasses, which look their module up here by its name.
    name = f"_data_convert_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    loader = SourceFileLoader(name, str(path))
    spec = spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        # Not exec_module, which leaves a cache beside the file, and may take an older one.
        exec(loader.source_to_code(code, str(path)), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        found = f"cannot load it: {_said(error)}"
        raise SettingError(_KEY, found, f"mend {_place(error, path)}") from error
    return module


def _function(module: ModuleType, name: str, path: Path) -> Callable[[object, str], object]:
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items()
               if inspect.isfunction(value) and value.__module__ == module.__name__]  # fmt: skip
        close = get_close_matches(name, own, 1)
        there = f"it has {', '.join(own)}" if own else "it has none"
        mend = f"did you mean {close[0]}?" if close else f"write it: {there}"
        raise SettingError(_KEY, f"found no function '{name}' in {path}", mend)
    try:
        inspect.signature(function).bind({}, "")
    except TypeError as error:
        found = f"found {name}{inspect.signature(function)}, expected {name}(record, source)"
        raise SettingError(_KEY, found, f"mend {path}") from error
    converter: Callable[[object, str], object] = function
    return converter


def _rows(found: object, where: str) -> list[dict[str, Any]]:
    if found is None:
        return []
    rows: list[Any] = found if isinstance(found, list) else [found]
    for row in rows:
        if not isinstance(row, dict):
            inside = "a list with " if isinstance(found, list) else ""
            expected = "expected an object, a list of objects, or None"
            raise InputError(where, f"{_KEY} returned {inside}{kind(row)}, {expected}")
    return rows


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {shown(str(error))}".removesuffix(": ")


def _place(error: BaseException, path: Path) -> str:
    """Return the last line of the user's file that the error passed, `convert.py:12`."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}:{error.lineno}"
    line, step = None, error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == str(path):
            line = step.tb_lineno
        step = step.tb_next
    return f"{path}:{line}" if line else str(path)
