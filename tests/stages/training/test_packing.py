"""Packed rows train as padded ones; models in which rows would mix are not given any."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_unflatten

from stages.data.rows import Rows, write_rows
from stages.lora.bank import Bank, attach, initial
from stages.lora.full import all_weights
from stages.lora.layers import AdapterShape
from stages.lora.targets import find_targets
from stages.settings import Optimizer, Train
from stages.training.batches import (
    Layout,
    collate,
    dropout_keys,
    pack,
    share,
    training_steps,
    validation_batches,
)
from stages.training.cpu_functions import cpu_functions, packed
from stages.training.loop import State, fit, take_step
from stages.training.loss import batch_arrays
from stages.training.packing import can_pack
from stages.training.step import (
    compile_gradients,
    compile_losses,
    compile_update,
    initial_states,
    tuned_cut,
)

CONFIGS = json.loads((Path(__file__).parents[1] / "lora" / "architectures.json").read_text())
MIXING = {
    "gemma2": "it computes attention by itself",
    "gpt2": "positions are absolute",
    "gpt_neox": "its head is within its blocks",
    "granitemoehybrid": "state spaces and convolutions",
    "lfm2": "convolutions",
    "mamba2": "state spaces and convolutions",
}
"""What keeps a family from being packed."""
MakeRows = Callable[..., Rows]


@pytest.fixture(autouse=True)
def _plain() -> Iterator[None]:
    # MLX would run g++ for every activation of every model.
    mx.disable_compile()
    yield
    mx.enable_compile()


def make(config: dict[str, Any]) -> Any:
    mx.random.seed(0)
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(config))
    rng = np.random.default_rng(7)
    model.update(tree_unflatten(
        [(name, mx.array(rng.normal(0, 0.2, value.shape), value.dtype)
          if name.endswith("weight") and value.ndim == 2 else value)
         for name, value in sorted(tree_flatten(model.parameters()))]
    ))  # fmt: skip
    model.freeze()
    return model


def adapted(model: Any, *shapes: AdapterShape) -> Bank:
    bank = attach(model, find_targets(model, ("*",), None), shapes)
    adapters = [initial(bank.layers, shape, seed) for seed, shape in enumerate(shapes)]
    rng = np.random.default_rng(1)
    for adapter in adapters:
        for weights in adapter.values():
            weights["lora_b"] = mx.array(rng.normal(0, 0.1, weights["lora_b"].shape), mx.float32)
    bank.update(bank.join(adapters))
    return bank


SHAPE = AdapterShape(4, 2.0)


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_which_families_are_packed(family: str) -> None:
    """Only those in which attention alone mixes tokens, by how far apart they are."""
    tuning = all_weights(make(CONFIGS[family]))
    with cpu_functions(tuning.model):
        assert can_pack(tuning, tuned_cut(tuning), (6, 11, 17)) == (family not in MIXING)


def test_several_adapters_are_not_packed() -> None:
    """Whose a row is stands in its place in the batch."""
    bank = adapted(make(CONFIGS["llama"]), SHAPE, AdapterShape(3, 1.0))
    assert not can_pack(bank, tuned_cut(bank), (6, 11, 17))


def test_row_that_lies_across_a_bound_is_seen() -> None:
    """Attention within chunks of 16 positions gives a row of 12 something else after 10 tokens,
    though it would not after 16."""
    model = make(CONFIGS["llama"])
    attention = mx.fast.scaled_dot_product_attention

    class Chunked(type(model.model.layers[0].self_attn)):  # type: ignore[misc]
        def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
            chunk = mx.arange(x.shape[1]) // 16
            near = (chunk[:, None] == chunk) & mx.tri(x.shape[1], dtype=mx.bool_)
            made: mx.array = super().__call__(x, near, cache)
            return made

    for layer in model.model.layers:
        layer.self_attn.__class__ = Chunked
    tuning = all_weights(model)
    with cpu_functions(model):
        cut = tuned_cut(tuning)
        assert not can_pack(tuning, cut, (10, 12))
        assert can_pack(tuning, cut, (16, 12))
    assert mx.fast.scaled_dot_product_attention is attention


SLIDING = CONFIGS["llama"] | {
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"],
}


@pytest.mark.parametrize(
    ("config", "dropout"),
    [
        (CONFIGS["llama"], 0.0),
        (CONFIGS["llama"], 0.3),
        (CONFIGS["qwen3_moe"], 0.0),
        (CONFIGS["gpt_oss"], 0.0),
        (SLIDING, 0.0),
        (SLIDING, 0.3),
    ],
    ids=["llama", "llama-dropout", "experts", "sinks", "sliding", "sliding-dropout"],
)
def test_packed_rows_train_as_padded_ones(
    config: dict[str, Any], dropout: float, make_rows: MakeRows,
    adamw: Callable[..., Optimizer], settings: Callable[..., Train],
) -> None:  # fmt: skip
    """Losses, norms and losses to validate over 6 steps, rows of one token included; the same
    tokens are dropped."""
    rows = make_rows([1, 2, *np.random.default_rng(0).integers(3, 40, 46).tolist()])
    train = settings(batch_size=4, grad_accumulation_steps=2)
    courses = []
    for layout in (Layout(), Layout(packed=True), Layout(packed=True, ranks=2)):
        bank = adapted(make(config), AdapterShape(4, 2.0, dropout))
        state = State(bank.parameters(), initial_states(bank, [adamw()]))
        with cpu_functions(bank.model):
            cut = tuned_cut(bank)
            assert can_pack(bank, cut, (12, 30))
            gradients, update = compile_gradients(bank, cut), compile_update(bank, [adamw()])
            course = []
            for step in training_steps(rows, train, 0, layout):
                keys = [dropout_keys(0, step.epoch, batch.rows) if dropout else None
                        for batch in step.batches]  # fmt: skip
                course.append(take_step(gradients, update, state, step, keys, 1e-3)[:2])
            losses = compile_losses(bank, cut)
            valid = 0.0
            for batch in validation_batches(rows, 4, layout):
                with packed(batch.lengths):
                    valid += losses(state.parameters, batch_arrays(batch)).sum().item()
            course.append((valid, 0.0))
        courses.append(course)
    assert len(courses[0]) == 7
    np.testing.assert_allclose(courses[1], courses[0], rtol=1e-5)
    half = courses[2][:-1]
    np.testing.assert_allclose(half, courses[0][:-1], rtol=1e-5)


def test_run_packs_what_can_be_packed(
    tiny_llama: Callable[..., Any], tiny_qwen3: Callable[..., Any], make_rows: MakeRows,
    adamw: Callable[..., Optimizer], settings: Callable[..., Train], recorder: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A whole run, validation included, has the losses of one whose rows are padded."""
    lengths = np.random.default_rng(2).integers(3, 40, 24).tolist()
    rows, valid = make_rows(lengths), make_rows([50, 9, 20, 31], 1, "valid")
    for maker in (tiny_llama, tiny_qwen3):
        courses = []
        for packs in (True, False):
            if not packs:
                monkeypatch.setattr("stages.training.loop.can_pack", lambda *_: False)
            told = recorder()
            bank = adapted(maker(), SHAPE)
            fit(bank, rows, valid, optimizer=adamw(), train=settings(), seed=0, report=told)
            monkeypatch.undo()
            mx.disable_compile()
            courses.append(told)
        together, padded = courses
        assert len(together.values("train.loss")) == 6
        for name in ("train.loss", "valid.loss"):
            np.testing.assert_allclose(together.values(name), padded.values(name), rtol=1e-5)


