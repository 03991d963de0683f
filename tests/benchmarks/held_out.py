"""Held-out loss after equal time: ours and mlx_lm.lora train the same model on the same rows.

Run `python tests/benchmarks/held_out.py`; it takes some ten minutes. Both have our default
settings: rank, batch, AdamW with its bias corrected, warm-up, cosine; mlx_lm.lora cannot clip. A
trial of a quarter of the time finds how many steps each can make, for the schedule ends with
them; then each trains from the start until the time is up. Neither validates meanwhile. One
scorer reads both adapters. The model has random weights, 6 layers of 256 and 8,192 tokens, so
that its loss falls in minutes. `--seconds 20` is less time, `--only ours,mlx_lm` also runs
mlx_lm.lora as pip installs it; `--threads 1` is for a machine that has other work: two threads
that wait for each other then take ten times as long.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from held_out_peers import UNTRAINED
from train import DATA, variables
from train_setup import SHAPE, lines, new_tokenizer, snips, write_model, write_rows

from pipeline.environment import cpu_count

HERE = Path(__file__).parent
MODEL = SHAPE | {
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 8192,
}  # fmt: skip
PEERS = {
    "ours": "ours",
    "mlx_lm_blas": "mlx_lm.lora, our BLAS",
    "mlx_lm": "mlx_lm.lora as installed",
}
TITLES = {"wikisql": "WikiSQL", "snips": "SNIPS"}
UNBOUNDED = 1_000_000
"""Steps of the run that finds the speed: it ends by time."""
USED, OVER, ATTEMPTS = 0.95, 1.01, 3
"""Share of the time that a run must use, and may, and how often it is run for it."""


def setup(directory: Path, data: Path) -> None:
    """Write the model, its tokenizer, and both data sets with their held-out rows."""
    texts = {
        "wikisql": [row["text"] for row in lines(data / "wikisql" / "train.jsonl")],
        "wikisql_held_out": [row["text"] for row in lines(data / "wikisql" / "valid.jsonl")],
        "snips": snips(data / "snips"),
        "snips_held_out": snips(data / "snips", "validate_*.json"),
    }
    tokenizer = new_tokenizer([*texts["wikisql"], *texts["snips"]], MODEL["vocab_size"])
    write_model(directory / "model", MODEL)
    tokenizer.save_pretrained(directory / "model")
    for name, found in texts.items():
        write_rows(directory, tokenizer, name, found, "all")


def child(peer: str, threads: int, *arguments: object) -> dict[str, Any]:
    """Run held_out_peers.py in the environment of a peer and return what it prints last."""
    command = [sys.executable, HERE / "held_out_peers.py", *map(str, arguments)]
    own = {} if peer == "mlx_lm" else {"OPENBLAS_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=variables(peer) | own, text=True, capture_output=True)
    if done.returncode:
        sys.exit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def train(
    peer: str, threads: int, directory: Path, rows: str, seconds: float
) -> tuple[int, int, float]:
    """Train for `seconds`, after a trial for the speed.

    Returns the steps taken, those of the schedule, and the seconds. It trains anew, with more
    steps, where it turns out that the trial was slow and time is left.
    """
    trial = child(peer, threads, peer, directory, rows, seconds / 4, UNBOUNDED)["starts"]
    if len(trial) < 4:
        sys.exit(f"{peer} makes no 3 steps in {seconds / 4:.0f} seconds: give it more, --seconds")
    # The first step also sets up what the others find.
    steps = round(seconds * (len(trial) - 2) / (trial[-1] - trial[1]))
    planned, end = [steps], 0.0
    # Ours writes its adapter only at the last step: it ends by steps, not by time.
    longest = 2 * seconds if peer == "ours" else seconds
    while not USED * seconds <= end <= OVER * seconds and len(planned) <= ATTEMPTS:
        *starts, end = child(peer, threads, peer, directory, rows, longest, planned[-1])["starts"]
        planned.append(round(planned[-1] * seconds / end))
    return len(starts), planned[-2], end


def main() -> None:
    """Train, score, and print the table as GitHub's Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--only", default="ours,mlx_lm_blas", help=f"some of {', '.join(PEERS)}")
    parser.add_argument("--rows", default=",".join(TITLES), help=f"some of {', '.join(TITLES)}")
    parser.add_argument("--threads", type=int, default=cpu_count(), help="of our BLAS")
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"skipped: the real text is not there, {options.data}")
        return
    threads = options.threads
    print("| rows | trained by | steps | seconds | held-out loss |\n|---|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        setup(directory, options.data)
        for rows in options.rows.split(","):
            loss = child("ours", threads, "score", directory, rows, UNTRAINED)["loss"]
            print(f"| {TITLES[rows]} | nobody | 0 | 0 | {loss:.4f} |")
            for peer in options.only.split(","):
                done, steps, taken = train(peer, threads, directory, rows, options.seconds)
                loss = child("ours", threads, "score", directory, rows, peer)["loss"]
                made = f"{done:,} of {steps:,}"
                print(f"| {TITLES[rows]} | {PEERS[peer]} | {made} | {taken:.1f} | {loss:.4f} |")


if __name__ == "__main__":
    main()
