"""What is committed is found again whole, or not at all."""

import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import Refused, Unable
from pipeline.store import Entry, Store

ROOT = Path(__file__).parents[2]
KEY = "0123456789abcdef"
FILES = {
    "adapters.safetensors": b"weights" * 99,
    "sub/metrics.jsonl": b'{"step": 1}\n',
    "empty": b"",
}

# No two of these are one name to a file system that ignores case or composes characters.
names = st.text("bcd0 .-_é\n'\"\\*", min_size=1, max_size=8).filter(lambda n: n not in (".", ".."))
trees = st.dictionaries(
    st.tuples(st.sampled_from(["", "a/", "a/b/"]), names).map("".join),
    st.binary(max_size=99),
    max_size=5,
).filter(lambda tree: "a/b" not in tree)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def write(directory: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def commit(store: Store, files: dict[str, bytes] = FILES, key: str = KEY, **given: Any) -> Entry:
    staging = store.stage_directory("train", key)
    write(staging, files)
    about: dict[str, Any] = {"ingredients": {"lora": {"rank": 8}}, "metrics": {"train.loss": 1.5}}
    return store.commit(staging, "train", key, **{**about, "seconds": 2.5, **given})


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@settings(max_examples=40, deadline=None)
@given(
    files=trees,
    ingredients=st.dictionaries(st.text(max_size=5), values, max_size=4),
    metrics=st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False), max_size=4),
    seconds=st.floats(0, 1e6),
    peak=st.none() | st.integers(0, 2**60),
)
def test_found_is_what_was_committed(files, ingredients, metrics, seconds, peak) -> None:
    """Whatever a stage writes and states comes back from the disk, byte for byte."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        entry = commit(
            store,
            files,
            ingredients=ingredients,
            metrics=metrics,
            seconds=seconds,
            peak_memory_bytes=peak,
        )
        found = store.find("train", KEY)
        assert found == entry
        assert (found.metrics, found.seconds) == (metrics, seconds)
        assert (found.peak_memory_bytes, found.ingredients) == (peak, ingredients)
        assert contents(found.directory).keys() - {"manifest.json"} == files.keys()
        assert files.items() <= contents(found.directory).items()
        assert store.verify(found) == []


def test_manifest_states_the_digest_of_every_file(store: Store) -> None:
    """manifest.json carries its format and each file's size and SHA-256."""
    manifest = json.loads((commit(store).directory / "manifest.json").read_text())
    assert manifest["format"] == 1
    stated = {name: (f["size_bytes"], f["sha256"]) for name, f in manifest["files"].items()}
    expected = {n: (len(c), hashlib.sha256(c).hexdigest()) for n, c in FILES.items()}
    assert stated == expected


def test_nothing_is_found_before_the_commit(store: Store) -> None:
    """A stage directory in the making is no entry, and asking for it writes nothing."""
    assert store.find("train", KEY) is None
    assert not store.root.exists()
    write(store.stage_directory("train", KEY), FILES)
    assert store.find("train", KEY) is None
    assert list(store.newest("train")) == []


def test_history_is_the_metrics_file(store: Store) -> None:
    """An entry names the step-by-step metrics whether or not they exist."""
    entry = commit(store)
    assert entry.history == entry.directory / "metrics.jsonl"


def test_stage_directories_are_new_and_leftovers_go(store: Store) -> None:
    """Each stage directory is empty and unlike any other; what died under the same key is gone,
    what is made under another key stays."""
    first = store.stage_directory("train", KEY)
    other = store.stage_directory("train", "fedcba")
    write(first, FILES)
    second = store.stage_directory("train", KEY)
    assert second != first
    assert list(second.iterdir()) == []
    assert not first.exists()
    assert other.is_dir()


def test_first_commit_wins(store: Store) -> None:
    """A second commit of a key returns the first entry, and leaves nothing of its own."""
    one = store.stage_directory("train", KEY)
    write(one, FILES)
    two = store.root / ".partial" / "another-process"
    write(two, {"other": b"bytes"})
    about: dict[str, Any] = {"ingredients": {}, "metrics": {}, "seconds": 1.0}
    first = store.commit(one, "train", KEY, **about)
    assert store.commit(two, "train", KEY, **about) == first
    assert files_of(first) == FILES
    assert list((store.root / ".partial").iterdir()) == []


def files_of(entry: Entry) -> dict[str, bytes]:
    return {n: c for n, c in contents(entry.directory).items() if n != "manifest.json"}


