from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_adapters
from safetensors import safe_open

from stages.errors import InputError
from stages.lora.bank import Bank, attach
from stages.lora.description import trained_template
from stages.lora.files import load_adapter, save_adapter, save_weights
from stages.lora.layers import AdapterShape
from stages.lora.targets import find_targets

LLAMA = Callable[..., Any]
TOKENS = mx.array([[3, 9, 27, 17, 51], [2, 4, 8, 16, 32]])
SHAPE = AdapterShape(4, 1.5, 0.1)
DORA = replace(SHAPE, dora=True)


def trained(
    model: Any, patterns: list[str], num_layers: int | None = None, shape: AdapterShape = SHAPE
) -> Bank:
    """Put an adapter on `model` that changes its logits."""
    bank = attach(model, find_targets(model, patterns, num_layers), [shape])
    rng = np.random.default_rng(1)
    bank.update(
        {path: {name: mx.array(rng.normal(0, 0.3, value.shape), mx.float32)
                for name, value in weights.items()}
         for path, weights in bank.parameters().items()}
    )  # fmt: skip
    return bank


def save(bank: Bank, directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    adapter = bank.split(bank.parameters())[0]
    save_adapter(directory, adapter, bank.shapes[0], bank.targets, {"alpha": 6.0, "type": "lora"})
    return directory


@pytest.mark.parametrize("shape", [SHAPE, DORA])
@pytest.mark.parametrize(("patterns", "num_layers"), [(["*"], None), (["q_proj", "mlp.*"], 1)])
def test_mlx_lm_loads_what_is_saved(
    tiny_llama: LLAMA,
    tmp_path: Path,
    patterns: list[str],
    num_layers: int | None,
    shape: AdapterShape,
) -> None:
    """mlx-lm's own loader gives a fresh model the logits of the one that was trained."""
    model = tiny_llama(num_hidden_layers=3)
    base = np.array(model(TOKENS))
    save(trained(model, patterns, num_layers, shape), tmp_path)
    expected = np.array(model(TOKENS))
    other = load_adapters(tiny_llama(num_hidden_layers=3), str(tmp_path))
    other.eval()
    assert np.abs(expected - base).max() > 0.1
    np.testing.assert_allclose(np.array(other(TOKENS)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [SHAPE, DORA])
def test_load_gives_the_saved_weights_back(
    tiny_llama: LLAMA, tmp_path: Path, shape: AdapterShape
) -> None:
    """What is loaded has the saved bits, shape and targets."""
    model = tiny_llama()
    bank = trained(model, ["self_attn.*"], 1, shape)
    logits = model(TOKENS)
    other = tiny_llama()
    loaded = load_adapter(other, save(bank, tmp_path))
    assert (loaded.targets, loaded.shapes) == (bank.targets, bank.shapes)
    assert mx.array_equal(other(TOKENS), logits)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_load_takes_an_adapter_of_mlx_lm(tiny_llama: LLAMA, tmp_path: Path, kind: str) -> None:
    """An adapter written the way mlx_lm.lora does, without keys, gives the same logits."""
    model = tiny_llama(num_hidden_layers=3)
    parameters = {"rank": 3, "scale": 20.0, "dropout": 0.0}
    linear_to_lora_layers(model, 2, parameters, use_dora=kind == "dora")
    rng = np.random.default_rng(1)
    weights = {name: mx.array(rng.normal(0, 0.1, value.shape), mx.float32)
               for name, value in tree_flatten(model.trainable_parameters())}  # fmt: skip
    model.load_weights(list(weights.items()), strict=False)
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), weights)
    config = {"fine_tune_type": kind, "num_layers": 2, "lora_parameters": parameters}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    other = tiny_llama(num_hidden_layers=3)
    load_adapter(other, tmp_path)
    np.testing.assert_allclose(
        np.array(other(TOKENS)), np.array(model(TOKENS)), rtol=1e-4, atol=1e-5
    )


def save_changed(model: Any, directory: Path, changed: str) -> Path:
    """Save all weights of `model`, those with `changed` in their name half as large."""
    weights = {name: value * 0.5 if changed in name else value
               for name, value in tree_flatten(model.parameters())}  # fmt: skip
    save_weights(directory, weights, {"type": "full"})
    return directory


