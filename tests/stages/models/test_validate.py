"""Every way in which a directory is no usable model, found without importing MLX or its code."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from stages.errors import EnvironmentFailure, InputError
from stages.models import validate as validate_module
from stages.models.validate import validate


def rewrite(file: Path, text: str) -> None:
    file.unlink(missing_ok=True)
    file.write_text(text)


def reconfigure(directory: Path, **values: object) -> None:
    config = json.loads((directory / "config.json").read_text()) | values
    config = {key: value for key, value in config.items() if value is not None}
    rewrite(directory / "config.json", json.dumps(config))


def shard(directory: Path) -> Path:
    """Split the weights into two files with an index, as large models come."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {}
    for part, chosen in enumerate((names[:5], names[5:]), start=1):
        file = f"model-0000{part}-of-00002.safetensors"
        save_file({name: tensors[name] for name in chosen}, directory / file)
        places |= dict.fromkeys(chosen, file)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def test_good_directories_pass(copy):
    """One weight file, and the same in shards, are models; the config is returned."""
    assert validate(copy)["hidden_size"] == 256
    shard(copy)
    assert validate(copy)["model_type"] == "llama"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": None}, "no model_type"),
        ({"model_type": 7}, "no model_type"),
        ({"model_type": "bert"}, "no model type 'bert'"),
        ({"model_type": "cache"}, "no model type 'cache'"),
        ({"model_type": "../../../evil"}, "no model type"),
        ({"model_type": "x" * 5000}, "no model type"),
        ({"model_type": "own", "auto_map": {"AutoModel": "own.Own"}}, "Python code, which is nev"),
        ({"model_file": "own.py"}, "own Python code"),
    ],
)
def test_configs_that_cannot_be_opened(copy, values, words):
    """A type that mlx-lm does not define, or code that the model brings, is refused by name."""
    reconfigure(copy, **values)
    with pytest.raises(InputError, match=words) as caught:
        validate(copy)
    assert caught.value.where == str(copy / "config.json")


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "mistral"},
        {"model_type": "qwen2_5_vl"},
        {"model_type": "solar_open"},
        {"model_type": "bailing_hybrid", "architectures": ["BailingMoeV3ForCausalLM"]},
        {"architectures": [{"odd": 1}, None]},
        {"auto_map": {"AutoConfig": "configuration.Own"}},
    ],
)
def test_renamed_types_and_harmless_maps_pass(copy, values):
    """mlx-lm's renamings count, and code that its own model makes needless is ignored."""
    reconfigure(copy, **values)
    validate(copy)


def test_the_renamings_are_those_of_mlx_lm():
    """What is read from the source equals what mlx-lm has at run time."""
    from mlx_lm import utils

    assert validate_module._remappings() == {
        "MODEL_REMAPPING": utils.MODEL_REMAPPING,
        "MODEL_ARCHITECTURE_REMAPPING": utils.MODEL_ARCHITECTURE_REMAPPING,
    }


@pytest.mark.parametrize(
    ("text", "words"), [(None, "does not exist"), ("{", "read as JSON"), ("[]", "no JSON object")]
)
def test_config_files_that_are_none(copy, text, words):
    """A missing or damaged config.json is named."""
    (copy / "config.json").unlink()
    if text is not None:
        (copy / "config.json").write_text(text)
    with pytest.raises(InputError, match=words):
        validate(copy)


@pytest.mark.parametrize("found", ["nothing", "a file"])
def test_places_that_are_no_directory(tmp_path, found):
    """The key is named, since the path came from it."""
    place = tmp_path / "model"
    if found == "a file":
        place.write_text("")
    with pytest.raises(InputError) as caught:
        validate(place)
    assert caught.value.where == "model.path"


@pytest.mark.parametrize(
    ("present", "words"),
    [
        ((), "no weights in it"),
        (("pytorch_model.bin",), "only pytorch_model.bin; pickled weights are never read"),
        (("model.pt", "weights.npz"), "pickled weights are never read"),
        (("consolidated.safetensors",), "only consolidated.safetensors"),
    ],
)
def test_weights_that_are_not_safetensors_are_refused_unread(copy, present, words):
    """Pickles and other files in place of model*.safetensors are refused, never read."""
    (copy / "model.safetensors").unlink()
    for name in present:
        (copy / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(InputError, match=words):
        validate(copy)


def test_a_truncated_weight_file_is_named(copy):
    """A download cut short is found by the header, before anything is mapped."""
    file = copy / "model.safetensors"
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="damaged") as caught:
        validate(copy)
    assert caught.value.where == str(file)


def test_shards_must_be_all_there(copy):
    """A shard or tensor that the index promises and the directory lacks is named."""
    index = shard(copy)
    missing = copy / "model-00002-of-00002.safetensors"
    kept = missing.read_bytes()
    missing.unlink()
    with pytest.raises(InputError, match=r"model-00002-of-00002\.safetensors is missing"):
        validate(copy)
    missing.write_bytes(kept)
    save_file({"model.norm.weight": np.ones(256, np.float32)}, missing)
    with pytest.raises(InputError, match=r"lacks model\.layers"):
        validate(copy)
    index.write_text("{}")
    with pytest.raises(InputError, match="has no weight_map"):
        validate(copy)


def test_without_mlx_lm_the_package_is_named(copy, monkeypatch):
    """An environment error says what to install."""
    monkeypatch.setattr(validate_module, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFailure, match="pip install") as caught:
        validate(copy)
    assert "mlx-lm" in caught.value.mend


def test_neither_mlx_nor_the_model_is_imported(copy):
    """Validation runs where MLX cannot."""
    code = (
        "import sys; from pathlib import Path; from stages.models.validate import validate\n"
        "validate(Path(sys.argv[1]))\n"
        "print([name for name in ('mlx', 'mlx_lm', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(copy)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
