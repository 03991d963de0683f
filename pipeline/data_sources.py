"""What the group `data` names outside itself: data sets of the hub, a converter, a template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pipeline.commits import Repository, find_commit
from pipeline.parent import Parent
from stages.data_settings import Data
from stages.errors import InputError
from stages.inputs import data_paths, find_files, is_hub_name

SHOWN_FILES = 8
_ON_LINES = (".jsonl", ".ndjson", ".csv", ".tsv")
_COUNTED_BYTES = 1 << 30
"""Lines of a larger file would take too long to count."""


def hub_names(data: Data) -> tuple[str, ...]:
    """Return the entries of `data.path` that name a data set of the hub, in their order."""
    return tuple(path for path in data_paths(data.path) if is_hub_name(path))


def find_commits(data: Data, parent: Parent | None) -> dict[str, str]:
    """Return the commit of each data set of the hub: the one that the parent run used, if it did.

    Raises `Refused` and `Unable` as `find_commit`.
    """
    same = parent is not None and parent.config["data"]["revision"] == data.revision
    used = parent.data_commits if parent and same else {}
    return {
        name: used.get(name) or find_commit(Repository("data", name, data.revision))
        for name in dict.fromkeys(hub_names(data))
    }


def pinned(data: Data, commits: Mapping[str, str]) -> Data:
    """Return what the stage is given: as `revision` the commits of all hub entries, with commas."""
    names = hub_names(data)
    return replace(data, revision=",".join(commits[name] for name in names)) if names else data


def given_files(data: Data) -> dict[str, Path]:
    """Return the files that single keys of `data` name, by their key."""
    convert = data.convert.rpartition(":")[0] if data.convert else None
    given = {"data.convert": convert, "data.chat_template": data.chat_template}
    return {key: Path(name).expanduser() for key, name in given.items() if name}


def describe(data: Data, commits: Mapping[str, str]) -> list[str]:
    """Return a line for each source of rows, before they are read: lines, bytes or the commit."""
    try:
        files, passed_over = find_files(data.path)
    except InputError:  # gone, as a run= allows that does not read them
        return []
    paths = data_paths(data.path)
    lines = ["the bundled conversations, not counted yet"] if "samples" in paths else []
    lines += [f"{name} at {commit[:12]}, not read yet" for name, commit in commits.items()]
    own = [file for file in files if paths[file.source] != "samples"]
    places = [Path(file.path).expanduser() for file in own]
    lines += [
        f"{file.path} ({file.split}): {_extent(place)}, not tokenised yet"
        for file, place in zip(own[:SHOWN_FILES], places, strict=False)
    ]
    if more := [place.stat().st_size for place in places[SHOWN_FILES:]]:
        lines.append(f"… and {_files(len(more))}, {_size(sum(more))}")
    if passed_over:
        rest = len(passed_over) - SHOWN_FILES
        names = ", ".join(passed_over[:SHOWN_FILES])
        lines.append(f"passed over: {names}" + (f" and {_files(rest)}" if rest > 0 else ""))
    return lines


def _files(count: int) -> str:
    return f"{count} more file{'s' if count > 1 else ''}"


def _extent(place: Path) -> str:
    size = place.stat().st_size
    if place.suffix.lower() not in _ON_LINES or size > _COUNTED_BYTES:
        return _size(size)
    with place.open("rb") as stream:
        count = sum(1 for line in stream if line.strip())
    return f"{count:,} line{'' if count == 1 else 's'}"


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size / 1e3:,.1f} kB"
