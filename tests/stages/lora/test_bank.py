from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from stages.errors import SettingError
from stages.lora.bank import attach, initial, shape_of
from stages.lora.layers import AdapterShape
from stages.lora.targets import find_targets
from stages.settings import Lora

LLAMA = Callable[..., Any]
TOKENS = mx.array([[3, 9, 27, 17, 51], [2, 4, 8, 16, 32]])


def lora(**changes: Any) -> Lora:
    values = {
        "stage": "stages.train.train", "type": "lora", "rank": 8, "alpha": 32.0, "dropout": 0.0,
        "targets": ("*",), "num_layers": None,
    }  # fmt: skip
    return Lora(**(values | changes))


def test_fresh_adapter_leaves_the_logits_as_they_are(tiny_llama: LLAMA) -> None:
    """A new adapter on every layer gives the base model's logits, bit by bit."""
    model = tiny_llama()
    expected = model(TOKENS)
    bank = attach(model, find_targets(model, ["*"], None), [AdapterShape(4, 2.0)])
    bank.update(bank.join([initial(bank.layers, 4, seed=0)]))
    assert mx.array_equal(model(TOKENS), expected)


def test_detach_gives_the_same_layers_back(tiny_llama: LLAMA) -> None:
    """After detach the model holds the very layers it had, and another bank can follow."""
    model = tiny_llama()
    modules = {name: id(module) for name, module in model.named_modules()}
    names = [name for name, _ in tree_flatten(model.parameters())]
    for rank in (4, 2):
        bank = attach(model, find_targets(model, ["*"], None), [AdapterShape(rank, 1.0)])
        assert id(model.layers[1].mlp.up_proj) != modules["model.layers.1.mlp.up_proj"]
        bank.detach()
        assert {name: id(module) for name, module in model.named_modules()} == modules
        assert [name for name, _ in tree_flatten(model.parameters())] == names


def test_split_and_join_are_inverses(tiny_llama: LLAMA) -> None:
    """Adapters of ranks 2, 5 and 1 come out of the stack as they went in."""
    model = tiny_llama()
    shapes = [AdapterShape(rank, 1.0) for rank in (2, 5, 1)]
    bank = attach(model, find_targets(model, ["q_proj"], None), shapes)
    adapters = [initial(bank.layers, shape.rank, seed) for seed, shape in enumerate(shapes)]
    bank.update(bank.join(adapters))
    assert bank.layers["model.layers.0.self_attn.q_proj"].lora_a.shape == (3, 32, 5)
    for found, expected in zip(bank.split(bank.parameters()), adapters, strict=True):
        for path, weights in expected.items():
            for name, value in weights.items():
                assert mx.array_equal(found[path][name], value)


def test_using_gives_the_weights_back_when_it_fails(tiny_llama: LLAMA) -> None:
    """Weights and routing of a failed computation do not stay behind."""
    model = tiny_llama()
    bank = attach(model, find_targets(model, ["q_proj"], None), [AdapterShape(4, 1.0)])
    before = bank.parameters()
    other = bank.join([initial(bank.layers, 4, seed=1)])
    with pytest.raises(RuntimeError), bank.using(other, adapter=mx.array([0])):
        raise RuntimeError
    assert bank.routing.adapter is None
    for path, weights in bank.parameters().items():
        assert weights["lora_a"] is before[path]["lora_a"]


def test_initial_weights_are_those_of_peft(tiny_llama: LLAMA) -> None:
    """lora_a fills [-1/sqrt(in), 1/sqrt(in)] uniformly and lora_b is zero: PEFT's own choice."""
    model = tiny_llama(hidden_size=256, intermediate_size=64)
    bank = attach(model, find_targets(model, ["*"], None), [AdapterShape(64, 1.0)])
    drawn = initial(bank.layers, 64, seed=0)
    lora_a = np.array(drawn["model.layers.0.self_attn.q_proj"]["lora_a"])
    bound = 1 / math.sqrt(256)
    assert 0.999 * bound < np.abs(lora_a).max() <= bound
    # A uniform variable has the variance bound^2 / 3; 16,384 draws know it to 3 %.
    assert lora_a.var() == pytest.approx(bound**2 / 3, rel=0.03)
    assert all(not mx.any(weights["lora_b"]) for weights in drawn.values())


def test_initial_weights_depend_on_seed_and_layer_alone(tiny_llama: LLAMA) -> None:
    """The same seed draws the same, on fewer layers too; another seed or layer draws others."""
    model = tiny_llama()
    everything = attach(model, find_targets(model, ["*"], None), [AdapterShape(4, 1.0)])
    first, again = (initial(everything.layers, 4, seed) for seed in (5, 5))
    other = initial(everything.layers, 4, 6)
    everything.detach()
    few = attach(model, find_targets(model, ["k_proj"], 1), [AdapterShape(4, 1.0)])
    path, twin = "model.layers.1.self_attn.k_proj", "model.layers.0.self_attn.k_proj"
    expected = first[path]["lora_a"]
    assert mx.array_equal(again[path]["lora_a"], expected)
    assert mx.array_equal(initial(few.layers, 4, 5)[path]["lora_a"], expected)
    assert not mx.array_equal(other[path]["lora_a"], expected)
    assert not mx.array_equal(first[twin]["lora_a"], expected)


def test_scale_follows_the_type() -> None:
    """lora divides alpha by the rank, rslora by its square root."""
    assert shape_of(lora(rank=16)) == AdapterShape(16, 2.0, 0.0)
    assert shape_of(lora(type="rslora", rank=16, dropout=0.1)) == AdapterShape(16, 8.0, 0.1)


def test_bank_without_rank_is_refused() -> None:
    """Settings that lost their rank are named, not computed with."""
    settings = lora()
    settings.rank = None
    with pytest.raises(SettingError, match="lora: rank"):
        shape_of(settings)
