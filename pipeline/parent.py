"""The recorded run that `run=R` starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Parent:
    """A finished run: where it lies, its resolved configuration, and what it was made of."""

    directory: Path
    config: dict[str, Any]
    keys: dict[str, str]
    """The key of each of its stages."""
    model_key: str | None
    """The key of its base model."""
    model_commit: str | None
    """The commit of a base from the hub."""
    data_commits: dict[str, str]
    """The commit of each data set from the hub, by its name."""
