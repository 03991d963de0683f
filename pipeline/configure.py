"""From the words of a command line to a configuration that can run."""

from __future__ import annotations

from pipeline.compose import Composed, Composer
from pipeline.overrides import Words
from pipeline.parent import Parent
from pipeline.schema import Config
from pipeline.validate import validate


def configure(composed: Composed, words: Words, composer: Composer) -> tuple[Config, Parent | None]:
    """Return the typed configuration and, with `run=R`, the run it starts from.

    Raises `Refused` with the key or file to mend.
    """
    if composed.config.run is None:
        return validate(composed, words, composer), None
    from pipeline import rerun  # the record of runs is not needed otherwise

    parent = rerun.find(composed.config, words)
    merged = rerun.inherit(parent, composed, words, composer)
    return validate(merged, words, composer, inherited=True), parent