@pytest.mark.parametrize("changed", ["", "embed_tokens", "norm", "lm_head"])
def test_all_weights_load_here_and_in_mlx_lm(
    tiny_llama: LLAMA, tmp_path: Path, changed: str
) -> None:
    """Weights saved whole replace the base's own, in our loader and in mlx-lm's."""
    save_changed(tiny_llama(), tmp_path, changed)
    expected = tiny_llama()
    expected.load_weights(str(tmp_path / "adapters.safetensors"))
    assert mx.abs(expected(TOKENS) - tiny_llama()(TOKENS)).max() > 0.01
    ours = tiny_llama()
    load_adapter(ours, tmp_path)
    theirs = load_adapters(tiny_llama(), str(tmp_path))
    assert mx.array_equal(ours(TOKENS), expected(TOKENS))
    assert mx.array_equal(theirs(TOKENS), expected(TOKENS))


def test_all_weights_are_saved_as_equal_bytes(tiny_llama: LLAMA, tmp_path: Path) -> None:
    """Saving twice, in whatever order, writes the same bytes in the type that the model has."""
    model = tiny_llama()
    model.set_dtype(mx.bfloat16)
    weights = tree_flatten(model.parameters())
    for name, given in (("first", weights), ("second", weights[::-1])):
        (tmp_path / name).mkdir()
        save_weights(tmp_path / name, dict(given), {"type": "full"})
    for name in ("adapters.safetensors", "adapter_config.json"):
        first, second = (tmp_path / place / name for place in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()
    tensors = mx.load(str(tmp_path / "first" / "adapters.safetensors"))
    assert {value.dtype for value in tensors.values()} == {mx.bfloat16}


def test_load_takes_the_blocks_that_mlx_lm_trained(tiny_llama: LLAMA, tmp_path: Path) -> None:
    """mlx_lm.lora --fine-tune-type full saves the last blocks alone; the rest stays the base's."""
    model = tiny_llama()
    model.layers[1].unfreeze()
    weights = {name: value * 1.5 for name, value in tree_flatten(model.trainable_parameters())}
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), weights)
    (tmp_path / "adapter_config.json").write_text('{"fine_tune_type": "full", "num_layers": 1}')
    expected = load_adapters(tiny_llama(), str(tmp_path))(TOKENS)
    load_adapter(model, tmp_path)
    assert mx.array_equal(model(TOKENS), expected)


def test_incomplete_or_foreign_weights_are_refused(tiny_llama: LLAMA, tmp_path: Path) -> None:
    """Of our own files every weight must be there, of the base's shape; the model stays as is."""
    directory = save_changed(tiny_llama(), tmp_path, "")

    def spoil(tensors: dict[str, mx.array]) -> None:
        tensors["model.norms.weight"] = tensors.pop("model.norm.weight")
        tensors["lm_head.weight"] = mx.zeros((64, 16))

    change_tensors(directory, spoil)
    model = tiny_llama()
    with pytest.raises(InputError) as caught:
        load_adapter(model, directory)
    message = str(caught.value)
    assert "missing model.norm.weight; unknown model.norms.weight" in message
    assert "lm_head.weight is (64, 16), expected (64, 32)" in message
    assert mx.array_equal(model(TOKENS), tiny_llama()(TOKENS))


