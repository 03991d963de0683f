"""The head's softmax in numpy against the plain formula on the logits of all positions."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx import nn
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from stages.data.rows import Rows
from stages.errors import StageError
from stages.lora.bank import Bank, attach, initial
from stages.lora.full import Tuning, all_weights
from stages.lora.layers import AdapterShape
from stages.lora.targets import find_targets
from stages.settings import Optimizer, Train
from stages.training import cpu_gradients as module
from stages.training.batches import Batch, collate, pack, training_steps
from stages.training.cpu_functions import cpu_functions, packed
from stages.training.cpu_gradients import head_gradients
from stages.training.head import UNCUT
from stages.training.loop import State, take_step
from stages.training.loss import batch_arrays
from stages.training.step import (
    compile_gradients,
    compile_losses,
    compile_update,
    initial_states,
    tuned_cut,
)

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "layer_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
MakeRows = Callable[..., Rows]
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("llama", {}),
    "untied": ("llama", {"tie_word_embeddings": False}),
    "biased": ("phi", {"partial_rotary_factor": 0.5}),
    "soft-capped": ("gemma2", {"final_logit_softcapping": 2.0}),
    "scaled": ("cohere", {"logit_scale": 0.0625}),
}


@pytest.fixture(autouse=True)
def _plain() -> Iterator[None]:
    # MLX would run g++ for every activation of every model.
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tokens in a chunk, two in a tile."""
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 3 * 64)
    monkeypatch.setattr(module, "_TILE_ELEMENTS", 2 * 64)


def make(head: str, dtype: mx.Dtype = mx.float32) -> Any:
    kind, changes = HEADS[head]
    source = importlib.import_module(f"mlx_lm.models.{kind}")
    model = source.Model(source.ModelArgs.from_dict(SIZES | {"model_type": kind} | changes))
    rng = np.random.default_rng(7)
    drawn = [(name, (value + mx.array(rng.normal(0, 0.1, value.shape), value.dtype)).astype(dtype))
             for name, value in sorted(tree_flatten(model.parameters()))]  # fmt: skip
    model.update(tree_unflatten(drawn))
    model.freeze()
    return model


def adapted(model: Any, *targets: str) -> Bank:
    shape = AdapterShape(4, 2.0)
    bank = attach(model, find_targets(model, targets or ("*",), None), [shape])
    rng = np.random.default_rng(1)
    stacked = bank.join([initial(bank.layers, shape, 0)])
    bank.update(tree_map(
        lambda value: value + mx.array(rng.normal(0, 0.1, value.shape), mx.float32), stacked
    ))  # fmt: skip
    return bank


def tuned(head: str, what: str) -> Tuning:
    if what == "full":
        return all_weights(make(head))
    return adapted(make(head), "*", *(["lm_head"] if what == "head" else []))


def assert_plain(tuning: Tuning, batch: Batch, tolerance: float = 1e-5) -> None:
    """Compare losses and gradients with the plain formula's, which shares no code with ours."""
    cut = tuned_cut(tuning)
    assert cut != UNCUT
    parameters = tuning.parameters()
    with cpu_functions(tuning.model), packed(batch.lengths):
        found, gradients = compile_gradients(tuning, cut)(parameters, batch_arrays(batch), None)
        without = compile_losses(tuning, cut)(parameters, batch_arrays(batch))
        mx.eval(found, gradients, without)
    rows = len(batch.rows)
    taught = batch.owners < rows
    positions, targets, owners = (mx.array(values[taught]) for values in
                                  (batch.positions, batch.targets, batch.owners))  # fmt: skip
    supervised = mx.zeros((rows,))

    def plain(parameters: Any) -> mx.array:
        nonlocal supervised
        with tuning.using(parameters):
            made = tuning.model(mx.array(batch.inputs)).astype(mx.float32)
        losses = nn.losses.cross_entropy(made.reshape(-1, made.shape[-1])[positions], targets)
        supervised = mx.stack([mx.where(owners == row, losses, 0).sum() for row in range(rows)])
        return losses.sum()

    _, expected = mx.value_and_grad(plain)(parameters)
    np.testing.assert_allclose(found, supervised, rtol=tolerance)
    np.testing.assert_allclose(without, supervised, rtol=tolerance)
    flat = dict(tree_flatten(expected))
    assert dict(tree_flatten(gradients)).keys() == flat.keys()
    largest = max(float(mx.abs(value).max()) for value in flat.values())
    for name, value in tree_flatten(gradients):
        assert value.dtype == mx.float32
        np.testing.assert_allclose(value, flat[name], rtol=tolerance,
                                   atol=tolerance * max(largest, 1e-3), err_msg=name)  # fmt: skip


