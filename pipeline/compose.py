"""Compose the configuration as Hydra will, but before Hydra creates anything."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own
from hydra import compose, initialize_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from pipeline import mistakes
from pipeline.errors import Refused
from pipeline.overrides import Words
from pipeline.terminal import shown_path

CONF = "pkg://conf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """A configuration as Hydra composes it, its interpolations unresolved."""

    config: DictConfig
    choices: Mapping[str, str | None]
    """The option chosen of each group."""
    params: Mapping[str, str]
    """What the sweeper itself was told to sweep over: keys and values."""


class Composer:
    """Compose configurations from the groups of `conf` and of the user's own directory."""

    def __init__(self, loader: ConfigLoader, config_name: str) -> None:
        self.loader = loader
        self.config_name = config_name
        self._composed: dict[tuple[str, ...], Composed] = {}

    def compose(self, words: Words) -> Composed:
        """Return the configuration that `words` mean.

        Options are composed once per combination, so that a sweep over values stays quick.
        """
        choices = words.choice_texts()
        if choices not in self._composed:
            self._composed[choices] = self._compose(choices)
        composed = self._composed[choices]
        composed = replace(composed, config=copy.deepcopy(composed.config))
        self.apply(words.values, composed.config)
        return composed

    def _compose(self, choices: tuple[str, ...]) -> Composed:
        try:
            config = compose(self.config_name, list(choices), return_hydra_config=True)
            params = dict(config.hydra.sweeper.get("params") or {})
        # Hydra raises ValueError for some malformed options.
        except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
            raise mistakes.explain(error, self.loader) from None
        with open_dict(config):
            hydra = config.pop("hydra")
        return Composed(config=config, choices=dict(hydra.runtime.choices), params=params)

    def apply(self, values: Iterable[Override], config: DictConfig) -> None:
        """Set each key in `values`, as Hydra does: in order, after all options."""
        for override in values:
            try:
                OmegaConf.update(config, override.key_or_group, override.value())
            except OmegaConfBaseException as error:
                raise mistakes.explain(error, self.loader) from None


@contextmanager
def opened(config_dir: str | None, config_name: str) -> Iterator[Composer]:
    """Give a composer on our groups and, after them, those of `config_dir`."""
    directory = Path(config_dir).absolute() if config_dir is not None else None
    if directory is not None and not directory.is_dir():
        raise Refused("--config-dir", f"found no directory {config_dir!r}")
    sources = [CONF, *([f"file://{directory}"] if directory else [])]
    with initialize_config_search_path(sources):
        loader = GlobalHydra.instance().config_loader()
        if directory:
            _refuse_shadowed(directory, loader)
        yield Composer(loader, config_name)


def _refuse_shadowed(directory: Path, loader: ConfigLoader) -> None:
    """Refuse a file of the user's whose name is taken, because Hydra would never read it."""
    ours = [source for source in loader.get_sources() if source.scheme() == "pkg"]
    for file in sorted(directory.rglob("*.yaml")):
        name = file.relative_to(directory).with_suffix("").as_posix()
        if any(source.is_config(name) for source in ours):
            found = "an option of this name is built in and would be used instead"
            raise Refused(shown_path(file), found, "give the file another name")
