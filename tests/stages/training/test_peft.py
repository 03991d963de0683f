"""PEFT on torch, with the same base and the same first adapter, is the measure of our training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import peft
import pytest
import torch
from mlx.utils import tree_flatten
from transformers import AutoConfig, AutoModelForCausalLM

from stages.data.rows import Rows
from stages.lora.bank import Bank, Parameters, attach, initial, shape_of
from stages.lora.targets import find_targets
from stages.settings import Lora
from stages.training.batches import collate, training_steps
from stages.training.loop import fit
from stages.training.loss import batch_arrays, row_losses
from stages.training.step import tuned_cut
from stages.training_settings import Optimizer, Train

# Threads of two libraries that wait for each other by spinning make this test 10 times slower.
torch.set_num_threads(1)
MAKER = Callable[[], Any]
# PEFT asks transformers by the old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def lora(kind: Any) -> Lora:
    return Lora(stage="stages.train.train", type=kind, rank=6, alpha=12.0, dropout=0.0,
                targets=("*",), num_layers=None)  # fmt: skip


def peft_twin(model: Any, adapter: Parameters, settings: Lora) -> torch.nn.Module:
    """Build the model again in torch, in float64, with PEFT's own adapter set to `adapter`."""
    sizes = {name: value for name, value in vars(model.args).items() if value is not None}
    config = AutoConfig.for_model(**sizes, attn_implementation="eager")
    assert config.rope_parameters["rope_theta"] == sizes["rope_theta"]
    twin = AutoModelForCausalLM.from_config(config).double()
    weights = {name: torch.tensor(np.array(value, np.float64))
               for name, value in tree_flatten(model.parameters())}  # fmt: skip
    if sizes["tie_word_embeddings"]:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    twin.load_state_dict(weights)
    twin = peft.get_peft_model(twin, peft.LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, use_rslora=settings.type == "rslora",
        use_dora=settings.type == "dora", target_modules="all-linear", lora_dropout=0.0,
    ))  # fmt: skip
    with torch.no_grad():
        for path, value in torch_adapter(twin).items():
            value.copy_(torch.tensor(np.array(adapter[path[0]][path[1]], np.float64).T))
    return twin.double()


def torch_adapter(twin: torch.nn.Module) -> dict[tuple[str, str], torch.nn.Parameter]:
    """Return PEFT's weights by our names."""
    names = {"lora_A": "lora_a", "lora_B": "lora_b", "lora_magnitude_vector": "m"}
    found = {}
    for name, value in twin.named_parameters():
        if ".lora_" in name:
            path, kind, _, _ = name.removeprefix("base_model.model.").rsplit(".", 3)
            found[path, names[kind]] = value
    return found


def adapted(model: Any, settings: Lora, seed: int = 0) -> tuple[Bank, Parameters]:
    shape = shape_of(settings)
    bank = attach(model, find_targets(model, ["*"], None), [shape])
    adapter = initial(bank.layers, shape.rank, seed)
    return bank, adapter


def torch_loss(twin: torch.nn.Module, rows: Rows, indices: list[int]) -> tuple[torch.Tensor, int]:
    """Sum the loss of the rows, one at a time and without padding, and count their targets."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for index in indices:
        tokens, supervised = (torch.tensor(value.astype(np.int64)) for value in rows[index])
        logits = twin(input_ids=tokens[None, :-1]).logits[0]
        wanted = supervised[1:].bool()
        total = total + torch.nn.functional.cross_entropy(
            logits[wanted], tokens[1:][wanted], reduction="sum"
        )
        count += int(wanted.sum())
    return total, count


@pytest.fixture(params=["llama", "qwen3"])
def tiny(request: pytest.FixtureRequest) -> MAKER:
    """Return a maker of tiny models of one family and then of the other."""
    found: MAKER = request.getfixturevalue(f"tiny_{request.param}")
    return found


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_loss_and_gradients_are_those_of_peft(
    tiny: MAKER, make_rows: Callable[..., Rows], kind: str
) -> None:
    """On a padded batch the loss and every adapter gradient equal PEFT's on the single rows."""
    model, settings = tiny(), lora(kind)
    bank, adapter = adapted(model, settings)
    rng = np.random.default_rng(2)
    for weights in adapter.values():
        weights["lora_b"] = mx.array(rng.normal(0, 0.1, weights["lora_b"].shape), mx.float32)
        if "m" in weights:
            weights["m"] = weights["m"] * mx.array(rng.normal(1, 0.2, weights["m"].shape))
    twin = peft_twin(tiny(), adapter, settings)
    bank.update(bank.join([adapter]))
    rows = make_rows([9, 20, 33])
    expected, _ = torch_loss(twin, rows, [0, 1, 2])
    expected.backward()
    batch, cut = batch_arrays(collate(rows, range(3))), tuned_cut(bank)

    def loss(parameters: Parameters) -> mx.array:
        with bank.using(parameters):
            return row_losses(model, cut, batch, parameters).sum()

    found, gradients = mx.value_and_grad(loss)(bank.parameters())
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = bank.split(gradients)[0]
    scale = max(float(mx.abs(g).max()) for pair in gradients.values() for g in pair.values())
    for (path, name), value in torch_adapter(twin).items():
        np.testing.assert_allclose(
            np.array(gradients[path][name]), value.grad.numpy().T, rtol=1e-3, atol=1e-5 * scale
        )


