"""Weights drawn anew: the same for one seed, of the spread they should have, opened elsewhere."""

import json
import math

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from safetensors.numpy import load_file

from stages.errors import InputError
from stages.models.fresh import draw_model as drawn
from stages.models.validate import validate

# One with biases and learnt positions, one with experts, one with a convolution.
OTHERS = {
    "gpt2": {"model_type": "gpt2", "n_ctx": 64, "n_embd": 32, "n_head": 4, "n_layer": 3,
             "n_positions": 64, "layer_norm_epsilon": 1e-5, "vocab_size": 512},
    "mixtral": {"model_type": "mixtral", "vocab_size": 512, "hidden_size": 64,
                "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_experts_per_tok": 2, "num_key_value_heads": 2, "num_local_experts": 4,
                "rms_norm_eps": 1e-5, "rope_theta": 1e4},
    "mamba": {"model_type": "mamba", "vocab_size": 512, "hidden_size": 32,
              "intermediate_size": 64, "state_size": 8, "num_hidden_layers": 2, "conv_kernel": 4,
              "use_bias": True, "use_conv_bias": True, "time_step_rank": 8},
}  # fmt: skip


def tensors(directory):
    return load_file(directory / "model.safetensors")


def test_a_seed_decides_every_byte(draw_model, drawn_directory, tmp_path):
    """Drawn again it is the same file, and its neighbours are the source's; another seed shares
    no matrix with it."""
    again = draw_model(tmp_path / "again")
    names = {file.name for file in drawn_directory.iterdir()}
    assert names == {file.name for file in again.iterdir()}
    for name in names:
        assert (again / name).read_bytes() == (drawn_directory / name).read_bytes(), name
    one, other = tensors(drawn_directory), tensors(draw_model(tmp_path / "other", seed=1))
    for name, value in one.items():
        assert value.dtype == np.float32
        if value.ndim == 2:
            assert not np.isclose(value, other[name]).mean() > 0.01, name


def test_depth_changes_no_other_weight_than_what_the_stream_takes(draw_model, tmp_path):
    """A weight is drawn by its place among the names: the first names keep theirs."""
    shallow, deep = (tensors(draw_model(tmp_path / str(n), num_hidden_layers=n)) for n in (2, 3))
    for name in ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"):
        np.testing.assert_array_equal(shallow[name], deep[name])
    name = "model.layers.0.self_attn.o_proj.weight"
    np.testing.assert_allclose(shallow[name] * math.sqrt(4), deep[name] * math.sqrt(6), rtol=1e-6)


def test_spreads_are_those_of_the_closed_form(drawn_directory):
    """Normal with 1/sqrt(inputs), what is added to the stream less by sqrt(2 * layers); norms 1."""
    for name, value in tensors(drawn_directory).items():
        if value.ndim == 1:
            np.testing.assert_array_equal(value, 1)
            continue
        added = name.endswith(("o_proj.weight", "down_proj.weight"))
        spread = value.shape[1] ** -0.5 / (math.sqrt(8) if added else 1)
        size = value.size
        assert value.mean() == pytest.approx(0, abs=5 * spread / math.sqrt(size)), name
        assert value.std() == pytest.approx(spread, rel=5 / math.sqrt(2 * size)), name
        # The fourth moment of a normal variable is 3.
        assert ((value / spread) ** 4).mean() == pytest.approx(3, rel=0.1), name


def test_it_knows_nothing_and_opens_everywhere(drawn_directory):
    """mlx-lm and transformers agree to 1e-4, and on random tokens the loss is near ln(vocabulary),
    by less than 1 above it."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = np.random.default_rng(5).integers(3, 6144, (4, 96))
    module, tokenizer = mlx_lm.load(str(drawn_directory))
    reference = AutoModelForCausalLM.from_pretrained(drawn_directory)
    assert reference.dtype == torch.float32
    with torch.no_grad():
        expected = reference(torch.tensor(ids)).logits
    np.testing.assert_allclose(np.array(module(mx.array(ids))), expected.numpy(), atol=1e-4)
    predicted, following = expected[:, :-1].flatten(0, 1), torch.tensor(ids[:, 1:]).flatten()
    loss = float(torch.nn.functional.cross_entropy(predicted, following))
    assert math.log(6144) < loss < math.log(6144) + 1
    assert tokenizer.has_chat_template


def test_config_says_float32_and_no_quantization(draw_model, tmp_path):
    """What the source's config says of its own weights does not come along."""
    bits = {"group_size": 64, "bits": 4}
    directory = draw_model(
        tmp_path / "out", num_hidden_layers=1, torch_dtype="bfloat16", quantization=bits,
        quantization_config=bits,
    )  # fmt: skip
    config = validate(directory)
    assert (config["dtype"], config["torch_dtype"]) == ("float32", "float32")
    assert not {"quantization", "quantization_config"} & config.keys()
    assert {value.dtype for value in tensors(directory).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_are_drawn_too(family, drawn_directory, tmp_path):
    """Biases are 0, experts and convolutions have the spread of their inputs; logits differ."""
    (tmp_path / "config.json").write_text(json.dumps(OTHERS[family]))
    (tmp_path / "tokenizer.json").write_bytes((drawn_directory / "tokenizer.json").read_bytes())
    module, config = drawn(tmp_path, 3)
    assert config["dtype"] == "float32"
    logits = module(mx.array([[5, 9, 17]]))
    assert 0.1 < float(logits.std()) < 10
    parts = dict(module.named_modules())
    if family == "gpt2":
        part = parts["model.h.1.mlp.c_fc"]
        assert not part.bias.any()
        added = float(parts["model.h.1.mlp.c_proj"].weight.std())
        assert added == pytest.approx(128**-0.5 / math.sqrt(6), rel=0.1)
    elif family == "mixtral":
        experts = parts["model.layers.0.block_sparse_moe.switch_mlp.down_proj"].weight
        assert experts.shape == (4, 64, 96)
        assert float(experts.std()) == pytest.approx(96**-0.5 / 2, rel=0.1)
    else:
        convolution = parts["backbone.layers.0.mixer.conv1d"]
        assert float(convolution.weight.std()) == pytest.approx(4**-0.5, rel=0.25)
        assert not convolution.bias.any()


def test_what_describes_no_model_is_refused(copy):
    """Weights may be missing, config and tokenizer may not."""
    (copy / "model.safetensors").unlink()
    drawn(copy, 0)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": "four"}))
    with pytest.raises(InputError, match="its config describes no model"):
        drawn(copy, 0)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="no tokenizer in it"):
        drawn(copy, 0)
