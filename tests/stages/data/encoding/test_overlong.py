"""Rows that are too long: left out, refused, shortened at their beginning, or split."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from stages.data.encoding.encoder import Encoded
from stages.data.formats.parser import Row
from stages.models.tokenizer import load_tokenizer

Make = Callable[..., Any]
END = 257

# A turn of ChatML takes four bytes of frame and its role; the prompt of an answer takes 11.
SYSTEM = {"role": "system", "content": "S."}


def conversation(*contents: str) -> list[dict[str, Any]]:
    roles = ("user", "assistant") * len(contents)
    return [{"role": role, "content": words} for role, words in zip(roles, contents, strict=False)]


@pytest.fixture(scope="module")
def chatml(byte_model: Make) -> Path:
    model: Path = byte_model()
    return model


def text(model: Path, made: Encoded) -> list[str]:
    return [load_tokenizer(model).decode(one.tokens.tolist()) for one in made.examples]


@pytest.mark.parametrize("overlong", ["drop", "auto", "split"])
def test_a_conversation_that_is_too_long_is_left_out_and_noted(
    chatml: Path, encode_turns: Make, overlong: str
) -> None:
    """25 tokens are not too long for 25, but for 24."""
    turns = conversation("Hi", "Ok!")
    assert len(encode_turns(chatml, *turns, overlong=overlong, max_seq_length=25).examples) == 1
    made = encode_turns(chatml, *turns, overlong=overlong, max_seq_length=24)
    assert (made.examples, made.notes) == ([], ("dropped_overlong",))


@pytest.mark.parametrize("content", [{"messages": conversation("Hi", "Ok!")}, {"text": "x" * 24}])
def test_error_names_the_row_and_its_length(
    chatml: Path, open_model: Make, content: dict[str, Any]
) -> None:
    """It is the fault of the row."""
    encoder = open_model(chatml, overlong="error", max_seq_length=24)
    [found] = encoder.encode([Row(content, "rows.jsonl:1", "rows.jsonl:1")])
    assert str(found).startswith(
        "rows.jsonl:1: its row has 25 tokens, more than data.max_seq_length=24; shorten it"
    )


def shortened(chatml: Path, encode_turns: Make, longest: int, *turns: Any, **more: Any) -> Encoded:
    made: Encoded = encode_turns(
        chatml, *turns, overlong="truncate_left", max_seq_length=longest, **more
    )
    return made


def test_the_oldest_turns_go_first(chatml: Path, encode_turns: Make) -> None:
    """The system turn stays, a question goes with its answers, and no more goes than must."""
    turns = [SYSTEM, *conversation("a" * 30, "b", "c", "d", "e", "f")]
    frame = "<|im_start|>system\nS.<|im_end|>\n"
    pair = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>"
    second, third = pair.format("c", "d"), pair.format("e", "f")
    # 13 tokens of system turn; 22 of the two turns that follow, and a line end between pairs.
    made = shortened(chatml, encode_turns, 12 + 22 + 1 + 22, *turns)
    assert text(chatml, made) == [f"{frame}{second}\n{third}"]
    assert made.notes == ("truncated",)
    assert made.examples[0].row.messages == [SYSTEM, *turns[3:]]
    made = shortened(chatml, encode_turns, 12 + 22, *turns)
    assert text(chatml, made) == [f"{frame}{third}"]
    assert int(made.examples[0].supervised.sum()) == 2


def test_the_beginning_of_the_last_question_goes_where_it_alone_is_too_long(
    chatml: Path, encode_turns: Make
) -> None:
    """As few letters go as must, and neither half a letter nor any of the answer."""
    turns = [SYSTEM, *conversation("old", "b", "é" * 30 + "?", "the answer")]
    # Of 40 tokens, 33 + 9 are not the question's.
    made = shortened(chatml, encode_turns, 12 + 20 + 10 + 8, *turns)
    [shown] = text(chatml, made)
    assert "user\nééé?<|im_end|>" in shown
    assert shown.endswith("assistant\nthe answer<|im_end|>")
    assert len(made.examples[0].tokens) == 49
    assert made.examples[0].row.messages[1]["content"] == "ééé?"
    assert int(made.examples[0].supervised.sum()) == 11


def test_an_answer_is_never_cut(chatml: Path, encode_turns: Make) -> None:
    """Where one letter of the question and the whole answer do not fit, the row is left out."""
    turns = conversation("question \n", "the answer")
    made = shortened(chatml, encode_turns, 11 + 11 + 11, *turns)
    assert made.examples[0].row.messages[0]["content"] == "n \n"
    made = shortened(chatml, encode_turns, 11 + 11 + 11 - 1, *turns)
    assert (made.examples, made.notes) == ([], ("dropped_overlong",))


def test_a_tools_result_never_loses_its_call(byte_model: Make, encode_turns: Make) -> None:
    """Turns go from one question to the next, whatever stands between."""
    model = byte_model(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|im_end|>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    tool = [
        {"role": "user", "content": "a" * 20},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "r" * 20},
        {"role": "assistant", "content": "b"},
    ]
    for longest in range(40, 160):
        made = shortened(model, encode_turns, longest, *conversation("q", "x"), *tool)
        for one in made.examples:
            roles = [turn["role"] for turn in one.row.messages]
            assert roles[-4:] == ["user", "assistant", "tool", "assistant"]
            assert roles[0] == "user"
            assert len(one.tokens) <= longest
    assert made.notes == ()


def test_a_short_end_of_a_huge_question_is_found_at_once(chatml: Path, encode_turns: Make) -> None:
    """The work is that of what is kept, not of the million letters that are not."""
    made = shortened(chatml, encode_turns, 64, *conversation("x" * 1_000_000, "b"))
    assert [len(one.tokens) for one in made.examples] == [64]


def test_the_end_of_a_text_is_kept(chatml: Path, open_model: Make) -> None:
    """Its last tokens with the end token, beginning with a whole letter."""
    encoder = open_model(chatml, overlong="truncate_left", max_seq_length=6)
    [made] = encoder.encode([Row({"text": "abcé" + "é12"}, "r:1", "r:1")])
    [one] = made.examples
    assert one.tokens.tolist() == [0xC3, 0xA9, ord("1"), ord("2"), END]
    assert one.supervised.tolist() == [0, 1, 1, 1, 1]
    assert (one.row.content, made.notes) == ({"text": "é12"}, ("truncated",))


def test_a_text_is_continued_in_further_rows(byte_model: Make, open_model: Make) -> None:
    """Each begins as the tokenizer begins a text; the last one alone ends with the end token."""

    def begin(backend: Any) -> None:
        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])

    model = byte_model(special=("<s>", "</s>"), bos="<s>", eos="</s>", edit=begin)
    encoder = open_model(model, overlong="auto", max_seq_length=5)
    [made] = encoder.encode([Row({"text": "abcdefgéhi"}, "rows.jsonl:1", "here:1", "text", "home")])
    assert [one.tokens.tolist() for one in made.examples] == [
        [256, *b"abcd"], [256, *b"efg"], [256, 195, 169], [256, *b"hi", 257],
    ]  # fmt: skip
    assert [one.row.text for one in made.examples] == ["abcd", "efg", "é", "hi"]
    assert {(one.row.source, one.row.where, one.row.home) for one in made.examples} == {
        ("rows.jsonl:1", "here:1", "home")
    }
    assert made.notes == ("split",)


@pytest.mark.parametrize("overlong", ["split", "truncate_left"])
def test_a_text_without_room_for_a_piece_is_left_out(
    chatml: Path, open_model: Make, overlong: str
) -> None:
    """Of two or three tokens nothing is learnt."""
    encoder = open_model(chatml, overlong=overlong, max_seq_length=3)
    [made] = encoder.encode([Row({"text": "abcdef"}, "r:1", "r:1")])
    assert (made.examples, made.notes) == ([], ("dropped_overlong",))


LETTERS = st.text(st.sampled_from("ab é𝄞\n"), min_size=1)


@given(words=LETTERS.filter(str.strip), longest=st.integers(4, 12))
@settings(deadline=None)
def test_pieces_are_the_text_once(chatml: Path, open_model: Make, words: str, longest: int) -> None:
    """Put together they are all tokens and all letters; none is too long, none has one token."""
    encoder = open_model(chatml, overlong="split", max_seq_length=longest)
    [made] = encoder.encode([Row({"text": words}, "r:1", "r:1")])
    tokens = [one.tokens.tolist() for one in made.examples]
    assert list(chain(*tokens)) == [*words.encode(), END]
    assert "".join(one.row.text for one in made.examples) == words
    assert all(2 <= len(piece) <= longest for piece in tokens)
    for one in made.examples:
        assert one.supervised.tolist() == [0] + [1] * (len(one.tokens) - 1)


def test_pieces_are_the_tokens_of_the_whole_text(byte_model: Make, open_model: Make) -> None:
    """Also where tokens are of several letters, and where the text spells its own end."""
    model = byte_model(merges=[("a", "b"), ("ab", "ab")])
    words = "ababéaab" * 9 + "<|im_end|>"
    tokenizer = load_tokenizer(model)
    encoder = open_model(model, overlong="split", max_seq_length=7)
    [made] = encoder.encode([Row({"text": words}, "r:1", "r:1")])
    tokens = chain(*(one.tokens.tolist() for one in made.examples))
    assert list(tokens) == tokenizer.encode(words)
    for one in made.examples:
        assert one.row.text == tokenizer.decode(one.tokens.tolist())
