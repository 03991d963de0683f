"""Start from an adapter that was trained before, or from all weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from stages.errors import SettingError
from stages.lora.bank import Bank, fit_rank
from stages.lora.description import read_config, shape_in
from stages.lora.files import WEIGHTS_FILE, own_weight, read_tensors
from stages.lora.full import Tuning

KEY = "train.init_adapter"
_NAMED = 8


def start_from(tuning: Tuning, directory: Path) -> None:
    """Put what lies in `directory` into `tuning`, which then computes what it computed.

    Another scale is taken into `lora_b`. Raises SettingError with every mismatch of kind, layers,
    ranks and shapes, InputError for a directory that holds no adapter.
    """
    config, tensors = read_config(directory), read_tensors(directory / WEIGHTS_FILE)
    kind, wanted = config.get("fine_tune_type", "lora"), _kind(tuning)
    if kind != wanted:
        raise _refused(directory, [f"it is of type {kind}, and what is trained here {wanted}"])
    if not isinstance(tuning, Bank):
        # mlx-lm trains and saves the blocks alone; we always save the whole model.
        whole = "format" in config
        expected = {name: value.shape for name, value in tuning.base.items()
                    if whole or name in tensors}  # fmt: skip
        if found := _differences(expected, {n: t.shape for n, t in tensors.items()}):
            raise _refused(directory, found)
        tuning.update(replace(tuning, tuned={**tuning.base, **tensors}).parameters())
        return
    (ours,), theirs = tuning.shapes, shape_in(directory, config)
    names = {f"{path}.{name}": (path, name) for path, layer in tuning.layers.items()
             for name in layer.trained}  # fmt: skip
    ranks = defaultdict(list)
    for path, layer in tuning.layers.items():
        if f"{path}.lora_a" in tensors and theirs.at(path).rank != layer.ranks[0]:
            ranks[theirs.at(path).rank, layer.ranks[0]].append(path)
    found = [f"rank {there} there and {here} here: {_listed(paths)}"
             for (there, here), paths in sorted(ranks.items())]  # fmt: skip
    fitted = {name: fit_rank(value, names[name][1], tuning.layers[names[name][0]].ranks[0]).shape
              if name in names else value.shape for name, value in tensors.items()}  # fmt: skip
    expected = {title: tuning.layers[path][name][0].shape for title, (path, name) in names.items()}
    if found := found + _differences(expected, fitted):
        raise _refused(directory, found)
    scale = config["lora_parameters"]["scale"]
    adapter = {path: {name: own_weight(tensors[f"{path}.{name}"], name, ours.at(path), scale)
                      for name in layer.trained}
               for path, layer in tuning.layers.items()}  # fmt: skip
    tuning.update(tuning.join([adapter]))
    mx.eval(tuning.parameters())


def _kind(tuning: Tuning) -> str:
    if not isinstance(tuning, Bank):
        return "full"
    return "dora" if tuning.shapes[0].dora else "lora"


def _differences(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> list[str]:
    missing, unknown = sorted(expected.keys() - found), sorted(found.keys() - expected)
    shapes = [f"{name} {found[name]} there and {shape} here"
              for name, shape in sorted(expected.items())
              if name in found and found[name] != shape]  # fmt: skip
    groups = (("missing there", missing), ("not trained here", unknown), ("shapes differ", shapes))
    return [f"{what}: {_listed(names)}" for what, names in groups if names]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _refused(directory: Path, found: Sequence[str]) -> SettingError:
    mend = "set lora.* as that adapter was trained, or leave train.init_adapter out"
    return SettingError(KEY, f"{directory} does not fit: {'; '.join(found)}", mend)
