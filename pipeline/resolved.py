"""The resolved configuration as plain values: its digest, how two differ, what may be stored."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

_NOT_DIGESTED = frozenset({"dry_run", "outputs", "run", "sweeper"})
_HIDDEN = "***"
_SECRET_NAME = (
    r"(?:token|secret|passw(?:or)?d|passphrase|credentials?|(?:api|access|private)[_-]?key)"
)
_SECRET_KEY = re.compile(rf".*{_SECRET_NAME}", re.IGNORECASE)
_SECRET_PARTS = (
    # user and password of a URL
    (re.compile(r"([a-z][a-z0-9+.-]*://)[^/\s]+@", re.IGNORECASE), rf"\1{_HIDDEN}@"),
    # `hub.token=…` on a command line, `?token=…` in a URL, `{api_key:…}` in either
    (re.compile(rf"({_SECRET_NAME}\s*(?:=|:(?=\S)))[^&,}}]+", re.IGNORECASE), rf"\1{_HIDDEN}"),
    # the tokens of the Hugging Face hub, wherever they stand
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), _HIDDEN),
)


def digest(value: Any) -> str:
    """Return the SHA-256 of `value` as canonical JSON: keys sorted, tuples as lists."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def config_digest(config: Mapping[str, Any]) -> str:
    """Return the digest of what a run is decided by: not where it writes, nor where it came from.

    Two configurations with one digest ask for the same run.
    """
    return digest(deciding(config))


def deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration that its digest is made of."""
    return {key: config[key] for key in config if key not in _NOT_DIGESTED}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `config` with its nested keys joined by dots: `{"lora.rank": 8}`."""
    rows: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, Mapping) and value
        rows |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return rows


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return one line for each key in which two configurations ask for different runs."""
    both = [
        {k: v for k, v in flat(one).items() if k.partition(".")[0] not in _NOT_DIGESTED}
        for one in (there, here)
    ]
    lines = []
    for key in sorted(both[0].keys() | both[1].keys()):
        old, new = (json.dumps(one[key]) if key in one else "nothing" for one in both)
        if old != new:
            lines.append(f"{key}: {old} there, {new} here")
    return lines


def redact(value: Any, key: str = "") -> Any:
    """Return a copy of `value` in which secrets are `***`: by the name of their key or their form.

    Only text can be secret: `max_tokens: 64` stays.
    """
    if isinstance(value, Mapping):
        return {str(name): redact(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item, key) for item in value]
    if not isinstance(value, str):
        return value
    if value and _SECRET_KEY.fullmatch(key):
        return _HIDDEN
    for pattern, replacement in _SECRET_PARTS:
        value = pattern.sub(replacement, value)
    return value
