"""What a comparison leaves: `answers.jsonl`, `report.json`, and a few answers to look at."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from stages.errors import InputError
from stages.evaluation.metrics import DEFINITIONS
from stages.evaluation.questions import Question
from stages.evaluation.scoring import Answer, Scores
from stages.settings import Evaluate

FORMAT = 1
ANSWERS_FILE = "answers.jsonl"
REPORT_FILE = "report.json"
_SHOWN_CHARACTERS = 90

Line = dict[str, Any]
"""One question with the answers to it, as in answers.jsonl."""


def lines_of(name: str, scores: Scores, before: Sequence[Line] | None = None) -> list[Line]:
    """Return a line for each question with the answer of `name`, added to the lines of `before`."""
    lines = before or [_asked(question) for question in scores.questions]
    return [
        line | {name: _said(answer)} for line, answer in zip(lines, scores.answers, strict=True)
    ]


def read_lines(directory: Path, scores: Scores) -> list[Line]:
    """Return the lines of an earlier report; raises InputError unless it asked the same."""
    path = directory / ANSWERS_FILE
    try:
        *texts, _ = path.read_text(encoding="utf-8").split("\n")
        lines = [json.loads(text) for text in texts]
    except (OSError, ValueError) as error:
        found = f"cannot be read ({type(error).__name__})"
        raise InputError(str(path), found, "score the base again") from error
    wanted = [_asked(question) for question in scores.questions]
    if [{key: line[key] for key in _ASKED if key in line} for line in lines] != wanted:
        raise InputError(str(path), "holds the answers to other questions", "score the base again")
    return lines


def write_report(
    out: Path,
    lines: Sequence[Line],
    metrics: Mapping[str, float],
    counts: Mapping[str, Mapping[str, int]],
    evaluate: Evaluate,
) -> None:
    """Write both files; the same arguments give the same bytes."""
    out.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (out / ANSWERS_FILE).write_text(text, encoding="utf-8", newline="\n")
    described = {
        "format": FORMAT,
        "metrics": {k: v if math.isfinite(v) else None for k, v in metrics.items()},
        "counts": counts,
        "definitions": DEFINITIONS,
        "answers": {
            "question": "the last trained assistant turn of each row, unless it calls a tool",
            "temperature": 0,
            "max_tokens": evaluate.max_tokens,
        },
    }
    text = json.dumps(described, indent=2) + "\n"
    (out / REPORT_FILE).write_text(text, encoding="utf-8", newline="\n")


def side_by_side(lines: Sequence[Line], count: int) -> str:
    """Return the first `count` answers of the test rows (of all, where there are none) as text."""
    shown = ([line for line in lines if line["split"] == "test"] or list(lines))[:count]
    blocks = [f"{len(shown)} of {len(lines)} answers, the others are in {ANSWERS_FILE}"]
    for number, line in enumerate(shown, 1):
        told = [f"{number:>2}  prompt      {_short(line['prompt'][-1]['content'])}",
                f"    expected    {_short(line['reference'])}"]  # fmt: skip
        for name in ("base", "tuned"):
            mark = "✓" if line[name]["exact_match"] else "✗"
            told.append(f"    {name:<9} {mark} {_short(line[name]['text'])}")
        blocks.append("\n".join(told))
    return "\n\n".join(blocks)


_ASKED = tuple(field.name for field in fields(Question))


def _asked(question: Question) -> Line:
    line = asdict(question) | {"prompt": list(question.prompt)}
    return {key: value for key, value in line.items() if key != "tools" or value}


def _said(answer: Answer) -> Line:
    return {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "completion_tokens": answer.completion_tokens,
        "exact_match": answer.score.exact_match,
        "json_valid": answer.score.json_valid,
        "slots": asdict(answer.score.slots) if answer.score.slots else None,
    }


def _short(text: str) -> str:
    line = text.replace("\n", "⏎ ")
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[: _SHOWN_CHARACTERS - 1]}…"
