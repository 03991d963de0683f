"""`python -m pipeline.runs` says what there is, also where something is damaged."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.record import RunRecord
from pipeline.runs import main
from pipeline.store import Store

ROOT = Path(__file__).parents[2]
STAMP = "20260101-120000-00000"


def run(place: str, *, rank: int = 8, fails: bool = False) -> Path:
    """Leave a run at `outputs/<place>`, under the working directory."""
    directory = Path("outputs") / place
    store = Store(Path("outputs") / "store")
    config = {
        "name": directory.parts[2],
        "outputs": "outputs",
        "model": {"path": "tiny"},
        "data": {"path": "rows[1].jsonl"},
        "lora": {"type": "lora", "rank": rank},
    }
    about: dict[str, Any] = {
        "command": ["python", "-m", "pipeline", "stages=[prepare, train]"],
        "model": {"path": "tiny", "commit": None},
        "environment": {"versions": {"mlx": "0.32.4"}},
    }
    try:
        with RunRecord.start(directory, config=config, **about) as record:
            if fails:
                raise ZeroDivisionError("by nothing")
            staging = store.stage_directory("train", f"abcdef0123456789{rank}")
            metrics = {"valid.loss": 1.25, "train.tokens_per_second": 4321.0, "train.steps": 60.0}
            entry = store.commit(
                staging,
                "train",
                f"abcdef0123456789{rank}",
                ingredients={},
                metrics=metrics,
                seconds=12.5,
                peak_memory_bytes=2**29,
            )
            record.stage("train", entry.key, "ran", entry)
    except ZeroDivisionError:
        pass
    return directory


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def output(capsys, *arguments: str) -> str:
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def refusal(capsys, *arguments: str) -> str:
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) <= 3
    return printed.err


@pytest.mark.parametrize("command", [["ls"], ["show"], ["ls", "--name", "a"]])
def test_before_the_first_run(capsys, command: list[str]) -> None:
    """With nothing there yet the answer is how to begin, and nothing is created."""
    expected = "no runs under outputs/runs yet: python -m pipeline makes the first\n"
    assert output(capsys, *command) == expected
    assert output(capsys, "ls", "--outputs", "my runs").endswith(
        "python -m pipeline outputs='my runs' makes the first\n"
    )
    assert list(Path().iterdir()) == []


def test_ls_lists_runs_and_trials_newest_last(capsys) -> None:
    """Each run and trial is one whole line with its figures, in order of stamp and number."""
    run(f"runs/default/{STAMP}3")
    run(f"sweeps/a-rather-long-name-of-a-sweep/{STAMP}2/10", rank=16)
    run(f"sweeps/a-rather-long-name-of-a-sweep/{STAMP}2/9", rank=4)
    run(f"runs/other/{STAMP}1", fails=True)
    head, *rows = output(capsys, "ls").splitlines()
    assert head.split()[0] == "run"
    assert [row.split()[0] for row in rows] == [
        f"other/{STAMP}1",
        f"a-rather-long-name-of-a-sweep/{STAMP}2/9",
        f"a-rather-long-name-of-a-sweep/{STAMP}2/10",
        f"default/{STAMP}3",
    ]
    assert rows[0].split()[1] == "failed"
    figures = ["succeeded", "tiny", "rows[1].jsonl", "lora", "r16", "1.25", "4,321"]
    assert rows[2].split()[1:8] == figures
    assert rows[2].rstrip().endswith("just now")
    assert "\x1b" not in head


def test_ls_of_one_name(capsys) -> None:
    """--name shows that name's runs alone; a misspelt one is refused with the near one."""
    run("runs/spider/1")
    run("runs/wiki/2")
    assert "wiki" not in output(capsys, "ls", "--name", "spider")
    assert "did you mean spider?" in refusal(capsys, "ls", "--name", "spidr")
    assert "there are spider, wiki" in refusal(capsys, "show", "--name", "zzz")


@pytest.mark.parametrize("content", ["", "{", '{"format": 1}', '{"format": 9}', "[]"])
def test_damaged_record_does_not_break_ls(capsys, content: str) -> None:
    """A run whose record cannot be read is shown as unreadable, with the file, beside the rest."""
    run("runs/a/1")
    (run("runs/a/2") / "run.json").write_text(content)
    _, good, bad, why = output(capsys, "ls").splitlines()
    assert good.split()[:2] == ["a/1", "succeeded"]
    assert bad.split()[:2] == ["a/2", "unreadable"]
    assert why.startswith("unreadable: outputs/runs/a/2/run.json: ")


def test_strange_values_do_not_break_ls(capsys) -> None:
    """A record of our format with values of other kinds is shown as far as it goes."""
    path = run("runs/a/1") / "run.json"
    record = json.loads(path.read_text())
    record["config"] = {"model": None, "lora": {"rank": None}, "data": 3}
    record["metrics"] = {"valid.loss": None, "train.tokens_per_second": "fast"}
    path.write_text(json.dumps(record))
    assert "a/1" in output(capsys, "ls")
    assert "a/1" in output(capsys, "show")
    path.write_text(json.dumps({**record, "started": "yesterday"}))
    assert "unreadable" in output(capsys, "ls")


