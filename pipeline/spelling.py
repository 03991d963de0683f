"""Did you mean: the nearest of the words that would have been right."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def closest(word: str, choices: Iterable[str], likeness: float = 0.6) -> str | None:
    """Return the choice that `word` most likely misspells, or None below `likeness` (0 to 1)."""
    nearest = get_close_matches(word, sorted(choices), n=1, cutoff=likeness)
    return nearest[0] if nearest else None


def closest_keys(key: str, known: Iterable[str]) -> list[str]:
    """Return the dotted keys that `key` may mean, or none.

    Its last part may be right under another group, misspelt, or the initials of what is meant
    (`lr` for `learning_rate`).
    """
    known = sorted(known)
    group, _, leaf = key.rpartition(".")
    leaves: dict[str, list[str]] = {}
    for name in known:
        leaves.setdefault(name.rpartition(".")[2], []).append(name)
    if leaf in leaves:
        return leaves[leaf]
    initials = {_initials(name): name for name in leaves if "_" in name}
    if leaf in initials:
        return leaves[initials[leaf]]
    siblings = [name for name in known if name.rpartition(".")[0] == group]
    if near := closest(key, siblings) or closest(key, known):
        return [near]
    near = closest(leaf, leaves)
    return leaves[near] if near else []


def _initials(name: str) -> str:
    return "".join(part[:1] for part in name.split("_"))
