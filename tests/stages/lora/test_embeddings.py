"""The adapted embedding against PEFT's, numpy and mlx-lm's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import peft
import pytest
import torch
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models import minicpm
from mlx_lm.utils import load_adapters

from stages.errors import SettingError
from stages.lora.bank import Bank, Parameters, attach, initial
from stages.lora.embeddings import LoRAEmbedding
from stages.lora.files import load_adapter, save_adapter
from stages.lora.layers import AdapterShape, Routing
from stages.lora.merge import merge_weights, unmerge_weights
from stages.lora.targets import find_targets

WORDS, DIMS, RANK, SCALE = 48, 64, 4, 1.5
LLAMA = Callable[..., Any]
TOKENS = mx.array([[3, 9, 27, 17, 9], [2, 4, 8, 16, 32]])


def drawn(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape), mx.float32)


def embedding() -> nn.Embedding:
    layer = nn.Embedding(WORDS, DIMS)
    layer.weight = drawn(WORDS, DIMS, seed=1)
    return layer


def tuned(base: nn.Module, dropout: float = 0.0, keys: mx.array | None = None) -> LoRAEmbedding:
    shape = AdapterShape(RANK, SCALE, dropout)
    layer = LoRAEmbedding(base, "embed_tokens", [shape], Routing(dropout_keys=keys))
    layer.put({"lora_a": drawn(1, WORDS, RANK, seed=2), "lora_b": drawn(1, RANK, DIMS, seed=3)})
    return layer


def whole(layer: LoRAEmbedding, weight: mx.array) -> np.ndarray:
    """Return W + scale * A B in float64."""
    a, b = (np.array(layer[name][0], np.float64) for name in ("lora_a", "lora_b"))
    return np.array(weight, np.float64) + SCALE * a @ b


def test_look_up_and_its_gradients_are_those_of_peft() -> None:
    """Vectors and the gradients of both matrices equal PEFT's, of a token that comes twice too."""
    layer, weights = tuned(embedding()), drawn(2, 5, DIMS, seed=9)
    base = torch.nn.Sequential(torch.nn.Embedding(WORDS, DIMS)).double()
    config = peft.LoraConfig(r=RANK, lora_alpha=SCALE * RANK, target_modules=["0"])
    twin = peft.get_peft_model(base, config).double().base_model.model[0]
    lora_a, lora_b = twin.lora_embedding_A["default"], twin.lora_embedding_B["default"]
    with torch.no_grad():
        twin.weight.copy_(torch.tensor(np.array(layer.embedding.weight)))
        lora_a.copy_(torch.tensor(np.array(layer.lora_a[0].T)))
        lora_b.copy_(torch.tensor(np.array(layer.lora_b[0].T)))
    expected = twin(torch.tensor(np.array(TOKENS)))
    np.testing.assert_allclose(np.array(layer(TOKENS)), expected.detach(), rtol=1e-5, atol=1e-5)
    (expected * torch.tensor(np.array(weights))).sum().backward()

    def loss(adapter: dict[str, mx.array]) -> mx.array:
        layer.put(adapter)
        return (layer(TOKENS) * weights).sum()

    gradients = mx.grad(loss)({name: layer[name] for name in layer.trained})
    for name, value in (("lora_a", lora_a.grad.T), ("lora_b", lora_b.grad.T)):
        np.testing.assert_allclose(np.array(gradients[name][0]), value, rtol=1e-4, atol=1e-4)


def test_new_adapter_starts_as_that_of_peft() -> None:
    """lora_a is zero, so nothing changes yet, and lora_b is normal: PEFT's own choice."""
    layer = LoRAEmbedding(nn.Embedding(WORDS, 512), "e", [AdapterShape(32, 1.0)], Routing())
    weights = initial({"e": layer}, 32, seed=0)["e"]
    layer.put({name: value[None] for name, value in weights.items()})
    assert not mx.any(weights["lora_a"])
    assert float(weights["lora_b"].std()) == pytest.approx(1, rel=0.03)
    assert mx.array_equal(layer(TOKENS), layer.embedding(TOKENS))


