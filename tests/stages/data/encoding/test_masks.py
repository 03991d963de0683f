"""Token ids and loss masks, against sequences written by hand and a renderer of its own."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.data.formats.parser import Row
from stages.errors import InputError
from stages.models.tokenizer import load_tokenizer

Encode = Callable[..., list[tuple[list[int], list[int]]]]

START, END = 256, 257
NEWLINE = 10


def chat(*turns: tuple[str, str]) -> Row:
    messages = [{"role": role, "content": content} for role, content in turns]
    return Row({"messages": messages}, "rows.jsonl:1", "rows.jsonl:1")


def text(words: str) -> Row:
    return Row({"text": words}, "rows.jsonl:1", "rows.jsonl:1")


CHAT = chat(("user", "Hi"), ("assistant", "Ok!"))
TEXT = text("hé")


@pytest.fixture(scope="module")
def chatml(byte_model: Callable[..., Path]) -> Path:
    return byte_model()


HELLO = [
    START, 117, 115, 101, 114, NEWLINE, 72, 105, END, NEWLINE,
    START, 97, 115, 115, 105, 115, 116, 97, 110, 116, NEWLINE, 79, 107, 33, END,
]  # fmt: skip
"""user: Hi, assistant: Ok!"""


def test_one_answer_gives_the_sequence_written_by_hand(chatml: Path, encode: Encode) -> None:
    """The answer and its end token are supervised; the newline after it is left out."""
    row = chat(("user", "Hi"), ("assistant", "Ok!"))
    assert encode(chatml, row) == [(HELLO, [0] * 21 + [1] * 4)]


def test_supervise_all_takes_every_token_but_the_first(chatml: Path, encode: Encode) -> None:
    """With supervise=all the prompt is trained too, except the token that nothing predicts."""
    row = chat(("user", "Hi"), ("assistant", "Ok!"))
    assert encode(chatml, row, supervise="all") == [(HELLO, [0] + [1] * 24)]


def test_every_answer_of_a_conversation_is_supervised(chatml: Path, encode: Encode) -> None:
    """Both answers are supervised with their end tokens, the user's turn between them is not."""
    row = chat(("user", "Hi"), ("assistant", "Ok!"), ("user", "?"), ("assistant", "a"))
    second = [NEWLINE, START, *b"user\n?", END, NEWLINE, START, *b"assistant\na", END]
    mask = [0] * 21 + [1] * 4 + [0] * (len(second) - 2) + [1, 1]
    assert encode(chatml, row) == [(HELLO + second, mask)]


def test_an_unanswered_last_turn_is_left_out(chatml: Path, encode: Encode) -> None:
    """A user's turn after the last answer trains nothing and is cut off."""
    row = chat(("user", "Hi"), ("assistant", "Ok!"), ("user", "Bye"))
    assert encode(chatml, row) == [(HELLO, [0] * 21 + [1] * 4)]


WORDS = st.lists(
    st.sampled_from(["<|im_end|>", "<|im_start|>", "<|im_", "end|>", "\n", "\n\n", " ", "é",
                     "{{ 1 }}", "\U000f0000", "assistant", "a", "𝄞"]),
    max_size=6,
).map("".join)  # fmt: skip
CHATS = st.tuples(
    st.lists(st.tuples(st.just("system"), WORDS), max_size=1),
    st.lists(st.tuples(st.sampled_from(["user", "assistant"]), WORDS), max_size=4),
).map(lambda parts: [*parts[0], ("user", "q"), *parts[1], ("assistant", "a")])


