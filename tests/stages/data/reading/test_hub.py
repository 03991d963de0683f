"""Data sets of the hub: rows of a built one, and all of it against a small hub of our own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from datasets import ClassLabel, Dataset, Image, Json

from stages.data.reading.batches import CHUNK_BYTES
from stages.data.reading.hub import _assign, _records
from stages.errors import InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/Some-Data"
README = b"""---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train.jsonl}
  - {split: validation, path: main/validation.jsonl}
  - {split: unsupervised, path: main/more.jsonl}
- config_name: broken
  data_files: broken/*.jsonl
---
"""
FILES = {
    "README.md": README,
    "main/train.jsonl": b'{"question": "a", "answer": "b"}\n{"question": "c", "answer": "d"}\n',
    "main/validation.jsonl": b'{"question": "e", "answer": "f"}\n',
    "main/more.jsonl": b'{"question": "g", "answer": "h"}\n',
    "broken/rows.jsonl": b'{"question": \n',
}
PLAIN = "someone/plain"
PLAIN_FILES = {"rows.jsonl": b'{"messages": [{"role": "user", "content": "Hi"}]}\n'}
SCRIPTED = "someone/scripted"
SCRIPTED_FILES = {"scripted.py": b"raise SystemExit('never run')", **PLAIN_FILES}
REPOSITORIES = {NAME: FILES, PLAIN: PLAIN_FILES, SCRIPTED: SCRIPTED_FILES}

ASK = """
import json, sys
from stages.data.reading.hub import hub_files, read_hub
from stages.data_settings import Data
from stages.errors import StageError
for question in sys.argv[1:]:
    data = Data(stage="x", format="auto", supervise="all", max_seq_length=9, overlong="auto",
                valid_fraction=0, test_fraction=0, duplicates="keep", leakage="drop", redact=False,
                encoding="utf-8", on_error="fail", **json.loads(question))
    try:
        files, passed_over = hub_files(data)
        rows = {f"{file.source} {file.split} {chunk.source(n)}": value
                for file in files for chunk in read_hub(file, data)
                for n, value in enumerate(chunk.values)}
        answer = {"rows": rows, "passed_over": passed_over}
    except StageError as error:
        answer = {"error": type(error).__name__, "said": str(error)}
    print(json.dumps(answer))
"""


def ask(home: Path, *questions: dict[str, Any], **environment: str) -> list[dict[str, Any]]:
    """Read what each configuration names, in a fresh process: the libraries read theirs once."""
    defaults = {"path": NAME, "revision": COMMIT}
    done = subprocess.run(
        [sys.executable, "-c", ASK, *(json.dumps({**defaults, **q}) for q in questions)],
        env={**os.environ, "HF_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


class Hub(BaseHTTPRequestHandler):
    """The few routes of a hub that a data set takes."""

    asked: list[str]

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.asked.append(path)
        name = "/".join(path.removeprefix("/api").split("/")[2:4])
        files, head = REPOSITORIES.get(name), f"/api/datasets/{name}"
        if files is None:
            code = "GatedRepo" if "gated" in name else "RepoNotFound"
            self._answer(403 if "gated" in name else 404, b"", {"X-Error-Code": code})
        elif path == f"{head}/revision/{COMMIT}":
            self._json({"id": name, "sha": COMMIT, "siblings": []})
        elif path.startswith(f"{head}/revision/"):
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith(f"{head}/tree/{COMMIT}"):
            folder = path.removeprefix(f"{head}/tree/{COMMIT}").strip("/")
            self._json(self._entries(files, folder))
        else:
            self._file(files, path.removeprefix(f"/datasets/{name}/resolve/{COMMIT}/"))

    do_HEAD = do_GET  # noqa: N815  (the name the library looks for)

    @staticmethod
    def _entries(files: dict[str, bytes], folder: str) -> list[dict[str, Any]]:
        inside = [name for name in files if name.startswith(f"{folder}/" if folder else "")]
        depth = len(folder.split("/")) if folder else 0
        folders = {"/".join(name.split("/")[: depth + 1]) for name in inside} - {*inside}
        directories = [{"type": "directory", "path": name, "oid": "0" * 40} for name in folders]
        return directories + [
            {"type": "file", "path": name, "size": len(files[name]), "oid": etag(files[name])}
            for name in inside
            if name.count("/") == depth
        ]

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, files: dict[str, bytes], name: str) -> None:
        headers = {"X-Repo-Commit": COMMIT}
        if name in files:
            self._answer(200, files[name], {**headers, "ETag": f'"{etag(files[name])}"'})
        else:
            self._answer(404, b"", {**headers, "X-Error-Code": "EntryNotFound"})

    def _answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


def etag(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Hub,), {"asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


MAIN = {
    "rows": {
        f"0 train {NAME}/train:1": {"question": "a", "answer": "b"},
        f"0 train {NAME}/train:2": {"question": "c", "answer": "d"},
        f"0 valid {NAME}/validation:1": {"question": "e", "answer": "f"},
    },
    "passed_over": [f"{NAME}/unsupervised"],
}


def test_splits_subsets_and_slices_are_read_at_the_commit(tmp_path, hub) -> None:
    """Own splits, or a split or slice as training data alone; nothing is asked of a branch."""
    address, asked = hub
    half = {"subset": "main", "split": "train[50%:]+unsupervised"}
    whole, part, mixed = ask(
        tmp_path,
        {"subset": "main"},
        half,
        {"path": ["samples", PLAIN, PLAIN], "revision": f"{COMMIT},{COMMIT}"},
        HF_ENDPOINT=address,
    )
    assert whole == MAIN
    name = f"{NAME}/{half['split']}"
    assert part["rows"] == {
        f"0 train {name}:1": {"question": "c", "answer": "d"},
        f"0 train {name}:2": {"question": "g", "answer": "h"},
    }
    hi = {"messages": [{"role": "user", "content": "Hi"}]}
    assert mixed["rows"] == {f"1 train {PLAIN}/train:1": hi, f"2 train {PLAIN}/train:1": hi}
    assert not any("main" in path.split("/") for path in asked if "/revision/" in path)


def test_what_was_fetched_needs_no_hub(tmp_path, hub) -> None:
    """The second time the hub is not asked; what the cache lacks, of another commit too, fails."""
    address, asked = hub
    ask(tmp_path, {"subset": "main"}, {"path": PLAIN}, HF_ENDPOINT=address)
    asked.clear()
    again = ask(tmp_path, {"subset": "main"}, {"path": PLAIN}, HF_ENDPOINT=address)
    assert again[0] == MAIN
    assert asked == []
    offline = ask(
        tmp_path, {"subset": "main"}, {"path": PLAIN}, {}, {"path": PLAIN, "revision": "f" * 40},
        HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert offline[:2] == again
    # Which subset is meant without a name only the hub knows.
    assert [answer["error"] for answer in offline[2:]] == ["EnvironmentFailure"] * 2
    assert all("HF_HUB_OFFLINE is set" in answer["said"] for answer in offline[2:])
    (gone,) = ask(tmp_path, {"path": PLAIN, "revision": "f" * 40}, HF_ENDPOINT="http://127.0.0.1:9")
    assert gone["error"] == "EnvironmentFailure"
    assert f"cannot reach the hub for '{PLAIN}' (ConnectError)" in gone["said"]


def test_what_cannot_be_read_names_the_key_and_a_mend(tmp_path, hub) -> None:
    """Each refusal is one line; code in a repository is never run."""
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, f"data.subset: {NAME} has several: main, broken; set data.subset=main"),
        ({"subset": "mian"}, f"data.subset: found 'mian', but {NAME} has main, broken; "),
        ({"path": PLAIN, "subset": "mian"}, f"data.subset: found 'mian', but {PLAIN} has default;"),
        ({"subset": "main", "split": "tran"}, "data.split: found 'tran', expected one of train, "),
        ({"subset": "main", "split": "train["}, "data.split: found 'train[', expected one of tr"),
        ({"subset": "broken"}, f"{NAME}: cannot be read (JSON parse error"),
        ({"revision": "f" * 40}, f"data.revision: '{NAME}' has no commit ffffffffffff; "),
        ({"path": "someone/gated"}, "data.path: the licence of 'someone/gated' must be accepted"),
        ({"path": "someone/nothing"}, "data.path: the hub has no data set 'someone/nothing'"),
        ({"path": SCRIPTED}, f"data.path: '{SCRIPTED}' is read by code of its own, which is never"),
    ]
    answers = ask(tmp_path, *(question for question, _ in cases), HF_ENDPOINT=hub[0])
    for answer, (_, said) in zip(answers, cases, strict=True):
        assert answer["error"] == "InputError"
        assert answer["said"].startswith(said)
        assert "\n" not in answer["said"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["train", "validation", "test"],
            {"train": "train", "validation": "valid", "test": "test"},
        ),
        (["train", "dev", "unsupervised"], {"train": "train", "dev": "valid"}),
        (["all"], {"all": "train"}),
        (["Train", "Eval"], {"Train": "train", "Eval": "valid"}),
    ],
)
def test_spellings_of_splits_are_those_of_files(names, expected) -> None:
    """validation, dev and eval are the validation split; an only split is training data."""
    assert _assign("a/b", names) == expected


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["test"], "a/b has no train split, but test"),
        (["train_sft", "test_sft"], "a/b has no train split, but train_sft, test_sft"),
        (["train", "dev", "validation"], "a/b has dev and validation, expected one valid split"),
    ],
)
def test_splits_that_could_mean_several_things_are_refused(names, said) -> None:
    """Nothing is guessed: the person says which split to train on."""
    with pytest.raises(InputError, match=f"^data.split: {said}; set data.split"):
        _assign("a/b", names)


def test_rows_are_plain_values() -> None:
    """Classes by their names, JSON decoded, nested texts as they are, pictures undecoded."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}]
    picture = {"bytes": b"\x89PNG", "path": None}
    columns = {
        "label": [1, -1, None],
        "any": ['{"a": [1, null]}', "2", None],
        "turns": [turns, [], None],
        "image": [picture, None, picture],
    }
    rows = Dataset.from_dict(columns)
    rows.info.features |= {
        "label": ClassLabel(names=["no", "yes"]),
        "any": Json(),
        "image": Image(),
    }
    values = [value for _, value, _ in _records(rows)]
    assert values == [
        {"label": "yes", "any": {"a": [1, None]}, "turns": turns, "image": picture},
        {"label": None, "any": 2, "turns": [], "image": None},
        {"label": None, "any": None, "turns": None, "image": picture},
    ]


def test_rows_are_read_in_bounded_pieces(monkeypatch) -> None:
    """However many rows, no more than about a chunk's bytes are taken out of the file at once."""
    rows = Dataset.from_dict({"text": ["x" * 100_000] * 50})
    lengths: list[int] = []
    getitem = Dataset.__getitem__

    def counted(self: Dataset, key: Any) -> Any:
        found = getitem(self, key)
        lengths.append(sum(map(len, found["text"])))
        return found

    monkeypatch.setattr(Dataset, "__getitem__", counted)
    numbers = [number for number, _, _ in _records(rows)]
    assert numbers == list(range(1, 51))
    assert max(lengths) <= CHUNK_BYTES
