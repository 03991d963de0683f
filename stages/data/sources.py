"""Where rows come from: the bundled samples, one JSONL file, or a folder with one per split."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path

from stages.data import samples
from stages.data.formats import Format, Row, parse
from stages.errors import InputError

SPLITS = ("train", "valid", "test")
SPELLINGS: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("valid", "validation", "val", "dev", "eval"),
    "test": ("test",),
}
"""File names, without `.jsonl`, under which a split is looked for in a folder."""


def read_source(path: str, wanted: Format) -> dict[str, list[Row]]:
    """Return the rows of each split that `path` holds; `train` is always among them.

    `path` is `samples`, a file, or a folder, relative to the working directory. Raises InputError
    where it is missing or holds no rows, and at the first line that is not a row of this format.
    """
    if path == "samples":
        return {split: _samples(split, wanted) for split in SPLITS}
    place = Path(path).expanduser()
    if place.is_dir():
        return {split: _read_file(file, wanted) for split, file in _files(place).items()}
    if not place.is_file():
        mend = "set data.path to a JSONL file, a folder, or samples"
        raise InputError("data.path", f"no file or folder '{path}'", mend)
    return {"train": _read_file(place, wanted)}


def _samples(split: str, wanted: Format) -> list[Row]:
    names = (f"samples/{split}:{number}" for number in range(1, 1_000_000))
    rows = zip(samples.rows(split), names, strict=False)
    return [parse(value, wanted, name, name) for value, name in rows]


def _files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for split, spellings in SPELLINGS.items():
        names = [f"{spelling}.jsonl" for spelling in spellings]
        there = [folder / name for name in names if (folder / name).is_file()]
        if len(there) > 1:
            both = " and ".join(file.name for file in there)
            raise InputError(str(folder), f"found {both}, expected one {split} split", "remove one")
        if there:
            found[split] = there[0]
    if "train" not in found:
        every = [f"{name}.jsonl" for names in SPELLINGS.values() for name in names]
        others = sorted(entry.name for entry in folder.iterdir())[:5]
        raise InputError(
            str(folder),
            f"no train.jsonl in it (found {', '.join(others) or 'nothing'}; "
            f"looked for {', '.join(every)})",
            "rename the training file, or set data.path to it",
        )
    return found


def _read_file(path: Path, wanted: Format) -> list[Row]:
    rows = [
        parse(_decode(line, where), wanted, source, where)
        for line, source, where in _lines(path)
    ]  # fmt: skip
    if not rows:
        raise InputError(str(path), "found no rows, expected one JSON object on each line")
    return rows


def _lines(path: Path) -> Iterator[tuple[bytes, str, str]]:
    """Yield each line that is not blank; only a newline ends one, as JSON text may hold U+2028."""
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if content.strip():
                    yield content.rstrip(b"\r\n"), f"{path.name}:{number}", f"{path}:{number}"
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})") from error


def _decode(line: bytes, where: str) -> object:
    try:
        value: object = json.loads(line.decode())
    except UnicodeDecodeError as error:
        found = f"byte {error.start + 1} of the line is not UTF-8"
        raise InputError(where, found, "save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        found = f"invalid JSON at character {error.pos + 1} ({error.msg})"
        raise InputError(where, found, "put one whole JSON object on each line") from error
    except (ValueError, RecursionError) as error:
        raise InputError(where, f"JSON beyond reason ({error})", "remove the row") from error
    return value
