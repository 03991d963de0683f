"""merge: a directory others open, and a proof that cannot be fooled."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from mlx_lm.utils import quantize_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.artifacts import Adapter, BaseModel, Merged, Prepared
from stages.data.rows import open_rows, write_rows
from stages.errors import InputError, SettingError, StopRequested
from stages.lora.bank import attach
from stages.lora.files import load_adapter, save_adapter, save_weights
from stages.lora.layers import AdapterShape
from stages.lora.merge import unmerge_weights
from stages.lora.targets import find_targets
from stages.merge import merge
from stages.models.loading import cast, load_model, read_model
from stages.models.saving import save_directory
from stages.settings import Merge

RANK, SCALE = 4, 2.0
LARGE, SMALL, VANISHING = 0.05, 0.003, 0.0002
"""Spread of the adapter's `lora_b`: what it changes is near, below and far below a 4-bit
step; the last is lost in bfloat16's rounding too."""


class Listener:
    """A reporter that remembers."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.lines: list[str] = []
        self.stop_after = stop_after
        self.done: list[tuple[int, int]] = []

    def log(self, message: str) -> None:
        self.lines.append(message)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        raise AssertionError("merge reports its metrics in its artifact")

    def progress(self, done: int, total: int, fields: Mapping[str, float]) -> None:
        self.done.append((done, total))

    def stop_requested(self) -> bool:
        return self.stop_after is not None and len(self.done) >= self.stop_after


@pytest.fixture(scope="module")
def base(draw_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = draw_model(tmp_path_factory.mktemp("base"))
    (directory / "LICENSE").write_text("the base's licence")
    (directory / "manifest.json").write_text("the base's manifest")
    return directory


def other_base(base: Path, out: Path, dtype: str = "float32", bits: int | None = None) -> Path:
    """Write the base in another type, quantized by mlx-lm if `bits` says so."""
    module, config = read_model(base)
    cast(module, getattr(mx, dtype))
    config["dtype"] = dtype
    if bits is not None:
        module, config = quantize_model(module, config, 64, bits)
    out.mkdir()
    save_directory(out, module, config, base)
    return out


def make_adapter(base: Path, out: Path, size: float) -> Adapter:
    """Write an adapter for every linear layer, with a `lora_b` of the given spread."""
    module = load_model(BaseModel(directory=base, dtype="float32"))
    targets = find_targets(module, ["*"], None)
    shape = AdapterShape(RANK, SCALE)
    bank = attach(module, targets, [shape])
    draw = np.random.default_rng(3)
    adapter = {
        path: {
            name: mx.array(
                draw.normal(0, spread, getattr(layer, name).shape[1:]).astype(np.float32)
            )
            for name, spread in (("lora_a", 0.06), ("lora_b", size))
        }
        for path, layer in bank.layers.items()
    }
    out.mkdir()
    save_adapter(out, adapter, shape, targets, {})
    return Adapter(directory=out)


def make_rows(out: Path, *splits: str) -> Prepared:
    """Write six rows of random tokens to each named split, and none to the others."""
    out.mkdir()
    for seed, split in enumerate(("train", "valid", "test")):
        draw = np.random.default_rng(seed)
        rows = [
            (
                draw.integers(3, 4096, length, dtype=np.int32),
                (np.arange(length) > 4).astype(np.uint8),
            )
            for length in range(10, 28, 3)
        ]
        write_rows(out / f"{split}.safetensors", rows if split in splits else [])
    return Prepared(directory=out)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return make_rows(tmp_path_factory.mktemp("rows") / "prepared", "train", "valid", "test")


def settings(**changes: Any) -> Merge:
    """Return what conf/merge/default.yaml holds, with changes."""
    values: dict[str, Any] = {"stage": "stages.merge.merge", "quantized": "dequantize",
                              "dtype": None, "rows": 16, "min_kept": 0.9}  # fmt: skip
    return Merge(**values | changes)


def run(
    base: Path, adapter: Adapter, prepared: Prepared, out: Path, **changes: Any
) -> tuple[Merged, Listener]:
    out.mkdir()
    listener = Listener()
    merged = merge(settings(**changes), model=BaseModel(directory=base, dtype="float32"),
                   prepared=prepared, adapter=adapter, report=listener, out=out)  # fmt: skip
    return merged, listener


def expected_logits(base: Path, adapter: Adapter, tokens: np.ndarray) -> np.ndarray:
    """Return what mlx-lm computes from the base and the adapter as they are."""
    module, _ = mlx_lm.load(str(base), adapter_path=str(adapter.directory))
    return np.array(module(mx.array(tokens)))


def torch_logits(directory: Path, tokens: np.ndarray) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor(tokens).long()).logits.float().numpy()


TOKENS = np.random.default_rng(9).integers(3, 4096, (2, 12), dtype=np.int32)


def test_float_base_opens_in_mlx_lm_and_transformers(
    base: Path, prepared: Prepared, tmp_path: Path
) -> None:
    """Both libraries open the directory and compute what mlx-lm computes with the adapter."""
    adapter = make_adapter(base, tmp_path / "adapter", LARGE)
    merged, listener = run(base, adapter, prepared, tmp_path / "out")
    expected = expected_logits(base, adapter, TOKENS)
    module, tokenizer = mlx_lm.load(str(merged.directory))
    untuned, _ = mlx_lm.load(str(base))
    assert np.abs(np.array(untuned(mx.array(TOKENS))) - expected).max() > 0.1
    np.testing.assert_allclose(np.array(module(mx.array(TOKENS))), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(torch_logits(merged.directory, TOKENS), expected, rtol=0, atol=1e-4)
    turn = [{"role": "user", "content": "Good morning, 12 eggs please"}]
    assert tokenizer.apply_chat_template(turn) == AutoTokenizer.from_pretrained(
        base
    ).apply_chat_template(turn, return_dict=False)
    assert merged.metrics["merge.kept_fraction"] > 0.9999
    assert merged.metrics["merge.greedy_agreement"] == 1
    assert listener.done[-1] == (18, 18)
    assert len(listener.lines) == 1


def test_directory_holds_the_base_s_files_and_nothing_else(
    base: Path, prepared: Prepared, tmp_path: Path
) -> None:
    """Tokenizer, template, generation settings and licence are the base's bytes."""
    adapter = make_adapter(base, tmp_path / "adapter", LARGE)
    out = run(base, adapter, prepared, tmp_path / "out")[0].directory
    same = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
            "generation_config.json", "LICENSE"}  # fmt: skip
    assert {file.name for file in out.iterdir()} == same | {
        "config.json", "model.safetensors", "model.safetensors.index.json", "merge.json",
    }  # fmt: skip
    for name in same:
        assert (out / name).read_bytes() == (base / name).read_bytes()
    assert json.loads((out / "config.json").read_text()) == json.loads(
        (base / "config.json").read_text()
    )