@pytest.mark.parametrize("damaged", [False, True])
def test_concurrent_commits_leave_one_entry(tmp_path: Path, damaged: bool) -> None:
    """Of writers that commit one key at once each gets a whole entry, and one is left."""
    for attempt in range(10):
        store = Store(tmp_path / str(attempt))
        if damaged:
            write(store.root / "train" / KEY, {"manifest.json": b"{"})
        barrier = threading.Barrier(4)
        got: list[Entry] = []

        def work(number: int, store=store, barrier=barrier, got=got) -> None:
            staging = store.root / ".partial" / f"writer{number}"
            write(staging, {"who": str(number).encode()})
            barrier.wait()
            about: dict[str, Any] = {"ingredients": {}, "metrics": {"who": float(number)}}
            got.append(store.commit(staging, "train", KEY, seconds=1.0, **about))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 4
        left = store.find("train", KEY)
        assert left in got
        assert (left.directory / "who").read_text() == f"{left.metrics['who']:.0f}"
        assert [path.name for path in (store.root / "train").iterdir()] == [KEY]


MAKE = """
import sys, time
from pathlib import Path
from pipeline.store import Store
store, said = Store(Path(sys.argv[1])), []
print("ready", flush=True)
input()
with store.lock("train", "k", on_wait=said.append):
    entry = store.find("train", "k")
    if entry is None:
        staging = store.stage_directory("train", "k")
        time.sleep(0.3)
        (staging / "f").write_text(sys.argv[2])
        entry = store.commit(staging, "train", "k", ingredients={}, metrics={}, seconds=0.3)
        print("made", entry.created)
    else:
        print("reused", entry.created)
"""


def test_two_processes_make_a_key_once(tmp_path: Path) -> None:
    """Of two processes that want one key the second waits, then reuses what the first made."""
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen(
            [sys.executable, "-c", MAKE, tmp_path, str(number)],
            cwd=ROOT,
            stdin=pipe,
            stdout=pipe,
            text=True,
        )
        for number in range(2)
    ]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate()[0].split() for process in running]
    assert sorted(words[0] for words in said) == ["made", "reused"]
    assert said[0][1] == said[1][1]


def damage(entry: Entry, how: str) -> None:
    path = entry.directory / "adapters.safetensors"
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[:-1])
    elif how == "longer":
        path.write_bytes(content + b"x")
    elif how == "deleted":
        path.unlink()
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    elif how == "a link":
        path.unlink()
        path.symlink_to("empty")
    elif how == "edited":
        path.write_bytes(b"W" + content[1:])
        os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("how", ["truncated", "longer", "deleted", "a folder", "a link", "edited"])
def test_damaged_entry_counts_as_absent(store: Store, how: str, caplog) -> None:
    """An entry with a damaged file is not found, the file is named, nothing is deleted; a new
    commit takes its place and sets the damaged one aside."""
    entry = commit(store)
    damage(entry, how)
    before = contents(store.root)
    with caplog.at_level(logging.WARNING):
        assert store.find("train", KEY) is None
    assert str(entry.directory / "adapters.safetensors") in caplog.text
    assert contents(store.root) == before
    assert store.verify(entry) == ["adapters.safetensors"]

    again = commit(store)
    assert store.find("train", KEY) == again
    assert files_of(again) == FILES
    (aside,) = (store.root / ".partial").iterdir()
    assert aside.name.startswith("damaged-train-")
    assert (aside / "sub/metrics.jsonl").read_bytes() == FILES["sub/metrics.jsonl"]


@pytest.mark.parametrize("name", [name for name, content in FILES.items() if content])
def test_verify_finds_a_flipped_bit(store: Store, name: str) -> None:
    """A bit that flips on the disk, size and time unchanged, is found by reading everything."""
    entry = commit(store)
    path = entry.directory / name
    before = path.stat().st_mtime_ns
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before, before))
    assert store.verify(entry) == [name]


def test_copied_store_is_found(store: Store) -> None:
    """Files whose time alone has changed, as copies have, are still the committed ones."""
    entry = commit(store)
    for path in entry.directory.rglob("*"):
        os.utime(path, ns=(1, 1))
    assert store.find("train", KEY) == entry


def test_truncated_manifest_counts_as_absent(store: Store) -> None:
    """A manifest cut off anywhere describes nothing."""
    entry = commit(store)
    path = entry.directory / "manifest.json"
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 2):
        path.write_bytes(whole[:length])
        assert store.find("train", KEY) is None, length
    assert store.verify(entry) == ["manifest.json"]


