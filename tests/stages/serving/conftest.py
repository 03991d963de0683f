"""One server for all tests that only talk to it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import live

from stages.artifacts import Adapter, BaseModel


@pytest.fixture(scope="session")
def served_model(
    draw_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> BaseModel:
    return BaseModel(directory=draw_model(tmp_path_factory.mktemp("served")), dtype="float32")


@pytest.fixture(scope="session")
def served_adapter(served_model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    return live.make_adapter(served_model, tmp_path_factory.mktemp("served") / "adapter")


@pytest.fixture(scope="session")
def server(
    served_model: BaseModel, served_adapter: Adapter, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[live.Live]:
    out = tmp_path_factory.mktemp("out")
    with live.running(served_model, out, adapter=served_adapter, max_tokens=64) as running:
        assert running.hello
        yield running