@pytest.mark.parametrize("chunks", ["one chunk", "many chunks"])
@pytest.mark.parametrize(
    ("head", "what"),
    [
        *((head, "blocks") for head in HEADS),
        *((head, "full") for head in HEADS),
        ("untied", "head"),
        ("biased", "head"),
    ],
)
def test_gradients_are_those_of_the_plain_formula(
    head: str, what: str, chunks: str, make_rows: MakeRows, request: pytest.FixtureRequest
) -> None:
    """Adapters in the blocks, on the head, and all weights; in chunks and tiles of any size."""
    if chunks == "many chunks":
        request.getfixturevalue("small")
    assert_plain(tuned(head, what), collate(make_rows([9, 4, 17, 1]), [0, 3, 1, 2]))


@pytest.mark.parametrize("what", ["blocks", "head", "full"])
def test_rows_without_a_target_teach_nothing(what: str, make_rows: MakeRows) -> None:
    """What fills the shape of a batch without a target has no gradient, not the head's either."""
    rows = make_rows([1, 1])
    for batch in (collate(rows, [0, 1]), pack(rows, [0, 1])):
        tuning = tuned("untied", what)
        parameters = tuning.parameters()
        gradients = compile_gradients(tuning, tuned_cut(tuning))
        with packed(batch.lengths):
            losses, found = gradients(parameters, batch_arrays(batch), None)
        assert losses.tolist() == [0, 0]
        assert not any(mx.any(value).item() for _, value in tree_flatten(found))


@pytest.mark.parametrize("what", ["blocks", "head", "full"])
def test_tokens_that_fill_a_shape_teach_nothing(what: str, make_rows: MakeRows) -> None:
    """In few shapes, some follow those that are supervised."""
    batch = collate(make_rows([9, 4, 17]), [0, 1, 2], few_shapes=True)
    assert (batch.owners == 3).any()
    assert_plain(tuned("untied", what), batch)


def test_low_precision_base_is_near_the_plain_formula(make_rows: MakeRows) -> None:
    """A base in bfloat16 gives float32 gradients of float32 adapters, to its own precision."""
    assert_plain(adapted(make("untied", mx.bfloat16)), collate(make_rows([9, 17]), [0, 1]), 0.05)


def test_head_alone_is_that_of_torch(small: None) -> None:
    """Losses, and gradients by hidden states, in float64, of logits up to hundreds."""
    rng = np.random.default_rng(5)
    hidden, weight = rng.normal(0, 3, (11, 32)), rng.normal(0, 3, (64, 32))
    hidden[4] = 0
    targets = rng.integers(0, 64, 11).astype(np.int32)

    class Linear:
        def __call__(self, hidden: mx.array, *_: mx.array) -> mx.array:
            return hidden @ mx.array(weight, mx.float32).T

        def weights(self) -> list[mx.array]:
            return []

    head: Any = Linear()
    losses, by_token, none = head_gradients(head, mx.array(hidden, mx.float32), targets)
    known = torch.tensor(hidden, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        known @ torch.tensor(weight).T, torch.tensor(targets).long(), reduction="none"
    )
    expected.sum().backward()
    assert none == []
    np.testing.assert_allclose(losses, expected.detach().numpy(), rtol=1e-5, atol=1e-4)
    assert known.grad is not None
    np.testing.assert_allclose(by_token, known.grad.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_named(
    value: float, make_rows: MakeRows, adamw: Callable[..., Optimizer],
    settings: Callable[..., Train],
) -> None:  # fmt: skip
    """The row's loss is not finite, its step is refused by name, and nothing is changed."""
    rows = make_rows([6, 8])
    model = make("untied")
    token = int(rows[1][0][-2])
    assert token not in rows[0][0][:-1]
    model.model.embed_tokens.weight[token, 0] = value
    bank = adapted(model)
    state = State(bank.parameters(), initial_states(bank, [adamw()]))
    before = {name: np.array(array) for name, array in tree_flatten(state.parameters)}
    cut = tuned_cut(bank)
    (step,) = training_steps(rows, settings(batch_size=1, grad_accumulation_steps=2), 0)
    with pytest.raises(StageError, match=r"loss is .* in rows 1\b"):
        take_step(compile_gradients(bank, cut), compile_update(bank, [adamw()]), state, step,
                  [None, None], 1e-3)  # fmt: skip
    for name, array in tree_flatten(state.parameters):
        assert np.array_equal(array, before[name])
