"""prepare: conversations or text in, token rows with a loss mask and a report on them out."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

from stages.artifacts import BaseModel, Prepared, Reporter
from stages.data.doctor.diagnosis import diagnose
from stages.data.doctor.report import write_doctor
from stages.data.encoding.given_template import read_given, write_template
from stages.data.gather import Gathered, gather
from stages.data.reading.hub import hub_files
from stages.data.scratch import Scratch
from stages.data.selection.select import select
from stages.data_settings import Data
from stages.errors import InputError
from stages.inputs import SPLITS, DataFile, find_files


def prepare(data: Data, seed: int, *, model: BaseModel, report: Reporter, out: Path) -> Prepared:
    """Write `{train,valid,test}.safetensors`, the same rows as JSONL, and the data doctor's report.

    The same rows, seed and tokenizer give the same bytes, whatever the number of processes. Needs
    no MLX, and a memory that hardly grows with the rows. Raises InputError at rows that cannot be
    used, after naming the first twenty, and where no row is left to train on.
    """
    chat_template = read_given(data.chat_template)
    files, passed_over = _files(data)
    out.mkdir(parents=True, exist_ok=True)
    with Scratch(out / "scratch") as scratch:
        gathered = gather(
            files, data, model=model.directory, chat_template=chat_template, scratch=scratch,
            report=report, out=out,
        )  # fmt: skip
        if gathered.faults and data.on_error == "fail":
            raise _refusal(gathered, report)
        columns = gathered.ledger.finish()
        if not len(columns.split):
            raise _nothing_left(data, gathered)
        selection = select(columns, data, seed)
        for split in SPLITS:
            scratch.write_split(out, split, selection.indices[split])
        findings = diagnose(
            data, seed, files=files, passed_over=passed_over, gathered=gathered, columns=columns,
            selection=selection, scratch=scratch, model=model.directory, report=report,
        )  # fmt: skip
    if chat_template is not None:
        write_template(out, chat_template)
    for line in write_doctor(findings, out):
        report.log(line)
    return Prepared(directory=out, metrics=findings.metrics)


def _files(data: Data) -> tuple[list[DataFile], list[str]]:
    files, passed_over = find_files(data.path)
    on_hub, splits_passed_over = hub_files(data)
    every = sorted([*files, *on_hub], key=lambda file: file.source)
    return every, [*passed_over, *splits_passed_over]


def _refusal(gathered: Gathered, report: Reporter) -> InputError:
    """Name the faults on the report, and return the first with their number."""
    first, count = gathered.faults[0], gathered.fault_count
    if count == 1:
        return InputError(first.where, first.found, first.mend)
    for found, alike in groupby(gathered.faults, key=lambda fault: fault.found):
        places = [fault.where for fault in alike]
        others = "".join(f", {place.removeprefix(_file(places[0]))}" for place in places[1:])
        report.log(f"{places[0]}{others}: {found}")
    if count > len(gathered.faults):
        report.log(f"… and {count - len(gathered.faults):,} more")
    found = f"{first.found} (the first of {count:,} records that cannot be used, listed above)"
    mend = f"{first.mend}, or " if first.mend else ""
    return InputError(first.where, found, f"{mend}set data.on_error=skip to set them aside")


def _file(where: str) -> str:
    """Return `rows.jsonl:` of `rows.jsonl:7:13`, so that more lines of it can be listed."""
    path = re.match(r".*?(?=:\d+(:\d+)?$)", where)
    return path[0] if path else where


def _nothing_left(data: Data, gathered: Gathered) -> InputError:
    where = data.path if isinstance(data.path, str) else ", ".join(data.path)
    rows, notes = sum(gathered.tally.formats.values()), gathered.tally.notes
    if notes["dropped_overlong"]:
        found = f"none of {rows:,} rows fits in {data.max_seq_length} tokens"
        cut = "" if data.overlong == "truncate_left" else (
            ", or set data.overlong=truncate_left to cut conversations and texts at their beginning"
        )  # fmt: skip
        return InputError(where, found, f"raise data.max_seq_length{cut}")
    if gathered.fault_count:
        found = f"none of {gathered.fault_count:,} records can be used, the first: "
        found += gathered.faults[0].found
        return InputError(gathered.faults[0].where, found, gathered.faults[0].mend)
    if not rows:
        found = f"data.convert returned no row for any of {gathered.records.total():,} records"
        return InputError(where, found, f"mend {data.convert}")
    if notes["empty_answer"]:
        return InputError(where, f"the answers of all {rows:,} rows are empty", "add answers")
    found = f"none of {rows:,} rows has a token to train on"
    return InputError(where, found, "add answers to be trained")
