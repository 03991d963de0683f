from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stages.training.optimizers import clip, learning_rate, make_optimizer
from stages.training_settings import Optimizer

Array = NDArray[np.float64]
RNG = np.random.default_rng(0)
START: dict[str, Array] = {"lora_a": RNG.normal(size=(12, 3)), "lora_b": np.zeros((3, 8))}
GRADIENTS = [{name: RNG.normal(size=value.shape) for name, value in START.items()}
             for _ in range(12)]  # fmt: skip
RATES = [0.01 * (1 + step % 4) for step in range(12)]

COMMON: dict[str, Any] = {
    "learning_rate": 0.01, "schedule": "constant", "warmup_fraction": 0.0, "max_grad_norm": None,
}  # fmt: skip
BETAS = {"betas": (0.8, 0.97)}
OPTIONS: dict[str, dict[str, Any]] = {
    "adamw": {**BETAS, "eps": 1e-3, "weight_decay": 0.3},
    "adam": {**BETAS, "eps": 1e-3},
    "sgd": {"momentum": 0.9, "nesterov": False, "weight_decay": 0.3},
    "lion": {**BETAS, "weight_decay": 0.3},
    "muon": {**BETAS, "eps": 1e-3, "momentum": 0.9, "nesterov": True, "weight_decay": 0.3},
    "adafactor": {"eps": 1e-3, "weight_decay": 0.3},
}


def settings(name: Any, **changes: Any) -> Optimizer:
    return Optimizer(name=name, **(COMMON | OPTIONS[name] | changes))


def ours(optimizer: Optimizer) -> list[dict[str, Array]]:
    """Return the weights after each of 12 steps, the learning rate changing every step."""
    moving = make_optimizer(optimizer)
    weights = {name: mx.array(value, mx.float32) for name, value in START.items()}
    course = []
    for gradients, rate in zip(GRADIENTS, RATES, strict=True):
        moving.learning_rate = rate
        given = {name: mx.array(value, mx.float32) for name, value in gradients.items()}
        weights = moving.apply_gradients(given, weights)
        course.append({name: np.array(value, np.float64) for name, value in weights.items()})
    return course


def torchs(make: Callable[[list[torch.Tensor]], torch.optim.Optimizer]) -> list[dict[str, Array]]:
    weights = {name: torch.tensor(value, requires_grad=True) for name, value in START.items()}
    moving = make(list(weights.values()))
    course = []
    for gradients, rate in zip(GRADIENTS, RATES, strict=True):
        for group in moving.param_groups:
            group["lr"] = rate
        for name, value in weights.items():
            value.grad = torch.tensor(gradients[name])
        moving.step()
        course.append({name: value.detach().numpy().copy() for name, value in weights.items()})
    return course


def by_hand(move: Callable[[Array, Array, dict[str, Any], float, int], Array]) -> list[Any]:
    weights, memory = dict(START), {name: {} for name in START}
    course = []
    for step, (gradients, rate) in enumerate(zip(GRADIENTS, RATES, strict=True), start=1):
        weights = {name: move(value, gradients[name], memory[name], rate, step)
                   for name, value in weights.items()}  # fmt: skip
        course.append(weights)
    return course


def assert_same(found: list[dict[str, Array]], expected: list[dict[str, Array]]) -> None:
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        for name in START:
            np.testing.assert_allclose(
                one[name], other[name], rtol=1e-4, atol=1e-5, err_msg=f"{name} at step {step}"
            )


def test_adamw_is_torchs() -> None:
    """AdamW with bias correction and decoupled decay follows torch over 12 steps."""
    expected = torchs(lambda w: torch.optim.AdamW(w, betas=(0.8, 0.97), eps=1e-3, weight_decay=0.3))
    assert_same(ours(settings("adamw")), expected)


def test_adam_is_torchs() -> None:
    """Adam with bias correction follows torch over 12 steps."""
    assert_same(ours(settings("adam")), torchs(lambda w: torch.optim.Adam(w, 1, (0.8, 0.97), 1e-3)))


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_torchs(nesterov: bool) -> None:
    """SGD with momentum and L2, Nesterov or not, follows torch over 12 steps."""
    expected = torchs(
        lambda w: torch.optim.SGD(w, 1, momentum=0.9, weight_decay=0.3, nesterov=nesterov)
    )
    assert_same(ours(settings("sgd", nesterov=nesterov)), expected)


