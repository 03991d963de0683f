"""E-mail addresses and likely secrets in rows: always counted, replaced if asked.

A secret is known by the form that its issuer gave it, as the rules of gitleaks 8 (config/
gitleaks.toml of https://github.com/gitleaks/gitleaks) and detect-secrets 1.5 (https://github.com/
Yelp/detect-secrets) state it. These are made to flag a line: of a private key, detect-secrets
matches the header alone, which replaced would leave the key. What has no form of its own, such as
a password in a sentence, is not found.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

from stages.data.formats.parser import Row

EMAIL = "email"
"""The kind of e-mail addresses; all others are secrets."""
BASIC_AUTH = "basic_auth"
"""Names with passwords in URLs."""

_BASE64 = "[0-9A-Za-z+/]"
# Digits, and the letters of scripts written with spaces: Latin, Greek, Cyrillic.
_LETTER = "0-9A-Za-z\u00c0-\u024f\u0370-\u052f"
_KEY = "(?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"

# Kind, texts of which one occurs in every match (looked for first, being quick), and the form.
_TOKENS: tuple[tuple[str, str, str], ...] = (
    ("anthropic", "sk-ant-", r"sk-ant-[a-z]+\d\d-[\w-]{80,120}"),
    ("atlassian", "ATATT3", r"ATATT3[\w=-]{186}"),
    ("aws", "AKIA ASIA ABIA ACCA A3T", "(?:AKIA|ASIA|ABIA|ACCA|A3T[0-9A-Z])[0-9A-Z]{16}"),
    ("azure", "Q~", r"[\w~.]{3}\dQ~[\w~.-]{31,34}"),
    ("databricks", "dapi", r"dapi[0-9a-f]{32}(?:-\d)?"),
    ("github", "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_",
     r"gh[pousr]_[0-9A-Za-z]{36,255}|github_pat_\w{82}"),
    ("gitlab", "glpat- gldt- glft- glsoat- glrt- glptt- glagent- gloas- glcbt- glimt-",
     r"gl(?:pat|dt|ft|soat|rt|ptt|agent|oas|cbt|imt)-[\w-]{20,1024}"),
    ("google", "AIza", r"AIza[\w-]{35}"),
    ("hugging_face", "hf_", "hf_[0-9A-Za-z]{34}"),
    ("json_web_token", "eyJ", r"eyJ[\w-]{12,}\.eyJ[\w-]{12,}\.[\w-]{10,}"),
    ("mailchimp", "-us", r"[0-9a-f]{32}-us\d{1,2}"),
    ("npm", "npm_", "npm_[0-9A-Za-z]{36}"),
    ("openai", "T3BlbkFJ", r"sk-[\w-]{20,200}?T3BlbkFJ[\w-]{20,200}"),
    ("api_key", "sk-", r"sk-[A-Za-z0-9][\w-]{31,200}"),
    ("pypi", "pypi-AgE", r"pypi-AgE(?:IcHlwaS5vcmc|NdGVzdC5weXBpLm9yZw)[\w-]{50,1000}"),
    ("sendgrid", "SG.", r"SG\.[\w-]{22}\.[\w-]{43}"),
    ("shopify", "shpat_ shpca_ shppa_ shpss_", "shp(?:at|ca|pa|ss)_[0-9A-Fa-f]{32}"),
    ("slack", "xox xapp- hooks.slack.com",
     r"xox[abeoprs](?:\.xox[bp])?-(?:\d{1,14}-)+[\w-]{13,200}|xapp-\d-[0-9A-Z]{8,}-\d{8,}-[0-9a-z]+"
     r"|hooks\.slack\.com/(?:services|workflows|triggers)/[\w+/]{43,80}"),
    ("square", "sq0", r"sq0(?:atp|csp)-[\w-]{22,60}"),
    ("stripe", "k_live_ k_test_ k_prod_", "[sr]k_(?:live|test|prod)_[0-9A-Za-z]{12,99}"),
    ("telegram", ":A", r"\d{8,10}:A[\w-]{34}"),
    ("twilio", "SK", "SK[0-9a-f]{32}"),
    ("vault", "hvs.", r"hvs\.[\w-]{90,120}"),
)  # fmt: skip

_OTHERS: tuple[tuple[str, str, str], ...] = (
    ("private_key", "-----BEGIN PuTTY-",
     rf"-----BEGIN {_KEY}(?=[^<>]{{0,200}}?{_BASE64}{{20}})"
     rf"(?:(?:[^<>-]|-(?!----)){{32,20000}}+-----END {_KEY}"
     rf"|(?:(?:\s|\\[nr])*{_BASE64}{{16,}}+=*)+(?:(?:\s|\\[nr]){{1,4}}{_BASE64}{{1,15}}=+)?)"
     r"|PuTTY-User-Key-File-\d:[^<>]{32,8000}?Private-MAC: ?[0-9a-f]{40,64}"),
    ("aws_secret_key", "ecret_access_key SECRET_ACCESS_KEY ecretAccessKey",
     rf"(?P<kept>(?i:secret_?access_?key)[\"'\s]{{0,3}}[=:][\"'\s]{{0,3}})"
     rf"{_BASE64}{{40}}(?![0-9A-Za-z+/=])"),
    # Its first part is a number in Base64, which begins with one of few pairs; as most texts have a
    # hint, the search goes by the first letter.
    ("discord", "M N O",
     r"[MNO](?<![0-9A-Za-z].)[DTjz][\w-]{22,26}\.[\w-]{6}\.[\w-]{27,38}(?![0-9A-Za-z])"),
    ("azure_storage_key", "AccountKey=", rf"(?<=AccountKey=){_BASE64}{{86}}=="),
)  # fmt: skip

_ADDRESSES: dict[str, str] = {
    # No placeholder such as {user}:{password}, $USER:$PASSWORD, %s:%s or user:***.
    BASIC_AUTH: (
        r"(?<=://)[^\s:/?#@<>{}\[\]()\"'`$*,;%\\]{0,100}:[^\s:/?#@<>{}\[\]()\"'`$*,;%\\]"
        r"[^\s:/?#@<>{}\[\]()\"'`$*,;\\]{0,200}(?=@[\w\[])"
    ),
    # No remote of git, and no matrix product with what a method returns, a@b.mean().
    EMAIL: (
        rf"(?<![{_LETTER}_])(?!git@)[{_LETTER}_][{_LETTER}_.%+'-]{{0,63}}@"
        rf"(?:[{_LETTER}](?:[{_LETTER}-]{{0,61}}[{_LETTER}])?\.){{1,8}}"
        rf"(?:xn--[0-9a-z-]{{2,59}}|(?:(?!\d)[{_LETTER}]){{2,24}})(?![{_LETTER}_(])"
    ),
}

_FORMS = (
    {kind: f"(?<![0-9A-Za-z])(?:{form})(?![0-9A-Za-z])" for kind, _, form in _TOKENS}
    | {kind: form for kind, _, form in _OTHERS}
    | _ADDRESSES
)
_HINTS = tuple((hint, kind) for kind, hints, _ in (*_TOKENS, *_OTHERS) for hint in hints.split())
# What matches a form, but for the two of addresses, has so many characters without a space.
_LONG = re.compile(r"\S{20}").search
# Names of what is called, not said; among a call's arguments they may mean anything.
_NAMES = frozenset({"role", "type", "id", "tool_call_id"})


def scan(row: Row, redact: bool) -> tuple[Row, dict[str, int]]:
    """Return the row and how many there are of each kind; a piece of text counts as one only.

    With `redact` they are replaced by `<EMAIL>` and `<SECRET>`, in the texts of turns and tools and
    the arguments of calls: never in keys, roles or identifiers.
    """
    kinds = _suspected("\n".join(_texts(row.content)))
    if not kinds:
        return row, {}
    pattern, counts = _pattern(kinds), Counter[str]()
    content = _changed(row.content, lambda text: _redacted(text, pattern, counts))
    return (replace(row, content=content) if redact and counts else row), dict(counts)


def _suspected(text: str) -> tuple[str, ...]:
    """Return the kinds that may occur in the text: most have none, and must not cost a search."""
    kinds = []
    if _LONG(text):
        kinds = [kind for hint, kind in _HINTS if hint in text]
    if "@" in text:
        kinds += [BASIC_AUTH, EMAIL] if "://" in text else [EMAIL]
    return tuple(dict.fromkeys(kinds))


@lru_cache(maxsize=256)
def _pattern(kinds: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?P<{kind}>{_FORMS[kind]})" for kind in kinds), re.ASCII)


def _redacted(text: str, pattern: re.Pattern[str], counts: Counter[str]) -> str:
    def mark(match: re.Match[str]) -> str:
        kind = str(match.lastgroup)
        counts[kind] += 1
        kept = match.groupdict().get("kept") or ""
        return kept + ("<EMAIL>" if kind == EMAIL else "<SECRET>")

    # Once its neighbour is replaced, more may be recognized: it must not wait for the next scan.
    replaced = 1
    while replaced:
        text, replaced = pattern.subn(mark, text)
    return text


def _texts(content: dict[str, Any]) -> list[str]:
    if "text" in content:
        return [content["text"]]
    texts: list[str] = []

    def take(text: str) -> str:
        texts.append(text)
        return text

    for turn in content["messages"]:
        # Nearly every turn is but role and content.
        if len(turn) == 2:
            texts.append(turn["content"])
        else:
            _changed(turn, take)
    _changed(content.get("tools"), take)
    return texts


def _changed(value: Any, change: Callable[[str], str], names: frozenset[str] = _NAMES) -> Any:
    """Return the value with every text in it changed, but for the values called by `names`."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_changed(entry, change, names) for entry in value]
    if isinstance(value, dict):
        return {
            key: entry
            if key in names and isinstance(entry, str)
            else _changed(entry, change, frozenset() if key == "arguments" else names)
            for key, entry in value.items()
        }
    return value
