"""The training loss: float32 cross-entropy of the supervised tokens."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn


def row_losses(model: nn.Module, tokens: mx.array, supervised: mx.array) -> mx.array:
    """Sum the loss over the supervised targets of each row.

    `tokens` and `supervised` are (B, T + 1); the target of position t is token t + 1. Returns
    (B,) float32: a mean is taken once, over the tokens of a whole step.
    """
    logits = model(tokens[:, :-1]).astype(mx.float32)
    losses = nn.losses.cross_entropy(logits, tokens[:, 1:])
    return mx.where(supervised[:, 1:] != 0, losses, 0).sum(axis=1)