def test_sgd_without_momentum_is_torchs() -> None:
    """Momentum 0 is plain gradient descent."""
    expected = torchs(lambda w: torch.optim.SGD(w, 1, weight_decay=0.3))
    assert_same(ours(settings("sgd", momentum=0.0)), expected)


def test_lion_is_that_of_the_paper() -> None:
    """Lion is algorithm 2 of arXiv 2302.06675, decay included."""

    def move(w: Array, g: Array, memory: dict[str, Any], rate: float, step: int) -> Array:
        m = memory.get("m", np.zeros_like(w))
        memory["m"] = 0.97 * m + 0.03 * g
        return w - rate * (np.sign(0.8 * m + 0.2 * g) + 0.3 * w)

    assert_same(ours(settings("lion")), by_hand(move))


@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_is_orthogonalised_momentum_with_decoupled_decay(nesterov: bool) -> None:
    """Muon follows Jordan's Newton-Schulz in float64, with the size of a move and the decay of
    arXiv 2502.16982."""

    def move(w: Array, g: Array, memory: dict[str, Any], rate: float, step: int) -> Array:
        v = memory["v"] = 0.9 * memory.get("v", np.zeros_like(w)) + 0.1 * g
        x = 0.1 * g + 0.9 * v if nesterov else v
        tall = x.shape[0] > x.shape[1]
        x = x.T if tall else x
        x = x / np.linalg.norm(x)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        x = x.T if tall else x
        return w * (1 - rate * 0.3) - rate * 0.2 * math.sqrt(max(x.shape)) * x

    assert_same(ours(settings("muon", nesterov=nesterov)), by_hand(move))


@pytest.mark.parametrize(
    ("path", "shape"),
    [("model.embed_tokens.weight", (12, 3)), ("lm_head.weight", (12, 3)), ("norm.weight", (8,)),
     ("q_proj.m", (8,)), ("q_proj.bias", (8,))],
)  # fmt: skip
def test_muon_moves_tables_and_vectors_as_adamw(path: str, shape: tuple[int, ...]) -> None:
    """Embeddings, the head, norms, biases and DoRA's m move as torch's AdamW moves them."""
    rng = np.random.default_rng(6)
    layer, _, name = path.rpartition(".")
    start = rng.normal(size=shape)
    weight = torch.tensor(start, requires_grad=True)
    theirs = torch.optim.AdamW([weight], lr=0.01, betas=(0.8, 0.97), eps=1e-3, weight_decay=0.3)
    found = {layer: {name: mx.array(start, mx.float32)}}
    first = make_optimizer(settings("muon"))
    first.init(found)
    state = first.state
    for step in range(8):
        gradient = rng.normal(size=shape)
        weight.grad = torch.tensor(gradient)
        theirs.step()
        # As a compiled step does: a new optimizer each time, with the state of the last.
        moving = make_optimizer(settings("muon"))
        moving.state, moving.learning_rate = state, 0.01
        found = moving.apply_gradients({layer: {name: mx.array(gradient, mx.float32)}}, found)
        state = moving.state
        np.testing.assert_allclose(np.array(found[layer][name]), weight.detach().numpy(),
                                   rtol=1e-4, atol=1e-5, err_msg=f"step {step}")  # fmt: skip


def test_muon_decays_as_torchs_does() -> None:
    """Without a gradient nothing but the decay is left: torch's Muon shrinks by the same factor."""
    weights = torch.tensor(START["lora_a"], requires_grad=True)
    weights.grad = torch.zeros_like(weights)
    torch.optim.Muon([weights], lr=0.05, weight_decay=0.3).step()
    moving = make_optimizer(settings("muon", learning_rate=0.05))
    start = mx.array(START["lora_a"], mx.float32)
    found = moving.apply_gradients({"w": mx.zeros_like(start)}, {"w": start})["w"]
    np.testing.assert_allclose(np.array(found), weights.detach().numpy(), rtol=1e-5)


