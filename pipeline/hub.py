"""Where the base model comes from: embedded, a local directory, or a commit on the hub."""

from __future__ import annotations

import errno
import json
import logging
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import Refused, Unable
from pipeline.file_digests import sha256
from pipeline.spelling import closest
from stages.settings import Model

log = logging.getLogger(__name__)

_TOKENIZER_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
_FILES = (*_TOKENIZER_FILES, "model*.safetensors")
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json", "*.tiktoken")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_SECONDS = 5.0
_ONCE = "connect once, or use model=tiny, or model=local model.path=<directory>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The base model that a configuration names, down to the bytes."""

    kind: Literal["tiny", "local", "hub"]
    directory: Path | None = None
    """The directory of a local model, else None."""
    commit: str | None = None
    """The commit of a model on the hub, else None."""
    weights: dict[str, Any] = field(default_factory=dict)
    """What identifies all of the model's files."""
    tokenizer: dict[str, Any] = field(default_factory=dict)
    """What identifies the files without the weights: tokenizer, template, configs."""


def is_made(kind: str, quantization: int | None) -> bool:
    """Tell whether a base is made in the store (built, quantized), or used where it lies."""
    return kind == "tiny" or quantization is not None


def resolve(model: Model) -> Source:
    """Find out which model is meant, without downloading it.

    A branch or tag of the hub is asked for over the network; without one, what the hub cache
    holds under that name is taken. Raises `Refused` for a directory, repository or revision that
    does not exist, `Unable` where the hub cannot be reached and the cache does not know.
    """
    if model.path == "tiny":
        return Source(kind="tiny", weights={"tiny": True}, tokenizer={"tiny": True})
    directory = Path(model.path).expanduser()
    if directory.is_dir() or model.path.startswith(("/", ".", "~")):
        return _local(model, directory)
    commit = _commit(model)
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
    if source.commit is None:
        raise ValueError("the embedded model is built, not downloaded")
    with _reported(model):
        return _cached(model.path, source.commit) or _fetched(model.path, source.commit, say)


def _local(model: Model, directory: Path) -> Source:
    if not (directory / "config.json").is_file():
        found = f"no config.json in {model.path!r}" if directory.is_dir() else (
            f"no directory {model.path!r}")  # fmt: skip
        mend = "give a directory with config.json, *.safetensors and a tokenizer"
        raise Refused("model.path", found, mend)
    if model.revision is not None:
        found = f"found {model.revision!r}, but {model.path!r} is a directory"
        raise Refused("model.revision", found, "leave model.revision out")
    files = sorted({file for pattern in _FILES for file in directory.glob(pattern)})
    try:
        digests = {file.name: sha256(file) for file in files}
    except OSError as error:
        found = f"cannot read {error.filename}: {(error.strerror or str(error)).lower()}"
        raise Refused("model.path", found, "make it readable, or copy it again") from error
    texts = {name: value for name, value in digests.items() if not name.endswith(".safetensors")}
    return Source(
        kind="local",
        directory=directory,
        weights={"files": digests},
        tokenizer={"files": texts},
    )


def _commit(model: Model) -> str:
    revision = model.revision or "main"
    if _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        with _reported(model):
            info = HfApi().model_info(model.path, revision=revision, timeout=_TIMEOUT_SECONDS)
    except Unable as error:
        config = try_to_load_from_cache(model.path, "config.json", revision=revision)
        if not isinstance(config, str):
            raise
        commit = Path(config).parent.name
        log.info("%s; taking commit %s from the cache", error.found, commit[:12])
        return commit
    if info.sha is None:
        raise Unable("model.path", f"the hub names no commit for {model.path!r}", _ONCE)
    return info.sha


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
    info = HfApi().model_info(name, revision=commit, files_metadata=True, timeout=_TIMEOUT_SECONDS)
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


@contextmanager
def _reported(model: Model) -> Iterator[None]:
    """Translate what the hub's library raises; its own texts may hold more than a user needs."""
    from huggingface_hub import errors

    name = model.path
    log_in = "log in: hf auth login"
    try:
        yield
    except errors.HFValidationError as error:
        found = f"{name!r} is no directory, and no repository of the hub is named so"
        raise Refused("model.path", found, "a repository is written owner/name") from error
    except errors.GatedRepoError as error:
        found = f"the licence of {name!r} must be accepted first"
        mend = f"accept it at https://huggingface.co/{name}, then {log_in}"
        raise Refused("model.path", found, mend) from error
    except errors.RepositoryNotFoundError as error:
        found = f"the hub has no repository {name!r} that you may read"
        mend = f"check the spelling; if it is private, {log_in}"
        raise Refused("model.path", found, mend) from error
    except errors.RevisionNotFoundError as error:
        found = f"{name!r} has no revision {model.revision!r}"
        raise Refused("model.revision", found, _revision_meant(model)) from error
    except errors.OfflineModeIsEnabled as error:
        found = f"cannot ask the hub for {name!r}: HF_HUB_OFFLINE is set"
        raise Unable("model.path", found, _ONCE) from error
    # HTTPError is that of httpx or httpx2, by the version of the library; its Rust part, which
    # fetches large files, raises RuntimeError.
    except (errors.HTTPError, OSError, RuntimeError) as error:  # type: ignore[attr-defined]
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            found = f"the hub denies access to {name!r} ({status})"
            raise Refused("model.path", found, log_in) from error
        reason = status or type(error.__cause__ or error).__name__
        raise Unable(
            "model.path", f"cannot reach the hub for {name!r} ({reason})", _ONCE
        ) from error


def _revision_meant(model: Model) -> str:
    from huggingface_hub import HfApi, errors

    names: list[str] = []
    with suppress(errors.HTTPError, OSError):  # type: ignore[attr-defined]  # as above
        refs = HfApi().list_repo_refs(model.path)
        names = [ref.name for ref in (*refs.branches, *refs.tags)]
    meant = closest(model.revision or "main", names)
    if meant is None:
        return "leave model.revision out to take main"
    return f"did you mean model.revision={meant}?"
