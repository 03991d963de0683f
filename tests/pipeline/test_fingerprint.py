"""The key of a stage changes with what decides its bytes, and with nothing else."""

import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import fingerprint
from pipeline.errors import Refused
from pipeline.resolved import digest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, min_size=2))
def test_digest_ignores_the_order_of_keys(value: dict) -> None:
    """The same mapping in another order has the same digest."""
    backwards = dict(reversed(list(value.items())))
    assert digest(value) == digest(backwards)


@given(st.dictionaries(st.text(), st.integers(), min_size=1), st.data())
def test_digest_notices_every_value(value: dict, data: st.DataObject) -> None:
    """Changing any one value changes the digest."""
    name = data.draw(st.sampled_from(sorted(value)))
    assert digest(value) != digest({**value, name: value[name] + 1})


def test_digest_takes_tuples_as_lists() -> None:
    """A tuple and a list of the same values have the same digest: JSON knows no tuples."""
    assert digest({"a": (1, 2)}) == digest({"a": [1, 2]})


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `stages` package of three modules, in place of ours."""
    root = tmp_path / "stages"
    (root / "noun").mkdir(parents=True)
    for folder in (root, root / "noun"):
        (folder / "__init__.py").write_text("")
    (root / "verb.py").write_text(
        "from stages.noun import part\nfrom .noun.other import x\n\ndef run():\n"
        "    return part.one\n"
    )
    (root / "noun" / "part.py").write_text('"""Doc."""\none = 1\n')
    (root / "noun" / "other.py").write_text("import json\nx = 2\n")
    (root / "unrelated.py").write_text("y = 3\n")
    spec = importlib.util.spec_from_file_location(
        "stages", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    assert spec is not None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    return root


def code(package: Path) -> str:
    fingerprint._read.cache_clear()
    return fingerprint.code_digest("stages.verb.run")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("verb.py", "from stages.noun import part\n\ndef run():\n    return part.one + 1\n"),
        ("noun/part.py", "one = 2\n"),
        ("noun/other.py", "import json\nx = 3\n"),
        ("noun/__init__.py", "z = 1\n"),
    ],
)
def test_code_digest_follows_imports(package: Path, file: str, text: str) -> None:
    """A change of meaning in the module, in what it imports, or in a package above, counts."""
    before = code(package)
    (package / file).write_text(text)
    assert code(package) != before


def test_code_digest_ignores_layout_comments_and_docstrings(package: Path) -> None:
    """Comments, blank lines and docstrings do not count, nor do modules that are not imported."""
    before = code(package)
    (package / "noun" / "part.py").write_text('"""Other words."""\n\n# why\none  =  1\n')
    (package / "verb.py").write_text(
        "from stages.noun import part\nfrom .noun.other import x\n\n"
        'def run():\n    """Say what it does."""\n    return (part.one)\n'
    )
    (package / "unrelated.py").write_text("y = 4\n")
    assert code(package) == before


def test_code_digest_imports_nothing(package: Path) -> None:
    """The closure is read from the source: no module of the work is imported for it."""
    before = set(sys.modules)
    code(package)
    assert {name for name in set(sys.modules) - before if name.startswith("stages")} == set()


def test_data_identity_follows_bytes_not_names_of_folders(tmp_path: Path) -> None:
    """The same rows in another folder have the same identity; another byte another one."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text('{"text": "x"}\n')
    same = fingerprint.data_identity(str(tmp_path / "a"))
    assert fingerprint.data_identity(str(tmp_path / "b")) == same
    (tmp_path / "b" / "train.jsonl").write_text('{"text": "y"}\n')
    assert fingerprint.data_identity(str(tmp_path / "b")) != same


def test_rows_that_are_gone_have_no_identity(tmp_path: Path) -> None:
    """Where the rows were moved away, a run= that does not prepare them can still be planned."""
    (tmp_path / "a.jsonl").write_text("1")
    assert fingerprint.data_identity(str(tmp_path / "a.jsonl")) != {}
    assert fingerprint.data_identity(str(tmp_path / "b.jsonl")) == {}


def test_rows_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    """A folder named like a file of rows is refused by its name, not taken for a bug."""
    (tmp_path / "train.jsonl").mkdir()
    with pytest.raises(Refused, match=r"data\.path: cannot read .*train\.jsonl"):
        fingerprint.data_identity(str(tmp_path))