def test_adafactor_is_that_of_the_paper() -> None:
    """Adafactor is algorithm 4 of arXiv 1804.04235 with a given step size and decoupled decay."""

    def move(w: Array, g: Array, memory: dict[str, Any], rate: float, step: int) -> Array:
        beta = 1 - step**-0.8
        square = g**2 + 1e-3
        row = memory["row"] = beta * memory.get("row", 0) + (1 - beta) * square.mean(axis=1)
        col = memory["col"] = beta * memory.get("col", 0) + (1 - beta) * square.mean(axis=0)
        update = g / np.sqrt(np.outer(row, col) / row.mean())
        update /= max(1.0, np.sqrt((update**2).mean()))
        return w * (1 - rate * 0.3) - rate * update

    assert_same(ours(settings("adafactor")), by_hand(move))


LORA_PLUS_STEPS = 24


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("adamw", lambda groups: torch.optim.AdamW(groups, betas=(0.8, 0.97), eps=1e-3,
                                                   weight_decay=0.3)),
        ("adam", lambda groups: torch.optim.Adam(groups, betas=(0.8, 0.97), eps=1e-3)),
        ("sgd", lambda groups: torch.optim.SGD(groups, momentum=0.9, weight_decay=0.3)),
    ],
)  # fmt: skip
def test_lora_plus_is_two_groups_of_torch(
    name: str, make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
) -> None:
    """Over 24 steps with a changing rate lora_b of every layer moves as in a group of torch's with
    16 times the rate, lora_a and DoRA's m as in one with the rate: arXiv 2402.12354."""
    rng = np.random.default_rng(4)
    shapes = {"lora_a": (12, 3), "lora_b": (3, 8), "m": (8,)}
    start = {path: {name: rng.normal(size=shape) for name, shape in shapes.items()}
             for path in ("layers.0.q_proj", "layers.1.q_proj")}  # fmt: skip
    tensors = {path: {name: torch.tensor(value, requires_grad=True)
                      for name, value in weights.items()}
               for path, weights in start.items()}  # fmt: skip
    groups = [{"params": [weights[name] for weights in tensors.values() for name in names]}
              for names in (("lora_a", "m"), ("lora_b",))]  # fmt: skip
    theirs = make(groups)
    found = {path: {name: mx.array(value, mx.float32) for name, value in weights.items()}
             for path, weights in start.items()}  # fmt: skip
    first = make_optimizer(settings(name), b_learning_rate_ratio=16)
    first.init(found)
    state = first.state
    for step in range(LORA_PLUS_STEPS):
        rate = 0.002 * (1 + step % 4)
        gradients = {path: {name: rng.normal(size=shape) for name, shape in shapes.items()}
                     for path in start}  # fmt: skip
        for path, weights in tensors.items():
            for each, tensor in weights.items():
                tensor.grad = torch.tensor(gradients[path][each])
        for group, factor in zip(theirs.param_groups, (1, 16), strict=True):
            group["lr"] = factor * rate
        theirs.step()
        # As a compiled step does: a new optimizer each time, with the state of the last.
        ours = make_optimizer(settings(name), b_learning_rate_ratio=16)
        ours.state, ours.learning_rate = state, rate
        given = {path: {name: mx.array(value, mx.float32) for name, value in weights.items()}
                 for path, weights in gradients.items()}  # fmt: skip
        found, state = ours.apply_gradients(given, found), ours.state
        for path, weights in tensors.items():
            for each, tensor in weights.items():
                np.testing.assert_allclose(
                    np.array(found[path][each]), tensor.detach().numpy(), rtol=1e-4, atol=1e-5,
                    err_msg=f"{path} {each} at step {step}",
                )  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_lora_plus_is_the_optimizer_at_two_rates(name: str) -> None:
    """With every optimizer lora_b moves as alone at 4 times the rate, and lora_a as without."""
    weights = {"q_proj": {name: mx.array(value, mx.float32) for name, value in START.items()}}
    plus = make_optimizer(settings(name), b_learning_rate_ratio=4)
    slow, fast = make_optimizer(settings(name)), make_optimizer(settings(name))
    found, expected = weights, weights
    for gradients, rate in zip(GRADIENTS, RATES, strict=True):
        given = {"q_proj": {name: mx.array(value, mx.float32) for name, value in gradients.items()}}
        plus.learning_rate = slow.learning_rate = rate
        fast.learning_rate = 4 * rate
        found = plus.apply_gradients(given, found)
        at_rate, at_four = (each.apply_gradients(given, expected) for each in (slow, fast))
        expected = {"q_proj": {"lora_a": at_rate["q_proj"]["lora_a"],
                               "lora_b": at_four["q_proj"]["lora_b"]}}  # fmt: skip
    for each, value in expected["q_proj"].items():
        np.testing.assert_allclose(np.array(found["q_proj"][each]), np.array(value), rtol=1e-6)


