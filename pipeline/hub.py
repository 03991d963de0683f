"""Where the base model comes from: embedded, a local directory, or a commit on the hub."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from pipeline.commits import TIMEOUT_SECONDS, Repository, find_commit, reported
from pipeline.errors import Refused, Unable
from pipeline.file_digests import sha256
from stages.inputs import EMBEDDED
from stages.settings import Model

_TOKENIZER_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
_FILES = (*_TOKENIZER_FILES, "model*.safetensors")
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json", "*.tiktoken")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The base model that a configuration names, down to the bytes."""

    kind: Literal["tiny", "local", "hub"]
    directory: Path | None = None
    """The directory of the embedded or a local model, else None."""
    commit: str | None = None
    """The commit of a model on the hub, else None."""
    weights: dict[str, Any] = field(default_factory=dict)
    """What identifies all of the model's files."""
    tokenizer: dict[str, Any] = field(default_factory=dict)
    """What identifies the files without the weights: tokenizer, template, configs."""


def is_made(quantization: int | None, init_seed: int | None) -> bool:
    """Tell whether a base is made in the store (quantized, drawn), or used where it lies."""
    return quantization is not None or init_seed is not None


def resolve(model: Model) -> Source:
    """Find out which model is meant, without downloading it.

    A branch or tag of the hub is asked for over the network, or looked up in its cache. Raises
    `Refused` for a directory, repository or revision that does not exist, `Unable` where the hub
    cannot be reached and the cache does not know.
    """
    if model.path == "tiny":
        return _embedded(model)
    directory = Path(model.path).expanduser()
    if directory.is_dir() or model.path.startswith(("/", ".", "~")):
        return _local(model, directory)
    commit = find_commit(_repository(model))
    identity = {"repo": model.path, "commit": commit}
    return Source(kind="hub", commit=commit, weights=identity, tokenizer=identity)


def download(model: Model, source: Source, say: Callable[[str], None]) -> Path:
    """Return the directory of the model, fetching what the hub cache lacks of that commit.

    Only configs, tokenizer files and safetensors are fetched, never pickles or code. What an
    interrupted call fetched is kept. Raises `Refused` where the hub denies access, `Unable`
    where network or disk fail.
    """
    if source.directory is not None:
        return source.directory
    assert source.commit is not None
    with reported(_repository(model)):
        return _cached(model.path, source.commit) or _fetched(model.path, source.commit, say)


def _repository(model: Model) -> Repository:
    return Repository("model", model.path, model.revision)


def _local(model: Model, directory: Path) -> Source:
    if not (directory / "config.json").is_file():
        found = f"no config.json in {model.path!r}" if directory.is_dir() else (
            f"no directory {model.path!r}")  # fmt: skip
        mend = "give a directory with config.json, *.safetensors and a tokenizer"
        raise Refused("model.path", found, mend)
    if model.revision is not None:
        found = f"found {model.revision!r}, but {model.path!r} is a directory"
        raise Refused("model.revision", found, "leave model.revision out")
    return _lying("local", model, directory)


def _embedded(model: Model) -> Source:
    if model.init_seed is None and not (EMBEDDED / "model.safetensors").is_file():
        found = "model.safetensors of the embedded model is not installed"
        raise Refused("model.path", found, "install the package again, or choose another model")
    return _lying("tiny", model, EMBEDDED)


def _lying(kind: Literal["tiny", "local"], model: Model, directory: Path) -> Source:
    # Drawn anew, the weights that may lie there decide nothing.
    patterns = _FILES if model.init_seed is None else _TOKENIZER_FILES
    files = sorted({file for pattern in patterns for file in directory.glob(pattern)})
    try:
        digests = {file.name: sha256(file) for file in files}
    except OSError as error:
        found = f"cannot read {error.filename}: {(error.strerror or str(error)).lower()}"
        raise Refused("model.path", found, "make it readable, or copy it again") from error
    texts = {name: value for name, value in digests.items() if not name.endswith(".safetensors")}
    return Source(
        kind=kind,
        directory=directory,
        weights={"files": digests},
        tokenizer={"files": texts},
    )


def _cached(name: str, commit: str) -> Path | None:
    """Return the snapshot in the hub cache if it is whole, without touching the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            name, revision=commit, allow_patterns=list(_FILES), local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    directory = Path(folder)
    # The cache says what belongs to a snapshot only where a recent version of the hub filled it.
    index = directory / "model.safetensors.index.json"
    try:
        places = json.loads(index.read_bytes())["weight_map"] if index.exists() else {}
        shards = all((directory / name).exists() for name in set(places.values()))
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    patterns = (("config.json",), ("model*.safetensors",), _VOCABULARIES)
    whole = shards and all(any(any(directory.glob(p)) for p in one_of) for one_of in patterns)
    return directory if whole else None


def _fetched(name: str, commit: str, say: Callable[[str], None]) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # it is

    # Fails in seconds without a network, where the download alone would go on trying.
    info = HfApi().model_info(name, revision=commit, files_metadata=True, timeout=TIMEOUT_SECONDS)
    files = [
        file for file in info.siblings or () if any(fnmatch(file.rfilename, p) for p in _FILES)
    ]
    needed_bytes = sum(file.size or 0 for file in files)
    say(f"downloading {name} at {commit[:12]}: {needed_bytes:,} bytes less what is there already")
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        return Path(snapshot_download(name, revision=commit, allow_patterns=list(_FILES)))
    except (OSError, RuntimeError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if not full and "No space left" not in str(error):
            raise
        cache = Path(constants.HF_HUB_CACHE)
        free_bytes = shutil.disk_usage(cache).free
        found = f"no space left in {cache}: needed {needed_bytes:,} bytes, free {free_bytes:,}"
        mend = "free some space, or set HF_HUB_CACHE=<a folder on another disk>"
        raise Unable("model.path", found, mend) from error
