"""Put the weights of a pretraining run into the package, with their model card.

    python -m stages.models.pretraining.ship --first outputs/runs/talk/latest \\
        --run outputs/runs/pretrain_tiny/latest

The run went on from the first one; it must have merged as bfloat16 and evaluated. Of `--out` (the
embedded model) the configuration and the tokenizer stay: they are what the run started from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from stages.artifacts import BaseModel
from stages.generation.engine import Engine, Job
from stages.generation.prompts import open_chat
from stages.generation.sampling import Sampling
from stages.inputs import EMBEDDED
from stages.models.loading import load_model
from stages.models.pretraining.card import CARD, PROMPTS, TALK, numbers
from stages.models.tokenizer import load_tokenizer, stop_token_ids

_WEIGHTS, _CARD = "model.safetensors", "README.md"
_CURVE, _FIRST_CURVE = "loss.png", "loss_first.png"
_TOKENS = 120


def samples(directory: Path) -> list[tuple[str, str]]:
    """Return what the model in `directory` makes of each prompt: stories drawn, talk greedy."""
    tokenizer = load_tokenizer(directory)
    stops = stop_token_ids(directory, tokenizer)
    module = load_model(BaseModel(directory=directory, dtype="float32", metrics={}))
    engine = Engine(module, tokenizer, stops, batch_size=1)
    chat = open_chat(tokenizer, directory)
    drawn = Sampling(temperature=0.7, seed=0, max_tokens=_TOKENS)
    jobs = [Job(prompt=tokenizer.encode(text), sampling=drawn) for text in PROMPTS]
    for turns in TALK:
        prompt = chat([{"role": role, "content": text} for role, text in turns], "talk")
        jobs.append(Job(prompt=prompt, sampling=Sampling(max_tokens=_TOKENS)))
    places = [engine.insert(job) for job in jobs]
    made = dict.fromkeys(places, "")
    while len(engine):
        for event in engine.step():
            made[event.uid] += event.text
    said = [*PROMPTS, *("\n".join(f"{role}: {text}" for role, text in turns) for turns in TALK)]
    return list(zip(said, made.values(), strict=True))


def digests(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file but the card, by name."""
    files = sorted(file for file in directory.iterdir() if file.name != _CARD)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def card(directory: Path, record: dict[str, Any], first: dict[str, Any]) -> str:
    """Return the model card: what the runs recorded, samples, and the digest of every file."""
    shown = "\n\n".join(f"> {prompt.replace(chr(10), f'{chr(10)}> ')}\n\n```text\n{text}\n```"
                        for prompt, text in samples(directory))  # fmt: skip
    listed = "\n".join(f"| `{name}` | `{digest}` |" for name, digest in digests(directory).items())
    return CARD.format(**numbers(record, first), samples=shown, digests=listed)


def main() -> None:
    """Copy weights and curve, then write the card."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in ("first", "run"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    given = parser.parse_args()
    for run, parts in ((given.first, ("train",)), (given.run, ("train", "merge", "evaluate"))):
        lacking = [part for part in ("run.json", *parts) if not (run / part).exists()]
        if lacking:
            parser.error(f"{run}: no run with {' and '.join(lacking)}")
    first, record = (json.loads((run / "run.json").read_text(encoding="utf-8"))
                     for run in (given.first, given.run))  # fmt: skip
    shutil.copyfile(given.run / "merge" / _WEIGHTS, given.out / _WEIGHTS)
    shutil.copyfile(given.run / "train" / _CURVE, given.out / _CURVE)
    shutil.copyfile(given.first / "train" / _CURVE, given.out / _FIRST_CURVE)
    (given.out / _CARD).write_text(card(given.out, record, first), encoding="utf-8")


if __name__ == "__main__":
    main()
