from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from stages.data.rows import Rows
from stages.errors import StopRequested
from stages.lora.bank import Bank, Parameters, attach, initial
from stages.lora.layers import AdapterShape
from stages.lora.targets import find_targets
from stages.training.batches import collate, training_steps, validation_batches
from stages.training.loop import fit
from stages.training.prefix import frozen_blocks, hidden_below
from stages.training.reuse import PLAIN, Feeds, reused_prefix
from stages.training_settings import Optimizer, Train

LLAMA = Callable[..., Any]
ROWS = Callable[..., Rows]
SETTINGS = Callable[..., Train]
ADAMW = Callable[..., Optimizer]
LENGTHS = [9, 40, 14, 70, 12, 25, 33, 6, 51, 18, 22]
VALID = [12, 30, 44, 7, 7]
DIMS = 32
FAMILIES = json.loads(
    (Path(__file__).parents[1] / "lora" / "architectures.json").read_text()
)  # fmt: skip
QWEN3 = {
    "model_type": "qwen3", "hidden_size": DIMS, "num_hidden_layers": 4, "intermediate_size": 48,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-5,
    "vocab_size": 64, "max_position_embeddings": 128, "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _plain() -> Iterator[None]:
    # MLX would run g++ for every activation of every model.
    mx.disable_compile()
    yield
    mx.enable_compile()


def made(config: dict[str, Any]) -> Any:
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(config))
    model.freeze()
    return model


def top(model: Any, num_layers: int = 1, **changes: Any) -> Bank:
    """Put a new adapter on the upper blocks."""
    shape = AdapterShape(4, 2.0, **changes)
    bank = attach(model, find_targets(model, ["*"], num_layers), [shape])
    bank.update(bank.join([initial(bank.layers, shape, 0)]))
    return bank


class Trainer:
    """Trains on the same rows with other settings, and remembers what was told."""

    def __init__(self, directory: Path, rows: Rows, valid: Rows, make: Any, optimizer: Any) -> None:
        self.out, self.rows, self.valid = directory, rows, valid
        self.make, self.optimizer = make, optimizer
        self.report = make()

    def __call__(
        self, bank: Bank, train: Train, warm: Callable[[Feeds], None] = lambda _: None
    ) -> Parameters:
        self.report = self.make()
        with reused_prefix(bank, self.rows, self.valid, train=train, out=self.out,
                           report=self.report) as feeds:  # fmt: skip
            warm(feeds)
            self.left = {path.name: path.stat().st_size for path in self.out.glob("hidden_*")}
            best, _ = fit(bank, self.rows, self.valid, optimizer=self.optimizer, train=train,
                          seed=3, report=self.report, feeds=feeds)  # fmt: skip
        return best

    def losses(self) -> list[float]:
        return [*self.report.values("train.loss"), *self.report.values("valid.loss")]


@pytest.fixture
def trainer(tmp_path: Path, make_rows: ROWS, recorder: Any, adamw: ADAMW) -> Trainer:
    rows, valid = make_rows(LENGTHS), make_rows(VALID, seed=1, name="valid")
    return Trainer(tmp_path / "out", rows, valid, recorder, adamw())


def assert_close(one: Parameters, other: Parameters) -> None:
    for (name, found), (_, expected) in zip(tree_flatten(one), tree_flatten(other), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5, err_msg=name)


def assert_equal(one: Parameters, other: Parameters) -> None:
    for (name, found), (_, expected) in zip(tree_flatten(one), tree_flatten(other), strict=True):
        np.testing.assert_array_equal(found, expected, err_msg=name)


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe", "granitemoehybrid", "mamba2"])
def test_losses_and_adapter_are_those_without(
    trainer: Trainer, settings: SETTINGS, family: str
) -> None:
    """Over two epochs, with validations between, for mixtures and state spaces too."""
    config = QWEN3 if family == "qwen3" else FAMILIES[family]
    usual = {"epochs": 2, "batch_size": 3, "validations_per_epoch": 2}
    expected = trainer(top(made(config)), settings(**usual))
    losses = trainer.losses()
    found = trainer(top(made(config)), settings(**usual, prefix_cache_gb=1.0))
    assert "11 of 11 rows of train" in trainer.report.lines[0]
    assert len(losses) == 2 * 4 + 5
    np.testing.assert_allclose(trainer.losses(), losses, rtol=1e-5)
    assert_close(found, expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"grad_accumulation_steps": 2, "batch_size": 2},
        {"gradient_checkpointing": True},
        {"dropout": 0.2},
        {"dora": True},
    ],
    ids=["accumulation", "checkpointing", "dropout", "dora"],
)
def test_every_setting_of_training_has_the_losses_without(
    trainer: Trainer, tiny_llama: LLAMA, settings: SETTINGS, changes: dict[str, Any]
) -> None:
    """Those that have a part in how a batch is computed."""
    own = {name: value for name, value in changes.items() if name in ("dropout", "dora")}
    usual = {"epochs": 2} | {name: changes[name] for name in changes if name not in own}
    expected = trainer(top(tiny_llama(num_hidden_layers=3), **own), settings(**usual))
    losses = trainer.losses()
    train = settings(**usual, prefix_cache_gb=1.0)
    found = trainer(top(tiny_llama(num_hidden_layers=3), **own), train)
    np.testing.assert_allclose(trainer.losses(), losses, rtol=1e-5)
    assert_close(found, expected)


