"""Which rows are the same, ask the same, and belong together."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.data.formats.parser import Row
from stages.data.selection.identity import Digests, asked, digests, question_text

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells the weather."}}


def make_row(content: dict[str, Any], home: str | None = None) -> Row:
    return Row(content, "rows.jsonl:1", "rows.jsonl:1", home=home)


def chat(*turns: tuple[str, str], home: str | None = None, **keys: Any) -> Row:
    messages = [{"role": role, "content": text} for role, text in turns]
    return make_row({"messages": messages} | keys, home)


def found(row: Row) -> Digests:
    return digests(row, row)


def test_digests_are_unsigned_64_bit_numbers_that_never_change() -> None:
    """Pinned: BLAKE2b of the stripped, lower-cased text, as the program `b2sum -l 64` has it."""
    exact, plain = found(make_row({"text": " Abc\n"})), found(make_row({"text": "abc"}))
    assert plain.row == int.from_bytes(bytes.fromhex("d8bb14d833d59559"), "little")
    assert plain == (plain.row,) * 4
    assert exact.exact != plain.exact
    assert exact[1:] == plain[1:]


TURN = st.tuples(st.sampled_from(["user", "assistant"]), st.sampled_from(
    ["", "a", "A ", "1:a", "user:1:a", "ab", "a\nb", "ß", '{"role":"user"}', "0:user"]
))  # fmt: skip
CHATS = st.tuples(st.tuples(st.just("user"), st.just("q")), TURN, TURN, TURN).map(list)


@given(one=CHATS, other=CHATS)
def test_equal_digests_mean_equal_conversations(
    one: list[tuple[str, str]], other: list[tuple[str, str]]
) -> None:
    """Texts that look like the seams between turns confuse nothing."""
    a, b = found(chat(*one)), found(chat(*other))
    assert (a.exact == b.exact) == (one == other)
    plain = [[(role, text.strip().lower()) for role, text in turns] for turns in (one, other)]
    assert (a.row == b.row) == (plain[0] == plain[1])


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (chat(("user", " hi THERE\n"), ("assistant", "no")), "question home"),
        (chat(("user", " hi there\n"), ("assistant", "OK ")), "row question home"),
        (chat(("user", "Hi there"), ("assistant", "Ok")), "exact row question home"),
        (chat(("user", "Hi  there"), ("assistant", "Ok")), ""),
        (chat(("system", "s"), ("user", "Hi there"), ("assistant", "Ok")), ""),
        (chat(("user", "Hi there"), ("assistant", "Ok"), tools=[TOOL]), ""),
        (chat(("user", "Hi there"), ("assistant", "Ok"), home="a"), "exact row question"),
    ],
)
def test_what_two_rows_share(other: Row, same: str) -> None:
    """Case and outer spaces are no difference; inner spaces, system prompts and tools are one."""
    one, two = found(chat(("user", "Hi there"), ("assistant", "Ok"))), found(other)
    assert [
        name for name in one._fields if getattr(one, name) == getattr(two, name)
    ] == same.split()


def test_the_question_is_all_before_the_last_answer() -> None:
    """Earlier answers belong to the question, later turns of the user to none."""
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = chat(*turns)
    assert asked(row) == row.messages[:3]
    assert question_text(row) == "a\nb\nc"
    assert (
        found(chat(*turns[:3], ("assistant", "e"), ("user", "f"))).question == found(row).question
    )
    assert found(chat(turns[0], ("assistant", "B!"), *turns[2:])).question != found(row).question


def test_rows_that_ask_nothing_are_told_apart_by_their_answers() -> None:
    """A system prompt that all rows share must not make them all one question."""
    for head in ([("system", "Write a poem.")], [("system", "s"), ("user", " \n")]):
        one, other = (chat(*head, ("assistant", text)) for text in ("Roses", "Violets"))
        assert found(one).question != found(other).question
        assert found(one).home != found(other).home


def test_train_flags_decide_who_is_a_duplicate_but_not_what_is_asked() -> None:
    """The same words trained otherwise are another row with the same question."""
    row = chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    turns = [dict(turn) for turn in row.messages]
    turns[1]["train"] = False
    other = make_row({"messages": turns})
    assert found(other).question == found(row).question
    assert found(other).row != found(row).row


def test_tool_calls_and_tools_count() -> None:
    """What a tool was asked, and which tools there are, is part of the question."""

    def row(city: str, description: str) -> Row:
        call = CALL | {"function": {"name": "weather", "arguments": {"city": city}}}
        tool = TOOL | {"function": {"name": "weather", "description": description}}
        turns = [
            {"role": "user", "content": "How is it?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "sunny"},
            {"role": "assistant", "content": "Sunny."},
        ]
        return make_row({"messages": turns, "tools": [tool]})

    one = found(row("Rome", "Tells."))
    assert one.row == found(row(" ROME", "tells.")).row
    assert one.exact != found(row(" ROME", "tells.")).exact
    for other in (row("Oslo", "Tells."), row("Rome", "Guesses.")):
        assert one.question != found(other).question


def test_the_order_of_keys_is_no_difference() -> None:
    """The same object written in another order is the same row, to the letter."""
    one = {"role": "user", "content": "a", "name": "Ann"}
    answer = {"role": "assistant", "content": "b"}
    swapped = make_row({"messages": [dict(reversed(one.items())), dict(reversed(answer.items()))]})
    assert found(swapped) == found(make_row({"messages": [one, answer]}))


def test_pieces_share_the_home_of_their_origin_and_nothing_else() -> None:
    """What is made of one row stays in one split, with rows that equal the whole."""
    whole = make_row({"text": "One two. Three four."})
    pieces = [digests(make_row({"text": text}), whole) for text in ("One two.", "Three four.")]
    assert {piece.home for piece in pieces} == {found(make_row({"text": whole.text.upper()})).home}
    assert pieces[0].row == found(make_row({"text": "one two."})).row != pieces[1].row
    long = chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    short = chat(("user", "c"), ("assistant", "d"))
    assert digests(short, long).home == found(long).home != found(short).home


def test_the_value_of_the_group_is_the_home() -> None:
    """Rows of one group share a home, whatever they ask; it is no question's."""
    rows = [chat(("user", text), ("assistant", "b"), home="smith") for text in ("x", "y")]
    assert found(rows[0]).home == found(rows[1]).home
    assert found(rows[0]).question != found(rows[1]).question
    assert found(rows[0]).home != found(make_row({"text": "smith"})).home
