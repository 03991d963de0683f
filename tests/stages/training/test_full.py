"""torch, training the same Llama whole, is the measure of training all weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from transformers import LlamaConfig, LlamaForCausalLM

from stages.data.rows import Rows
from stages.lora.full import all_weights
from stages.training.batches import training_steps
from stages.training.loop import fit
from stages.training_settings import Optimizer, Train

# Threads of two libraries that wait for each other by spinning make this test 10 times slower.
torch.set_num_threads(1)


def torch_twin(model: Any, tied: bool) -> torch.nn.Module:
    """Build the model again in torch, in float64."""
    sizes = model.args
    twin = LlamaForCausalLM(LlamaConfig(
        hidden_size=sizes.hidden_size, intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_hidden_layers, vocab_size=sizes.vocab_size,
        num_attention_heads=sizes.num_attention_heads,
        num_key_value_heads=sizes.num_key_value_heads, rms_norm_eps=sizes.rms_norm_eps,
        tie_word_embeddings=tied, attn_implementation="eager",
    )).double()  # fmt: skip
    weights = {name: torch.tensor(np.array(value, np.float64))
               for name, value in tree_flatten(model.parameters())}  # fmt: skip
    twin.load_state_dict(weights, strict=not tied)
    return twin


def torch_loss(twin: torch.nn.Module, rows: Rows, indices: list[int]) -> tuple[torch.Tensor, int]:
    """Sum the loss of the rows, one at a time and without padding, and count their targets."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for index in indices:
        tokens, supervised = (torch.tensor(value.astype(np.int64)) for value in rows[index])
        logits = twin(input_ids=tokens[None, :-1]).logits[0]
        wanted = supervised[1:].bool()
        total = total + torch.nn.functional.cross_entropy(
            logits[wanted], tokens[1:][wanted], reduction="sum"
        )
        count += int(wanted.sum())
    return total, count


@pytest.mark.parametrize(("tied", "limit"), [(False, 3.0), (True, 5.0)])
def test_training_follows_torch_loss_by_loss(
    tiny_llama: Callable[..., Any],
    make_rows: Callable[..., Rows],
    recorder: Any,
    adamw: Callable[..., Optimizer],
    settings: Callable[..., Train],
    tied: bool,
    limit: float,
) -> None:
    """12 steps of AdamW with clipping, accumulation and decay on every weight, norms, embeddings
    and head included, give torch's losses, gradient norms, validation loss and weights."""
    model = tiny_llama(tie_word_embeddings=tied)
    twin = torch_twin(model, tied)
    tuning = all_weights(model)
    names = {name for name, _ in tree_flatten(model.parameters())}
    assert names == {name for name, _ in twin.named_parameters()}
    lengths = np.random.default_rng(3).integers(4, 40, 24).tolist()
    rows, valid = make_rows(lengths), make_rows([7, 40, 12], seed=9, name="valid")
    train = settings(epochs=2, batch_size=2, grad_accumulation_steps=2)
    optimizer = adamw(learning_rate=3e-3, max_grad_norm=limit, weight_decay=0.01,
                      schedule="constant", warmup_fraction=0.0, final_fraction=None)  # fmt: skip
    report = recorder()
    best, _ = fit(tuning, rows, valid, optimizer=optimizer, train=train, seed=1, report=report)

    moving = torch.optim.AdamW(twin.parameters(), lr=3e-3, weight_decay=0.01)
    losses, norms, valid_losses, course = [], [], [], {}
    for step in training_steps(rows, train, seed=1):
        loss, count = torch_loss(twin, rows, step.rows)
        (loss / count).backward()
        losses.append(loss.item() / count)
        norms.append(torch.nn.utils.clip_grad_norm_(twin.parameters(), limit).item())
        moving.step()
        moving.zero_grad()
        if (step.number + 1) % 6 == 0:
            with torch.no_grad():
                total, count = torch_loss(twin, valid, [0, 1, 2])
            valid_losses.append(total.item() / count)
            course[valid_losses[-1]] = {name: value.detach().numpy().copy()
                                        for name, value in twin.named_parameters()}  # fmt: skip
    assert len(losses) == 12
    assert min(norms) < limit < max(norms)
    assert report.values("train.loss") == pytest.approx(losses, rel=1e-4)
    assert report.values("train.grad_norm") == pytest.approx(norms, rel=1e-3)
    assert report.values("valid.loss")[1:] == pytest.approx(valid_losses, rel=1e-4)
    expected = course[min(valid_losses)]
    found = tuning.stored(best)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(np.array(found[name]), value, rtol=1e-3, atol=2e-4)


def test_half_precision_weights_are_trained_in_float32(
    tiny_llama: Callable[..., Any],
    make_rows: Callable[..., Rows],
    recorder: Any,
    adamw: Callable[..., Optimizer],
    settings: Callable[..., Train],
) -> None:
    """Steps too small for bfloat16, taken one by one, add up; the model computes in bfloat16 and
    has its own weights back in the end."""
    model = tiny_llama()
    model.set_dtype(mx.bfloat16)
    before = dict(tree_flatten(model.parameters()))
    tuning = all_weights(model)
    masters = {value.dtype for layer in tuning.parameters().values() for value in layer.values()}
    assert masters == {mx.float32}
    rows = make_rows([12] * 8)
    # 2^-8 is half a step of bfloat16 at 1; ten steps of 1e-3 are two and a half of them.
    optimizer = adamw(learning_rate=1e-3, schedule="constant", warmup_fraction=0.0,
                      final_fraction=None)  # fmt: skip
    best, _ = fit(tuning, rows, make_rows([], name="none"), optimizer=optimizer,
                  train=settings(epochs=5), seed=0, report=recorder())  # fmt: skip
    after = tuning.stored(best)
    assert {value.dtype for value in after.values()} == {mx.bfloat16}
    assert {value.dtype for layer in best.values() for value in layer.values()} == {mx.float32}
    norm = "model.norm.weight"
    moved = np.abs(np.array((best["model.norm"]["weight"] - before[norm]).astype(mx.float32)))
    assert moved.max() > 2**-8
    assert mx.any(after[norm] != before[norm])
    for name, value in tree_flatten(model.parameters()):
        assert mx.array_equal(value, before[name])


def test_weights_are_put_on_and_taken_off(tiny_llama: Callable[..., Any]) -> None:
    """attach computes with the tuned weights, detach with the base's own, as often as wished."""
    model, other = tiny_llama(), tiny_llama()
    tokens = mx.array([[3, 9, 27]])
    base = model(tokens)
    other.load_weights([(name, value * 1.5) for name, value in tree_flatten(other.parameters())])
    tuning = all_weights(model)
    tuning.update(all_weights(other).parameters())
    for _ in range(2):
        assert mx.array_equal(model(tokens), other(tokens))
        tuning.detach()
        assert mx.array_equal(model(tokens), base)
        tuning.attach()