def test_quantized_bfloat16_base_has_the_losses_without(
    trainer: Trainer, tiny_llama: LLAMA, settings: SETTINGS
) -> None:
    """What is kept has the type that the blocks compute in, bit by bit."""

    def base() -> Any:
        model = tiny_llama(hidden_size=64, intermediate_size=64, num_hidden_layers=3)
        nn.quantize(model, 32, 4)
        model.set_dtype(mx.bfloat16)
        return model

    trainer(top(base()), settings(epochs=2))
    losses = trainer.losses()
    trainer(top(base()), settings(epochs=2, prefix_cache_gb=1.0))
    # bfloat16 has 8 bits, and rows stand beside others where they are kept.
    np.testing.assert_allclose(trainer.losses(), losses, rtol=1e-2)
    tokens = sum(LENGTHS) - len(LENGTHS)
    assert trainer.left["hidden_train"] == 3 + 2 * 64 * tokens


def test_each_row_goes_through_the_frozen_blocks_once(
    trainer: Trainer, tiny_llama: LLAMA, settings: SETTINGS
) -> None:
    """Over three epochs with two validations each, and one before; in tokens, packed without."""
    counts = []
    for cache in (None, 1.0):
        bank = top(tiny_llama(num_hidden_layers=3))
        low = bank.model.layers[0]
        kind, seen = type(low), [0]

        class Counted(kind):  # type: ignore[misc, valid-type]
            def __call__(self, x: mx.array, *arguments: Any, **options: Any) -> mx.array:
                seen[0] += x.shape[0] * x.shape[1]  # noqa: B023 (called within this round)
                return super().__call__(x, *arguments, **options)

        low.__class__ = Counted

        def start(_: Feeds) -> None:
            # Not the rows of the proof.
            seen[0] = 0  # noqa: B023

        trainer(bank, settings(epochs=3, validations_per_epoch=2, prefix_cache_gb=cache), start)
        counts.append(seen[0])
    # Three tokens tell where the head can be cut off; the longest rows, and the longest of them
    # alone, whether to pack.
    longest = sorted(length - 1 for length in LENGTHS + VALID)[-4:]
    proof = 3 + sum(longest) + longest[-1]
    train, valid = (sum(length - 1 for length in lengths) for lengths in (LENGTHS, VALID))
    groups = [sorted(lengths)[at : at + 4]
              for lengths in (LENGTHS, VALID) for at in range(0, len(lengths), 4)]  # fmt: skip
    kept = sum(len(group) * (group[-1] - 1) for group in groups)
    assert counts == [3 * train + 7 * valid + proof, kept + proof]


@pytest.mark.parametrize("budget", [1.0, 25_000 / 1e9])
def test_adapter_is_the_same_whatever_was_kept_before(
    trainer: Trainer, tiny_llama: LLAMA, settings: SETTINGS, budget: float
) -> None:
    """Nothing, some groups, or all: as after a run that was cut short. Bit by bit."""
    train = settings(epochs=2, batch_size=3, prefix_cache_gb=budget)

    def some(feeds: Feeds) -> None:
        feeds.train(collate(trainer.rows, [2, 7, 0]))
        feeds.valid(collate(trainer.valid, [3]))

    def all_of_them(feeds: Feeds) -> None:
        for step in reversed(list(training_steps(trainer.rows, train, 5))):
            for batch in step.batches:
                feeds.train(batch)
        for batch in validation_batches(trainer.valid, 2):
            feeds.valid(batch)

    expected = trainer(top(tiny_llama(num_hidden_layers=3)), train)
    losses = trainer.losses()
    for warm in (some, all_of_them):
        found = trainer(top(tiny_llama(num_hidden_layers=3)), train, warm)
        assert trainer.losses() == losses
        assert_equal(found, expected)


