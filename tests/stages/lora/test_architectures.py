"""One tiny model of every family in conf/model and of many more of mlx-lm's: train, save, merge."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import load_adapters

from stages.lora.bank import Bank, Parameters, attach, initial
from stages.lora.files import load_adapter, save_adapter
from stages.lora.layers import AdapterShape, RankPattern
from stages.lora.merge import merge_weights, unmerge_weights
from stages.lora.targets import find_targets, left_out, matrix_layers

CONFIGS = json.loads((Path(__file__).parent / "architectures.json").read_text())
FAMILIES = {path.stem for path in (Path(__file__).parents[3] / "conf" / "model").glob("*.yaml")} - {
    "tiny",
    "local",
}
# 40 tokens to 2 of 4 experts each: enough for mlx-lm to sort the rows by expert.
TOKENS = mx.array(np.random.default_rng(0).integers(1, 64, (2, 20)))


@pytest.fixture(autouse=True)
def _plain() -> Iterator[None]:
    # MLX would run g++ for every activation of every model.
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(params=sorted(CONFIGS))
def make(request: pytest.FixtureRequest) -> Callable[[], Any]:
    """Return a maker of frozen models with the same random weights."""
    config = CONFIGS[request.param]
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")

    def make() -> Any:
        mx.random.seed(0)
        model = module.Model(module.ModelArgs.from_dict(config))
        rng = np.random.default_rng(7)
        weights = [(name, _drawn(name, value, rng))
                   for name, value in sorted(tree_flatten(model.parameters()))]  # fmt: skip
        model.update(tree_unflatten(weights))
        model.freeze()
        model.eval()
        return model

    return make


def _drawn(name: str, value: mx.array, rng: np.random.Generator) -> mx.array:
    if "norm" in name:
        return mx.array(rng.normal(1, 0.1, value.shape), value.dtype)
    if name.endswith("weight") and value.ndim == 2:
        return mx.array(rng.normal(0, 0.2, value.shape), value.dtype)
    # What a state space decays by, for one, must stay near what the model starts with.
    return value + mx.array(rng.normal(0, 0.02, value.shape), value.dtype)


def adapted(model: Any) -> tuple[Bank, Parameters]:
    """Adapt everything that can be adapted, one kind of layer with half the rank of the others."""
    layers = [layer for layer in matrix_layers(model, 2) if layer.kind != "other"]
    spelt = {layer.path.rpartition(".")[2] for layer in layers
             if layer.kind != "linear" or layer.key is None}  # fmt: skip
    targets = find_targets(model, ["*", *sorted(spelt)], None)
    assert set(targets.paths) == {layer.path for layer in layers}
    half = RankPattern(targets.keys[0], 2, 4.0)
    shape = AdapterShape(4, 2.0, patterns=(half,))
    bank = attach(model, targets, [shape])
    adapter = initial(bank.layers, shape, seed=0)
    rng = np.random.default_rng(1)
    drawn = {path: {name: value + mx.array(rng.normal(0, 0.05, value.shape), mx.float32)
                    for name, value in weights.items()}
             for path, weights in adapter.items()}  # fmt: skip
    return bank, drawn


def test_every_family_is_here() -> None:
    """Each option of the model group has its architecture in the table, and 20 more are there."""
    assert CONFIGS.keys() >= FAMILIES
    assert len({config["model_type"] for config in CONFIGS.values()}) >= len(FAMILIES) + 20


def test_fresh_adapter_changes_nothing_and_every_matrix_learns(make: Callable[[], Any]) -> None:
    """A new adapter gives the base's logits bit by bit; a perturbed one has finite gradients, not
    all zero, in each of its matrices."""
    model = make()
    expected = model(TOKENS)
    bank, adapter = adapted(model)
    shape = bank.shapes[0]
    bank.update(bank.join([initial(bank.layers, shape, seed=0)]))
    assert mx.array_equal(model(TOKENS), expected)

    def loss(parameters: Parameters) -> mx.array:
        with bank.using(parameters):
            return model(TOKENS).astype(mx.float32).square().mean()

    model.train()
    gradients = mx.grad(loss)(bank.join([adapter]))
    for path, weights in gradients.items():
        for name, gradient in weights.items():
            assert mx.isfinite(gradient).all(), (path, name)
            assert mx.abs(gradient).max() > 0, (path, name)


def test_saved_adapter_loads_here_and_in_mlx_lm(make: Callable[[], Any], tmp_path: Path) -> None:
    """Loaded by us it gives the same logits bit by bit, by mlx-lm's own loader nearly so."""
    model = make()
    base = model(TOKENS)
    bank, adapter = adapted(model)
    bank.update(bank.join([adapter]))
    expected = np.array(model(TOKENS).astype(mx.float32))
    assert np.abs(expected - np.array(base.astype(mx.float32))).max() > 0.1
    save_adapter(tmp_path, adapter, bank.shapes[0], bank.targets, {})
    ours = make()
    loaded = load_adapter(ours, tmp_path)
    assert isinstance(loaded, Bank)
    assert (loaded.targets, loaded.shapes) == (bank.targets, bank.shapes)
    np.testing.assert_array_equal(np.array(ours(TOKENS).astype(mx.float32)), expected)
    theirs = load_adapters(make(), str(tmp_path))
    theirs.eval()
    np.testing.assert_allclose(
        np.array(theirs(TOKENS).astype(mx.float32)), expected, rtol=1e-4, atol=1e-4
    )


def test_merged_model_is_base_plus_adapter_and_comes_back(make: Callable[[], Any]) -> None:
    """Merged weights give the adapted logits without any adapter; unmerged ones give the base's."""
    model = make()
    base = np.array(model(TOKENS).astype(mx.float32))
    names = [name for name, _ in tree_flatten(model.parameters())]
    bank, adapter = adapted(model)
    bank.update(bank.join([adapter]))
    expected = np.array(model(TOKENS).astype(mx.float32))
    merge_weights(bank)
    assert [name for name, _ in tree_flatten(model.parameters())] == names
    merged = np.array(model(TOKENS).astype(mx.float32))
    np.testing.assert_allclose(merged, expected, rtol=1e-4, atol=1e-4)
    bank.attach()
    unmerge_weights(bank)
    found = np.array(model(TOKENS).astype(mx.float32))
    np.testing.assert_allclose(found, base, rtol=1e-4, atol=1e-4)


def test_what_star_takes_and_leaves_is_everything(make: Callable[[], Any]) -> None:
    """Of the blocks' layers with a matrix, `*` takes the linear ones and names all others."""
    model = make()
    taken = find_targets(model, ["*"], None)
    inside = [layer for layer in matrix_layers(model, 2) if layer.key is not None]
    assert set(taken.paths) == {layer.path for layer in inside if layer.kind == "linear"}
    named = {layer.title for layer in inside if layer.path not in taken.paths}
    assert set(left_out(model, ["*"], None)) == named