def test_ratio_of_one_is_the_plain_optimizer() -> None:
    """At 1 every weight moves bit by bit as without LoRA+, and the rate is read back as set."""
    weights = {"q_proj": {name: mx.array(value, mx.float32) for name, value in START.items()}}
    given = {"q_proj": {name: mx.array(value, mx.float32) for name, value in GRADIENTS[0].items()}}
    plus, plain = make_optimizer(settings("adamw"), 1.0), make_optimizer(settings("adamw"))
    assert plus.learning_rate.item() == plain.learning_rate.item()
    found, expected = (each.apply_gradients(given, weights) for each in (plus, plain))
    for name, value in expected["q_proj"].items():
        assert mx.array_equal(found["q_proj"][name], value)


def rates(total: int, **changes: Any) -> list[float]:
    optimizer = settings("adamw", **({"learning_rate": 2.0} | changes))
    return [learning_rate(optimizer, step, total) for step in range(total)]


def test_warm_up_rises_in_a_line_to_the_peak() -> None:
    """4 of 20 steps rise by fifths of the peak, the fifth step has it, constant keeps it."""
    found = rates(20, warmup_fraction=0.2)
    assert found[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert set(found[4:]) == {2.0}


def test_linear_falls_in_a_line_to_its_final_share() -> None:
    """From the peak to a tenth of it at the last step, by equal differences."""
    found = rates(11, schedule="linear", final_fraction=0.1)
    assert found == pytest.approx(np.linspace(2.0, 0.2, 11))


def test_cosine_is_torchs_after_the_warm_up() -> None:
    """After the warm-up the rates are those of torch's CosineAnnealingLR."""
    found = rates(25, schedule="cosine", final_fraction=0.25, warmup_fraction=0.2)
    moving = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(moving, T_max=19, eta_min=0.5)
    expected = []
    for _ in range(20):
        expected.append(moving.param_groups[0]["lr"])
        moving.step()
        schedule.step()
    assert found[5:] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("total", [1, 2, 3])
def test_shortest_runs_reach_the_peak(schedule: str, total: int) -> None:
    """However few the steps and long the warm-up, one step has the peak and none is at 0."""
    final = None if schedule == "constant" else 0.1
    found = rates(total, schedule=schedule, final_fraction=final, warmup_fraction=0.9)
    assert max(found) == 2.0
    assert min(found) > 0


@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_clip_is_torchs(limit: float) -> None:
    """One norm over all matrices, as torch computes and applies it."""
    tensors = [torch.zeros(value.shape, requires_grad=True) for value in GRADIENTS[0].values()]
    for tensor, value in zip(tensors, GRADIENTS[0].values(), strict=True):
        tensor.grad = torch.tensor(value, dtype=torch.float32)
    norm = torch.nn.utils.clip_grad_norm_(tensors, limit)
    found, found_norm = clip({name: mx.array(value, mx.float32)
                              for name, value in GRADIENTS[0].items()}, limit)  # fmt: skip
    assert found_norm.item() == pytest.approx(norm.item(), rel=1e-6)
    for tensor, value in zip(tensors, found.values(), strict=True):
        np.testing.assert_allclose(np.array(value), tensor.grad.numpy(), rtol=1e-5)


def test_no_limit_clips_nothing() -> None:
    """Without a limit the gradients are the very ones given, and the norm is still told."""
    gradients = {"a": mx.array([[300.0, 400.0]])}
    found, norm = clip(gradients, None)
    assert found["a"] is gradients["a"]
    assert norm.item() == 500.0
