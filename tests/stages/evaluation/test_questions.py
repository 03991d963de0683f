"""Which rows are scored, and what is asked of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from stages.errors import InputError
from stages.evaluation.questions import Question, Questions, choose, read_kind, read_questions


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


def write(directory: Path, *rows: dict[str, Any]) -> None:
    numbered = [row | {"source": f"x.jsonl:{number}"} for number, row in enumerate(rows, 1)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in numbered)
    (directory / "test.jsonl").write_text(text)


def turns(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in pairs]


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOL = {"type": "function", "function": {"name": "add"}}


def test_question_is_the_last_answer(tmp_path: Path) -> None:
    """The last turn is the reference, what comes before it the prompt, also turns that are not
    trained. A line separator inside a text does not end a row."""
    first, second, third, fourth = turns(
        ("user", "a\u2028b\x85\r"), ("assistant", "c"), ("user", "d"), ("assistant", "e")
    )
    untrained = second | {"train": False}
    write(tmp_path, {"messages": [first, second]}, {"messages": [first, untrained, third, fourth]},
          {"messages": [third, fourth]})  # fmt: skip
    assert read_questions(tmp_path, "test", [1, 2]) == Questions(
        [Question("test", 1, "x.jsonl:2", (first, untrained, third), "e"),
         Question("test", 2, "x.jsonl:3", (third,), "e")],
        tool_calls=0,
    )  # fmt: skip


def test_of_mixed_rows_the_conversations_are_asked(tmp_path: Path) -> None:
    """Text is not asked; a conversation is, by its place among all rows, and with its tools."""
    messages = turns(("user", "a"), ("assistant", "b"))
    write(tmp_path, {"text": "x"}, {"messages": messages, "tools": [TOOL]}, {"text": "y"})
    assert read_questions(tmp_path, "test", [0, 1, 2]) == Questions(
        [Question("test", 1, "x.jsonl:2", (messages[0],), "b", [TOOL])], tool_calls=0
    )


def test_calls_of_tools_are_counted_and_not_asked(tmp_path: Path) -> None:
    """A row whose last answer calls a tool is only counted; one that answers after the tool's
    result is asked with the call and the result in its prompt."""
    user, words, call, result, answer = (
        *turns(("user", "1+1?"), ("assistant", "")),
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        *turns(("tool", "2"), ("assistant", "Two.")),
    )
    write(tmp_path, {"messages": [user, call], "tools": [TOOL]},
          {"messages": [user, call, result, answer], "tools": [TOOL]},
          {"messages": [user, words, user, call]})  # fmt: skip
    assert read_questions(tmp_path, "test", range(3)) == Questions(
        [Question("test", 1, "x.jsonl:2", (user, call, result), "Two.", [TOOL])], tool_calls=2
    )


@pytest.mark.parametrize("kind", ["chat", "mixed", "text"])
def test_kind_of_the_rows_is_the_doctors(tmp_path: Path, kind: str) -> None:
    """Whether rows are conversations or text stands in doctor.json."""
    (tmp_path / "doctor.json").write_text(json.dumps({"format": 1, "kind": kind}))
    assert read_kind(tmp_path) == kind


@pytest.mark.parametrize("content", [None, "{", "{}", "[]", '{"kind": "chats"}', '{"kind": []}'])
def test_damaged_preparation_is_named(tmp_path: Path, content: str | None) -> None:
    """A doctor.json that is missing or says nothing is refused by its path."""
    if content is not None:
        (tmp_path / "doctor.json").write_text(content)
    with pytest.raises(InputError) as caught:
        read_kind(tmp_path)
    assert caught.value.where == str(tmp_path / "doctor.json")