RUN = """
import sys
from pathlib import Path
from pipeline.record import RunRecord
about = {"config": {"name": "a"}, "command": [], "model": {}, "environment": {}}
with RunRecord.start(Path(sys.argv[1]), **about):
    print("started", flush=True)
    input()
"""


def test_dead_run_is_told_from_a_running_one(capsys) -> None:
    """A run whose process is at work is running; after kill -9 it has died."""
    command = [sys.executable, "-c", RUN, "outputs/runs/a/1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe) as process:
        assert process.stdout.readline() == b"started\n"
        assert "running" in output(capsys, "ls")
        assert json.loads(output(capsys, "show", "a/1", "--json"))["status"] == "running"
        process.send_signal(signal.SIGKILL)
    assert "died" in output(capsys, "ls")
    assert "died" in output(capsys, "show")


def test_show_says_what_the_run_did(capsys) -> None:
    """Stages with short key, status and cost, every metric, the environment, and how it began."""
    directory = run("runs/a/1")
    lines = output(capsys, "show").splitlines()
    words = [line.split() for line in lines]
    assert ["run", str(directory)] in words
    assert ["status", "succeeded"] in words
    assert ["train", "abcdef01", "ran", "12.5", "0.50", "GiB"] in words
    assert ["valid.loss", "1.25"] in words
    assert ["train.tokens_per_second", "4,321"] in words
    assert ["versions.mlx", "0.32.4"] in words
    assert "python -m pipeline 'stages=[prepare, train]'" in "\n".join(lines)
    assert ["lora.rank", "8"] not in words


def test_show_config(capsys) -> None:
    """--config adds every key of the resolved configuration."""
    run("runs/a/1", rank=32)
    words = [line.split() for line in output(capsys, "show", "a/1", "--config").splitlines()]
    assert ["lora.rank", "32"] in words
    assert ["data.path", "rows[1].jsonl"] in words


def test_show_without_a_run_takes_the_newest(capsys) -> None:
    """`show` is about the last run whatever became of it, `show latest` about the last success."""
    run("runs/a/1")
    run("runs/a/2", fails=True)
    assert "ZeroDivisionError('by nothing')" in output(capsys, "show")
    assert "ZeroDivisionError" not in output(capsys, "show", "latest")
    assert "no such run directory" in refusal(capsys, "show", "a/3")


def test_json_is_for_programs(capsys) -> None:
    """--json prints what the tables show, and the whole record, as JSON."""
    assert json.loads(output(capsys, "ls", "--json")) == {"format": 1, "runs": []}
    directory = run("runs/a/1")
    listed = json.loads(output(capsys, "ls", "--json"))
    assert listed["format"] == 1
    (row,) = listed["runs"]
    assert (row["run"], row["directory"], row["status"]) == ("a/1", str(directory), "succeeded")
    assert row["metrics"]["valid.loss"] == 1.25
    assert row["seconds"] >= 0
    shown = json.loads(output(capsys, "show", "--json"))
    assert shown == {
        **json.loads((directory / "run.json").read_text()),
        "directory": row["directory"],
    }


def test_unknown_flag_exits_with_2(capsys) -> None:
    """Unknown flags and commands are told apart from refused values by exit code 2."""
    for arguments in (["ls", "--colour"], ["list"], []):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_it_starts_light() -> None:
    """Listing runs imports neither Hydra nor the hub nor anything that computes."""
    script = (
        "import sys; from pipeline.runs import main; main(['ls'])\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    heavy = {"hydra", "omegaconf", "huggingface_hub", "transformers", "tokenizers", "mlx", "numpy"}
    assert "rich" in done.stdout
    assert not [name for name in heavy if f"'{name}'" in done.stdout]


@pytest.mark.parametrize("arguments", ["ls", "show", "show --json"])
def test_reader_may_leave_early(arguments: str) -> None:
    """`runs ls | head` ends without a complaint, however early the reader stops."""
    run("runs/a/1")
    command = f"{sys.executable} -m pipeline.runs {arguments} | true; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], env=environment, stderr=subprocess.PIPE)
    assert (done.stderr, done.returncode) == (b"", 0)


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_terminal_shows_colours_and_whole_names(capsys, monkeypatch, columns: int) -> None:
    """On a terminal the status is coloured; a narrow one does without columns, not without
    names."""
    run(f"runs/a/{STAMP}1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = output(capsys, "ls")
    assert "\x1b[32msucceeded" in shown
    assert f"a/{STAMP}1 " in shown
    plain = re.sub(r"\x1b\[\d*m", "", shown).splitlines()
    assert len(plain) == 2
    assert max(map(len, plain)) <= columns
    assert "1.25" in plain[1]
    assert ("just now" in plain[1]) == (columns >= 100)
