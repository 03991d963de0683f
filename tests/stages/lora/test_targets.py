from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.models import deepseek_v2, mamba, qwen3_moe

from stages.errors import SettingError
from stages.lora.targets import find_targets, left_out

LLAMA = Callable[..., Any]
ATTENTION = [f"self_attn.{name}" for name in ("k_proj", "o_proj", "q_proj", "v_proj")]
MLP = [f"mlp.{name}" for name in ("down_proj", "gate_proj", "up_proj")]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["*"], MLP + ATTENTION),
        (["self_attn.*"], ATTENTION),
        (["q_proj", "v_proj"], ["self_attn.q_proj", "self_attn.v_proj"]),
        (["*_proj"], MLP + ATTENTION),
        (["mlp.*", "self_attn.o_proj"], [*MLP, "self_attn.o_proj"]),
    ],
)
def test_patterns_match_the_end_of_a_path(
    tiny_llama: LLAMA, patterns: list[str], expected: list[str]
) -> None:
    """A pattern takes the layers whose path in the block ends in it; norms are never among them."""
    targets = find_targets(tiny_llama(), patterns, None)
    assert list(targets.keys) == expected
    assert set(targets.paths) == {f"model.layers.{i}.{key}" for i in (0, 1) for key in expected}
    assert targets.num_layers == 2


def test_num_layers_counts_from_the_last(tiny_llama: LLAMA) -> None:
    """num_layers=2 of 3 adapts the second and the third block."""
    targets = find_targets(tiny_llama(num_hidden_layers=3), ["q_proj"], 2)
    assert targets.paths == ("model.layers.1.self_attn.q_proj", "model.layers.2.self_attn.q_proj")


def test_part_of_a_name_is_no_match(tiny_llama: LLAMA) -> None:
    """`proj` is not the end of a path's own part, so it matches nothing."""
    with pytest.raises(SettingError, match="'proj' matches no linear layer"):
        find_targets(tiny_llama(), ["q_proj", "proj"], None)


def test_misspelt_target_is_answered_with_the_nearest(tiny_llama: LLAMA) -> None:
    """The message names the key, what was found and the nearest layer."""
    with pytest.raises(SettingError) as caught:
        find_targets(tiny_llama(), ["qproj"], None)
    assert str(caught.value) == (
        "lora.targets: 'qproj' matches no linear layer of the model; did you mean 'q_proj'?"
    )


def test_unknown_target_is_answered_with_all_layers(tiny_llama: LLAMA) -> None:
    """With nothing near, the message lists what the model has."""
    with pytest.raises(SettingError, match=r"the model has .*mlp\.down_proj, .*self_attn\.v_proj"):
        find_targets(tiny_llama(), ["expert_7"], None)


def test_more_blocks_than_there_are_is_refused(tiny_llama: LLAMA) -> None:
    """num_layers beyond the model's own is a mistake, not all."""
    with pytest.raises(SettingError, match=r"lora\.num_layers: found 3, but the model has 2"):
        find_targets(tiny_llama(), ["*"], 3)


def mixture() -> Any:
    return qwen3_moe.Model(
        qwen3_moe.ModelArgs(
            model_type="qwen3_moe", hidden_size=32, num_hidden_layers=2, intermediate_size=32,
            num_attention_heads=4, num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1,
            mlp_only_layers=[], moe_intermediate_size=32, rms_norm_eps=1e-5, vocab_size=64,
            num_key_value_heads=2, head_dim=8, rope_theta=1e4, tie_word_embeddings=True,
            max_position_embeddings=64, norm_topk_prob=True,
        )
    )  # fmt: skip


EXPERTS = [f"mlp.switch_mlp.{name}" for name in ("down_proj", "gate_proj", "up_proj")]


