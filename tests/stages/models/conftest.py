import os
import shutil

import pytest


@pytest.fixture(scope="session")
def drawn_directory(draw_model, tmp_path_factory):
    """A small model of random weights, made once; never written to."""
    return draw_model(tmp_path_factory.mktemp("drawn"))


@pytest.fixture
def copy(drawn_directory, tmp_path):
    """A copy of it for one test to damage: replace files, never write into them."""
    return shutil.copytree(drawn_directory, tmp_path / "model", copy_function=os.link)
