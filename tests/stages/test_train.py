from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_adapters, quantize_model

from stages.artifacts import Adapter, BaseModel, Prepared
from stages.data.rows import open_rows, write_rows
from stages.errors import InputError, SettingError, StopRequested
from stages.models.loading import load_model, read_model
from stages.models.saving import save_directory
from stages.settings import Lora
from stages.train import train
from stages.training_settings import Optimizer, Train


class Silent:
    """Asks to stop once `stop_after` steps are told, if that is given."""

    def __init__(self, stop_after: float = math.inf) -> None:
        self.stop_after, self.step = stop_after, 0

    def log(self, message: str) -> None: ...
    def progress(self, done: int, total: int, fields: Mapping[str, float]) -> None: ...
    def resumed(self, step: int, seconds: float) -> None: ...
    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.step = step

    def stop_requested(self) -> bool:
        return self.step >= self.stop_after


@pytest.fixture
def model(tiny_llama: Callable[..., Any], byte_model: Callable[..., Path]) -> BaseModel:
    directory = byte_model()
    llama = tiny_llama(vocab_size=300)
    mx.save_safetensors(
        str(directory / "model.safetensors"), dict(tree_flatten(llama.parameters()))
    )
    config = {name: value for name, value in vars(llama.args).items() if value is not None}
    (directory / "config.json").write_text(json.dumps(config))
    return BaseModel(directory=directory, dtype="float32")


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("valid", 5), ("test", 0)):
        lengths = rng.integers(4, 50, count)
        rows = [(rng.integers(0, 9, n).astype(np.int32), (np.arange(n) > 1).astype(np.uint8))
                for n in lengths]  # fmt: skip
        write_rows(tmp_path / f"{split}.safetensors", rows)
    return Prepared(directory=tmp_path)


def run(
    model: BaseModel,
    prepared: Prepared,
    out: Path,
    seed: int = 0,
    rate: Any = 1e-2,
    cache: float | None = None,
    start: Path | None = None,
    report: Silent | None = None,
    checkpoints: Path | None = None,
    **changes: Any,
) -> Adapter:
    lora = {
        "stage": "stages.train.train", "type": "lora", "rank": 4, "alpha": 8.0, "dropout": 0.1,
        "targets": ("*",), "num_layers": None,
    }  # fmt: skip
    optimizer = Optimizer(
        name="adamw", learning_rate=rate, schedule="cosine", warmup_fraction=0.1, eps=1e-8,
        max_grad_norm=1.0, betas=(0.9, 0.999), weight_decay=0.0,
    )  # fmt: skip
    settings = Train(
        epochs=2,
        batch_size=2,
        grad_accumulation_steps=2,
        gradient_checkpointing=False,
        prefix_cache_gb=cache,
        callbacks=(),
        checkpoint_every="5m",
        resume="auto",
        init_adapter=str(start) if start else None,
        validations_per_epoch=2,
        log_every=5,
    )
    return train(Lora(**(lora | changes)), optimizer, settings, seed, model=model,
                 prepared=prepared, report=report or Silent(), out=out,
                 checkpoints=checkpoints)  # fmt: skip


def test_reused_prefix_changes_no_loss_and_leaves_no_file(
    model: BaseModel, prepared: Prepared, tmp_path: Path
) -> None:
    """The upper block alone adapted, with what the lower one gives kept and not: the losses are
    the same, and the directory holds what an adapter has."""
    found = run(model, prepared, tmp_path / "kept", cache=1.0, num_layers=1)
    expected = run(model, prepared, tmp_path / "computed", num_layers=1)
    for name in ("train.loss", "valid.loss", "valid.loss_before"):
        assert found.metrics[name] == pytest.approx(expected.metrics[name], rel=1e-5)
    names = [sorted(p.name for p in adapter.directory.iterdir()) for adapter in (found, expected)]
    assert names[0] == names[1]


FULL = {"type": "full", "rank": None, "alpha": None, "dropout": None, "targets": None}


def digest(adapter: Adapter) -> list[str]:
    return [sha256(path.read_bytes()).hexdigest() for path in sorted(adapter.directory.iterdir())]