@given(turns=CHATS, supervise_all=st.booleans())
@settings(deadline=None, max_examples=200)
def test_ids_and_mask_are_those_of_the_definition(
    chatml: Path, encode: Encode, turns: list[tuple[str, str]], supervise_all: bool
) -> None:
    """Whatever the turns hold, specials come from the template alone and answers are supervised."""
    ids: list[int] = []
    mask: list[int] = []
    for role, content in turns:
        head, body = [START, *f"{role}\n".encode()], [*content.encode(), END]
        ids += [*head, *body, NEWLINE]
        # An answer that says nothing is never trained.
        empty = role == "assistant" and not content.strip()
        trained = supervise_all or role == "assistant"
        mask += [int(supervise_all)] * len(head) + [int(trained and not empty)] * len(body)
        mask += [int(supervise_all)]
    mask[0] = 0
    supervise = "all" if supervise_all else "assistant"
    # The newline after the last end token trains nothing.
    assert encode(chatml, chat(*turns), supervise=supervise) == [(ids[:-1], mask[:-1])]


def test_ids_are_those_of_apply_chat_template(
    byte_model: Callable[..., Path], encode: Encode
) -> None:
    """For turns without special text, the ids are what transformers makes for serving."""
    model = byte_model(merges=[("a", "b"), ("ab", "ab"), ("\n", "\n")])
    row = chat(("user", "abab\n\nab"), ("assistant", "ab"), ("user", "b"), ("assistant", "abab"))
    expected = load_tokenizer(model).apply_chat_template(row.messages, return_dict=False)
    assert encode(model, row)[0][0] == expected[:-1]


def test_an_answer_never_merges_with_its_prompt(
    byte_model: Callable[..., Path], encode: Encode
) -> None:
    """Where prompt and answer would share a token, the prompt keeps the tokens it has alone."""
    model = byte_model(merges=[("\n", "\n")])
    row = chat(("user", "x\n\ny"), ("assistant", "\nz"), ("user", "é"), ("assistant", "\n\n."))
    ids, mask = encode(model, row)[0]
    merged, start, end = 256, 257, 258
    head = [start, *b"user\nx", merged, ord("y"), end, NEWLINE, start, *b"assistant\n"]
    middle = [NEWLINE, start, *"user\né".encode(), end, NEWLINE, start, *b"assistant\n"]
    assert ids == [*head, NEWLINE, ord("z"), end, *middle, merged, ord("."), end]
    assert mask == [0] * len(head) + [1] * 3 + [0] * len(middle) + [1] * 3


