"""Metrics of answers and losses that can be counted by hand."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.summary import COMPARED
from stages.evaluation.metrics import (
    DEFINITIONS,
    Slots,
    answer_metrics,
    loss_metrics,
    parse_json,
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
    """4 of 8 are right, 5 of 8 ended themselves, 3 of the 5 JSON references got JSON, all 3 pairs
    of the 3 objects were found."""
    scores = [score(*answer) for answer in ANSWERS]
    assert [one.exact_match for one in scores] == [True, True, False, False, False, True, False,
                                                   True]  # fmt: skip
    assert answer_metrics(scores) == {"exact_match": 0.5, "stop_rate": 0.625, "json_valid": 0.6,
                                      "slot_f1": 1.0}  # fmt: skip


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
    assert (parse_json(text) is not None) is expected


COMPARED_OBJECTS = [
    # (reference, answer, pairs in both, pairs of the reference, pairs of the answer)
    ('{"a": 1, "b": {"c": "x", "d": null}}', '{"b": {"d": null, "c": "x"}, "a": 1}', 3, 3, 3),
    ('{"a": 1, "b": {"c": "x"}}', '{"a": 2, "c": "x"}', 0, 2, 2),  # a path has all its keys
    ('{"a": {"b": 1}}', '{"a.b": 1}', 0, 1, 1),  # nor are a key's dots a path
    ('{"a": "x"}', '{"a": "x "}', 0, 1, 1),  # texts are compared letter by letter
    ('{"a": 1, "b": true, "c": "1"}', '{"a": 1.0, "b": 1, "c": 1}', 1, 3, 3),  # types count
    ('{"a": null}', '{"a": false}', 0, 1, 1),
    ('{"a": ["x", "y", "x"]}', '{"a": ["x", "x", "x"]}', 2, 3, 3),  # as often as both have it
    ('{"a": ["x", "y"]}', '{"a": ["y", "x"], "b": 0}', 2, 2, 3),  # in any order
    ('{"a": ["x"]}', '{"a": "x"}', 1, 1, 1),  # under the path of the list
    ('{"a": [{"b": 1}, {"b": 2}]}', '{"a": {"b": [2, 1]}}', 2, 2, 2),
    ('{"a": [], "b": {}}', '{"a": {}}', 0, 0, 0),  # what is empty holds no pair
    ("{}", '{"a": 1}', 0, 0, 1),
    ('{"a": 1}', '{"a": 1, "b": 2, "c": 3}', 1, 1, 3),
    ('{"a": 1, "b": 2}', '[{"a": 1}]', 0, 2, 0),  # no object, no pairs
    ('{"a": 1, "b": 2}', '{"a": 1', 0, 2, 0),
    ('{"a": 1, "b": 2}', "", 0, 2, 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reference", "answer", "shared", "expected", "answered"), COMPARED_OBJECTS
)
def test_slots_by_hand(
    reference: str, answer: str, shared: int, expected: int, answered: int
) -> None:
    """Which pairs of path and value are those of both."""
    assert score(reference, answer, "stop").slots == Slots(shared, expected, answered)


def test_slot_f1_by_hand() -> None:
    """Over all rows: of 26 pairs of the references and 24 of the answers 12 are shared. Where a
    reference is no object, there is none to find."""
    pairs = [(reference, answer) for reference, answer, *_ in COMPARED_OBJECTS]
    others = [("[1]", '{"a": 1}'), ("yes", '{"a": 1}')]
    scores = [score(reference, answer, "stop") for reference, answer in [*pairs, *others]]
    assert [one.slots for one in scores[-2:]] == [None, None]
    shared, expected, answered = (
        sum(row[place] for row in COMPARED_OBJECTS) for place in (2, 3, 4)
    )
    assert (shared, expected, answered) == (12, 26, 24)
    assert answer_metrics(scores)["slot_f1"] == 0.48


@pytest.mark.parametrize("reference", ["[1]", "yes", "{}", '{"a": []}'])
def test_no_slot_f1_without_slots(reference: str) -> None:
    """It is left out where no reference is an object that holds anything."""
    assert "slot_f1" not in answer_metrics([score(reference, '{"a": 1}', "stop")])


SCALARS = st.sampled_from([None, True, False, 0, 1, 1.0, 0.5, "", "x", "1", "null"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from("abc"), VALUES)


def leaves(value: Any, path: str = "") -> list[str]:
    """Return the pairs as JSON texts, a whole number and a float of one value alike."""
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, f"{path}/{key}")]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in leaves(inner, path)]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return [f"{path}={json.dumps(float(value) if number else value)}"]


@given(reference=OBJECTS, answer=OBJECTS)
def test_slots_are_those_of_a_plain_count(reference: dict, answer: dict) -> None:
    """Each pair of the answer takes one equal pair of the reference away."""
    found = score(json.dumps(reference), json.dumps(answer), "stop").slots
    left, shared = leaves(reference), 0
    for leaf in leaves(answer):
        if leaf in left:
            left.remove(leaf)
            shared += 1
    assert found == Slots(shared, len(leaves(reference)), len(leaves(answer)))


@given(rows=st.lists(st.tuples(OBJECTS, OBJECTS), min_size=1, max_size=4))
def test_slot_f1_is_symmetric_and_1_for_equal_pairs_alone(rows: list[tuple[dict, dict]]) -> None:
    """Precision and recall change places with reference and answer, F1 stays."""
    texts = [(json.dumps(reference), json.dumps(answer)) for reference, answer in rows]
    there = answer_metrics([score(reference, answer, "stop") for reference, answer in texts])
    back = answer_metrics([score(answer, reference, "stop") for reference, answer in texts])
    if "slot_f1" in there and "slot_f1" in back:
        assert there["slot_f1"] == back["slot_f1"]
    if "slot_f1" in there:
        assert 0 <= there["slot_f1"] <= 1
        same = all(sorted(leaves(one)) == sorted(leaves(other)) for one, other in rows)
        assert (there["slot_f1"] == 1) == same


def test_an_answer_that_nests_deeply_is_compared() -> None:
    """As deep as the parser goes."""
    deep = '{"a":' * 300 + "1" + "}" * 300
    assert score(deep, deep, "stop").slots == Slots(1, 1, 1)


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
