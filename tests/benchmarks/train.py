"""Training a 135M-parameter model on this machine: ours, mlx_lm.lora, and PEFT with torch.

Run `python tests/benchmarks/train.py`; it takes some ten minutes, most of them for mlx_lm.lora as
pip installs it. Each measurement has a process of its own; see train_peers.py. `--only
ours,torch_float32` takes some of them, `--steps 12` more steps, `--directory D` keeps the model.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.environment import cpu_count, worker_variables

HERE = Path(__file__).parent
DATA = Path(__file__).parents[3] / "shared" / "data"
SAMPLE_SECONDS = 1.0
LEAN = {"gradient_checkpointing": True, "workers": 1}
"""Settings of `train` that save memory."""
TOP_QUARTER = {"lora": {"num_layers": 8}, "train": {"epochs": 2, "steps": None}}


@dataclass(frozen=True)
class Case:
    """One measurement: who trains on which rows, with which settings apart from the usual ones."""

    peer: str
    rows: str
    steps: int | None = None
    settings: dict[str, dict[str, Any]] | None = None


CASES = {
    "ours": Case("ours", "wikisql"),
    "mlx_lm": Case("mlx_lm", "wikisql", steps=2),
    "mlx_lm_blas": Case("mlx_lm_blas", "wikisql"),
    "torch_float32": Case("torch_float32", "wikisql"),
    "torch_bfloat16": Case("torch_bfloat16", "wikisql"),
    "memory": Case("ours", "long", steps=3),
    "memory_lean": Case("ours", "long", steps=3, settings={"train": LEAN}),
    "memory_mlx_lm": Case("mlx_lm_blas", "long", steps=3),
    "padding_wikisql": Case("ours_padding", "wikisql"),
    "padding_wikisql_mlx_lm": Case("mlx_lm_padding", "wikisql"),
    "padding_snips": Case("ours_padding", "snips"),
    "padding_snips_mlx_lm": Case("mlx_lm_padding", "snips"),
    "prefix": Case("ours", "few", settings=TOP_QUARTER),
    "prefix_answers": Case("ours", "few_answers", settings=TOP_QUARTER),
}
ROWS = (
    # What, who else, the case of ours and of the other, what is compared, and what to reach.
    ("WikiSQL, tokens/s", "mlx_lm.lora as installed", "ours", "mlx_lm", "rate", "≥ 40x"),
    ("WikiSQL, tokens/s", "mlx_lm.lora, our BLAS", "ours", "mlx_lm_blas", "rate", "≥ 2x"),
    ("WikiSQL, tokens/s", "PEFT + torch float32", "ours", "torch_float32", "rate", "≥ 1.8x"),
    ("WikiSQL, tokens/s", "PEFT + torch bfloat16", "ours", "torch_bfloat16", "rate", ""),
    ("WikiSQL, peak memory", "mlx_lm.lora as installed", "ours", "mlx_lm", "memory", ""),
    ("WikiSQL, peak memory", "PEFT + torch float32", "ours", "torch_float32", "memory", ""),
    ("WikiSQL, peak memory", "PEFT + torch bfloat16", "ours", "torch_bfloat16", "memory", ""),
    ("T = 512, peak memory", "mlx_lm.lora, our BLAS", "memory", "memory_mlx_lm", "memory",
     "≤ 0.9x"),
    ("… gradient checkpointing", "mlx_lm.lora, our BLAS", "memory_lean", "memory_mlx_lm",
     "memory", "≤ 0.6x"),
    ("T = 512, tokens/s", "mlx_lm.lora, our BLAS", "memory", "memory_mlx_lm", "rate", ""),
    ("WikiSQL, padding", "mlx_lm.lora", "padding_wikisql", "padding_wikisql_mlx_lm", "padding",
     "≤ 3 %"),
    ("SNIPS, padding", "mlx_lm.lora", "padding_snips", "padding_snips_mlx_lm", "padding",
     "≤ 3 %"),
    ("top quarter of layers, tokens/s, epoch 2", "epoch 1", "prefix", "prefix", "epochs",
     "≥ 1.5x"),
    ("… answers alone supervised", "epoch 1", "prefix_answers", "prefix_answers", "epochs",
     "≥ 2x"),
)  # fmt: skip


def variables(peer: str) -> dict[str, str]:
    """Return the environment of a process: a plain one, or with the kernel of our BLAS."""
    plain = {name: value for name, value in os.environ.items()
             if not name.startswith(("OPENBLAS_", "OMP_", "MALLOC_"))}  # fmt: skip
    if peer == "mlx_lm_blas":
        ours = worker_variables() | {"OPENBLAS_NUM_THREADS": str(cpu_count())}
        return plain | {name: value for name, value in ours.items() if name.startswith("OPEN")}
    return plain


def run(peer: str, *arguments: str) -> dict[str, Any]:
    """Run one peer in a process of its own; return what it measured and the memory it held."""
    command = [sys.executable, str(HERE / "train_peers.py"), peer, *arguments]
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env=variables(peer), stdout=said, stderr=errors)
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(map(proportional_bytes, family(process.pid))))
            time.sleep(SAMPLE_SECONDS)
        said.seek(0)
        errors.seek(0)
        if process.returncode:
            return {"failed": (errors.read().strip().splitlines() or ["no reason"])[-1]}
        return {**json.loads(said.read().splitlines()[-1]), "memory": peak}


def family(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += family(int(child))
    return found


def proportional_bytes(pid: int) -> int:
    """Return the memory of a process, each shared page divided by those that share it (PSS)."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) * 1024
    return 0