def test_a_template_whose_prompt_is_not_in_the_row_is_refused(
    byte_model: Callable[..., Path],
    encode: Encode,
) -> None:
    """A generation prompt that opens thoughts the row does not have is named, with the template."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    model = byte_model(template)
    with pytest.raises(InputError) as caught:
        encode(model, chat(("user", "p"), ("assistant", "a")))
    assert caught.value.where == f"chat template of {model}"
    assert (
        caught.value.found
        == "its prompt for messages[1] of rows.jsonl:1 does not begin the whole row"
    )


def test_a_template_that_refuses_a_row_names_row_and_reason(
    byte_model: Callable[..., Path],
    encode: Encode,
) -> None:
    """What the template raises is passed on, with the line of the row."""
    template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(InputError, match=r"rows\.jsonl:1: .*System role not supported"):
        encode(byte_model(template), chat(("user", "p"), ("assistant", "a")))


def test_a_stop_token_may_be_named_by_the_generation_config(
    byte_model: Callable[..., Path],
    encode: Encode,
) -> None:
    """Gemma's case: the template closes answers with another token than the tokenizer's eos."""
    model = byte_model(special=("<|im_start|>", "<|im_end|>", "<eos>"), eos="<eos>",
                       config={"eos_token_id": [258, 257]})  # fmt: skip
    assert encode(model, chat(("user", "Hi"), ("assistant", "Ok!")))[0][0] == HELLO
    without = byte_model(special=("<|im_start|>", "<|im_end|>", "<eos>"), eos="<eos>")
    with pytest.raises(InputError, match="does not end with a token that generation stops on"):
        encode(without, chat(("user", "Hi"), ("assistant", "Ok!")))


def test_the_date_in_a_template_is_the_same_every_day(
    byte_model: Callable[..., Path], encode: Encode
) -> None:
    """Llama 3.2's template asks for today's date; rows prepared tomorrow must not differ."""
    template = (
        "<|im_start|>{{ strftime_now('%d %b %Y') if strftime_now is defined else '' }}"
        "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    )
    ids, _ = encode(byte_model(template), chat(("user", "p"), ("assistant", "a")))[0]
    assert bytes(ids[1:12]) == b"26 Jul 2024"
    assert datetime.date.today() != datetime.date(2024, 7, 26)


def test_truncation_and_padding_of_a_tokenizer_file_do_not_apply(
    byte_model: Callable[..., Path],
    encode: Encode,
) -> None:
    """A tokenizer.json that asks for 8 tokens neither shortens nor pads a row."""

    def cramp(backend: Any) -> None:
        backend.enable_truncation(8)
        backend.enable_padding(length=64)

    model = byte_model(edit=cramp)
    assert encode(model, chat(("user", "Hi"), ("assistant", "Ok!")))[0][0] == HELLO
    assert encode(model, text("Hello, Hello"))[0][0] == [*b"Hello, Hello", END]


@pytest.mark.parametrize(
    ("changes", "row", "message"),
    [
        ({"template": None}, CHAT, "its tokenizer has no chat template; choose an instruct model"),
        ({"eos": None}, CHAT, "names no token that ends a text; set eos_token"),
        ({"eos": None, "config": {"eos_token_id": 257}}, TEXT,
         "names no token that ends a text; set eos_token"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_lacks_something_is_refused(
    byte_model: Callable[..., Path],
    open_model: Callable[..., Any],
    changes: dict[str, Any],
    row: Row,
    message: str,
) -> None:
    """What is missing, and what to do about it, is raised: it is no fault of the row."""
    with pytest.raises(InputError, match=message):
        open_model(byte_model(**changes)).encode([row])


def test_rows_of_text_need_no_chat_template(
    byte_model: Callable[..., Path], open_model: Callable[..., Any]
) -> None:
    """A base model without one encodes texts, and says of itself that it has none."""
    encoder = open_model(byte_model(None))
    assert encoder.encode([TEXT])[0].examples[0].tokens.tolist() == [104, 195, 169, END]
    assert encoder.identity["chat_template_sha256"] is None
    assert encoder.identity["stop_token_ids"] == [END]


def test_chats_and_texts_may_be_mixed_and_a_bad_row_spoils_no_other(
    chatml: Path, open_model: Callable[..., Any]
) -> None:
    """One result for each row, in order; faults stand where their rows stood."""
    rows = [TEXT, chat(("user", "\U0010fffd"), ("assistant", "a")), CHAT, text(""), TEXT]
    results = open_model(chatml).encode(rows)
    assert [type(result).__name__ for result in results] == [
        "Encoded", "InputError", "Encoded", "InputError", "Encoded",
    ]  # fmt: skip
    assert results[2].examples[0].tokens.tolist() == HELLO
    assert results[2].examples[0].row is CHAT
    assert results[4].examples[0].row is TEXT


def test_a_text_ends_with_the_end_token_once(chatml: Path, encode: Encode) -> None:
    """The end token is appended unless the text spells it; the first token is no target."""
    expected = [([104, 195, 169, END], [0, 1, 1, 1])]
    assert encode(chatml, TEXT) == expected
    assert encode(chatml, text("hé<|im_end|>")) == expected


@pytest.mark.parametrize("supervise", ["assistant", "last", "all"])
def test_a_text_is_trained_whole(chatml: Path, encode: Encode, supervise: str) -> None:
    """Which turns are supervised is nothing to a text."""
    assert encode(chatml, TEXT, supervise=supervise)[0][1] == [0, 1, 1, 1]


def test_a_text_begins_as_the_tokenizer_begins_it(
    byte_model: Callable[..., Path], encode: Encode
) -> None:
    """A tokenizer that puts a start token in front does so here, as when it serves."""
    from tokenizers.processors import TemplateProcessing

    def begin(backend: Any) -> None:
        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])

    model = byte_model(special=("<s>", "</s>"), bos="<s>", eos="</s>", edit=begin)
    assert encode(model, text("a")) == [([256, 97, 257], [0, 1, 1])]
