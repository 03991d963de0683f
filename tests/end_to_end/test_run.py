"""A run leaves what it promises, and a second one makes only what changed."""

import hashlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cli
import pytest

from stages.inputs import EMBEDDED


def test_run_leaves_its_record(finished) -> None:
    """run.json says what ran, from what, with which result; `latest` points at the run."""
    _, directory, record = finished
    assert record["format"] == 1
    assert record["status"] == "succeeded"
    assert cli.statuses(record) == dict.fromkeys(("prepare", "train", "merge", "evaluate"), "ran")
    assert record["config"]["lora"]["rank"] == 2
    assert record["metrics"]["train.steps"] == 6
    assert 0 < record["metrics"]["valid.loss"] <= record["metrics"]["valid.loss_before"]
    for who in ("base", "tuned"):
        for split in ("valid", "test"):
            names = ("loss", "perplexity", "exact_match", "json_valid", "slot_f1", "stop_rate")
            assert all(f"{who}.{split}.{name}" in record["metrics"] for name in names)
    assert record["environment"]["versions"]["mlx"]
    assert record["peak_memory_bytes"] > 2**20
    assert (directory.parent / "latest").resolve() == directory.resolve()
    assert not Path((directory.parent / "latest").readlink()).is_absolute()


def test_run_links_its_stages(finished) -> None:
    """The run directory links the store's directories, relatively, so that it can be moved."""
    _, directory, record = finished
    for stage in ("prepare", "train", "merge", "evaluate"):
        link = directory / stage
        assert not link.readlink().is_absolute()
        assert link.resolve().name == record["stages"][stage]["key"]
    assert (directory / "train" / "adapters.safetensors").is_file()


def test_embedded_model_is_used_where_it_lies(finished) -> None:
    """No copy of it comes into the store or beside the run, and run.json says which it was."""
    cwd, directory, record = finished
    assert not (cwd / "outputs/store/model").exists()
    assert not (directory / "model").exists()
    assert (record["model"]["path"], record["model"]["kind"]) == ("tiny", "tiny")


def test_weights_drawn_anew_are_pretrained(tmp_path: Path) -> None:
    """model.init_seed makes a model in the store, once for each seed, and lora=full trains it."""
    words = [word for word in cli.QUICK if not word.startswith("lora.")]
    words += ["lora=full", "stages=[prepare,train,merge]"]
    directory, record = cli.succeed(tmp_path, *words, "model.init_seed=5")
    before = record["metrics"]["valid.loss_before"]
    assert before == pytest.approx(math.log(6144), abs=1)
    assert record["metrics"]["valid.loss"] < before
    _, again = cli.succeed(tmp_path, *words, "model.init_seed=5")
    assert set(cli.statuses(again).values()) == {"reused"}
    _, other = cli.succeed(tmp_path, *words, "model.init_seed=6")
    assert cli.statuses(other) == {"prepare": "reused", "train": "ran", "merge": "ran"}
    assert len(list((tmp_path / "outputs/store/model").iterdir())) == 2
    config = json.loads((directory / "merge" / "config.json").read_text())
    assert config["dtype"] == "float32"


def test_metrics_file_shows_every_step(finished) -> None:
    """metrics.jsonl holds the training loss of each step and the validation losses."""
    _, directory, record = finished
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train.loss" in row] == [1, 2, 3, 4, 5, 6]
    losses = [row["valid.loss"] for row in rows if "valid.loss" in row]
    assert min(losses) == pytest.approx(record["metrics"]["valid.loss"])


def test_second_run_reuses_everything(finished) -> None:
    """The same command again makes nothing, says so with age and cost, and shows the same."""
    done = cli.run(finished.cwd, *cli.QUICK)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if " reused " in line]
    stages = ["prepare", "train", "merge", "baseline", "evaluate"]
    assert [line.split()[0] for line in lines] == stages
    assert all(" ago, took " in line or "just now, took " in line for line in lines)
    again = cli.record(finished.cwd / done.stdout.rstrip().splitlines()[-1].removeprefix("run: "))
    assert set(cli.statuses(again).values()) == {"reused"}
    assert again["metrics"] == finished.record["metrics"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.log_every=3", "reused reused reused reused"),
        ("serve.port=1234", "reused reused reused reused"),
        ("evaluate.samples=1", "reused reused reused ran"),
        ("merge.rows=3", "reused reused ran reused"),
        ("lora.alpha=8", "reused ran ran ran"),
        ("data.max_seq_length=2000", "ran ran ran ran"),
    ],
)
def test_change_runs_only_what_depends_on_it(finished, override: str, expected: str) -> None:
    """A log cadence re-runs nothing, a LoRA value only what comes after preparing the data."""
    _, record = cli.succeed(finished.cwd, *cli.QUICK, override)
    assert " ".join(cli.statuses(record).values()) == expected
    assert (finished.cwd / "outputs/store/baseline").is_dir()