def figure(result: dict[str, Any], kind: str) -> float | None:
    """Return what is compared: a median over the steps after the first, or one number."""
    if kind == "rate" and "rates" in result:
        return statistics.median(result["rates"][1:])
    return result.get(kind)


def line(results: dict[str, dict[str, Any]], row: tuple[str, ...]) -> str | None:
    """Return one row of the table, None where it was not measured."""
    what, other, ours, theirs, kind, wanted = row
    if not {ours, theirs} & results.keys():
        return None
    values = figure(results.get(ours, {}), kind), figure(results.get(theirs, {}), kind)
    if kind == "epochs" and ours in results:
        first, second = results[ours].get(kind, ([], []))
        values = (
            (statistics.median(second), statistics.median(first[1:])) if second else (None,) * 2
        )
    form = {"memory": lambda v: f"{v / 1e9:.2f} GB", "padding": lambda v: f"{100 * v:.1f} %"}
    shown = [form.get(kind, "{:,.0f}".format)(v) if v is not None else "-" for v in values]
    ratio = f"{values[0] / values[1]:.2f}x" if None not in values and kind != "padding" else "-"
    return f"| {what} | {shown[0]} | {other} | {shown[1]} | {ratio} | {wanted} |"


def main() -> None:
    """Measure what is asked for and print the table as GitHub's Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help=f"some of {', '.join(CASES)}")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--directory", type=Path, help="keep model, tokenizer and rows here")
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    chosen = [
        name
        for name in CASES
        if not options.only
        or any(
            name.startswith(part) if part in ("padding", "prefix") else name == part
            for part in options.only.split(",")
        )
    ]
    if not options.data.is_dir():
        print(f"skipped: the real text is not there, {options.data}")
        return
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        directory = options.directory or Path(scratch)
        print("making the model, its tokenizer and the rows", file=sys.stderr)
        setup = [sys.executable, HERE / "train_setup.py", directory, options.data]
        subprocess.run(setup, check=True)
        for name in chosen:
            case = CASES[name]
            print(f"measuring {name}", file=sys.stderr)
            steps, settings = case.steps or options.steps, json.dumps(case.settings or {})
            results[name] = run(case.peer, str(directory), case.rows, str(steps), settings)
            if failed := results[name].get("failed"):
                print(f"not measured: {name}: {failed}", file=sys.stderr)
    print("| what | ours | against | theirs | ratio | to reach |\n|---|---:|---|---:|---:|---:|")
    print(*filter(None, (line(results, row) for row in ROWS)), sep="\n")


if __name__ == "__main__":
    main()
