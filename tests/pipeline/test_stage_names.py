"""A stage function is found by its name alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import Refused
from pipeline.stage_names import locate

ROOT = Path(__file__).parents[2]


def test_a_function_is_located_in_its_file():
    """The file of stages.prepare.prepare is stages/prepare.py."""
    assert locate("stages.prepare.prepare", "data.stage") == ROOT / "stages" / "prepare.py"


def test_locating_imports_nothing_of_the_work():
    """After finding a function, neither its module nor MLX is loaded."""
    code = (
        "import sys; from pipeline.stage_names import locate;"
        "locate('stages.train.train', 'lora.stage');"
        "print([m for m in sys.modules if m.startswith(('mlx', 'stages.'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert sorted(eval(done.stdout)) == ["stages.errors"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "train",
        "stages",
        "stages.train",
        "os.system",
        "stages..train",
        "stages.train.train()",
        "stages.train.train; import os",
        "stages.settings.Lora",
        "stages.settings._check",
        "stages.settings.GROUPS",
        "stages.train.train.x",
        "stages.data.nothing",
        "stages/train.train",
    ],
)
def test_everything_else_is_refused(name):
    """Classes, private names, values, modules and other packages are no stage functions."""
    with pytest.raises(Refused) as refused:
        locate(name, "lora.stage")
    assert refused.value.where == "lora.stage"
    assert repr(name) in refused.value.found
