"""How many processes train together, what each is told, and what of it is in the key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pipeline import environment, fingerprint, replicas, schema
from pipeline.compose import opened
from pipeline.configure import configure
from pipeline.environment import threads_of_each, training_workers
from pipeline.overrides import read
from pipeline.plan import TABLE
from pipeline.resolved import digest
from pipeline.schema import Config
from stages.errors import SettingError
from stages.settings import Train

TRAIN = Train(epochs=1, batch_size=4, grad_accumulation_steps=2, log_every=1,
              gradient_checkpointing=False, callbacks=(), validations_per_epoch=1,
              checkpoint_every="5m", resume="auto")  # fmt: skip


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    def make(device: str, cpus: int) -> None:
        monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
        monkeypatch.setattr(environment, "device", lambda: device)
        monkeypatch.setattr(environment, "cpu_count", lambda: cpus)

    return make


@pytest.mark.parametrize(
    ("device", "cpus", "rows", "count"),
    [("cpu", 1, 8, 1), ("cpu", 2, 8, 2), ("cpu", 64, 8, 4), ("cpu", 64, 3, 3), ("gpu", 8, 8, 1)],
)
def test_each_core_has_a_process_up_to_four(
    machine: Callable[[str, int], None], device: str, cpus: int, rows: int, count: int
) -> None:
    """Nor more than a step has rows; a GPU has one."""
    machine(device, cpus)
    train = replace(TRAIN, batch_size=rows, grad_accumulation_steps=1)
    assert training_workers(train) == count


def test_more_processes_than_rows_are_refused(machine: Callable[[str, int], None]) -> None:
    """As many are not; on a GPU any beside the first is."""
    machine("cpu", 2)
    assert training_workers(replace(TRAIN, workers=8)) == 8
    with pytest.raises(SettingError, match="found 9, but a step has 8 rows") as caught:
        training_workers(replace(TRAIN, workers=9))
    assert caught.value.where == "train.workers"
    machine("gpu", 2)
    assert training_workers(replace(TRAIN, workers=1)) == 1
    with pytest.raises(SettingError, match=r"uses all of\s+a GPU"):
        training_workers(replace(TRAIN, workers=2))


def test_processes_share_the_threads(machine: Callable[[str, int], None]) -> None:
    """Each has one at least; the embedded model's have one."""
    machine("cpu", 8)
    assert [threads_of_each(count, "other") for count in (1, 2, 3, 16)] == [8, 4, 2, 1]
    assert threads_of_each(2, "tiny") == 1


def test_only_the_first_tells_others_what_happens() -> None:
    """The rest call nobody back; all of them have the same place to meet."""
    train = {"callbacks": ["mine.py"], "trackio": "project", "epochs": 1}
    request = {"stage": "train", "settings": [("lora", {"rank": 2}), ("train", train), ("seed", 3)]}
    first, second = (
        replicas.as_rank(request, rank, 3, MLX_RANK=str(rank), MLX_HOSTFILE="hosts.json")
        for rank in (0, 1)
    )
    assert first["settings"] == request["settings"]
    silent = {"callbacks": [], "trackio": None, "epochs": 1}
    assert second["settings"] == [("lora", {"rank": 2}), ("train", silent), ("seed", 3)]
    for rank, own in enumerate((first, second)):
        variables = {"MLX_RANK": str(rank), "MLX_HOSTFILE": "hosts.json"}
        assert own["place"] == {"threads": 3, "variables": variables}


@pytest.fixture(scope="module")
def config() -> Config:
    schema.register()
    with opened(None, "config") as composer:
        given = read([], composer.loader, sweeping=False)
        return configure(composer.compose(given), given, composer)[0]


def test_key_tells_how_many_there_come_to_be(
    machine: Callable[[str, int], None], config: Config
) -> None:
    """null and the number that it becomes have one key, other numbers others; what does not train
    has the same in all."""
    machine("cpu", 3)

    def key(stage: str, workers: int | None) -> str:
        (step,) = (step for step in TABLE if step.name == stage)
        changed = replace(config, train=replace(config.train, workers=workers))
        return digest(fingerprint.ingredients(step, changed, model={}, inputs={}, upstream={}))

    assert key("train", None) == key("train", 3)
    assert len({key("train", count) for count in (1, 2, 3)}) == 3
    assert len({key("merge", count) for count in (None, 1, 2)}) == 1
