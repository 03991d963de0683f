"""The pieces of an answer are its text: whole characters, up to a stop text, nothing lost."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.generation.text import TextStream
from stages.models.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(byte_model):
    """Bytes, some words that are one token, and two special tokens."""
    merges = [("a", "b"), ("c", "a"), ("ca", "b"), (" ", "b"), ("ab", "ab")]
    return load_tokenizer(byte_model(merges=merges))


def pieces(tokenizer, ids: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    stream = TextStream(tokenizer, stop)
    made = []
    for token in ids:
        made.append(stream.add(token))
        if stream.stopped:
            break
    return [*made, stream.finish()]


@given(ids=st.lists(st.integers(0, 262), max_size=24))
@example(ids=[*"e\u0301 👩‍👩‍👧".encode()])
@example(ids=[0xF0, 0x9F, 0x61, 0x80, 0xFF])
@settings(max_examples=200, deadline=None)
def test_pieces_make_the_decoded_text(tokenizer, ids: list[int]) -> None:
    """Any tokens, broken UTF-8 included, give piecewise what they give at once."""
    expected = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert "".join(pieces(tokenizer, ids)) == expected


@given(text=st.text("abc é🙂\n", max_size=20))
@settings(max_examples=100, deadline=None)
def test_no_piece_holds_half_a_character(tokenizer, text: str) -> None:
    """Each piece of a valid text can be encoded and shown as it comes."""
    made = pieces(tokenizer, tokenizer.encode(text))
    assert "".join(made) == text
    assert all("\ufffd" not in piece for piece in made)


def until_first(text: str, stops: tuple[str, ...]) -> str:
    """Cut `text` before the stop text that is complete first; of two at once the longer counts."""
    for end in range(len(text) + 1):
        hit = [stop for stop in stops if text[:end].endswith(stop)]
        if hit:
            return text[: end - max(map(len, hit))]
    return text


@given(
    text=st.text("abcé ", max_size=20),
    stops=st.lists(st.text("abcé ", min_size=1, max_size=4), max_size=3).map(tuple),
)
@example(text="cab", stops=("a",))
@example(text="xabab", stops=("bab",))
@settings(max_examples=300, deadline=None)
def test_stop_texts_end_the_answer(tokenizer, text: str, stops: tuple[str, ...]) -> None:
    """A stop text inside a token, or across tokens, ends the answer right before it."""
    made = pieces(tokenizer, tokenizer.encode(text), stops)
    assert "".join(made) == until_first(text, stops)


def test_partial_stop_is_held_back_until_it_is_none(tokenizer) -> None:
    """What may become a stop text is not sent, and is sent once it cannot."""
    assert pieces(tokenizer, [*b"xENd"], ("END",)) == ["x", "", "", "ENd", ""]
    assert pieces(tokenizer, [*b"xEN"], ("END",)) == ["x", "", "", "EN"]
    assert pieces(tokenizer, [*b"xENDy"], ("END",)) == ["x", "", "", "", ""]