FORMS = [(None, "affine"), *((bits, "affine") for bits in (2, 3, 4, 5, 6, 8)), (4, "mxfp4")]


@pytest.mark.parametrize(("bits", "mode"), FORMS)
def test_look_up_and_head_use_the_sum(bits: int | None, mode: str) -> None:
    """Looked up or multiplied by, in floating point or packed, the weight is W + scale * A B."""
    base: nn.Module = embedding()
    plain = base.weight
    if bits:
        base = nn.QuantizedEmbedding.from_embedding(base, 32, bits, mode=mode)
        plain = mx.dequantize(base.weight, base.scales, base.get("biases"), 32, bits, mode)
    layer, x = tuned(base), drawn(2, 3, DIMS)
    expected = whole(layer, plain.astype(mx.float32))
    # MLX unpacks the floating-point modes to bfloat16.
    error = 0.03 if mode == "mxfp4" else 1e-5
    found = np.array(layer(TOKENS).astype(mx.float32))
    np.testing.assert_allclose(found, expected[np.array(TOKENS)], rtol=error, atol=error)
    head = np.array(x, np.float64) @ expected.T
    np.testing.assert_allclose(np.array(layer.as_linear(x)), head, rtol=1e-4, atol=1e-3)


def test_half_precision_stays() -> None:
    """A bfloat16 base gives bfloat16 vectors and logits."""
    base = embedding()
    base.set_dtype(mx.bfloat16)
    layer = tuned(base)
    assert layer(TOKENS).dtype == mx.bfloat16
    assert layer.as_linear(drawn(2, 3, DIMS).astype(mx.bfloat16)).dtype == mx.bfloat16


def keys(rows: int, width: int) -> mx.array:
    draw = np.random.default_rng(3).integers(0, 2**32, (rows, width, 2), dtype=np.uint32)
    return mx.array(draw)


def test_dropout_is_that_of_the_token_alone() -> None:
    """A quarter of the update is gone and the rest grows by 4/3; neighbours change no mask."""
    given, many = keys(8, 64), mx.ones((8, 64), mx.int32)
    layer, base = tuned(embedding(), 0.25, given), embedding()(many)
    update = tuned(embedding())(many) - base
    share = (layer(many) - base) / update
    zero = np.array(mx.abs(share) < 1e-4)
    assert abs(zero.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / zero.size)
    np.testing.assert_allclose(np.array(share)[~zero], 4 / 3, rtol=1e-2)
    alone = tuned(embedding(), 0.25, given[2:3, :6])(many[2:3, :6])
    np.testing.assert_allclose(np.array(alone[0]), np.array(layer(many)[2, :6]), rtol=1e-5)


def test_dropout_of_the_head_is_its_own() -> None:
    """As a head the layer drops inputs of the update, by other draws than in a look-up."""
    given, x = keys(1, 6), mx.ones((1, 6, DIMS))
    layer = tuned(nn.Embedding(WORDS, DIMS), 0.5, given)
    layer.embedding.weight = mx.zeros((WORDS, DIMS))
    layer.put({"lora_a": mx.eye(DIMS)[None, :WORDS] / SCALE, "lora_b": mx.eye(DIMS)[None]})
    head = np.array(layer.as_linear(x))
    assert set(np.unique(head)) == {0.0, 2.0}
    layer.put({"lora_a": mx.ones((1, WORDS, RANK)), "lora_b": mx.ones((1, RANK, DIMS))})
    looked_up = np.array(layer(mx.zeros((1, 6), mx.int32)))[..., :WORDS]
    assert np.any((head == 0) != (looked_up == 0))


