"""Adapters folded into the weights they were trained on, and taken out of them again."""

from __future__ import annotations

import mlx.core as mx

from stages.lora.bank import Bank
from stages.lora.dora import DoRALinear
from stages.lora.full import FullWeights, Tuning
from stages.lora.layers import LoRALayer
from stages.lora.weights import plain_weight, store_weight


def merge_weights(tuning: Tuning) -> None:
    """Make the bank's only adapter part of its model's weights, and take the bank off.

    Computed in float32 and rounded once, to the type the weight is stored in. A quantized layer
    is quantized again with its own bits, group size and mode, which a small adapter may not
    survive: `mlx_lm.utils.dequantize_model` before the adapter is put on avoids that. Of a
    FullWeights nothing is left to do: the model holds the tuned weights already.
    """
    if isinstance(tuning, FullWeights):
        return
    for path, layer in tuning.layers.items():
        weight = merged_weight(layer)
        if isinstance(layer, DoRALinear):
            tuning.merged[path] = layer.strength()
        store_weight(layer.base, weight)
    tuning.detach()


def unmerge_weights(bank: Bank) -> None:
    """Undo `merge_weights`: `bank` is the same adapter, put on the merged model.

    Gives the weights back up to one rounding in their stored type; a quantized layer keeps what
    was lost when it was merged. Of DoRA only the very bank that was merged still has the factors
    of the rows, which the merged weights do not tell: another raises KeyError.
    """
    for path, layer in bank.layers.items():
        weight = plain_weight(layer.base)
        if isinstance(layer, DoRALinear):
            strength = bank.merged.pop(path)[:, None]
            weight = mx.where(strength == 0, 0, weight / strength)
        store_weight(layer.base, weight - layer.weight_update())
    bank.detach()


def merged_weight(layer: LoRALayer) -> mx.array:
    """Return the weight that computes alone what the layer does, in float32."""
    adapted = plain_weight(layer.base) + layer.weight_update()
    return layer.strength()[:, None] * adapted if isinstance(layer, DoRALinear) else adapted
