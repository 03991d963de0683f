"""The weight of a frozen layer, plain or packed: read in float32, put back in its own form."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn


def weight_dims(layer: nn.Module) -> tuple[int, ...]:
    """Return the shape of a layer's weight as it is unpacked: (out, in), or with experts first."""
    *leading, last = layer.weight.shape
    return (*leading, layer.scales.shape[-1] * layer.group_size if is_packed(layer) else last)


def plain_weight(layer: nn.Module) -> mx.array:
    """Return the weight of a plain or quantized layer in float32, as `weight_dims` has it."""
    weight: mx.array = layer.weight
    if not is_packed(layer):
        return weight.astype(mx.float32)
    scales, biases = layer.scales, layer.get("biases")
    if biases is not None:
        # In the type of the scales the weights would be rounded once more.
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    weight = mx.dequantize(
        weight, scales, biases, group_size=layer.group_size, bits=layer.bits, mode=layer.mode
    )
    return weight.astype(mx.float32)


def store_weight(layer: nn.Module, weight: mx.array) -> None:
    """Put a float32 weight into the layer, in the layer's own form and type."""
    if not is_packed(layer):
        layer.weight = weight.astype(layer.weight.dtype)
        return
    packed, scales, *biases = mx.quantize(
        weight, group_size=layer.group_size, bits=layer.bits, mode=layer.mode
    )
    layer.weight, layer.scales = packed, scales.astype(layer.scales.dtype)
    if biases:
        layer.biases = biases[0].astype(layer.biases.dtype)


def is_packed(layer: nn.Module) -> bool:
    """Tell whether the layer's weight is quantized."""
    return "scales" in layer
