"""What lies on the hub, against a small hub of our own, without any, and in a made-up cache."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.errors import Refused
from pipeline.hub import download, is_made, resolve
from stages.inputs import EMBEDDED
from stages.settings import Model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/some-model"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "pytorch_model.bin": b"pickle",
    "modeling.py": b"raise SystemExit('never run')",
}
TOKEN = "hf_" + "s3cret" * 5

ASK = """
import json, logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
logging.getLogger("httpx2").disabled = logging.getLogger("httpx").disabled = True
from pipeline import hub
from pipeline.errors import PipelineError
from stages.settings import Model
for question in sys.argv[1:]:
    path, _, revision = question.partition("@")
    model = Model(path=path, revision=revision or None)
    try:
        source = hub.resolve(model)
        directory = hub.download(model, source, print)
        names = sorted(file.name for file in directory.iterdir())
        answer = {"commit": source.commit, "files": names, "identity": source.weights}
    except PipelineError as error:
        answer = {"exit": error.exit_code, "lines": error.lines()}
    print(json.dumps(answer))
"""

FIND = """
import json, logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
logging.getLogger("httpx2").disabled = logging.getLogger("httpx").disabled = True
from pipeline.commits import Repository, find_commit
from pipeline.errors import PipelineError
for question in sys.argv[1:]:
    path, _, revision = question.partition("@")
    try:
        answer = {"commit": find_commit(Repository("data", path, revision or None))}
    except PipelineError as error:
        answer = {"exit": error.exit_code, "lines": error.lines()}
    print(json.dumps(answer))
"""


def ask(
    cache: Path, *questions: str, script: str = ASK, **environment: str
) -> tuple[list[dict], list[str]]:
    """Resolve and download each `name@revision`; return the answers and the lines said meanwhile.

    In a fresh process, because the hub's library reads its settings when it is imported.
    """
    done = subprocess.run(
        [sys.executable, "-c", script, *questions],
        env={**os.environ, "HF_HUB_CACHE": str(cache), "HF_TOKEN": TOKEN, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert TOKEN not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    answers = [json.loads(line) for line in lines if line.startswith("{")]
    return answers, [line for line in lines if not line.startswith("{")]


class Hub(BaseHTTPRequestHandler):
    """The few routes of a hub that a download takes."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        files = [{"rfilename": name, "size": len(data)} for name, data in FILES.items()]
        tree = [
            {"type": "file", "path": name, "size": len(data), "oid": self._etag(name)}
            for name, data in FILES.items()
        ]
        head = "/api/datasets/" if path.startswith("/api/datasets/") else "/api/models/"
        head += NAME
        if path in (f"{head}/revision/main", f"{head}/revision/{COMMIT}"):
            self._json({"id": NAME, "sha": COMMIT, "siblings": files})
        elif path == f"{head}/tree/{COMMIT}":
            self._json(tree)
        elif path == f"{head}/refs":
            branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": COMMIT}
            tag = {"name": "v1.5", "ref": "refs/tags/v1.5", "targetCommit": COMMIT}
            self._json({"branches": [branch], "tags": [tag], "converts": []})
        elif path.startswith(f"/{NAME}/resolve/{COMMIT}/"):
            self._file(path.rpartition("/")[2])
        elif path.startswith(f"{head}/revision/"):
            self._refuse(404, "RevisionNotFound")
        elif "/gated" in path:
            self._refuse(403, "GatedRepo")
        elif "/broken" in path:
            self._refuse(500, "")
        else:
            self._refuse(404, "RepoNotFound")

    do_HEAD = do_GET  # noqa: N815  (the name the library looks for)

    @staticmethod
    def _etag(name: str) -> str:
        return hashlib.sha1(FILES[name], usedforsecurity=False).hexdigest()

    def _json(self, value: object) -> None:
        data = json.dumps(value).encode()
        self._answer(200, data, {"Content-Type": "application/json"})

    def _file(self, name: str) -> None:
        headers = {"ETag": f'"{self._etag(name)}"', "X-Repo-Commit": COMMIT}
        self._answer(200, FILES[name], headers)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, b"", {"X-Error-Code": code})

    def _answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Hub,), {"asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def fill(cache: Path, name: str = NAME, without: str = "", kind: str = "models") -> None:
    """Lay out a snapshot as the hub's library does, without its list of what belongs to it."""
    root = cache / f"{kind}--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    for file, data in FILES.items():
        if file != without:
            (snapshot / file).write_bytes(data)


def test_download_takes_the_commit_of_main_and_only_safe_files(tmp_path, hub):
    """Null resolves to main's commit, neither pickles nor Python come along, and once is enough."""
    address, asked = hub
    safe = ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    expected = {
        "commit": COMMIT,
        "files": safe,
        "identity": {"repo": NAME, "commit": COMMIT},
    }
    assert ask(tmp_path, NAME, HF_ENDPOINT=address)[0] == [expected]
    asked.clear()
    answers, _ = ask(tmp_path, NAME, f"{NAME}@{COMMIT}", HF_ENDPOINT=address)
    assert answers == [expected, expected]
    assert [path for path in asked if NAME in path] == [f"/api/models/{NAME}/revision/main"]


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot reach the hub"),
    ],
)
def test_without_network_the_cache_serves_or_one_error_ends_it(tmp_path, environment, reason):
    """A cached main is taken and the log says so; what nothing holds is an environment error."""
    fill(tmp_path)
    unknown = "someone/unknown"
    (cached, *missing), said = ask(tmp_path, NAME, unknown, f"{unknown}@{COMMIT}", **environment)
    assert cached["commit"] == COMMIT
    assert len(said) == 1
    assert reason in said[0]
    assert f"commit {COMMIT[:12]} from the cache" in said[0]
    assert len(missing) == 2
    for answer in missing:
        assert answer["exit"] == 3
        first, mend = answer["lines"]
        assert first.startswith("error: model.path: ")
        assert reason in first
        assert unknown in first
        assert "model=tiny" in mend


