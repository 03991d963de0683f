"""Every test runs on the fast BLAS, which must be there before anything imports MLX."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.environment import worker_variables
from stages.inputs import EMBEDDED
from stages.models.blas import preload

os.environ.update(worker_variables("tiny"))
preload()


class Silent:
    """A reporter that keeps nothing."""

    def log(self, message: str) -> None:
        pass


@pytest.fixture(scope="session")
def draw_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a maker of models in float32 with weights drawn at random: 4 blocks of the embedded
    model's shape, or as the values that are given for its config say, and its tokenizer."""
    from stages.models.materialize import materialize
    from stages.settings import Model

    def make(out: Path, seed: int = 0, **values: Any) -> Path:
        source = tmp_path_factory.mktemp("architecture")
        for file in (*EMBEDDED.glob("*.json"), *EMBEDDED.glob("*.jinja")):
            shutil.copyfile(file, source / file.name)
        config = json.loads((source / "config.json").read_text())
        config |= {"num_hidden_layers": 4} | values
        (source / "config.json").write_text(json.dumps(config))
        out.mkdir(exist_ok=True)
        model = Model(path=str(source), init_seed=seed)
        materialize(model, source=source, dtype="stored", report=Silent(), out=out)
        # A single file needs no index; without one, tests can change what is in it.
        (out / "model.safetensors.index.json").unlink()
        return out

    return make
