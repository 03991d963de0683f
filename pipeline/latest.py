"""Which run directories there are, which is the newest, and which one a reference means."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pipeline.durable import replace_link, reported
from pipeline.errors import PipelineError, Refused
from pipeline.locks import hold
from pipeline.record import NAME, read_run
from pipeline.spelling import closest

LATEST = "latest"


def run_directories(outputs: Path, name: str | None = None) -> Iterator[Path]:
    """Yield the directories of runs and of sweep trials under `outputs` that have a run.json."""
    for pattern in ("runs/*/*", "sweeps/*/*/*"):
        for record in outputs.glob(f"{pattern}/{NAME}"):
            directory = record.parent
            its_name = directory.relative_to(outputs).parts[1]
            if not directory.is_symlink() and name in (None, its_name):
                yield directory


def label(directory: Path, outputs: Path) -> str:
    """Return the short name of a run: `<name>/<stamp>`, of a trial `<name>/<stamp>/<n>`."""
    return directory.relative_to(outputs).as_posix().partition("/")[2]


def find_run(reference: str, outputs: Path, name: str | None) -> Path:
    """Return the run directory that `reference` means: its path, its label, or `latest`.

    `latest` is the newest run, by its stamp, that succeeded and has an adapter of its own: of
    `name`, or of all names if that is None. Raises `Refused` where there is none.
    """
    if reference == LATEST:
        newest = _newest(outputs, name)
        if newest is None:
            raise _no_latest(outputs, name)
        return newest
    given = Path(reference).expanduser()
    for directory in (given, outputs / "runs" / given, outputs / "sweeps" / given):
        if directory.is_dir():
            read_run(directory)
            return directory.parent / directory.readlink() if directory.is_symlink() else directory
    known = list(run_directories(outputs))
    near = closest(reference, [str(d) for d in known] + [label(d, outputs) for d in known])
    hint = f"did you mean {near}?" if near else "python -m pipeline.runs ls shows what there is"
    raise Refused(f"run={reference}", "no such run directory", hint)


def _no_latest(outputs: Path, name: str | None) -> Refused:
    if name is None:
        found = f"no run under {outputs / 'runs'} has succeeded yet"
        return Refused(f"run={LATEST}", found, "train first: python -m pipeline")
    found = f"no run named {name} under {outputs / 'runs'} has succeeded yet"
    names = {label(d, outputs).partition("/")[0] for d in run_directories(outputs)} - {name}
    near = closest(name, names)
    hint = f"did you mean name={near}?" if near else f"train first: python -m pipeline name={name}"
    return Refused(f"run={LATEST}", found, hint)


def update_latest(run_directory: Path) -> None:
    """Point `outputs/runs/<name>/latest` at that name's newest run that `latest` may mean.

    Does nothing for a directory that is not `outputs/runs/<name>/<stamp>`, a trial's for example.
    """
    config = read_run(run_directory)["config"]
    outputs, name = Path(config.get("outputs", "outputs")), str(config.get("name"))
    runs = outputs / "runs" / name
    if run_directory.resolve().parent != runs.resolve():
        return
    with hold(runs / f".{LATEST}.lock", wait=True), reported(runs / LATEST):
        newest = _newest(outputs, name)
        if newest is not None:
            replace_link(runs / LATEST, newest)


def _newest(outputs: Path, name: str | None) -> Path | None:
    runs = (d for d in run_directories(outputs, name) if d.parts[len(outputs.parts)] == "runs")
    for directory in sorted(runs, key=lambda path: path.name, reverse=True):
        with contextlib.suppress(PipelineError):
            run = read_run(directory)
            train = run["stages"].get("train", {})
            # One that only scored or served another's adapter would hide the run that trained it.
            own = "train" in run["config"].get("stages", ("train",))
            if run["status"] == "succeeded" and own and train.get("status") in ("ran", "reused"):
                return directory
    return None
