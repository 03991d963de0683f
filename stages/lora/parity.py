"""How far apart two models are, on the supervised positions of some rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx import nn

from stages.data.rows import Supervised, Tokens

LOGITS_BYTES = 1 << 29
"""Most memory that the reference's logits may take; beyond it, fewer positions of each row."""

Row = tuple[Tokens, Supervised]
"""Tokens and supervised flags of one row, both (T,)."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What the reference model says at some positions of one row."""

    tokens: mx.array
    """(1, T) int32."""
    positions: mx.array
    """(P,): positions whose next token is supervised."""
    logits: mx.array
    """(P, vocabulary) float32."""

    @property
    def targets(self) -> mx.array:
        """Return the token that follows each position: (P,)."""
        return self.tokens[0, self.positions + 1]


@dataclass(frozen=True, slots=True)
class Difference:
    """How a model differs from the reference, over all positions of all probes."""

    kl: float
    """Mean KL(reference ‖ model), nats per position."""
    max_logit_difference: float
    """Largest difference between two logits of the same token."""
    greedy_agreement: float
    """Share of the positions where both find the same token the likeliest."""
    loss: float
    """The model's own mean cross-entropy, nats per position."""


def probe(model: nn.Module, rows: Sequence[Row], tick: Callable[[], None]) -> list[Probe]:
    """Run the reference `model` on each row that has a supervised target; `tick` after each.

    The positions taken from a row are all its supervised ones, or as many of them, evenly
    spread, as its share of LOGITS_BYTES holds.
    """
    probes = []
    for tokens, supervised in rows:
        inputs = mx.array(tokens)[None]
        logits = model(inputs[:, :-1])[0]
        positions = np.flatnonzero(supervised[1:])
        most = max(1, LOGITS_BYTES // (4 * logits.shape[-1] * len(rows)))
        if len(positions) > most:
            positions = positions[np.linspace(0, len(positions) - 1, most).astype(int)]
        chosen = mx.array(positions)
        probes.append(Probe(inputs, chosen, logits[chosen].astype(mx.float32)))
        mx.eval(probes[-1].logits)
        tick()
    return probes


def compare(model: nn.Module, probes: Sequence[Probe], tick: Callable[[], None]) -> Difference:
    """Run `model` on the rows of `probes`, one after the other; `tick` after each."""
    kl, agreed, losses, largest = [], [], [], []
    for row in probes:
        logits = model(row.tokens[:, :-1])[0][row.positions].astype(mx.float32)
        kl.append(divergence(row.logits, logits))
        agreed.append(mx.argmax(row.logits, axis=-1) == mx.argmax(logits, axis=-1))
        losses.append(cross_entropy(logits, row.targets))
        largest.append(mx.abs(row.logits - logits).max())
        mx.eval(kl[-1], agreed[-1], losses[-1], largest[-1])
        tick()
    return Difference(
        kl=float(mx.concatenate(kl).mean()),
        max_logit_difference=float(mx.stack(largest).max()),
        greedy_agreement=float(mx.concatenate(agreed).mean()),
        loss=float(mx.concatenate(losses).mean()),
    )


def loss(probes: Sequence[Probe]) -> float:
    """Return the reference's own mean cross-entropy, nats per position."""
    return float(mx.concatenate([cross_entropy(row.logits, row.targets) for row in probes]).mean())


def divergence(reference: mx.array, logits: mx.array) -> mx.array:
    """Return KL(reference ‖ logits) in nats of each row of logits: (P, V) twice to (P,).

    Summed as p·log(p/q) - p + q: no term is negative and errors enter squared, so that float32
    tells 1e-10 nats from none.
    """
    log_p, log_q = _log_softmax(reference), _log_softmax(logits)
    p, ratio = mx.exp(log_p), log_p - log_q
    near, far = p * (ratio + mx.expm1(-ratio)), p * ratio - p + mx.exp(log_q)
    return mx.where(mx.abs(ratio) < 1, near, far).sum(axis=-1)


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Return the loss in nats at each position: (P, V) and (P,) to (P,)."""
    losses: mx.array = nn.losses.cross_entropy(logits, targets)
    return losses


def _log_softmax(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
