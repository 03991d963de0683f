"""The adapted experts of a mixture against one linear layer for each expert, and mlx-lm's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models import mixtral
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchGLU, SwitchLinear, SwitchMLP
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import dequantize_model, load_adapters

from stages.errors import SettingError
from stages.lora.bank import Bank, Parameters, attach, initial
from stages.lora.experts import LoRASwitchLinear
from stages.lora.files import load_adapter, save_adapter
from stages.lora.layers import AdapterShape, LoRALinear, Routing
from stages.lora.merge import merge_weights, unmerge_weights
from stages.lora.targets import Targets, find_targets

EXPERTS, IN, OUT, RANK, SCALE = 3, 64, 32, 4, 1.5
INDICES = mx.array([[0, 2], [1, 0], [2, 1], [2, 0], [0, 1]])
TOKENS = mx.array(np.random.default_rng(0).integers(1, 64, (2, 40)))


def drawn(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape), mx.float32)


def experts(bias: bool = True) -> SwitchLinear:
    layer = SwitchLinear(IN, OUT, EXPERTS, bias=bias)
    layer.weight = drawn(EXPERTS, OUT, IN, seed=1)
    if bias:
        layer.bias = drawn(EXPERTS, OUT, seed=2)
    return layer


def tuned(base: nn.Module) -> LoRASwitchLinear:
    layer = LoRASwitchLinear(base, "experts", [AdapterShape(RANK, SCALE)], Routing())
    layer.put({"lora_a": drawn(1, EXPERTS, RANK, IN, seed=3),
               "lora_b": drawn(1, EXPERTS, OUT, RANK, seed=4)})  # fmt: skip
    return layer


def alone(layer: LoRASwitchLinear, weight: mx.array, expert: int) -> LoRALinear:
    """Return one expert as an adapted linear layer."""
    linear = nn.Linear(IN, OUT)
    linear.weight, linear.bias = weight[expert], layer.linear.bias[expert]
    single = LoRALinear(linear, "expert", [AdapterShape(RANK, SCALE)], Routing())
    single.put({"lora_a": layer.lora_a[:, expert].swapaxes(1, 2),
                "lora_b": layer.lora_b[:, expert].swapaxes(1, 2)})  # fmt: skip
    return single


FORMS = [(None, "affine"), *((bits, "affine") for bits in (2, 3, 4, 5, 6, 8)), (4, "mxfp4")]


@pytest.mark.parametrize(("bits", "mode"), FORMS)
def test_each_expert_is_an_adapted_linear_layer(bits: int | None, mode: str) -> None:
    """Outputs and gradients are those of each expert's own layer on its own tokens."""
    base: nn.Module = experts()
    weight = base.weight
    if bits:
        base = base.to_quantized(32, bits, mode)
        weight = mx.dequantize(base.weight, base.scales, base.get("biases"), 32, bits, mode)
        weight = weight.astype(mx.float32)
    layer, x = tuned(base), drawn(5, 1, 1, IN)
    weights = drawn(5, 2, 1, OUT, seed=9)
    singles = [alone(layer, weight, expert) for expert in range(EXPERTS)]
    expected = mx.stack([mx.stack([singles[expert](x[token, 0]) for expert in row])
                         for token, row in enumerate(INDICES.tolist())])  # fmt: skip
    found = layer(x, INDICES)
    np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-4, atol=1e-3)

    def loss(adapter: dict[str, mx.array]) -> mx.array:
        layer.put(adapter)
        return (layer(x, INDICES) * weights).sum()

    gradients = mx.grad(loss)({name: layer[name] for name in layer.trained})
    for expert, single in enumerate(singles):
        taken = [(token, slot) for token, row in enumerate(INDICES.tolist())
                 for slot, number in enumerate(row) if number == expert]  # fmt: skip

        def one(adapter: dict[str, mx.array], single: LoRALinear, taken: Any) -> mx.array:
            single.put(adapter)
            return sum((single(x[token, 0]) * weights[token, slot]).sum() for token, slot in taken)

        wanted = mx.grad(one)({name: single[name] for name in single.trained}, single, taken)
        for name, value in wanted.items():
            np.testing.assert_allclose(
                np.array(gradients[name][0, expert].T), np.array(value[0]), rtol=1e-4, atol=1e-3
            )


def test_fresh_adapter_changes_no_bit_and_draws_like_a_linear_layer() -> None:
    """lora_b is zero; lora_a fills [-1/sqrt(in), 1/sqrt(in)] for every expert."""
    layer, x = (
        LoRASwitchLinear(experts(), "e", [AdapterShape(32, 1.0)], Routing()),
        drawn(5, 1, 1, IN),
    )
    weights = initial({"e": layer}, 32, seed=0)["e"]
    layer.put({name: value[None] for name, value in weights.items()})
    assert mx.array_equal(layer(x, INDICES), layer.linear(x, INDICES))
    lora_a = np.array(weights["lora_a"])
    assert lora_a.shape == (EXPERTS, 32, IN)
    assert 0.99 * IN**-0.5 < np.abs(lora_a).max() <= IN**-0.5
    assert lora_a.var() == pytest.approx(1 / IN / 3, rel=0.05)


