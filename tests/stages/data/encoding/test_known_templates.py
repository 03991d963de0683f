"""Templates of well-known models: a correct mask, or a refusal that says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.data.encoding.rendering import compile_template
from stages.data.formats.parser import Row
from stages.errors import InputError
from stages.models.tokenizer import load_tokenizer

FOLDER = Path(__file__).parents[5] / "shared" / "data" / "chat_templates"
Make = Callable[..., Any]

# Name: special tokens, then what an answer is trained to say, for an answer of `Yes.`.
CHATML = ["<|im_start|>", "<|im_end|>"]
LLAMA_3 = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
PHI = ["<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
GRANITE = ["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"]
MASKED = {
    "qwen2.5-instruct": (CHATML, "Yes.<|im_end|>"),
    "chatml": (CHATML, "Yes.<|im_end|>"),
    "llama-3-instruct": (LLAMA_3, "Yes.<|eot_id|>"),
    "gemma-it": (["<start_of_turn>", "<end_of_turn>"], "Yes.<end_of_turn>"),
    "mistral-instruct": (["<s>", "</s>"], " Yes.</s>"),
    "llama-2-chat": (["<s>", "</s>"], " Yes. </s>"),
    "phi-3": (PHI, "Yes.<|end|>"),
    "phi-3-small": (PHI, "Yes.<|end|>"),
    "zephyr": (["</s>"], "Yes.</s>"),
    "granite-3.0-instruct": (GRANITE, "Yes.<|end_of_text|>"),
    "openchat-3.5": (["<s>", "<|end_of_turn|>"], " Yes.<|end_of_turn|>"),
    "vicuna": (["<s>", "</s>"], " Yes.</s>"),
    "alpaca": (["<s>", "</s>"], "Yes.</s>"),
    "saiga": (["<s>", "</s>"], "Yes.</s>"),
}
ENDLESS = ("amberchat", "chatqa", "falcon-instruct", "solar-instruct")


def chat(*turns: str) -> Row:
    roles = ("user", "assistant") * len(turns)
    messages = [{"role": role, "content": words} for role, words in zip(roles, turns, strict=False)]
    return Row({"messages": messages}, "rows.jsonl:7", "rows.jsonl:7")


@pytest.mark.parametrize("name", MASKED)
def test_a_known_template_trains_every_answer_to_its_end(
    name: str, byte_model: Make, known_template: Make, encode: Make
) -> None:
    """All that is trained is the answers, each with the token that ends it."""
    special, answer = MASKED[name]
    bos = next((token for token in special if token in ("<s>", "<|begin_of_text|>")), None)
    model = byte_model(known_template(name), special=special, eos=special[-1], bos=bos)
    tokenizer = load_tokenizer(model)
    [(ids, mask)] = encode(model, chat(f"Is {special[-1]} text?", "Yes.", "Sure?", "Yes."))
    trained = [token for token, flag in zip(ids, mask, strict=True) if flag]
    assert tokenizer.decode(trained) == answer * 2
    end = tokenizer.convert_tokens_to_ids(special[-1])
    # The users' turns of zephyr and granite end with the same token; the spelled one is plain text.
    assert ids.count(end) == tokenizer.apply_chat_template(
        [{"role": r, "content": "x"} for r in ("user", "assistant") * 2], return_dict=False
    ).count(end)
    assert mask[-1] == 1


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_an_end_token_is_refused(
    name: str, byte_model: Make, known_template: Make, open_model: Make
) -> None:
    """A model trained on answers that never end would never stop."""
    model = byte_model(known_template(name), special=["<s>", "</s>"], eos="</s>", bos="<s>")
    with pytest.raises(InputError, match=r"an answer of rows\.jsonl:7 does not end") as caught:
        open_model(model).encode([chat("Is it?", "Yes.")])
    assert "data.chat_template" in caught.value.mend


@pytest.mark.skipif(not FOLDER.is_dir(), reason="no folder of chat templates here")
def test_every_template_of_the_folder_is_covered() -> None:
    """No template is forgotten when the folder grows."""
    assert {file.stem for file in FOLDER.glob("*.jinja")} == {*MASKED, *ENDLESS}


SYSTEM = {"role": "system", "content": "Be brief. "}
TURNS = [
    {"role": "user", "content": ' Is "<b>" text?\n'},
    {"role": "assistant", "content": "Yes.\n\nÄ"},
    {"role": "user", "content": "Sure?"},
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("name", [*MASKED, *ENDLESS])
@pytest.mark.parametrize("messages", [TURNS, [SYSTEM, *TURNS], TURNS[:2]])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_a_template_renders_as_in_transformers(
    name: str,
    byte_model: Make,
    known_template: Make,
    messages: list[dict[str, Any]],
    add_generation_prompt: bool,
) -> None:
    """To the byte, as the file of the model has it and as it is meant."""
    tokenizer = load_tokenizer(byte_model(None, special=["<s>", "</s>"], eos="</s>", bos="<s>"))
    for source in (known_template(name), (FOLDER / f"{name}.jinja").read_text()):
        expected = tokenizer.apply_chat_template(
            messages, chat_template=source, tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )  # fmt: skip
        render = compile_template(source, SPECIAL)
        assert render(messages, None, add_generation_prompt) == expected


@pytest.mark.parametrize("name", ["qwen2.5-instruct", "granite-3.0-instruct"])
def test_tools_render_as_in_transformers(name: str, byte_model: Make, known_template: Make) -> None:
    """Schemas, calls and results; letters beyond ASCII and HTML are not escaped."""
    function = {"name": "wéather", "description": "<b>'now'</b>", "parameters": {"type": "object"}}
    call = {"type": "function", "function": {"name": "wéather", "arguments": {"city": "Köln"}}}
    tools = [{"type": "function", "function": function}]
    messages = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": '{"rain": true}'},
    ]
    tokenizer = load_tokenizer(byte_model(known_template(name)))
    expected = tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=True
    )
    assert "wéather" in expected
    assert compile_template(known_template(name), {})(messages, tools, True) == expected