def test_layout_of_packed_rows_by_hand(tmp_path: Path) -> None:
    """Tokens, positions, targets, owners and lengths; a row of one token fills a place."""
    pairs = [([11, 12, 13, 14], [0, 0, 1, 1]), ([21], [1]), ([31, 32, 33], [1, 1, 0])]
    write_rows(tmp_path / "rows.safetensors",
               [(np.array(tokens, np.int32), np.array(taught, np.uint8))
                for tokens, taught in pairs])  # fmt: skip
    batch = pack(Rows(tmp_path / "rows.safetensors"), [0, 1, 2])
    assert batch.inputs.tolist() == [[11, 12, 13, 0, 31, 32]]
    assert batch.lengths == (3, 1, 2)
    assert batch.positions.tolist() == [1, 2, 4]
    assert batch.targets.tolist() == [13, 14, 32]
    assert batch.owners.tolist() == [0, 0, 2]
    assert batch.counts.tolist() == [2, 0, 1]
    assert (batch.rows, batch.input_tokens, batch.padded_tokens) == ((0, 1, 2), 5, 6)


@given(data=st.data(), ranks=st.integers(1, 3), batch_size=st.integers(1, 5),
       lengths=st.lists(st.integers(1, 60), min_size=1, max_size=20))  # fmt: skip
