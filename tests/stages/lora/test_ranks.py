"""Layers of different ranks: settings, K adapters in one bank, files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import peft
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.utils import load_adapters
from transformers import LlamaConfig, LlamaForCausalLM

from stages.errors import InputError, SettingError
from stages.lora.bank import Bank, Parameters, attach, initial, shape_of
from stages.lora.files import load_adapter, save_adapter
from stages.lora.layers import AdapterShape, RankPattern
from stages.lora.targets import find_targets
from stages.settings import Lora, from_values

LLAMA = Callable[..., Any]
TOKENS = mx.array(np.random.default_rng(0).integers(1, 64, (6, 9)))
UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"


def lora(**changes: Any) -> Lora:
    values = {
        "stage": "stages.train.train", "type": "lora", "rank": 4, "alpha": 8.0, "dropout": 0.0,
        "targets": ("*",), "num_layers": None, "rank_pattern": ("mlp.*:2", "layers.1.*.q_proj:6"),
    }  # fmt: skip
    return Lora(**(values | changes))


def drawn(bank: Bank, shape: AdapterShape, seed: int) -> Parameters:
    """Return an adapter of `shape` whose update is far from zero."""
    rng = np.random.default_rng(seed)
    return {path: {name: value + mx.array(rng.normal(0, 0.2, value.shape), mx.float32)
                   for name, value in weights.items()}
            for path, weights in initial(bank.layers, shape, seed).items()}  # fmt: skip


def test_each_layer_has_the_rank_and_the_scale_of_its_pattern(tiny_llama: LLAMA) -> None:
    """A scale is alpha over the layer's own rank, for rslora over its root."""
    shape, other = shape_of(lora()), shape_of(lora(type="rslora"))
    found = {path: (shape.at(path).rank, shape.at(path).scale, other.at(path).scale)
             for path in (UP, *(f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)))}  # fmt: skip
    assert list(found.values()) == [
        (2, 4.0, 8 / 2**0.5), (4, 2.0, 4.0), (6, 8 / 6, 8 / 6**0.5)
    ]  # fmt: skip
    model = tiny_llama()
    bank = attach(model, find_targets(model, ["*"], None), [shape])
    ranks = {path: layer.lora_a.shape[-1] for path, layer in bank.layers.items()}
    assert ranks == {path: shape.at(path).rank for path in bank.layers}


# PEFT asks transformers by the old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_ranks_and_scales_are_those_of_peft(tiny_llama: LLAMA) -> None:
    """PEFT given the same rank_pattern builds matrices of the same ranks, scaled the same."""
    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    names = ["q_proj", "up_proj", "down_proj"]
    ranks = {"up_proj": 2, "layers.1.self_attn.q_proj": 6}
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=names, rank_pattern=ranks)
    twin = peft.get_peft_model(LlamaForCausalLM(LlamaConfig(**sizes)), config)
    wanted = {
        path.removeprefix("base_model.model."): (layer.r["default"], layer.scaling["default"])
        for path, layer in twin.named_modules() if isinstance(layer, peft.tuners.lora.Linear)
    }  # fmt: skip
    model = tiny_llama()
    shape = shape_of(lora(rank_pattern=("layers.1.self_attn.q_proj:6", "up_proj:2")))
    bank = attach(model, find_targets(model, names, None), [shape])
    assert {path: (layer.ranks[0], layer.scale[0]) for path, layer in bank.layers.items()} == wanted


