"""Whole sequences of well-known models, written by hand: which tokens, and which are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stages.data.formats.parser import Row

Make = Callable[..., Any]

TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Ok!"},
    {"role": "user", "content": "<é>?"},
    {"role": "assistant", "content": "Bye"},
]
SYSTEM = {"role": "system", "content": "Be brief."}

# Special tokens have the ids from 256 on, in the order in which they stand here; every other letter
# has those of its bytes. A segment is trained (1) or not (0).
Segments = list[tuple[str, int]]
QWEN: Segments = [
    ("<|im_start|>", 0), ("system\nYou are Qwen, created by Alibaba Cloud. ", 0),
    ("You are a helpful assistant.", 0), ("<|im_end|>", 0), ("\n", 0),
    ("<|im_start|>", 0), ("user\nHi", 0), ("<|im_end|>", 0), ("\n", 0),
    ("<|im_start|>", 0), ("assistant\n", 0), ("Ok!", 1), ("<|im_end|>", 1), ("\n", 0),
    ("<|im_start|>", 0), ("user\n<é>?", 0), ("<|im_end|>", 0), ("\n", 0),
    ("<|im_start|>", 0), ("assistant\n", 0), ("Bye", 1), ("<|im_end|>", 1),
]  # fmt: skip
CHATML: Segments = [
    ("<|im_start|>", 0), ("system\nBe brief.", 0), ("<|im_end|>", 0), ("\n", 0),
    ("<|im_start|>", 0), ("user\nHi", 0), ("<|im_end|>", 0), ("\n", 0),
    ("<|im_start|>", 0), ("assistant\n", 0), ("Ok!", 1), ("<|im_end|>", 1), ("\n", 0),
    ("<|im_start|>", 0), ("user\n<é>?", 0), ("<|im_end|>", 0), ("\n", 0),
    ("<|im_start|>", 0), ("assistant\n", 0), ("Bye", 1), ("<|im_end|>", 1),
]  # fmt: skip
LLAMA_3: Segments = [
    ("<|begin_of_text|>", 0),
    ("<|start_header_id|>", 0), ("user", 0), ("<|end_header_id|>", 0), ("\n\nHi", 0),
    ("<|eot_id|>", 0),
    ("<|start_header_id|>", 0), ("assistant", 0), ("<|end_header_id|>", 0), ("\n\n", 0),
    ("Ok!", 1), ("<|eot_id|>", 1),
    ("<|start_header_id|>", 0), ("user", 0), ("<|end_header_id|>", 0), ("\n\n<é>?", 0),
    ("<|eot_id|>", 0),
    ("<|start_header_id|>", 0), ("assistant", 0), ("<|end_header_id|>", 0), ("\n\n", 0),
    ("Bye", 1), ("<|eot_id|>", 1),
]  # fmt: skip
GEMMA: Segments = [
    ("<start_of_turn>", 0), ("user\nBe brief.\n\nHi", 0), ("<end_of_turn>", 0), ("\n", 0),
    ("<start_of_turn>", 0), ("model\n", 0), ("Ok!", 1), ("<end_of_turn>", 1), ("\n", 0),
    ("<start_of_turn>", 0), ("user\n<é>?", 0), ("<end_of_turn>", 0), ("\n", 0),
    ("<start_of_turn>", 0), ("model\n", 0), ("Bye", 1), ("<end_of_turn>", 1),
]  # fmt: skip
MISTRAL: Segments = [
    ("<s>", 0), ("[INST] Hi [/INST]", 0), (" Ok!", 1), ("</s>", 1),
    ("[INST] <é>? [/INST]", 0), (" Bye", 1), ("</s>", 1),
]  # fmt: skip
GOLDEN: dict[str, tuple[list[str], list[dict[str, str]], Segments]] = {
    "qwen2.5-instruct": (["<|im_start|>", "<|im_end|>"], TURNS, QWEN),
    "chatml": (["<|im_start|>", "<|im_end|>"], [SYSTEM, *TURNS], CHATML),
    "llama-3-instruct": (
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        TURNS, LLAMA_3,
    ),
    "gemma-it": (["<start_of_turn>", "<end_of_turn>"], [SYSTEM, *TURNS], GEMMA),
    "mistral-instruct": (["<s>", "</s>"], TURNS, MISTRAL),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_two_answers_give_the_sequence_written_by_hand(
    name: str, byte_model: Make, known_template: Make, encode: Make
) -> None:
    """Each token and its mask are those of the segments."""
    special, messages, segments = GOLDEN[name]
    bos = special[0] if special[0] in ("<s>", "<|begin_of_text|>") else None
    model = byte_model(known_template(name), special=special, eos=special[-1], bos=bos)
    ids: list[int] = []
    mask: list[int] = []
    for text, flag in segments:
        made = [256 + special.index(text)] if text in special else list(text.encode())
        ids += made
        mask += [flag] * len(made)
    assert encode(model, Row({"messages": messages}, "r:1", "r:1")) == [(ids, mask)]


def test_mistral_is_this_very_list(byte_model: Make, known_template: Make, encode: Make) -> None:
    """The same once more as plain numbers."""
    model = byte_model(
        known_template("mistral-instruct"), special=["<s>", "</s>"], eos="</s>", bos="<s>"
    )
    assert encode(model, Row({"messages": TURNS}, "r:1", "r:1")) == [(
        [256, 91, 73, 78, 83, 84, 93, 32, 72, 105, 32, 91, 47, 73, 78, 83, 84, 93, 32, 79, 107, 33,
         257, 91, 73, 78, 83, 84, 93, 32, 60, 195, 169, 62, 63, 32, 91, 47, 73, 78, 83, 84, 93, 32,
         66, 121, 101, 257],
        [0] * 18 + [1] * 5 + [0] * 20 + [1] * 5,
    )]  # fmt: skip
