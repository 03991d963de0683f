"""The record of one run, `run.json`: written at its start, replaced whole at each change.

A run directory holds one configuration, for ever, and one process at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from pipeline.durable import replace_link, reported
from pipeline.errors import Interrupted, PipelineError, Refused, Unable
from pipeline.locks import Held, hold
from pipeline.manifest import Entry
from pipeline.resolved import config_digest, differences, redact
from stages.durable import replace_file

FORMAT = 1
NAME = "run.json"
LOCK = ".lock"
Status = Literal["running", "succeeded", "failed", "interrupted"]
StageStatus = Literal["ran", "reused", "failed"]
_SHOWN_DIFFERENCES = 5


class RunRecord:
    """What is known about the run in `directory`, on the disk as soon as it is said here.

    Made by `start`. Secrets are redacted and numbers that are not finite are null in the file.
    """

    def __init__(self, directory: Path, fields: dict[str, Any]) -> None:
        self.directory = directory
        self._fields = fields
        self._save()

    @classmethod
    @contextmanager
    def start(
        cls,
        directory: Path,
        *,
        config: Mapping[str, Any],
        command: Sequence[str],
        model: Mapping[str, Any],
        environment: Mapping[str, Any],
        data: Sequence[Mapping[str, str]] = (),
        parent: str | None = None,
        study: str | None = None,
        trial: int | None = None,
    ) -> Iterator[RunRecord]:
        """Lock `directory` for the block, begin its record, and say at the end how the run ended.

        The status becomes `succeeded`, or by what the block raised `interrupted` or `failed`, then
        with `error`. An earlier record of the same configuration is begun anew.
        Raises `Refused` where another process is at work in `directory` or where it holds another
        configuration, `Unable` where it cannot be written.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(hold(directory / LOCK, wait=False))
            except Held as held:
                found = f"another run is at work here: {held.description}"
                mend = "wait for it, or start a run without naming its directory"
                raise Refused(str(directory), found, mend) from None
            _check_same(directory, config)
            record = cls(
                directory,
                {
                    "format": FORMAT,
                    "status": "running",
                    "name": config["name"],
                    "config": dict(config),
                    "config_digest": config_digest(config),
                    "command": list(command),
                    "parent": parent,
                    "started": _now(),
                    "finished": None,
                    "stages": {},
                    "model": dict(model),
                    "data": [dict(source) for source in data],
                    "metrics": {},
                    "environment": dict(environment),
                    "peak_memory_bytes": None,
                    "study": study,
                    "trial": trial,
                    "error": None,
                },
            )
            try:
                yield record
            except BaseException as error:
                # A full disk must not hide why the run failed.
                with suppress(Unable):
                    record._fail(error)
                raise
            record._finish("succeeded", None)

    @property
    def metrics(self) -> dict[str, float]:
        """Return the flat metrics of every stage so far."""
        return dict(self._fields["metrics"])

    @property
    def peak_memory_bytes(self) -> int | None:
        """Return the highest peak of any stage so far."""
        peak: int | None = self._fields["peak_memory_bytes"]
        return peak

    def stage(
        self,
        name: str,
        key: str,
        status: StageStatus,
        entry: Entry | None,
        resumed_from_step: int | None = None,
    ) -> None:
        """Say how a stage came out, take over its metrics, and link `<run>/<name>` to its files.

        `entry` is None for a failed stage. The seconds are what it took to make the entry, before
        it was gone on with too.
        """
        stage: dict[str, Any] = {"key": key, "status": status, "seconds": None}
        if resumed_from_step is not None:
            stage["resumed_from_step"] = resumed_from_step
        if entry is not None:
            stage.update(seconds=entry.seconds, created=entry.created)
            stage["peak_memory_bytes"] = entry.peak_memory_bytes
            self._fields["metrics"].update(entry.metrics)
            peaks = (self.peak_memory_bytes, entry.peak_memory_bytes)
            self._fields["peak_memory_bytes"] = max((p for p in peaks if p), default=None)
            self.link_stage(name, entry.directory)
        self._fields["stages"][name] = stage
        self._save()

    def link_stage(self, name: str, directory: Path) -> None:
        """Point `<run>/<name>` at a stage directory of the store, relative to where it lies."""
        with reported(self.directory / name):
            replace_link(self.directory / name, directory)

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, Interrupted | KeyboardInterrupt):
            self._finish("interrupted", None)
        elif isinstance(error, PipelineError):
            self._finish("failed", f"{error.where}: {error.found}")
        else:
            self._finish("failed", repr(error))

    def _finish(self, status: Status, error: str | None) -> None:
        self._fields.update(status=status, finished=_now(), error=error)
        self._save()

    def _save(self) -> None:
        fields = redact(self._fields)
        metrics = self._fields["metrics"].items()
        fields["metrics"] = {k: v if math.isfinite(v) else None for k, v in metrics}
        content = (json.dumps(fields, indent=2) + "\n").encode()
        path = self.directory / NAME
        with reported(path, len(content)):
            replace_file(path, content)


def read_run(directory: Path) -> dict[str, Any]:
    """Return the record in `directory`; `Refused` where there is none that can be read."""
    path = directory / NAME
    mend = "name a run directory (python -m pipeline.runs ls shows them)"
    with reported(path):
        try:
            fields = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            what = f"no {NAME} in it" if directory.is_dir() else "no such directory"
            raise Refused(str(directory), what, mend) from None
        except ValueError:
            raise Refused(str(path), "not a JSON file", mend) from None
    number = fields.get("format") if isinstance(fields, dict) else None
    if isinstance(number, int) and number > FORMAT:
        found = f"written in format {number}, this version reads {FORMAT}"
        raise Refused(str(path), found, "update mlx-lora-pipeline")
    if number != FORMAT or not _is_record(fields):
        raise Refused(str(path), "not the record of a run", mend)
    return dict(fields)


def _is_record(fields: Mapping[str, Any]) -> bool:
    tables = ("config", "stages", "metrics", "environment")
    texts = ("name", "config_digest", "started")
    return (
        all(isinstance(fields.get(key), dict) for key in tables)
        and all(isinstance(fields.get(key), str) for key in texts)
        and all(isinstance(stage, dict) for stage in fields["stages"].values())
        and fields.get("status") in get_args(Status)
    )


def _check_same(directory: Path, config: Mapping[str, Any]) -> None:
    """Refuse a directory that holds another configuration."""
    if not (directory / NAME).exists():
        return
    earlier = read_run(directory)
    if earlier["config_digest"] == config_digest(config):
        return
    lines = differences(earlier["config"], redact(config)) or ["a value that is kept secret"]
    more = len(lines) - _SHOWN_DIFFERENCES
    shown = ", ".join(lines[:_SHOWN_DIFFERENCES]) + (f" and {more} more" if more > 0 else "")
    raise Refused(
        str(directory),
        f"holds a run of another configuration: {shown}",
        "a run directory holds one configuration, for ever: start a run without naming it",
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
