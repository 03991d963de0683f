"""Metrics of answers and losses that can be counted by hand."""

import math

import pytest

from pipeline.summary import COMPARED
from stages.evaluation.metrics import (
    DEFINITIONS,
    answer_metrics,
    is_json,
    loss_metrics,
    score,
    text_metrics,
)

ANSWERS = [
    # (reference, answer, finish reason)
    ('{"a": 1}', '{"a": 1}', "stop"),  # right
    ('{"a": 1}', ' {"a": 1}\n', "stop"),  # right: white space at the ends is no mistake
    ('{"a": 1}', '{"a":1}', "stop"),  # other text, still JSON
    ("[2]", '{"a": ', "length"),  # cut short
    ("[2]", '[2] and "more"', "stop"),  # JSON and more is no JSON
    ("Yes, gladly.", "Yes, gladly.", "stop"),  # right, and no JSON was expected
    ("Yes, gladly.", "", "length"),
    ("7", "7", "length"),  # right; a bare number is no JSON object
]


def test_answer_metrics_by_hand() -> None:
    """4 of 8 are right, 5 of 8 ended themselves, 3 of the 5 JSON references got JSON."""
    scores = [score(*answer) for answer in ANSWERS]
    assert [one.exact_match for one in scores] == [True, True, False, False, False, True, False,
                                                   True]  # fmt: skip
    assert answer_metrics(scores) == {"exact_match": 0.5, "stop_rate": 0.625, "json_valid": 0.6}


def test_no_metric_of_nothing() -> None:
    """Without answers, tokens or JSON references there is no share to state."""
    assert answer_metrics([]) == {}
    assert answer_metrics([score("yes", "yes", "stop")]) == {"exact_match": 1.0, "stop_rate": 1.0}
    assert loss_metrics(0.0, 0) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", True), ("[]", True), (' \n{"a": [1, null]} ', True), ('"text"', False), ("3", False),
        ("true", False), ("", False), ("{'a': 1}", False), ('{"a": NaN}', False), ("[1,]", False),
        ("[-Infinity]", False), ("[" * 100_000, False),
    ],
)  # fmt: skip
def test_json_is_one_object_or_array(text: str, expected: bool) -> None:
    """Only a whole JSON object or array counts, by the standard."""
    assert is_json(text) is expected


def test_loss_metrics_by_hand() -> None:
    """12 nats over 4 tokens are 3 each; a loss beyond floating point has no finite perplexity."""
    assert loss_metrics(12.0, 4) == {"loss": 3.0, "perplexity": pytest.approx(20.0855369)}
    assert loss_metrics(1e6, 1)["perplexity"] == math.inf


def test_bits_per_byte_by_hand() -> None:
    """Each token of probability 1/4 is 2 bits: four tokens that spell 16 bytes are half a bit for
    each. Without a byte there is nothing to divide by."""
    assert text_metrics(4 * math.log(4), 16) == {"bits_per_byte": pytest.approx(0.5)}
    assert text_metrics(4.0, 0) == {}


def test_every_metric_is_shown() -> None:
    """The table of a run names what is defined here, in this order."""
    assert list(COMPARED) == list(DEFINITIONS)
