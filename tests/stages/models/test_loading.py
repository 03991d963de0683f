"""Loaded bases against transformers, mlx-lm and closed forms, and damaged ones by name."""

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

from stages.artifacts import BaseModel
from stages.errors import InputError
from stages.models.loading import cast, load_model
from stages.models.materialize import materialize
from stages.settings import Model

IDS = np.random.default_rng(3).integers(3, 4096, (2, 37))


class Silent:
    def log(self, message: str) -> None:
        pass


@pytest.fixture(scope="module")
def quantized(drawn_directory, tmp_path_factory):
    """The small model in 4 bits."""
    out = tmp_path_factory.mktemp("quantized")
    model = Model(path="some/where", quantization=4)
    materialize(model, source=drawn_directory, dtype="stored", report=Silent(), out=out)
    return out


def dtypes(module: nn.Module) -> set[mx.Dtype]:
    return {value.dtype for _, value in tree_flatten(module.parameters())}


def test_logits_are_those_of_transformers(drawn_directory):
    """In float32 the same directory gives transformers' logits to 1e-4."""
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(drawn_directory)
    with torch.no_grad():
        expected = reference(torch.tensor(IDS)).logits.numpy()
    module = load_model(BaseModel(directory=drawn_directory, dtype="float32"))
    np.testing.assert_allclose(np.array(module(mx.array(IDS))), expected, atol=1e-4)


def test_the_base_is_frozen_and_evaluates(drawn_directory):
    """Nothing trains, dropout is off, and no lazy graph is left to the first step."""
    module = load_model(BaseModel(directory=drawn_directory, dtype="float32"))
    assert tree_flatten(module.trainable_parameters()) == []
    assert not module.training
    weights = load_file(drawn_directory / "model.safetensors")
    for name, value in tree_flatten(module.parameters()):
        np.testing.assert_array_equal(np.array(value), weights[name], err_msg=name)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("bfloat16", mx.bfloat16), ("float16", mx.float16), ("stored", mx.float32)],
)
def test_weights_are_in_the_type_to_compute_in(drawn_directory, dtype, expected):
    """Every floating-point weight is cast, or left as stored."""
    module = load_model(BaseModel(directory=drawn_directory, dtype=dtype))
    assert dtypes(module) == {expected}


def test_a_model_may_keep_some_weights_as_stored():
    """What the model's own cast_predicate excludes stays in its type."""

    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(2, 2)
            self.count = mx.array([3])

        @property
        def cast_predicate(self):
            return lambda path: not path.endswith("bias")

    module = Router()
    cast(module, mx.bfloat16)
    assert (module.gate.weight.dtype, module.gate.bias.dtype) == (mx.bfloat16, mx.float32)
    assert module.count.dtype == mx.int32


def test_unpacked_weights_are_exactly_what_the_packed_ones_mean(quantized):
    """In float32 on a CPU each weight is scale * q + bias, and logits are the quantized model's."""
    if mx.default_device() != mx.cpu:
        pytest.skip("quantized layers are kept on a GPU")
    module = load_model(BaseModel(directory=quantized, dtype="float32"))
    stored = load_file(quantized / "model.safetensors")
    name = "model.layers.3.mlp.up_proj"
    packed = stored[f"{name}.weight"]
    q = (packed[..., None] >> (4 * np.arange(8, dtype=np.uint32))) & 15
    q = q.reshape(packed.shape[0], -1, 64).astype(np.float64)
    scales, biases = (stored[f"{name}.{part}"][..., None] for part in ("scales", "biases"))
    exact = (q * scales + biases).reshape(packed.shape[0], -1)
    found = np.array(module.model.layers[3].mlp.up_proj.weight)
    # One rounding to float32, or two where the multiply and the add round apart.
    np.testing.assert_allclose(found, exact, rtol=0, atol=2**-23 * np.abs(exact).max())
    assert dtypes(module) == {mx.float32}

    packed_module = load_model(BaseModel(directory=quantized, dtype="stored"))
    assert isinstance(packed_module.model.layers[3].mlp.up_proj, nn.QuantizedLinear)
    ids = mx.array(IDS)
    np.testing.assert_allclose(np.array(module(ids)), np.array(packed_module(ids)), atol=1e-4)


def test_packed_weights_stay_packed_when_cast(quantized):
    """Casting a quantized base casts scales and biases and leaves the packed integers alone."""
    module = load_model(BaseModel(directory=quantized, dtype="bfloat16"))
    layer = module.model.layers[0].self_attn.q_proj
    assert (layer.weight.dtype, layer.scales.dtype) == (mx.uint32, mx.bfloat16)
    stored = load_file(quantized / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(np.array(layer.weight), stored)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop("model.layers.2.mlp.up_proj.weight"), "Missing 1"),
        (lambda tensors: tensors.update(extra=np.ones(3, np.float32)), "Received 1 param.* extra"),
        (
            lambda tensors: tensors.update({"model.norm.weight": np.ones(7, np.float32)}),
            r"shape \(256,\) but received shape \(7,\) for parameter model.norm.weight",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(copy, change, words):
    """A missing, extra or mis-shaped tensor is an input error with its name."""
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    (copy / "model.safetensors").unlink()
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(InputError, match=words):
        load_model(BaseModel(directory=copy, dtype="float32"))


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": 128},
        {"num_attention_heads": 0},
        {"num_hidden_layers": "eight"},
        {"rms_norm_eps": None},
        {"quantization": {"bits": 4}},
        {"quantization_config": {"quant_method": "awq", "bits": 3}},
    ],
)
def test_configs_that_do_not_fit_the_weights(copy, values):
    """A config that contradicts the weights, or itself, is an input error and no traceback."""
    config = json.loads((copy / "config.json").read_text()) | values
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="do not fit together"):
        load_model(BaseModel(directory=copy, dtype="float32"))
