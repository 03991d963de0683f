from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx import nn

from stages.data.rows import Rows
from stages.training import cross_entropy as cross_entropy_module
from stages.training import loss as loss_module
from stages.training.batches import collate
from stages.training.cross_entropy import cross_entropy, even_parts
from stages.training.head import UNCUT, Cut, find_cut
from stages.training.loss import BatchArrays, batch_arrays, row_losses

LLAMA = Callable[..., Any]
ROWS = Callable[..., Rows]
LENGTHS = [9, 33, 20, 2]
WEIGHTS = mx.array([1.0, -2.0, 0.5, 3.0])


def torch_losses(model: Any, rows: Rows) -> np.ndarray:
    """Compute each row by itself, with torch's cross-entropy in float64."""
    found = []
    for index in range(len(rows)):
        tokens, supervised = rows[index]
        logits = np.array(model(mx.array(tokens[None, :-1])).astype(mx.float32), np.float64)[0]
        targets = torch.tensor(np.where(supervised, tokens, -100)[1:]).long()
        found.append(
            torch.nn.functional.cross_entropy(torch.tensor(logits), targets, reduction="sum").item()
        )
    return np.array(found)


def set_sizes(monkeypatch: pytest.MonkeyPatch, chunk: int, tile: int) -> None:
    """Let chunks hold the logits of so many tokens of 64, tiles those of so many."""
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", chunk * 64)
    monkeypatch.setattr(cross_entropy_module, "TILE_ELEMENTS", tile * 64)


@pytest.mark.parametrize(("chunk", "tile"), [(1, 1), (7, 2), (16, 16), (1000, 5)])
@pytest.mark.parametrize("trained", [None, {}, {"lm_head": ["weight"]}])
def test_loss_is_torch_cross_entropy_of_the_supervised_targets(
    tiny_llama: LLAMA,
    make_rows: ROWS,
    monkeypatch: pytest.MonkeyPatch,
    chunk: int,
    tile: int,
    trained: Any,
) -> None:
    """Of rows padded together each has torch's sum, in chunks of any size, with and without a
    gradient."""
    set_sizes(monkeypatch, chunk, tile)
    model, rows = tiny_llama(), make_rows(LENGTHS)
    batch = batch_arrays(collate(rows, range(4)))
    found = row_losses(model, find_cut(model), batch, trained)
    assert found.dtype == mx.float32
    np.testing.assert_allclose(np.array(found), torch_losses(model, rows), rtol=1e-5)


def gradient(
    model: Any, cut: Cut, batch: BatchArrays, path: str, trained: Any
) -> tuple[mx.array, mx.array]:
    """Return the weighted sum of the rows' losses and its gradient for the weight at `path`."""
    module = model
    for name in path.split("."):
        module = module[int(name)] if name.isdigit() else getattr(module, name)
    kept = module.weight

    def weighted(weight: mx.array) -> mx.array:
        module.weight = weight
        return (row_losses(model, cut, batch, trained) * WEIGHTS).sum()

    result = mx.value_and_grad(weighted)(kept)
    module.weight = kept
    return result


@pytest.mark.parametrize(("chunk", "tile"), [(1, 1), (7, 2), (1000, 1000)])
@pytest.mark.parametrize(
    ("path", "tied"),
    [
        ("model.layers.0.mlp.up_proj", False),
        ("model.layers.0.mlp.up_proj", True),
        ("model.embed_tokens", False),
        ("model.embed_tokens", True),
        ("lm_head", False),
    ],
)
def test_gradients_follow_the_weight_of_each_row(
    tiny_llama: LLAMA,
    make_rows: ROWS,
    monkeypatch: pytest.MonkeyPatch,
    chunk: int,
    tile: int,
    path: str,
    tied: bool,
) -> None:
    """Rows that count differently have the gradients of all logits at once: in the blocks, in the
    embeddings and in the head."""
    model = tiny_llama(tie_word_embeddings=tied)
    batch = batch_arrays(collate(make_rows(LENGTHS), range(4)))
    expected_loss, expected = gradient(model, UNCUT, batch, path, {path: ["weight"]})
    set_sizes(monkeypatch, chunk, tile)
    loss, found = gradient(model, find_cut(model), batch, path, {path: ["weight"]})
    np.testing.assert_allclose(loss.item(), expected_loss.item(), rtol=1e-5)
    scale = np.abs(np.array(expected)).max()
    np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-4, atol=1e-6 * scale)


