"""The model that comes with the package: opened by everyone, its tokenizer without loss."""

import hashlib
import json
import re
from random import Random

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx import nn

from stages.artifacts import BaseModel
from stages.data.samples import rows
from stages.data.samples.vocabulary import names
from stages.inputs import EMBEDDED
from stages.models.loading import load_model
from stages.models.tokenizer import load_tokenizer, stop_token_ids
from stages.models.validate import validate


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(EMBEDDED)


def test_it_validates_and_ends_its_turns(tokenizer):
    """The config is one that mlx-lm knows, and <|im_end|> alone stops generation."""
    config = validate(EMBEDDED)
    assert tokenizer.eos_token == "<|im_end|>"
    assert stop_token_ids(EMBEDDED, tokenizer) == (tokenizer.eos_token_id,)
    assert len(tokenizer) == config["vocab_size"]
    assert tokenizer.model_max_length == config["max_position_embeddings"]
    named = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer.convert_tokens_to_ids(named) == [0, 1, 2]
    assert (config["pad_token_id"], config["eos_token_id"]) == (0, 2)


def test_mlx_lm_and_transformers_agree_on_it():
    """Both open the directory as it is; in float32 their logits agree to 1e-4."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = np.random.default_rng(3).integers(3, 6144, (2, 37))
    stored, _ = mlx_lm.load(str(EMBEDDED))
    assert stored.model.embed_tokens.weight.dtype == mx.bfloat16
    reference = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    with torch.no_grad():
        expected = reference(torch.tensor(ids)).logits.numpy()
    module = load_model(BaseModel(directory=EMBEDDED, dtype="float32"))
    np.testing.assert_allclose(np.array(module(mx.array(ids))), expected, atol=1e-4)


def test_chatml(tokenizer):
    """The template is ChatML, special tokens are one id each, and the prompt opens an answer."""
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert (ids.count(1), ids.count(2)) == (3, 2)


@given(text=st.text(max_size=60))
def test_every_text_survives_the_tokenizer(tokenizer, text):
    """Byte-level: decoding the ids of any text gives the text, and no text makes special tokens."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text


def test_a_name_is_split_alike_wherever_it_stands(tokenizer):
    """After a space, a quote and a line break, so that it can be copied token by token."""
    for name in (name for split in ("train", "valid", "test") for name in names(split)):
        alone = tokenizer.tokenize(name)
        for before in (" with ", '"with":"', "\n"):
            assert tokenizer.tokenize(before + name)[-len(alone) :] == alone, name


def test_bundled_conversations_are_short(tokenizer):
    """Whole words are tokens: a training row takes fewer ids than a third of its characters."""
    texts = [
        tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows("train")
    ]
    ids = tokenizer(texts, add_special_tokens=False).input_ids
    assert sum(map(len, ids)) * 3 < sum(map(len, texts))


def test_nothing_of_the_machine_that_trained_it_is_in_its_texts():
    """Config and tokenizer settings hold no path."""
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        values = json.loads((EMBEDDED / name).read_text())
        assert not [value for value in values.values() if isinstance(value, str) and "/" in value]


def test_card_names_the_digest_of_every_file():
    """What the card describes is what is shipped: no file more, none less, 20 MB at most."""
    files = {file.name: file for file in EMBEDDED.iterdir()}
    card = files.pop("README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `([\w.]+)` \| `([0-9a-f]{64})` \|$", card, re.MULTILINE))
    assert listed == {
        name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()
    }
    assert sum(file.stat().st_size for file in EMBEDDED.iterdir()) <= 20_000_000


def test_card_counts_the_parameters():
    """The number the card gives is that of the stored tensors, between 5 and 9 million."""
    weights = mx.load(str(EMBEDDED / "model.safetensors"))
    count = sum(weight.size for weight in weights.values())
    assert 5_000_000 <= count <= 9_000_000
    assert f"{count:,} parameters" in (EMBEDDED / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text",
    [
        "The king had three daughters, and the youngest was the most beautiful of them all.",
        "She opened the door and looked into the room, but there was nobody there.",
        "They went down to the river and sat under a tree until the sun had set.",
    ],
)
def test_it_has_learnt_english(tokenizer, text):
    """Words in their order are far likelier than the same words in another order."""
    module = load_model(BaseModel(directory=EMBEDDED, dtype="float32"))
    words = text.split()

    def loss(text: str) -> float:
        ids = mx.array([tokenizer.encode(text)])
        logits = module(ids[:, :-1])
        return nn.losses.cross_entropy(logits, ids[:, 1:], reduction="mean").item()

    shuffled = [Random(seed).sample(words, len(words)) for seed in range(8)]
    assert loss(text) < 5
    assert loss(text) + 1 < min(loss(" ".join(order)) for order in shuffled)
