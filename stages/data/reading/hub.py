"""Rows of data sets on the hub, through the `datasets` library, at a commit that is given.

The library builds each data set once, as Arrow files in its cache, and maps them into memory; it
runs no code of a repository.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.data.reading.batches import CHUNK_BYTES, CHUNK_RECORDS, Record, batched
from stages.data.reading.hub_errors import reported, unreachable
from stages.data.reading.records import Chunk
from stages.data_settings import Data
from stages.errors import InputError
from stages.inputs import SPELLINGS, DataFile, data_paths, is_hub_name

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder

_TIMEOUT_SECONDS = 5.0


def hub_files(data: Data) -> tuple[list[DataFile], list[str]]:
    """Return the splits of each entry of `data.path` on the hub, and the splits passed over.

    `data.revision` holds the commit of each such entry, joined by commas. Fetches what the cache
    lacks. Raises InputError for a subset or split that is not there, and where the hub denies
    access; EnvironmentFailure where it cannot be reached.
    """
    found: list[DataFile] = []
    passed_over: list[str] = []
    for source, commit in commits(data).items():
        path = data_paths(data.path)[source]
        builder = _open(path, data.subset, commit)
        names = list(builder.info.splits or {})
        if data.split is None:
            splits = _assign(path, names)
            passed_over += [f"{path}/{name}" for name in names if name not in splits]
        else:
            _rows(builder, data.split)  # refuses a split that is not there
            splits = {data.split: "train"}
        for name, split in splits.items():
            found.append(DataFile(f"{path}/{name}", f"{path}/{name}", split, source))
    return found, passed_over


def commits(data: Data) -> dict[int, str]:
    """Return the commit of each entry of `data.path` that is on the hub, by its index."""
    sources = [n for n, path in enumerate(data_paths(data.path)) if is_hub_name(path)]
    found = (data.revision or "").split(",") if sources else []
    return dict(zip(sources, found, strict=True))


def read_hub(file: DataFile, data: Data) -> Iterator[Chunk]:
    """Yield the rows of a split that `hub_files` found, numbered from 1 within it.

    A class stands in them by its name, as the hub shows it; pictures and sounds stay undecoded.
    """
    path = data_paths(data.path)[file.source]
    builder = _open(path, data.subset, commits(data)[file.source])
    return batched(file, _records(_rows(builder, file.name.removeprefix(f"{path}/"))))


def _assign(path: str, names: list[str]) -> dict[str, str]:
    """Return which of the hub's splits are used, and as what; an only one is training data."""
    words = {word: split for split, spelt in SPELLINGS.items() for word in spelt}
    splits = {name: words[name.lower()] for name in names if name.lower() in words}
    if len(names) == 1 and not splits:
        return {names[0]: "train"}
    by_split = defaultdict(list)
    for name, split in splits.items():
        by_split[split].append(name)
    mend = "set data.split to the one to train on"
    for split, alike in by_split.items():
        if len(alike) > 1:
            found = f"{path} has {' and '.join(alike)}, expected one {split} split"
            raise InputError("data.split", found, mend)
    if "train" not in by_split:
        found = f"{path} has no train split, but {', '.join(names) or 'none at all'}"
        raise InputError("data.split", found, mend)
    return splits


def _rows(builder: DatasetBuilder, split: str) -> Dataset:
    try:
        with _quiet():
            rows: Dataset = builder.as_dataset(split=split)
    except (ValueError, AssertionError) as error:
        found = f"found {split!r}, expected one of {', '.join(builder.info.splits or {})}"
        raise InputError("data.split", found, "or a slice such as train[:10%]") from error
    return rows


def _records(rows: Dataset) -> Iterator[Record]:
    from datasets import ClassLabel

    row_bytes = max(1, rows.data.nbytes // max(1, len(rows)))
    count = min(CHUNK_RECORDS, max(1, CHUNK_BYTES // row_bytes))
    media = [name for name, feature in rows.features.items() if _is_media(feature)]
    plain = rows.remove_columns(media)
    undecoded = rows.select_columns(media).with_format("arrow")
    classes = {name: feature.names for name, feature in plain.features.items()
               if isinstance(feature, ClassLabel)}  # fmt: skip
    for start in range(0, len(rows), count):
        stop = min(start + count, len(rows))
        columns: dict[str, list[Any]] = plain[start:stop] if plain.column_names else {}
        if media:
            columns |= undecoded[start:stop].to_pydict()
        for name, names in classes.items():
            # -1 stands for a class that is not given.
            columns[name] = [None if n is None or n < 0 else names[n] for n in columns[name]]
        for offset in range(stop - start):
            value = {name: column[offset] for name, column in columns.items()}
            yield start + offset + 1, value, row_bytes


def _is_media(feature: Any) -> bool:
    from datasets import Json

    if isinstance(feature, dict):
        return any(map(_is_media, feature.values()))
    if hasattr(feature, "feature"):
        return _is_media(feature.feature)
    return hasattr(feature, "decode_example") and not isinstance(feature, Json)


@lru_cache(maxsize=8)
def _open(path: str, subset: str | None, commit: str) -> DatasetBuilder:
    """Return the built data set, without asking the hub where the cache has this very commit."""
    with _quiet():
        if (cached := _cached(path, subset, commit)) is not None:
            return cached
        with reported(path, subset, commit):
            from datasets import load_dataset_builder
            from huggingface_hub import HfApi

            # Says in seconds what is wrong, where the library would try on, or take another commit.
            HfApi().dataset_info(path, revision=commit, timeout=_TIMEOUT_SECONDS)
            builder = load_dataset_builder(path, subset, revision=commit)
            if builder.hash != commit:
                raise unreachable(path, "it took another commit from the cache")
            builder.download_and_prepare()
            return builder


def _cached(path: str, subset: str | None, commit: str) -> DatasetBuilder | None:
    from datasets import config
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache

    owner, _, name = path.rpartition("/")
    # A subset of this name is the one that the library takes where none is named.
    chosen = subset or "default"
    folder = Path(config.HF_DATASETS_CACHE) / f"{owner}___{camelcase_to_snakecase(name)}" / chosen
    for built in sorted(folder.glob(f"*/{commit}")):
        version = built.parent.name
        return Cache(
            repo_id=path, dataset_name=name, config_name=chosen, version=version, hash=commit
        )
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries from writing log lines and progress bars, and leave them as they were."""
    import datasets
    from huggingface_hub import utils

    levels = [(library.logging, library.logging.get_verbosity()) for library in (datasets, utils)]
    bars = [library for library in (datasets, utils) if not library.are_progress_bars_disabled()]
    for logger, _ in levels:
        logger.set_verbosity(logging.CRITICAL)
    for library in bars:
        library.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in levels:
            logger.set_verbosity(level)
        for library in bars:
            library.enable_progress_bars()