@pytest.mark.parametrize("tagged", [False, True])
def test_adapters_of_mixed_ranks_are_those_trained_alone(tiny_llama: LLAMA, tagged: bool) -> None:
    """Three adapters with patterns of their own on one base have the losses and gradients that
    each has alone, and zeros beyond their ranks; rows grouped, or tagged in any order."""
    settings = [lora(), lora(rank_pattern=("v_proj:3",)), lora(rank=1, rank_pattern=None)]
    shapes = [shape_of(each) for each in settings]
    order = [2, 0, 1, 1, 0, 2] if tagged else [0, 0, 1, 1, 2, 2]
    model = tiny_llama()
    targets = find_targets(model, ["*"], None)
    bank = attach(model, targets, shapes)
    adapters = [drawn(bank, shape, seed) for seed, shape in enumerate(shapes)]
    routed = mx.array(order) if tagged else None

    def row_losses(
        bank: Bank, parameters: Parameters, tokens: mx.array, **routing: Any
    ) -> mx.array:
        with bank.using(parameters, **routing):
            logits = bank.model(tokens[:, :-1])
        picked = mx.take_along_axis(logits, tokens[:, 1:, None], axis=-1)
        return (mx.logsumexp(logits, axis=-1) - picked[..., 0]).sum(axis=1)

    def total(parameters: Parameters) -> mx.array:
        return row_losses(bank, parameters, TOKENS, adapter=routed).sum()

    losses = np.array(row_losses(bank, bank.join(adapters), TOKENS, adapter=routed))
    stacked = mx.grad(total)(bank.join(adapters))
    gradients = bank.split(stacked)
    again = bank.join(gradients)
    for path, weights in stacked.items():
        for name, value in weights.items():
            assert mx.array_equal(again[path][name], value), (path, name)
    bank.detach()
    for k, shape in enumerate(shapes):
        rows = mx.array([row for row, own in enumerate(order) if own == k])
        alone = attach(model, targets, [shape])

        def one(parameters: Parameters, alone: Bank = alone, rows: mx.array = rows) -> mx.array:
            return row_losses(alone, parameters, TOKENS[rows]).sum()

        own = alone.join([adapters[k]])
        expected = np.array(row_losses(alone, own, TOKENS[rows]))
        np.testing.assert_allclose(losses[np.array(rows)], expected, rtol=1e-5)
        [wanted] = alone.split(mx.grad(one)(own))
        alone.detach()
        size = max(float(mx.abs(v).max()) for weights in wanted.values() for v in weights.values())
        for path, weights in wanted.items():
            for name, value in weights.items():
                assert gradients[k][path][name].shape == value.shape
                np.testing.assert_allclose(
                    np.array(gradients[k][path][name]), np.array(value), rtol=1e-5, atol=1e-5 * size
                )


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_saved_ranks_load_here_and_in_mlx_lm(tiny_llama: LLAMA, tmp_path: Path, kind: Any) -> None:
    """mlx-lm, which knows one rank and one scale, computes the same from the file; we get the
    adapter back with its own ranks, to a rounding where a scale is no power of two of another."""
    model = tiny_llama()
    shape = shape_of(lora(type=kind))
    bank = attach(model, find_targets(model, ["*"], None), [shape])
    adapter = drawn(bank, shape, 3)
    bank.update(bank.join([adapter]))
    expected = np.array(model(TOKENS))
    save_adapter(tmp_path, adapter, shape, bank.targets, {"alpha": 8.0})
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["lora_parameters"]["rank"] == 6
    theirs = load_adapters(tiny_llama(), str(tmp_path))
    theirs.eval()
    np.testing.assert_allclose(np.array(theirs(TOKENS)), expected, rtol=1e-4, atol=1e-5)
    loaded = load_adapter(tiny_llama(), tmp_path)
    assert isinstance(loaded, Bank)
    assert loaded.shapes == (shape,)
    [found] = loaded.split(loaded.parameters())
    for path, weights in adapter.items():
        for name, value in weights.items():
            np.testing.assert_allclose(np.array(found[path][name]), np.array(value), rtol=3e-7)
    for path in (UP, DOWN):
        assert found[path]["lora_a"].shape[1] == 2
    if kind == "lora":
        assert mx.array_equal(found[UP]["lora_b"], adapter[UP]["lora_b"])


