import os
import shutil

import pytest

from stages.models import tiny


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory):
    """The embedded model, built once; never written to."""
    directory = tmp_path_factory.mktemp("tiny")
    tiny.build(directory)
    return directory


@pytest.fixture
def copy(tiny_directory, tmp_path):
    """A copy of the embedded model for one test to damage: replace files, never write into them."""
    return shutil.copytree(tiny_directory, tmp_path / "model", copy_function=os.link)
