"""Which answers are trained, and where a system turn goes that a template does not take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.data.encoding.masks import prompt_tokens
from stages.data.encoding.template import read_template
from stages.models.tokenizer import load_tokenizer

Make = Callable[..., Any]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


TWO = [turn("user", "p"), turn("assistant", "x"), turn("user", "q"), turn("assistant", "y")]


@pytest.mark.parametrize(
    ("supervise", "train", "trained"),
    [
        ("assistant", (True, True), ["x<|im_end|>", "y<|im_end|>"]),
        ("assistant", (True, False), ["x<|im_end|>"]),
        ("assistant", (False, True), ["y<|im_end|>"]),
        ("last", (True, True), ["y<|im_end|>"]),
        ("last", (False, True), ["y<|im_end|>"]),
    ],
)
def test_which_answers_are_trained(
    encode_turns: Make,
    pieces: Make,
    byte_model: Make,
    supervise: str,
    train: tuple[bool, bool],
    trained: list[str],
) -> None:
    """All, the last, or those that the row itself does not take out."""
    model, turns = byte_model(), [dict(one) for one in TWO]
    turns[1]["train"], turns[3]["train"] = train
    made = encode_turns(model, *turns, supervise=supervise)
    [shown] = pieces(model, made)
    assert shown[1::2] == trained


def test_with_all_a_turn_that_is_not_to_be_trained_is_not(
    encode_turns: Make, pieces: Make, byte_model: Make
) -> None:
    """Everything is trained but the first token and the answer that the row takes out."""
    model = byte_model()
    turns = [TWO[0], {**TWO[1], "train": False}, *TWO[2:]]
    [shown] = pieces(model, encode_turns(model, *turns, supervise="all"))
    ask = "<|im_end|>\n<|im_start|>assistant\n"
    assert shown == ["<|im_start|>", f"user\np{ask}", "x<|im_end|>",
                      f"\n<|im_start|>user\nq{ask}y<|im_end|>"]  # fmt: skip


EMPTY = ("empty_answer", "supervises_nothing")


@pytest.mark.parametrize(
    ("turns", "changes", "notes"),
    [
        ([TWO[0], {**TWO[1], "train": False}], {}, ("supervises_nothing",)),
        ([*TWO[:3], {**TWO[3], "train": False}], {"supervise": "last"}, ("supervises_nothing",)),
        ([TWO[0], {**TWO[1], "train": False}], {"supervise": "all"}, ("supervises_nothing",)),
        ([TWO[0], turn("assistant", " \n")], {}, EMPTY),
        ([*TWO[:3], turn("assistant", "")], {"supervise": "last"}, EMPTY),
    ],
)
def test_a_row_with_nothing_to_train_is_left_out(
    encode_turns: Make,
    chatml: Path,
    turns: list[Any],
    changes: dict[str, str],
    notes: tuple[str, ...],
) -> None:
    """It makes no example, and the reason is noted."""
    made = encode_turns(chatml, *turns, **changes)
    assert (made.examples, made.notes) == ([], notes)


def test_an_empty_answer_among_others_is_not_trained(
    encode_turns: Make, pieces: Make, chatml: Path
) -> None:
    """It stays in the text, untrained, and is noted."""
    turns = [TWO[0], turn("assistant", ""), *TWO[2:]]
    made = encode_turns(chatml, *turns)
    ask = "<|im_end|>\n<|im_start|>assistant\n"
    assert pieces(chatml, made) == [
        [f"<|im_start|>user\np{ask}<|im_end|>\n<|im_start|>user\nq{ask}", "y<|im_end|>"]
    ]
    assert made.notes == ("empty_answer",)


@pytest.fixture(scope="module")
def chatml(byte_model: Make) -> Path:
    return byte_model()


REFUSING = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
)
DROPPING = CHATML.replace("in messages", "in messages if m.role != 'system'")


@pytest.mark.parametrize("template", [REFUSING, DROPPING], ids=["refusing", "dropping"])
def test_a_system_turn_that_the_template_does_not_take_goes_into_the_question(
    encode_turns: Make, pieces: Make, open_model: Make, byte_model: Make, template: str
) -> None:
    """In training and in generation alike, and the encoder says so."""
    model = byte_model(template)
    turns = [turn("system", "Be brief."), *TWO]
    made = encode_turns(model, *turns)
    ask = "<|im_end|>\n<|im_start|>assistant\n"
    prompt = f"<|im_start|>user\nBe brief.\n\np{ask}"
    [shown] = pieces(model, made)
    assert shown[:2] == [prompt, "x<|im_end|>"]
    assert made.notes == ("system_merged",)
    assert made.examples[0].row.messages == turns
    tokenizer = load_tokenizer(model)
    ids = prompt_tokens(read_template(tokenizer, model), turns[:2], "here")
    assert tokenizer.decode(ids) == prompt
    [treatment] = open_model(model).identity["treatments"]
    assert "its text is put before that of the first user turn" in treatment


def test_a_system_turn_without_a_question_becomes_one(
    encode_turns: Make, pieces: Make, byte_model: Make
) -> None:
    """Its text is what the user says; one that says nothing is left out."""
    model = byte_model(REFUSING)
    made = encode_turns(model, turn("system", "Be brief."), turn("assistant", "x"))
    assert pieces(model, made)[0][0].startswith("<|im_start|>user\nBe brief.<|im_end|>")
    made = encode_turns(model, turn("system", " "), *TWO[:2])
    assert pieces(model, made)[0][0].startswith("<|im_start|>user\np<|im_end|>")
    assert made.notes == ()


def test_a_template_that_takes_system_turns_is_left_alone(
    encode_turns: Make, pieces: Make, open_model: Make, chatml: Path
) -> None:
    """Nothing is merged and nothing is said."""
    made = encode_turns(chatml, turn("system", "Be brief."), *TWO)
    assert pieces(chatml, made)[0][0].startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert open_model(chatml).identity["treatments"] == []
