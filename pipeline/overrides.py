"""The `key=value` words of a command line: read them, and refuse what no key or option can mean."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from pipeline.errors import Refused
from pipeline.schema import KEYS, expected, key_of
from pipeline.spelling import closest, closest_keys

NOT_SWEPT = frozenset(
    {"name", "outputs", "run", "dry_run", "objective", "sweeper", "sweeper.trials"}
)
"""Keys that say where and whether to run, and what a sweep is; it has one value of each."""


@dataclass(frozen=True, slots=True)
class Words:
    """The overrides of a command line, in their order."""

    overrides: tuple[Override, ...]
    groups: frozenset[str]

    @property
    def given(self) -> set[str]:
        """Every key and group that is given."""
        return {override.key_or_group for override in self.overrides}

    @property
    def choices(self) -> list[Override]:
        """Options of groups (`model=qwen`), and everything that is Hydra's own."""
        return [o for o in self.overrides if o.key_or_group in self.groups or o.is_hydra_override()]

    @property
    def values(self) -> list[Override]:
        """Values of single keys (`lora.rank=4`)."""
        return [o for o in self.overrides if o not in self.choices]

    def choice_texts(self) -> tuple[str, ...]:
        """Return the words that choose options, as Hydra takes them."""
        return tuple(str(override.input_line) for override in self.choices)

    def replaced(self, overrides: Iterable[Override]) -> Words:
        """Return other overrides of the same groups."""
        return Words(tuple(overrides), self.groups)


def read(words: Iterable[str], loader: ConfigLoader, *, sweeping: bool) -> Words:
    """Parse and check `words` against the schema and the groups that `loader` sees.

    Raises `Refused` for the first word that cannot be meant, with the nearest one that can.
    """
    groups = frozenset(loader.list_groups("")) - {"hydra"}
    parser = OverridesParser.create(config_loader=loader)
    overrides = tuple(_parse(word, parser) for word in words)
    for override in overrides:
        if not override.is_hydra_override():
            _check(override, groups, loader, sweeping=sweeping)
    return Words(overrides, groups)


def _check(
    override: Override, groups: frozenset[str], loader: ConfigLoader, *, sweeping: bool
) -> None:
    key, value = override.key_or_group, _value_text(override)
    _check_form(override, exists=key in groups or key in KEYS)
    if key in groups:
        _check_option(override, loader.get_group_options(key, ObjectType.CONFIG))
    elif key not in KEYS:
        raise unknown_key(key, groups, value=value)
    if not override.is_sweep_override():
        return
    if not sweeping:
        mend = f"add -m to run each of them: python -m pipeline -m {key}={value}"
        if key in KEYS and "list" in (takes := expected(key)):
            written = f"a list is written '{key}=[{value}]'"
            mend = f"{written}; else {mend}" if "text" in takes else written
        raise Refused(key, f"found several values: {value}", mend)
    if key in NOT_SWEPT:
        raise Refused(key, f"found several values: {value}", "a sweep has one value of it")


def _parse(word: str, parser: OverridesParser) -> Override:
    try:
        with warnings.catch_warnings(action="ignore"):  # what is deprecated is refused below
            return parser.parse_overrides([word])[0]
    except HydraException:
        key, equals, _ = word.partition("=")
        if not equals:
            raise Refused(word, "found no `=`", "settings are written key=value") from None
        mend = f"quote text with special characters: {key}='\"text\"'; lists are [a,b]"
        raise Refused(word, "cannot be read as key=value", mend) from None


def _check_form(override: Override, *, exists: bool) -> None:
    key, word = override.key_or_group, str(override.input_line)
    if override.is_delete():
        raise Refused(word, "nothing can be deleted", f"set {key} to a value, or to null")
    if override.package is not None:
        raise Refused(word, "packages are not used here", f"write {key}={_value_text(override)}")
    if not key:
        raise Refused(word, "found no key", "settings are written key=value")
    if override.is_list_extend():
        raise Refused(word, "a list cannot be extended", f"write it whole: '{key}=[a,b]'")
    if (override.is_add() or override.is_force_add()) and exists:
        mend = f"write {key}={_value_text(override)}"
        raise Refused(word, "every key exists already, so `+` has no use", mend)


def quoted(text: str) -> str:
    """Return `text` as a value that is read back as just this text."""
    return str(QuotedString(text, Quote.single).with_quotes())


def unknown_key(key: str, groups: Iterable[str], value: str | None = None) -> Refused:
    """Build the refusal of `key`, with the key that was probably meant."""
    if key_of(key) in KEYS:
        whole, _, inner = key.rpartition(".")
        shown = f"{{{inner}: {'...' if value is None else value}}}"
        return Refused(key, f"{whole} is set as a whole", f"write '{whole}={shown}'")
    near = closest_keys(key, {*KEYS, *groups})
    if not near:
        return Refused(key, "no such key", "--cfg job shows all keys")
    meant = " or ".join(name if value is None else f"{name}={value}" for name in near)
    return Refused(key, "no such key", f"did you mean {meant}?")


def unknown_option(group: str, found: str, options: Sequence[str]) -> Refused:
    """Build the refusal of an option of `group`, with the options there are."""
    near = closest(found, options)
    mend = f"did you mean {group}={near}?" if near else ""
    if not near and f"{group}.path" in KEYS and ("/" in found or "." in found):
        mend = f"did you mean {group}.path={found}?"
    listed = ", ".join(sorted(options))
    return Refused(group, f"found {found!r}, expected one of {listed}", mend)


def _check_option(override: Override, options: Sequence[str]) -> None:
    group = override.key_or_group
    found = override.sweep_iterator() if override.is_discrete_sweep() else [override.value()]
    for option in found:
        if isinstance(option, dict | list):
            mend = f"set one key at a time, such as {group}.<key>=<value>"
            raise Refused(group, "expected the name of an option", mend)
        name = "null" if option is None else str(_plain(option))
        if name not in options:
            raise unknown_option(group, name, options)


def _plain(option: object) -> object:
    return getattr(option, "text", option)


def _value_text(override: Override) -> str:
    return str(override.input_line).partition("=")[2]
