"""Preparing chat rows: our prepare stage against mlx-lm, which tokenises rows as it meets them.

Run `python tests/benchmarks/prepare.py [--rows 100000] [--repeats 3] [--gigabyte]`. Everything
reads the same generated file with the tokenizer of the embedded model. Each measurement is a
process of its own, timed from its start to its end; they take turns. Memory is that of the whole
process tree, shared pages counted once; it needs Linux. `--gigabyte` prepares 1 GB of rows once.
"""

import argparse
import json
import math
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from omegaconf import OmegaConf
from tokenizers import Tokenizer

from pipeline.environment import cpu_count, worker_variables
from stages.inputs import EMBEDDED

SEED = 4
OURS = "prepare"
PEERS = {"mlx-lm": False, "mlx-lm, mask_prompt": True}
"""Name of each way of mlx-lm -> whether it masks the prompt, as our prepare always does."""
SETTINGS = Path(__file__).parents[2] / "conf" / "data" / "local.yaml"
_SAMPLED_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement of one way."""

    seconds: float
    cpu_seconds: float
    """Of all its processes: what a busy machine does not lengthen."""
    tokens: int
    memory_bytes: int
    """Most that the process and its children held at once; 0 where it cannot be found out."""
    disk_bytes: int
    """Most that its files held at once, result and temporary ones."""


def token_words() -> list[str]:
    """Return the words that are tokens of the embedded model, the most frequent first."""
    vocabulary = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json")).get_vocab()
    # Byte pairs are merged, and numbered, in the order of their frequency; Ġ is the space before.
    words = (token.removeprefix("Ġ") for token in sorted(vocabulary, key=vocabulary.__getitem__))
    return list(dict.fromkeys(word for word in words if re.fullmatch(r"I|a|[A-Za-z]{2,}", word)))


def generated_rows() -> Iterator[str]:
    """Yield lines of chat rows: 2 to 4 turns, 60 to 400 characters, evenly on a log scale."""
    generator, words = random.Random(SEED), token_words()
    # Rank r occurs 1/r as often as rank 1, as words do.
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    total = [sum(weights[:place]) for place in range(1, len(words) + 1)]
    roles = {2: ("user", "assistant"), 3: ("system", "user", "assistant"),
             4: ("user", "assistant", "user", "assistant")}  # fmt: skip
    while True:
        turns = roles[generator.randint(2, 4)]
        characters = math.exp(generator.uniform(math.log(60), math.log(400)))
        count = max(3, round(characters / len(turns) / 4.8))
        contents = [" ".join(generator.choices(words, cum_weights=total, k=count)) for _ in turns]
        messages = [
            {"role": role, "content": content}
            for role, content in zip(turns, contents, strict=True)
        ]
        yield json.dumps({"messages": messages}) + "\n"


def write_rows(file: Path, rows: int, size_bytes: int = 0) -> int:
    """Write that many rows, and more until the file has that size; return their number."""
    written = 0
    file.parent.mkdir()
    with file.open("w", encoding="utf-8") as stream:
        for count, line in enumerate(generated_rows()):
            if count >= rows and written >= size_bytes:
                return count
            written += stream.write(line)
    raise AssertionError


def prepared_tokens(work: Path) -> int:
    """Prepare the rows with our stage at its defaults; return the tokens it wrote."""
    from stages.artifacts import BaseModel
    from stages.prepare import prepare
    from stages.settings import from_values

    class Silent:
        def log(self, message: str) -> None: ...
        def metrics(self, step: int, values: object) -> None: ...
        def progress(self, done: int, total: int, fields: object) -> None: ...
        def stop_requested(self) -> bool:
            return False

    values: Any = OmegaConf.to_container(OmegaConf.load(SETTINGS))
    data = from_values("data", values | {"path": str(work / "rows" / "train.jsonl")})
    model = BaseModel(directory=EMBEDDED, dtype="float32")
    prepared = prepare(data, SEED, model=model, report=Silent(), out=work / "out")
    splits = ("train", "valid", "test")
    return sum(int(prepared.metrics[f"prepare.{split}.tokens"]) for split in splits)


def peer_tokens(work: Path, mask_prompt: bool) -> int:
    """Load the rows as mlx-lm does, and meet each of them once; return their tokens."""
    from mlx_lm.tokenizer_utils import load
    from mlx_lm.tuner.datasets import CacheDataset, load_local_dataset

    config = SimpleNamespace(mask_prompt=mask_prompt)
    train, _, _ = load_local_dataset(work / "rows", load(EMBEDDED), config)
    rows = CacheDataset(train)
    return sum(len(rows[index][0]) for index in range(len(rows)))


def tree(process: int) -> Iterator[Path]:
    """Yield the folder in /proc of a process and of all below it; nothing without Linux's /proc."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    waiting = [process]
    while waiting:
        one = waiting.pop()
        waiting += parents.get(one, [])
        yield Path(f"/proc/{one}")


