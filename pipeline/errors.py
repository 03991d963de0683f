"""What ends a run, as one tree; each error knows its exit code and its lines on the terminal.

PipelineError
├── Refused       1    a key, value, option, data or file the user can mend
├── Unable        3    the environment: no MLX, space, memory, network
│   └── OutOfMemory    a stage held more memory than there is, or than it may
├── Interrupted   130  Ctrl-C (143: terminated); the same command continues
└── Broken        70   a bug, with its traceback and where to report it
"""

from stages.errors import EnvironmentFailure, StageError, StopRequested

ISSUES = "https://github.com/mlx-lora-pipeline/mlx-lora-pipeline/issues"


class PipelineError(Exception):
    """End the run with `exit_code`, having said where, what was found, and what mends it."""

    exit_code = 70

    def __init__(self, where: str, found: str, mend: str = "") -> None:
        super().__init__(f"{where}: {found}" + (f"; {mend}" if mend else ""))
        self.where = where
        self.found = found
        self.mend = mend

    def lines(self) -> list[str]:
        """Return what stands on stderr: two lines, the second only where something mends it."""
        first = f"error: {self.where}: {self.found}"
        return [first, f"  {self.mend}"] if self.mend else [first]


class Refused(PipelineError):
    """Refuse what the user can mend; nothing was written."""

    exit_code = 1


class Unable(PipelineError):
    """Report an environment in which the work cannot be done."""

    exit_code = 3


class OutOfMemory(Unable):
    """Report a stage that held more memory than there is, or than it may."""


class Interrupted(PipelineError):
    """Report that the run was stopped on request."""

    def __init__(self, signal_number: int) -> None:
        mend = "the same command continues: finished stages and checkpoints are kept"
        super().__init__("run", "interrupted", mend)
        self.exit_code = 128 + signal_number

    def lines(self) -> list[str]:
        """Return one calm line: being stopped is no error."""
        return [f"interrupted: {self.mend}"]


class Broken(PipelineError):
    """Report a bug of ours, with the traceback it came with."""

    def __init__(self, where: str, found: str, traceback: str) -> None:
        super().__init__(where, found, f"this is a bug, please report it: {ISSUES}")
        self.traceback = traceback

    def lines(self) -> list[str]:
        """Return the traceback, then the two lines."""
        return [*self.traceback.rstrip().splitlines(), *super().lines()]


def from_stage(error: StageError) -> PipelineError:
    """Translate an error of the work into the one that ends the run."""
    kind = Unable if isinstance(error, EnvironmentFailure) else Refused
    if isinstance(error, StopRequested):
        return Interrupted(2)
    return kind(error.where, error.found, error.mend)