def test_partial_snapshot_is_not_taken_for_whole(tmp_path, hub):
    """A snapshot that lacks weights or tokenizer needs the network, which completes it."""
    fill(tmp_path, without="model.safetensors")
    fill(tmp_path, "someone/other", without="tokenizer.json")
    answers, _ = ask(tmp_path, NAME, "someone/other", HF_HUB_OFFLINE="1")
    assert [answer["exit"] for answer in answers] == [3, 3]
    (answer,), _ = ask(tmp_path, NAME, HF_ENDPOINT=hub[0])
    assert "model.safetensors" in answer["files"]


def test_what_the_hub_refuses_names_the_key_and_a_mend(tmp_path, hub):
    """Each refusal of the hub becomes two short lines with the key and what to do."""
    cases = {
        "someone/nothing": (1, "model.path", "no repository 'someone/nothing'"),
        "someone/gated": (1, "model.path", "licence"),
        "someone/broken": (3, "model.path", "500"),
        f"{NAME}@v1.6": (1, "model.revision", "did you mean model.revision=v1.5?"),
        "not a name/at all": (1, "model.path", "owner/name"),
    }
    answers, _ = ask(tmp_path, *cases, HF_ENDPOINT=hub[0])
    for answer, (code, key, words) in zip(answers, cases.values(), strict=True):
        assert answer["exit"] == code
        assert answer["lines"][0].startswith(f"error: {key}: ")
        assert words in " ".join(answer["lines"])


def test_branches_of_a_data_set_become_commits(tmp_path, hub):
    """main and a tag are asked for once; a commit is taken as it is, without a question."""
    address, asked = hub
    names = (NAME, f"{NAME}@main", f"{NAME}@{COMMIT[::-1]}")
    answers, said = ask(tmp_path, *names, script=FIND, HF_ENDPOINT=address)
    assert answers == [{"commit": COMMIT}, {"commit": COMMIT}, {"commit": COMMIT[::-1]}]
    assert said == []
    paths = [path for path in asked if NAME in path]
    assert paths == 2 * [f"/api/datasets/{NAME}/revision/main"]


def test_without_network_the_cache_knows_the_commit_of_a_data_set(tmp_path):
    """What a branch meant is taken from the cache; without a branch also what was fetched last."""
    fill(tmp_path, kind="datasets")
    fill(tmp_path, "someone/pinned", kind="datasets")
    (tmp_path / "datasets--someone--pinned" / "refs" / "main").unlink()
    names = (NAME, f"{NAME}@main", "someone/pinned", "someone/pinned@main", "someone/unknown")
    answers, said = ask(tmp_path, *names, script=FIND, HF_HUB_OFFLINE="1")
    assert answers[:3] == [{"commit": COMMIT}] * 3
    assert len(said) == 3
    assert all(f"commit {COMMIT[:12]} from the cache" in line for line in said)
    for answer in answers[3:]:
        assert answer["exit"] == 3
        assert answer["lines"][0].startswith("error: data.path: no file or folder 'someone/")
        assert "HF_HUB_OFFLINE" in answer["lines"][0]
        assert "set data.path=<a file or folder>" in answer["lines"][1]


