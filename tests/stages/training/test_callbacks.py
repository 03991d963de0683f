"""Callbacks see the training, and whatever they do, the training does not see them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from stages.errors import EnvironmentFailure, SettingError, StageError, StopRequested
from stages.lora.bank import attach, initial
from stages.lora.layers import AdapterShape
from stages.lora.targets import find_targets
from stages.training import callbacks
from stages.training.callbacks import watching
from stages.training.loop import fit

WRITE = "import json\ndef write(event):\n    print(json.dumps(event), file=open({!r}, 'a'))\n"
ROW = {"train.loss": 1.0, "train.learning_rate": 0.5, "train.step_tokens": 9.0}
GOES_ON = "it is not called any more, and nothing of the training changes"


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., str]:
    """Return a maker of `file.py:function`: the function's body is given."""

    def make(body: str, name: str = "mine") -> str:
        (tmp_path / f"{name}.py").write_text(
            f"import os, sys, time\ndef call(event):\n    {body}\n"
        )
        return f"{tmp_path / name}.py:call"

    return make


def writer(tmp_path: Path, name: str = "writer") -> tuple[str, Path]:
    events = tmp_path / f"{name}.jsonl"
    (tmp_path / f"{name}.py").write_text(WRITE.format(str(events)))
    return f"{tmp_path / name}.py:write", events


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def few_events(report: Any, settings: Sequence[str], steps: int = 3) -> None:
    with watching(report, settings, None) as watched:
        watched.start({"total_steps": steps})
        for step in range(1, steps + 1):
            watched.metrics(step, {**ROW, "train.loss": 1 / step})
        watched.outcome = {"valid.loss": 0.25}


def test_events_tell_the_course_of_the_training(tmp_path: Path, recorder: Any) -> None:
    """One event for the start, each row of metrics and the end, with the rows' own names; the
    reporter below is told the same as without callbacks."""
    setting, events = writer(tmp_path)
    report = recorder()
    with watching(report, [setting], None) as watched:
        watched.start({"total_steps": 1, "lora.targets": ("*",), "lora.num_layers": None})
        watched.resumed(1, 60.0)
        watched.metrics(0, {"valid.loss": 2.0})
        watched.metrics(1, {**ROW, "train.loss": 1.5})
        watched.progress(1, 1, {"loss": 1.5})
        watched.outcome = {"train.steps": 1}
    assert read(events) == [
        {"event": "start", "total_steps": 1, "lora.targets": ["*"], "lora.num_layers": None},
        {"event": "resumed", "step": 1},
        {"event": "validation", "step": 0, "valid.loss": 2.0},
        {"event": "step", "step": 1, **ROW, "train.loss": 1.5},
        {"event": "end", "status": "succeeded", "error": None, "train.steps": 1},
    ]
    assert [step for step, _ in report.rows] == [0, 1]
    assert report.resumed_after == 1
    assert report.moves == [(1, 1, {"loss": 1.5})]
    assert report.lines == []
    assert list(watched.curve.losses) == [1.5]
    assert watched.curve.valid == [(0, 2.0)]


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [(StopRequested(), "stopped", None), (StageError("train", "loss is nan"), "failed",
                                          "train: loss is nan")],
)  # fmt: skip
def test_end_says_how_it_ended(
    tmp_path: Path, recorder: Any, error: StageError, status: str, text: str | None
) -> None:
    """The error of the training passes through as it is, after the callbacks were told."""
    setting, events = writer(tmp_path)

    def run() -> None:
        with watching(recorder(), [setting], None) as watched:
            watched.start({})
            raise error

    with pytest.raises(StageError) as caught:
        run()
    assert caught.value is error
    assert read(events)[-1] == {"event": "end", "status": status, "error": text}


def test_training_that_never_started_has_no_events(tmp_path: Path, recorder: Any) -> None:
    """Data refused before the first step: the callback is loaded, and not called."""
    setting, events = writer(tmp_path)
    with pytest.raises(SettingError), watching(recorder(), [setting], None):
        raise SettingError("lora.targets", "nothing")
    assert not events.exists()