def trained(model: Any, patterns: list[str], shape: AdapterShape) -> tuple[Bank, Parameters]:
    bank = attach(model, find_targets(model, patterns, None), [shape])
    rng = np.random.default_rng(1)
    adapter = {path: {name: value + mx.array(rng.normal(0, 0.1, value.shape), mx.float32)
                      for name, value in weights.items()}
               for path, weights in initial(bank.layers, shape, 0).items()}  # fmt: skip
    bank.update(bank.join([adapter]))
    return bank, adapter


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_model_with_adapted_embeddings(
    tiny_llama: LLAMA, tmp_path: Path, tied: bool, bits: int | None
) -> None:
    """Tied or not, packed or not: saved and loaded, in mlx-lm too, the logits are the same."""

    def make() -> Any:
        model = tiny_llama(tie_word_embeddings=tied)
        if bits:
            nn.quantize(model, 32, bits, class_predicate=lambda name, _: name.endswith("tokens"))
        return model

    model, patterns = make(), ["q_proj", "embed_tokens", *([] if tied else ["lm_head"])]
    base = model(TOKENS)
    bank, adapter = trained(model, patterns, AdapterShape(RANK, SCALE))
    expected = model(TOKENS)
    assert mx.abs(expected - base).max() > 0.1
    save_adapter(tmp_path, adapter, bank.shapes[0], bank.targets, {})
    assert bank.targets.keys == tuple(
        sorted(["model.embed_tokens", "self_attn.q_proj", *([] if tied else ["lm_head"])])
    )
    ours = make()
    load_adapter(ours, tmp_path)
    assert mx.array_equal(ours(TOKENS), expected)
    theirs = load_adapters(make(), str(tmp_path))
    theirs.eval()
    np.testing.assert_allclose(np.array(theirs(TOKENS)), np.array(expected), rtol=1e-4, atol=1e-4)


def test_merge_and_back(tiny_llama: LLAMA) -> None:
    """The tied weight becomes W + scale * A B within float32's rounding, and W again."""
    model = tiny_llama(tie_word_embeddings=True)
    before = np.array(model.model.embed_tokens.weight)
    bank, _ = trained(model, ["embed_tokens"], AdapterShape(RANK, SCALE))
    layer = bank.layers["model.embed_tokens"]
    target, logits = whole(layer, mx.array(before)), np.array(model(TOKENS))
    merge_weights(bank)
    assert type(model.model.embed_tokens) is nn.Embedding
    np.testing.assert_allclose(np.array(model.model.embed_tokens.weight), target, atol=5e-7)
    np.testing.assert_allclose(np.array(model(TOKENS)), logits, rtol=1e-4, atol=1e-5)
    bank.attach()
    unmerge_weights(bank)
    np.testing.assert_allclose(np.array(model.model.embed_tokens.weight), before, atol=1e-7)


def test_head_that_reads_the_weight_is_adapted_too() -> None:
    """A tied head that multiplies by `embed_tokens.weight` (minicpm) uses the sum as well."""
    args = minicpm.ModelArgs(
        model_type="minicpm", hidden_size=32, dim_model_base=16, num_hidden_layers=1,
        intermediate_size=32, num_attention_heads=4, rms_norm_eps=1e-5, vocab_size=64,
        num_key_value_heads=2, scale_depth=1.4, scale_emb=2.0, tie_word_embeddings=True,
    )  # fmt: skip
    model = minicpm.Model(args)
    bank, _ = trained(model, ["embed_tokens"], AdapterShape(RANK, SCALE))
    expected = np.array(model(TOKENS))
    merge_weights(bank)
    np.testing.assert_allclose(np.array(model(TOKENS)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([AdapterShape(4, 1.0)] * 2,
         r"model\.embed_tokens \(Embedding\) cannot hold 2 adapters at once"),
        ([AdapterShape(4, 1.0, dora=True)],
         r"lora\.type: found 'dora', which model\.embed_tokens \(Embedding\) cannot have"),
    ],
)  # fmt: skip
def test_several_adapters_and_dora_are_refused(
    tiny_llama: LLAMA, shapes: list[AdapterShape], message: str
) -> None:
    """What an embedding cannot hold is refused by its name, and the model stays as it is."""
    model = tiny_llama()
    names = [name for name, _ in tree_flatten(model.parameters())]
    with pytest.raises(SettingError, match=message):
        attach(model, find_targets(model, ["*", "embed_tokens"], None), shapes)
    assert [name for name, _ in tree_flatten(model.parameters())] == names
