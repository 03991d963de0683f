"""The model card of the embedded model: its words, and the numbers that a run fills in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.models.pretraining.corpus import HELD_OUT

PROMPTS = (
    "Once upon a time there was",
    "The old king said to his daughter:",
    "On Monday morning",
    "The children ran down to the river and",
)
"""What stories are drawn from, one each: the first that came, none chosen."""

TALK = (
    (("user", "What is your name?"),),
    (("user", "Which day comes after Friday?"),),
    (("user", "Repeat: seven green bottles"),),
    (
        ("system", "Answer with one line of JSON. Keys: name and city."),
        ("user", "Marlene moved to Lisbon last year."),
    ),
)
"""What is asked, and answered greedily."""

_DATA_EXPONENT = 0.095
"""Loss falls as tokens to this power, at a fixed size (Kaplan et al. 2020, arXiv 2001.08361)."""


def numbers(record: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """Return what the card says of a run and the one it went on from, by the names in the card."""
    metrics, config = record["metrics"], record["config"]
    seconds = [run["stages"]["train"]["seconds"] for run in (first, record)]
    tokens = [round(run["metrics"]["train.supervised_tokens"]) for run in (first, record)]
    tales = metrics["tuned.test.bits_per_byte"]
    goal = 1.5
    more = (tales / goal) ** (1 / _DATA_EXPONENT)
    return {
        "parameters": round(metrics["train.trainable_parameters"]),
        "tokens": sum(tokens),
        "first_tokens": tokens[0],
        "first_loss": first["metrics"]["valid.loss"],
        "steps": round(sum(run["metrics"]["train.steps"] for run in (first, record))),
        "rows": config["train"]["batch_size"],
        "rates": " and ".join(
            str(run["config"]["optimizer"]["learning_rate"]) for run in (first, record)
        ),
        "minutes": sum(seconds) / 60,
        "speed": sum(tokens) / sum(seconds),
        "books": metrics["tuned.valid.bits_per_byte"],
        "books_before": metrics["base.valid.bits_per_byte"],
        "books_loss": metrics["tuned.valid.loss"],
        "tales": tales,
        "tales_before": metrics["base.test.bits_per_byte"],
        "tales_loss": metrics["tuned.test.loss"],
        "goal": goal,
        "more": more,
        "more_tokens": more * sum(tokens) / 1e6,
        "seen": sum(tokens) / 1e6,
        "ideal": 20 * metrics["train.trainable_parameters"] / 1e6,
        "held_out": "; ".join(HELD_OUT),
    }


CARD = (Path(__file__).parent / "card.md").read_text(encoding="utf-8")
