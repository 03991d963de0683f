"""A run directory holds one configuration and one process, and its record is always whole."""

import errno
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import Broken, Interrupted, PipelineError, Refused, Unable
from pipeline.record import RunRecord, read_run
from pipeline.resolved import config_digest, differences, redact
from pipeline.store import Store

ROOT = Path(__file__).parents[2]
CONFIG: dict[str, Any] = {
    "name": "default",
    "seed": 0,
    "outputs": "outputs",
    "dry_run": False,
    "run": None,
    "lora": {"rank": 8, "alpha": 16.0, "targets": ("q_proj", "v_proj")},
}
leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4)
)
configs = st.recursive(
    st.dictionaries(st.text(max_size=4), leaves, max_size=4),
    lambda inner: st.dictionaries(
        st.text(max_size=4), leaves | inner | st.lists(leaves, max_size=3)
    ),
    max_leaves=8,
)


def start(directory: Path, config: dict[str, Any] = CONFIG, **given: Any) -> Any:
    about = {"command": ["python", "-m", "pipeline"], "model": {"path": "tiny"}, "environment": {}}
    return RunRecord.start(directory, config=config, **{**about, **given})


def reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(list(value))}
    return tuple(map(reordered, value)) if isinstance(value, list) else value


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every leaf of nested dictionaries and lists."""
    if isinstance(value, dict):
        return [way for key in value for way in paths(value[key], (*here, key))]
    if isinstance(value, list):
        return [way for n, item in enumerate(value) for way in paths(item, (*here, n))]
    return [here]


def with_leaf(value: Any, way: tuple[Any, ...], leaf: Any) -> Any:
    if not way:
        return leaf
    if isinstance(value, dict):
        return {**value, way[0]: with_leaf(value[way[0]], way[1:], leaf)}
    return [with_leaf(v, way[1:], leaf) if n == way[0] else v for n, v in enumerate(value)]


def test_digest_is_that_of_canonical_json() -> None:
    """The digest is SHA-256 of JSON with sorted keys and no spaces: anyone can compute it."""
    text = (
        '{"lora":{"alpha":16.0,"rank":8,"targets":["q_proj","v_proj"]},"name":"default","seed":0}'
    )
    assert config_digest(CONFIG) == hashlib.sha256(text.encode()).hexdigest()


@settings(deadline=None)
@given(configs)
def test_digest_ignores_order_and_kind_of_sequence(config: dict[str, Any]) -> None:
    """The order of keys does not matter, nor does tuple or list."""
    assert config_digest(reordered(config)) == config_digest(config)


@settings(deadline=None)
@given(configs.filter(paths), leaves, st.data())
def test_digest_sees_every_value(config: dict[str, Any], leaf: Any, data: st.DataObject) -> None:
    """Changing any one value, also its type alone, changes the digest."""
    config = {"group": config}
    way = data.draw(st.sampled_from(paths(config)))
    changed = with_leaf(config, way, leaf)
    same = repr(changed) == repr(config)
    assert (config_digest(changed) == config_digest(config)) == same


@settings(deadline=None)
@given(st.sampled_from(["dry_run", "outputs", "run"]), leaves)
def test_digest_leaves_out_where_and_whence(key: str, value: Any) -> None:
    """Where a run writes and what it was started from is no part of what it is."""
    assert config_digest({**CONFIG, key: value}) == config_digest(CONFIG)
    assert config_digest({**CONFIG, "data": {key: value}}) != config_digest(CONFIG)


def test_differences_name_both_values() -> None:
    """Each differing key is named with both values, missing ones too."""
    other = {**CONFIG, "outputs": "elsewhere", "lora": {"rank": 16, "alpha": 16.0, "dropout": 0.1}}
    assert differences(CONFIG, other) == [
        "lora.dropout: nothing there, 0.1 here",
        "lora.rank: 8 there, 16 here",
        'lora.targets: ["q_proj", "v_proj"] there, nothing here',
    ]


def test_record_is_there_from_the_start(tmp_path: Path) -> None:
    """run.json exists as soon as the run does, with what is known then."""
    with start(tmp_path / "run", parent="outputs/runs/a/1", trial=3):
        run = read_run(tmp_path / "run")
        assert run["format"] == 1
        assert run["status"] == "running"
        assert run["finished"] is None
        assert run["config"] == json.loads(json.dumps(CONFIG))
        assert run["config_digest"] == config_digest(CONFIG)
        assert (run["name"], run["parent"], run["trial"]) == ("default", "outputs/runs/a/1", 3)
        assert run["command"] == ["python", "-m", "pipeline"]


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (None, "succeeded", None),
        (Interrupted(15), "interrupted", None),
        (KeyboardInterrupt(), "interrupted", None),
        (Refused("data.path", "no such file", "set it"), "failed", "data.path: no such file"),
        (Broken("train", "IndexError", "Traceback"), "failed", "train: IndexError"),
        (ZeroDivisionError("by 0"), "failed", "ZeroDivisionError('by 0')"),
    ],
)
def test_record_says_how_the_run_ended(tmp_path: Path, error, status: str, text) -> None:
    """However the block is left, the record says so, and the error goes on."""
    raised = None
    try:
        with start(tmp_path / "run"):
            if error:
                raise error
    except BaseException as caught:
        raised = caught
    assert raised is error
    run = read_run(tmp_path / "run")
    assert (run["status"], run["error"]) == (status, text)
    assert run["started"] <= run["finished"]


def test_full_disk_does_not_hide_the_reason(tmp_path: Path, monkeypatch) -> None:
    """Where not even the failure can be recorded, the failure itself is what is raised."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def work() -> None:
        monkeypatch.setattr(os, "fsync", full)
        raise Unable("train", "no memory")

    with pytest.raises(Unable, match="no memory"), start(tmp_path / "run"):
        work()


