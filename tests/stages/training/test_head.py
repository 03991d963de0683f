"""Tiny models of 24 of mlx-lm's types with random weights; the plain formula is the measure."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from stages.lora.bank import Bank, attach, initial
from stages.lora.full import all_weights
from stages.lora.layers import AdapterShape
from stages.lora.targets import find_targets
from stages.training.head import UNCUT, Cut, find_cut, hidden_states, logits
from stages.training.loss import row_losses
from stages.training.step import compile_gradients, tuned_cut

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "layer_norm_eps": 1e-5, "norm_eps": 1e-5, "layer_norm_epsilon": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
GPT = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "n_ctx": 64, "rotary_dim": 8}
GRANITE = {"logits_scaling": 2.5, "embedding_multiplier": 3.0, "attention_multiplier": 0.3,
           "residual_multiplier": 0.7}  # fmt: skip
SCALED = {"scale_depth": 1.4, "dim_model_base": 16, "scale_emb": 2.0}

CHANGES: dict[str, tuple[dict[str, Any], Cut]] = {
    "llama": ({}, Cut("model", ("embed_tokens",))),
    "qwen3": ({"tie_word_embeddings": False}, Cut("model")),
    "gemma": ({}, Cut("model", ("embed_tokens",))),
    "gemma2": ({"final_logit_softcapping": 2.0}, Cut("model", ("embed_tokens",))),
    "cohere": ({"logit_scale": 0.0625}, Cut("model", ("embed_tokens",))),
    "granite": (GRANITE, Cut("model", ("embed_tokens",))),
    "minicpm": (SCALED, Cut("model", ("embed_tokens",))),
    "phi": ({"partial_rotary_factor": 0.5}, Cut("model")),
    "gptj": (GPT, Cut("model")),
    "gpt2": (GPT, Cut("model", ("wte",))),
    "stablelm": ({"partial_rotary_factor": 0.5, "use_qkv_bias": True}, Cut("model")),
    "starcoder2": ({}, Cut("model", ("embed_tokens",))),
    "internlm2": ({"bias": False}, Cut("model", ("tok_embeddings",))),
    "exaone": ({"num_layers": 2}, Cut("transformer", ("wte",))),
    "nanochat": ({}, Cut("transformer")),
    "qwen": ({"kv_channels": 8}, Cut("transformer")),
    "mixtral": ({"num_local_experts": 4, "num_experts_per_tok": 2},
                Cut("model", ("embed_tokens",))),
    "mamba": ({"state_size": 8, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True,
               "time_step_rank": 4}, Cut("backbone", ("embeddings",))),
    "recurrent_gemma": ({"logits_soft_cap": 2.0, "attention_window_size": 8, "lru_width": 32,
                         "conv1d_width": 4, "attention_bias": True, "block_types":
                         ["recurrent", "attention"], "embeddings_scale_by_sqrt_dim": True},
                        Cut("model")),
    "gemma3": ({"text_config": SIZES | {"model_type": "gemma3_text", "sliding_window": 4,
                                        "sliding_window_pattern": 2}},
               Cut("language_model.model")),
    "qwen3_vl": ({"text_config": SIZES | {"model_type": "qwen3_vl_text"}},
                 Cut("language_model.model", ("embed_tokens",))),
    "pixtral": ({"text_config": SIZES | {"model_type": "llama", "tie_word_embeddings": False}},
                Cut("language_model.model")),
    "phixtral": ({"num_vocab": 64, "model_dim": 32, "num_heads": 4, "num_layers": 2,
                  "rotary_dim": 8}, Cut("transformer")),
    "gpt_neox": ({"rotary_pct": 0.5, "rotary_emb_base": 10000, "use_parallel_residual": True},
                 UNCUT),
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(1, 64, (2, 10)).astype(np.int32)
SUPERVISED = np.random.default_rng(1).random((2, 9)) < 0.5


@pytest.fixture(autouse=True)
def _plain() -> Iterator[None]:
    # MLX would run g++ for every activation of every model.
    mx.disable_compile()
    yield
    mx.enable_compile()


def make(kind: str, **changes: Any) -> Any:
    """Build a model of this type with random weights that make all logits differ."""
    module = importlib.import_module(f"mlx_lm.models.{kind}")
    config = SIZES | {"model_type": kind} | CHANGES[kind][0] | changes
    model = module.Model(module.ModelArgs.from_dict(config))
    rng = np.random.default_rng(7)
    drawn = [(name, value + mx.array(rng.normal(0, 0.1, value.shape), value.dtype))
             for name, value in sorted(tree_flatten(model.parameters()))]  # fmt: skip
    model.update(tree_unflatten(drawn))
    return model


def batch() -> tuple[mx.array, mx.array, mx.array, mx.array]:
    owners, columns = np.nonzero(SUPERVISED)
    arrays = (TOKENS[:, :-1], owners * 9 + columns, TOKENS[:, 1:][SUPERVISED], owners)
    inputs, positions, targets, owned = (mx.array(value.astype(np.int32)) for value in arrays)
    return inputs, positions, targets, owned


def plain_losses(model: Any) -> mx.array:
    """Sum each row's supervised losses by the plain formula, on the logits of all positions."""
    made = model(mx.array(TOKENS[:, :-1])).astype(mx.float32)
    losses = nn.losses.cross_entropy(made, mx.array(TOKENS[:, 1:]))
    return mx.where(mx.array(SUPERVISED), losses, 0).sum(axis=1)