@pytest.mark.parametrize("changes", [{}, {"type": "dora"}, FULL], ids=["lora", "dora", "full"])
def test_same_arguments_give_the_same_bytes(
    model: BaseModel, prepared: Prepared, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Two runs write two equal files each, dropout included; another seed writes others, and
    MLX's own random state has no part in it."""
    first = run(model, prepared, tmp_path / "first", **changes)
    mx.random.seed(77)
    np.random.seed(77)
    again = run(model, prepared, tmp_path / "again", **changes)
    other = run(model, prepared, tmp_path / "other", seed=1, **changes)
    assert len(digest(first)) == 3
    assert digest(first) == digest(again)
    assert digest(first)[1] != digest(other)[1]
    timed = {"train.tokens_per_second"}
    assert {k: v for k, v in first.metrics.items() if k not in timed} == {
        k: v for k, v in again.metrics.items() if k not in timed
    }


@pytest.mark.parametrize(
    "changes",
    [{"type": "rslora", "targets": ("self_attn.*",)}, {"type": "dora"}, FULL],
    ids=["rslora", "dora", "full"],
)
def test_saved_adapter_has_the_validation_loss_that_is_stated(
    model: BaseModel, prepared: Prepared, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """mlx-lm's model with the saved adapter has the loss `valid.loss` on the validation rows."""
    adapter = run(model, prepared, tmp_path / "out", rate=5e-3, **changes)
    tuned = load_adapters(load_model(model), str(adapter.directory))
    tuned.eval()
    rows = open_rows(prepared.directory, "valid")
    total, count = 0.0, 0
    for index in range(len(rows)):
        tokens, supervised = (mx.array(value) for value in rows[index])
        logits = tuned(tokens[None, :-1])[0]
        losses = mx.logsumexp(logits, axis=-1) - logits[mx.arange(len(tokens) - 1), tokens[1:]]
        total += (losses * supervised[1:]).sum().item()
        count += int(supervised[1:].sum())
    assert adapter.metrics["valid.loss"] == pytest.approx(total / count, rel=1e-5)
    assert adapter.metrics["valid.loss"] < adapter.metrics["valid.loss_before"]


def test_configuration_says_what_was_trained(
    model: BaseModel, prepared: Prepared, tmp_path: Path
) -> None:
    """The adapter's configuration holds the format's fields and our own; metrics count weights."""
    adapter = run(model, prepared, tmp_path / "out", targets=("q_proj",), num_layers=1)
    assert json.loads((adapter.directory / "adapter_config.json").read_text()) == {
        "alpha": 8.0, "fine_tune_type": "lora", "format": 1, "num_layers": 1, "type": "lora",
        "lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.1, "keys": ["self_attn.q_proj"]},
    }  # fmt: skip
    assert adapter.metrics["train.trainable_parameters"] == 2 * 32 * 4


@pytest.mark.parametrize("changes", [{}, FULL], ids=["lora", "full"])
def test_given_chat_template_goes_with_the_adapter(
    model: BaseModel, prepared: Prepared, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """The template lies beside the weights, its digest in their configuration, nothing else
    differs, and mlx-lm loads them as they are."""
    plain = run(model, prepared, tmp_path / "plain", **changes)
    template = b"{% for m in messages %}\xc3\xbc{{ m.content }}\r\n{% endfor %}"
    (prepared.directory / "chat_template.jinja").write_bytes(template)
    adapter = run(model, prepared, tmp_path / "out", **changes)
    files = {path.name: path.read_bytes() for path in adapter.directory.iterdir()}
    assert files.pop("chat_template.jinja") == template
    config = json.loads(files["adapter_config.json"])
    assert config.pop("chat_template_sha256") == sha256(template).hexdigest()
    assert config == json.loads((plain.directory / "adapter_config.json").read_text())
    weights = (plain.directory / "adapters.safetensors").read_bytes()
    assert files["adapters.safetensors"] == weights
    load_adapters(load_model(model), str(adapter.directory))


def test_rate_worked_out_is_the_rate_given(
    model: BaseModel, prepared: Prepared, tmp_path: Path
) -> None:
    """auto trains what the number trains that it stands for, and that number is in the metrics."""
    config = json.loads((model.directory / "config.json").read_text())
    assert (config["model_type"], config["hidden_size"]) == ("llama", 32)
    auto = run(model, prepared, tmp_path / "auto", rate="auto")
    rate = auto.metrics["train.peak_learning_rate"]
    assert rate == pytest.approx(5e-4 * (2000 / 256) ** 0.781)
    assert digest(auto) == digest(run(model, prepared, tmp_path / "given", rate=rate))


def test_full_trains_every_weight_at_a_tenth_of_the_rate(
    model: BaseModel, prepared: Prepared, tmp_path: Path
) -> None:
    """Every tensor of the base is saved and has moved, and the metrics count them all."""
    tuned = run(model, prepared, tmp_path / "out", rate="auto", **FULL)
    assert tuned.metrics["train.peak_learning_rate"] == pytest.approx(5e-5 * (2000 / 256) ** 0.781)
    before = mx.load(str(model.directory / "model.safetensors"))
    after = mx.load(str(tuned.directory / "adapters.safetensors"))
    assert after.keys() == before.keys()
    assert all(mx.any(value != before[name]) for name, value in after.items())
    assert tuned.metrics["train.trainable_parameters"] == sum(v.size for v in before.values())
    assert json.loads((tuned.directory / "adapter_config.json").read_text()) == {
        "fine_tune_type": "full", "format": 1, "type": "full"
    }  # fmt: skip


def test_all_weights_of_a_quantized_base_are_refused(
    model: BaseModel, prepared: Prepared, tmp_path: Path
) -> None:
    """Packed weights cannot be trained, even where they are computed with unpacked."""
    module, config = read_model(model.directory)
    module, config = quantize_model(module, config, 32, 4)
    packed = tmp_path / "packed"
    packed.mkdir()
    save_directory(packed, module, config, model.directory)
    with pytest.raises(SettingError, match=r"lora\.type: found 'full'.*lora=lora"):
        run(BaseModel(directory=packed, dtype="float32"), prepared, tmp_path / "out", **FULL)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_layers": 1, "cache": 1.0}, FULL],
    ids=["lora", "reused prefix", "full"],
)
def test_stopped_and_called_again_it_writes_the_same_files(
    model: BaseModel, prepared: Prepared, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Weights, configuration and the picture of the whole course are, byte for byte, those of a
    call that nobody stopped, in the first epoch and in the second."""
    whole = run(model, prepared, tmp_path / "whole", **changes)
    for step in (2, 7):
        again = {"checkpoints": tmp_path / f"checkpoints {step}", **changes}
        with pytest.raises(StopRequested):
            run(model, prepared, tmp_path / "cut", report=Silent(step), **again)
        resumed = run(model, prepared, tmp_path / f"resumed {step}", **again)
        assert digest(resumed) == digest(whole)


@pytest.mark.parametrize(
    ("first", "then", "tolerance"),
    [
        ({}, {}, 0.0),
        ({"rank_pattern": ("mlp.*:2",)}, {"rank_pattern": ("mlp.*:2",), "alpha": 24.0}, 1e-6),
        ({"type": "dora"}, {"type": "dora"}, 1e-6),
        (FULL, FULL, 0.0),
    ],
    ids=["lora", "other scales", "dora", "full"],
)
def test_training_starts_where_another_ended(
    model: BaseModel, prepared: Prepared, tmp_path: Path, first: dict[str, Any],
    then: dict[str, Any], tolerance: float,
) -> None:  # fmt: skip
    """The validation loss before the first step is that of the adapter that is started from, even
    where the scale is another; and training goes on from there."""
    earlier = run(model, prepared, tmp_path / "earlier", rate=5e-3, **first)
    later = run(model, prepared, tmp_path / "later", rate=1e-4, seed=1, start=earlier.directory,
                **then)  # fmt: skip
    expected = pytest.approx(earlier.metrics["valid.loss"], rel=tolerance)
    assert later.metrics["valid.loss_before"] == expected
    assert digest(later)[1] != digest(earlier)[1]


def test_every_mismatch_of_the_adapter_to_start_from_is_listed(
    model: BaseModel, prepared: Prepared, tmp_path: Path
) -> None:
    """Ranks, layers and kind that differ are named in one line, with the key and the mend."""
    earlier = run(model, prepared, tmp_path / "earlier", targets=("q_proj", "k_proj")).directory

    def refusal(**changes: Any) -> str:
        with pytest.raises(SettingError, match=r"^train\.init_adapter: .*leave .* out$") as caught:
            run(model, prepared, tmp_path / "out", start=earlier, **changes)
        return str(caught.value)

    found = refusal(targets=("q_proj", "o_proj"), rank=6)
    assert "rank 4 there and 6 here: model.layers.0.self_attn.q_proj, model.layers.1.self" in found
    for layer in (0, 1):
        assert f"model.layers.{layer}.self_attn.o_proj.lora_a" in found.split("not trained")[0]
        assert f"model.layers.{layer}.self_attn.k_proj.lora_b" in found.split("not trained")[1]
    assert "it is of type lora, and what is trained here dora" in refusal(type="dora")
    assert "what is trained here full" in refusal(**FULL)
    weights = mx.load(str(earlier / "adapters.safetensors"))
    name = "model.layers.0.self_attn.q_proj.lora_a"
    mx.save_safetensors(str(earlier / "adapters.safetensors"), weights | {name: mx.zeros((9, 4))})
    assert f"{name} (9, 4) there and (32, 4) here" in refusal(targets=("q_proj", "k_proj"))


def test_unknown_target_is_refused(model: BaseModel, prepared: Prepared, tmp_path: Path) -> None:
    """The error names lora.targets, and nothing is written."""
    with pytest.raises(SettingError, match=r"lora\.targets: 'qproj'"):
        run(model, prepared, tmp_path / "out", targets=("qproj",))
    assert not (tmp_path / "out").exists()


def test_rows_without_a_target_are_refused(model: BaseModel, tmp_path: Path) -> None:
    """Rows of which no token is supervised are no training data."""
    row = (np.arange(5, dtype=np.int32), np.zeros(5, np.uint8))
    for split in ("train", "valid"):
        write_rows(tmp_path / f"{split}.safetensors", [row])
    with pytest.raises(InputError, match=r"train\.safetensors: no token of any row"):
        run(model, Prepared(directory=tmp_path), tmp_path / "out")
