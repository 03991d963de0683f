"""Which files the key `data.path` names, and which split each of them holds; the shipped model.

Light, so that the orchestrator can fingerprint what the stage will read.
"""

from __future__ import annotations

import glob
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.errors import InputError

EMBEDDED = Path(__file__).parent / "models" / "embedded"
"""Where the model lies that comes with the package: `model.path=tiny`."""
SPLITS = ("train", "valid", "test")
SPELLINGS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "validate", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
"""Words in names of files and folders that say which split they hold, in any case."""
SUFFIXES = (
    ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md", ".markdown",
)  # fmt: skip
"""Endings of files that can be read; all but .parquet also with .gz behind them."""

_SPLITS = {word: split for split, words in SPELLINGS.items() for word in words}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_WORD = re.compile(r"[^-_.\d/]+")
_ABOUT = re.compile(
    r"(readme|licen[cs]e|changelog|contributing|authors|notice|copying|citation)(?![a-z])", re.I
)
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of rows, or one split of a data set on the hub."""

    path: str
    """As messages name it: the path as the person wrote it."""
    name: str
    """The same wherever the folder lies: relative to it, `train.jsonl`, `poems/winter.txt`."""
    split: str
    """train, valid or test."""
    source: int
    """Index in the list `data.path`."""


def data_paths(path: str | Sequence[str]) -> tuple[str, ...]:
    """Return the entries of `data.path`, which may be one or a list."""
    return (path,) if isinstance(path, str) else tuple(path)


def is_hub_name(path: str) -> bool:
    """Tell a data set of the hub, `owner/name`, from a file: nothing on disk is called so."""
    named = _HUB_NAME.fullmatch(path) is not None and not kind(path)
    return named and not Path(path).exists()


def kind(name: str) -> str:
    """Return the ending of `SUFFIXES` that a name has, without .gz; empty for any other file."""
    plain = name.lower().removesuffix(".gz")
    suffix = Path(plain).suffix
    gzipped_parquet = suffix == ".parquet" and plain != name.lower()
    return suffix if suffix in SUFFIXES and not gzipped_parquet else ""


def find_files(path: str | Sequence[str]) -> tuple[list[DataFile], list[str]]:
    """Return the files of rows, in the order of the entries and of their names, and the rest.

    A file given alone is training data, whatever its name. In a folder, and among the matches of a
    pattern, names say the split: `dev.csv.gz`, `train-00000-of-00003.parquet`, `test/a.txt`, and
    `wiki.train.txt` beside `wiki.test.txt`; where none does, all is training data. The rest are
    files passed over. An entry on the hub gives none. Raises InputError where nothing can be read.
    """
    found: list[DataFile] = []
    passed_over: list[str] = []
    for source, entry in enumerate(data_paths(path)):
        if entry == "samples":
            names = [f"samples/{split}" for split in SPLITS]
            pairs = zip(names, SPLITS, strict=True)
            found += [DataFile(name, name, split, source) for name, split in pairs]
        elif not is_hub_name(entry):
            root, names = _look(entry)
            splits = _assign(entry, names) if root else {names[0]: "train"}
            for name in names:
                written = str(root / name) if root else entry
                if name in splits:
                    found.append(DataFile(written, name, splits[name], source))
                else:
                    passed_over.append(written)
    return found, passed_over


def _look(entry: str) -> tuple[Path | None, list[str]]:
    """Return the folder and the names in it, sorted; no folder for a file that is given alone."""
    place = Path(entry).expanduser()
    try:
        if place.is_dir():
            return Path(entry), sorted(_walk(place, "", frozenset({place.resolve()})))
        if place.is_file():
            return None, [_usable(entry)]
        if place.exists():
            found = "found a pipe or a device, expected a file or a folder"
            raise InputError(entry, found, "save the rows to a file first")
        if glob.has_magic(entry):
            return _matches(entry)
    except OSError as error:
        found = f"{error.filename or entry} cannot be read ({error.strerror})"
        raise InputError("data.path", found, "make it readable") from error
    mend = "give a file, a folder, a pattern, owner/name of the hub, or samples"
    raise InputError("data.path", f"no file or folder '{entry}'", mend)


def _walk(folder: Path, prefix: str, above: frozenset[Path]) -> Iterator[str]:
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            # A pipe would wait for a writer for ever; a broken link is an error when it is read.
            if entry.is_file() or not entry.exists():
                yield prefix + entry.name
        elif (real := entry.resolve()) not in above and not _is_outputs(entry):
            yield from _walk(entry, f"{prefix}{entry.name}/", above | {real})


def _is_outputs(folder: Path) -> bool:
    """Tell what earlier runs wrote: prepared rows must not come back as data."""
    return (folder / "store").is_dir() and (folder / "runs").is_dir()


def _matches(pattern: str) -> tuple[Path, list[str]]:
    parts = Path(pattern).parts
    fixed = next(n for n, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:fixed])
    place = root.expanduser()
    rest = str(Path(*parts[fixed:]))
    # Path.glob takes hidden files too, and `**` is another thing in it before Python 3.13.
    names = glob.glob(rest, root_dir=place, recursive=True)  # noqa: PTH207
    files = sorted({name for name in names if (place / name).is_file()})
    if not files:
        there = sorted(inside.name for inside in place.iterdir()) if place.is_dir() else []
        found = f"the pattern matches no file (in {str(root)!r}: {_some(there)})"
        raise InputError(pattern, found, "set data.path to where the rows are")
    above = {name: [place / folder for folder in Path(name).parents[:-1]] for name in files}
    return root, [name for name in files if not any(map(_is_outputs, above[name]))]


def _usable(entry: str) -> str:
    name = Path(entry).name
    if not kind(name):
        ending = "".join(Path(name).suffixes[-2:])
        found = f"found the ending '{ending}', expected {_endings()}"
        raise InputError(entry, found, "save the rows as one of these")
    return name


def _endings() -> str:
    return f"{', '.join(SUFFIXES)}, or all but .parquet with .gz"


def _assign(entry: str, names: list[str]) -> dict[str, str]:
    """Return the split of each name that holds rows."""
    usable = [name for name in names if kind(name) and not _ABOUT.match(name.rpartition("/")[2])]
    if not usable:
        found = f"no file of rows (found {_some(names)}; looked for {_endings()})"
        raise InputError(entry, found, "set data.path to where the rows are")
    words = _split_words(usable)
    if not words:
        return dict.fromkeys(usable, "train")
    splits: dict[str, str] = {}
    spelt: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for name, found_words in words.items():
        said = {_SPLITS[word] for _, word in found_words}
        if len(said) > 1:
            both = " and ".join(split for split in SPLITS if split in said)
            found = f"its name says {both}, expected one split"
            raise InputError(f"{entry}: {name}", found, "rename the file or its folder")
        splits[name] = said.pop()
        for folder, word in found_words:
            spelt[folder, splits[name]].setdefault(word, name)
    for (_, split), spellings in spelt.items():
        if len(spellings) > 1:
            both = " and ".join(spellings.values())
            raise InputError(entry, f"found {both}, expected one {split} split", "remove one")
    if "train" not in splits.values():
        looked = " or ".join(SPELLINGS["train"])
        found = f"no training file in it (found {_some(usable)}; looked for a name with {looked})"
        raise InputError(entry, found, "rename the training file, or set data.path to it")
    return splits


def _split_words(names: list[str]) -> dict[str, set[tuple[str, str]]]:
    """Return the words in each name that say its split, each with the folder it stands in.

    A word counts where it begins the name of a file or folder, or where another file is called the
    same but for a word of another split: `gsm8k_train.jsonl` has its `gsm8k_test.jsonl`.
    """
    begins: dict[str, set[tuple[str, str]]] = defaultdict(set)
    others: dict[tuple[str, str], list[tuple[str, str, str]]] = defaultdict(list)
    for name in names:
        for match in _WORD.finditer(name):
            word, start = match[0].lower(), match.start()
            if word not in _SPLITS:
                continue
            folder = name[: name.rfind("/", 0, start) + 1]
            if start == len(folder):
                begins[name].add((folder, word))
            others[name[:start], name[match.end() :]].append((name, folder, word))
    for alike in others.values():
        if len({_SPLITS[word] for _, _, word in alike}) > 1:
            for name, folder, word in alike:
                begins[name].add((folder, word))
    return begins


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return (", ".join(shown[:_SHOWN]) or "nothing") + more
