"""Which files `data.path` names, and which split each is found to hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stages.errors import InputError
from stages.inputs import DataFile, data_paths, find_files, is_hub_name, kind

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no folder of real data here")


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("{}\n")
    return root


def splits(path: str | Path) -> dict[str, str]:
    return {file.name: file.split for file in find_files(str(path))[0]}


def refused(path: str | Path) -> InputError:
    with pytest.raises(InputError) as caught:
        find_files(str(path))
    return caught.value


NAMES = [
    ("train.jsonl", "train"),
    ("training.csv", "train"),
    ("TRAIN.JSONL", "train"),
    ("train-00000-of-00003.parquet", "train"),
    ("train_PlayMusic_full.json", "train"),
    ("train2.txt", "train"),
    ("valid.jsonl", "valid"),
    ("validation.json", "valid"),
    ("validate_PlayMusic.json", "valid"),
    ("val.tsv", "valid"),
    ("dev.csv.gz", "valid"),
    ("Eval.md", "valid"),
    ("test.ndjson", "test"),
    ("testing.markdown", "test"),
    ("test/a.txt", "test"),
    ("en/dev-1/deep/a.txt", "valid"),
]


@pytest.mark.parametrize(("name", "split"), NAMES)
def test_a_name_says_the_split(tmp_path: Path, name: str, split: str) -> None:
    """Every common spelling is found, in the names of files and of folders, in any case."""
    make(tmp_path, name, "base/train.json")
    assert splits(tmp_path) == {name: split, "base/train.json": "train"}


@pytest.mark.parametrize(
    "name", ["trainer.jsonl", "latest.jsonl", "value.csv", "train journey.txt"]
)
def test_a_word_that_only_begins_alike_says_nothing(tmp_path: Path, name: str) -> None:
    """No split is named, so all the files are training data."""
    make(tmp_path, name, "notes.txt")
    assert splits(tmp_path) == {name: "train", "notes.txt": "train"}


def test_a_split_may_stand_anywhere_beside_its_counterpart(tmp_path: Path) -> None:
    """Test rows are not trained because the name of the set comes first; lone words say nothing."""
    make(tmp_path / "a", "wiki.train.txt", "wiki.test.txt", "x/wiki.dev.txt")
    assert splits(tmp_path / "a") == {"wiki.test.txt": "test", "wiki.train.txt": "train"}
    make(tmp_path / "b", "the-last-train.txt", "a-test-of-time.txt")
    assert set(splits(tmp_path / "b").values()) == {"train"}


def test_files_without_a_split_are_passed_over_where_others_name_one(tmp_path: Path) -> None:
    """What is not read is told, under the name that the person would give it."""
    make(
        tmp_path,
        "train.jsonl",
        "test.jsonl",
        "more.jsonl",
        "README.md",
        "plot.png",
        ".hidden/x.txt",
    )
    found, passed_over = find_files(str(tmp_path))
    assert [(file.name, file.split) for file in found] == [
        ("test.jsonl", "test"),
        ("train.jsonl", "train"),
    ]
    assert passed_over == [str(tmp_path / name) for name in ("README.md", "more.jsonl", "plot.png")]


def test_a_folder_of_documents_is_training_data(tmp_path: Path) -> None:
    """Files are sorted by their names; those about the folder are no data."""
    make(
        tmp_path,
        "b.md",
        "a/z.txt",
        "LICENSE.txt",
        "a/changelog.md",
        "readme_first.md",
        "Reading.md",
    )
    found, passed_over = find_files(str(tmp_path))
    assert [file.name for file in found] == ["Reading.md", "a/z.txt", "b.md"]
    assert {file.split for file in found} == {"train"}
    assert len(passed_over) == 3


def test_a_file_given_alone_is_training_data(tmp_path: Path) -> None:
    """Its name may be that of a split, its path a relative one and hold a pattern's characters."""
    make(tmp_path, "test[1].jsonl")
    path = str(tmp_path / "test[1].jsonl")
    assert find_files(path) == ([DataFile(path, "test[1].jsonl", "train", 0)], [])