def test_ranks_that_are_not_ours_are_refused(tiny_llama: LLAMA, tmp_path: Path) -> None:
    """A damaged record of ranks is named with its file."""
    model = tiny_llama()
    shape = shape_of(lora())
    bank = attach(model, find_targets(model, ["*"], None), [shape])
    save_adapter(tmp_path, drawn(bank, shape, 0), shape, bank.targets, {})
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ranks": {"rank": 4}}))
    with pytest.raises(InputError, match=r"adapter_config\.json: ranks is not what we write"):
        load_adapter(tiny_llama(), tmp_path)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("k_proj:4", "mlp.up:3"), "'mlp.up' matches no adapted layer; lora.targets takes"),
        (("self_attn.*:4", "q_proj:3"),
         r"'q_proj' and 'self_attn\.\*' give model\.layers\.0\.self_attn\.q_proj different ranks"),
    ],
)  # fmt: skip
def test_patterns_that_match_nothing_or_disagree_are_refused(
    tiny_llama: LLAMA, patterns: tuple[str, ...], message: str
) -> None:
    """A pattern without a layer and two for one layer are mistakes, not preferences."""
    model = tiny_llama()
    with pytest.raises(SettingError, match=f"lora.rank_pattern: {message}"):
        attach(model, find_targets(model, ["*"], None), [shape_of(lora(rank_pattern=patterns))])


def test_order_of_patterns_does_not_matter() -> None:
    """The same patterns in another order ask for the same adapter, even two that agree."""
    patterns = ("q_proj:3", "self_attn.*:3", "mlp.*:5")
    assert shape_of(lora(rank_pattern=patterns)) == shape_of(lora(rank_pattern=patterns[::-1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank_pattern": ()}, r"lora\.rank_pattern: found \(\), expected at least one"),
        ({"rank_pattern": ("q_proj",)}, "found 'q_proj', expected a pattern and its rank"),
        ({"rank_pattern": ("q_proj:0",)}, "found 'q_proj:0', expected"),
        ({"rank_pattern": ("q_proj:1.5",)}, "found 'q_proj:1.5', expected"),
        ({"rank_pattern": (":4",)}, "found ':4', expected"),
        ({"rank_pattern": ("a:4", "a:8")}, "expected each pattern once"),
        ({"b_learning_rate_ratio": 0.0}, r"lora\.b_learning_rate_ratio: found 0\.0, expected"),
        ({"b_learning_rate_ratio": float("inf")}, "found inf, expected a number above 0"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    """Every value that cannot be meant is named with its key."""
    with pytest.raises(SettingError, match=message):
        lora(**changes)


@pytest.mark.parametrize(
    "changes", [{"rank_pattern": ("q_proj:4",)}, {"b_learning_rate_ratio": 16.0}]
)
def test_all_weights_use_neither_key(changes: dict[str, Any]) -> None:
    """lora.type=full has no layer with a rank and no lora_b."""
    none = dict.fromkeys(("rank", "alpha", "dropout", "targets", "rank_pattern"))
    with pytest.raises(SettingError, match=f"{next(iter(changes))}.*does not use it"):
        lora(**(none | {"type": "full"} | changes))


NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)


@given(st.dictionaries(NAMES, st.integers(1, 512), min_size=1, max_size=5))
def test_ranks_survive_the_way_through_json(ranks: dict[str, int]) -> None:
    """Whatever a pattern is made of, colons too, its rank is read back from the plain values."""
    settings = lora(rank_pattern=tuple(f"{pattern}:{rank}" for pattern, rank in ranks.items()))
    values = {name: getattr(settings, name) for name in Lora.__dataclass_fields__}
    assert from_values("lora", json.loads(json.dumps(values))).ranks() == ranks


def test_matrix_of_another_rank_is_no_part_of_the_adapter(tiny_llama: LLAMA) -> None:
    """What was drawn with one rank for all layers does not fit layers of their own ranks."""
    model = tiny_llama()
    bank = attach(model, find_targets(model, ["*"], None), [shape_of(lora())])
    with pytest.raises(ValueError, match=r"mlp\.down_proj\.lora_a has rank 4, its adapter 2"):
        bank.join([initial(bank.layers, 4, seed=0)])


def test_shape_without_patterns_is_its_own_at_every_layer() -> None:
    """Most adapters have one rank: nothing is made anew for a layer."""
    shape = AdapterShape(4, 2.0, 0.1)
    assert shape.at(UP) is shape
    assert AdapterShape(4, 2.0, 0.1, patterns=(RankPattern("q_proj", 2, 1.0),)).at(UP) == shape
