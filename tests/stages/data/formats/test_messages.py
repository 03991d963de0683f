"""Turns: the plain form that templates are given, and what a person is told about the rest."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.data.formats.messages import check_trainable, check_turns
from stages.data.formats.tools import read_tools
from stages.errors import InputError

ASKED = {"role": "user", "content": "p"}
ANSWER = {"role": "assistant", "content": "a"}
CALL = {"type": "function", "function": {"name": "now", "arguments": {"zone": "UTC"}}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
WRITTEN = {"name": "now", "arguments": '{"zone": "UTC"}'}


def turn(role: object = "user", content: object = "p", **others: object) -> dict[str, object]:
    return {"role": role, "content": content, **others}


GOOD = [
    ([ASKED, ANSWER], [ASKED, ANSWER]),
    ([turn("developer", "s"), ASKED], [turn("system", "s"), ASKED]),
    ([turn(id=7, name=None, images=[], refusal=None)], [ASKED]),
    ([turn(content=[{"type": "text", "text": "a "}, {"type": "text", "text": "b"}])],
     [turn(content="a b")]),
    ([turn(content=[])], [turn(content="")]),
    ([ASKED, ASKED], [ASKED, ASKED]),
    ([ASKED, turn("assistant", "")], [ASKED, turn("assistant", "")]),
    ([turn(content="é 😀 \u2028")], [turn(content="é 😀 \u2028")]),
    ([turn(name="Ada")], [turn(name="Ada")]),
    # Calls: arguments become an object, an absent content empty, the older spelling a call.
    ([ASKED, turn("assistant", None, tool_calls=[{"id": "c1", "type": "function",
                                                  "function": WRITTEN}])],
     [ASKED, turn("assistant", "", tool_calls=[CALL | {"id": "c1"}])]),
    ([ASKED, {"role": "assistant", "tool_calls": [{"function": WRITTEN}]}], [ASKED, CALLED]),
    ([ASKED, turn("assistant", None, tool_calls=json.dumps([CALL]))], [ASKED, CALLED]),
    ([ASKED, turn("assistant", None, function_call=WRITTEN),
      turn("function", "noon", name="now")],
     [ASKED, CALLED, turn("tool", "noon", name="now")]),
    ([ASKED, CALLED, turn("tool", "1", tool_call_id="c1"), turn("tool", "2"), ANSWER],
     [ASKED, CALLED, turn("tool", "1", tool_call_id="c1"), turn("tool", "2"), ANSWER]),
    ([ASKED, turn("assistant", "a", tool_calls=[])], [ASKED, ANSWER]),
    # Reasoning, in three spellings.
    ([ASKED, turn("assistant", "a", reasoning="r")],
     [ASKED, turn("assistant", "a", reasoning_content="r")]),
    ([ASKED, turn("assistant", "a", thinking="r", reasoning_content="r")],
     [ASKED, turn("assistant", "a", reasoning_content="r")]),
    # What is not trained.
    ([ASKED, turn("assistant", "a", train=False)], [ASKED, turn("assistant", "a", train=False)]),
    ([ASKED, turn("assistant", "a", weight=0)], [ASKED, turn("assistant", "a", train=False)]),
    ([ASKED, turn("assistant", "a", weight=0.0, train=False)],
     [ASKED, turn("assistant", "a", train=False)]),
    ([ASKED, turn("assistant", "a", weight=1, train=True)], [ASKED, ANSWER]),
    ([ASKED, turn("assistant", "a", weight=None)], [ASKED, ANSWER]),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "plain"), GOOD)
def test_turns_have_one_plain_form(messages: list[object], plain: list[object]) -> None:
    """What comes out is what was written by hand, key by key, and stays as it is."""
    assert check_turns(messages, "t.jsonl:3") == plain
    assert check_turns(plain, "t.jsonl:3") == plain


ROLES = "system, developer, user, assistant, tool, function"
OBJECT = "expected an object or JSON text of one; write {} where there are none"
CALL_SHAPE = 'expected {"type": "function", "function": {"name": …, "arguments": {…}}}'
LOST = "which would be lost; remove the key, or the row"
BAD = [
    ([], 'found an empty list in "messages", expected a list of turns'),
    ("hi", 'found text in "messages", expected a list of turns'),
    (["hi"], 'found text as messages[0], expected an object with "role" and "content"'),
    ([{"role": "user"}], 'found the keys "role" in messages[0], expected "content"'),
    ([{"content": "x"}], 'found the keys "content" in messages[0], expected "role"'),
    ([{}], 'found an empty object in messages[0], expected "role"'),
    ([{"from": "human", "value": "x"}],
     'found the keys "from", "value" in messages[0], expected "role"; '
     'such turns stand in "conversations": rename the key, or use data.convert'),
    ([turn("robot")], f"found role 'robot' in messages[0], expected one of {ROLES}"),
    ([turn("\ud800\n")], f"found role '\\ud800' in messages[0], expected one of {ROLES}"),
    ([turn(["user"])], 'found a list as "role" of messages[0], expected text'),
    ([ASKED, turn("assistant", None)], 'found null as "content" of messages[1], expected text'),
    ([turn(content={"text": "x"})], 'found an object as "content" of messages[0], expected text'),
    ([turn(content=["x"])],
     'found text as "content"[0] of messages[0], expected {"type": "text", "text": …}'),
    ([turn(content=[{"type": "text"}])],
     'found null as the text of "content"[0] of messages[0], expected text'),
    ([turn(content=[{"type": "image_url", "image_url": {}}])],
     "found a part of type 'image_url' as \"content\"[0] of messages[0], "
     "expected text parts only; remove the row"),
    ([turn(content="a\ud800")],
     'found half of a surrogate pair in "content" of messages[0], at character 2; '
     "remove that character"),
    ([turn(content="ab\0")],
     'found the character NUL (U+0000) in "content" of messages[0], at character 3; '
     "remove that character"),
    ([turn(name="\udfff")],
     'found half of a surrogate pair in "name" of messages[0], at character 1; '
     "remove that character"),
    ([turn(images=["cat.png"])], f'found "images" in messages[0], {LOST}'),
    ([ASKED, turn("assistant", "a", refusal="No.")], f'found "refusal" in messages[1], {LOST}'),
    # Order.
    ([ASKED, turn("system")],
     "found a system turn at messages[1], expected it first only; "
     "remove it, or join it with the first"),
    ([ASKED, ANSWER, ANSWER],
     "found two assistant turns in a row at messages[2], expected one answer; "
     "join them, or remove one"),
    ([ASKED, ANSWER, turn("tool")],
     "found a tool turn at messages[2] that answers no call, expected an assistant turn with "
     '"tool_calls" before it; add the call, or remove the turn'),
    # Calls.
    ([ASKED, turn("assistant", None, tool_calls={})],
     'found an object as "tool_calls" of messages[1], expected a list'),
    ([ASKED, turn("assistant", None, tool_calls=[WRITTEN])],
     f'found the keys "name", "arguments" as messages[1].tool_calls[0], {CALL_SHAPE}'),
    ([ASKED, turn("assistant", None, tool_calls=[{"type": "custom", "function": WRITTEN}])],
     "found another type of tool as messages[1].tool_calls[0], expected a function"),
    ([ASKED, turn("assistant", None, tool_calls=[{"function": {"name": "f"}}])],
     'found the keys "name" in messages[1].tool_calls[0].function, expected "arguments"'),
    ([ASKED, turn("assistant", None, function_call={"name": "f", "arguments": "x = 1"})],
     f'found text as "arguments" of messages[1].function_call, {OBJECT}'),
    ([ASKED, turn("assistant", None, function_call={"name": "f", "arguments": "[1]"})],
     f'found a list as "arguments" of messages[1].function_call, {OBJECT}'),
    ([ASKED, turn("assistant", None, function_call={"name": " ", "arguments": {}})],
     'found an empty "name" of messages[1].function_call, expected some'),
    ([ASKED, turn("assistant", None, function_call={"name": "f", "arguments": {"x": "\0"}})],
     'found the character NUL (U+0000) in text in "arguments" of messages[1].function_call, '
     "at character 1; remove that character"),
    ([ASKED, turn("assistant", None, function_call={"name": "f", "arguments": '{"x": NaN}'})],
     'found nan in "arguments" of messages[1].function_call, expected a number of JSON'),
    ([ASKED, CALLED | {"function_call": WRITTEN}],
     'found both "tool_calls" and "function_call" in messages[1], expected one of them; '
     'remove "function_call"'),
    ([turn(tool_calls=[CALL])],
     'found "tool_calls" in messages[0], expected it in assistant turns only; '
     "remove the key, or the row"),
    # Reasoning and what is trained.
    ([turn(reasoning="r")],
     'found "reasoning_content" in messages[0], expected it in assistant turns only; '
     "remove the key, or the row"),
    ([ASKED, turn("assistant", "a", reasoning="r", thinking="s")],
     "found different texts as reasoning and thinking of messages[1], expected one; "
     "remove one of them"),
    ([ASKED, turn("assistant", "a", weight=0.5)],
     'found 0.5 as "weight" of messages[1], expected 0 or 1'),
    ([ASKED, turn("assistant", "a", train="no")],
     'found text as "train" of messages[1], expected true or false'),
    ([ASKED, turn("assistant", "a", train=True, weight=0)],
     'found "train" and "weight" of messages[1] that disagree'),
    ([turn(train=False)],
     'found "train" in messages[0], expected it in assistant turns only; remove the key'),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "message"), BAD)
def test_a_turn_that_cannot_be_used_is_named(messages: object, message: str) -> None:
    """The whole message: which turn, what was found, what was expected, what to do."""
    with pytest.raises(InputError) as caught:
        check_turns(messages, "t.jsonl:3")
    assert str(caught.value) == f"t.jsonl:3: {message}"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([ANSWER, ASKED], "found an assistant turn first, expected a user or system turn to "
                          "answer; remove that turn"),
        ([ASKED], "found no assistant turn, expected at least one; "
                  "add the answer to be learned, or remove the row"),
    ],
)  # fmt: skip
def test_only_training_needs_an_answer(messages: list[object], message: str) -> None:
    """A prompt may lack one; a row may not."""
    turns = check_turns(messages, "w")
    with pytest.raises(InputError) as caught:
        check_trainable(turns, "w")
    assert str(caught.value) == f"w: {message}"


FUNCTION = {"name": "now", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": FUNCTION}


@pytest.mark.parametrize(
    ("record", "tools"),
    [
        ({"tools": [TOOL]}, [TOOL]),
        ({"tools": [FUNCTION]}, [TOOL]),
        ({"tools": [{"function": FUNCTION}], "functions": None}, [TOOL]),
        ({"tools": json.dumps([FUNCTION, TOOL])}, [TOOL, TOOL]),
        ({"functions": [FUNCTION], "tools": []}, [TOOL]),
        ({"tools": []}, []),
        ({"tools": " "}, []),
        ({"tools": "null"}, []),
        ({}, []),
    ],
)
def test_tools_have_one_plain_form(record: dict[str, object], tools: list[object]) -> None:
    """Bare functions are wrapped, a text of JSON is read, and none is none."""
    assert read_tools(record, "w") == tools


TOOL_SHAPE = 'expected {"type": "function", "function": {"name": …}}'


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"tools": "now"}, 'found text as "tools", expected a list'),
        ({"tools": [7]}, f"found a number as tools[0], {TOOL_SHAPE}"),
        ({"tools": [TOOL, {"title": "x"}]}, f'found the keys "title" as tools[1], {TOOL_SHAPE}'),
        ({"tools": [{"function": {}}]},
         f'found an empty object as "function" of tools[0], {TOOL_SHAPE}'),
        ({"tools": [{"type": "web_search", "function": FUNCTION}]},
         "found another type of tool as tools[0], expected a function"),
        ({"functions": [{"name": None}]},
         'found null as "name" of functions[0].function, expected text'),
        ({"tools": [TOOL], "functions": [FUNCTION]},
         'found both "tools" and "functions", expected one of them; remove "functions"'),
        ({"tools": [{"name": "f", "parameters": {"x": {1, 2}}}]},
         'found a value of type set in "function" of tools[0], expected JSON'),
    ],
)  # fmt: skip
def test_a_tool_that_cannot_be_used_is_named(record: dict[str, object], message: str) -> None:
    """Which tool, what was found and what was expected."""
    with pytest.raises(InputError) as caught:
        read_tools(record, "w")
    assert str(caught.value) == f"w: {message}"


def test_arguments_nested_beyond_reason_are_refused() -> None:
    """What no writer of JSON could write back is refused at its row."""
    deep: dict[str, object] = {}
    for _ in range(200):
        deep = {"x": deep}
    call = {"name": "f", "arguments": deep}
    with pytest.raises(InputError, match="nested deeper than 100 levels"):
        check_turns([ASKED, turn("assistant", None, function_call=call)], "w")


@given(st.text(st.characters(codec=None)))
def test_a_text_passes_where_every_tokenizer_reads_the_same(text: str) -> None:
    """Passed unchanged exactly where it has no NUL and UTF-8 can hold it."""
    usable = "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)
    try:
        found = check_turns([turn(content=text)], "w")
    except InputError:
        assert not usable
    else:
        assert usable
        assert found == [turn(content=text)]
