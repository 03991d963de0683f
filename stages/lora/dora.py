"""DoRA: the adapted linear layer that also trains the norm of each row (arXiv 2402.09353)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx
from mlx import nn

from stages.lora.layers import AdapterShape, LoRALinear, Routing
from stages.lora.weights import plain_weight


class DoRALinear(LoRALinear):
    """A frozen linear layer whose weight W becomes `m * (W + D) / |W + D|`, row by row.

    D is the update of LoRALinear, of one adapter alone; `m` (1, out), float32, starts as |W|. As
    in section 4.3 of the paper, |W + D| is a constant to the gradient. With dropout the output
    is `W x + (m / |W + D|) (W + D) drop(x) - W drop(x)`, which is what PEFT computes.
    """

    trained = ("lora_a", "lora_b", "m")

    def __init__(
        self, linear: nn.Module, path: str, shapes: Sequence[AdapterShape], routing: Routing
    ) -> None:
        super().__init__(linear, path, shapes, routing)
        self._base_squares = plain_weight(linear).square().sum(axis=1)
        self._strength: mx.array | None = None
        self.m = mx.sqrt(self._base_squares)[None]

    def initial(self, rank: int, key: mx.array) -> dict[str, mx.array]:
        """Draw as LoRALinear does; `m` is the norm of the base's rows."""
        return super().initial(rank, key) | {"m": mx.squeeze(self.m, 0)}

    def put(self, weights: Mapping[str, mx.array]) -> None:
        """Compute with these weights from now on."""
        super().put(weights)
        self._strength = None

    def settle(self) -> None:
        """Work out once what follows from the weights, which then stay as they are."""
        self._strength = self.strength()

    def __call__(self, x: mx.array) -> mx.array:
        """Return the output of the rescaled weight, and the base layer's bias."""
        strength = self.strength() if self._strength is None else self._strength
        y: mx.array = self.linear(x)
        if self._drops:
            x = self._drop(x)
            product = self._without_bias(self.linear(x))
        else:
            product = self._without_bias(y)
        # Half precision holds the small number m / |W + D| - 1 far better than the factor itself.
        y = y + (strength - 1).astype(x.dtype) * product
        lora_a, lora_b = mx.squeeze(self.lora_a, 0), mx.squeeze(self.lora_b, 0)
        lora_b = self.scale[0] * strength * lora_b
        return mx.addmm(y, x @ lora_a.astype(x.dtype), lora_b.astype(x.dtype))

    def strength(self) -> mx.array:
        """Return m / |W + D| of each row: (out,) float32; 0 where W + D is 0.

        |W + D|^2 is |W|^2 + 2 W.D + |D|^2, and W.D takes the product of W with the columns of
        `lora_a` alone: no weight is unpacked, and D is never formed.
        """
        lora_a = mx.stop_gradient(mx.squeeze(self.lora_a, 0))
        lora_b = mx.stop_gradient(self.scale[0] * mx.squeeze(self.lora_b, 0))
        products = self._without_bias(self.linear(lora_a.T))
        mixed = 2 * products.astype(mx.float32) + (lora_a.T @ lora_a) @ lora_b
        squares = self._base_squares + (mixed * lora_b).sum(axis=0)
        return mx.squeeze(self.m, 0) / mx.sqrt(mx.where(squares > 0, squares, mx.inf))

    def _without_bias(self, y: mx.array) -> mx.array:
        return y - self.linear.bias if "bias" in self.linear else y
