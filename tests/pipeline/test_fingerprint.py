"""The key of a stage changes with what decides its bytes, and with nothing else."""

import hashlib
import importlib.util
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import fingerprint, schema
from pipeline.compose import opened
from pipeline.configure import configure
from pipeline.errors import Refused
from pipeline.overrides import read
from pipeline.plan import TABLE
from pipeline.resolved import digest
from pipeline.schema import Config

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


COMMIT = "0123456789abcdef0123456789abcdef01234567"
X, Y = '{"text": "x"}\n', '{"text": "y"}\n'


def identity(config: Config, commits: dict[str, str] | None = None, **data: Any) -> dict[str, Any]:
    return fingerprint.data_identity(replace(config.data, **data), commits or {})


@pytest.fixture(scope="module")
def config() -> Config:
    schema.register()
    with opened(None, "config") as composer:
        given = read([], composer.loader, sweeping=False)
        return configure(composer.compose(given), given, composer)[0]


def write(folder: Path, **texts: str) -> str:
    """Write `name=text` as files of rows into a new folder, and return its path."""
    folder.mkdir()
    for name, text in texts.items():
        (folder / f"{name}.jsonl").write_text(text)
    return str(folder)


def test_data_identity_follows_bytes_not_names_of_folders(config: Config, tmp_path: Path) -> None:
    """The same rows in another folder have the same identity; another byte another one."""
    one = identity(config, path=write(tmp_path / "a", train=X, dev=Y))
    assert one == {
        "dev.jsonl": {"valid": hashlib.sha256(Y.encode()).hexdigest()},
        "train.jsonl": {"train": hashlib.sha256(X.encode()).hexdigest()},
    }
    assert identity(config, path=write(tmp_path / "b", train=X, dev=Y)) == one
    assert identity(config, path=write(tmp_path / "c", train=X, dev=X)) != one
    assert identity(config, path=write(tmp_path / "d", train=X, test=Y)) != one
    pattern = str(tmp_path / "a" / "*.jsonl")
    assert identity(config, path=pattern) == one


def test_data_identity_follows_the_order_of_the_entries(config: Config, tmp_path: Path) -> None:
    """Entries may hold files of the same name; which comes first decides weights and order."""
    a, b = (str(Path(write(tmp_path / n, rows=text)) / "rows.jsonl") for n, text in
            (("a", X), ("b", Y)))  # fmt: skip
    both = identity(config, path=(a, b))
    assert len(both) == 2
    assert identity(config, path=(b, a)) != both
    assert identity(config, path=(a,)) == identity(config, path=a)


def test_data_of_the_hub_is_its_commit(config: Config) -> None:
    """The commit stands for the rows, whatever branch it was found by; samples are our own."""
    found = identity(config, {"owner/name": COMMIT}, path=("owner/name", "samples"))
    assert found == {"0: owner/name": {"commit": COMMIT}, "1: samples": {"bundled": True}}
    other = identity(config, {"owner/name": COMMIT[::-1]}, path=("owner/name", "samples"))
    assert other != found


def test_converter_and_template_count_by_their_content(config: Config, tmp_path: Path) -> None:
    """Where the user's two files lie does not count; a byte of them does, and the function."""
    seen = [identity(config)]
    for folder, code in (("a", "def one(row): ..."), ("b", "def one(row): ...")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.py").write_text(code)
        (tmp_path / folder / "rows.jinja").write_text("{{ messages }}")
    same = [
        identity(config, convert=f"{tmp_path / folder / 'rows.py'}:one",
                 chat_template=str(tmp_path / folder / "rows.jinja"))
        for folder in ("a", "b")
    ]  # fmt: skip
    assert same[0] == same[1]
    seen.append(same[0])
    seen.append(identity(config, convert=f"{tmp_path / 'a' / 'rows.py'}:one"))
    seen.append(identity(config, convert=f"{tmp_path / 'a' / 'rows.py'}:two"))
    (tmp_path / "a" / "rows.py").write_text("def one(row): return row")
    seen.append(identity(config, convert=f"{tmp_path / 'a' / 'rows.py'}:one"))
    assert len({digest(one) for one in seen}) == len(seen)


def test_paths_are_no_settings_of_the_key(config: Config) -> None:
    """What the identity stands for stays out of the key's settings; all else of data is in."""
    (prepare,) = (step for step in TABLE if step.name == "prepare")
    made_of = fingerprint.ingredients(prepare, config, model={}, inputs={}, upstream={})
    left_out = {"stage", "path", "revision", "convert", "chat_template"}
    assert set(made_of["settings"]["data"]) == set(asdict(config.data)) - left_out
    assert {"tokenizers", "transformers", "jinja2", "rensa"} == set(made_of["libraries"])


def test_rows_that_are_gone_have_no_identity(config: Config, tmp_path: Path) -> None:
    """Where the rows were moved away, a run= that does not prepare them can still be planned."""
    folder = write(tmp_path / "a", rows=X)
    assert identity(config, path=f"{folder}/rows.jsonl") != {}
    assert identity(config, path=f"{folder}/other.jsonl") == {}
    assert identity(config, convert=f"{folder}/gone.py:one") == {
        **identity(config), "function": "one"
    }  # fmt: skip


def test_rows_that_cannot_be_read_are_refused(config: Config, tmp_path: Path) -> None:
    """A link that leads nowhere is refused by its name, not taken for a bug."""
    (tmp_path / "train.jsonl").symlink_to(tmp_path / "gone")
    with pytest.raises(Refused, match=r"data\.path: cannot read .*train\.jsonl"):
        identity(config, path=str(tmp_path))


def test_what_a_converter_imports_counts_too(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules of the working directory that it imports, directly or not; no others."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words").mkdir()
    for name, code in {
        "rows.py": "import json, labels\n", "labels.py": "from words import list_ as listed\n",
        "words/__init__.py": "", "words/list_.py": "A = 1\n", "other.py": "",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(code)
    before = identity(config, convert="rows.py:one")
    assert [name for name in before if name.startswith("import ")] == [
        "import labels", "import words", "import words.list_",
    ]  # fmt: skip
    (tmp_path / "words" / "list_.py").write_text("A = 2\n")
    assert identity(config, convert="rows.py:one") != before
    (tmp_path / "rows.py").write_text("import (\n")
    assert "import labels" not in identity(config, convert="rows.py:one")
