"""The recorded run that `run=R` starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Parent:
    """A finished run: where it lies, its resolved configuration, the key of each of its stages."""

    directory: Path
    config: dict[str, Any]
    keys: dict[str, str]