def mixture(bits: int | None = None) -> Any:
    """Return a frozen model of two blocks with four experts each, two for a token."""
    mx.random.seed(0)
    args = mixtral.ModelArgs(
        model_type="mixtral", vocab_size=64, hidden_size=32, intermediate_size=32,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    model = mixtral.Model(args)
    if bits:
        nn.quantize(model, 32, bits)
    model.freeze()
    return model


def trained(model: Any, shape: AdapterShape) -> tuple[Bank, Parameters]:
    bank = attach(model, find_targets(model, ["*", "switch_mlp.*"], None), [shape])
    rng = np.random.default_rng(1)
    adapter = {path: {name: value + mx.array(rng.normal(0, 0.1, value.shape), mx.float32)
                      for name, value in weights.items()}
               for path, weights in initial(bank.layers, shape, 0).items()}  # fmt: skip
    bank.update(bank.join([adapter]))
    return bank, adapter


@pytest.mark.parametrize("bits", [None, 4])
def test_mlx_lm_loads_what_is_saved(tmp_path: Path, bits: int | None) -> None:
    """Plain or packed, few tokens or many (which are sorted), mlx-lm computes the same logits."""
    model = mixture(bits)
    base = model(TOKENS)
    bank, adapter = trained(model, AdapterShape(RANK, SCALE))
    save_adapter(tmp_path, adapter, bank.shapes[0], bank.targets, {})
    theirs, ours = load_adapters(mixture(bits), str(tmp_path)), mixture(bits)
    theirs.eval()
    load_adapter(ours, tmp_path)
    assert mx.abs(model(TOKENS) - base).max() > 0.1
    for tokens in (TOKENS, TOKENS[:, :5]):
        expected = np.array(model(tokens))
        np.testing.assert_array_equal(np.array(ours(tokens)), expected)
        np.testing.assert_allclose(np.array(theirs(tokens)), expected, rtol=1e-4, atol=1e-4)


def test_load_takes_an_adapter_of_mlx_lm(tmp_path: Path) -> None:
    """Without keys mlx_lm.lora adapts experts too; its files give the same logits here."""
    model, parameters = mixture(), {"rank": 3, "scale": 20.0, "dropout": 0.0}
    linear_to_lora_layers(model, 1, parameters)
    rng = np.random.default_rng(1)
    weights = {name: mx.array(rng.normal(0, 0.1, value.shape), mx.float32)
               for name, value in tree_flatten(model.trainable_parameters())}  # fmt: skip
    model.load_weights(list(weights.items()), strict=False)
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), weights)
    config = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": parameters}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    bank = load_adapter(other := mixture(), tmp_path)
    assert "block_sparse_moe.switch_mlp.up_proj" in bank.targets.keys
    np.testing.assert_allclose(np.array(other(TOKENS)), np.array(model(TOKENS)), 1e-3, 1e-3)


def test_merge_and_back() -> None:
    """Each expert's weight becomes W + scale * B A within float32's rounding, and W again."""
    model = mixture()
    path = "model.layers.1.block_sparse_moe.switch_mlp.up_proj"
    layer = dict(model.named_modules())[path]
    before = np.array(layer.weight)
    bank, adapter = trained(model, AdapterShape(RANK, SCALE))
    expected = np.array(model(TOKENS))
    merge_weights(bank)
    a, b = (np.array(adapter[path][name], np.float64) for name in ("lora_a", "lora_b"))
    target = np.stack([before[e] + SCALE * b[e] @ a[e] for e in range(4)])
    assert dict(model.named_modules())[path] is layer
    np.testing.assert_allclose(np.array(layer.weight), target, rtol=0, atol=2e-7)
    np.testing.assert_allclose(np.array(model(TOKENS)), expected, rtol=1e-4, atol=1e-4)
    bank.attach()
    unmerge_weights(bank)
    np.testing.assert_allclose(np.array(layer.weight), before, rtol=0, atol=1e-7)


