"""One finished quick run, which many tests look at."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import cli


class Finished(NamedTuple):
    """A working directory in which `directory` was made by one successful run."""

    cwd: Path
    directory: Path
    record: dict[str, Any]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    cwd = tmp_path_factory.mktemp("finished")
    return Finished(cwd, *cli.succeed(cwd, *cli.QUICK))
