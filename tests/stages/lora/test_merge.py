"""The merge algebra against PEFT, numpy and torch's rounding."""

import mlx.core as mx
import numpy as np
import peft
import pytest
import torch
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.utils import dequantize_model

from stages.lora.bank import Bank, attach
from stages.lora.full import all_weights
from stages.lora.layers import AdapterShape
from stages.lora.merge import merge_weights, unmerge_weights
from stages.lora.targets import Targets

IN, OUT, RANK, SCALE = 256, 128, 4, 1.75
TARGETS = Targets(1, ("down", "up"), ("down", "up"))


class Pair(nn.Module):
    """Two linear layers, one with a bias, and one that no adapter touches."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        mx.random.seed(seed)
        self.up = nn.Linear(IN, OUT, bias=True)
        self.down = nn.Linear(OUT, IN, bias=False)
        self.untouched = nn.Linear(IN, OUT, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.untouched(self.down(nn.silu(self.up(x))))


def adapted(model: nn.Module, size: float = 0.1, seed: int = 1, dora: bool = False) -> Bank:
    """Put one adapter with random weights on `model`: always the same ones."""
    bank = attach(model, TARGETS, [AdapterShape(RANK, SCALE, dora=dora)])
    draw = np.random.default_rng(seed)
    drawn = {
        path: {"lora_a": mx.array(draw.normal(0, size, layer.lora_a.shape).astype(np.float32)),
               "lora_b": mx.array(draw.normal(0, size, layer.lora_b.shape).astype(np.float32))}
        for path, layer in bank.layers.items()
    }  # fmt: skip
    for path, layer in bank.layers.items() if dora else []:
        factors = mx.array(draw.normal(1, size, layer.m.shape).astype(np.float32))
        drawn[path]["m"] = layer.m * factors
    bank.update(drawn)
    return bank


def updates(bank: Bank) -> dict[str, np.ndarray]:
    """Return scale * (A @ B)^T of every layer in float64."""
    return {
        path: SCALE
        * (np.array(layer.lora_a)[0].astype(float) @ np.array(layer.lora_b)[0].astype(float)).T
        for path, layer in bank.layers.items()
    }


def weights(model: nn.Module) -> dict[str, np.ndarray]:
    return {path: np.array(value.astype(mx.float32)) for path, value in
            tree_flatten(model.parameters())}  # fmt: skip


def test_merged_weight_is_the_closed_form() -> None:
    """W' = W + scale * (A @ B)^T for adapted weights; biases and other layers stay to the bit."""
    model = Pair()
    before = weights(model)
    bank = adapted(model)
    added = updates(bank)
    merge_weights(bank)
    after = weights(model)
    for path, update in added.items():
        np.testing.assert_allclose(
            after[f"{path}.weight"], before[f"{path}.weight"] + update, rtol=0, atol=2e-7
        )
    assert after.keys() == before.keys()
    for path in ("up.bias", "untouched.weight"):
        np.testing.assert_array_equal(after[path], before[path])


