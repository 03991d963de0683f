"""Whether a directory is a model that can be opened here, found out before MLX is imported."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Collection, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stages.errors import EnvironmentFailure, InputError
from stages.models.headers import read_header
from stages.models.tokenizer import check_vocabulary

_INDEX = "model.safetensors.index.json"
_UNSAFE = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.npz")
_AGAIN = "download or copy it again"


def validate(directory: Path, *, weights: bool = True) -> dict[str, Any]:
    """Return the config of the model in `directory`, or raise InputError saying what is wrong.

    Checks config.json, that the installed mlx-lm knows the model type without running any code of
    the directory, that the safetensors weights are all there and whole, and the tokenizer files;
    with `weights=False` all but the weights, which may then be missing.
    """
    if not directory.is_dir():
        found = "is no directory" if directory.exists() else "does not exist"
        mend = "give a directory, a hub name such as Qwen/Qwen3-0.6B, or tiny"
        raise InputError("model.path", f"{directory} {found}", mend)
    config = read_json(directory / "config.json")
    _check_type(directory, config)
    if weights:
        _check_weights(directory)
    check_vocabulary(directory)
    return config


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in `file`; raises InputError where it is missing or damaged."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        mend = "model.path needs a directory with a model in it"
        raise InputError(str(file), "does not exist", mend) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(str(file), f"cannot be read as JSON ({error})", _AGAIN) from error
    if not isinstance(value, dict):
        raise InputError(str(file), "is no JSON object", _AGAIN)
    return value


def _check_type(directory: Path, config: dict[str, Any]) -> None:
    where = str(directory / "config.json")
    if "model_file" in config:
        found = f"asks to run its own Python code ({config['model_file']!r}), which is never done"
        raise InputError(where, found, "choose a model that mlx-lm knows by itself")
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise InputError(where, "has no model_type", "choose a model in the Hugging Face layout")
    if _is_architecture(_architecture(model_type, config.get("architectures"))):
        return
    found = f"mlx-lm has no model type {model_type!r}"
    if "auto_map" in config:
        found += "; the model brings its own Python code, which is never run"
    raise InputError(where, found, "choose another model, or a newer mlx-lm")


def _check_weights(directory: Path) -> None:
    # mlx-lm reads these and no others.
    files = sorted(directory.glob("model*.safetensors"))
    if not files:
        unsafe = sorted(file.name for name in _UNSAFE for file in directory.glob(name))
        other = sorted(file.name for file in directory.glob("*.safetensors"))
        found = "no weights in it (model*.safetensors)"
        if unsafe or other:
            found += f", only {', '.join((other or unsafe)[:3])}"
        mend = "pickled weights are never read: convert them to safetensors" if unsafe else ""
        raise InputError(str(directory), found, mend or "choose a directory with safetensors")
    held = {file.name: read_header(file) for file in files}
    if (directory / _INDEX).exists():
        _check_index(directory, held)


def _check_index(directory: Path, held: Mapping[str, Collection[str]]) -> None:
    where = directory / _INDEX
    places = read_json(where).get("weight_map")
    if not isinstance(places, dict):
        raise InputError(str(where), "has no weight_map from tensor to file", _AGAIN)
    for tensor, name in places.items():
        if name not in held:
            raise InputError(str(directory), f"{name} is missing, but {_INDEX} names it", _AGAIN)
        if tensor not in held[name]:
            raise InputError(str(directory / name), f"lacks {tensor}, which {_INDEX} places there",
                             _AGAIN)  # fmt: skip


def _architecture(model_type: str, architectures: object) -> str:
    tables = _remappings()
    for name in architectures if isinstance(architectures, list) else [architectures]:
        remapped = tables["MODEL_ARCHITECTURE_REMAPPING"].get((model_type, str(name)))
        if remapped is not None:
            return remapped
    return tables["MODEL_REMAPPING"].get(model_type, model_type)


def _mlx_lm() -> Path:
    # Finding a top-level package imports nothing; importing mlx_lm would import MLX.
    spec = find_spec("mlx_lm")
    if spec is None or not spec.submodule_search_locations:
        mlx = "mlx" if sys.platform == "darwin" else '"mlx[cpu]"'
        raise EnvironmentFailure("mlx_lm", "is not installed", f"pip install {mlx} mlx-lm")
    return Path(spec.submodule_search_locations[0])


def _is_architecture(name: str) -> bool:
    """Tell whether the installed mlx-lm has a module of this name that defines a Model."""
    file = _mlx_lm() / "models" / f"{name}.py"
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,80}", name) or not file.exists():
        return False
    return any(
        (isinstance(node, ast.ClassDef) and node.name == "Model")
        or (isinstance(node, ast.ImportFrom) and any(item.name == "Model" for item in node.names))
        for node in ast.parse(file.read_text("utf-8")).body
    )


@cache
def _remappings() -> dict[str, dict[Any, str]]:
    """Return mlx-lm's two tables of renamed types, read from its source as literals."""
    tables: dict[str, dict[Any, str]] = {"MODEL_REMAPPING": {}, "MODEL_ARCHITECTURE_REMAPPING": {}}
    for node in ast.parse((_mlx_lm() / "utils.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in tables:
                tables[name] = ast.literal_eval(node.value)
    return tables
