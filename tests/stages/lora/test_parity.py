"""The divergence against float64, and which positions are compared."""

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from stages.lora import parity
from stages.lora.parity import compare, divergence, loss, probe


def exact(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return KL(reference ‖ logits) of each row, in float64 from the definition."""

    def log_softmax(values: np.ndarray) -> np.ndarray:
        shifted = values.astype(float) - values.max(axis=-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))

    log_p, log_q = log_softmax(reference), log_softmax(logits)
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)


@pytest.mark.parametrize("spread", [1e-4, 1e-3, 0.1, 2.0, 30.0])
def test_divergence_is_right_at_every_size(spread: float) -> None:
    """From 1e-9 nats to tens of nats, float32 gives what float64 gives."""
    draw = np.random.default_rng(0)
    reference = draw.normal(0, 3, (4, 5000)).astype(np.float32)
    logits = reference + draw.normal(0, spread, reference.shape).astype(np.float32)
    found = np.array(divergence(mx.array(reference), mx.array(logits)))
    np.testing.assert_allclose(found, exact(reference, logits), rtol=2e-3)


def test_divergence_of_equal_and_of_certain_models() -> None:
    """Equal logits differ by nothing; a certain, wrong model by the distance of its logits."""
    sure = mx.array([[0.0, 500.0, 0.0]])
    assert divergence(sure, sure).item() == 0
    assert divergence(sure, mx.array([[500.0, 0.0, 0.0]])).item() == pytest.approx(500)
    assert divergence(sure, sure + 7).item() == pytest.approx(0, abs=1e-12)


class Table(nn.Module):
    """A model whose logits for a token are a row of a table, whatever comes before."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.table = mx.random.normal((50, 50), key=mx.random.key(seed))

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.table[tokens]


TOKENS = np.array([7, 3, 9, 4, 4, 21, 8, 30], np.int32)
SUPERVISED = np.array([0, 0, 1, 1, 0, 1, 1, 1], np.uint8)
PLACES = [1, 2, 4, 5, 6]
"""Positions before the supervised tokens."""


def test_only_supervised_positions_are_compared() -> None:
    """A position counts if the token after it is supervised; the model's loss is of that token."""
    model, other = Table(0), Table(1)
    ticks: list[None] = []
    probes = probe(model, [(TOKENS, SUPERVISED)] * 2, lambda: ticks.append(None))
    found = compare(other, probes, lambda: ticks.append(None))
    one, two = (np.array(m.table)[TOKENS[PLACES]] for m in (model, other))
    targets = TOKENS[np.array(PLACES) + 1]
    logs = [np.log(np.exp(t) / np.exp(t).sum(-1, keepdims=True)) for t in (one, two)]
    losses = [-np.mean([log[i, target] for i, target in enumerate(targets)]) for log in logs]
    assert probes[0].positions.tolist() == PLACES
    assert loss(probes) == pytest.approx(losses[0], rel=1e-5)
    assert found.loss == pytest.approx(losses[1], rel=1e-5)
    assert found.kl == pytest.approx(exact(one, two).mean(), rel=1e-5)
    assert found.max_logit_difference == pytest.approx(np.abs(one - two).max(), rel=1e-6)
    assert found.greedy_agreement == np.mean(one.argmax(-1) == two.argmax(-1))
    assert len(ticks) == 4


def test_a_model_agrees_with_itself() -> None:
    """Compared with itself a model differs in nothing and always agrees."""
    probes = probe(Table(0), [(TOKENS, SUPERVISED)], lambda: None)
    found = compare(Table(0), probes, lambda: None)
    assert (found.kl, found.max_logit_difference, found.greedy_agreement) == (0, 0, 1)
    assert found.loss == loss(probes)


def test_memory_bounds_the_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for three rows of logits a row gives three positions, first and last included."""
    monkeypatch.setattr(parity, "LOGITS_BYTES", 2 * 3 * 50 * 4)
    probes = probe(Table(0), [(TOKENS, SUPERVISED)] * 2, lambda: None)
    assert [row.positions.tolist() for row in probes] == [[1, 4, 6]] * 2
    assert [row.targets.tolist() for row in probes] == [[9, 21, 30]] * 2