@pytest.mark.parametrize("dora", [False, True])
def test_merged_model_computes_what_base_and_adapter_compute(dora: bool) -> None:
    """The merged model's outputs are those of base plus adapter."""
    model = Pair()
    x = mx.random.normal((3, 5, IN), key=mx.random.key(2))
    base = model(x)
    bank = adapted(model, dora=dora)
    expected = model(x)
    merge_weights(bank)
    assert not np.allclose(base, expected, atol=0.01)
    np.testing.assert_allclose(model(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_merge_agrees_with_peft(dora: bool) -> None:
    """PEFT's merge_and_unload of the same base and adapter gives the same weights."""
    model = Pair()
    bank = adapted(model, dora=dora)
    start = weights(model)
    theirs = torch.nn.ModuleDict(
        {"up": torch.nn.Linear(IN, OUT), "down": torch.nn.Linear(OUT, IN, bias=False)}
    )
    with torch.no_grad():
        theirs["up"].bias.copy_(torch.from_numpy(start["up.linear.bias"]))
        for path in TARGETS.paths:
            theirs[path].weight.copy_(torch.from_numpy(start[f"{path}.linear.weight"]))
    config = peft.LoraConfig(
        r=RANK, lora_alpha=SCALE * RANK, target_modules=["up", "down"], use_dora=dora
    )
    tuned = peft.get_peft_model(theirs, config)
    with torch.no_grad():
        for path in TARGETS.paths:
            layer = tuned.base_model.model[path]
            layer.lora_A["default"].weight.copy_(torch.from_numpy(start[f"{path}.lora_a"][0].T))
            layer.lora_B["default"].weight.copy_(torch.from_numpy(start[f"{path}.lora_b"][0].T))
            if dora:
                magnitude = layer.lora_magnitude_vector["default"].weight
                magnitude.copy_(torch.from_numpy(start[f"{path}.m"][0]))
    expected = tuned.merge_and_unload().state_dict()
    merge_weights(bank)
    ours = weights(model)
    for path, value in expected.items():
        np.testing.assert_allclose(ours[path], value.numpy(), rtol=0, atol=5e-7)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sum_is_taken_in_float32_and_rounded_once(dtype: str) -> None:
    """A half-precision weight becomes the rounding of the exact sum, not a sum of roundings."""
    model = Pair()
    model.set_dtype(getattr(mx, dtype))
    before = weights(model)
    bank = adapted(model, size=0.03)
    added = updates(bank)
    merge_weights(bank)
    for path, update in added.items():
        exact = torch.from_numpy(before[f"{path}.weight"].astype(float) + update)
        rounded = exact.to(getattr(torch, dtype)).double().numpy()
        found = weights(model)[f"{path}.weight"]
        assert dict(tree_flatten(model.parameters()))[f"{path}.weight"].dtype == getattr(mx, dtype)
        # Where the sum lies within float32's error of the middle, either neighbour is right.
        assert np.mean(found == rounded) > 0.999


def test_unmerge_gives_the_base_back() -> None:
    """Taking the adapter out of the merged weights leaves the base, within float32's rounding."""
    model = Pair()
    before = weights(model)
    merge_weights(adapted(model))
    assert np.abs(weights(model)["up.weight"] - before["up.weight"]).max() > 0.01
    unmerge_weights(adapted(model))
    for path, value in weights(model).items():
        np.testing.assert_allclose(value, before[path], rtol=0, atol=3e-8)


def test_unmerge_gives_the_base_back_from_dora() -> None:
    """The bank that was merged takes itself out again, rows of zeros included."""
    model = Pair()
    model.up.weight[5] = 0
    before = weights(model)
    bank = adapted(model, dora=True)
    bank.layers["up"].lora_b[0, :, 5] = 0
    merge_weights(bank)
    assert np.abs(weights(model)["up.weight"] - before["up.weight"]).max() > 0.01
    unmerge_weights(bank)
    for path, value in weights(model).items():
        np.testing.assert_allclose(value, before[path], rtol=0, atol=1e-7)


def test_another_bank_cannot_unmerge_dora() -> None:
    """A bank that did not merge does not know the factors of the rows and changes nothing."""
    model = Pair()
    merge_weights(adapted(model, dora=True))
    merged = weights(model)
    with pytest.raises(KeyError):
        unmerge_weights(adapted(model, dora=True))
    for path in TARGETS.paths:
        np.testing.assert_array_equal(weights(model)[f"{path}.linear.weight"],
                                      merged[f"{path}.weight"])  # fmt: skip


def test_trained_weights_are_merged_as_they_are() -> None:
    """All weights trained themselves: the merged model has them, and nothing added."""
    model, other = Pair(), Pair(seed=4)
    tuning = all_weights(model)
    tuning.update(all_weights(other).parameters())
    merge_weights(tuning)
    for path, value in weights(model).items():
        np.testing.assert_array_equal(value, weights(other)[path])


def test_a_bank_of_several_adapters_is_refused() -> None:
    """Merging needs one adapter: with two there is no saying which."""
    bank = attach(Pair(), TARGETS, [AdapterShape(RANK, SCALE)] * 2)
    with pytest.raises(ValueError, match="unpack"):
        merge_weights(bank)


def unpacked(layer: nn.QuantizedLinear) -> np.ndarray:
    """Return scale * code + bias in float64, with the codes read as a little-endian bit stream."""
    stream = np.unpackbits(
        np.array(layer.weight).view(np.uint8).reshape(len(layer.weight), -1),
        axis=1, bitorder="little",
    )  # fmt: skip
    bits = stream.reshape(len(stream), -1, layer.bits)
    codes = (bits.astype(int) << np.arange(layer.bits)).sum(axis=-1)
    groups = codes.reshape(len(codes), -1, layer.group_size).astype(float)
    scales, biases = (np.array(v.astype(mx.float32), float) for v in (layer.scales, layer.biases))
    return (groups * scales[..., None] + biases[..., None]).reshape(len(codes), -1)


QUANTIZED = [(bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]


@pytest.mark.parametrize(("bits", "group_size"), QUANTIZED)
def test_quantized_base_in_kind(bits: int, group_size: int) -> None:
    """Unpacked base plus update, to a step of the group each and nearly all to half a step."""
    model = Pair()
    nn.quantize(model, group_size, bits)
    packed = {path: getattr(model, path) for path in TARGETS.paths}
    before = {path: unpacked(layer) for path, layer in packed.items()}
    bank = adapted(model)
    added = updates(bank)
    merge_weights(bank)
    for path, update in added.items():
        layer = getattr(model, path)
        assert (layer.bits, layer.group_size, layer.mode) == (bits, group_size, "affine")
        target = before[path] + update
        step = np.repeat(np.abs(np.array(layer.scales)), group_size, axis=1)
        assert (np.abs(unpacked(layer) - target) <= 0.5001 * step + 1e-6).mean() > 0.95
        assert (np.abs(unpacked(layer) - target) <= 1.0001 * step + 1e-6).all()


@pytest.mark.parametrize("bits", [3, 8])
def test_quantized_base_in_kind_with_dora(bits: int) -> None:
    """Unpacked, the merged rows are m (W + D) / |W + D|, to about half a step of their group."""
    model = Pair()
    nn.quantize(model, 64, bits)
    before = {path: unpacked(getattr(model, path)) for path in TARGETS.paths}
    bank = adapted(model, dora=True)
    lengths = {path: np.array(layer.m[0], float) for path, layer in bank.layers.items()}
    added = updates(bank)
    merge_weights(bank)
    for path, update in added.items():
        layer = getattr(model, path)
        target = before[path] + update
        target *= (lengths[path] / np.linalg.norm(target, axis=1))[:, None]
        step = np.repeat(np.abs(np.array(layer.scales)), 64, axis=1)
        assert (np.abs(unpacked(layer) - target) <= 1.0001 * step + 1e-6).all()
        assert (np.abs(unpacked(layer) - target) <= 0.5001 * step + 1e-6).mean() > 0.95


@pytest.mark.parametrize(("bits", "group_size"), QUANTIZED)
def test_dequantized_base(bits: int, group_size: int) -> None:
    """Dequantized first, the merged weight is unpacked base plus update, with nothing lost."""
    model = Pair()
    nn.quantize(model, group_size, bits)
    before = {path: unpacked(getattr(model, path)) for path in TARGETS.paths}
    dequantize_model(model)
    bank = adapted(model)
    added = updates(bank)
    merge_weights(bank)
    for path, update in added.items():
        layer = getattr(model, path)
        assert type(layer) is nn.Linear
        np.testing.assert_allclose(np.array(layer.weight), before[path] + update, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("mode", "group_size", "bits"), [("mxfp4", 32, 4), ("mxfp8", 32, 8)])
def test_floating_point_modes_in_kind(mode: str, group_size: int, bits: int) -> None:
    """A base of another quantization mode keeps it, and comes near to the exact sum."""
    model = Pair()
    plain = weights(model)
    nn.quantize(model, group_size, bits, mode=mode)
    bank = adapted(model)
    added = updates(bank)
    merge_weights(bank)
    layer = model.up
    assert (layer.bits, layer.group_size, layer.mode) == (bits, group_size, mode)
    found = mx.dequantize(layer.weight, layer.scales, group_size=group_size, bits=bits, mode=mode)
    error = np.array(found.astype(mx.float32)) - (plain["up.weight"] + added["up"])
    assert np.linalg.norm(error) < 0.35 * np.linalg.norm(added["up"])
