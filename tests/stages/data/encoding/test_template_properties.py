"""For any conversation and any template: what is trained, and after which tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.data.encoding.masks import prompt_tokens
from stages.data.encoding.template import Template, read_template
from stages.models.tokenizer import load_tokenizer

Make = Callable[..., Any]
Model = tuple[str, Path, Template]

CHATML = ["<|im_start|>", "<|im_end|>"]
LLAMA_3 = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
PHI = ["<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
GRANITE = ["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"]
# Special tokens, the last of which ends an answer; what stands around its words; are they stripped?
TEMPLATES: dict[str, tuple[list[str], str, bool]] = {
    "qwen2.5-instruct": (CHATML, "{}", False),
    "chatml": (CHATML, "{}", True),
    "llama-3-instruct": (LLAMA_3, "{}", True),
    "gemma-it": (["<start_of_turn>", "<end_of_turn>"], "{}", True),
    "mistral-instruct": (["<s>", "</s>"], " {}", True),
    "llama-2-chat": (["<s>", "</s>"], " {} ", True),
    "phi-3": (PHI, "{}", True),
    "phi-3-small": (PHI, "{}", True),
    "zephyr": (["</s>"], "{}", True),
    "granite-3.0-instruct": (GRANITE, "{}", False),
    "openchat-3.5": (["<s>", "<|end_of_turn|>"], " {}", False),
    "vicuna": (["<s>", "</s>"], " {}", True),
    "alpaca": (["<s>", "</s>"], "{}", True),
    "saiga": (["<s>", "</s>"], "{}", True),
}
MERGES = [("\n", "\n"), (" ", "a"), ("a", "b"), (":", " "), ("]", " "), (" ", " "), ("s", "a")]


@pytest.fixture(scope="module", params=TEMPLATES)
def model(request: pytest.FixtureRequest, byte_model: Make, known_template: Make) -> Model:
    return make_model(request.param, byte_model, known_template)


@pytest.fixture(scope="module", params=TEMPLATES)
def merging(request: pytest.FixtureRequest, byte_model: Make, known_template: Make) -> Model:
    """A model with tokens that reach from prompts into answers."""
    return make_model(request.param, byte_model, known_template, merges=MERGES)


def make_model(name: str, byte_model: Make, known_template: Make, **more: Any) -> Model:
    special = TEMPLATES[name][0]
    bos = next((token for token in special if token in ("<s>", "<|begin_of_text|>")), None)
    directory = byte_model(known_template(name), special=special, eos=special[-1], bos=bos, **more)
    return name, directory, read_template(load_tokenizer(directory), directory)


SPELLED = sorted({token for special, _, _ in TEMPLATES.values() for token in special})
LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0\U0010fffd")
PARTS = [*SPELLED, "\n", " ", "a", "b", "é", "𝄞", "\u2028", "\U000f0000", "[INST]", "{{ 1 }}"]
WORDS = st.lists(st.sampled_from(PARTS) | st.text(LETTERS, max_size=9), max_size=5).map("".join)
SAID = WORDS.filter(str.strip)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, str]]:
    turns = [{"role": "system", "content": draw(WORDS)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [{"role": "user", "content": draw(SAID)},
                  {"role": "assistant", "content": draw(SAID)}]  # fmt: skip
    return turns


def answers(name: str, turns: list[dict[str, str]]) -> Iterator[list[int]]:
    """Yield the tokens that each answer should be trained to say, by the table above."""
    special, around, stripped = TEMPLATES[name]
    for turn in turns:
        if turn["role"] == "assistant":
            words = turn["content"].strip() if stripped else turn["content"]
            yield [*around.format("\uffff").replace("\uffff", words).encode(), 255 + len(special)]


QUICK = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(turns=conversations())
@QUICK
def test_trained_is_what_the_answers_say_and_their_ends(
    model: Model, encode_turns: Make, turns: list[dict[str, str]]
) -> None:
    """Whatever the turns spell: no token of a question, none of a prompt, all of every answer."""
    name, directory, _ = model
    [one] = encode_turns(directory, *turns).examples
    trained = one.tokens[one.supervised == 1].tolist()
    assert trained == list(chain(*answers(name, turns)))


@given(turns=conversations())
@QUICK
def test_an_answer_stands_after_the_tokens_it_is_generated_after(
    merging: Model, encode_turns: Make, turns: list[dict[str, str]]
) -> None:
    """Also where words would merge with a prompt: training and generation cut at one place."""
    _, directory, found = merging
    [one] = encode_turns(directory, *turns).examples
    starts = [
        n for n in range(1, len(one.tokens)) if one.supervised[n] and not one.supervised[n - 1]
    ]
    ends = [n for n, turn in enumerate(turns) if turn["role"] == "assistant"]
    assert len(starts) == len(ends)
    for start, end in zip(starts, ends, strict=True):
        assert one.tokens[:start].tolist() == prompt_tokens(found, turns[:end], "here")


@given(turns=conversations(), longest=st.integers(8, 120))
@QUICK
def test_what_is_shortened_fits_and_keeps_the_last_answer(
    model: Model, encode_turns: Make, turns: list[dict[str, str]], longest: int
) -> None:
    """It ends with the last answer whole, and is a row like any other."""
    name, directory, _ = model
    made = encode_turns(directory, *turns, overlong="truncate_left", max_seq_length=longest)
    if not made.examples:
        assert "dropped_overlong" in made.notes
        return
    [one] = made.examples
    *_, last = answers(name, turns)
    assert len(one.tokens) <= longest
    assert one.tokens[-len(last) :].tolist() == last
    assert one.supervised[-len(last) :].all()
    [again] = encode_turns(directory, *one.row.messages).examples
    assert again.tokens.tolist() == one.tokens.tolist()
    kept = [turn for turn in one.row.messages if turn["role"] == "system"]
    assert kept == [turn for turn in turns if turn["role"] == "system"]
