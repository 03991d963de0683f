"""The adapted layer that each kind of layer becomes, and what it cannot be asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlx import nn

from stages.errors import SettingError
from stages.lora.dora import DoRALinear
from stages.lora.embeddings import LoRAEmbedding
from stages.lora.experts import MIXTURES, LoRASwitchLinear, RoutedMixture
from stages.lora.layers import AdapterShape, LoRALayer, LoRALinear, Routing
from stages.lora.targets import Targets, kind_of, matches

_LEAVE_OUT = "or leave it out of lora.targets"


def check_shapes(targets: Targets, shapes: Sequence[AdapterShape]) -> None:
    """Refuse DoRA beside another adapter, and rank patterns that match nothing or disagree."""
    if len(shapes) > 1 and any(shape.dora for shape in shapes):
        # Its norms are one adapter's own.
        raise SettingError("lora.type", f"found 'dora' for one of {len(shapes)} adapters that "
                           "share a base", "train it alone, or use another type")  # fmt: skip
    for patterns in {shape.patterns for shape in shapes}:
        for own in patterns:
            if not any(matches(path, own.pattern) for path in targets.paths):
                raise SettingError("lora.rank_pattern", f"{own.pattern!r} matches no adapted layer",
                                   f"lora.targets takes {', '.join(targets.keys)}")  # fmt: skip
        for path in targets.paths:
            taken = [own for own in patterns if matches(path, own.pattern)]
            if len({own.rank for own in taken}) > 1:
                names = " and ".join(repr(own.pattern) for own in taken)
                raise SettingError("lora.rank_pattern", f"{names} give {path} different ranks",
                                   "let one of them match it alone")  # fmt: skip


def adapt(
    module: nn.Module, path: str, shapes: Sequence[AdapterShape], routing: Routing
) -> LoRALayer:
    """Return the adapted layer over `module`; raises SettingError where it cannot hold `shapes`."""
    kind, title = kind_of(module), f"{path} ({type(module).__name__})"
    if kind == "linear":
        linear = DoRALinear if any(shape.dora for shape in shapes) else LoRALinear
        return linear(module, path, shapes, routing)
    if len(shapes) > 1:
        raise SettingError("lora.targets", f"{title} cannot hold {len(shapes)} adapters at once",
                           f"train each alone, {_LEAVE_OUT}")  # fmt: skip
    if shapes[0].dora:
        raise SettingError("lora.type", f"found 'dora', which {title} cannot have",
                           f"choose lora or rslora, {_LEAVE_OUT}")  # fmt: skip
    if kind == "embedding":
        return LoRAEmbedding(module, path, shapes, routing)
    return LoRASwitchLinear(module, path, shapes, routing)


def route_mixtures(
    modules: Mapping[str, nn.Module], layers: Mapping[str, LoRALayer], routing: Routing
) -> dict[str, RoutedMixture]:
    """Return what takes the place of the mixtures whose adapted experts drop inputs.

    Raises SettingError for experts in something that may order their rows in another way.
    """
    found: dict[str, RoutedMixture] = {}
    for path, layer in layers.items():
        if not isinstance(layer, LoRASwitchLinear) or not any(layer.dropout):
            continue
        holder = path.rpartition(".")[0]
        mixture = modules.get(holder)
        if not isinstance(mixture, MIXTURES):
            raise SettingError("lora.dropout", f"found {layer.dropout[0]}, but {path} cannot tell "
                               "tokens apart", f"set 0, {_LEAVE_OUT}")  # fmt: skip
        found[holder] = RoutedMixture(mixture, routing)
    return found