def test_budget_is_kept_to_by_the_longest_rows(
    trainer: Trainer, tiny_llama: LLAMA, settings: SETTINGS
) -> None:
    """Rows to validate and the shorter ones to train are in, in whole groups; batches with others
    are computed, and losses stay those without."""
    row_bytes = 4 * DIMS
    valid = sum(length - 1 for length in VALID)
    shortest = sum(sorted(LENGTHS)[:6]) - 6
    size = 2 + valid * row_bytes + 2 + shortest * row_bytes
    usual = {"epochs": 2, "batch_size": 3}
    trainer(top(tiny_llama(num_hidden_layers=3)), settings(**usual))
    losses = trainer.losses()
    for short, kept in ((0, 6), (1, 3)):
        train = settings(**usual, prefix_cache_gb=(size - short) / 1e9)
        trainer(top(tiny_llama(num_hidden_layers=3)), train)
        assert f"5 of 5 rows of valid and {kept} of 11 rows of train" in trainer.report.lines[0]
        assert sum(trainer.left.values()) <= size - short
        np.testing.assert_allclose(trainer.losses(), losses, rtol=1e-5)
    trainer(top(tiny_llama(num_hidden_layers=3)), settings(**usual, prefix_cache_gb=1e-9))
    assert trainer.left == {"hidden_train": 0, "hidden_valid": 0}
    assert trainer.losses() == losses


def test_hidden_states_are_those_of_the_model(
    tmp_path: Path, make_rows: ROWS, recorder: Any, tiny_llama: LLAMA, settings: SETTINGS
) -> None:
    """Of a row, beside whatever others, those of the row alone, and at its padding the last."""
    rows, bank = make_rows([1, 2, 5, 9, 20]), top(tiny_llama(num_hidden_layers=3))
    with reused_prefix(bank, rows, make_rows([], name="valid"),
                       train=settings(epochs=2, batch_size=2, prefix_cache_gb=1.0),
                       out=tmp_path / "out", report=recorder()) as feeds:  # fmt: skip
        batch = collate(rows, [4, 0, 2])
        *_, hidden = feeds.train(batch)
    assert hidden.shape == (3, 19, DIMS)
    for place, row in enumerate(batch.rows):
        tokens = mx.array(rows[row][0][None, : max(len(rows[row][0]) - 1, 1)])
        tokens = mx.zeros_like(tokens) if len(rows[row][0]) == 1 else tokens
        own = hidden_below(bank.model, frozen_blocks(bank), tokens)[0]
        np.testing.assert_allclose(hidden[place, : len(own)], own, rtol=1e-5, atol=1e-5)
        assert (hidden[place, len(own) :] == hidden[place, len(own) - 1]).all()


def test_rows_seen_once_are_not_kept(
    trainer: Trainer, tiny_llama: LLAMA, settings: SETTINGS
) -> None:
    """In one epoch, only those to validate come again."""
    trainer(top(tiny_llama(num_hidden_layers=3)), settings(epochs=1, prefix_cache_gb=1.0))
    assert list(trainer.left) == ["hidden_valid"]


def test_files_are_gone_afterwards(
    trainer: Trainer, tiny_llama: LLAMA, settings: SETTINGS, recorder: Any
) -> None:
    """After training, and after a stop in the middle."""
    train = settings(epochs=2, prefix_cache_gb=1.0)
    trainer(top(tiny_llama(num_hidden_layers=3)), train)
    assert sorted(trainer.left) == ["hidden_train", "hidden_valid"]
    assert list(trainer.out.iterdir()) == []
    trainer.make = lambda: recorder(stop_after=2)
    with pytest.raises(StopRequested):
        trainer(top(tiny_llama(num_hidden_layers=3)), train)
    assert list(trainer.out.iterdir()) == []


def test_what_cannot_be_reused_is_said_once_or_not_at_all(
    trainer: Trainer, tiny_llama: LLAMA, settings: SETTINGS
) -> None:
    """Silent where all blocks are adapted or nothing is to be kept; else with the reason."""
    model = tiny_llama(num_hidden_layers=3)
    cases = [(top(model, 3), 1.0), (top(tiny_llama(num_hidden_layers=3)), None)]
    for bank, cache in cases:
        report = trainer.make()
        with reused_prefix(bank, trainer.rows, trainer.valid, out=trainer.out, report=report,
                           train=settings(prefix_cache_gb=cache)) as feeds:  # fmt: skip
            assert feeds == PLAIN
        assert report.lines == []
    bank = attach(model, find_targets(tiny_llama(num_hidden_layers=3), ["embed_tokens"], 1),
                  [AdapterShape(4, 2.0)])  # fmt: skip
    report = trainer.make()
    with reused_prefix(bank, trainer.rows, trainer.valid, out=trainer.out, report=report,
                       train=settings(prefix_cache_gb=1.0)) as feeds:  # fmt: skip
        assert feeds == PLAIN
    [line] = report.lines
    assert line.startswith("the lowest 3 of 3 blocks are not adapted, but ")
