from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from stages.data.rows import Rows
from stages.lora.bank import Bank, attach, initial
from stages.lora.full import all_weights
from stages.lora.layers import AdapterShape
from stages.lora.targets import find_targets
from stages.training.batches import collate, dropout_keys
from stages.training.checkpointing import gradient_checkpointing
from stages.training.loss import batch_arrays
from stages.training.prefix import frozen_blocks, given, hidden_below, prove
from stages.training.step import compile_gradients, compile_losses, tuned_cut

LLAMA = Callable[..., Any]
ROWS = Callable[..., Rows]
FAMILIES = json.loads((Path(__file__).parents[1] / "lora" / "architectures.json").read_text())


@pytest.fixture(autouse=True)
def _plain() -> Iterator[None]:
    # MLX would run g++ for every activation of every model.
    mx.disable_compile()
    yield
    mx.enable_compile()


def bank_of(
    model: Any,
    patterns: tuple[str, ...] = ("*",),
    num_layers: int | None = 1,
    shape: AdapterShape = AdapterShape(4, 2.0),  # noqa: B008 (it is frozen)
) -> Bank:
    """Put an adapter on `model` whose matrices all have gradients."""
    bank = attach(model, find_targets(model, patterns, num_layers), [shape])
    rng = np.random.default_rng(0)
    drawn = bank.join([initial(bank.layers, shape, 0)])
    bank.update(tree_map(lambda v: v + mx.array(rng.normal(0, 0.05, v.shape), mx.float32), drawn))
    mx.eval(bank.parameters())
    return bank


@pytest.mark.parametrize(
    ("patterns", "num_layers", "expected"),
    [
        (("*",), None, 0),
        (("*",), 1, 3),
        (("*",), 3, 1),
        (("layers.2.*", "layers.3.mlp.*"), None, 2),
        (("lm_head",), None, 4),
        (("lm_head", "*"), 2, 2),
    ],
)
def test_blocks_below_the_first_adapted_one_are_frozen(
    tiny_llama: LLAMA, patterns: tuple[str, ...], num_layers: int | None, expected: int
) -> None:
    """Their number follows from what is adapted; with all weights trained there is none."""
    model = tiny_llama(num_hidden_layers=4)
    bank = bank_of(model, patterns, num_layers)
    blocks = frozen_blocks(bank)
    assert [id(block) for block in blocks] == [id(block) for block in model.layers[:expected]]
    bank.detach()
    assert frozen_blocks(all_weights(model)) == ()


@pytest.mark.parametrize(
    "shape",
    [AdapterShape(4, 2.0), AdapterShape(4, 2.0, dropout=0.3), AdapterShape(4, 2.0, dora=True)],
    ids=["lora", "dropout", "dora"],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_given_hidden_states_losses_and_gradients_are_those_without(
    tiny_llama: LLAMA, make_rows: ROWS, shape: AdapterShape, checkpointing: bool
) -> None:
    """With gradient checkpointing too, whose backward pass runs when the model is whole again."""
    bank = bank_of(tiny_llama(num_hidden_layers=4), num_layers=2, shape=shape)
    batch = collate(make_rows([9, 20, 14, 30]), range(4))
    keys = mx.array(dropout_keys(0, 0, batch.rows)) if bank.has_dropout else None
    parameters, arrays, cut = bank.parameters(), batch_arrays(batch), tuned_cut(bank)
    expected = compile_gradients(bank, cut)(parameters, arrays, keys)
    hidden = hidden_below(bank.model, frozen_blocks(bank), arrays[0])
    compute = compile_gradients(bank, cut)
    if checkpointing:
        with gradient_checkpointing(bank, parameters):
            found = compute(parameters, (*arrays, hidden), keys)
    else:
        found = compute(parameters, (*arrays, hidden), keys)
    compared = zip(tree_flatten(found), tree_flatten(expected), strict=True)
    for (name, one), (_, other) in compared:
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=name)
    losses = compile_losses(bank, cut)
    np.testing.assert_array_equal(losses(parameters, (*arrays, hidden)),
                                  losses(parameters, arrays))  # fmt: skip


def test_blocks_are_not_computed_where_their_output_is_given(tiny_llama: LLAMA) -> None:
    """Of a model whose lower blocks and embedding hold no numbers any more, the logits are those
    of the hidden states given; afterwards it is whole, after an error too."""
    bank = bank_of(tiny_llama(num_hidden_layers=3))
    model, tokens = bank.model, mx.array([[3, 9, 27]])
    blocks, kinds = frozen_blocks(bank), [type(block) for block in bank.model.layers]
    hidden, expected = hidden_below(model, blocks, tokens), model(tokens)
    mx.eval(hidden, expected)
    for block in (*blocks, model.model.embed_tokens):
        block.update(tree_map(lambda value: mx.full(value.shape, mx.nan), block.parameters()))
    assert np.isnan(np.array(model(tokens))).all()

    def fail() -> None:
        with given(blocks, [hidden]):
            assert mx.array_equal(model(tokens), expected)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [type(block) for block in model.layers] == kinds


