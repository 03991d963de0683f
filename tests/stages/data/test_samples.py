"""The bundled conversations: what is held out, and that answers can be read off the requests."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import combinations

import pytest

from stages.data import samples

SPLITS = ("train", "valid", "test")
ROWS = {split: samples.rows(split) for split in SPLITS}
DAYS = ["today", "tomorrow", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday",
        "sunday"]  # fmt: skip
KEYS = {
    "create": ["action", "title", "with", "day", "time", "duration_minutes"],
    "move": ["action", "title", "with", "from", "to", "time"],
    "cancel": ["action", "title", "with", "day"],
    "list": ["action", "day", "after", "before"],
    "find": ["action", "with", "day"],
}
DIGEST = "ba4f48d8db0424aaf74de6373000e53083e8b4976177a82f48ccdc3de2cab782"


def said(row: dict, role: str) -> list[str]:
    return [m["content"] for m in row["messages"] if m["role"] == role]


def answers(split: str) -> list[dict]:
    replies = (reply for row in ROWS[split] for reply in said(row, "assistant"))
    return [json.loads(reply) for reply in replies if reply.startswith("{")]


def names(split: str) -> set[str]:
    found = {answer["with"] for answer in answers(split) if answer.get("with")}
    replies = " ".join(reply for row in ROWS[split] for reply in said(row, "assistant"))
    return found | set(re.findall(r"(?:Hello |welcome, )([A-Z]\w+)", replies))


def titles(split: str) -> set[str]:
    return {answer["title"] for answer in answers(split) if "title" in answer}


def pairs(split: str) -> set[tuple[str, str]]:
    return {
        (answer["title"], answer[key])
        for answer in answers(split) if "title" in answer
        for key in ("day", "from", "to") if key in answer
    }  # fmt: skip


def times(split: str) -> set[str]:
    return {t for row in ROWS[split] for m in row["messages"]
            for t in re.findall(r"\d\d:\d\d", m["content"])}  # fmt: skip


def durations(split: str) -> set[str]:
    """Return every number that is no part of a clock time."""
    return {n for row in ROWS[split] for m in row["messages"]
            for n in re.findall(r"\d+", re.sub(r"\d\d:\d\d", "", m["content"]))}  # fmt: skip


def wordings(split: str) -> set[str]:
    """Return what users say without its names, titles, days, numbers, case and punctuation."""
    slots = "|".join([*map(str.lower, names(split)), *titles(split), *DAYS, r"\d\d:\d\d", r"\d+"])
    return {
        re.sub(r"[^a-z_ ]", "", re.sub(rf"\b({slots})\b", "_", words.lower()))
        for row in ROWS[split]
        for words in said(row, "user")
    }


@pytest.mark.parametrize("what", [names, times, durations, pairs, wordings])
@pytest.mark.parametrize("sides", list(combinations(SPLITS, 2)))
def test_nothing_open_is_shared_between_splits(what, sides: tuple[str, str]) -> None:
    """Names, times, durations, pairs of title and day, and wordings occur in one split only."""
    one, other = what(sides[0]), what(sides[1])
    assert one
    assert other
    assert one & other == set()


def test_what_is_closed_is_seen_in_train() -> None:
    """Titles, days, actions and replies of the held-out rows all occur in train, as do letters."""
    for split in ("valid", "test"):
        assert titles(split) <= titles("train")
        for key in ("day", "from", "to", "action"):
            seen, asked = ({a[key] for a in answers(s) if key in a} for s in ("train", split))
            assert asked <= seen
        assert set("".join(names(split))) <= set("".join(names("train")))
        assert talk(split) <= talk("train")


def talk(split: str) -> set[str]:
    """Return Pip's plain replies, without names."""
    people = "|".join(names(split))
    return {
        re.sub(rf"\b({people})\b", "_", reply)
        for row in ROWS[split]
        for reply in said(row, "assistant")
        if not reply.startswith("{")
    }


@pytest.mark.parametrize("split", SPLITS)
def test_an_answer_is_one_line_of_strict_json_with_fixed_keys(split: str) -> None:
    """Parsed and written again compactly, each answer is the same text, with its action's keys."""
    for row in ROWS[split]:
        for reply in said(row, "assistant"):
            assert "\n" not in reply
            if "{" in reply:
                fields = json.loads(reply)
                assert json.dumps(fields, separators=(",", ":")) == reply
                assert list(fields) == KEYS[fields["action"]]


@pytest.mark.parametrize("split", SPLITS)
def test_every_value_of_an_answer_was_said(split: str) -> None:
    """Each value can be copied from what the user said so far, apart from the case of days."""
    for row in ROWS[split]:
        heard = ""
        for message in row["messages"][1:]:
            if message["role"] == "user":
                heard += message["content"] + " "
            elif message["content"].startswith("{"):
                for key, value in json.loads(message["content"]).items():
                    if key != "action" and value is not None:
                        assert re.search(rf"\b{value}\b", heard, re.I), (value, heard)


@pytest.mark.parametrize(("split", "least"), [("train", 600), ("valid", 100), ("test", 100)])
def test_rows_are_many_short_and_unlike(split: str, least: int) -> None:
    """Sizes as promised, no row twice, turns of a sentence or two, one system prompt."""
    rows = ROWS[split]
    assert len(rows) >= least
    assert len({json.dumps(row).lower() for row in rows}) == len(rows)
    assert {tuple(said(row, "system")) for row in rows} == {
        ("You are Pip, a calendar assistant. Answer requests with one line of JSON.",)
    }
    assert max(len(m["content"]) for row in rows for m in row["messages"]) <= 125
    for row in rows:
        turns = [m["role"] for m in row["messages"]]
        assert turns in (["system"] + ["user", "assistant"] * n for n in (1, 2))


@pytest.mark.parametrize("split", SPLITS)
def test_every_kind_has_its_share(split: str) -> None:
    """A tenth of the turns is plain talk, a tenth of the rows has two turns, all actions occur."""
    replies = [reply for row in ROWS[split] for reply in said(row, "assistant")]
    plain = sum(not reply.startswith("{") for reply in replies) / len(replies)
    assert 0.08 <= plain <= 0.15
    two = sum(len(row["messages"]) == 5 for row in ROWS[split]) / len(ROWS[split])
    assert 0.07 <= two <= 0.12
    for action in KEYS:
        assert sum(a["action"] == action for a in answers(split)) >= 0.05 * len(ROWS[split])


def test_the_rows_are_the_same_on_every_machine() -> None:
    """Pinned: whoever changes a row changes what every earlier run was measured on."""
    text = json.dumps([samples.rows(split) for split in SPLITS])
    assert hashlib.sha256(text.encode()).hexdigest() == DIGEST
