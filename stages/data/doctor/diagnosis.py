"""From what was read and selected to the data doctor's findings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.artifacts import Reporter
from stages.data.doctor import findings
from stages.data.doctor.findings import Findings, describe
from stages.data.formats.parser import Row
from stages.data.gather import Gathered
from stages.data.reading.hub import commits
from stages.data.reading.records import Fault
from stages.data.scratch import Scratch
from stages.data.selection.identity import question_text
from stages.data.selection.ledger import Columns
from stages.data.selection.near_duplicates import near_duplicates, searched
from stages.data.selection.select import Indices, Selection
from stages.data_settings import Data
from stages.errors import StopRequested
from stages.inputs import DataFile, data_paths
from stages.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_EXAMPLES = 5
_SETTINGS = ("max_seq_length", "overlong", "supervise", "on_error", "encoding", "duplicates",
             "leakage", "valid_fraction", "test_fraction")  # fmt: skip
_LOOK_EVERY = 1000


def diagnose(
    data: Data,
    seed: int,
    *,
    files: Sequence[DataFile],
    passed_over: Sequence[str],
    gathered: Gathered,
    columns: Columns,
    selection: Selection,
    scratch: Scratch,
    model: Path,
    report: Reporter,
) -> Findings:
    """Return what is known about the rows; raises StopRequested when asked to stop meanwhile."""
    tally, identity = gathered.tally, gathered.identity
    tokenizer = load_tokenizer(model)
    kinds = [kind for kind in ("chat", "text") if tally.kinds[kind]]
    names = data_paths(data.path)
    return Findings(
        kind=kinds[0] if len(kinds) == 1 else "mixed",
        settings={name: getattr(data, name) for name in _SETTINGS},
        sources=tuple(_source(data, n, name, files, gathered) for n, name in enumerate(names)),
        passed_over=tuple(Path(name).name for name in passed_over),
        formats=dict(sorted(tally.formats.items())),
        notes=dict(sorted(tally.notes.items())),
        splits={
            name: describe(
                columns.lengths[rows],
                int(columns.supervised[rows].sum(dtype=np.int64)),
                selection.counts[name],
            )
            for name, rows in selection.indices.items()
        },
        near=_near(columns, selection, scratch, seed, report),
        fault_count=gathered.fault_count,
        faults=tuple(_named(fault) for fault in gathered.faults),
        repairs={file.name: count for file, count in gathered.repairs.items()},
        private=dict(sorted(tally.private.items())),
        redacted=data.redact,
        template=_template(data, gathered) if tally.kinds["chat"] else None,
        tokenizer_sha256=identity["tokenizer_sha256"],
        stop_tokens=tuple(
            (token, str(tokenizer.convert_ids_to_tokens(token)))
            for token in identity["stop_token_ids"]
        ),
        examples=_examples(selection.indices["train"], scratch, tokenizer),
    )


def _source(
    data: Data, number: int, path: str, files: Sequence[DataFile], gathered: Gathered
) -> findings.Source:
    mine = [file for file in files if file.source == number]
    on_hub = commits(data)
    return findings.Source(
        # A folder's own name: the report is the same wherever it lies.
        path=path if number in on_hub else Path(path).name,
        files=tuple(
            findings.SourceFile(name=f.name, split=f.split, records=gathered.records[f])
            for f in mine
        ),
        weight=data.weights[number] if data.weights else None,
        revision=on_hub.get(number),
    )


def _named(fault: Fault) -> Fault:
    """Name the record without the folder that the file lies in."""
    start = max(fault.where.rfind(fault.source), 0)
    return replace(fault, where=fault.where[start:])


def _template(data: Data, gathered: Gathered) -> findings.TemplateUse:
    return findings.TemplateUse(
        name=data.chat_template or "the tokenizer's own",
        sha256=gathered.identity["chat_template_sha256"],
        given=data.chat_template is not None,
        treatments=tuple(gathered.identity["treatments"]),
    )


def _near(
    columns: Columns, selection: Selection, scratch: Scratch, seed: int, report: Reporter
) -> findings.NearRows:
    rows = searched(columns.question, seed)

    def questions() -> Iterator[tuple[int, int, str]]:
        for number, index in enumerate(rows.tolist()):
            if number % _LOOK_EVERY == 0 and report.stop_requested():
                raise StopRequested
            row = _row(scratch, index)
            yield index, int(selection.assigned[index]), question_text(row)

    found = near_duplicates(questions(), len(columns.question))
    return findings.NearRows(
        searched=found.searched,
        rows=found.rows,
        within=found.within,
        in_train=found.in_train,
        examples=tuple(
            (_row(scratch, one).source, _row(scratch, other).source, likeness)
            for one, other, likeness in found.examples
        ),
    )


def _row(scratch: Scratch, index: int) -> Row:
    content = json.loads(scratch.read(index)[2])
    source = content.pop("source")
    return Row(content, source, source)


def _examples(
    rows: Indices, scratch: Scratch, tokenizer: PreTrainedTokenizerBase
) -> tuple[findings.Example, ...]:
    """Show rows from the whole length of the training data."""
    places = np.unique(np.linspace(0, len(rows) - 1, SHOWN_EXAMPLES).round().astype(np.int64))
    examples = []
    for index in rows[places].tolist():
        tokens, supervised, _ = scratch.read(index)
        marked = zip(tokens.tolist(), (supervised != 0).tolist(), strict=True)
        pieces = tuple(
            (str(tokenizer.decode([token for token, _ in group])), flag)
            for flag, group in groupby(marked, key=lambda pair: pair[1])
        )
        examples.append(
            findings.Example(
                source=_row(scratch, index).source,
                pieces=pieces,
                tokens=len(tokens),
                supervised_tokens=int(supervised.sum()),
            )
        )
    return tuple(examples)
