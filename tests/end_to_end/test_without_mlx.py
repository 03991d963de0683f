"""On a machine without MLX everything that needs no tensor works; the rest says what to install."""

import os
import sys
from pathlib import Path

import cli
import pytest

HIDE = """
import importlib.metadata, sys
from importlib.machinery import PathFinder

HIDDEN = ("mlx", "mlx-lm", "mlx-cpu", "mlx-metal")

class Hide(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] not in ("mlx", "mlx_lm"):
            return super().find_spec(name, path, target)

sys.meta_path = [Hide if finder is PathFinder else finder for finder in sys.meta_path]
found = importlib.metadata.version

def version(name):
    if name in HIDDEN:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)

importlib.metadata.version = version
"""


@pytest.fixture
def hidden(tmp_path: Path) -> dict[str, str]:
    """Variables of an environment in which neither MLX nor mlx-lm can be found."""
    folder = tmp_path / "hide"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HIDE)
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(cli.ROOT)])}


@pytest.mark.parametrize("arguments", [("--help",), ("--cfg", "job"), ("dry_run=true",)])
def test_what_needs_no_tensor_works(
    tmp_path: Path, hidden: dict[str, str], arguments: tuple[str, ...]
) -> None:
    """Help, the composed configuration and the dry run need no MLX."""
    done = cli.run(tmp_path, *arguments, **hidden)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_dry_run_says_what_is_missing(tmp_path: Path, hidden: dict[str, str]) -> None:
    """The plan names the missing package and the command that installs it."""
    done = cli.run(tmp_path, "dry_run=true", **hidden)
    assert "pip install" in done.stdout


def test_training_says_what_to_install(tmp_path: Path, hidden: dict[str, str]) -> None:
    """Rows are prepared; the stage that computes ends with exit code 3 and the package for this
    platform."""
    done = cli.run(tmp_path, *cli.QUICK, **hidden)
    assert done.returncode == 3, done.stderr
    assert "prepare   ran" in done.stdout
    assert len(done.stderr.splitlines()) <= 3
    needed = "pip install mlx" if sys.platform == "darwin" else "pip install 'mlx[cpu]'"
    assert needed in done.stderr
