"""Which rows are scored, and what is asked of them."""

import json
from pathlib import Path

import pytest

from stages.errors import InputError
from stages.evaluation.questions import Question, choose, is_chat, read_questions


def test_all_rows_where_there_are_few() -> None:
    """No limit, or one that is not reached, takes every row."""
    assert choose(5, None, 0, "test") == choose(5, 5, 0, "test") == [0, 1, 2, 3, 4]


def test_limited_rows_are_drawn_by_the_seed() -> None:
    """A limit draws that many rows from all over the split, the same for the same seed, and more
    rows include the fewer."""
    drawn = choose(1000, 100, 3, "test")
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 100
    assert drawn == choose(1000, 100, 3, "test")
    assert {*drawn} != {*choose(1000, 100, 4, "test")}
    assert {*drawn} != {*choose(1000, 100, 3, "valid")}
    assert {*drawn} < {*choose(1000, 101, 3, "test")}
    # The files may be sorted: taking the first rows would leave nine tenths of them out.
    assert {row // 100 for row in drawn} == {*range(10)}


def test_question_is_the_last_answer(tmp_path: Path) -> None:
    """The last assistant turn is the reference, what comes before it the prompt; what follows is
    left out. A line separator inside a text does not end a row."""
    turns = [("user", "a\u2028b\x85"), ("assistant", "c"), ("user", "d"), ("assistant", "e")]
    messages = [{"role": role, "content": content} for role, content in turns]
    rows = [
        {"messages": messages, "source": "x.jsonl:1"},
        {"messages": [*messages, {"role": "user", "content": "thanks"}], "source": "x.jsonl:2"},
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "test.jsonl").write_text(text)
    assert read_questions(tmp_path, "test", [1]) == [
        Question("test", 1, "x.jsonl:2", tuple(messages[:3]), "e")
    ]


def test_damaged_preparation_is_named(tmp_path: Path) -> None:
    """A prepared.json that says nothing is refused by its path."""
    (tmp_path / "prepared.json").write_text("{}")
    with pytest.raises(InputError) as caught:
        is_chat(tmp_path)
    assert caught.value.where.endswith("prepared.json")