def test_equal_adapters_give_equal_bytes(tiny_llama: LLAMA, tmp_path: Path) -> None:
    """Saving twice writes the same bytes: float32 tensors with the field's names."""
    bank = trained(tiny_llama(), ["*"])
    first, second = save(bank, tmp_path / "first"), save(bank, tmp_path / "second")
    for name in ("adapters.safetensors", "adapter_config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    with safe_open(first / "adapters.safetensors", "numpy") as file:
        assert len(list(file.keys())) == 2 * 2 * 7
        down = file.get_tensor("model.layers.0.mlp.down_proj.lora_a")
    assert (down.dtype, down.shape) == (np.float32, (48, 4))


def change_tensors(directory: Path, change: Callable[[dict[str, mx.array]], None]) -> None:
    path = directory / "adapters.safetensors"
    with safe_open(path, "numpy") as file:
        tensors = {name: mx.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 - not a mapping
    change(tensors)
    mx.save_safetensors(str(path), tensors)


def test_every_wrong_tensor_is_named(tiny_llama: LLAMA, tmp_path: Path) -> None:
    """A missing, an unknown and a mis-shaped tensor are all in the message."""
    directory = save(trained(tiny_llama(), ["q_proj"]), tmp_path)

    def spoil(tensors: dict[str, mx.array]) -> None:
        tensors["model.layers.9.self_attn.q_proj.lora_a"] = tensors.pop(
            "model.layers.1.self_attn.q_proj.lora_a"
        )
        tensors["model.layers.0.self_attn.q_proj.lora_b"] = mx.zeros((4, 7))

    change_tensors(directory, spoil)
    with pytest.raises(InputError) as caught:
        load_adapter(tiny_llama(), directory)
    message = str(caught.value)
    assert "missing model.layers.1.self_attn.q_proj.lora_a" in message
    assert "unknown model.layers.9.self_attn.q_proj.lora_a" in message
    assert "model.layers.0.self_attn.q_proj.lora_b is (4, 7), expected (4, 32)" in message


def test_adapter_of_another_model_is_refused(tiny_llama: LLAMA, tmp_path: Path) -> None:
    """An adapter of a wider model does not load, and the model keeps its own layers."""
    directory = save(trained(tiny_llama(hidden_size=64), ["q_proj"]), tmp_path)
    model = tiny_llama()
    with pytest.raises(InputError, match=r"lora_a is \(64, 4\), expected \(32, 4\)"):
        load_adapter(model, directory)
    assert all(not name.endswith("lora_a") for name, _ in tree_flatten(model.parameters()))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lora_parameters", {"rank": 8, "scale": 1.0, "keys": ["self_attn.q_proj"]},
         "rank 4, but adapter_config.json says 8"),
        ("lora_parameters", {"rank": 4}, "has no rank or no scale"),
        ("format", 2, "format 2, but 1 is the newest known"),
        ("format", "one", "not the configuration of an adapter"),
        ("fine_tune_type", "ia3", "fine_tune_type 'ia3', expected lora, dora or full"),
        ("fine_tune_type", "dora", "missing model.layers.0.self_attn.q_proj.m"),
    ],
)  # fmt: skip
def test_wrong_configuration_is_refused(
    tiny_llama: LLAMA, tmp_path: Path, key: str, value: Any, message: str
) -> None:
    """What the configuration says and the loader cannot honour is named."""
    directory = save(trained(tiny_llama(), ["q_proj"]), tmp_path)
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(InputError, match=message):
        load_adapter(tiny_llama(), directory)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapters.safetensors"])
@pytest.mark.parametrize("content", [None, b"{broken"])
def test_missing_or_damaged_file_is_named(
    tiny_llama: LLAMA, tmp_path: Path, name: str, content: bytes | None
) -> None:
    """Either file gone or damaged is an InputError that names it."""
    directory = save(trained(tiny_llama(), ["q_proj"]), tmp_path)
    if content is None:
        (directory / name).unlink()
    else:
        (directory / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        load_adapter(tiny_llama(), directory)


@pytest.mark.parametrize("full", [False, True])
def test_chat_template_trained_with_comes_back_or_is_refused(
    tiny_llama: LLAMA, tmp_path: Path, full: bool
) -> None:
    """The template is read as it was saved; one that is edited or missing is named, and one that
    nothing records, as other tools leave it there, is not taken."""
    model = tiny_llama()
    template = "{{ messages }}\r\n"
    save(trained(model, ["q_proj"]), tmp_path)
    path = tmp_path / "chat_template.jinja"
    path.write_text("not ours")
    assert trained_template(tmp_path) is None
    if full:
        save_weights(tmp_path, dict(tree_flatten(model.parameters())), {}, template)
    else:
        bank = trained(tiny_llama(), ["q_proj"])
        adapter = bank.split(bank.parameters())[0]
        save_adapter(tmp_path, adapter, bank.shapes[0], bank.targets, {}, template)
    assert trained_template(tmp_path) == template
    for damage, found in ((lambda: path.write_text(template + " "), "not the file"),
                          (path.unlink, "missing")):  # fmt: skip
        damage()
        with pytest.raises(InputError) as caught:
            trained_template(tmp_path)
        assert caught.value.where == str(path)
        assert found in caught.value.found
