"""What a person should know or do about the data, in short sentences."""

from __future__ import annotations

from collections.abc import Iterable

from stages.data.doctor.findings import Findings, Split
from stages.data.doctor.privacy import EMAIL

FEW_ROWS = 50
_REPEATED = 0.01  # share of training rows from which on repeated ones are worth a word
_SPLITS = {"train": "training", "valid": "validation", "test": "test"}
_SHOWN = 3


def advice(findings: Findings) -> list[str]:
    """Return what holds of the data, the gravest first; data without a flaw gives none."""
    return [
        *_faults(findings), *_passed_over(findings), *_leaks(findings), *_lengths(findings),
        *_private(findings), *_answers(findings), *_repeated(findings), *_encodings(findings),
        *_sizes(findings),
    ]  # fmt: skip


def counted(count: int, noun: str) -> str:
    """Return `1 row` or `1,200 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(counts: Iterable[tuple[str, int]]) -> str:
    """Return `github 2, hugging face 1`."""
    return ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts)


def share(part: int, whole: int) -> str:
    """Return how much of `whole` that is, `12 %`; less than ten with a decimal."""
    percent = 100 * part / whole
    return "<0.1 %" if 0 < percent < 0.1 else f"{percent:.{1 if percent < 9.95 else 0}f} %"


def _split(findings: Findings, name: str) -> Split | None:
    split = findings.splits.get(name)
    return split if split is not None and split.found.rows else None


def _faults(findings: Findings) -> Iterable[str]:
    if findings.fault_count:
        yield f"{counted(findings.fault_count, 'record')} cannot be used: see quarantine.jsonl"


def _passed_over(findings: Findings) -> Iterable[str]:
    files = findings.passed_over
    if files:
        more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
        names = ", ".join(files[:_SHOWN]) + more
        yield f"{counted(len(files), 'file')} not read, as other names say a split: {names}"


def _leaks(findings: Findings) -> Iterable[str]:
    held_out = [name for name in ("valid", "test") if _split(findings, name) is not None]
    found = {name: findings.splits[name].found for name in held_out}
    train = _split(findings, "train")
    removed = train.found.removed_leaks if train is not None else 0
    done = f"{counted(removed, 'training row')} {'was' if removed == 1 else 'were'} removed"
    todo = "data.leakage=drop removes those training rows"
    for counts, how, then in (
        ({name: found[name].asked_in_train for name in held_out}, "", done if removed else todo),
        ({name: findings.near.in_train.get(name, 0) for name in held_out}, "nearly ",
         "scores on such rows flatter the model"),
    ):  # fmt: skip
        parts = [
            f"{count:,} of {counted(found[name].rows, f'{_SPLITS[name]} row')}"
            for name, count in counts.items() if count
        ]  # fmt: skip
        if parts:
            asks = "asks" if sum(counts.values()) == 1 else "ask"
            yield f"{' and '.join(parts)} {asks} {how}what train asks: {then}"


def _lengths(findings: Findings) -> Iterable[str]:
    limit = f"data.max_seq_length={findings.settings['max_seq_length']}"
    for note, done in (("dropped_overlong", "dropped"), ("truncated", "cut at the beginning")):
        count = findings.notes.get(note, 0)
        if count:
            of = share(count, findings.rows_read)
            were = "was" if count == 1 else "were"
            yield f"{counted(count, 'row')} ({of}) {were} {done} as longer than {limit}"


def _private(findings: Findings) -> Iterable[str]:
    secrets, addresses = findings.secrets, findings.private.get(EMAIL, 0)
    found = []
    if secrets:
        found.append(f"{counted(sum(secrets.values()), 'likely secret')} "
                     f"({listed(secrets.items())})")  # fmt: skip
    if addresses:
        found.append(f"{addresses:,} e-mail address{'' if addresses == 1 else 'es'}")
    if found:
        done = "replaced" if findings.redacted else "found: data.redact=true replaces them"
        were = "was" if addresses + sum(secrets.values()) == 1 else "were"
        yield f"{' and '.join(found)} {were} {done}"


def _answers(findings: Findings) -> Iterable[str]:
    empty = findings.notes.get("empty_answer", 0)
    if empty:
        yield f"{counted(empty, 'row')} with an empty answer: such answers are not trained"
    nothing = findings.notes.get("supervises_nothing", 0)
    if nothing:
        rows = counted(nothing, "row")
        yield f"{rows} without a supervised token: left out, as nothing is learned"


def _repeated(findings: Findings) -> Iterable[str]:
    train = _split(findings, "train")
    if train is None or train.found.removed_duplicates:
        return
    repeated, rows = train.found.duplicates, train.found.rows
    if repeated and repeated >= _REPEATED * rows:
        of = f"{repeated:,} of {counted(rows, 'training row')} ({share(repeated, rows)})"
        repeat = "repeats" if repeated == 1 else "repeat"
        yield f"{of} {repeat} an earlier one: data.duplicates=drop removes them"


def _encodings(findings: Findings) -> Iterable[str]:
    files = list(findings.repairs)
    if files:
        more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
        names = ", ".join(files[:_SHOWN]) + more
        read = f"{counted(sum(findings.repairs.values()), 'byte')} read as Windows-1252"
        yield f"{counted(len(files), 'file')} not UTF-8, {read}: {names}"


def _sizes(findings: Findings) -> Iterable[str]:
    splits = findings.splits
    rows = splits["train"].rows
    if rows < FEW_ROWS:
        yield f"only {counted(rows, 'training row')}: the model may learn them by heart"
    missing = [name for name in ("valid", "test") if name in splits and not splits[name].rows]
    for name in missing:
        purpose = {"valid": "validation", "test": "testing"}[name]
        held_out = f"data.{name}_fraction"
        if findings.settings[f"{name}_fraction"]:
            todo = f"too few differ for {held_out}; add rows, or give a file of them"
        else:
            todo = f"{held_out} holds some out"
        yield f"no row is held out for {purpose}: {todo}"
