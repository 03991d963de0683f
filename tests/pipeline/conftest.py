"""Run command lines as processes do, many of them for the price of one start of Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FORK = """
import json, os, sys, traceback
import pipeline.app, pipeline.rerun
pipeline.app.schema.register()
with pipeline.app.opened(None, "config") as composer:  # imports and parser tables, made once
    composer.compose(pipeline.app.read(["lora.rank=2"], composer.loader, sweeping=False))
exec(sys.argv[2])
running = 0
for cwd, argv in json.loads(sys.argv[1]):
    if running == 2:
        os.wait()
        running -= 1
    running += 1
    if not os.fork():
        os.chdir(cwd)
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{cwd}.{name}", os.O_CREAT | os.O_WRONLY), stream)
        sys.argv = ["pipeline/__main__.py", *argv]
        code = None
        try:
            pipeline.app.main()
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        with open(f"{cwd}.end", "w") as stream:
            json.dump({"code": code, "mlx": "mlx" in sys.modules}, stream)
        sys.stdout.flush()
        os._exit(0)
for _ in range(running):
    os.wait()
"""


@dataclass(frozen=True, slots=True)
class Ended:
    """How one command line ended: its exit code, its output, its working directory."""

    code: int | None
    out: str
    err: str
    cwd: Path
    mlx: bool
    """MLX was imported."""

    @property
    def made(self) -> list[str]:
        """What the command created in its working directory."""
        return sorted(path.relative_to(self.cwd).as_posix() for path in self.cwd.rglob("*"))


Commands = Callable[..., list[Ended]]


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """Give a function that runs command lines, each in a process and an empty directory."""

    def run(*lines: Sequence[str], cwd: Path | None = None, before: str = "") -> list[Ended]:
        root = tmp_path_factory.mktemp("commands")
        places = [cwd or root / str(number) for number in range(len(lines))]
        for place in places:
            place.mkdir(exist_ok=True)
        pairs = [[str(place), list(line)] for place, line in zip(places, lines, strict=True)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", FORK, json.dumps(pairs), before],
            env=environment,
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return [_ended(place) for place in places]

    return run


def _ended(place: Path) -> Ended:
    out, err, end = (place.with_name(f"{place.name}.{name}") for name in ("out", "err", "end"))
    fields = json.loads(end.read_text())
    return Ended(fields["code"], out.read_text(), err.read_text(), place, fields["mlx"])
