"""What can go wrong in a stage, as one tree.

StageError               says where, what was found, and what to do
├── SettingError         a configuration value the user can mend (also a ValueError)
├── InputError           a file, row or model the user can mend
├── EnvironmentFailure   memory, disk, network or a missing package
└── StopRequested        the run was asked to stop; nothing is wrong
"""


class StageError(Exception):
    """Say where it went wrong, what was found, and what mends it: one line each, three at most.

    `where` is a configuration key (`data.path`), a file or a `file:line`.
    """

    def __init__(self, where: str, found: str, mend: str = "") -> None:
        super().__init__(f"{where}: {found}" + (f"; {mend}" if mend else ""))
        self.where = where
        self.found = found
        self.mend = mend


class SettingError(StageError, ValueError):
    """Refuse a configuration value: `where` is its full key."""


class InputError(StageError):
    """Refuse data, a model directory or another file from outside."""


class EnvironmentFailure(StageError):
    """Report a machine that cannot do the work: memory, disk, network, a missing package."""


class StopRequested(StageError):
    """End a stage early because the run was asked to stop."""

    def __init__(self) -> None:
        super().__init__("run", "asked to stop")