def test_base_is_scored_once(finished) -> None:
    """Another adapter on the same base and rows is compared with the base's recorded scores."""
    before = len(list((finished.cwd / "outputs/store/baseline").iterdir()))
    cli.succeed(finished.cwd, *cli.QUICK, "lora.alpha=6")
    assert len(list((finished.cwd / "outputs/store/baseline").iterdir())) == before


def test_same_configuration_gives_the_same_bytes(finished, tmp_path: Path) -> None:
    """Another process in another directory makes the same adapter, byte by byte."""
    directory, record = cli.succeed(tmp_path, *cli.QUICK, cli.TRAIN)
    assert record["stages"]["train"]["key"] == finished.record["stages"]["train"]["key"]

    def digest(folder: Path) -> str:
        return hashlib.sha256((folder / "train" / "adapters.safetensors").read_bytes()).hexdigest()

    assert digest(directory) == digest(finished.directory)


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    """dry_run=true plans and leaves the directory as it was."""
    done = cli.run(tmp_path, "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "never made" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_dry_run_says_why(finished) -> None:
    """A changed value is named with both values; data and forecast come from what was measured."""
    before = sorted(path for path in finished.cwd.rglob("*"))
    done = cli.run(finished.cwd, *cli.QUICK, "lora.rank=3", "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "lora.rank 2 → 3" in done.stdout
    assert "rows" in done.stdout
    assert "GiB" in done.stdout
    assert sorted(path for path in finished.cwd.rglob("*")) == before


def test_dry_run_names_no_change_that_is_none(finished) -> None:
    """Lists that the manifest holds and tuples of the configuration are the same values."""
    done = cli.run(finished.cwd, *cli.QUICK, "lora.rank=3", "dry_run=true")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("train ")]
    assert line.rstrip().endswith("lora.rank 2 → 3")


def test_dry_run_is_refused_as_the_run_is(finished) -> None:
    """What the run would be refused for, the dry run is: it promises nothing that cannot be."""
    words = (*cli.QUICK, "lora.rank=7", "stages=[evaluate]")
    real, dry = cli.run(finished.cwd, *words), cli.run(finished.cwd, *words, "dry_run=true")
    assert (dry.returncode, dry.stderr) == (real.returncode, real.stderr)
    assert real.returncode == 1
    assert "stages=[train,evaluate]" in real.stderr


def test_dry_run_lists_only_what_would_happen(finished, tmp_path: Path) -> None:
    """A server takes an adapter: rows that are gone from the store are not prepared for it."""
    shutil.copytree(finished.cwd / "outputs", tmp_path / "outputs", symlinks=True)
    shutil.rmtree(tmp_path / "outputs/store/prepare")
    done = cli.run(tmp_path, "run=latest", "stages=[serve]", "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:4]] == [
        ["model", "use"], ["train", "reuse"], ["serve", "run"],
    ]  # fmt: skip


def test_dry_run_says_that_a_result_is_damaged(finished, tmp_path: Path) -> None:
    """An entry whose key is right but whose files are not is named as damaged."""
    shutil.copytree(finished.cwd / "outputs", tmp_path / "outputs", symlinks=True)
    (tmp_path / "outputs/runs/default/latest/train/adapters.safetensors").write_bytes(b"")
    done = cli.run(tmp_path, "run=latest", "dry_run=true")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("train ")]
    assert line.rstrip().endswith("its result is damaged")


def test_run_of_another_outputs_folder_names_the_key(finished, tmp_path: Path) -> None:
    """A run= whose results lie in another folder asks for outputs=, not to make them again."""
    done = cli.run(tmp_path, f"run={finished.directory}", "stages=[evaluate]")
    assert done.returncode == 1
    assert done.stderr.startswith("error: outputs:")
    assert len(done.stderr.splitlines()) <= 3


def test_rerun_outlives_its_rows(finished, tmp_path: Path) -> None:
    """Once trained, the run can be evaluated again though the rows' folder was moved away."""
    outputs = shutil.copytree(finished.cwd / "outputs", tmp_path / "outputs", symlinks=True)
    path = outputs / finished.directory.relative_to(finished.cwd / "outputs") / "run.json"
    recorded = json.loads(path.read_text())
    recorded["config"]["data"]["path"] = "moved-away"
    path.write_text(json.dumps(recorded))
    _, record = cli.succeed(tmp_path, f"run={path.parent}", "stages=[evaluate]")
    assert cli.statuses(record)["evaluate"] == "reused"


