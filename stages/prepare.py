"""prepare: rows of conversations or text in, token rows with a loss mask out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stages.artifacts import BaseModel, Prepared, Reporter
from stages.data.encoder import Encoder, open_encoder
from stages.data.formats import Row
from stages.data.rows import Supervised, Tokens, write_rows
from stages.data.sources import SPLITS, read_source
from stages.data.splits import divide
from stages.errors import InputError, StopRequested
from stages.models.tokenizer import load_tokenizer
from stages.settings import Data

FORMAT = 1
BATCH_ROWS = 256
"""Rows encoded between two looks at `report.stop_requested`."""


@dataclass(slots=True)
class Split:
    """The rows of one split as far as they are encoded."""

    rows: list[Row] = field(default_factory=list)
    encoded: list[tuple[Tokens, Supervised]] = field(default_factory=list)
    dropped_overlong: int = 0


def prepare(data: Data, seed: int, *, model: BaseModel, report: Reporter, out: Path) -> Prepared:
    """Write `{train,valid,test}.safetensors`, the same rows as JSONL, and `prepared.json`.

    The same rows, seed and tokenizer give the same bytes. Needs no MLX. Raises InputError at the
    first row that cannot be used, and where no row is left to train on.
    """
    rows = _splits(data, seed)
    encoder = open_encoder(data, load_tokenizer(model.directory), model.directory)
    splits = _encode(rows, encoder, data, report)
    if not splits["train"].rows:
        found = f"none of {len(rows['train'])} training rows fits in {data.max_seq_length} tokens"
        raise InputError(data.path, found, "raise data.max_seq_length")
    counts = {name: _counts(split) for name, split in splits.items()}
    out.mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        write_rows(out / f"{name}.safetensors", split.encoded)
        _write_jsonl(out / f"{name}.jsonl", split.rows)
        report.log(_line(name, counts[name]))
    described = {
        "format": FORMAT,
        "data_format": data.format,
        "supervise": data.supervise,
        **encoder.identity,
        "splits": counts,
    }
    text = json.dumps(described, indent=2) + "\n"
    (out / "prepared.json").write_text(text, encoding="utf-8", newline="\n")
    return Prepared(directory=out, metrics=_metrics(counts))


def _splits(data: Data, seed: int) -> dict[str, list[Row]]:
    """Return the rows of each split: given ones as they are, missing ones taken from train."""
    given = read_source(data.path, data.format)
    parts = divide(
        given["train"],
        seed,
        valid_fraction=0.0 if "valid" in given else data.valid_fraction,
        test_fraction=0.0 if "test" in given else data.test_fraction,
    )
    return parts | {name: rows for name, rows in given.items() if name != "train"}


def _encode(
    rows: dict[str, list[Row]], encoder: Encoder, data: Data, report: Reporter
) -> dict[str, Split]:
    splits = {name: Split() for name in SPLITS}
    total, done = sum(map(len, rows.values())), 0
    for name, split in splits.items():
        for batch in _batches(rows[name]):
            if report.stop_requested():
                raise StopRequested
            for row, pair in zip(batch, encoder.encode(batch), strict=True):
                if len(pair[0]) <= data.max_seq_length:
                    split.rows.append(row)
                    split.encoded.append(pair)
                elif data.overlong == "error":
                    raise _overlong(row, len(pair[0]), data.max_seq_length)
                else:
                    split.dropped_overlong += 1
            done += len(batch)
            report.progress(done, total, {})
    return splits


def _batches(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), BATCH_ROWS):
        yield rows[start : start + BATCH_ROWS]


def _overlong(row: Row, length: int, longest: int) -> InputError:
    found = f"its row has {length} tokens, more than data.max_seq_length={longest}"
    mend = "shorten it, raise data.max_seq_length, or set data.overlong=drop"
    return InputError(row.where, found, mend)


def _counts(split: Split) -> dict[str, int]:
    lengths = [len(tokens) for tokens, _ in split.encoded]
    return {
        "rows": len(lengths),
        "tokens": sum(lengths),
        "supervised_tokens": sum(int(supervised.sum()) for _, supervised in split.encoded),
        "longest": max(lengths, default=0),
        "dropped_overlong": split.dropped_overlong,
    }


def _line(name: str, counts: dict[str, int]) -> str:
    line = (
        f"{name}: {counts['rows']:,} rows, {counts['tokens']:,} tokens, "
        f"{counts['supervised_tokens']:,} supervised, longest {counts['longest']:,}"
    )
    dropped = counts["dropped_overlong"]
    return f"{line}, {dropped:,} dropped as overlong" if dropped else line


def _write_jsonl(path: Path, rows: Sequence[Row]) -> None:
    lines = [
        json.dumps(row.content | {"source": row.source}, ensure_ascii=False) + "\n" for row in rows
    ]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def _metrics(counts: dict[str, dict[str, int]]) -> dict[str, float]:
    metrics = {
        f"prepare.{name}.{key}": float(split[key])
        for name, split in counts.items()
        for key in ("rows", "tokens", "supervised_tokens")
    }
    dropped = sum(split["dropped_overlong"] for split in counts.values())
    return metrics | {"prepare.dropped_overlong": float(dropped)}
