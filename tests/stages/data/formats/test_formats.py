"""Formats of rows: how each is found and read, and what a person is told about the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from stages.data import samples
from stages.data.formats.detection import FORMATS
from stages.data.formats.parser import Row, open_parser
from stages.data_settings import Data
from stages.errors import InputError

SHARED = Path(__file__).parents[5] / "shared" / "data"

ASKED = {"role": "user", "content": "p"}
ANSWER = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
CHAT = {"messages": [ASKED, ANSWER]}
WITH_SYSTEM = {"messages": [SYSTEM, ASKED, ANSWER]}
FUNCTION = {"name": "now", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}
CALLED = {
    "role": "assistant", "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "now", "arguments": {"z": 1}}}],
}  # fmt: skip


def settings(**changes: Any) -> Data:
    base: dict[str, Any] = {
        "stage": "stages.prepare.prepare", "path": "x", "format": "auto", "max_seq_length": 64,
        "supervise": "assistant", "overlong": "auto", "valid_fraction": 0.1, "test_fraction": 0.1,
        "duplicates": "keep", "leakage": "drop", "redact": False, "encoding": "utf-8",
        "on_error": "fail",
    }  # fmt: skip
    return Data(**(base | changes))


def parse(value: object, **changes: Any) -> Row:
    (row,) = open_parser(settings(**changes))(value, "t.jsonl:3", "x/t.jsonl:3")
    return row


def said(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"conversations": [{"from": speaker, "value": words} for speaker, words in turns]}


GOOD = {
    "messages": [
        (CHAT, CHAT),
        (CHAT | {"id": 7, "text": "left behind", "weight": 1, "images": []}, CHAT),
        ({"messages": json.dumps(CHAT["messages"])}, CHAT),
        (CHAT | {"system": "s"}, WITH_SYSTEM),
        (CHAT | {"tools": [TOOL]}, CHAT | {"tools": [TOOL]}),
        (CHAT | {"tools": json.dumps([FUNCTION])}, CHAT | {"tools": [TOOL]}),
        (CHAT | {"functions": [FUNCTION], "tools": None}, CHAT | {"tools": [TOOL]}),
        ({"messages": [SYSTEM, ANSWER, ASKED, ANSWER]},
         {"messages": [SYSTEM, ANSWER, ASKED, ANSWER]}),
        ({"messages": [ASKED, ANSWER | {"weight": 0}]},
         {"messages": [ASKED, ANSWER | {"train": False}]}),
        ({"messages": [ASKED, {"role": "assistant", "content": ""}, ASKED]},
         {"messages": [ASKED, {"role": "assistant", "content": ""}, ASKED]}),
    ],
    "conversations": [
        (said(("human", "p"), ("gpt", "a")), CHAT),
        (said(("system", "s"), ("user", "p"), ("chatgpt", "a")), WITH_SYSTEM),
        (said(("human", "p"), ("bing", "a"), ("human", "p"), ("bard", "a"), ("user", "p"),
              ("model", "a")), {"messages": [ASKED, ANSWER] * 3}),
        (said(("human", "p"), ("gpt", "a")) | {"system": "s", "id": "x"}, WITH_SYSTEM),
        (said(("human", "p"), ("gpt", "a")) | {"system": " \n"}, CHAT),
        ({"conversations": [ASKED, ANSWER]}, CHAT),
        ({"conversations": json.dumps(said(("human", "p"), ("gpt", "a"))["conversations"])}, CHAT),
        ({"conversations": [{"from": "human", "value": "p", "weight": None, "markdown": None},
                            {"from": "gpt", "value": "a", "weight": 0}]},
         {"messages": [ASKED, ANSWER | {"train": False}]}),
        (said(("human", "p"), ("function_call", '{"name": "now", "arguments": {"z": 1}}'),
              ("observation", "noon"), ("gpt", "a")) | {"tools": json.dumps([FUNCTION])},
         {"messages": [ASKED, CALLED, {"role": "tool", "content": "noon"}, ANSWER],
          "tools": [TOOL]}),
    ],
    "alpaca": [
        ({"instruction": "p", "input": "", "output": "a"}, CHAT),
        ({"instruction": "p", "output": "a", "system": "s", "history": []}, WITH_SYSTEM),
        ({"instruction": "Add.", "input": "1 2", "output": "a", "text": "whole prompt"},
         {"messages": [{"role": "user", "content": "Add.\n\n1 2"}, ANSWER]}),
        ({"instruction": "q", "input": None, "output": "a", "history": [["p", "a"]]},
         {"messages": [ASKED, ANSWER, {"role": "user", "content": "q"}, ANSWER]}),
    ],
    "prompt_completion": [
        ({"prompt": "p", "completion": "a"}, CHAT),
        ({"prompt": "p", "response": "a", "completion": None, "system": "s"}, WITH_SYSTEM),
        ({"prompt": [SYSTEM, ASKED], "completion": [ANSWER]}, WITH_SYSTEM),
        ({"prompt": [ASKED, ANSWER, ASKED], "completion": [ANSWER]},
         {"messages": [ASKED, ANSWER | {"train": False}, ASKED, ANSWER]}),
    ],
    "question_answer": [
        ({"question": "p", "answer": "a"}, CHAT),
        ({"Question": "p", " ANSWER ": "a"}, CHAT),
        ({"question": "p", "answer": "a", "system": "s", "text": None}, WITH_SYSTEM),
    ],
    "text": [
        ({"text": "a\u2028b\x85c "}, {"text": "a\u2028b\x85c "}),
        ({"text": "t", "messages": None, "title": "left behind"}, {"text": "t"}),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "record", "plain"), [(name, *case) for name, cases in GOOD.items() for case in cases]
)
def test_a_format_is_found_and_read(name: str, record: object, plain: dict[str, Any]) -> None:
    """Found by its keys or asked for, it gives the plain form written by hand."""
    found, asked = parse(record), parse(record, format=name)
    assert (found.content, found.format) == (plain, name)
    assert asked == found
    assert (found.source, found.where, found.home) == ("t.jsonl:3", "x/t.jsonl:3", None)
    assert parse(plain).content == plain


KNOWN = (
    'expected one of "messages", "conversations", "prompt" + "completion" or "prompt" + '
    '"response", "instruction" + "output", "question" + "answer", "text"'
)
COLUMNS = "set data.columns or data.convert for any other shape"
MEND = "name the columns by data.columns, or use data.convert"
ASK = "use data.format=auto with data.columns, or data.convert"
LOST = "which would be lost; remove the key, or the row, or choose others by data.columns"
BAD = [
    ("auto", [1], "found a list, expected an object; "
                  "make each record an object, or use data.convert"),
    ("auto", 7, "found a number, expected an object; "
                "make each record an object, or use data.convert"),
    ("auto", {}, f"found an empty object, {KNOWN}; {COLUMNS}"),
    ("auto", {"q": 1, "r": 2}, f'found the keys "q", "r", {KNOWN}; {COLUMNS}'),
    ("auto", dict.fromkeys("abcdefghi"),
     f'found the keys "a", "b", "c", "d", "e", "f", "g", "h", …, {KNOWN}; {COLUMNS}'),
    ("auto", {"message": []},
     f'found the keys "message", {KNOWN}; did you mean "messages"? Else {COLUMNS}'),
    ("auto", {"question": "q", "answers": {}},
     f'found the keys "question", "answers", {KNOWN}; did you mean "answer"? Else {COLUMNS}'),
    ("messages", {"text": "x"}, 'found the keys "text", expected "messages"; '
                                "these rows look like text: use data.format=text"),
    ("text", CHAT, 'found the keys "messages", expected "text"; '
                   "these rows look like messages: use data.format=messages"),
    ("messages", {"message": []},
     f'found the keys "message", expected "messages"; did you mean "messages"? Else {ASK}'),
    ("alpaca", {"x": 1}, f'found the keys "x", expected "instruction" + "output"; {ASK}'),
    # What says how to train a row is never lost.
    ("auto", CHAT | {"train": False}, f'found "train" beside the row, {LOST}'),
    ("auto", {"text": "x", "weight": 0}, f'found "weight" beside the row, {LOST}'),
    ("auto", CHAT | {"images": ["cat.png"]}, f'found "images" beside the row, {LOST}'),
    ("auto", {"text": "x", "tools": [TOOL]},
     'found "tools" beside "text", which would be lost; remove the key, or the row'),
    # messages
    ("auto", {"messages": []}, 'found an empty list in "messages", expected a list of turns'),
    ("auto", {"messages": None}, 'found null in "messages", expected a list of turns'),
    ("auto", {"messages": "[{'role': 'user'}]"},
     'found text in "messages", expected a list of turns'),
    ("auto", {"messages": [ASKED]}, "found no assistant turn, expected at least one; "
                                    "add the answer to be learned, or remove the row"),
    ("auto", {"messages": [ANSWER, ASKED]},
     "found an assistant turn first, expected a user or system turn to answer; remove that turn"),
    ("auto", WITH_SYSTEM | {"system": "s"},
     'found a "system" text beside the system turn messages[0], expected one of them; '
     "remove one, or join them"),
    ("auto", CHAT | {"system": 7}, 'found a number as "system", expected text'),
    # conversations
    ("auto", said(("human", "p"), ("alien", "a")),
     "found 'alien' as \"from\" of conversations[1], expected one of human, user, gpt, "
     "assistant, chatgpt, bing, bard, model, function_call, tool_call, system, tool, "
     "observation, function_response, tool_response; use data.convert to rename it"),
    ("auto", {"conversations": [{"from": 1, "value": "p"}]},
     'found a number as "from" of conversations[0], expected text'),
    ("auto", {"conversations": [{"from": "human"}]},
     'found no "value" in conversations[0], expected the text of the turn'),
    ("auto", said(("human", "p"), ("gpt", None)),
     'found null as "content" of conversations[1], expected text'),
    ("auto", said(("human", "p"), ("gpt", "a"), ("gpt", "b")),
     "found two assistant turns in a row at conversations[2], expected one answer; "
     "join them, or remove one"),
    ("auto", said(("human", "p"), ("function_call", "now()")),
     'found text as "value" of conversations[1], '
     'expected a function call as JSON, {"name": …, "arguments": {…}}'),
    # alpaca
    ("auto", {"instruction": "p", "input": ["x"], "output": "a"},
     'found a list as "input", expected text'),
    ("auto", {"instruction": "p", "output": "a", "history": [["p"]]},
     "found a list of 1 as history[0], expected [request, answer]"),
    ("auto", {"instruction": "p", "output": 7},
     f'found a number as "output", expected text; {MEND}'),
    # prompt_completion
    ("auto", {"prompt": [ASKED], "completion": "a"},
     'found a list as "prompt" and text as "completion", expected two texts or two lists of turns'),
    ("auto", {"prompt": [ASKED], "response": [ANSWER, {"role": "user"}]},
     'found the keys "role" in response[1], expected "content"'),
    ("auto", {"prompt": [ASKED, ANSWER], "completion": [ANSWER]},
     "found two assistant turns in a row at prompt + completion[2], expected one answer; "
     "join them, or remove one"),
    # question_answer
    ("auto", {"question": "q", "answer": {"text": ["a"]}},
     f'found an object as "answer", expected text; {MEND}'),
    ("auto", {"question": "a\0", "answer": "a"},
     'found the character NUL (U+0000) in "question", at character 2; remove that character'),
    # text
    ("text", {"text": None}, 'found null as "text", expected text'),
    ("auto", {"text": " \n"}, "found an empty text, expected some; remove the row"),
    ("auto", {"text": "é\udfff"},
     'found half of a surrogate pair in "text", at character 2; remove that character'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "record", "message"), BAD)
def test_a_row_that_cannot_be_used_is_named(name: str, record: object, message: str) -> None:
    """The whole message: where, what was found, what was expected, what to do."""
    with pytest.raises(InputError) as caught:
        parse(record, format=name)
    assert str(caught.value) == f"x/t.jsonl:3: {message}"


BODY = {"q": "p", "a": "a", "s": "s", "n": None, "seven": 7, "no": False, "half": 0.5, "é": "z"}


@pytest.mark.parametrize(
    ("columns", "record", "plain"),
    [
        ({"user": "q", "assistant": "a"}, BODY, CHAT),
        ({"user": "q", "assistant": "a", "system": "s"}, BODY, WITH_SYSTEM),
        ({"user": "q", "assistant": "a", "system": "n", "tools": "n"}, BODY, CHAT),
        ({"user": "seven", "assistant": "no", "system": "half"}, BODY,
         {"messages": [{"role": "system", "content": "0.5"}, {"role": "user", "content": "7"},
                       {"role": "assistant", "content": "false"}]}),
        ({"text": "é"}, BODY | {"text": "not this one"}, {"text": "z"}),
        ({"text": "seven"}, BODY, {"text": "7"}),
        ({"messages": "dialog", "tools": "offered"},
         {"dialog": json.dumps(CHAT["messages"]), "offered": [FUNCTION]}, CHAT | {"tools": [TOOL]}),
        ({"messages": "dialog"}, {"dialog": said(("human", "p"), ("gpt", "a"))["conversations"]},
         CHAT),
    ],
)  # fmt: skip
def test_columns_of_any_name_are_mapped(
    columns: dict[str, str], record: object, plain: dict[str, Any]
) -> None:
    """Each cell takes its role; numbers and booleans become their JSON text."""
    row = parse(record, columns=columns)
    assert (row.content, row.format) == (plain, "columns")


@pytest.mark.parametrize(
    ("columns", "record", "message"),
    [
        ({"text": "body"}, {"Body": "x", "id": 1},
         'found the keys "Body", "id", expected "body"; mend data.columns.text'),
        ({"user": "q", "assistant": "n"}, BODY,
         'found null as "n", expected what data.columns.assistant says; '
         "fill it in, or remove the row"),
        ({"user": "q", "assistant": "l"}, {"q": "p", "l": ["a"]},
         'found a list as "l", expected text; name another column, or use data.convert'),
        ({"text": "f"}, {"f": float("nan")}, 'found nan as "f", expected text or a number'),
        ({"text": "f"}, {"f": "\0"},
         'found the character NUL (U+0000) in "f", at character 1; remove that character'),
        ({"messages": "dialog"}, {"dialog": [ASKED, {"role": "robot", "content": "x"}]},
         "found role 'robot' in dialog[1], expected one of system, developer, user, assistant, "
         "tool, function"),
    ],
)  # fmt: skip
def test_a_column_that_cannot_be_used_is_named(
    columns: dict[str, str], record: object, message: str
) -> None:
    """The column is called as the file calls it."""
    with pytest.raises(InputError) as caught:
        parse(record, columns=columns)
    assert str(caught.value) == f"x/t.jsonl:3: {message}"


@pytest.mark.parametrize(
    ("customer", "home"), [(7, "7"), ("7", '"7"'), ({"b": 1, "a": 2}, '{"a": 2, "b": 1}')]
)
def test_a_row_carries_what_it_is_grouped_by(customer: object, home: str) -> None:
    """The value is kept as JSON text, whatever the mapping leaves behind."""
    record = {"q": "p", "a": "a", "customer": customer}
    row = parse(record, columns={"user": "q", "assistant": "a"}, group_by="customer")
    assert row.home == home


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (CHAT, 'found the keys "messages", expected "customer"; mend data.group_by, or the row'),
        (CHAT | {"customer": None},
         'found null as "customer", expected what its rows have in common; '
         "mend data.group_by, or the row"),
    ],
)  # fmt: skip
def test_a_row_without_its_group_is_refused(record: object, message: str) -> None:
    """A row that belongs nowhere would be split by chance."""
    with pytest.raises(InputError) as caught:
        parse(record, group_by="customer")
    assert str(caught.value) == f"x/t.jsonl:3: {message}"


KEYS = st.sampled_from(
    ["messages", "conversations", "prompt", "completion", "response", "instruction", "input",
     "output", "history", "question", "answer", "text", "system", "tools", "functions", "weight",
     "role", "content", "from", "value", "name", "arguments", "function", "tool_calls",
     "function_call", "type", "train", "reasoning", "id"]
)  # fmt: skip
WORDS = st.sampled_from(
    ["user", "assistant", "system", "tool", "human", "gpt", "function_call", "", "[]", "{}",
     '[{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}]',
     '{"name": "f", "arguments": "{}"}', "\ud800", "\0", "é"]
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=3)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=2), inner, max_size=5)
    ),
    max_leaves=12,
)
PLAIN = st.sampled_from(["", "a", "é", "\u2028", '{"name": "f", "arguments": "{}"}'])
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]), "content": PLAIN | LEAVES},
    optional={"tool_calls": VALUES, "weight": LEAVES, "name": LEAVES, "reasoning": LEAVES},
)
SPOKEN = st.fixed_dictionaries(
    {"from": st.sampled_from(["human", "gpt", "function_call", "observation"]), "value": PLAIN}
)
CELL = PLAIN | st.lists(TURN, max_size=4) | st.lists(SPOKEN, max_size=4) | VALUES
RECORDS = VALUES | st.sampled_from(
    [spelling for spellings in FORMATS.values() for spelling in spellings]
).flatmap(
    lambda spelling: st.fixed_dictionaries(
        dict.fromkeys(spelling, CELL),
        optional=dict.fromkeys(("system", "tools", "input", "history"), CELL),
    )
)


@examples(max_examples=300, deadline=None)
@given(RECORDS)
def test_any_json_is_read_once_for_all_or_refused(value: object) -> None:
    """Nothing but InputError comes of JSON, and the plain form is its own plain form."""
    try:
        row = parse(value)
    except InputError as error:
        # A message can be printed, whatever the row holds.
        str(error).encode()
        return
    written = json.dumps(row.content, ensure_ascii=False, allow_nan=False).encode()
    assert parse(json.loads(written)).content == row.content


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
ARGUMENTS = st.dictionaries(TEXTS, st.none() | st.booleans() | st.integers() | TEXTS, max_size=3)


@st.composite
def exchanges(draw: st.DrawFn) -> list[tuple[str, Any]]:
    """Return (role, words) of a conversation; the words of a call are its arguments."""
    said: list[tuple[str, Any]] = []
    for _ in range(draw(st.integers(1, 3))):
        said.append(("user", draw(TEXTS)))
        if draw(st.booleans()):
            said += [("call", draw(ARGUMENTS)), ("tool", draw(TEXTS))]
        said.append(("assistant", draw(TEXTS)))
    return said


@given(exchanges())
def test_a_conversation_is_the_same_in_every_format(said: list[tuple[str, Any]]) -> None:
    """OpenAI's turns, its older function calls and ShareGPT's give one plain form."""
    plain, older, sharegpt = [], [], []
    speakers = {"user": "human", "assistant": "gpt", "tool": "observation"}
    for role, words in said:
        if role == "call":
            function = {"name": "f", "arguments": words}
            written = function | {"arguments": json.dumps(words)}
            plain.append({"role": "assistant", "content": "",
                          "tool_calls": [{"type": "function", "function": function}]})  # fmt: skip
            older.append({"role": "assistant", "content": None, "function_call": written})
            sharegpt.append({"from": "function_call", "value": json.dumps(function)})
        else:
            plain.append({"role": role, "content": words})
            older.append({"role": role.replace("tool", "function"), "content": words})
            sharegpt.append({"from": speakers[role], "value": words})
    for record in ({"messages": plain}, {"messages": older}, {"conversations": sharegpt}):
        assert parse(record).content == {"messages": plain}


def test_the_bundled_rows_are_plain_already() -> None:
    """Nothing of a bundled conversation is changed or lost."""
    for row in samples.rows("valid"):
        assert parse(row).content == row


def test_gsm8k_is_read_as_it_is() -> None:
    """Every row of GSM8K is found to be a question and its answer, to the letter."""
    path = SHARED / "gsm8k" / "test.jsonl"
    if not path.is_file():
        pytest.skip("the shared data sets are not beside this project")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [parse(record) for record in records]
    assert len(rows) == 1319
    assert {row.format for row in rows} == {"question_answer"}
    for record, row in zip(records, rows, strict=True):
        assert row.messages == [
            {"role": "user", "content": record["question"]},
            {"role": "assistant", "content": record["answer"]},
        ]


def test_every_format_of_the_settings_is_read() -> None:
    """The cases above leave no format out."""
    assert {"auto", *GOOD} == set(get_args(get_type_hints(Data)["format"]))