@pytest.mark.parametrize("pattern", ["*", "mlp.*", "*_mlp.*_proj", "layers.*"])
def test_experts_are_named_not_skipped(pattern: str) -> None:
    """A wildcard leaves experts out and names them; what it takes otherwise leaves out nothing."""
    model = mixture()
    assert left_out(model, [pattern], None) == tuple(f"{key} (SwitchLinear)" for key in EXPERTS)
    assert left_out(model, ["self_attn.*"], None) == ()
    assert left_out(model, [pattern, "switch_mlp.*"], None) == ()
    if pattern != "*_mlp.*_proj":
        assert "mlp.gate" in find_targets(model, [pattern], None).keys


def test_pattern_that_only_leaves_out_is_refused() -> None:
    """A pattern that takes nothing, since it spells nothing out, says what it would take."""
    with pytest.raises(SettingError, match=r"does not spell out mlp\.switch_mlp\.down_proj"):
        find_targets(mixture(), ["*_mlp.*_proj"], None)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("switch_mlp.*", EXPERTS),
        ("switch_mlp.up_proj", EXPERTS[2:]),
        ("up_proj", EXPERTS[2:]),
        ("embed_tokens", ["model.embed_tokens"]),
        ("model.embed_tokens", ["model.embed_tokens"]),
    ],
)
def test_experts_and_embeddings_are_taken_where_they_are_spelt(
    pattern: str, expected: list[str]
) -> None:
    """Their own name asks for them, and of experts that of what holds them."""
    assert list(find_targets(mixture(), [pattern], None).keys) == expected


@pytest.mark.parametrize("pattern", ["*embed*", "model.*tokens", "lm_*"])
def test_wildcards_take_nothing_outside_the_blocks(tiny_llama: LLAMA, pattern: str) -> None:
    """Embedding and head are never adapted by chance: the message names them."""
    with pytest.raises(SettingError, match=r"does not spell out (model\.embed_tokens|lm_head)"):
        find_targets(tiny_llama(), [pattern], None)


def test_head_is_taken_where_it_is_spelt(tiny_llama: LLAMA) -> None:
    """`lm_head` is a key of its own beside the blocks' keys, whatever num_layers is."""
    targets = find_targets(tiny_llama(), ["q_proj", "lm_head"], 1)
    assert targets.keys == ("lm_head", "self_attn.q_proj")
    assert targets.paths == ("lm_head", "model.layers.1.self_attn.q_proj")


def test_single_layers_of_single_blocks(tiny_llama: LLAMA) -> None:
    """A pattern with a block's number takes it alone; the key is then the whole path."""
    targets = find_targets(tiny_llama(num_hidden_layers=3), ["layers.[02].self_attn.q_proj"], None)
    paths = ("model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.q_proj")
    assert (targets.keys, targets.paths) == (paths, paths)
    mixed = find_targets(tiny_llama(), ["k_proj", "layers.1.mlp.up_proj"], None)
    assert mixed.keys == ("model.layers.1.mlp.up_proj", "self_attn.k_proj")


def test_layer_that_no_adapter_fits_is_refused_where_it_is_spelt() -> None:
    """A router of its own class is left out by `*` and refused by its name."""
    config = json.loads((Path(__file__).parent / "architectures.json").read_text())["deepseek_v2"]
    model = deepseek_v2.Model(deepseek_v2.ModelArgs.from_dict(config))
    assert "mlp.gate (MoEGate)" in left_out(model, ["*"], None)
    with pytest.raises(SettingError, match=r"cannot adapt mlp\.gate \(MoEGate\)"):
        find_targets(model, ["mlp.gate"], None)


def test_convolutions_are_no_linear_layers() -> None:
    """`*` on a state-space model takes its projections and leaves its convolution alone."""
    model = mamba.Model(
        mamba.ModelArgs(
            model_type="mamba", vocab_size=64, hidden_size=32, intermediate_size=64, state_size=4,
            num_hidden_layers=2, conv_kernel=4, use_bias=False, use_conv_bias=True,
            time_step_rank=4,
        )
    )  # fmt: skip
    names = ("dt_proj", "in_proj", "out_proj", "x_proj")
    assert find_targets(model, ["*"], None).keys == tuple(f"mixer.{name}" for name in names)
