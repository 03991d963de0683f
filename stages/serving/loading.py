"""From directories to a warm engine; called on the thread that is to own it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.artifacts import BaseModel
from stages.generation.engine import Engine, Job
from stages.generation.sampling import Sampling
from stages.lora.files import load_adapter
from stages.models.loading import load_model
from stages.models.tokenizer import load_tokenizer, stop_token_ids


def load_engine(
    base: BaseModel, adapters: Mapping[str, Path], batch_size: int, prompt: Sequence[int]
) -> Engine:
    """Load the base once and every adapter on it, and answer `prompt` with each.

    What a first answer pays once (compilation, allocation) is paid here. Raises InputError where
    a directory does not hold what it should.
    """
    module = load_model(base)
    banks = {}
    for name, directory in adapters.items():
        banks[name] = load_adapter(module, directory)
        banks[name].detach()
    tokenizer = load_tokenizer(base.directory)
    stops = stop_token_ids(base.directory, tokenizer)
    engine = Engine(module, tokenizer, stops, adapters=banks, batch_size=batch_size)
    for adapter in (None, *banks):
        engine.insert(Job(prompt=prompt, sampling=Sampling(max_tokens=2), adapter=adapter))
    while len(engine):
        engine.step()
    return engine
