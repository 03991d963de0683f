"""`adapter_config.json`: what an adapter is, for mlx-lm and for ourselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.data.encoding.given_template import (
    TEMPLATE_FILE,
    given_template,
    template_digest,
    write_template,
)
from stages.errors import InputError
from stages.lora.layers import AdapterShape, RankPattern

FORMAT = 1
CONFIG_FILE = "adapter_config.json"
_DIGEST_KEY = "chat_template_sha256"


def write_config(
    directory: Path, config: Mapping[str, Any], chat_template: str | None = None
) -> None:
    """Write the configuration; equal ones give equal bytes.

    A chat template that replaced the tokenizer's own is written beside it, its digest in it.
    """
    described = {**config, "format": FORMAT}
    if chat_template is not None:
        write_template(directory, chat_template)
        described[_DIGEST_KEY] = template_digest(chat_template)
    text = json.dumps(described, indent=2, sort_keys=True) + "\n"
    (directory / CONFIG_FILE).write_text(text, encoding="utf-8")


def read_config(directory: Path) -> dict[str, Any]:
    """Read the configuration, ours or mlx-lm's; raises InputError for what no adapter has."""
    path = directory / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(str(path), "no such file", "name a directory with an adapter") from None
    except ValueError as error:
        raise InputError(str(path), f"not JSON ({error})", "train the adapter again") from None
    if not isinstance(config, dict) or not isinstance(config.get("format", FORMAT), int):
        raise InputError(str(path), "not the configuration of an adapter")
    if config.get("format", FORMAT) > FORMAT:
        raise InputError(str(path), f"format {config['format']}, but {FORMAT} is the newest known",
                         "update mlx-lora-pipeline")  # fmt: skip
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora", "full"):
        raise InputError(str(path), f"fine_tune_type {kind!r}, expected lora, dora or full")
    parameters = config.get("lora_parameters")
    known = isinstance(parameters, dict) and {"rank", "scale"} <= parameters.keys()
    if kind != "full" and not known:
        raise InputError(str(path), "lora_parameters has no rank or no scale")
    return config


def trained_template(directory: Path) -> str | None:
    """Return the chat template that an adapter was trained with; None: the tokenizer's own.

    Raises InputError where the file is not the one that the adapter's configuration records.
    """
    recorded = read_config(directory).get(_DIGEST_KEY)
    if recorded is None:
        return None
    template = given_template(directory)
    if template is None or template_digest(template) != recorded:
        found = "is missing" if template is None else "is not the file that was trained with"
        raise InputError(str(directory / TEMPLATE_FILE), found, "train the adapter again")
    return template


def describe(shape: AdapterShape, stored_rank: int, num_layers: int, keys: list[str]) -> Any:
    """Describe an adapter whose matrices are all stored with `stored_rank`.

    mlx-lm knows that rank and one scale; `ranks` tells the layers' own where they differ.
    """
    config = {
        "fine_tune_type": "dora" if shape.dora else "lora",
        "num_layers": num_layers,
        "lora_parameters": {
            "rank": stored_rank,
            "scale": shape.scale,
            "dropout": shape.dropout,
            "keys": keys,
        },
    }
    if shape.patterns:
        config["ranks"] = {"rank": shape.rank, "patterns": [asdict(own) for own in shape.patterns]}
    return config


def shape_in(directory: Path, config: Mapping[str, Any]) -> AdapterShape:
    """Return the shape that `describe` was given; raises InputError where `ranks` is not ours."""
    parameters = config["lora_parameters"]
    dora = config.get("fine_tune_type") == "dora"
    ranks = config.get("ranks", {"rank": parameters["rank"], "patterns": []})
    try:
        patterns = tuple(RankPattern(**own) for own in ranks["patterns"])
        rank = ranks["rank"]
    except (KeyError, TypeError):
        path = directory / CONFIG_FILE
        raise InputError(str(path), "ranks is not what we write", "train it again") from None
    return AdapterShape(rank, parameters["scale"], parameters.get("dropout", 0.0), dora, patterns)