def test_what_the_hub_refuses_of_a_data_set_names_the_keys_of_data(tmp_path, hub):
    """Each refusal says data.path or data.revision, and that no file of that name is here."""
    cases = {
        "someone/nothing": (1, "data.path", "no file or folder 'someone/nothing' here"),
        "someone/gated": (1, "data.path", "accept it at https://huggingface.co/datasets/someone/"),
        "someone/broken": (3, "data.path", "500"),
        f"{NAME}@v1.6": (1, "data.revision", "did you mean data.revision=v1.5?"),
        f"{NAME}@xyz": (1, "data.revision", "leave data.revision out to take main"),
    }
    answers, _ = ask(tmp_path, *cases, script=FIND, HF_ENDPOINT=hub[0])
    for answer, (code, key, words) in zip(answers, cases.values(), strict=True):
        assert answer["exit"] == code
        assert answer["lines"][0].startswith(f"error: {key}: ")
        assert words in " ".join(answer["lines"])


def local(directory: Path) -> Path:
    directory.mkdir()
    for name, data in FILES.items():
        (directory / name).write_bytes(data)
    return directory


def test_tiny_is_used_where_it_lies(tmp_path, monkeypatch):
    """The embedded model has no commit; its files decide, but for what is there to be read, and
    not where the package is installed."""
    model = Model(path="tiny")
    source = resolve(model)
    assert (source.kind, source.directory, source.commit) == ("tiny", EMBEDDED, None)
    assert download(model, source, print) == EMBEDDED
    assert not is_made(model.quantization, model.init_seed)
    texts = {"chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json",
             "tokenizer_config.json"}  # fmt: skip
    assert set(source.tokenizer["files"]) == texts
    assert set(source.weights["files"]) == {*texts, "model.safetensors"}
    elsewhere = shutil.copytree(EMBEDDED, tmp_path / "embedded")
    for name in ("README.md", "curve.png"):
        (elsewhere / name).write_bytes(b"anything")
    monkeypatch.setattr("pipeline.hub.EMBEDDED", elsewhere)
    moved = resolve(model)
    assert moved.directory == elsewhere
    assert (moved.weights, moved.tokenizer) == (source.weights, source.tokenizer)
    (elsewhere / "model.safetensors").unlink()
    with pytest.raises(Refused, match=r"model\.safetensors of the embedded model is not installed"):
        resolve(model)
    assert resolve(Model(path="tiny", init_seed=0)).weights == source.tokenizer


def test_weights_that_are_drawn_anew_are_not_looked_at(tmp_path):
    """With model.init_seed, a directory with or without weights is the same model."""
    directory = local(tmp_path / "a")
    model = Model(path=str(directory), init_seed=1)
    with_weights = resolve(model)
    assert is_made(model.quantization, model.init_seed)
    (directory / "model.safetensors").unlink()
    assert resolve(model) == with_weights
    (directory / "tokenizer.json").write_bytes(b"{ }")
    assert resolve(model).weights != with_weights.weights


def test_local_identity_follows_the_bytes_not_the_place(tmp_path):
    """A copy has the same identity; another weight byte changes the weights' identity alone."""
    first, second = local(tmp_path / "a"), local(tmp_path / "b")
    original = resolve(Model(path=str(first)))
    assert original.directory == first
    assert resolve(Model(path=str(second))).weights == original.weights
    digest = hashlib.sha256(b"weights").hexdigest()
    assert original.weights["files"]["model.safetensors"] == digest
    assert set(original.tokenizer["files"]) == {
        "chat_template.jinja", "config.json", "tokenizer.json"
    }  # fmt: skip
    (second / "model.safetensors").write_bytes(b"Weights")
    changed = resolve(Model(path=str(second)))
    assert changed.weights != original.weights
    assert changed.tokenizer == original.tokenizer
    (second / "chat_template.jinja").write_bytes(b"")
    assert resolve(Model(path=str(second))).tokenizer != original.tokenizer


def test_local_directory_is_used_where_it_lies(tmp_path):
    """Nothing is copied or fetched."""
    model = Model(path=str(local(tmp_path / "a")))
    assert download(model, resolve(model), print) == tmp_path / "a"


@pytest.mark.parametrize(
    ("path", "revision", "words"),
    [
        ("{}/missing", None, "no directory"),
        ("{}/empty", None, "no config.json"),
        ("{}/a", "main", "leave model.revision out"),
    ],
)
def test_wrong_local_directories_are_refused(tmp_path, path, revision, words):
    """A directory without a model, or a revision of one, is refused with its key."""
    local(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refused, match=words):
        resolve(Model(path=path.format(tmp_path), revision=revision))
