"""Every command in README runs as it stands there, only shorter."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import cli
import pytest

from stages.data.samples import rows
from stages.inputs import EMBEDDED

README = (cli.ROOT / "README.md").read_text(encoding="utf-8")
# What makes each command quick; a command's own words come later and win.
SHORT = ("train.steps=2", "train.validations_per_epoch=1", "evaluate.rows=2",
         "evaluate.max_tokens=4", "evaluate.samples=0", "merge.rows=1")  # fmt: skip


def block(marker: str) -> list[str]:
    """Return the lines of the code block that follows a marker in README."""
    found = re.search(rf"<!-- {re.escape(marker)} -->\n```\w*\n(.*?)```", README, re.DOTALL)
    assert found, marker
    return found.group(1).splitlines()


COMMANDS = [line.partition("  #")[0].strip() for line in block("commands") + block("data")]


def words(command: str) -> list[str]:
    """Return the program and its arguments, on this Python and shortened."""
    _, *given = shlex.split(command)
    if given[:2] == ["-m", "pipeline"]:
        # run= brings its own configuration, and a repeated key counts where it stands last.
        # Of two steps at the smallest rates of a search, bfloat16 keeps too little: merge refuses.
        given[2:2] = (*SHORT, "merge.dtype=float32") if "-m" in given[2:] else SHORT
    return [sys.executable, *given]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with one finished run, and the files that the commands name."""
    cwd = tmp_path_factory.mktemp("readme")
    small = [json.dumps(row) for row in rows("train")[:40]]
    (cwd / "my.jsonl").write_text("\n".join(small))
    (cwd / "folder").mkdir()
    text = [json.dumps({"text": f"Line {n} of a text."}) for n in range(40)]
    for split, chosen in (("train", text[::2]), ("valid", text[1::2])):
        (cwd / "folder" / f"{split}.jsonl").write_text("\n".join(chosen))
    questions = [f"Question {n}?,Reply {n}." for n in range(40)]
    (cwd / "faq.csv").write_text("\n".join(["Question,Reply", *questions]))
    spoken = [{"data": [{"text": "play "}, {"text": f"song {n}", "entity": "song"}]}
              for n in range(40)]  # fmt: skip
    (cwd / "raw.json").write_text(json.dumps({"PlayMusic": spoken}))
    (cwd / "convert.py").write_text("\n".join(block("file: convert.py")))
    (cwd / "mixed.jsonl").write_bytes("\n".join([*small, "{oops", "caf\xe9"]).encode("latin-1"))
    cli.succeed(cwd, *SHORT, "data.path=my.jsonl")
    shutil.copytree(EMBEDDED, cwd / "my-model")
    return cwd


def run(place: Path, command: str) -> subprocess.CompletedProcess[str]:
    variables = {"PYTHONPATH": str(cli.ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "hub")}
    return subprocess.run(
        words(command), cwd=place, env={**os.environ, **variables}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def cases() -> list:
    """Return the commands; the sweeps take minutes."""
    return [
        pytest.param(command, marks=pytest.mark.slow) if " -m " in command[9:] else command
        for command in COMMANDS
    ]


@pytest.mark.parametrize("command", cases())
def test_command_of_readme_runs(place: Path, command: str) -> None:
    """The command ends well; one that needs the hub says in three lines what to do without it."""
    done = run(place, command)
    if "model=qwen" in command:
        assert done.returncode == 3
        assert "model=tiny" in done.stderr
        assert len(done.stderr.splitlines()) <= 3
        return
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    if "pipeline." not in command and "dry_run" not in command:
        assert re.match(r"(run|sweep): outputs/", done.stdout.rstrip().splitlines()[-1])


def test_pretraining_command_of_readme_runs(place: Path, tmp_path: Path) -> None:
    """It makes a model of one's own text; elsewhere, so that other runs stay the latest there."""
    shutil.copytree(place / "folder", tmp_path / "folder")
    (command,) = block("pretrain")
    done = run(tmp_path, command)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "drawing all weights anew" in done.stdout
    assert "bits per byte" in done.stdout


def test_refusal_of_readme_is_the_real_one(tmp_path: Path) -> None:
    """The mistake shown in README gives the very lines shown there."""
    found = re.search(r"\$ (python -m pipeline \S+)\n(error: .*?)```", README, re.DOTALL)
    assert found
    done = cli.run(tmp_path, *shlex.split(found.group(1))[3:])
    assert done.returncode == 1
    assert done.stderr == found.group(2)


def test_serve_command_of_readme_answers(place: Path) -> None:
    """The serve command prints a URL that answers, and Ctrl-C ends it with exit code 0."""
    (command,) = block("serve")
    process = cli.start(place, *shlex.split(command)[3:], "serve.port=0")
    assert process.stdout is not None
    url = ""
    deadline = time.monotonic() + 120
    while not url and time.monotonic() < deadline:
        found = re.search(r" at (http://\S+/v1)", process.stdout.readline())
        url = found.group(1) if found else ""
    with urllib.request.urlopen(f"{url}/models", timeout=30) as answer:
        names = [model["id"] for model in json.load(answer)["data"]]
    assert names == ["base", "default"]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