def test_stage_brings_its_entry(tmp_path: Path) -> None:
    """A stage is recorded with key, status and cost; its metrics and the highest memory peak are
    the run's; a relative link leads to its files, also after the tree has moved."""
    outputs = tmp_path / "outputs"
    store = Store(outputs / "store")
    peaks = {"prepare": 5, "train": 3}
    with start(outputs / "runs" / "default" / "1") as record:
        for stage, peak in peaks.items():
            staging = store.stage_directory(stage, "abc")
            (staging / "file").write_text(stage)
            metrics = {f"{stage}.rows": 7.0, f"{stage}.bad": math.nan}
            entry = store.commit(
                staging, stage, "abc", ingredients={}, metrics=metrics, seconds=2.5,
                peak_memory_bytes=peak,
            )  # fmt: skip
            record.stage(stage, "abc", "ran", entry)
        record.stage("merge", "fed", "failed", None)
        assert record.metrics["train.rows"] == 7.0
        assert record.peak_memory_bytes == 5
    tmp_path.joinpath("moved").mkdir()
    outputs.rename(tmp_path / "moved" / "outputs")
    directory = tmp_path / "moved" / "outputs" / "runs" / "default" / "1"
    run = read_run(directory)
    shown = {name: (s["key"], s["status"], s["seconds"]) for name, s in run["stages"].items()}
    assert shown == {
        "prepare": ("abc", "ran", 2.5),
        "train": ("abc", "ran", 2.5),
        "merge": ("fed", "failed", None),
    }
    # Not a number is no JSON; readers in other languages get null.
    assert run["metrics"] == {
        "prepare.rows": 7.0, "prepare.bad": None, "train.rows": 7.0, "train.bad": None,
    }  # fmt: skip
    assert run["peak_memory_bytes"] == 5
    assert (directory / "train").readlink() == Path("../../../store/train/abc")
    assert (directory / "prepare" / "file").read_text() == "prepare"


def test_reader_never_sees_a_part(tmp_path: Path) -> None:
    """Who opened the record before a change reads the old one to its end."""
    with (
        start(tmp_path / "run") as record,
        (tmp_path / "run" / "run.json").open() as reader,
    ):
        record.stage("train", "abc", "failed", None)
        assert json.load(reader)["stages"] == {}
        assert read_run(tmp_path / "run")["stages"].keys() == {"train"}


def test_link_is_replaced(tmp_path: Path) -> None:
    """A stage made anew takes the place of the earlier link."""
    for key in ("a", "b"):
        (tmp_path / "store" / "train" / key).mkdir(parents=True)
    with start(tmp_path / "run") as record:
        record.link_stage("train", tmp_path / "store" / "train" / "a")
        record.link_stage("train", tmp_path / "store" / "train" / "b")
    assert (tmp_path / "run" / "train").readlink() == Path("../store/train/b")


def test_same_configuration_continues_in_place(tmp_path: Path) -> None:
    """An interrupted run can be started again in its directory; other keys that do not decide it
    may differ."""
    with pytest.raises(Interrupted), start(tmp_path / "run"):
        raise Interrupted(2)
    with start(tmp_path / "run", {**CONFIG, "outputs": "elsewhere"}, command=["again"]):
        assert read_run(tmp_path / "run")["status"] == "running"
    run = read_run(tmp_path / "run")
    assert (run["status"], run["command"], run["error"]) == ("succeeded", ["again"], None)


