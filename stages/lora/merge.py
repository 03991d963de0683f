"""Adapters folded into the weights they were trained on, and taken out of them again."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from stages.lora.bank import Bank
from stages.lora.dora import DoRALinear
from stages.lora.full import FullWeights, Tuning
from stages.lora.layers import LoRALinear, plain_weight


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
        _store(layer.linear, weight)
    tuning.detach()


def unmerge_weights(bank: Bank) -> None:
    """Undo `merge_weights`: `bank` is the same adapter, put on the merged model.

    Gives the weights back up to one rounding in their stored type; a quantized layer keeps what
    was lost when it was merged. Of DoRA only the very bank that was merged still has the factors
    of the rows, which the merged weights do not tell: another raises KeyError.
    """
    for path, layer in bank.layers.items():
        weight = plain_weight(layer.linear)
        if isinstance(layer, DoRALinear):
            strength = bank.merged.pop(path)[:, None]
            weight = mx.where(strength == 0, 0, weight / strength)
        _store(layer.linear, weight - update_of(layer))
    bank.detach()


def merged_weight(layer: LoRALinear) -> mx.array:
    """Return the weight that computes alone what the layer does: float32 (out, in)."""
    adapted = plain_weight(layer.linear) + update_of(layer)
    return layer.strength()[:, None] * adapted if isinstance(layer, DoRALinear) else adapted


def update_of(layer: LoRALinear) -> mx.array:
    """Return what the only adapter adds to the weight: scale * (A @ B)^T, float32 (out, in).

    LoRA, section 4.1: arXiv 2106.09685.
    """
    (scale,) = layer.scale
    lora_a, lora_b = mx.squeeze(layer.lora_a, 0), mx.squeeze(layer.lora_b, 0)
    update: mx.array = (scale * lora_b.T) @ lora_a.T
    return update


def _store(linear: nn.Module, weight: mx.array) -> None:
    """Put a float32 weight (out, in) into the layer, in the layer's own form and type."""
    if not isinstance(linear, nn.QuantizedLinear):
        linear.weight = weight.astype(linear.weight.dtype)
        return
    packed, scales, *biases = mx.quantize(
        weight, group_size=linear.group_size, bits=linear.bits, mode=linear.mode
    )
    linear.weight, linear.scales = packed, scales.astype(linear.scales.dtype)
    if biases:
        linear.biases = biases[0].astype(linear.biases.dtype)
