"""The worker does what it is asked, says what went wrong, and never outlives its parent."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Broken, Interrupted, OutOfMemory, Refused, Unable
from pipeline.process import WorkerProcess
from pipeline.worker import failure

STAGES = """
import os, sys, time
from stages.artifacts import Prepared
from stages.errors import InputError, StopRequested

def good(data, seed, *, report, out):
    print("noise on standard output")
    report.log(f"seed {seed}")
    report.metrics(3, {"train.loss": 0.5})
    report.progress(3, 4, {"loss": 0.5})
    (out / "file").write_text(f"{data.path} {data.columns}")
    return Prepared(directory=out, metrics={"rows": 2.0})

def refuses(*, report, out):
    raise InputError("rows.jsonl:3", "found no messages", "add them")

def starves(*, report, out):
    raise MemoryError

def breaks(*, report, out):
    return 1 / 0

def waits(*, report, out):
    report.log(str(os.getpid()))
    while not report.stop_requested():
        time.sleep(0.01)
    raise StopRequested

def fills(*, report, out):
    import resource
    import numpy
    from safetensors.numpy import save_file
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    save_file({"rows": numpy.zeros(10000)}, out / "rows.safetensors")

def hangs(*, report, out):
    report.log(str(os.getpid()))
    time.sleep(600)

def looks(*, report, out):
    if report.stop_requested():
        raise StopRequested
    report.text(2, "é", "stop")
    return Prepared(directory=out)
"""
DATA = {
    "stage": "s", "path": ["samples", "rows.csv"], "columns": {"text": "body"}, "format": "auto",
    "supervise": "all", "max_seq_length": 8, "overlong": "drop", "valid_fraction": 0.1,
    "test_fraction": 0.1, "duplicates": "keep", "leakage": "drop", "redact": False,
    "encoding": "utf-8", "on_error": "fail",
}  # fmt: skip


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerProcess]:
    (tmp_path / "made_up.py").write_text(STAGES)
    paths = [str(tmp_path), str(Path(__file__).parents[2])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    process = WorkerProcess(tmp_path / "log")
    yield process
    process.close()


def request(tmp_path: Path, name: str, *settings: tuple[str, Any]) -> dict[str, Any]:
    return {
        "stage": name, "function": f"made_up.{name}", "tensors": False, "settings": settings,
        "handed_over": {}, "extra": {}, "out": str(tmp_path),
    }  # fmt: skip


def gone(pid: int, within_seconds: float) -> bool:
    deadline = time.monotonic() + within_seconds
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid}/stat")
        try:
            if (
                stat.parent.parent.is_dir()
                and stat.read_text().rpartition(")")[2].split()[0] == "Z"
            ):
                return True
            os.kill(pid, 0)
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False


def test_stage_gets_settings_and_reports(worker: WorkerProcess, tmp_path: Path) -> None:
    """Settings arrive typed, every event arrives, and stray prints do not disturb them."""
    events: list[dict[str, Any]] = []
    done = worker.run(request(tmp_path, "good", ("data", DATA), ("seed", 7)), events.append)
    assert done["metrics"] == {"rows": 2.0}
    assert done["peak_memory_bytes"] > 2**20
    assert [event["event"] for event in events] == ["log", "metrics", "progress"]
    assert events[0]["message"] == "seed 7"
    assert events[1]["values"] == {"train.loss": 0.5}
    assert (tmp_path / "file").read_text() == "('samples', 'rows.csv') {'text': 'body'}"
    assert "noise on standard output" in (tmp_path / "log").read_text()


def test_error_of_the_work_arrives_with_its_three_parts(
    worker: WorkerProcess, tmp_path: Path
) -> None:
    """An InputError ends the run as Refused, with where, what and the mend."""
    with pytest.raises(Refused) as caught:
        worker.run(request(tmp_path, "refuses"), lambda event: None)
    error = caught.value
    assert (error.where, error.found, error.mend) == (
        "rows.jsonl:3",
        "found no messages",
        "add them",
    )
    assert error.exit_code == 1


def test_bug_arrives_with_its_traceback(worker: WorkerProcess, tmp_path: Path) -> None:
    """An unexpected exception ends the run as Broken, exit code 70, and names the line."""
    with pytest.raises(Broken) as caught:
        worker.run(request(tmp_path, "breaks"), lambda event: None)
    assert caught.value.exit_code == 70
    assert "return 1 / 0" in "\n".join(caught.value.lines())
    assert "ZeroDivisionError" in caught.value.found


def test_disk_that_takes_no_more_is_no_bug(worker: WorkerProcess, tmp_path: Path) -> None:
    """What safetensors raises where a file cannot grow is told as such, with exit code 3."""
    with pytest.raises(Unable) as caught:
        worker.run(request(tmp_path, "fills"), lambda event: None)
    assert caught.value.found == "file too large"
    assert "outputs=" in caught.value.mend


def test_mlx_that_cannot_write_is_no_bug() -> None:
    """MLX names no cause: its words on a full disk are those of 0.32.4."""
    event = failure(RuntimeError("[write] Unable to write 3145824 bytes to file."))
    assert event["kind"] == "unable"


def test_lack_of_memory_arrives_as_such(worker: WorkerProcess, tmp_path: Path) -> None:
    """A MemoryError ends the stage as OutOfMemory, exit code 3, in words of ours."""
    with pytest.raises(OutOfMemory) as caught:
        worker.run(request(tmp_path, "starves"), lambda event: None)
    assert caught.value.exit_code == 3
    assert caught.value.found == "the stage ran out of memory"
    assert "train.batch_size" in caught.value.mend


def test_mlx_without_memory_is_no_bug() -> None:
    """MLX raises no MemoryError: its words are those of 0.32.4."""
    event = failure(RuntimeError("[malloc] Unable to allocate 25600000000 bytes."))
    assert event["kind"] == "memory"
    assert "25600000000" in event["found"]


def test_worker_imports_what_its_parent_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files in the working directory that are named like modules do not take their place."""
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')")
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "__init__.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    root = str(Path(__file__).parents[2])
    monkeypatch.setattr(sys, "path", [root, *(entry for entry in sys.path if entry)])
    worker = WorkerProcess(tmp_path / "log")
    with pytest.raises(Broken) as caught:
        worker.run(request(tmp_path, "absent"), lambda event: None)
    worker.close()
    assert "No module named 'made_up'" in caught.value.found


