"""Two processes that train together, without the orchestrator: what each of them holds."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from stages.errors import EnvironmentFailure
from stages.training import ranks
from stages.training.batches import Batch
from stages.training.held import Limited
from stages.training.ranks import ALONE, Ranks, join

ROOT = Path(__file__).parents[3]
PROGRAM = """
import hashlib, json, os, sys
import numpy as np
import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from pathlib import Path
from stages.data.rows import Rows, write_rows
from stages.errors import StageError
from stages.lora.bank import attach, initial
from stages.lora.layers import AdapterShape
from stages.lora.targets import find_targets
from stages.settings import Optimizer, Train
from stages.training.loop import fit
from stages.training.ranks import ALONE, join

class Report:
    def __init__(self, stops):
        self.looks, self.losses, self.stops = 0, [], stops
    def log(self, message): pass
    def metrics(self, step, values): self.losses.append(values.get("train.loss"))
    def progress(self, done, total, fields): pass
    def stop_requested(self):
        self.looks += 1
        return self.stops and self.looks > 4

mx.disable_compile()
folder = Path(sys.argv[1])
ranks = join(2)

def told(mode):
    stops = mode == "stop" and ranks.rank == 1
    report = Report(stops)
    mx.random.seed(3)
    model = llama.Model(llama.ModelArgs(
        model_type="llama", rms_norm_eps=1e-5, hidden_size=32, intermediate_size=48,
        num_hidden_layers=2, vocab_size=64, num_attention_heads=4, num_key_value_heads=2,
        tie_word_embeddings=False))
    if mode == "broken":
        model.model.embed_tokens.weight[63] = float("nan")
    model.freeze()
    bank = attach(model, find_targets(model, ["*"], None), [AdapterShape(4, 2.0, 0.1)])
    bank.update(bank.join([initial(bank.layers, bank.shapes[0], 0)]))
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(1, 63, n).astype(np.int32), np.ones(n, np.uint8))
             for n in rng.integers(3, 40, 13)]
    pairs[5][0][0] = 63
    splits = []
    for name, some in (("train", pairs), ("valid", pairs[:3])):
        path = folder / f"{mode}{name}{ranks.rank}"
        write_rows(path, some)
        splits.append(Rows(path))
    optimizer = Optimizer(
        name="adamw", learning_rate=1e-2, schedule="constant", warmup_fraction=0.0,
        max_grad_norm=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    train = Train(epochs=2, batch_size=4, grad_accumulation_steps=1, log_every=1,
                  gradient_checkpointing=False, callbacks=(), validations_per_epoch=1,
                  checkpoint_every="5m", resume="auto")
    try:
        best, metrics = fit(bank, *splits, optimizer=optimizer, train=train, seed=0,
                            report=report, ranks=ALONE if mode == "alone" else ranks)
    except StageError as error:
        return {"error": type(error).__name__, "found": error.found}
    digest = hashlib.sha256()
    for name, value in sorted(tree_flatten(best)):
        digest.update(np.array(value).tobytes())
    return {"digest": digest.hexdigest(), "losses": report.losses, "valid": metrics["valid.loss"]}

print(json.dumps({mode: told(mode) for mode in ("train", "stop", "broken", "alone")}))
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Run the program in two processes; return what each has said."""
    folder = tmp_path_factory.mktemp("ranks")
    sockets = [socket.socket() for _ in range(2)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{one.getsockname()[1]}"] for one in sockets]))
    for one in sockets:
        one.close()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "MLX_RANK": str(rank),
                 "MLX_HOSTFILE": str(hosts), "OPENBLAS_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    return [json.loads(process.communicate(timeout=120)[0]) for process in started]


def test_all_ranks_have_the_same_bytes(both: list[dict[str, Any]]) -> None:
    """Parameters and losses; also after a step with one row, of which one of them has none. They
    are those of one process up to rounding."""
    one, other = (said["train"] for said in both)
    assert one == other
    alone = both[0]["alone"]
    assert len(alone["losses"]) >= 8
    for name in ("losses", "valid"):
        found, expected = (np.array(said[name], float) for said in (one, alone))
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_what_one_meets_ends_all(both: list[dict[str, Any]]) -> None:
    """Asked to stop, or a loss that is not finite, in one of them: all raise the same."""
    assert [said["stop"]["error"] for said in both] == ["StopRequested"] * 2
    one, other = (said["broken"] for said in both)
    assert one == other
    assert one["error"] == "StageError"
    assert "loss is nan in rows " in one["found"]
    assert "5" in one["found"]


def test_others_out_of_reach_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a place among others: the key, and what to set."""
    for name in ("MLX_RANK", "MLX_HOSTFILE"):
        monkeypatch.delenv(name, raising=False)
    # Nobody will come: the first try is the last.
    monkeypatch.setattr(ranks, "JOIN_SECONDS", 0)
    with pytest.raises(EnvironmentFailure) as caught:
        join(2)
    assert caught.value.where == "train.workers"
    assert "train.workers=1" in str(caught.value.mend)
    assert join(1) is ALONE


def test_batches_are_shared_by_their_tokens() -> None:
    """Each batch is one rank's, by hand: 9 and 2 tokens beside 6 and 4."""
    nothing = np.zeros(1, np.int32)
    batches = [Batch((0,), np.zeros((1, size), np.int32), nothing, nothing, nothing, size)
               for size in (4, 9, 2, 6)]  # fmt: skip
    assert [Ranks(rank, 2).own(batches) for rank in (0, 1)] == [[1, 2], [3, 0]]
    assert ALONE.own(batches) == [0, 1, 2, 3]


def test_alone_nothing_is_added() -> None:
    arrays = [mx.array([1.0, 2.0]), mx.array([[3.0]])]
    assert all(one is other for one, other in zip(ALONE.total(arrays), arrays, strict=True))


def test_limit_is_that_of_all_processes() -> None:
    """Each of three may hold a third."""
    assert Limited(900, 3).limit_bytes == 300
    assert Limited(None, 3).limit_bytes is None
