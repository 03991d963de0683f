"""What is measured, from losses and answers alone; each metric is defined here, once."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DEFINITIONS = {
    "loss": "natural-log cross-entropy, mean over the supervised tokens of the scored rows",
    "perplexity": "e to the power of loss",
    "bits_per_byte": "of rows of text, the summed cross-entropy of the predicted tokens in bits "
    "(nats / ln 2), divided by the UTF-8 bytes of the text that they spell; special tokens have "
    "bits but no bytes, the first token of a row has neither (The Pile, arXiv 2101.00027)",
    "exact_match": "share of answers equal to the reference, both without white space at the ends",
    "json_valid": "of the rows whose reference is a JSON object or array, the share whose answer "
    "is one too, and nothing else",
    "slot_f1": "of the rows whose reference is a JSON object, F1 of the pairs of path and value in "
    "reference and answer, counted over all rows together (micro-averaged, as conlleval of "
    "CoNLL-2000 does for chunks); a path is all keys that lead to a value, values are compared as "
    "JSON, the items of a list stand under the list's path in any order, as often as they occur; "
    "an answer that is no JSON object has no pairs",
    "stop_rate": "share of answers that the model ended itself, before max_tokens",
}


@dataclass(frozen=True, slots=True)
class Slots:
    """How many pairs of a path and a value one answer and its reference hold."""

    shared: int
    expected: int
    """Of the reference."""
    answered: int


@dataclass(frozen=True, slots=True)
class Score:
    """What one answer was worth."""

    exact_match: bool
    json_valid: bool | None
    """None where the reference is no JSON."""
    slots: Slots | None
    """None where the reference is no JSON object."""
    stopped: bool


def score(reference: str, answer: str, finish_reason: str) -> Score:
    """Judge one answer."""
    expected, found = parse_json(reference), parse_json(answer)
    return Score(
        exact_match=answer.strip() == reference.strip(),
        json_valid=None if expected is None else found is not None,
        slots=_compare(expected, found) if isinstance(expected, dict) else None,
        stopped=finish_reason == "stop",
    )


def parse_json(text: str) -> dict[str, Any] | list[Any] | None:
    """Return what `text` is as one JSON object or array, by RFC 8259 (no NaN, no Infinity)."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    # Thousands of brackets exhaust the parser's stack.
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def loss_metrics(loss_sum: float, tokens: int) -> dict[str, float]:
    """Return loss and perplexity; nothing where there is no token."""
    if tokens == 0:
        return {}
    loss = loss_sum / tokens
    return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}


def text_metrics(loss_sum: float, text_bytes: int) -> dict[str, float]:
    """Return the bits per byte of a loss in nats; nothing where no byte is predicted."""
    return {"bits_per_byte": loss_sum / math.log(2) / text_bytes} if text_bytes else {}


def answer_metrics(scores: Sequence[Score]) -> dict[str, float]:
    """Return the share of each property; none of what no row can have."""
    metrics = {}
    if scores:
        metrics["exact_match"] = _share([one.exact_match for one in scores])
        metrics["stop_rate"] = _share([one.stopped for one in scores])
    if valid := [one.json_valid for one in scores if one.json_valid is not None]:
        metrics["json_valid"] = _share(valid)
    slots = [one.slots for one in scores if one.slots is not None]
    if expected := sum(one.expected for one in slots):
        answered = sum(one.answered for one in slots)
        metrics["slot_f1"] = 2 * sum(one.shared for one in slots) / (expected + answered)
    return metrics


def _compare(reference: dict[str, Any], answer: object) -> Slots:
    expected = _pairs(reference)
    found = _pairs(answer) if isinstance(answer, dict) else Counter()
    return Slots((expected & found).total(), expected.total(), found.total())


def _pairs(value: dict[str, Any]) -> Counter[tuple[tuple[str, ...], bool, object]]:
    """Count each pair of an object, as (path, whether the value is true or false, value)."""
    pairs: Counter[tuple[tuple[str, ...], bool, object]] = Counter()
    # Not recursive: what the parser could nest must not exhaust Python's own stack.
    waiting: list[tuple[tuple[str, ...], Any]] = [((), value)]
    while waiting:
        path, inner = waiting.pop()
        if isinstance(inner, dict):
            waiting += [((*path, key), below) for key, below in inner.items()]
        elif isinstance(inner, list):
            waiting += [(path, item) for item in inner]
        else:
            # To Python, true is 1.
            pairs[path, isinstance(inner, bool), inner] += 1
    return pairs


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def _refuse(constant: str) -> Any:
    raise ValueError(constant)
