"""Turn a composed configuration into the typed one that every stage can rely on."""

from __future__ import annotations

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline import environment, inputs, mistakes
from pipeline.compose import Composed, Composer
from pipeline.errors import Refused
from pipeline.overrides import Words
from pipeline.schema import KEYS, Config
from pipeline.terminal import shown_path
from stages.errors import SettingError


def validate(
    composed: Composed, words: Words, composer: Composer, *, inherited: bool = False
) -> Config:
    """Return the configuration with every key set, in range, and naming what exists.

    An inherited configuration comes from a recorded run, not from files.
    Raises `Refused` naming the key, and the user's own file where the value stands in one.
    """
    try:
        _require_all(composed)
        config = OmegaConf.to_object(composed.config)
        assert isinstance(config, Config)
        inputs.check(config, inherited=inherited)
        environment.training_workers(config.train)
    except SettingError as error:
        refused = Refused(error.where, error.found, _mend(error, composed, words))
    except Refused as error:
        refused = error
    except OmegaConfBaseException as error:
        refused = mistakes.explain(error, composer.loader)
    else:
        return config
    if refused.where not in words.given and not inherited:
        file = mistakes.origin(refused.where, composer.config_name, words, composer.loader)
        if file:
            where = f"{shown_path(file)}: {refused.where}"
            raise Refused(where, refused.found, refused.mend) from None
    raise refused from None


def _require_all(composed: Composed) -> None:
    unset, choices = OmegaConf.missing_keys(composed.config), composed.choices
    if missing := [key for key in KEYS if key in unset]:
        key, *others = missing
        group = key.partition(".")[0]
        also = f" (nor {', '.join(others)})" if others else ""
        needs = f", but {group}={choices[group]} needs it" if group in choices else ""
        raise Refused(key, f"found no value{also}{needs}", f"set {key}=<value>")


def _mend(error: SettingError, composed: Composed, words: Words) -> str:
    """Advise what can be done where the value was not given, but comes with an option."""
    group = error.where.partition(".")[0]
    given = words.given
    if error.where in given or "does not use it" not in error.found:
        return error.mend
    field = next((name for name in ("name", "type") if f"{group}.{name}" in given), None)
    if field:
        return f"choose the option as a whole: {group}={composed.config[group][field]}"
    return f"set {error.where}=null"
