"""The data doctor: what was found about the rows, as `doctor.json`, `doctor.html` and a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from stages.data.doctor.advice import advice
from stages.data.doctor.findings import Findings
from stages.data.doctor.page import page
from stages.data.doctor.table import table
from stages.data.reading.records import Fault

FORMAT = 1
JSON_FILE = "doctor.json"
PAGE_FILE = "doctor.html"


def write_doctor(findings: Findings, out: Path) -> list[str]:
    """Write both files into `out` and return the table, line by line.

    The same findings give the same bytes.
    """
    text = json.dumps(to_json(findings), indent=2, ensure_ascii=False) + "\n"
    for name, written in ((JSON_FILE, text), (PAGE_FILE, page(findings))):
        # A lone surrogate, of a file's name or a faulty record, is written as JSON escapes it.
        (out / name).write_bytes(written.encode("utf-8", "backslashreplace"))
    return table(findings)


def to_json(findings: Findings) -> dict[str, Any]:
    """Return what `doctor.json` holds: the findings by their names, and the advice."""
    plain: dict[str, Any] = _plain(findings)
    return {"format": FORMAT, **plain, "advice": advice(findings)}


def _plain(value: Any) -> Any:
    if isinstance(value, Fault):
        return {"where": value.where, "found": value.found, "mend": value.mend}
    if is_dataclass(value):
        return {spec.name: _plain(getattr(value, spec.name)) for spec in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return value
