"""The step that makes a base ready: what it writes opens elsewhere and is the same each time."""

import json

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from stages.errors import InputError, SettingError
from stages.models.materialize import materialize
from stages.settings import Model


class Lines:
    """Keeps what a stage says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def log(self, message: str) -> None:
        self.said.append(message)


def run(model, out, source, dtype="float32"):
    out.mkdir()
    return materialize(model, source=source, dtype=dtype, report=Lines(), out=out)


def test_mlx_lm_opens_a_quantized_model_the_same_each_time(drawn_directory, tmp_path, capfd):
    """Two runs give the same bytes, silently; mlx_lm.load opens them and answers in ChatML."""
    from mlx_lm import load

    model = Model(path="some/where", quantization=4, group_size=32)
    first, second = (run(model, tmp_path / name, drawn_directory) for name in ("a", "b"))
    names = sorted(file.name for file in first.directory.iterdir())
    assert names == sorted(file.name for file in second.directory.iterdir())
    for name in names:
        one, two = (base.directory / name for base in (first, second))
        assert one.read_bytes() == two.read_bytes(), name
    # 4 bits and two float32 numbers for every 32 weights.
    assert first.metrics["model.bits_per_weight"] == pytest.approx(4 + 2 * 32 / 32, abs=0.05)
    assert capfd.readouterr().out == ""
    module, tokenizer = load(str(first.directory))
    assert tokenizer.eos_token_ids == {2}
    assert tokenizer.has_chat_template
    assert module(mx.array([[1, 5, 9]])).shape == (1, 3, 6144)


def test_quantizing_a_directory_rounds_to_the_nearest_level(drawn_directory, tmp_path):
    """Each weight goes to the nearest level of its group, and the source is left alone."""
    before = {file.name: file.stat().st_mtime_ns for file in drawn_directory.iterdir()}
    base = run(Model(path="some/where", quantization=8), tmp_path / "out", source=drawn_directory)
    assert {file.name: file.stat().st_mtime_ns for file in drawn_directory.iterdir()} == before
    config = json.loads((base.directory / "config.json").read_text())
    assert config["quantization"] == {"group_size": 64, "bits": 8, "mode": "affine"}
    name = "model.layers.0.mlp.gate_proj"
    stored = load_file(base.directory / "model.safetensors")
    parts = [mx.array(stored[f"{name}.{part}"]) for part in ("weight", "scales", "biases")]
    found = np.array(mx.dequantize(*parts, group_size=64, bits=8))
    original = load_file(drawn_directory / "model.safetensors")[f"{name}.weight"]
    step, edge = (np.repeat(stored[f"{name}.{part}"], 64, axis=1) for part in ("scales", "biases"))
    nearest = edge + step * np.clip(np.round((original - edge) / step), 0, 255)
    assert np.abs(found - nearest).max() <= np.abs(step).max() * 1e-3


def test_what_cannot_be_quantized_is_refused_with_its_key(copy, tmp_path):
    """A quantized source, widths that no group fits, and a broken source."""
    model = Model(path="some/where", quantization=4)
    quantized = run(model, tmp_path / "quantized", source=copy)
    with pytest.raises(SettingError, match="quantized already") as caught:
        run(model, tmp_path / "again", source=quantized.directory)
    assert caught.value.where == "model.quantization"

    config = json.loads((copy / "config.json").read_text())
    config |= {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 1, "head_dim": 12}
    shapes = {
        "embed_tokens": (config["vocab_size"], 48), "norm": (48,),
        "layers.0.input_layernorm": (48,), "layers.0.post_attention_layernorm": (48,),
        "layers.0.self_attn.q_proj": (48, 48), "layers.0.self_attn.k_proj": (24, 48),
        "layers.0.self_attn.v_proj": (24, 48), "layers.0.self_attn.o_proj": (48, 48),
        "layers.0.mlp.gate_proj": (80, 48), "layers.0.mlp.up_proj": (80, 48),
        "layers.0.mlp.down_proj": (48, 80),
    }  # fmt: skip
    weights = {f"model.{name}.weight": np.ones(s, np.float32) for name, s in shapes.items()}
    for name in ("config.json", "model.safetensors"):
        (copy / name).unlink()
    (copy / "config.json").write_text(json.dumps(config))
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(SettingError, match="no layer's width") as caught:
        run(model, tmp_path / "narrow", source=copy)
    assert caught.value.where == "model.group_size"

    (copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights"):
        run(model, tmp_path / "broken", source=copy)