def test_packed_passes_hold_every_row_once(
    data: st.DataObject, ranks: int, batch_size: int, lengths: list[int]
) -> None:
    """And no more tokens than a batch of the longest rows and one more."""
    ends = sorted(data.draw(st.sets(st.integers(1, len(lengths) - 1))) if len(lengths) > 1 else [])
    parts = [list(range(start, end))
             for start, end in zip([0, *ends], [*ends, len(lengths)], strict=True)]  # fmt: skip
    found = Layout(packed=True, ranks=ranks).passes(parts, lengths, batch_size)
    assert sorted(row for rows in found for row in rows) == list(range(len(lengths)))
    widths = sorted(max(length - 1, 1) for length in lengths)
    for rows in found:
        taken = sum(max(lengths[row] - 1, 1) for row in rows)
        assert taken <= sum(widths[-batch_size:]) + widths[-1]


@given(sizes=st.lists(st.integers(0, 1000), max_size=30), parts=st.integers(1, 6))
def test_shares_are_even(sizes: list[int], parts: int) -> None:
    """Every place once; no part has more than another by more than the largest size."""
    found = share(sizes, parts)
    assert len(found) == parts
    assert sorted(place for places in found for place in places) == list(range(len(sizes)))
    taken = [sum(sizes[place] for place in places) for places in found]
    assert max(taken) - min(taken) <= max(sizes, default=0)
    assert all(sizes[one] >= sizes[other] for places in found for one, other in pairwise(places))


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("packs", [True, False])
def test_ranks_validate_every_row_once(make_rows: MakeRows, packs: bool, ranks: int) -> None:
    """Whether or not there are batches for all of them."""
    rows = make_rows([5, 9, 3, 12, 7])
    layout = Layout(packed=packs, ranks=ranks)
    for size in (1, 4):
        seen = [row for rank in range(ranks)
                for batch in validation_batches(rows, size, layout, rank)
                for row in batch.rows]  # fmt: skip
        assert sorted(seen) == list(range(5))


def test_stacked_adapters_train_as_apart(make_rows: MakeRows) -> None:
    """Two adapters on the rows of a padded batch have the losses and gradients of each alone,
    whose rows are packed."""
    rows = make_rows([9, 20, 14, 30])
    shapes = [SHAPE, AdapterShape(3, 1.25)]
    both = adapted(make(CONFIGS["llama"]), *shapes)
    adapters = both.split(both.parameters())
    with cpu_functions(both.model):
        losses, summed = compile_gradients(both, tuned_cut(both))(
            both.parameters(), batch_arrays(collate(rows, range(4))), None
        )
        mx.eval(losses, summed)
    for number, (adapter, gradient) in enumerate(zip(adapters, both.split(summed), strict=True)):
        alone = adapted(make(CONFIGS["llama"]), shapes[number])
        own = pack(rows, [2 * number, 2 * number + 1])
        gradients = compile_gradients(alone, tuned_cut(alone))
        with cpu_functions(alone.model), packed(own.lengths):
            found, expected = gradients(alone.join([adapter]), batch_arrays(own), None)
        np.testing.assert_allclose(losses[2 * number : 2 * number + 2], found, rtol=1e-5)
        for (name, one), (_, other) in zip(
            tree_flatten(gradient), tree_flatten(alone.split(expected)[0]), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=name)