def test_paths_are_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages show the path as it was written: a folder, a pattern, and `~`."""
    make(tmp_path, "rows/train.jsonl", "rows/deep/er/train.csv", "rows/train.xml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_files("rows")[0][1] == DataFile("rows/train.jsonl", "train.jsonl", "train", 0)
    for pattern in ("rows/*.json?", "~/rows/*.jsonl", "r*/*.jsonl", "*/*[l]"):
        (file,), _ = find_files(pattern)
        home = "~/" if pattern[0] == "~" else ""
        name = "rows/train.jsonl" if "*/" in pattern else "train.jsonl"
        assert (file.path, file.name) == (f"{home}rows/train.jsonl", name)
    assert set(splits("rows/**")) == {"train.jsonl", "deep/er/train.csv"}
    assert find_files("rows/**")[1] == ["rows/train.xml"]


def test_entries_of_a_list_keep_their_index(tmp_path: Path) -> None:
    """Each entry is looked at alone: weights are given to them by their place."""
    make(tmp_path, "a.jsonl", "b/train.json", "b/dev.json")
    entries = [str(tmp_path / "a.jsonl"), "owner/set", "samples", str(tmp_path / "b")]
    found, _ = find_files(entries)
    assert [(file.name, file.split, file.source) for file in found] == [
        ("a.jsonl", "train", 0),
        ("samples/train", "train", 2),
        ("samples/valid", "valid", 2),
        ("samples/test", "test", 2),
        ("dev.json", "valid", 3),
        ("train.json", "train", 3),
    ]
    assert data_paths("samples") == ("samples",)
    assert data_paths(entries) == tuple(entries)


def test_what_runs_wrote_is_no_data(tmp_path: Path) -> None:
    """A root of outputs lies beside the data often: its prepared rows are not trained again."""
    made = ("outputs/store/prepare/k/train.jsonl", "outputs/runs/default/run.json")
    make(tmp_path, "mine/train.jsonl", *made)
    assert splits(tmp_path) == {"mine/train.jsonl": "train"}
    assert splits(f"{tmp_path}/**/*.json*") == {"mine/train.jsonl": "train"}


def test_a_folder_that_holds_itself_is_walked_once(tmp_path: Path) -> None:
    """A link to a folder is followed, one to a folder above is not."""
    make(tmp_path, "data/a.txt", "elsewhere/b.txt")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    assert set(splits(tmp_path / "data")) == {"a.txt", "more/b.txt"}


def test_a_folder_without_training_rows_says_what_it_found(tmp_path: Path) -> None:
    """Found and looked for stand in the message, so that a misspelt name is seen at once."""
    error = refused(make(tmp_path, "trian.jsonl", "dev.jsonl", "test.jsonl"))
    assert error.where == str(tmp_path)
    assert error.found == (
        "no training file in it (found dev.jsonl, test.jsonl, trian.jsonl; "
        "looked for a name with train or training)"
    )


def test_two_spellings_of_one_split_are_refused(tmp_path: Path) -> None:
    """Neither of two validation files is chosen in silence; other folders are their own affair."""
    make(tmp_path, "train.jsonl", "a/valid.jsonl", "b/dev.jsonl")
    assert len(splits(tmp_path)) == 3
    make(tmp_path, "val.jsonl", "dev.jsonl")
    assert refused(tmp_path).found == "found dev.jsonl and val.jsonl, expected one valid split"


def test_a_name_with_two_splits_is_refused(tmp_path: Path) -> None:
    """A file called train in a folder called test could be meant either way."""
    error = refused(make(tmp_path, "test/train.txt", "train.txt"))
    assert error.where == f"{tmp_path}: test/train.txt"
    assert error.found == "its name says train and test, expected one split"


def test_a_folder_without_data_says_what_it_found(tmp_path: Path) -> None:
    """No file of rows, none at all, or only a README; a pattern lists what lies there."""
    assert "no file of rows (found nothing; looked for .jsonl, " in refused(tmp_path).found
    make(tmp_path, "README.md", *(f"{n}.png" for n in range(7)))
    listed = "(found 0.png, 1.png, 2.png, 3.png, 4.png and 3 more;"
    assert listed in refused(tmp_path).found
    assert refused(f"{tmp_path}/*.jsonl").found == (
        f"the pattern matches no file (in {str(tmp_path)!r}: "
        "0.png, 1.png, 2.png, 3.png, 4.png and 3 more)"
    )
    assert "(in 'nowhere': nothing)" in refused("nowhere/*.csv").found


@pytest.mark.parametrize("name", ["rows.xlsx", "rows", "rows.parquet.gz", "rows.jsonl.zip"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    """The endings that can be read are listed."""
    error = refused(make(tmp_path, name) / name)
    assert error.where == str(tmp_path / name)
    assert error.found.startswith(f"found the ending '{name[4:]}', expected .jsonl, .ndjson, .json")


@pytest.mark.parametrize("path", ["no/such.jsonl", "nothing", "a/b/c", "/no/where"])
def test_a_missing_path_is_refused_at_its_key(path: str) -> None:
    """The key is named, with what may stand there."""
    assert str(refused(path)) == (
        f"data.path: no file or folder '{path}'; "
        "give a file, a folder, a pattern, owner/name of the hub, or samples"
    )


def test_a_hub_name_is_told_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies on disk, or is called like a file of rows, is looked for on disk."""
    monkeypatch.chdir(make(tmp_path, "local/set/train.jsonl"))
    hub = ["openai/gsm8k", "a-b/c_d.e"]
    files = ["local/set", "rows/missing.csv", "samples", "a/b/c", "./a/b", "~/a", "a/*", "gsm8k"]
    assert [path for path in hub + files if is_hub_name(path)] == hub
    assert find_files(hub) == ([], [])


def test_kinds_are_told_by_their_endings() -> None:
    """In any case, with or without .gz."""
    names = ["a.JSONL", "b.csv.gz", "c.Parquet", "d.parquet.gz", "e.gz", "f.tar.gz", "jsonl"]
    assert [kind(name) for name in names] == [".jsonl", ".csv", ".parquet", "", "", "", ""]


@needs_data
def test_real_folders_are_read_as_they_are() -> None:
    """SNIPS has seven files of each of two splits; the tales have three, the books none."""
    snips = list(splits(DATA / "snips").values())
    assert (snips.count("train"), snips.count("valid"), len(snips)) == (7, 7, 14)
    assert splits(DATA / "fairytales") == {
        "train.jsonl.gz": "train",
        "val.jsonl.gz": "valid",
        "test.jsonl.gz": "test",
    }
    assert list(splits(DATA / "books").values()) == ["train"] * 8


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """In a folder it holds no rows; named alone it is refused."""
    make(tmp_path, "a.jsonl")
    os.mkfifo(tmp_path / "b.jsonl")
    assert splits(tmp_path) == {"a.jsonl": "train"}
    assert refused(tmp_path / "b.jsonl").found.startswith("found a pipe or a device")