@pytest.mark.parametrize("patterns", [("*", "embed_tokens"), ("*", "lm_head")])
def test_an_adapted_embedding_lies_below_and_an_adapted_head_does_not(
    tiny_llama: LLAMA, patterns: tuple[str, ...]
) -> None:
    """A block below may be frozen: what it gives moves with the embedding all the same."""
    bank = bank_of(tiny_llama(), patterns)
    assert (prove(bank, frozen_blocks(bank)) is None) == ("embed_tokens" in patterns)


def test_an_adapted_tied_embedding_lies_below(tiny_llama: LLAMA) -> None:
    """It is the head as well, but the tokens are looked up in it."""
    bank = bank_of(tiny_llama(tie_word_embeddings=True), ("embed_tokens",))
    assert len(frozen_blocks(bank)) == 2
    assert prove(bank, frozen_blocks(bank)) is None


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_is_proved(make_rows: ROWS, family: str) -> None:
    """Mixtures, hybrids, state spaces: losses by given hidden states are those without, and a
    proof leaves the adapter and the blocks as they were."""
    config = FAMILIES[family]
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(config))
    model.freeze()
    bank = bank_of(model)
    blocks, kinds = frozen_blocks(bank), [type(block) for block in model.layers]
    assert len(blocks) == len(model.layers) - 1
    arrays = batch_arrays(collate(make_rows([9, 20]), range(2)))
    losses = compile_losses(bank, tuned_cut(bank))
    expected = losses(bank.parameters(), arrays)
    assert prove(bank, blocks) is not None
    found = losses(bank.parameters(), (*arrays, hidden_below(model, blocks, arrays[0])))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(losses(bank.parameters(), arrays), expected)
    assert [type(block) for block in model.layers] == kinds


def test_model_whose_upper_blocks_need_more_is_refused(tiny_llama: LLAMA) -> None:
    """A block that reads what a lower one has left behind cannot do without it."""
    model = tiny_llama(num_hidden_layers=3)
    bank = bank_of(model)
    low, high = model.layers[0], model.layers[2]
    kind = type(low)
    left: list[mx.array] = []

    class Leaves(kind):  # type: ignore[misc, valid-type]
        def __call__(self, x: mx.array, *arguments: Any, **options: Any) -> mx.array:
            left[:] = [super().__call__(x, *arguments, **options)]
            return left[0]

    class Takes(kind):  # type: ignore[misc, valid-type]
        def __call__(self, x: mx.array, *arguments: Any, **options: Any) -> mx.array:
            return super().__call__(x + left.pop(), *arguments, **options)

    low.__class__, high.__class__ = Leaves, Takes
    assert prove(bank, frozen_blocks(bank)) is None
    high.__class__ = kind
    assert prove(bank, frozen_blocks(bank)) is not None


SHARING = {
    "hunyuan": {
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 48,
        "num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": False, "moe_topk": 1,
        "num_experts": 1, "num_shared_expert": 1, "use_mixed_mlp_moe": False, "use_qk_norm": True,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "use_cla": True, "cla_share_factor": 2,
        "rope_scaling": {"factor": 1.0, "type": "dynamic", "alpha": 1000.0},
    },
    "gemma4_text": {
        "hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 48, "head_dim": 8,
        "num_attention_heads": 4, "global_head_dim": 8, "vocab_size": 64, "sliding_window": 16,
        "vocab_size_per_layer_input": 64, "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "rwkv7": {
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "norm_eps": 1e-5,
        "head_dim": 32, "num_hidden_layers": 4, "a_low_rank_dim": 8, "v_low_rank_dim": 8,
        "gate_low_rank_dim": 8, "decay_low_rank_dim": 8,
    },
}  # fmt: skip


@pytest.mark.parametrize("family", sorted(SHARING))
def test_family_whose_blocks_share_keys_or_values_is_refused(family: str) -> None:
    """The model is as it was afterwards."""
    module = importlib.import_module(f"mlx_lm.models.{family}")
    mx.random.seed(0)
    config = SHARING[family] | {"model_type": family}
    model = module.Model(module.ModelArgs.from_dict(config))
    model.freeze()
    bank, tokens = bank_of(model), mx.array([[3, 9, 27]])
    expected, kinds = model(tokens), [type(block) for block in model.layers]
    assert len(frozen_blocks(bank)) == 3
    assert prove(bank, frozen_blocks(bank)) is None
    np.testing.assert_array_equal(model(tokens), expected)
    assert [type(block) for block in model.layers] == kinds