def test_packed_experts_are_merged_in_kind() -> None:
    """Packed weights are packed again, near to the sum; unpacked first, they hold it exactly."""
    model, plain = mixture(8), mixture(8)
    dequantize_model(plain)
    logits = []
    for each in (model, plain):
        bank, _ = trained(each, AdapterShape(RANK, SCALE))
        logits.append(np.array(each(TOKENS)))
        merge_weights(bank)
    assert isinstance(model.layers[0].block_sparse_moe.switch_mlp.up_proj, QuantizedSwitchLinear)
    np.testing.assert_allclose(np.array(plain(TOKENS)), logits[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.array(model(TOKENS)), logits[0], rtol=0.05, atol=0.05)


def keys(tokens: int) -> mx.array:
    draw = np.random.default_rng(3).integers(0, 2**32, (1, tokens, 2), dtype=np.uint32)
    return mx.array(draw)


class Holder(nn.Module):
    """Something that has a mixture."""

    def __init__(self, mixture: nn.Module) -> None:
        super().__init__()
        self.mixture = mixture

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        return self.mixture(x, indices)


@pytest.mark.parametrize("kind", [SwitchGLU, SwitchMLP])
def test_dropout_of_a_token_depends_on_nothing_beside_it(kind: type) -> None:
    """In a batch that mlx-lm sorts by expert a token drops the same as on its own."""
    holder = Holder(kind(IN, OUT, EXPERTS))
    paths = tuple(name for name, layer in holder.named_modules() if isinstance(layer, SwitchLinear))
    bank = attach(holder, Targets(1, paths, paths), [AdapterShape(RANK, SCALE, 0.5)])
    parameters = {path: {name: drawn(*value.shape, seed=5) for name, value in weights.items()}
                  for path, weights in bank.parameters().items()}  # fmt: skip
    x, given = drawn(1, 48, IN), keys(48)
    indices = mx.array(np.random.default_rng(2).integers(0, EXPERTS, (1, 48, 2)))
    with bank.using(parameters):
        dry = holder(x, indices)
    with bank.using(parameters, dropout_keys=given):
        whole = holder(x, indices)
    assert mx.abs(whole - dry).max() > 1
    for token in (0, 17, 47):
        part = slice(token, token + 1)
        with bank.using(parameters, dropout_keys=given[:, part]):
            single = holder(x[:, part], indices[:, part])
        np.testing.assert_allclose(np.array(single[0, 0]), np.array(whole[0, token]), rtol=1e-3,
                                   atol=1e-3)  # fmt: skip


def test_dropout_keeps_the_mean() -> None:
    """A quarter of a layer's inputs becomes zero and the others grow by 4/3, sorted or not."""
    holder = Holder(SwitchMLP(IN, IN, EXPERTS, activation=nn.Identity()))
    bank = attach(holder, Targets(1, ("mixture.fc1",), ("mixture.fc1",)),
                  [AdapterShape(IN, 1.0, 0.25)])  # fmt: skip
    for layer in (holder.mixture.mixture.fc2, bank.layers["mixture.fc1"].base):
        layer.weight = mx.zeros_like(layer.weight)
    holder.mixture.mixture.fc2.weight += mx.eye(IN)
    eye = mx.broadcast_to(mx.eye(IN), (1, EXPERTS, IN, IN))
    parameters = {"mixture.fc1": {"lora_a": eye, "lora_b": eye}}
    for tokens in (16, 64):
        with bank.using(parameters, dropout_keys=keys(tokens)):
            found = np.array(holder(mx.ones((1, tokens, IN)), mx.zeros((1, tokens, 2), mx.int32)))
        assert set(np.unique(found.round(5))) == {np.float32(0), np.float32(1.33333)}
        # The experts of a token share its mask, so half of the outcomes are draws.
        assert abs((found == 0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / (found.size / 2))


def test_mixture_comes_back_after_dropout() -> None:
    """What tells the experts their tokens leaves with the adapter, and comes with it again."""
    model = mixture()
    modules = {name: id(module) for name, module in model.named_modules()}
    bank, _ = trained(model, AdapterShape(RANK, SCALE, 0.1))
    expected = model(TOKENS)
    bank.detach()
    assert {name: id(module) for name, module in model.named_modules()} == modules
    bank.attach()
    assert mx.array_equal(model(TOKENS), expected)
    with bank.using(bank.parameters(), dropout_keys=keys(80)):
        assert mx.abs(model(TOKENS) - expected).max() > 0.01
    assert bank.routing.experts is None


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([AdapterShape(4, 1.0)] * 2, r"up_proj \(SwitchLinear\) cannot hold 2 adapters at once"),
        ([AdapterShape(4, 1.0, dora=True)], r"lora\.type: found 'dora', which .*switch_mlp"),
    ],
)
def test_several_adapters_and_dora_are_refused(shapes: list[AdapterShape], message: str) -> None:
    """What experts cannot hold is refused by their name, and the model stays as it is."""
    model = mixture()
    names = [name for name, _ in tree_flatten(model.parameters())]
    with pytest.raises(SettingError, match=message):
        attach(model, find_targets(model, ["switch_mlp.up_proj"], None), shapes)
    assert [name for name, _ in tree_flatten(model.parameters())] == names


def test_dropout_of_experts_elsewhere_is_refused() -> None:
    """Experts in an unknown holder, which may order rows as it likes, are refused by name."""
    holder = Holder(nn.Sequential(experts()))
    targets = Targets(1, ("mixture.layers.0",), ("mixture.layers.0",))
    with pytest.raises(SettingError, match=r"lora\.dropout: found 0\.1, but mixture\.layers\.0"):
        attach(holder, targets, [AdapterShape(4, 1.0, 0.1)])
    attach(holder, targets, [AdapterShape(4, 1.0)])
