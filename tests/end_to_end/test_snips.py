"""`experiment=snips`: what it says without its data, and what it makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import cli
import pytest

SNIPS = cli.ROOT.parent / "shared" / "data" / "snips"
EXPERIMENT = (
    "experiment=snips",
    f"data.convert={cli.ROOT / 'stages' / 'data' / 'samples' / 'snips.py'}:command",
)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((), "error: data.path: found no value, but data=local needs it\n  set data.path=<value>"),
        (("data.path=no/such/snips",), "error: data.path: no file or folder 'no/such/snips'\n"
         "  give a file, a folder, a pattern, owner/name of the hub, or samples"),
    ],
)  # fmt: skip
def test_without_its_data_the_experiment_is_refused(
    tmp_path: Path, words: tuple[str, ...], error: str
) -> None:
    """The key is named, and how to set it; nothing is written."""
    done = cli.run(tmp_path, *EXPERIMENT, *words)
    assert (done.returncode, done.stderr.strip()) == (1, error)
    assert list(tmp_path.iterdir()) == []


def test_elsewhere_its_converter_is_missing(tmp_path: Path) -> None:
    """The example lies in the checkout, where the command is meant to be run."""
    (tmp_path / "train.jsonl").write_text('{"text": "x"}\n')
    done = cli.run(tmp_path, "experiment=snips", "data.path=train.jsonl")
    assert done.returncode == 1
    assert done.stderr.startswith("error: data.convert: no file 'stages/data/samples/snips.py'\n")


@pytest.mark.skipif(not SNIPS.is_dir(), reason="the SNIPS files are not beside the checkout")
def test_a_dry_run_names_the_files_by_split(tmp_path: Path) -> None:
    """`train_…` and `validate_…` say the split; nothing is written."""
    done = cli.run(tmp_path, *EXPERIMENT, f"data.path={SNIPS}", "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "train_PlayMusic_full.json (train)" in done.stdout
    assert "validate_AddToPlaylist.json (valid)" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not SNIPS.is_dir(), reason="the SNIPS files are not beside the checkout")
def test_the_whole_of_snips_is_prepared(tmp_path: Path) -> None:
    """All 700 validation rows; all training rows but the 9 that ask what one of these asks."""
    words = ("stages=[prepare]", f"data.path={SNIPS}")
    directory, record = cli.succeed(tmp_path, *EXPERIMENT, *words)
    metrics = record["metrics"]
    sizes = {split: metrics[f"prepare.{split}.rows"] for split in ("train", "valid")}
    assert sizes == {"train": 13_784 - 9, "valid": 700}
    lines = (directory / "prepare" / "valid.jsonl").read_text("utf-8").splitlines()
    first = json.loads(lines[0])
    assert first["source"] == "validate_AddToPlaylist.json:3"
    assert [turn["role"] for turn in first["messages"]] == ["system", "user", "assistant"]
    assert first["messages"][1]["content"].startswith("I'd like to have this track onto my")
    assert first["messages"][2]["content"] == (
        '{"intent":"AddToPlaylist","slots":{"music_item":"track","playlist_owner":"my",'
        '"playlist":"Classical Relaxations"}}'
    )
