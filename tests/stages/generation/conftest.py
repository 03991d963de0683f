"""Small models whose answers are random, or known by hand."""

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from mlx_lm.models.llama import Model, ModelArgs

from stages.models.tokenizer import load_tokenizer

VOCABULARY = 258
START, END = 256, 257


def llama(**changes: Any) -> Model:
    shape: dict[str, Any] = {
        "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-5,
        "vocab_size": VOCABULARY, "max_position_embeddings": 256, "tie_word_embeddings": False,
    }  # fmt: skip
    model = Model(ModelArgs.from_dict(shape | changes))
    model.eval()
    return model


@pytest.fixture
def random_model() -> Model:
    """A model of bytes with seeded random weights, large enough that answers differ."""
    model = llama()
    random = np.random.default_rng(7)
    model.update(
        tree_map(lambda p: mx.array(random.normal(size=p.shape, scale=0.4)), model.parameters())
    )
    return model


@pytest.fixture
def chain_model() -> Callable[[Mapping[int, int]], Model]:
    """Return a maker of models that follow each token by the one given for it, else by END."""

    def make(follows: Mapping[int, int], **changes: Any) -> Model:
        model = llama(hidden_size=VOCABULARY, num_hidden_layers=1, **changes)
        # Attention and MLP add nothing, so the last token alone decides.
        model.update(tree_map(mx.zeros_like, model.parameters()))
        model.model.norm.weight = mx.ones(VOCABULARY)
        model.model.layers[0].input_layernorm.weight = mx.ones(VOCABULARY)
        model.model.embed_tokens.weight = mx.eye(VOCABULARY)
        head = np.zeros((VOCABULARY, VOCABULARY), np.float32)
        for token in range(VOCABULARY):
            head[follows.get(token, END), token] = 1
        model.lm_head.weight = mx.array(head)
        return model

    return make


@pytest.fixture
def tokenizer(byte_model):
    """One token for each byte, then START and END of a turn."""
    return load_tokenizer(byte_model())
