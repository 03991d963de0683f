"""The tokenizer of a model directory, read without MLX, without the hub and without its code."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCABULARY_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "tekken.json",
    "tiktoken.model",
    "*.tiktoken",
)
"""Patterns of which a model directory must hold at least one."""


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies in `directory`.

    Nothing is fetched, and Python files in the directory are never run.
    Raises InputError where the files are missing or cannot be read.
    """
    check_vocabulary(directory)
    # Without it transformers advises on stderr, at import, to install a framework we do not use.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    # Damaged files surface as nearly every built-in exception, the Rust side's bare one included.
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise InputError(
            str(directory),
            f"its tokenizer cannot be read ({type(error).__name__}: {first})",
            "download the model again, or set model.path to another one",
        ) from error
    return tokenizer


def check_vocabulary(directory: Path) -> None:
    """Raise InputError unless `directory` holds a vocabulary, in any of the known formats."""
    if not any(any(directory.glob(pattern)) for pattern in VOCABULARY_FILES):
        raise InputError(
            str(directory),
            "no tokenizer in it (tokenizer.json, tokenizer.model, vocab.json, …)",
            "copy the tokenizer files of the original model there",
        )


def stop_token_ids(directory: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the tokens that end an answer: the tokenizer's own, then those the model names.

    The model names them as `eos_token_id`, one or a list, in generation_config.json and
    config.json. Raises InputError where one of these files is no valid JSON.
    """
    found = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    for name in ("generation_config.json", "config.json"):
        found.extend(_eos(directory / name))
    return tuple(dict.fromkeys(found))


def _eos(file: Path) -> Iterator[int]:
    if not file.exists():
        return
    try:
        value = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        mend = "download the model again"
        raise InputError(str(file), "is no JSON object", mend) from error
    yield from [value] if isinstance(value, int) else value or ()