def memory_bytes(process: Path) -> int:
    """Return what a process holds: pages that it shares with others are divided among them."""
    with suppress(OSError):
        lines = (process / "smaps_rollup").read_text().splitlines()
        return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return 0


def nameless_bytes(process: Path, work: Path) -> int:
    """Return the size of the open files under `work` that have no name, or none any more."""
    found = 0
    with suppress(OSError):
        for opened in (process / "fd").iterdir():
            place = str(opened.readlink())
            if place.startswith(str(work)) and place.endswith("(deleted)"):
                found += opened.stat().st_size
    return found


def named_bytes(folder: Path) -> int:
    """Return the size of all files in a folder."""
    found = 0
    for file in folder.rglob("*"):
        with suppress(OSError):
            found += file.stat().st_size if file.is_file() else 0
    return found


def measured(way: str, work: Path) -> Measured:
    """Run one way in a process of its own, and watch its memory and the disk."""
    shutil.rmtree(work / "out", ignore_errors=True)
    memory, disk, over = [0], [0], threading.Event()

    def watch() -> None:
        while not over.wait(_SAMPLED_SECONDS):
            processes = list(tree(process.pid))
            memory.append(sum(map(memory_bytes, processes)))
            nameless = sum(nameless_bytes(one, work) for one in processes)
            disk.append(nameless + named_bytes(work / "out"))

    command = [sys.executable, __file__, "--way", way, "--work", str(work)]
    environment = {**os.environ, **worker_variables("tiny")}
    start, cpu_start = time.perf_counter(), cpu_seconds()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        watching = threading.Thread(target=watch)
        watching.start()
        try:
            output, _ = process.communicate()
            seconds = time.perf_counter() - start
        finally:
            over.set()
            watching.join()
    if process.returncode:
        raise SystemExit(f"{way} failed with code {process.returncode}")
    used = cpu_seconds() - cpu_start
    return Measured(seconds, used, int(output), max(memory), max(disk))


def cpu_seconds() -> float:
    """Return the CPU time of all processes that this one has waited for, and those below them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def show(way: str, rows: int, found: list[Measured], ours: list[Measured]) -> None:
    """Print one line: medians, and for a peer how ours compares with it."""
    seconds, cpu, memory, disk = (
        statistics.median(getattr(one, name) for one in found)
        for name in ("seconds", "cpu_seconds", "memory_bytes", "disk_bytes")
    )
    tokens = found[0].tokens
    line = (
        f"{way:>20} {seconds:>8.1f} {cpu:>7.1f} {rows / seconds:>9,.0f} {tokens / seconds:>11,.0f} "
        f"{tokens:>13,} {memory / 1e6:>10,.0f} {disk / 1e6:>8,.0f}"
    )
    if ours:
        rate = seconds / statistics.median(one.seconds for one in ours)
        share = statistics.median(one.memory_bytes for one in ours) / max(1, memory)
        line += f"   ours: {rate:.2f}x the rate, {share:.2f}x the memory"
    print(line, flush=True)


def main() -> None:
    """Print a table: one line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gigabyte", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the files go, instead of /tmp")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.way == OURS:
        print(prepared_tokens(asked.work))
        return
    if asked.way:
        print(peer_tokens(asked.work, PEERS[asked.way]))
        return
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        compare(Path(folder), asked.rows, asked.repeats, asked.gigabyte)


def compare(work: Path, rows: int, repeats: int, gigabyte: bool) -> None:
    """Make the rows in `work`, measure every way and print the table."""
    file = work / "rows" / "train.jsonl"
    rows = write_rows(file, 0, 10**9) if gigabyte else write_rows(file, rows)
    print(f"{rows:,} rows, {file.stat().st_size / 1e6:,.0f} MB, {cpu_count()} cores")
    print(f"{'way':>20} {'seconds':>8} {'CPU s':>7} {'rows/s':>9} {'tokens/s':>11} {'tokens':>13} "
          f"{'memory MB':>10} {'disk MB':>8}", flush=True)  # fmt: skip
    if gigabyte:
        show(OURS, rows, [measured(OURS, work)], [])
        return
    found: dict[str, list[Measured]] = {way: [] for way in (OURS, *PEERS)}
    for _ in range(repeats):
        for way, ones in found.items():
            ones.append(measured(way, work))
    show(OURS, rows, found[OURS], [])
    for way in PEERS:
        show(way, rows, found[way], found[OURS])


if __name__ == "__main__":
    main()
