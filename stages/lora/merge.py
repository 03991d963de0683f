"""Adapters folded into the weights they were trained on, and taken out of them again."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from stages.lora.bank import Bank
from stages.lora.layers import LoRALinear


def merge_weights(bank: Bank) -> None:
    """Make the bank's only adapter part of its model's weights, and take the bank off.

    Computed in float32 and rounded once, to the type the weight is stored in. A quantized layer
    is quantized again with its own bits, group size and mode, which a small adapter may not
    survive: `mlx_lm.utils.dequantize_model` before the adapter is put on avoids that.
    """
    for layer in bank.layers.values():
        _store(layer.linear, _plain(layer.linear) + update_of(layer))
    bank.detach()


def unmerge_weights(bank: Bank) -> None:
    """Undo `merge_weights`: `bank` is the same adapter, put on the merged model.

    Gives the weights back up to one rounding in their stored type; a quantized layer keeps what
    was lost when it was merged.
    """
    for layer in bank.layers.values():
        _store(layer.linear, _plain(layer.linear) - update_of(layer))
    bank.detach()


def update_of(layer: LoRALinear) -> mx.array:
    """Return what the only adapter adds to the weight: scale * (A @ B)^T, float32 (out, in).

    LoRA, section 4.1: arXiv 2106.09685.
    """
    (scale,) = layer.scale
    lora_a, lora_b = mx.squeeze(layer.lora_a, 0), mx.squeeze(layer.lora_b, 0)
    update: mx.array = (scale * lora_b.T) @ lora_a.T
    return update


def _plain(linear: nn.Module) -> mx.array:
    """Return the layer's weight: float32 (out, in)."""
    weight: mx.array = linear.weight
    if not isinstance(linear, nn.QuantizedLinear):
        return weight.astype(mx.float32)
    scales, biases = linear.scales, linear.get("biases")
    if biases is not None:
        # In the type of the scales the products would be rounded before the update is added.
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    weight = mx.dequantize(
        weight, scales, biases,
        group_size=linear.group_size, bits=linear.bits, mode=linear.mode,
    )  # fmt: skip
    return weight.astype(mx.float32)


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
