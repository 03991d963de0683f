"""An answer is trained as it is generated, whatever the template does to earlier turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stages.errors import InputError
from stages.models.tokenizer import load_tokenizer

Make = Callable[..., Any]

TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}" + TURN + "{% endfor %}" + PROMPT
# Qwen3: thoughts stay in the answers after the last question only.
FORGETFUL = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n{% if m.reasoning_content and loop.index0 > ns.last %}"
    "<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    + PROMPT
)
# DeepSeek-R1: whatever an earlier answer says before </think> is cut off.
CUTTING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
) + PROMPT
# Only the last question and what follows it.
SHORT_SIGHTED = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages[ns.last:] %}"
    + TURN + "{% endfor %}" + PROMPT
)  # fmt: skip
# What ends an answer is there only as long as it is the last.
OPEN = (
    "{% for m in messages %}<|im_start|>{{ m.content }}"
    "{% if m.role == 'user' or loop.last %}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


TWO = [turn("user", "p"), turn("assistant", "x"), turn("user", "q"), turn("assistant", "y")]
THINKING = [
    turn("user", "p"), turn("assistant", "a", reasoning_content="A?"),
    turn("user", "q"), turn("assistant", "b", reasoning_content="B?"),
]  # fmt: skip


def test_thoughts_of_every_answer_are_trained_where_the_template_keeps_only_the_last(
    encode_turns: Make, pieces: Make, byte_model: Make
) -> None:
    """Each answer is an example with its own thoughts, after a prompt without the earlier ones."""
    model = byte_model(FORGETFUL)
    made = encode_turns(model, *THINKING)
    user, ask = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    assert pieces(model, made) == [
        [f"{user}p{ask}", "<think>A?</think>a<|im_end|>"],
        [f"{user}p{ask}a<|im_end|>\n{user}q{ask}", "<think>B?</think>b<|im_end|>"],
    ]
    assert made.notes == ("unrolled",)


def test_an_unrolled_example_says_what_it_is_made_of(encode_turns: Make, byte_model: Make) -> None:
    """Its row holds the turns up to its answer, which is the only one to be trained."""
    made = encode_turns(byte_model(FORGETFUL), *THINKING)
    first, second = (one.row.messages for one in made.examples)
    assert first == THINKING[:2]
    assert second == [THINKING[0], {**THINKING[1], "train": False}, *THINKING[2:]]
    assert {one.row.source for one in made.examples} == {"rows.jsonl:1"}


def test_an_unrolled_example_encodes_to_itself(encode_turns: Make, byte_model: Make) -> None:
    """Prepared rows that are prepared again give the same tokens."""
    model = byte_model(FORGETFUL)
    for one in encode_turns(model, *THINKING).examples:
        [again] = encode_turns(model, *one.row.messages).examples
        assert again.tokens.tolist() == one.tokens.tolist()
        assert again.supervised.tolist() == one.supervised.tolist()


def test_what_a_template_cuts_from_earlier_answers_is_trained_in_their_own_example(
    encode_turns: Make, pieces: Make, byte_model: Make
) -> None:
    """The thoughts before `</think>` are lost to later prompts, not to training."""
    model = byte_model(CUTTING)
    turns = [turn("user", "p"), turn("assistant", "A?</think>a"), turn("user", "q"),
             turn("assistant", "b")]  # fmt: skip
    made = encode_turns(model, *turns)
    assert [shown[-1] for shown in pieces(model, made)] == [
        "A?</think>a<|im_end|>",
        "b<|im_end|>",
    ]
    assert "A?" not in pieces(model, made)[1][0]


@pytest.mark.parametrize("template", [SHORT_SIGHTED, OPEN], ids=["short-sighted", "open"])
def test_answers_that_a_later_text_drops_or_leaves_open_are_trained_in_their_own(
    encode_turns: Make, pieces: Make, byte_model: Make, template: str
) -> None:
    """Every example is what generation sees and ends with the token that generation stops on."""
    model = byte_model(template)
    tokenizer = load_tokenizer(model)
    turns = [
        turn(role, words) for role, words in zip(["user", "assistant"] * 3, "pxqyrz", strict=True)
    ]
    made = encode_turns(model, *turns)
    assert [shown[-1] for shown in pieces(model, made)] == [f"{a}<|im_end|>" for a in "xyz"]
    for end, one in zip((1, 3, 5), made.examples, strict=True):
        prompt = tokenizer.apply_chat_template(
            turns[:end], add_generation_prompt=True, return_dict=False
        )
        assert one.tokens.tolist() == [*prompt, ord(turns[end]["content"]), 257]


def test_a_window_of_turns_that_moves_with_the_answer_is_refused(
    encode_turns: Make, byte_model: Make
) -> None:
    """The last two turns with an answer are not those without it: no text begins with a prompt."""
    model = byte_model("{% for m in messages[-2:] %}" + TURN + "{% endfor %}" + PROMPT)
    assert encode_turns(model, *TWO[:2]).examples
    with pytest.raises(InputError, match=r"its prompt for messages\[3\] of rows\.jsonl:1 does not"):
        encode_turns(model, *TWO)


def test_a_conversation_is_not_unrolled_without_need(encode_turns: Make, byte_model: Make) -> None:
    """Under a template that leaves earlier turns alone both answers are trained in one example."""
    made = encode_turns(byte_model(), *map(turn, ["user", "assistant"] * 2, "pxqy"))
    assert [int(one.supervised.sum()) for one in made.examples] == [4]
    assert made.notes == ()


def test_an_answer_whose_words_are_not_rendered_is_refused(
    encode_turns: Make, byte_model: Make
) -> None:
    """Neither an answer that is dropped nor one of which a part is cut off is trained."""
    model = byte_model(CUTTING.replace("m.content if loop.last else ", ""))
    with pytest.raises(
        InputError, match=r"rows\.jsonl:1: the words of messages\[1\] would be lost"
    ):
        encode_turns(model, turn("user", "p"), turn("assistant", "A?</think>a"))
    silent = byte_model(
        "{% for m in messages %}<|im_start|>{{ m.content if m.role == 'user' }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    with pytest.raises(InputError, match=r"the words of messages\[1\] would be lost"):
        encode_turns(silent, turn("user", "a"), turn("assistant", "a"))


def test_words_may_begin_in_the_prompt_and_be_spaced_otherwise(
    encode_turns: Make, pieces: Make, byte_model: Make
) -> None:
    """A prompt that opens thoughts begins the words of the answer; blank lines may go."""
    model = byte_model(
        "{% for m in messages %}<|im_start|>{{ m.content | replace('\n\n', '\n') }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|><think>\n{% endif %}"
    )
    made = encode_turns(model, turn("user", "p"), turn("assistant", "<think>\na\n\nb\n"))
    assert pieces(model, made) == [
        ["<|im_start|>p<|im_end|><|im_start|><think>\n", "a\nb\n<|im_end|>"]
    ]
