"""Find the function that a name such as `stages.train.train` means, without importing it."""

from __future__ import annotations

import ast
import re
from importlib.machinery import PathFinder
from pathlib import Path

import stages
from pipeline.errors import Refused
from pipeline.spelling import closest


def locate(name: str, key: str) -> Path:
    """Return the file that defines the stage function `name`, which the key `key` holds.

    Raises `Refused`: only functions at the top level of a module under `stages` can be named.
    """
    if not re.fullmatch(r"stages(\.[A-Za-z_][A-Za-z0-9_]*){2,}", name):
        expected = "name a function under `stages.`, such as stages.train.train"
        raise Refused(key, f"found {name!r}", expected)
    module, _, function = name.rpartition(".")
    file = _file(module, name, key)
    functions = _functions(file)
    if function not in functions:
        near = closest(function, functions)
        mend = f"did you mean {module}.{near}?" if near else _listing(module, functions)
        raise Refused(key, f"found {name!r}, but {module} has no function {function!r}", mend)
    return file


def _file(module: str, name: str, key: str) -> Path:
    """Go down from the `stages` package; finding a module there runs no code of it."""
    path, known = list(stages.__path__), "stages"
    file: str | None = None
    for part in module.split(".")[1:]:
        spec = PathFinder.find_spec(f"{known}.{part}", path)
        if spec is None:
            names = {entry.stem for place in path for entry in Path(place).iterdir()
                     if entry.suffix == ".py" or (entry / "__init__.py").exists()}  # fmt: skip
            near = closest(part, names)
            mend = f"did you mean {known}.{near}?" if near else ""
            raise Refused(key, f"found {name!r}, but {known} has no module {part!r}", mend)
        known = f"{known}.{part}"
        path = list(spec.submodule_search_locations or [])
        file = spec.origin
    if file is None:
        raise Refused(key, f"found {name!r}, but {module} has no source file")
    return Path(file)


def _functions(file: Path) -> list[str]:
    tree = ast.parse(file.read_bytes())
    return [node.name for node in tree.body
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]  # fmt: skip


def _listing(module: str, functions: list[str]) -> str:
    return f"{module} has: {', '.join(functions) or 'no function'}"