def test_unsupervised_positions_never_meet_the_head(
    tiny_llama: LLAMA, make_rows: ROWS, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head is given every supervised position once, in equal chunks, and no other."""
    set_sizes(monkeypatch, 12, 12)
    model, batch = tiny_llama(), collate(make_rows(LENGTHS), range(4))
    cut, seen = find_cut(model), []
    head = loss_module.logits

    def spy(model: nn.Module, cut: Cut, hidden: mx.array) -> mx.array:
        seen.append(hidden.shape[0])
        return head(model, cut, hidden)

    monkeypatch.setattr(loss_module, "logits", spy)
    row_losses(model, cut, batch_arrays(batch))
    assert batch.supervised_tokens == 5 + 17 + 10 + 1
    # The first is asked for its shape alone.
    assert seen == [1, 11, 11, 11]


def test_without_a_gradient_nothing_of_one_is_prepared(
    tiny_llama: LLAMA, make_rows: ROWS, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No backward pass is built for a validation."""
    model, batch = tiny_llama(), batch_arrays(collate(make_rows(LENGTHS), range(4)))
    cut = find_cut(model)

    def refuse(*_: object) -> None:
        raise AssertionError("a gradient was asked for")

    monkeypatch.setattr(mx, "vjp", refuse)
    row_losses(model, cut, batch)
    with pytest.raises(AssertionError, match="a gradient was asked for"):
        row_losses(model, cut, batch, {})


def test_batch_without_targets_has_a_loss_of_zero(tiny_llama: LLAMA, make_rows: ROWS) -> None:
    """Its gradient is zero as well."""
    model, rows = tiny_llama(), make_rows([9, 4])
    batch = collate(rows, [0, 1])
    nothing = np.array([0], np.int32), np.array([0], np.int32), np.array([2], np.int32)
    arrays = mx.array(batch.inputs), *map(mx.array, nothing)
    path = "model.layers.0.mlp.up_proj"
    cut = find_cut(model)
    assert row_losses(model, cut, arrays).tolist() == [0, 0]
    up_proj = model.model.layers[0].mlp.up_proj

    def total(weight: mx.array) -> mx.array:
        up_proj.weight = weight
        return row_losses(model, cut, arrays, {path: ["weight"]}).sum()

    assert not np.array(mx.grad(total)(up_proj.weight)).any()


def test_loss_of_a_low_precision_model_is_float32(tiny_llama: LLAMA, make_rows: ROWS) -> None:
    """From bfloat16 logits the loss is computed, summed and returned in float32."""
    model, rows = tiny_llama(), make_rows(LENGTHS)
    model.set_dtype(mx.bfloat16)
    # Rows by themselves: another width changes bfloat16 hidden states.
    for index in range(4):
        found = row_losses(model, find_cut(model), batch_arrays(collate(rows, [index])))
        assert found.dtype == mx.float32
        np.testing.assert_allclose(found.item(), torch_losses(model, rows)[index], rtol=1e-5)


def test_logits_are_never_all_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2,000 tokens among 8,192 the logits are 66 MB; loss and gradients take a quarter
    of it at most."""
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", 1 << 18)
    monkeypatch.setattr(cross_entropy_module, "TILE_ELEMENTS", 1 << 16)
    model = Wide()
    tokens, owners = mx.zeros((1, 2000), mx.int32), mx.zeros((2000,), mx.int32)
    batch = (tokens, mx.arange(2000), mx.arange(2000), owners)
    mx.eval(model.parameters(), batch)

    def peak(trained: Any, asked: Sequence[str]) -> int:
        def total(*weights: mx.array) -> mx.array:
            for name, weight in zip(asked, weights, strict=True):
                getattr(model, name).weight = weight
            return row_losses(model, Cut("model"), batch, trained).sum()

        weights = [getattr(model, name).weight for name in asked]
        compute = mx.value_and_grad(total, tuple(range(len(asked)))) if asked else total
        mx.synchronize()
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(compute(*weights))
        for name, weight in zip(asked, weights, strict=True):
            getattr(model, name).weight = weight
        return int(mx.get_peak_memory() - before)

    everything = 4 * 2000 * 8192
    assert peak(None, []) < 0.2 * everything
    assert peak({"model": ["weight"]}, ["model"]) < 0.2 * everything
    both = {"model": ["weight"], "lm_head": ["weight"]}
    assert peak(both, ["model", "lm_head"]) < 0.25 * everything


class Wide(nn.Module):
    """A model that is nearly all head: 8 wide, 8,192 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Embedding(4, 8)
        self.lm_head = nn.Linear(8, 8192, bias=False)

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.lm_head(self.model(tokens))


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_cross_entropy_and_its_gradient_are_those_of_torch(
    monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    """Also of huge logits, of forbidden tokens and of targets that count differently."""
    monkeypatch.setattr(cross_entropy_module, "TILE_ELEMENTS", 3 * 50)
    rng = np.random.default_rng(0)
    logits = (rng.normal(0, 1, (11, 50)) * scale).astype(np.float32)
    targets, weights = rng.integers(10, 50, 11), rng.normal(0, 1, 11).astype(np.float32)
    logits[:, :5] = -np.inf
    twin = torch.tensor(logits.astype(np.float64), requires_grad=True)
    expected = torch.nn.functional.cross_entropy(twin, torch.tensor(targets), reduction="none")
    (expected * torch.tensor(weights)).sum().backward()
    [found], [gradients] = mx.vjp(
        lambda x: cross_entropy(x, mx.array(targets)), [mx.array(logits)], [mx.array(weights)]
    )
    np.testing.assert_allclose(
        np.array(found), expected.detach().numpy(), rtol=1e-5, atol=1e-6 * scale
    )
    np.testing.assert_allclose(np.array(gradients), twin.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_parts_are_equal_and_whole() -> None:
    """400 tokens in parts of at most 170 are three of 134, the last shorter; one token is least."""
    parts = list(even_parts(400, 100, 17_000))
    assert parts == [slice(0, 134), slice(134, 268), slice(268, 402)]
    assert list(even_parts(2, 100, 10)) == [slice(0, 1), slice(1, 2)]
    assert list(even_parts(3, 100, 300)) == [slice(0, 3)]
