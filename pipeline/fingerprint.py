"""The key of a stage: a digest of everything that decides the bytes of its result."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pipeline import environment
from pipeline.data_sources import given_files
from pipeline.errors import Refused
from pipeline.file_digests import sha256
from pipeline.plan import Step
from pipeline.resolved import digest
from pipeline.schema import Config
from stages.data_settings import Data
from stages.errors import InputError
from stages.inputs import data_paths, find_files

FORMAT = 1


def ingredients(
    step: Step, config: Config, *, model: Mapping[str, Any], inputs: Mapping[str, Any],
    upstream: Mapping[str, str],
) -> dict[str, Any]:  # fmt: skip
    """Return what decides the result of `step`; `digest` of it is the step's key.

    `model` is the identity of the base's files as this step reads them, `inputs` of other outside
    files, `upstream` the keys of the steps before.
    """
    function = function_name(step, config)
    made_of: dict[str, Any] = {
        "format": FORMAT,
        "stage": step.name,
        "function": function,
        "settings": {name: _settings(step, config, name) for name in step.settings},
        "model": dict(model),
        "inputs": dict(inputs),
        "upstream": dict(upstream),
        "code": code_digest(function),
        "libraries": environment.versions(step.libraries),
    }
    if step.tensors:
        workers = environment.training_workers(config.train) if step.name == "train" else 1
        facts = environment.execution(config.model.dtype, config.model.path, workers)
        made_of["execution"] = facts
    return made_of


def function_name(step: Step, config: Config) -> str:
    """Return the dotted name of the function that does `step` in this configuration."""
    if step.function.startswith("stages."):
        return step.function
    group, _, key = step.function.partition(".")
    return str(getattr(getattr(config, group), key))


def _settings(step: Step, config: Config, name: str) -> Any:
    value = getattr(config, name)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return {k: v for k, v in asdict(value).items() if f"{name}.{k}" not in step.unkeyed}


def code_digest(function: str) -> str:
    """Return a digest of the module of `function` and all of `stages` that it imports, statically.

    Comments, layout and docstrings do not count: only a change of meaning makes stages run anew.
    """
    closure = sorted(_closure(function).items())
    return digest({name: _read(path, name)[0] for name, path in closure})


def _closure(function: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    waiting = [function.rpartition(".")[0]]
    while waiting:
        name = waiting.pop()
        path = module_path(name)
        if path is None or name in found:
            continue
        found[name] = path
        waiting.append(name.rpartition(".")[0])
        waiting.extend(_read(path, name)[1])
    return found


def module_path(name: str) -> Path | None:
    """Return the source file of a module of `stages` without importing it, None without one."""
    root = importlib.util.find_spec("stages")
    if root is None or root.submodule_search_locations is None or name.split(".")[0] != "stages":
        return None
    base = Path(root.submodule_search_locations[0]).joinpath(*name.split(".")[1:])
    candidates = (base / "__init__.py", base.parent / f"{base.name}.py")
    return next((path for path in candidates if path.is_file()), None)


@cache
def _read(path: Path, module: str) -> tuple[str, tuple[str, ...]]:
    """Return the digest of the source of `module` without its texts, and the names it imports."""
    tree = ast.parse(path.read_bytes())
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            names += [source, *(f"{source}.{alias.name}" for alias in node.names)]
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [part for part in body if not _is_text(part)]
            node.body = kept  # type: ignore[attr-defined]  # only nodes with a body come here
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(names)


def _is_text(node: ast.AST) -> bool:
    """Tell a docstring, of a module, class, function or field, from a statement."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def data_identity(data: Data, commits: Mapping[str, str]) -> dict[str, Any]:
    """Return what identifies the rows: digests of all files that are read, commits of the hub.

    The same files elsewhere have the same identity. Where they are gone, as a run= allows that
    does not prepare them, there is none.
    """
    paths = data_paths(data.path)
    try:
        files, _ = find_files(data.path)
    except InputError:
        return {}
    found: dict[str, Any] = {}

    def add(source: int, name: str, what: dict[str, Any]) -> None:
        found[name if len(paths) == 1 else f"{source}: {name}"] = what

    for source, path in enumerate(paths):
        if path == "samples":
            add(source, path, {"bundled": True})
        elif path in commits:
            add(source, path, {"commit": commits[path]})
    for file in files:
        if paths[file.source] != "samples":
            add(file.source, file.name, {file.split: _digest(file.path, "data.path")})
    for key, place in given_files(data).items():
        if place.exists():
            found[key] = _digest(str(place), key)
    if data.convert is not None:
        found["function"] = data.convert.rpartition(":")[2]
        imported = _imported(given_files(data)["data.convert"])
        found |= {f"import {name}": _digest(str(p), "data.convert") for name, p in imported.items()}
    return found


def _imported(script: Path) -> dict[str, Path]:
    """Return the files of the working directory that a script imports, by their modules' names."""
    found: dict[str, Path] = {}
    waiting = list(_imports(script, script.stem))
    while waiting:
        name = waiting.pop()
        if not name or name in found:
            continue
        base = Path(*name.split("."))
        places = (base / "__init__.py", base.with_name(f"{base.name}.py"))
        if (place := next(filter(Path.is_file, places), None)) is not None:
            found[name] = place
            waiting += _imports(place, name)
        waiting.append(name.rpartition(".")[0])
    return dict(sorted(found.items()))


def _imports(script: Path, module: str) -> tuple[str, ...]:
    try:
        # Unlike our own, a user's module may change while this process runs.
        return _read.__wrapped__(script, module)[1]
    except (OSError, SyntaxError, ValueError):  # loading it says what is wrong
        return ()


def _digest(path: str, key: str) -> str:
    try:
        return sha256(Path(path).expanduser())
    except OSError as error:
        found = f"cannot read {path!r}: {(error.strerror or str(error)).lower()}"
        raise Refused(key, found, "make it a file that you can read") from error