def test_rerun_starts_from_the_recorded_configuration(finished) -> None:
    """run=latest takes the recorded values, names its parent, and applies only what is given."""
    _, record = cli.succeed(finished.cwd, "run=latest", "stages=[train]", "lora.alpha=4")
    assert record["config"]["lora"]["rank"] == 2
    assert record["config"]["lora"]["alpha"] == 4
    assert record["parent"]


def test_stage_without_its_upstream_is_refused(tmp_path: Path) -> None:
    """stages=[train] where nothing was prepared says what to add."""
    done = cli.run(tmp_path, "stages=[train]")
    assert done.returncode == 1
    assert "prepare" in done.stderr
    assert "stages=[prepare,train]" in done.stderr
    assert len(done.stderr.splitlines()) <= 3


def test_two_trials_share_one_prepare(finished) -> None:
    """A grid trains each rank once, on the same rows, and names the best trial."""
    done = cli.run(finished.cwd, "-m", *cli.QUICK[:-1], cli.TRAIN, "lora.rank=4,5", "name=grid")
    assert done.returncode == 0, done.stdout + done.stderr
    sweep = finished.cwd / done.stdout.rstrip().splitlines()[-1].removeprefix("sweep: ")
    records = [cli.record(sweep / str(number)) for number in (0, 1)]
    assert [record["config"]["lora"]["rank"] for record in records] == [4, 5]
    assert all(cli.statuses(r) == {"prepare": "reused", "train": "ran"} for r in records)
    assert len({record["stages"]["prepare"]["key"] for record in records}) == 1


def test_users_own_text_trains(tmp_path: Path) -> None:
    """A file of texts of one's own trains, and gives validation rows by itself."""
    rows = [{"text": f"row {n} says {n * 7 % 10}"} for n in range(40)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, record = cli.succeed(tmp_path, *cli.QUICK, cli.TRAIN, "data.path=mine.jsonl")
    assert record["metrics"]["prepare.train.rows"] + record["metrics"]["prepare.valid.rows"] < 41
    assert record["metrics"]["valid.loss"] > 0


@pytest.mark.slow
def test_wikisql_trains(tmp_path: Path) -> None:
    """The files of mlx-examples' own LoRA example train, and the loss falls."""
    folder = cli.ROOT.parent / "shared" / "data" / "wikisql"
    if not folder.is_dir():
        pytest.skip("the WikiSQL files are not beside the checkout")
    _, record = cli.succeed(tmp_path, f"data.path={folder}", "train.epochs=1", cli.TRAIN)
    metrics = record["metrics"]
    assert metrics["prepare.train.rows"] == 1000
    assert metrics["valid.loss"] < 0.9 * metrics["valid.loss_before"]


@pytest.mark.parametrize("words", [(), ("dry_run=true",)])
@pytest.mark.parametrize(
    "shown_by", ["exec >&-", "exec > >(exit)", "export PYTHONIOENCODING=ascii"]
)
def test_run_goes_on_whatever_shows_it(finished, words: tuple[str, ...], shown_by: str) -> None:
    """A closed standard output, a reader that has left, a terminal of ASCII: not one complaint."""
    seed = "seed=1" if words else "seed=0"  # `→` in the reason of the dry run
    command = shlex.join([sys.executable, "-m", "pipeline", *cli.QUICK, seed, *words])
    done = subprocess.run(
        ["bash", "-c", f"{shown_by}; sleep 0.1; {command}"],
        cwd=finished.cwd,
        env={**os.environ, "PYTHONPATH": str(cli.ROOT)},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("words", [(), ("model=local", "model.path=mine")])
def test_generate_answers_from_a_base_that_was_not_made(
    finished, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """A run can be talked to whose base lies outside the store: the embedded one, or one's own."""
    directory = finished.directory
    if words:
        shutil.copytree(EMBEDDED, tmp_path / "mine")
        directory, _ = cli.succeed(tmp_path, *cli.QUICK, cli.TRAIN, *words)
        assert not (tmp_path / "outputs/store/model").exists()
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.generate", "--run", str(directory), "--prompt", "Hello",
         "--max-tokens", "3"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(cli.ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.match(r"[123] tokens, ", done.stderr)


def test_rows_that_change_while_they_are_read_are_not_kept(tmp_path: Path) -> None:
    """They are not those of the key: here a converter writes to the very file it is given."""
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    code = (
        "def row(record, source):\n"
        "    with open('rows.jsonl', 'a') as file:\n"
        "        file.write(' ')\n"
        "    return record\n"
    )
    (tmp_path / "more.py").write_text(code)
    words = ("stages=[prepare]", "data=local", "data.path=rows.jsonl", "data.convert=more.py:row")
    done = cli.run(tmp_path, *words)
    assert done.returncode == 1
    assert "changed while they were read" in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert not list((tmp_path / "outputs" / "store").glob("prepare/*"))