BAD = {
    "raises": ("raise ValueError('no\\nroom')", "raised ValueError: no room (mine.py:3)"),
    "exits": ("sys.exit(3)", "raised SystemExit: 3 (mine.py:3)"),
    "leaves": ("os._exit(0)", "ended its process"),
    "kills": ("os.kill(os.getpid(), 9)", "ended its process"),
    "closes": ("os.closerange(0, 50); os._exit(1)", "ended its process"),
}


@pytest.mark.parametrize("kind", BAD)
def test_failed_callback_is_logged_once_and_switched_off(
    tmp_path: Path, recorder: Any, script: Any, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever ends a callback, one line tells it, and another callback is called to the end."""
    body, said = BAD[kind]
    setting, events = writer(tmp_path)
    report, bad = recorder(), script(body)
    few_events(report, [bad, setting], steps=40)
    assert report.lines == [f"train.callbacks: {bad} {said}; {GOES_ON}"]
    assert len(read(events)) == 42
    assert capfd.readouterr().out == ""


def test_callback_that_hangs_holds_nothing_up(
    recorder: Any, script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asleep for an hour in its first event, it is told 5,000 more, far above what a pipe holds,
    and ended soon after the training."""
    monkeypatch.setattr(callbacks, "PATIENCE_SECONDS", 0.1)
    report, setting = recorder(), script("time.sleep(3600)")
    few_events(report, [setting], steps=5000)
    what = "was not done 0 seconds after the training, and was ended"
    assert report.lines == [f"train.callbacks: {setting} {what}"]


def test_stopped_process_is_not_waited_for(
    recorder: Any, script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that reads nothing, so that its pipe is full, is switched off."""
    monkeypatch.setattr(callbacks, "_MOST_UNSENT_BYTES", 10_000)
    report, setting = recorder(), script("os.kill(os.getpid(), 19)")
    with watching(report, [setting], None) as watched:
        watched.start({})
        for step in range(1_000_000):
            watched.metrics(step, ROW)
            if report.lines:
                break
    assert report.lines == [f"train.callbacks: {setting} does not read its events; {GOES_ON}"]


def test_what_callbacks_do_changes_nothing_that_is_trained(
    tiny_llama: Any, make_rows: Any, recorder: Any, adamw: Any, settings: Any, script: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    """With callbacks that change their event, MLX's state, the working directory, or fail, the
    adapter, the losses and the metrics are bit by bit those without; each has its own event."""
    lengths = [9, 40, 14, 70, 12, 25, 33, 6, 51, 18, 22]
    rows, valid = make_rows(lengths), make_rows([12, 30], seed=1, name="valid")
    setting, events = writer(tmp_path)
    bad = [
        script("event.clear(); event['train.loss'] = 7", "clears"),
        script("import mlx.core as mx; mx.random.seed(3); mx.set_default_dtype", "mlx"),
        script("os.chdir('/'); os.environ.clear(); print('noise')", "moves"),
        script("raise SystemExit", "exits"),
    ]
    results = []
    for chosen in ([], [*bad, setting]):
        model, report = tiny_llama(), recorder()
        bank = attach(model, find_targets(model, ["*"], None), [AdapterShape(4, 2.0, 0.1)])
        bank.update(bank.join([initial(bank.layers, 4, 0)]))
        with watching(report, chosen, None) as watched:
            watched.start({})
            best, metrics = fit(bank, rows, valid, optimizer=adamw(), train=settings(epochs=2),
                                seed=0, report=watched)  # fmt: skip
        losses = [report.values(f"train.{name}") for name in ("loss", "grad_norm")]
        metrics.pop("train.tokens_per_second")
        results.append((dict(tree_flatten(best)), losses, metrics))
    (plain, *others), (watched_too, *same) = results
    assert others == same
    assert all(mx.array_equal(value, watched_too[name]) for name, value in plain.items())
    seen = [event for event in read(events) if event["event"] == "step"]
    assert [event["train.loss"] for event in seen] == losses[0]


REFUSED = {
    "no file": ("gone.py:call", "cannot load gone.py: FileNotFoundError", "leave it out"),
    "no module": ("no_such.thing:call", "cannot load no_such.thing: ModuleNotFoundError", "leave"),
    "broken": ("broken.py:call", "cannot load broken.py: SyntaxError", "mend it"),
    "raises": ("raises.py:call", "cannot load raises.py: KeyError: 1 (raises.py:2)", "mend it"),
    "exits": ("exits.py:call", "cannot load exits.py: SystemExit: 1 (exits.py:1)", "mend it"),
    "leaves": ("leaves.py:call", "loading leaves.py:call ended its process", "leave it out"),
    "no function": ("good.py:cal", "found no function 'cal' in good.py", "did you mean call?"),
    "nothing": ("empty.py:call", "found no function 'call' in empty.py", "it has none"),
    "no argument": ("bare.py:call", "found call() in bare.py", "write call(event)"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_callback_that_cannot_be_loaded_is_refused_before_training(
    recorder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The message names the key, what is wrong and where, and nothing is written beside a file."""
    files = {
        "broken": "def call(:", "raises": "\n{}[1]", "exits": "import sys; sys.exit(1)",
        "leaves": "import os; os._exit(0)", "good": "def call(event): ...",
        "empty": "from os import *", "bare": "def call(): ...",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    setting, found, mend = REFUSED[kind]
    with pytest.raises(SettingError) as caught, watching(recorder(), [setting], None):
        pass
    assert caught.value.where == "train.callbacks"
    assert caught.value.found.startswith(found)
    assert mend in caught.value.mend
    assert {path.suffix for path in tmp_path.iterdir()} == {".py"}


def test_module_is_found_on_the_path_and_in_the_working_directory(
    recorder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Python finds comes first: a file of the user's hides no installed module."""
    installed, here = tmp_path / "installed", tmp_path / "here"
    for folder in (installed, here):
        folder.mkdir()
        events = str(folder / "events.jsonl")
        (folder / "my_watcher.py").write_text(WRITE.format(events))
        (folder / "json.py").write_text("broken")
    (installed / "json.py").unlink()
    monkeypatch.chdir(here)
    few_events(recorder(), ["my_watcher:write"])
    assert len(read(here / "events.jsonl")) == 5
    monkeypatch.syspath_prepend(installed)
    few_events(recorder(), ["my_watcher:write"])
    assert len(read(here / "events.jsonl")) == len(read(installed / "events.jsonl")) == 5


FAKE_TRACKIO = """
import json
def note(**what): print(json.dumps(what), file=open({!r}, "a"))
def init(*, project, config, embed): note(init=project, config=config, embed=embed)
def log(metrics, step): note(log=metrics, step=step)
def finish(): note(finish=True)
"""


def test_trackio_is_told_of_one_run(
    recorder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The facts of the start are its configuration; metrics come in groups, by step. The module
    here has the signatures of trackio 0.43."""
    calls = tmp_path / "calls.jsonl"
    (tmp_path / "trackio.py").write_text(FAKE_TRACKIO.format(str(calls)))
    monkeypatch.syspath_prepend(tmp_path)
    report = recorder()
    with watching(report, [], "chess") as watched:
        watched.start({"lora.rank": 8})
        watched.metrics(1, ROW)
        watched.metrics(1, {"valid.loss": 2.0})
    assert read(calls) == [
        {"init": "chess", "config": {"lora/rank": 8}, "embed": False},
        {"log": {name.replace(".", "/"): value for name, value in ROW.items()}, "step": 1},
        {"log": {"valid/loss": 2.0}, "step": 1},
        {"finish": True},
    ]
    assert report.lines == ['metrics go to Trackio: trackio show --project "chess"']


def test_trackio_that_fails_is_logged_once(
    recorder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed but broken, it costs its metrics and one line."""
    (tmp_path / "trackio.py").write_text("raise OSError('no network')")
    monkeypatch.syspath_prepend(tmp_path)
    report = recorder()
    with watching(report, [], "chess") as watched:
        watched.start({})
        for step in range(5):
            watched.metrics(step, ROW)
    said = "raised OSError: no network (trackio_sink.py:"
    failures = [line for line in report.lines if line.startswith("train.trackio")]
    assert [line.startswith(f"train.trackio: chess {said}") for line in failures] == [True]


def test_trackio_not_installed_is_refused_with_what_to_install(
    recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message comes before the training and names the package."""
    monkeypatch.setattr("stages.training.trackio_sink.find_spec", lambda name: None)
    with pytest.raises(EnvironmentFailure) as caught, watching(recorder(), [], "chess"):
        pass
    assert str(caught.value) == (
        "train.trackio: the package trackio is not installed; "
        "pip install trackio, or set train.trackio=null"
    )