def assert_same_gradients(tuning: Any, cut: Cut) -> None:
    """Compare losses and gradients with those of the plain formula."""
    found, gradients = compile_gradients(tuning, cut)(tuning.parameters(), batch(), None)

    def plain(parameters: Any) -> mx.array:
        with tuning.using(parameters):
            return plain_losses(tuning.model).sum()

    total, expected = mx.value_and_grad(plain)(tuning.parameters())
    np.testing.assert_allclose(found.sum().item(), total.item(), rtol=1e-5)
    largest = max(float(mx.abs(value).max()) for _, value in tree_flatten(expected))
    for (name, one), (_, other) in zip(
        tree_flatten(gradients), tree_flatten(expected), strict=True
    ):
        np.testing.assert_allclose(
            np.array(one), np.array(other), rtol=1e-4, atol=1e-5 * largest, err_msg=name
        )


@pytest.mark.parametrize("kind", CHANGES)
def test_model_is_cut_where_its_head_begins(kind: str) -> None:
    """Blocks, then head, give the logits of the whole model, of any choice of positions."""
    model, (_, expected) = make(kind), CHANGES[kind]
    cut = find_cut(model)
    assert cut == expected
    if cut != UNCUT:
        inputs, positions, _, _ = batch()
        hidden = hidden_states(model, cut, inputs)
        assert hidden.shape == (2, 9, 32)
        found = logits(model, cut, hidden.reshape(-1, 32)[positions])
        whole = np.array(model(inputs)).reshape(-1, 64)[np.array(positions)]
        np.testing.assert_allclose(np.array(found), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", CHANGES)
def test_gradients_of_all_weights_are_those_of_the_plain_formula(kind: str) -> None:
    """Soft-caps, scales, biases and tied embeddings come along, and the head's own gradients."""
    tuning = all_weights(make(kind))
    assert_same_gradients(tuning, tuned_cut(tuning))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "granite", "phi", "gpt_neox"])
def test_loss_without_gradient_is_that_of_the_plain_formula(kind: str) -> None:
    """The same sum for each row when no gradient is asked."""
    model = make(kind)
    found = row_losses(model, find_cut(model), batch())
    np.testing.assert_allclose(np.array(found), np.array(plain_losses(model)), rtol=1e-5)


def adapters(model: Any, shapes: list[AdapterShape], targets: list[str]) -> Bank:
    bank = attach(model, find_targets(model, targets, None), shapes)
    rng = np.random.default_rng(1)
    stacked = bank.join([initial(bank.layers, shape, 0) for shape in shapes])
    bank.update({path: {name: value + mx.array(rng.normal(0, 0.1, value.shape), mx.float32)
                        for name, value in weights.items()}
                 for path, weights in stacked.items()})  # fmt: skip
    return bank


@pytest.mark.parametrize(("bits", "tied"), [(4, True), (8, True), (4, False), (8, False)])
def test_quantized_heads_give_the_gradients_of_the_plain_formula(bits: int, tied: bool) -> None:
    """A quantized head, or quantized embeddings that are one, below adapters."""
    model = make("llama", tie_word_embeddings=tied)
    nn.quantize(model, group_size=32, bits=bits)
    bank = adapters(model, [AdapterShape(4, 2.0)], ["*"])
    cut = tuned_cut(bank)
    assert cut == Cut("model", ("embed_tokens",) if tied else ())
    assert_same_gradients(bank, cut)


@pytest.mark.parametrize(("kind", "name"), [("llama", "embed_tokens"), ("qwen3", "lm_head")])
def test_adapters_on_the_head_have_the_gradients_of_the_plain_formula(kind: str, name: str) -> None:
    """Of the head and of embeddings that are the head too."""
    bank = adapters(make(kind), [AdapterShape(4, 2.0)], ["*", name])
    cut = tuned_cut(bank)
    assert cut != UNCUT
    assert any(cut.in_head(path) for path in bank.parameters())
    assert_same_gradients(bank, cut)


def test_head_whose_adapters_must_know_the_rows_is_not_cut_off() -> None:
    """Several adapters on the head, or dropout there, take all positions; in the blocks neither
    does."""
    three = [AdapterShape(4, 2.0)] * 3
    dropping = [AdapterShape(4, 2.0, 0.1)]
    for shapes in (three, dropping):
        assert tuned_cut(adapters(make("qwen3"), shapes, ["*", "lm_head"])) == UNCUT
        assert tuned_cut(adapters(make("qwen3"), shapes, ["*"])) == Cut("model")


def test_what_belongs_to_the_head() -> None:
    """Everything outside the blocks, and of the blocks what the head shares with them."""
    cut = Cut("language_model.model", ("embed_tokens",))
    assert cut.in_head("language_model.lm_head")
    assert cut.in_head("language_model.model.embed_tokens")
    assert not cut.in_head("language_model.model.layers.0.mlp.up_proj")
    assert not cut.in_head("language_model.model")
    assert Cut("model").in_head("")
    assert Cut("model").in_head("modelling.proj")


def test_cutting_leaves_the_model_as_it_is() -> None:
    """Its modules, weights and logits are the same objects and numbers as before."""
    model = make("gemma3")
    before, expected = dict(model.named_modules()), model(mx.array(TOKENS))
    cut = find_cut(model)
    logits(model, cut, hidden_states(model, cut, mx.array(TOKENS))[0])
    after = dict(model.named_modules())
    assert before.keys() == after.keys()
    assert all(after[name] is module for name, module in before.items())
    assert mx.array_equal(model(mx.array(TOKENS)), expected)
