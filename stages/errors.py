"""What can go wrong in a stage, as one tree.

StageError               says where, what was found, and what to do
├── SettingError         a configuration value the user can mend (also a ValueError)
├── InputError           a file, row or model the user can mend
├── EnvironmentFailure   memory, disk, network or a missing package
│   └── OutOfMemory      the work holds more than there is, or more than it may
└── StopRequested        the run was asked to stop; nothing is wrong
"""

from dataclasses import fields
from typing import Any


class StageError(Exception):
    """Say where it went wrong, what was found, and what mends it: one line each, three at most.

    `where` is a configuration key (`data.path`), a file or a `file:line`.
    """

    def __init__(self, where: str, found: str, mend: str = "") -> None:
        super().__init__(f"{where}: {found}" + (f"; {mend}" if mend else ""))
        self.where = where
        self.found = found
        self.mend = mend

    def __reduce__(self) -> tuple[Any, ...]:
        # `args` is the whole message, which pickle would take for the arguments of __init__.
        return Exception.__new__, (type(self), *self.args), self.__dict__


class SettingError(StageError, ValueError):
    """Refuse a configuration value: `where` is its full key."""


class InputError(StageError):
    """Refuse data, a model directory or another file from outside."""


class EnvironmentFailure(StageError):
    """Report a machine that cannot do the work: memory, disk, network, a missing package."""


class OutOfMemory(EnvironmentFailure):
    """Report work that needs more memory than there is, or than it may hold."""


class StopRequested(StageError):
    """End a stage early because the run was asked to stop."""

    def __init__(self) -> None:
        super().__init__("run", "asked to stop")


def require(condition: bool, key: str, found: object, expected: str) -> None:
    """Raise `SettingError` for `key` unless the condition holds."""
    if not condition:
        raise SettingError(key, f"found {found!r}, expected {expected}")


def require_counts(settings: Any, group: str, *names: str) -> None:
    """Require each of the named fields to be 1 or more, or null where it may be."""
    for name in names:
        value = getattr(settings, name)
        require(value is None or value >= 1, f"{group}.{name}", value, "at least 1")


def require_option(settings: Any, group: str, option: str, used: frozenset[str]) -> None:
    """Require the fields in `used` and refuse the group's other fields that default to None."""
    for spec in fields(settings):
        value = getattr(settings, spec.name)
        key = f"{group}.{spec.name}"
        if spec.name in used and value is None:
            raise SettingError(key, f"found null, but {option} needs it", f"set {key}")
        if spec.default is None and spec.name not in used and value is not None:
            mend = f"leave {key} out"
            raise SettingError(key, f"found {value!r}, but {option} does not use it", mend)
