"""The peak learning rate that `optimizer.learning_rate=auto` stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.errors import SettingError
from stages.training_settings import Optimizer

BASE = 5e-5
"""For all weights of a model REFERENCE_WIDTH wide."""
REFERENCE_WIDTH = 2000
ADAPTER_FACTOR = 10
EXPONENTS = {"llama": 0.781, "qwen": 0.0775}
"""How fast the rate falls with the width, by family."""
SMALLEST_WIDTH = 256
"""Narrower models get the rate of this width; below it nothing was ever measured."""

WIDTHS = ("hidden_size", "n_embd", "d_model", "model_dim", "hidden_dim")
"""What configs call the width of the hidden states."""


def peak_learning_rate(optimizer: Optimizer, config: Mapping[str, Any], *, full: bool) -> float:
    """Return the peak learning rate, `auto` worked out from the model's `config`.

    auto is 5e-5 * (2000 / width)^p, times 10 for an adapter: the formula of Tinker's
    `tinker_cookbook/hyperparam_utils.py` as of 2025, for Adam and alpha = 32. It knows Llama and
    Qwen; other families get the lower of the two rates. Raises SettingError where the config names
    no width.
    """
    if not isinstance(optimizer.learning_rate, str):
        return optimizer.learning_rate
    text = config.get("text_config") or config
    width = next((text[name] for name in WIDTHS if isinstance(text.get(name), int)), None)
    if width is None:
        raise SettingError("optimizer.learning_rate", "found 'auto', but the model's config.json "
                           "names no hidden_size", "set a number such as 2e-4")  # fmt: skip
    ratio = REFERENCE_WIDTH / max(width, SMALLEST_WIDTH)
    kind = str(text.get("model_type", config.get("model_type")))
    known = [power for family, power in EXPONENTS.items() if family in kind]
    factor = min(ratio**power for power in known or EXPONENTS.values())
    return float(BASE * factor * (1 if full else ADAPTER_FACTOR))