def test_worker_serves_after_a_failure(worker: WorkerProcess, tmp_path: Path) -> None:
    """A failed stage does not cost the worker."""
    with pytest.raises(Refused):
        worker.run(request(tmp_path, "refuses"), lambda event: None)
    settings = (("data", DATA), ("seed", 1))
    assert worker.run(request(tmp_path, "good", *settings), lambda event: None)["metrics"]


def test_stop_ends_the_stage_at_a_safe_point(worker: WorkerProcess, tmp_path: Path) -> None:
    """A stage that is asked to stop ends as interrupted."""

    def stop_soon(event: dict[str, Any]) -> None:
        threading.Timer(0.1, worker.request_stop).start()

    with pytest.raises(Interrupted):
        worker.run(request(tmp_path, "waits"), stop_soon)


def test_stop_holds_until_it_is_taken_back(worker: WorkerProcess, tmp_path: Path) -> None:
    """Whatever is run after a request to stop ends at once, until `go_on`; then it speaks again."""
    worker.request_stop()
    for _ in range(2):
        with pytest.raises(Interrupted):
            worker.run(request(tmp_path, "looks"), lambda event: None)
    worker.go_on()
    events: list[dict[str, Any]] = []
    worker.run(request(tmp_path, "looks"), events.append)
    assert events == [{"event": "text", "index": 2, "text": "é", "finish_reason": "stop"}]


def test_killed_worker_is_named_as_lack_of_memory(worker: WorkerProcess, tmp_path: Path) -> None:
    """Kill -9 gives exit code 3, whether it was for memory, and a mend; see test_deaths.py."""

    def kill(event: dict[str, Any]) -> None:
        os.kill(int(event["message"]), signal.SIGKILL)

    with pytest.raises(Unable) as caught:
        worker.run(request(tmp_path, "hangs"), kill)
    assert "memory" in caught.value.found
    assert "train.batch_size" in caught.value.mend


def test_worker_dies_with_its_parent(tmp_path: Path) -> None:
    """Kill -9 of the orchestrator leaves no worker behind, even in the middle of a stage."""
    (tmp_path / "made_up.py").write_text(STAGES)
    parent = (
        "from pathlib import Path; from pipeline.process import WorkerProcess\n"
        f"p = Path({str(tmp_path)!r})\n"
        "WorkerProcess(p / 'log').run({'stage': 's', 'function': 'made_up.hangs', 'tensors': False,"
        " 'settings': [], 'handed_over': {}, 'extra': {}, 'out': str(p)},"
        " lambda event: print(event['message'], flush=True))\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    process = subprocess.Popen(
        [sys.executable, "-c", parent],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    worker_pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    assert gone(worker_pid, within_seconds=10)
