"""The embedded model: same bytes every time, opened by everyone, its tokenizer without loss."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.data.samples import rows
from stages.models import tiny
from stages.models.tokenizer import load_tokenizer, stop_token_ids
from stages.models.validate import validate


@pytest.fixture(scope="module")
def tokenizer(tiny_directory):
    return load_tokenizer(tiny_directory)


def test_another_process_builds_the_same_bytes(tiny_directory, tmp_path):
    """Neither hash seeds nor thread timing reach the files."""
    code = "import sys; from pathlib import Path; from stages.models import tiny\n"
    code += "tiny.build(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    names = sorted(file.name for file in tiny_directory.iterdir())
    assert names == sorted(file.name for file in tmp_path.iterdir())
    for name in names:
        assert (tmp_path / name).read_bytes() == (tiny_directory / name).read_bytes(), name


def test_it_validates_and_ends_its_turns(tiny_directory, tokenizer):
    """The config is one that mlx-lm knows, and <|im_end|> alone stops generation."""
    assert validate(tiny_directory) == tiny.CONFIG
    assert tokenizer.eos_token == "<|im_end|>"
    assert stop_token_ids(tiny_directory, tokenizer) == (tokenizer.eos_token_id,)
    assert len(tokenizer) == tiny.CONFIG["vocab_size"]


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
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert (ids.count(start), ids.count(end)) == (3, 2)


@given(text=st.text(max_size=60))
def test_every_text_survives_the_tokenizer(tokenizer, text):
    """Byte-level: decoding the ids of any text gives the text, and no text makes special tokens."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text


def test_bundled_conversations_are_short(tokenizer):
    """Whole words are tokens: a training row takes fewer ids than a third of its characters."""
    texts = [
        tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows("train")
    ]
    ids = tokenizer(texts, add_special_tokens=False).input_ids
    assert sum(map(len, ids)) * 3 < sum(map(len, texts))
