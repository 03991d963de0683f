"""What the libraries of the hub raise over a data set, as one line with the key to mend."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from stages.errors import EnvironmentFailure, InputError, StageError

_SHOWN_SUBSETS = 20


@contextmanager
def reported(path: str, subset: str | None, commit: str) -> Iterator[None]:
    """Translate what the libraries raise in the block; `path` is `owner/name`."""
    try:
        yield
    except StageError:
        raise
    except Exception as error:
        raise _translated(error, path, subset, commit) from error


def unreachable(path: str, reason: str) -> EnvironmentFailure:
    """Return the error of a hub that does not answer."""
    mend = "connect once, or set data.path=<a file or folder>"
    return EnvironmentFailure("data.path", f"cannot reach the hub for {path!r} ({reason})", mend)


def _translated(error: Exception, path: str, subset: str | None, commit: str) -> StageError:
    from huggingface_hub import errors

    causes = list(_causes(error))
    text, said = str(error), str(causes[-1]).partition("\n")[0]
    if "is a gated dataset" in text or isinstance(error, errors.GatedRepoError):
        mend = f"accept it at https://huggingface.co/datasets/{path}, then log in: hf auth login"
        return InputError("data.path", f"the licence of {path!r} must be accepted first", mend)
    if isinstance(error, errors.RevisionNotFoundError):
        found = f"{path!r} has no commit {commit[:12]}"
        return InputError("data.revision", found, "leave data.revision out to take main")
    statuses = {getattr(getattr(e, "response", None), "status_code", None) for e in causes}
    if isinstance(error, errors.RepositoryNotFoundError) or statuses & {401, 403}:
        found = f"the hub has no data set {path!r} that you may read"
        return InputError("data.path", found, "if it is private, log in: hf auth login")
    if "scripts are no longer supported" in text:
        found = f"{path!r} is read by code of its own, which is never run"
        return InputError("data.path", found, "choose one that holds its rows in files")
    if names := _subsets(text):
        return _wrong_subset(path, subset, names)
    if "disk space" in text or any(map(_is_full, causes)):
        mend = "free some space, or set HF_HOME=<a folder on another disk>"
        return EnvironmentFailure("data.path", f"no space left to fetch {path!r}", mend)
    reach = (ConnectionError, TimeoutError, errors.HTTPError, errors.LocalEntryNotFoundError)  # type: ignore[attr-defined]  # it is
    if any(isinstance(e, reach) for e in causes):
        status = next(filter(None, statuses), None)
        offline = isinstance(error, errors.OfflineModeIsEnabled)
        reason = "HF_HUB_OFFLINE is set" if offline else status or type(causes[-1]).__name__
        return unreachable(path, str(reason))
    said = next((line for line in text.splitlines() if "same columns" in line), said)
    found = f"cannot be read ({said or type(error).__name__})"
    return InputError(path, found, "choose another subset, or download and mend its files")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_full(error: BaseException) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def _subsets(text: str) -> list[str]:
    """Return the subsets that the library names when another is asked for."""
    listed = re.search(r"(?:Available|available configs): \[(.*?)\]", text)
    return re.findall(r"'([^']+)'", listed[1]) if listed else []


def _wrong_subset(path: str, subset: str | None, names: list[str]) -> InputError:
    more = len(names) - _SHOWN_SUBSETS
    shown = ", ".join(names[:_SHOWN_SUBSETS]) + (f" and {more} more" if more > 0 else "")
    if subset is None:
        found, mend = f"{path} has several: {shown}", f"set data.subset={names[0]}"
    else:
        found, mend = f"found {subset!r}, but {path} has {shown}", "set data.subset to one of them"
    return InputError("data.subset", found, mend)
