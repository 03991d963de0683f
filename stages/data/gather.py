"""Read every file of the data: its token rows go to disk, their digests stay in memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from stages.artifacts import Reporter
from stages.data.chunks import Made, Tally, open_maker
from stages.data.pool import open_pool, processes_for
from stages.data.reading.hub import commits, read_hub
from stages.data.reading.records import Chunk, Fault
from stages.data.reading.sources import read
from stages.data.scratch import Scratch
from stages.data.selection.ledger import Ledger
from stages.data_settings import Data
from stages.errors import InputError, StopRequested
from stages.inputs import SPLITS, DataFile

SHOWN_FAULTS = 20
QUARANTINE = "quarantine.jsonl"


@dataclass(slots=True)
class Gathered:
    """What was read."""

    ledger: Ledger = field(default_factory=Ledger)
    tally: Tally = field(default_factory=Tally)
    records: Counter[DataFile] = field(default_factory=Counter)
    """Records read, those at fault included."""
    repairs: Counter[DataFile] = field(default_factory=Counter)
    """Bytes that were no UTF-8."""
    faults: list[Fault] = field(default_factory=list)
    """The first of the records that cannot be used, without their text."""
    fault_count: int = 0
    identity: dict[str, Any] = field(default_factory=dict)
    """What identifies the encoder."""


def gather(
    files: Sequence[DataFile], data: Data, *, model: Path, chat_template: str | None,
    scratch: Scratch, report: Reporter, out: Path,
) -> Gathered:  # fmt: skip
    """Put the token rows of every file into `scratch`, in order.

    Large inputs are encoded by several processes; their number decides no byte of the result.
    Records that cannot be used are counted and, with data.on_error=skip, written to
    `quarantine.jsonl` under `out`. Raises InputError at what concerns more than a record.
    """
    gathered, progress = Gathered(), _Progress(files)
    setup = partial(open_maker, data, model, chat_template)
    with ExitStack() as stack:
        pool = stack.enter_context(open_pool(setup, processes_for(progress.total_bytes)))
        quarantine = None
        for made in pool.map(_chunks(files, data)):
            if report.stop_requested():
                raise StopRequested
            _add(gathered, made, scratch)
            if made.faults and data.on_error == "skip":
                if quarantine is None:
                    path = out / QUARANTINE
                    quarantine = stack.enter_context(
                        path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n")
                    )
                quarantine.writelines(map(_quarantined, made.faults))
            report.progress(progress.after(made), progress.total_bytes, {})
    return gathered


def _chunks(files: Sequence[DataFile], data: Data) -> Iterator[Chunk]:
    on_hub = commits(data)
    for file in files:
        try:
            yield from read_hub(file, data) if file.source in on_hub else read(file, data.encoding)
        except InputError as error:
            if data.on_error == "skip":
                raise
            # Named with the faults of the other files, so that all can be mended at once.
            yield Chunk(file, (0,), (error,))


def _add(gathered: Gathered, made: Made, scratch: Scratch) -> None:
    scratch.append(made.tokens, made.supervised, made.lengths, made.texts)
    gathered.ledger.append(
        split=SPLITS.index(made.file.split),
        source=made.file.source,
        lengths=made.lengths,
        supervised=made.supervised_counts,
        digests=made.digests,
    )
    gathered.tally.add(made.tally)
    gathered.records[made.file] += made.records
    if made.tally.repairs:
        gathered.repairs[made.file] += made.tally.repairs
    gathered.fault_count += len(made.faults)
    shown = made.faults[: SHOWN_FAULTS - len(gathered.faults)]
    # The record itself may have 64 MiB.
    gathered.faults += [replace(fault, record="") for fault in shown]
    gathered.identity = made.identity


def _quarantined(fault: Fault) -> str:
    values = {"source": fault.source, "found": fault.found, "mend": fault.mend,
              "record": fault.record}  # fmt: skip
    return json.dumps(values, ensure_ascii=False) + "\n"


class _Progress:
    """How far reading has come, in bytes on disk; what lies on the hub counts as nothing."""

    def __init__(self, files: Sequence[DataFile]) -> None:
        paths = {file: Path(file.path).expanduser() for file in files}
        self._left = {f: p.stat().st_size if p.is_file() else 0 for f, p in paths.items()}
        self.total_bytes = sum(self._left.values())
        self._done_bytes = 0

    def after(self, made: Made) -> int:
        """Return the bytes done with the next chunk; a compressed file is done before its end."""
        step = min(made.size_bytes, self._left[made.file])
        self._left[made.file] -= step
        self._done_bytes += step
        return self._done_bytes
