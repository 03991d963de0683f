"""What is measured, from losses and answers alone; each metric is defined here, once."""

from __future__ import annotations

import json
import math
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
    "stop_rate": "share of answers that the model ended itself, before max_tokens",
}


@dataclass(frozen=True, slots=True)
class Score:
    """What one answer was worth."""

    exact_match: bool
    json_valid: bool | None
    """None where the reference is no JSON."""
    stopped: bool


def score(reference: str, answer: str, finish_reason: str) -> Score:
    """Judge one answer."""
    return Score(
        exact_match=answer.strip() == reference.strip(),
        json_valid=is_json(answer) if is_json(reference) else None,
        stopped=finish_reason == "stop",
    )


def is_json(text: str) -> bool:
    """Tell whether `text` is one JSON object or array, by RFC 8259 (no NaN, no Infinity)."""
    try:
        return isinstance(json.loads(text, parse_constant=_refuse), dict | list)
    # Thousands of brackets exhaust the parser's stack.
    except (ValueError, RecursionError):
        return False


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
    return metrics


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def _refuse(constant: str) -> Any:
    raise ValueError(constant)
