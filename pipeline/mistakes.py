"""Turn what Hydra, OmegaConf and YAML say about a configuration into our own short errors."""

from __future__ import annotations

import re
from pathlib import Path

import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own
from hydra.core.config_loader import ConfigLoader
from hydra.errors import MissingConfigException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    ConfigTypeError,
    OmegaConfBaseException,
    ValidationError,
)

from pipeline.errors import Refused
from pipeline.overrides import Words, unknown_key, unknown_option
from pipeline.resolved import flat
from pipeline.schema import KEYS, MAPPINGS, expected, key_of
from pipeline.terminal import shown_path


def explain(error: Exception, loader: ConfigLoader) -> Refused:
    """Return the refusal that says what `error` says, with the user's own file if it is in one."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return Refused(f"{shown_path(Path(mark.name))}:{mark.line + 1}", str(error.problem))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing(error, loader)
    named = re.match(r"In '([^']+)': ", str(error))
    file = user_file(named.group(1), loader) if named else None
    cause = error if isinstance(error, OmegaConfBaseException) else _cause(error)
    if cause is None or not cause.full_key:
        said = str(cause or error).splitlines()[0].removeprefix(named.group(0) if named else "")
        return Refused(shown_path(file) if file else "configuration", said)
    refused = _about_key(cause, str(cause.full_key), loader)
    if file is None:
        return refused
    mend = refused.mend
    if str(cause.full_key).partition(".")[0] == file.parent.name and file.parent.name not in _ROOTS:
        mend = "its first line must be `# @package _global_`"
    return Refused(f"{shown_path(file)}: {refused.where}", refused.found, mend)


_ROOTS = {key.partition(".")[0] for key in KEYS}


def _cause(error: Exception) -> OmegaConfBaseException | None:
    cause = error.__cause__ or error.__context__
    return cause if isinstance(cause, OmegaConfBaseException) else None


def _about_key(cause: OmegaConfBaseException, key: str, loader: ConfigLoader) -> Refused:
    said = str(cause.msg or cause).splitlines()[0]
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        if key.startswith("hydra."):
            return Refused(key, "no such key", "--cfg hydra shows all keys of Hydra")
        return unknown_key(key, loader.list_groups(""))
    if key in KEYS and isinstance(cause, ConfigTypeError):
        found = "a list" if key in MAPPINGS else "a mapping"
        return Refused(key, f"found {found}, expected {expected(key)}")
    if key not in KEYS or not isinstance(cause, ValidationError):
        return Refused(key, said)
    value = cause.value
    found = f"found {'null' if value is None else repr(value)}, expected {expected(key)}"
    listed = "list" in expected(key) and isinstance(value, str | int | float)
    return Refused(key, found, f"write '{key}=[{value}]'" if listed else "")


def _missing(error: MissingConfigException, loader: ConfigLoader) -> Refused:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    options = [*(error.options or loader.get_group_options(group))]
    refused = unknown_option(group, option, options)
    for directory in _user_directories(loader):
        for file in sorted(directory.rglob("*.yaml")):
            if re.search(rf"\b{re.escape(option)}\b", file.read_text(encoding="utf-8")):
                return Refused(f"{shown_path(file)}: {group}", refused.found, refused.mend)
    return refused


def _user_directories(loader: ConfigLoader) -> list[Path]:
    return [Path(source.path) for source in loader.get_sources() if source.scheme() == "file"]


def user_file(config_path: str, loader: ConfigLoader) -> Path | None:
    """Return the user's own file behind `experiment/mine`, or None for one of ours."""
    for directory in _user_directories(loader):
        file = directory / f"{config_path}.yaml"
        if file.is_file():
            return file
    return None


def origin(key: str, config_name: str, words: Words, loader: ConfigLoader) -> Path | None:
    """Return the user's own file that sets `key` last, or None."""
    defaults = loader.compute_defaults_list(config_name, [*words.choice_texts()], RunMode.RUN)
    for default in reversed(defaults.defaults):
        file = user_file(default.config_path or "", loader)
        if file is None:
            continue
        values = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        if not isinstance(values, dict):
            continue
        names = {str(name): value for name, value in values.items()}
        prefix = f"{default.package}." if default.package else ""
        if key in {key_of(f"{prefix}{name}") for name in flat(names)}:
            return file
    return None
