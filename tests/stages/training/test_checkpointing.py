from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from stages.data.rows import Rows
from stages.lora.bank import Bank, Parameters, attach, initial
from stages.lora.full import Tuning, all_weights
from stages.lora.layers import AdapterShape
from stages.lora.targets import find_targets, matrix_layers
from stages.training.batches import Batch, collate, dropout_keys
from stages.training.checkpointing import gradient_checkpointing
from stages.training.loss import batch_arrays
from stages.training.step import compile_gradients, tuned_cut

LLAMA = Callable[..., Any]
FAMILIES = json.loads((Path(__file__).parents[1] / "lora" / "architectures.json").read_text())


@pytest.fixture(autouse=True)
def _plain() -> Iterator[None]:
    # MLX would run g++ for every activation of every model.
    mx.disable_compile()
    yield
    mx.enable_compile()


def bank_of(model: Any, patterns: list[str], shapes: list[AdapterShape]) -> Bank:
    """Put adapters on `model` whose matrices all have gradients."""
    bank = attach(model, find_targets(model, patterns, None), shapes)
    drawn = bank.join([initial(bank.layers, shape, k) for k, shape in enumerate(shapes)])
    rng = np.random.default_rng(0)
    bank.update({path: {name: value + mx.array(rng.normal(0, 0.05, value.shape), mx.float32)
                        for name, value in weights.items()}
                 for path, weights in drawn.items()})  # fmt: skip
    mx.eval(bank.parameters())
    return bank


def gradients_of(
    tuning: Tuning, batch: Batch, keys: mx.array | None, checkpointing: bool
) -> tuple[mx.array, Parameters]:
    parameters = tuning.parameters()
    context = gradient_checkpointing(tuning, parameters) if checkpointing else nullcontext()
    compute = compile_gradients(tuning, tuned_cut(tuning))
    with context:
        return compute(parameters, batch_arrays(batch), keys)


def assert_same(tuning: Tuning, batch: Batch, keys: mx.array | None = None) -> None:
    """Compare losses and gradients with and without checkpointing."""
    losses, gradients = gradients_of(tuning, batch, keys, True)
    expected_losses, expected = gradients_of(tuning, batch, keys, False)
    assert mx.array_equal(losses, expected_losses)
    largest = max(float(mx.abs(value).max()) for _, value in tree_flatten(expected))
    assert largest > 0
    for (name, one), (_, other) in zip(
        tree_flatten(gradients), tree_flatten(expected), strict=True
    ):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(
            np.array(one), np.array(other), rtol=1e-5, atol=1e-6 * largest, err_msg=name
        )


@pytest.mark.parametrize(
    "shapes",
    [
        [AdapterShape(4, 2.0)],
        [AdapterShape(4, 2.0, dropout=0.3)],
        [AdapterShape(4, 2.0), AdapterShape(2, 1.0, dropout=0.3)],
        [AdapterShape(4, 2.0, dropout=0.3, dora=True)],
    ],
    ids=["lora", "dropout", "two adapters", "dora"],
)
def test_adapters_have_the_same_losses_and_gradients(
    tiny_llama: LLAMA, make_rows: Callable[..., Rows], shapes: list[AdapterShape]
) -> None:
    """One adapter or two with own rows, DoRA, head and embedding adapted, with dropout whose masks
    must be the same in the second computation."""
    patterns = ["*"] if len(shapes) > 1 or shapes[0].dora else ["*", "embed_tokens", "lm_head"]
    bank = bank_of(tiny_llama(), patterns, shapes)
    batch = collate(make_rows([9, 20, 14, 30]), range(4))
    keys = mx.array(dropout_keys(0, 0, batch.rows)) if bank.has_dropout else None
    assert_same(bank, batch, keys)


@pytest.mark.parametrize("tied", [False, True])
def test_all_weights_have_the_same_losses_and_gradients(
    tiny_llama: LLAMA, make_rows: Callable[..., Rows], tied: bool
) -> None:
    """Norms, embeddings and head too, in bfloat16 with float32 masters."""
    model = tiny_llama(tie_word_embeddings=tied)
    model.set_dtype(mx.bfloat16)
    assert_same(all_weights(model), collate(make_rows([9, 20, 14]), range(3)))


def test_quantized_base_has_the_same_losses_and_gradients(
    tiny_llama: LLAMA, make_rows: Callable[..., Rows]
) -> None:
    """Packed weights, which have no gradient, are not asked for one."""
    model = tiny_llama(hidden_size=64, intermediate_size=64)
    nn.quantize(model, 32, 4)
    bank = bank_of(model, ["*"], [AdapterShape(4, 2.0)])
    assert_same(bank, collate(make_rows([9, 20]), range(2)))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_has_the_same_losses_and_gradients(
    make_rows: Callable[..., Rows], family: str
) -> None:
    """Blocks that take and give other things than llama's: masks, states, experts."""
    config = FAMILIES[family]
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(config))
    model.freeze()
    layers = [layer for layer in matrix_layers(model, 2) if layer.kind != "other"]
    spelt = {layer.path.rpartition(".")[2] for layer in layers if layer.kind == "experts"}
    bank = bank_of(model, ["*", *sorted(spelt)], [AdapterShape(4, 2.0)])
    assert_same(bank, collate(make_rows([9, 20]), range(2)))


def test_memory_of_a_deep_model_falls(tiny_llama: LLAMA, make_rows: Callable[..., Rows]) -> None:
    """What is held of 16 blocks is their inputs and the activations of one."""
    bank = bank_of(tiny_llama(num_hidden_layers=16), ["*"], [AdapterShape(4, 2.0)])
    batch = collate(make_rows([120] * 4), range(4))
    peaks = []
    for checkpointing in (False, True):
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(gradients_of(bank, batch, None, checkpointing))
        peaks.append(mx.get_peak_memory() - before)
    assert peaks[1] < 0.3 * peaks[0]


def test_only_this_model_is_changed_and_only_for_a_while(tiny_llama: LLAMA) -> None:
    """Another model of the same class is left alone, and this one is what it was afterwards, after
    an error too."""
    bank, other = bank_of(tiny_llama(), ["*"], [AdapterShape(4, 2.0)]), tiny_llama()
    blocks, kind = bank.model.layers, type(other.layers[0])

    def fail() -> None:
        with gradient_checkpointing(bank, bank.parameters()):
            assert all(type(block) is not kind and isinstance(block, kind) for block in blocks)
            assert all(type(block) is kind for block in other.layers)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(type(block) is kind for block in blocks)


def test_block_that_is_given_a_cache_is_computed_once(tiny_llama: LLAMA) -> None:
    """A cache that grows as it is used grows by these tokens alone; logits are the same."""
    bank = bank_of(tiny_llama(), ["*"], [AdapterShape(4, 2.0)])
    tokens = mx.array([[3, 9, 27, 5]])
    expected = bank.model(tokens)
    cache = make_prompt_cache(bank.model)

    def loss(parameters: Parameters) -> mx.array:
        with bank.using(parameters), gradient_checkpointing(bank, parameters):
            return bank.model(tokens, cache=cache).sum()

    total, gradients = mx.value_and_grad(loss)(bank.parameters())
    mx.eval(gradients)
    np.testing.assert_allclose(total.item(), expected.sum().item(), rtol=1e-5)
    assert {layer.offset for layer in cache} == {4}
