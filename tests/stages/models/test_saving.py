"""Types of a model's parameters, there and back; what of a directory is copied."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from stages.models.loading import cast, read_model
from stages.models.saving import main_type, restore_types, save_directory, stored_types


def mixed() -> nn.Module:
    """Return a bfloat16 layer quantized, one plain, and a norm in float32."""
    model = nn.Module()
    model.quantized = nn.Linear(64, 64, bias=False)
    model.plain = nn.Linear(64, 64, bias=False)
    model.set_dtype(mx.bfloat16)
    model.quantized = model.quantized.to_quantized(64, 4)
    model.norm = nn.RMSNorm(64)
    return model


def test_every_parameter_gets_its_own_type_back() -> None:
    """A float32 norm stays float32 between bfloat16 layers, and packed words stay packed."""
    model = mixed()
    before = {path: value.dtype for path, value in tree_flatten(model.parameters())}
    types = stored_types(model)
    cast(model, mx.float32)
    restore_types(model, types)
    assert {path: value.dtype for path, value in tree_flatten(model.parameters())} == before
    assert types["quantized.weight"] == mx.bfloat16
    assert types["norm.weight"] == mx.float32


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8"])
def test_weights_with_byte_scales_unpack_to_bfloat16(mode: str) -> None:
    """The modes whose scales are bytes have no floating-point type of their own."""
    model = nn.Module()
    model.layer = nn.QuantizedLinear.from_linear(nn.Linear(64, 64, bias=False), mode=mode)
    assert stored_types(model)["layer.weight"] == mx.bfloat16


def test_main_type_is_that_of_most_parameters() -> None:
    """4,096 bfloat16 weights outvote 64 float32 ones."""
    assert main_type(mixed()) == "bfloat16"


def test_code_weights_and_notes_of_the_source_are_left_behind(
    draw_model: Callable[..., Path], tmp_path: Path
) -> None:
    """What would run, or describes other weights, is not copied; texts and licences are."""
    source, out = tmp_path / "source", tmp_path / "out"
    draw_model(source)
    left = ("modeling.py", "pytorch_model.bin", "model.safetensors.index.json",
            "hf_quant_config.json", "manifest.json", "merge.json")  # fmt: skip
    module, config = read_model(source)
    for name in (*left, "NOTICE.md", "merges.txt"):
        (source / name).write_text("old")
    save_directory(out, module, config, source)
    copied = {file.name for file in out.iterdir()}
    assert {"NOTICE.md", "merges.txt", "tokenizer.json"} <= copied
    assert copied & set(left) == {"model.safetensors.index.json"}
    assert (out / "model.safetensors.index.json").read_text() != "old"