def test_altered_manifest_is_never_believed(store: Store) -> None:
    """With any one bit of the manifest flipped, nothing else than what was committed is found."""
    entry = commit(store)
    path = entry.directory / "manifest.json"
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        try:
            assert store.find("train", KEY) in (None, entry), position
        except Refused:
            assert json.loads(flipped)["format"] > 1


def test_manifest_of_another_key_is_not_believed(store: Store) -> None:
    """A directory copied to another key is not that key's entry."""
    entry = commit(store)
    entry.directory.rename(entry.directory.with_name("fedcba"))
    assert store.find("train", "fedcba") is None


def test_newer_format_is_refused(store: Store) -> None:
    """An entry of a later version is neither read nor replaced."""
    path = commit(store).directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    before = contents(path.parent)
    with pytest.raises(Refused, match="format 2"):
        store.find("train", KEY)
    with pytest.raises(Refused, match="format 2"):
        commit(store)
    assert contents(path.parent) == before
    assert list(store.newest("train")) == []


@pytest.mark.parametrize("kind", ["link", "linked folder", "pipe", "manifest.json"])
def test_only_plain_files_are_committed(store: Store, kind: str) -> None:
    """Links, pipes and the store's own file name are refused by name; nothing is committed."""
    staging = store.stage_directory("train", KEY)
    write(staging, {"sub/file": b"x"})
    path = staging / "sub" / kind
    if kind == "link":
        path.symlink_to("file")
    elif kind == "linked folder":
        path.symlink_to("..")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path = staging / kind
        path.write_bytes(b"{}")
    with pytest.raises(Refused, match=kind.split()[0]):
        store.commit(staging, "train", KEY, ingredients={}, metrics={}, seconds=1.0)
    assert store.find("train", KEY) is None


def test_newest_comes_first(store: Store) -> None:
    """Entries come newest first, those that cannot be read left out."""
    entries = [commit(store, key=f"{number}") for number in (3, 1, 2)]
    (commit(store, key="9").directory / "manifest.json").write_bytes(b"")
    assert list(store.newest("train")) == entries[::-1]
    assert list(store.newest("prepare")) == []


def test_secrets_do_not_get_into_the_manifest(store: Store) -> None:
    """A password in an address that a stage was given is not stored."""
    entry = commit(store, ingredients={"data": {"path": "https://me:canary@host/rows.jsonl"}})
    assert entry.ingredients == {"data": {"path": "https://***@host/rows.jsonl"}}
    assert b"canary" not in (entry.directory / "manifest.json").read_bytes()


def test_unreadable_store_is_named(store: Store, monkeypatch) -> None:
    """Where the disk will not give the manifest, the error names it: it is not absent."""
    path = commit(store).directory / "manifest.json"

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(Unable) as refused:
        store.find("train", KEY)
    assert refused.value.where == str(path)


def test_full_disk_names_path_and_bytes(store: Store, monkeypatch) -> None:
    """When the disk is full the error says what was needed, what is free, and what to do."""
    staging = store.stage_directory("train", KEY)
    write(staging, FILES)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(Unable) as refused:
        store.commit(staging, "train", KEY, ingredients={}, metrics={}, seconds=1.0)
    needed = sum(map(len, FILES.values()))
    assert refused.value.where == str(staging)
    assert f"needed {needed} bytes, free " in refused.value.found
    assert "outputs=" in refused.value.mend
    assert refused.value.exit_code == 3


def test_all_is_on_the_disk_before_it_is_named(store: Store, monkeypatch) -> None:
    """Every file and folder of an entry is synced before the rename, the folder above after it."""
    synced: list[int] = []
    at_rename: list[list[int]] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    def rename(source: Path, target: Path) -> None:
        at_rename.append(list(synced))
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    entry = commit(store)
    inside = {path.stat().st_ino for path in [entry.directory, *entry.directory.rglob("*")]}
    assert inside <= set(at_rename[0])
    manifest = (entry.directory / "manifest.json").stat().st_ino
    after_manifest = at_rename[0][at_rename[0].index(manifest) :]
    assert entry.directory.stat().st_ino in after_manifest
    assert at_rename[0][-1] == store.root.stat().st_ino
    assert synced[-1] == entry.directory.parent.stat().st_ino