@pytest.mark.parametrize(("kind", "limit"), [("lora", 2.0), ("rslora", 4.0), ("dora", 2.0)])
def test_training_follows_peft_loss_by_loss(
    tiny: MAKER,
    make_rows: Callable[..., Rows],
    recorder: Any,
    adamw: Callable[..., Optimizer],
    settings: Callable[..., Train],
    kind: str,
    limit: float,
) -> None:
    """52 steps of AdamW with clipping, accumulation, warm-up and cosine give PEFT's losses,
    gradient norms, validation losses and best adapter: ours in float32, PEFT's in float64."""
    model, adapter_settings = tiny(), lora(kind)
    bank, adapter = adapted(model, adapter_settings)
    twin = peft_twin(tiny(), adapter, adapter_settings)
    bank.update(bank.join([adapter]))
    lengths = np.random.default_rng(3).integers(4, 40, 51).tolist()
    rows, valid = make_rows(lengths), make_rows([7, 40, 12], seed=9, name="valid")
    train = settings(epochs=4, batch_size=2, grad_accumulation_steps=2)
    optimizer = adamw(learning_rate=5e-3, max_grad_norm=limit, weight_decay=0.01)
    report = recorder()
    best, metrics = fit(bank, rows, valid, optimizer=optimizer, train=train, seed=1, report=report)

    weights = list(torch_adapter(twin).values())
    moving = torch.optim.AdamW(weights, lr=5e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.SequentialLR(moving, [
        torch.optim.lr_scheduler.LinearLR(moving, start_factor=1 / 6, total_iters=5),
        torch.optim.lr_scheduler.CosineAnnealingLR(moving, T_max=46, eta_min=5e-4),
    ], milestones=[5])  # fmt: skip
    losses, norms, rates, valid_losses, adapters = [], [], [], [], {}
    for step in training_steps(rows, train, seed=1):
        loss, count = torch_loss(twin, rows, step.rows)
        (loss / count).backward()
        losses.append(loss.item() / count)
        norms.append(torch.nn.utils.clip_grad_norm_(weights, limit).item())
        rates.append(moving.param_groups[0]["lr"])
        moving.step()
        schedule.step()
        moving.zero_grad()
        if (step.number + 1) % 13 == 0:
            with torch.no_grad():
                total, count = torch_loss(twin, valid, [0, 1, 2])
            valid_losses.append(total.item() / count)
            adapters[step.number + 1] = {
                name: value.detach().numpy().T.copy() for name, value in torch_adapter(twin).items()
            }
    assert len(losses) == 52
    assert min(norms) < limit < max(norms)
    assert report.values("train.learning_rate") == pytest.approx(rates, rel=1e-6)
    assert report.values("train.loss") == pytest.approx(losses, rel=1e-5)
    assert report.values("train.grad_norm") == pytest.approx(norms, rel=1e-4)
    assert report.values("valid.loss")[1:] == pytest.approx(valid_losses, rel=1e-5)
    assert metrics["valid.loss"] == pytest.approx(min(valid_losses), rel=1e-5)
    for (path, name), value in adapters[int(metrics["train.best_step"])].items():
        np.testing.assert_allclose(np.array(best[path][name]), value, rtol=2e-4, atol=2e-5)
