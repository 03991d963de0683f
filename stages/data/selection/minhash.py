"""Sketches of texts: the hashes of their word groups, and a MinHash signature (Broder, 1997).

Words are compared in lower case and without punctuation; a character of a script written without
spaces is a word. Of `SHORT` words and more, five in a row count as one; of fewer, each word alone.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

SHORT = 50
"""Words from which on fives are compared: there, one replaced word still leaves an index of 0.8."""
SIGNATURE = 128

_GROUP = 5  # one for each of _FACTORS
_SEED = 0  # of the signature
_CHARACTERS = 4096  # of a longer text these first ones count
_BITS, _SHIFT = np.uint64(47), np.uint64(17)  # of a hash
_MASK = (np.uint64(1) << _BITS) - np.uint64(1)
_KEPT = 256  # hashes kept of each text, the smallest: of longer texts the index is estimated
_BATCH = 100_000  # words hashed at once
_VOCABULARY = 1_000_000  # words remembered, to bound memory
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"  # Thai, kana, Chinese characters
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")
# Odd and without pattern, so that the order of the words counts.
_FACTORS = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB,
                     0xD6E8FEB86659FD93, 0xA0761D6478BD642F], np.uint64)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sketches:
    """The texts of each split, each once, however often it occurs; arrays are (texts,) or else."""

    rows: NDArray[np.int64]
    """The row in which the text occurs first."""
    split: NDArray[np.int8]
    copies: NDArray[np.int64]
    digests: Hashes
    """Of the text stripped and lower-cased."""
    signatures: NDArray[np.uint32]
    """(texts, `SIGNATURE`)."""
    hashes: Hashes
    """The kept hashes of every text, rising in each, end to end."""
    offsets: NDArray[np.int64]
    """Where those of each text start and, last, their number: (texts + 1,)."""
    limits: Hashes
    """Up to which value the hashes of a text are kept."""
    read: int
    """Texts read, those without words and those repeated included."""

    def jaccard(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the Jaccard index of each pair of texts.

        It is exact for texts of up to `_KEPT` hashes and else estimated by their smallest; at most
        2 ** 17 pairs.
        """
        texts = np.stack([one, other], 1).ravel()
        counts = np.diff(self.offsets)[texts]
        pair = np.repeat(np.arange(len(texts)) // 2, counts)
        ends = np.cumsum(counts)
        at = np.arange(counts.sum()) + np.repeat(self.offsets[texts] - ends + counts, counts)
        hashes = self.hashes[at]
        comparable = hashes <= np.minimum(self.limits[one], self.limits[other])[pair]
        pair, hashes = pair[comparable], hashes[comparable]
        joined = _joined(pair, hashes)
        twice = joined[1:][joined[1:] == joined[:-1]]
        both = np.bincount(_numbers(twice), minlength=len(one))
        return both / (np.bincount(pair, minlength=len(one)) - both)


def sketch(texts: Iterable[tuple[int, int, str]]) -> Sketches:
    """Read texts given as (row, split, text) in bounded memory; one without words has no sketch."""
    named: dict[tuple[int, int], int] = {}
    rows, splits, copies, digests = array("q"), array("b"), array("q"), array("Q")
    hashes = array("Q")
    parts, vocabulary, words = [_groups([], hashes)], _Vocabulary(), list[list[int]]()
    read = held = 0
    for row, split, text in texts:
        read += 1
        plain = text.strip().lower()
        digest = _hash(plain)
        if (known := named.get((split, digest))) is not None:
            copies[known] += 1
        elif found := [vocabulary[word] for word in _WORD.findall(plain[:_CHARACTERS])]:
            named[split, digest] = len(named)
            rows.append(row)
            splits.append(split)
            copies.append(1)
            digests.append(digest)
            words.append(found)
            held += len(found)
            if held >= _BATCH:
                parts.append(_groups(words, hashes))
                words, held = [], 0
    signatures, counts, limits = zip(*parts, _groups(words, hashes), strict=True)
    return Sketches(
        rows=np.array(rows, np.int64),
        split=np.array(splits, np.int8),
        copies=np.array(copies, np.int64),
        digests=np.array(digests, np.uint64),
        signatures=np.concatenate(signatures),
        hashes=np.frombuffer(hashes, np.uint64),
        offsets=np.concatenate([[0], np.cumsum(np.concatenate(counts))]),
        limits=np.concatenate(limits),
        read=read,
    )


def _groups(
    words: Sequence[Sequence[int]], into: array[int]
) -> tuple[NDArray[np.uint32], NDArray[np.int64], Hashes]:
    """Put the kept hashes `into` an array; return signatures, their numbers, and their limits."""
    counts = np.array([len(text) for text in words], np.int64)
    text = np.repeat(np.arange(len(words)), counts)
    hashes = np.array(list(chain.from_iterable(words)), np.uint64)
    long = (counts >= SHORT)[text]
    starts = np.arange(len(text)) + _GROUP <= np.cumsum(counts)[text]
    at = np.flatnonzero(long & starts)
    hashes[at] = sum(hashes[at + n] * factor for n, factor in enumerate(_FACTORS))
    text, hashes = text[starts | ~long], hashes[starts | ~long] >> _SHIFT
    joined = _joined(text, hashes)
    first = np.ones(len(joined), bool)
    first[1:] = joined[1:] != joined[:-1]
    text, hashes = _numbers(joined[first]), joined[first] & _MASK
    counts = np.bincount(text, minlength=len(words))
    ends = np.cumsum(counts)
    kept = np.arange(len(text)) - (ends - counts)[text] < _KEPT
    limits = np.full(len(words), _MASK)
    cut = np.flatnonzero(counts > _KEPT)
    limits[cut] = hashes[(ends - counts)[cut] + _KEPT - 1]
    into.frombytes(hashes[kept].tobytes())
    return _signatures(hashes, ends), np.minimum(counts, _KEPT), limits


def _joined(numbers: NDArray[np.int64], hashes: Hashes) -> Hashes:
    """Sort hashes by a number below 2 ** 17 and then by themselves: both are in one word."""
    return np.sort(numbers.astype(np.uint64) << _BITS | hashes)


def _numbers(joined: Hashes) -> NDArray[np.int64]:
    return (joined >> _BITS).astype(np.int64)


def _signatures(hashes: Hashes, ends: NDArray[np.int64]) -> NDArray[np.uint32]:
    from rensa import RMinHash

    offsets = np.concatenate([[0], ends]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, SIGNATURE, _SEED)
    return np.array(matrix.to_rows(), np.uint32).reshape(-1, SIGNATURE)


class _Vocabulary(dict[str, int]):
    """The hash of every word, found once."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _VOCABULARY:
            self.clear()
        self[word] = _hash(word)
        return self[word]


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
