from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import torch

from stages.training.loss import row_losses

TOKENS = np.random.default_rng(0).integers(1, 64, (3, 12)).astype(np.int32)
SUPERVISED = (np.random.default_rng(1).random((3, 12)) < 0.5).astype(np.uint8)


def test_loss_is_torch_cross_entropy_of_the_supervised_targets(
    tiny_llama: Callable[..., Any],
) -> None:
    """Each row's sum is torch's cross-entropy with every other target ignored."""
    model = tiny_llama()
    logits = torch.tensor(np.array(model(mx.array(TOKENS[:, :-1]))))
    targets = torch.tensor(np.where(SUPERVISED, TOKENS, -100)[:, 1:]).long()
    expected = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), targets, reduction="none"
    ).sum(dim=1)
    found = row_losses(model, mx.array(TOKENS), mx.array(SUPERVISED))
    np.testing.assert_allclose(np.array(found), expected.numpy(), rtol=1e-5)


def test_padding_and_unsupervised_tokens_add_nothing(tiny_llama: Callable[..., Any]) -> None:
    """More padding leaves the loss as it is, whatever token it is made of."""
    model = tiny_llama()
    expected = np.array(row_losses(model, mx.array(TOKENS), mx.array(SUPERVISED)))
    for pad in (0, 63):
        tokens = np.pad(TOKENS, ((0, 0), (0, 20)), constant_values=pad)
        supervised = np.pad(SUPERVISED, ((0, 0), (0, 20)))
        found = row_losses(model, mx.array(tokens), mx.array(supervised))
        np.testing.assert_allclose(np.array(found), expected, rtol=1e-5)


def test_loss_of_a_low_precision_model_is_float32(tiny_llama: Callable[..., Any]) -> None:
    """From bfloat16 logits the loss is computed, summed and returned in float32."""
    model = tiny_llama()
    model.set_dtype(mx.bfloat16)
    logits = np.array(model(mx.array(TOKENS[:, :-1])).astype(mx.float32), np.float64)
    likely = np.take_along_axis(logits, TOKENS[:, 1:, None], axis=-1)[..., 0]
    losses = (np.log(np.exp(logits).sum(axis=-1)) - likely) * SUPERVISED[:, 1:]
    found = row_losses(model, mx.array(TOKENS), mx.array(SUPERVISED))
    assert found.dtype == mx.float32
    np.testing.assert_allclose(np.array(found), losses.sum(axis=1), rtol=1e-5)