def test_chat_template_trained_with_is_the_merged_model_s(
    base: Path, prepared: Prepared, tmp_path: Path
) -> None:
    """transformers and mlx-lm render the adapter's template, not the base's, whether the base has
    its own in a file or in its tokenizer's configuration; all else is as without."""
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}"
    older = shutil.copytree(base, tmp_path / "older")
    config = json.loads((base / "tokenizer_config.json").read_text())
    own = (older / "chat_template.jinja").read_text()
    (older / "chat_template.jinja").unlink()
    (older / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": own}))
    adapter = make_adapter(base, tmp_path / "adapter", LARGE)
    plain = run(base, adapter, prepared, tmp_path / "plain")[0].directory
    with_template(adapter, template)
    turn = [{"role": "user", "content": "Good morning"}]
    for source in (base, older):
        out = run(source, adapter, prepared, tmp_path / f"from_{source.name}")[0].directory
        for tokenizer in (AutoTokenizer.from_pretrained(out), mlx_lm.load(str(out))[1]):
            rendered = tokenizer.apply_chat_template(turn, tokenize=False)
            assert rendered == "[user] Good morning<|im_end|>"
        assert json.loads((out / "tokenizer_config.json").read_text()) == config
        assert {file.name for file in out.iterdir()} == {file.name for file in plain.iterdir()}
    (adapter.directory / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match=r"chat_template\.jinja: is missing"):
        run(base, adapter, prepared, tmp_path / "damaged")


def with_template(adapter: Adapter, template: str) -> None:
    """Make the adapter one that was trained with `template`."""
    path = adapter.directory / "adapter_config.json"
    digest = hashlib.sha256(template.encode()).hexdigest()
    recorded = json.loads(path.read_text()) | {"chat_template_sha256": digest}
    path.write_text(json.dumps(recorded))
    (adapter.directory / "chat_template.jinja").write_text(template)


def test_figures_are_those_of_torch(base: Path, prepared: Prepared, tmp_path: Path) -> None:
    """Losses and divergences agree with torch's on the same positions of the first test rows."""
    adapter = make_adapter(base, tmp_path / "adapter", LARGE)
    out = tmp_path / "out"
    merged, _ = run(base, adapter, prepared, out, rows=2, dtype="bfloat16")
    sums: dict[str, float] = {"loss": 0, "adapter": 0, "base": 0, "kl": 0, "kl_base": 0, "agree": 0}
    count, largest = 0, 0.0
    rows = open_rows(prepared.directory, "test")
    for index in range(2):
        tokens, supervised = rows[index]
        inputs, targets = tokens[None, :-1], torch.tensor(tokens[1:]).long()
        places = torch.tensor(supervised[1:]).bool()
        found = {
            "loss": torch.tensor(torch_logits(out, inputs)[0]).double(),
            "adapter": torch.tensor(expected_logits(base, adapter, inputs)[0]).double(),
            "base": torch.tensor(torch_logits(base, inputs)[0]).double(),
        }
        logs = {name: value.log_softmax(-1)[places] for name, value in found.items()}
        for name, log in logs.items():
            sums[name] -= float(log.gather(1, targets[places][:, None]).sum())
        p = logs["adapter"].exp()
        sums["kl"] += float((p * (logs["adapter"] - logs["loss"])).sum())
        sums["kl_base"] += float((p * (logs["adapter"] - logs["base"])).sum())
        sums["agree"] += int((logs["adapter"].argmax(-1) == logs["loss"].argmax(-1)).sum())
        largest = max(largest, float((found["adapter"] - found["loss"])[places].abs().max()))
        count += int(places.sum())
    mean = {name: value / count for name, value in sums.items()}
    metrics = {name.removeprefix("merge."): value for name, value in merged.metrics.items()}
    assert metrics == pytest.approx(
        {
            "loss": mean["loss"],
            "adapter_loss": mean["adapter"],
            "base_loss": mean["base"],
            "kl_to_adapter": mean["kl"],
            "adapter_kl_to_base": mean["kl_base"],
            "kept_fraction": 1 - mean["kl"] / mean["kl_base"],
            "greedy_agreement": mean["agree"],
            "max_logit_difference": largest,
        },
        rel=2e-2,
        abs=1e-6,
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_small_adapter_on_a_4_bit_base(
    base: Path, prepared: Prepared, tmp_path: Path, dtype: str
) -> None:
    """Quantized again, the tuning is gone and the merge refused; as plain weights it is kept."""
    quantized = other_base(base, tmp_path / "base", dtype, bits=4)
    adapter = make_adapter(quantized, tmp_path / "adapter", SMALL)
    with pytest.raises(SettingError) as refused:
        run(quantized, adapter, prepared, tmp_path / "refused", quantized="requantize")
    assert refused.value.where == "merge.min_kept"
    assert refused.value.mend == "set merge.quantized=dequantize"
    for figure in ("% of the tuning", "KL", "loss base"):
        assert figure in refused.value.found
    merged, _ = run(quantized, adapter, prepared, tmp_path / "out")
    assert merged.metrics["merge.kept_fraction"] > 0.97
    config = json.loads((merged.directory / "config.json").read_text())
    assert not {"quantization", "quantization_config"} & config.keys()
    assert config["dtype"] == dtype
    expected = load_model(BaseModel(directory=quantized, dtype="float32"))
    load_adapter(expected, adapter.directory)
    np.testing.assert_allclose(
        torch_logits(merged.directory, TOKENS),
        np.array(expected(mx.array(TOKENS))),
        rtol=0,
        atol=1e-4 if dtype == "float32" else 0.2,
    )


def test_large_adapter_survives_requantizing(
    base: Path, prepared: Prepared, tmp_path: Path
) -> None:
    """An adapter far above the step of 8 bits passes, and the base's form is kept."""
    quantized = other_base(base, tmp_path / "base", "bfloat16", bits=8)
    adapter = make_adapter(quantized, tmp_path / "adapter", LARGE)
    out = run(quantized, adapter, prepared, tmp_path / "out", quantized="requantize")[0].directory
    before, after = (
        mx.load(str(quantized / "model.safetensors")),
        mx.load(str(out / "model.safetensors")),
    )
    assert {name: (value.shape, value.dtype) for name, value in after.items()} == {
        name: (value.shape, value.dtype) for name, value in before.items()
    }
    config = json.loads((out / "config.json").read_text())
    assert config["quantization"] == {"bits": 8, "group_size": 64, "mode": "affine"}
    assert config["quantization_config"] == config["quantization"]
    module, _ = mlx_lm.load(str(out))
    assert module.layers[0].self_attn.q_proj.bits == 8
    described = json.loads((out / "merge.json").read_text())
    assert described["quantized"] is True
    assert described["kept_fraction"] > 0.9


def test_tuning_that_vanishes_in_bfloat16(base: Path, prepared: Prepared, tmp_path: Path) -> None:
    """A change below half a bfloat16 step is lost silently no more, and float32 holds it."""
    half = other_base(base, tmp_path / "base", "bfloat16")
    adapter = make_adapter(half, tmp_path / "adapter", VANISHING)
    with pytest.raises(SettingError) as refused:
        run(half, adapter, prepared, tmp_path / "refused")
    assert refused.value.mend == "set merge.dtype=float32"
    merged, _ = run(half, adapter, prepared, tmp_path / "out", dtype="float32")
    assert merged.metrics["merge.kept_fraction"] > 0.999
    assert json.loads((merged.directory / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_is_that_of_the_weights_and_the_config(
    base: Path, prepared: Prepared, tmp_path: Path, dtype: str
) -> None:
    """merge.dtype decides every tensor and what config.json says of them."""
    adapter = make_adapter(base, tmp_path / "adapter", LARGE)
    out = run(base, adapter, prepared, tmp_path / "out", dtype=dtype)[0].directory
    types = {value.dtype for value in mx.load(str(out / "model.safetensors")).values()}
    assert types == {getattr(mx, dtype)}
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype
    assert AutoModelForCausalLM.from_pretrained(out).dtype == getattr(torch, dtype)


def test_adapter_that_changes_nothing_cannot_be_lost(
    base: Path, prepared: Prepared, tmp_path: Path
) -> None:
    """With `lora_b` of zeros everything is kept, though there is no difference to divide by."""
    adapter = make_adapter(base, tmp_path / "adapter", 0.0)
    merged, _ = run(base, adapter, prepared, tmp_path / "out", min_kept=1.0)
    assert merged.metrics["merge.kept_fraction"] == 1
    assert merged.metrics["merge.adapter_kl_to_base"] == 0
    before, after = base / "model.safetensors", merged.directory / "model.safetensors"
    for name, value in mx.load(str(before)).items():
        assert mx.array_equal(value, mx.load(str(after))[name])


def test_min_kept_of_zero_accepts_what_is_lost(
    base: Path, prepared: Prepared, tmp_path: Path
) -> None:
    """merge.min_kept=0 lets a lost tuning pass, and its figures say so."""
    quantized = other_base(base, tmp_path / "base", bits=4)
    adapter = make_adapter(quantized, tmp_path / "adapter", SMALL)
    merged, listener = run(
        quantized, adapter, prepared, tmp_path / "out", quantized="requantize", min_kept=0.0
    )
    assert merged.metrics["merge.kept_fraction"] < 0.5
    assert merged.metrics["merge.kl_to_adapter"] > 0
    assert "% of the tuning" in listener.lines[0]


def make_dora(base: Path, out: Path) -> Adapter:
    """Write a DoRA adapter of which matrices and norms differ from their start."""
    module = load_model(BaseModel(directory=base, dtype="float32"))
    targets = find_targets(module, ["*"], None)
    shape = AdapterShape(RANK, SCALE, dora=True)
    bank = attach(module, targets, [shape])
    draw = np.random.default_rng(3)
    adapter = {
        path: {
            "lora_a": mx.array(draw.normal(0, 0.06, weights["lora_a"].shape).astype(np.float32)),
            "lora_b": mx.array(draw.normal(0, LARGE, weights["lora_b"].shape).astype(np.float32)),
            "m": weights["m"]
            * mx.array(draw.normal(1, 0.1, weights["m"].shape).astype(np.float32)),
        }
        for path, weights in bank.split(bank.parameters())[0].items()
    }
    out.mkdir()
    save_adapter(out, adapter, shape, targets, {})
    return Adapter(directory=out)


def make_full(base: Path, out: Path) -> Adapter:
    """Write all weights of the base, each a little off."""
    draw = np.random.default_rng(3)
    weights = {
        name: value + mx.array(draw.normal(0, 0.02, value.shape).astype(np.float32))
        for name, value in sorted(mx.load(str(base / "model.safetensors")).items())
    }
    out.mkdir()
    save_weights(out, weights, {"type": "full"})
    return Adapter(directory=out)


@pytest.mark.parametrize("make", [make_dora, make_full])
def test_dora_and_trained_weights_are_merged(
    base: Path, prepared: Prepared, tmp_path: Path, make: Callable[[Path, Path], Adapter]
) -> None:
    """transformers computes from the merged directory what mlx-lm does from base and adapter."""
    adapter = make(base, tmp_path / "adapter")
    merged, _ = run(base, adapter, prepared, tmp_path / "out")
    assert merged.metrics["merge.kept_fraction"] > 0.9999
    assert merged.metrics["merge.adapter_kl_to_base"] > 0.01
    np.testing.assert_allclose(
        torch_logits(merged.directory, TOKENS),
        expected_logits(base, adapter, TOKENS),
        rtol=0,
        atol=1e-4,
    )


def test_unmerging_the_directory_gives_the_base_back(
    base: Path, prepared: Prepared, tmp_path: Path
) -> None:
    """The adapter taken out of the merged directory leaves the base's weights."""
    adapter = make_adapter(base, tmp_path / "adapter", LARGE)
    out = run(base, adapter, prepared, tmp_path / "out")[0].directory
    module = load_model(BaseModel(directory=out, dtype="float32"))
    unmerge_weights(load_adapter(module, adapter.directory))
    again = {name: np.array(value) for name, value in tree_flatten(module.parameters())}
    for name, value in mx.load(str(base / "model.safetensors")).items():
        np.testing.assert_allclose(again[name], np.array(value), rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    ("splits", "split", "first"),
    [
        (("train", "valid", "test"), "test", 0),
        (("train", "valid"), "valid", 0),
        (("train",), "train", 5),
    ],
)
def test_rows_are_the_best_held_out_ones(
    base: Path, tmp_path: Path, splits: tuple[str, ...], split: str, first: int
) -> None:
    """The test rows are taken if there are any, else valid ones, else the last of training."""
    adapter = make_adapter(base, tmp_path / "adapter", LARGE)
    rows = make_rows(tmp_path / "rows", *splits)
    merged, listener = run(base, adapter, rows, tmp_path / "out", rows=1)
    described = json.loads((merged.directory / "merge.json").read_text())
    assert (described["format"], described["split"], described["rows"]) == (1, split, 1)
    assert f"1 rows of {split}" in listener.lines[0]
    tokens, supervised = open_rows(rows.directory, split)[first]
    logits = torch.tensor(expected_logits(base, adapter, tokens[None, :-1])[0])
    places = torch.tensor(supervised[1:]).bool()
    loss = torch.nn.functional.cross_entropy(
        logits[places], torch.tensor(tokens[1:])[places].long()
    )
    assert merged.metrics["merge.adapter_loss"] == pytest.approx(float(loss), rel=1e-5)


def test_stops_when_asked(base: Path, prepared: Prepared, tmp_path: Path) -> None:
    """A request to stop ends the comparison at the next row."""
    adapter = make_adapter(base, tmp_path / "adapter", LARGE)
    out = tmp_path / "out"
    out.mkdir()
    listener = Listener(stop_after=4)
    with pytest.raises(StopRequested):
        merge(settings(), model=BaseModel(directory=base, dtype="float32"), prepared=prepared,
              adapter=adapter, report=listener, out=out)  # fmt: skip
    assert len(listener.done) == 4


def test_never_holds_a_second_model(base: Path, prepared: Prepared, tmp_path: Path) -> None:
    """Peak memory stays below two copies of the weights, all three comparisons included."""
    adapter = make_adapter(base, tmp_path / "adapter", LARGE)
    model_bytes = (base / "model.safetensors").stat().st_size
    mx.reset_peak_memory()
    held = mx.get_active_memory()
    run(base, adapter, prepared, tmp_path / "out", rows=1)
    assert mx.get_peak_memory() - held < 2 * model_bytes


def test_weights_that_overflow_are_never_accepted(
    base: Path, prepared: Prepared, tmp_path: Path
) -> None:
    """A sum beyond float16 leaves no model at all, and even merge.min_kept=0 refuses it."""
    adapter = make_adapter(base, tmp_path / "adapter", 1e6)
    with pytest.raises(SettingError) as refused:
        run(base, adapter, prepared, tmp_path / "out", dtype="float16", min_kept=0.0)
    assert refused.value.mend == "set merge.dtype=float32"
