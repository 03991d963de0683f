"""Which commit a branch or tag of the hub means, of a model or of a data set."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import Refused, Unable
from pipeline.spelling import closest

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 5.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MENDS = {
    "model": "connect once, or use model=tiny, or model=local model.path=<directory>",
    "data": "connect once, or set data.path=<a file or folder>",
}


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of the hub, as a configuration names it."""

    group: Literal["model", "data"]
    """Group of the configuration whose `path` and `revision` name it; says what it holds."""
    name: str
    """`owner/name`."""
    revision: str | None
    """Branch, tag or commit; None is `main`."""

    @property
    def kind(self) -> Literal["model", "dataset"]:
        """Return what the hub calls its kind."""
        return "model" if self.group == "model" else "dataset"


def find_commit(repository: Repository) -> str:
    """Return the commit that the revision means, asking the hub unless it is one already.

    Where the hub cannot be reached, the commit that its cache holds is taken and logged. Raises
    `Refused` for a repository or revision that does not exist, `Unable` without hub and cache.
    """
    if _COMMIT.fullmatch(repository.revision or ""):
        return str(repository.revision)
    from huggingface_hub import HfApi

    try:
        with reported(repository):
            info = HfApi().repo_info(
                repository.name,
                repo_type=repository.kind,
                revision=repository.revision or "main",
                timeout=TIMEOUT_SECONDS,
            )
    except Unable as error:
        commit = _cached(repository)
        if commit is None:
            raise
        log.info("%s; taking commit %s from the cache", error.found, commit[:12])
        return commit
    if info.sha is None:
        found = f"the hub names no commit for {repository.name!r}"
        raise Unable(f"{repository.group}.path", found, _MENDS[repository.group])
    return str(info.sha)


def _cached(repository: Repository) -> str | None:
    """Return what the cache of the hub holds under the revision, of none given also its newest."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    name = repo_folder_name(repo_id=repository.name, repo_type=repository.kind)
    folder = Path(constants.HF_HUB_CACHE) / name
    held: list[str] = []
    with suppress(OSError):
        newest = sorted((folder / "snapshots").iterdir(), key=lambda place: place.stat().st_mtime)
        held = [place.name for place in newest] if repository.revision is None else []
    # Only a download by the name of a branch notes its commit; ours are by the commit.
    with suppress(OSError):
        ref = folder / "refs" / (repository.revision or "main")
        held.append(ref.read_text(encoding="ascii").strip())
    return next((commit for commit in reversed(held) if _COMMIT.fullmatch(commit)), None)


@contextmanager
def reported(repository: Repository) -> Iterator[None]:
    """Translate what the hub's library raises; its own texts may hold more than a user needs."""
    from huggingface_hub import errors

    name, group = repository.name, repository.group
    path_key, log_in = f"{group}.path", "log in: hf auth login"
    # The name of a data set may as well be a misspelt path.
    here = f"no file or folder {name!r} here, and " if group == "data" else ""
    try:
        yield
    except errors.HFValidationError as error:
        what = "directory" if group == "model" else "file or folder"
        found = f"{name!r} is no {what}, and no repository of the hub is named so"
        raise Refused(path_key, found, "a repository is written owner/name") from error
    except errors.GatedRepoError as error:
        found = f"the licence of {name!r} must be accepted first"
        page = name if group == "model" else f"datasets/{name}"
        mend = f"accept it at https://huggingface.co/{page}, then {log_in}"
        raise Refused(path_key, found, mend) from error
    except errors.RepositoryNotFoundError as error:
        what = f"repository {name!r}" if group == "model" else "data set of that name"
        found = f"{here}the hub has no {what} that you may read"
        mend = f"check the spelling; if it is private, {log_in}"
        raise Refused(path_key, found, mend) from error
    except errors.RevisionNotFoundError as error:
        found = f"{name!r} has no revision {repository.revision!r}"
        raise Refused(f"{group}.revision", found, _revision_meant(repository)) from error
    except errors.OfflineModeIsEnabled as error:
        found = f"{here}cannot ask the hub for {name!r}: HF_HUB_OFFLINE is set"
        raise Unable(path_key, found, _MENDS[group]) from error
    # HTTPError is that of httpx or httpx2, by the version of the library; its Rust part, which
    # fetches large files, raises RuntimeError.
    except (errors.HTTPError, OSError, RuntimeError) as error:  # type: ignore[attr-defined]
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            found = f"the hub denies access to {name!r} ({status})"
            raise Refused(path_key, found, log_in) from error
        reason = status or type(error.__cause__ or error).__name__
        found = f"{here}cannot reach the hub for {name!r} ({reason})"
        raise Unable(path_key, found, _MENDS[group]) from error


def _revision_meant(repository: Repository) -> str:
    from huggingface_hub import HfApi, errors

    names: list[str] = []
    with suppress(errors.HTTPError, OSError):  # type: ignore[attr-defined]  # as above
        refs = HfApi().list_repo_refs(repository.name, repo_type=repository.kind)
        names = [ref.name for ref in (*refs.branches, *refs.tags)]
    key = f"{repository.group}.revision"
    meant = closest(repository.revision or "main", names)
    return f"did you mean {key}={meant}?" if meant else f"leave {key} out to take main"
