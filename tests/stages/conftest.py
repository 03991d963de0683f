"""Models that are only a tokenizer, with one token for each byte: their ids are known by hand;
and models that are only weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import llama, qwen3
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Diary:
    """A reporter that remembers; `stop_after` looks, it asks to stop."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.lines: list[str] = []
        self.steps: list[tuple[int, int]] = []
        self.looks = 0
        self.stop_after = stop_after

    def log(self, message: str) -> None:
        self.lines.append(message)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        raise AssertionError("prepare has no steps to report")

    def progress(self, done: int, total: int, fields: Mapping[str, float]) -> None:
        self.steps.append((done, total))

    def stop_requested(self) -> bool:
        self.looks += 1
        return self.stop_after is not None and self.looks > self.stop_after


@pytest.fixture
def diary() -> type[Diary]:
    return Diary


ByteModel = Callable[..., Path]


@pytest.fixture(scope="session")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> ByteModel:
    """Return a maker of model directories whose token ids are the bytes 0-255, then `merges`, then
    `special` in the order given."""

    def make(
        template: str | None = CHATML,
        *,
        special: Sequence[str] = ("<|im_start|>", "<|im_end|>"),
        eos: str | None = "<|im_end|>",
        bos: str | None = None,
        merges: Sequence[tuple[str, str]] = (),
        config: Mapping[str, Any] | None = None,
        edit: Callable[[Tokenizer], None] | None = None,
    ) -> Path:
        letters = _byte_letters()
        pairs = [tuple("".join(letters[b] for b in part.encode()) for part in m) for m in merges]
        vocabulary = {letter: byte for byte, letter in letters.items()}
        for left, right in pairs:
            vocabulary[left + right] = len(vocabulary)
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens(list(special))
        if edit:
            edit(backend)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, bos_token=bos)
        tokenizer.chat_template = template
        directory = tmp_path_factory.mktemp("model")
        tokenizer.save_pretrained(directory)
        if config:
            (directory / "generation_config.json").write_text(json.dumps(config))
        return directory

    return make


@pytest.fixture
def tiny_llama() -> Callable[..., Any]:
    """Return a maker of frozen MLX Llama models with seeded random weights: 2 blocks, 32 wide."""

    def make(**changes: Any) -> Any:
        sizes = {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64,
            "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
        }  # fmt: skip
        arguments = llama.ModelArgs(model_type="llama", rms_norm_eps=1e-5, **(sizes | changes))
        return _frozen(llama.Model(arguments))

    return make


@pytest.fixture
def tiny_qwen3() -> Callable[[], Any]:
    """Return a maker of the same of Qwen3: norms of queries and keys, heads of a size of their own,
    and a head that is the embedding."""

    def make() -> Any:
        return _frozen(qwen3.Model(qwen3.ModelArgs(
            model_type="qwen3", hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            vocab_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=12,
            rms_norm_eps=1e-6, max_position_embeddings=512, rope_theta=1e6,
            tie_word_embeddings=True,
        )))  # fmt: skip

    return make


def _frozen(model: Any) -> Any:
    """Give the model seeded random weights and freeze it."""
    rng = np.random.default_rng(7)
    weights = [
        (
            name,
            mx.array(rng.normal(1.0 if "norm" in name else 0.0, 0.2, value.shape), value.dtype),
        )
        for name, value in sorted(tree_flatten(model.parameters()))
    ]
    model.update(tree_unflatten(weights))
    model.freeze()
    mx.eval(model.parameters())
    return model


def _byte_letters() -> dict[int, str]:
    """Return the printable letter that stands for each byte, as GPT-2 has it."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(0x100 + index) for index, byte in enumerate(others)
    }