def test_other_configuration_is_refused(tmp_path: Path) -> None:
    """A directory of another configuration is left as it is; at most five keys are named."""
    with start(tmp_path / "run"):
        pass
    before = (tmp_path / "run" / "run.json").read_bytes()
    other = {**CONFIG, "lora": {"rank": 16, "alpha": 16.0, "targets": ["q_proj", "v_proj"]}}
    with (
        pytest.raises(Refused, match=r"lora\.rank: 8 there, 16 here;"),
        start(tmp_path / "run", other),
    ):
        pass
    other["lora"] = {f"key{n}": n for n in range(4)}
    with pytest.raises(Refused, match=r"(there.*){5} and 2 more;"), start(tmp_path / "run", other):
        pass
    assert (tmp_path / "run" / "run.json").read_bytes() == before


RUN = """
import sys
from pathlib import Path
from pipeline.record import RunRecord
about = {"config": {"name": "a"}, "command": [], "model": {}, "environment": {}}
with RunRecord.start(Path(sys.argv[1]), **about):
    print("started", flush=True)
    input()
"""


def test_second_process_in_the_directory_is_refused_at_once(tmp_path: Path) -> None:
    """While a process is at work another is refused and told its pid; not after kill -9."""
    command = [sys.executable, "-c", RUN, str(tmp_path / "run")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout.readline() == "started\n"
        with (
            pytest.raises(Refused, match=f"process {other.pid} on "),
            start(tmp_path / "run", {"name": "a"}),
        ):
            pass
        other.kill()
        other.wait()
    assert read_run(tmp_path / "run")["status"] == "running"
    with start(tmp_path / "run", {"name": "a"}):
        pass
    assert read_run(tmp_path / "run")["status"] == "succeeded"


def test_secrets_stay_out_of_every_file(tmp_path: Path) -> None:
    """A canary in a key, an address, a command line or an error is in no file of the run, and the
    digest is that of the real configuration."""
    config = {
        **CONFIG,
        "tracker": {"api_key": "canary", "nested": {"PASSWORD": ["canary"]}, "max_tokens": 64},
        "data": {"path": "https://me:canary@host/rows.jsonl?token=canary&split=train"},
    }
    command = ["pipeline", "tracker.api_key=canary", "+x={secret:canary}", "lora.rank=8"]
    environment = {"HF_TOKEN": "canary", "versions": {"tokenizers": "0.22"}}
    directory = tmp_path / "run"
    with (
        pytest.raises(Refused),
        start(directory, config, command=command, environment=environment),
    ):
        raise Refused("data.path", "cannot read https://me:canary@host/")
    stored = b"".join(path.read_bytes() for path in directory.iterdir())
    assert b"canary" not in stored
    run = read_run(directory)
    assert run["config_digest"] == config_digest(config)
    assert run["config"]["data"]["path"] == "https://***@host/rows.jsonl?token=***&split=train"
    assert run["config"]["tracker"]["max_tokens"] == 64
    assert run["environment"]["versions"] == {"tokenizers": "0.22"}
    assert run["command"][-1] == "lora.rank=8"

    config["tracker"]["api_key"] = "another canary"
    with pytest.raises(Refused, match="kept secret") as refused, start(directory, config):
        pass
    assert "canary" not in str(refused.value)


@settings(deadline=None)
@given(configs)
def test_redaction_changes_nothing_else(config: dict[str, Any]) -> None:
    """Configurations without secrets come back as they are."""
    assert redact(config) == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a JSON file"),
        (b'{"format": 1', "not a JSON file"),
        (b"\xff\xfe", "not a JSON file"),
        (b"[]", "not the record of a run"),
        (b"{}", "not the record of a run"),
        (b'{"format": 1, "status": "running"}', "not the record of a run"),
        (b'{"format": 2}', "format 2, this version reads 1"),
    ],
)
def test_unreadable_record_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """What is no record of this version is named, and neither read nor overwritten."""
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(Refused, match=message):
        read_run(tmp_path)
    with pytest.raises(Refused, match=message), start(tmp_path):
        pass
    assert (tmp_path / "run.json").read_bytes() == content


def test_missing_record_is_refused(tmp_path: Path) -> None:
    """A directory without a record and no directory at all are told apart."""
    with pytest.raises(Refused, match=r"no run\.json in it"):
        read_run(tmp_path)
    with pytest.raises(Refused, match="no such directory"):
        read_run(tmp_path / "nowhere")


def test_errors_are_short(tmp_path: Path) -> None:
    """What a person sees is at most three lines."""
    with pytest.raises(PipelineError) as refused:
        read_run(tmp_path)
    assert len(refused.value.lines()) <= 3
