"""The adapted experts of a mixture: every expert of a layer has an adapter of its own."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
from mlx import nn
from mlx_lm.models.switch_layers import SwitchGLU, SwitchMLP

from stages.lora.layers import AdapterShape, LoRALayer, Routing
from stages.lora.weights import weight_dims

MIXTURES = (SwitchGLU, SwitchMLP)
"""What calls the layers of the experts, and sorts their rows where it has many."""


class LoRASwitchLinear(LoRALayer):
    """The frozen matrices of all experts plus `scale * B A x` of a row's own expert.

    `lora_a` is (1, experts, r, in) and `lora_b` (1, experts, out, r): one adapter alone. Dropout
    drops the same inputs for all experts of a token, in whatever order their rows come.
    """

    def __init__(
        self, linear: nn.Module, path: str, shapes: Sequence[AdapterShape], routing: Routing
    ) -> None:
        super().__init__(path, shapes, routing)
        self.linear = linear
        experts, output_dims, input_dims = weight_dims(linear)
        self.lora_a = mx.zeros((1, experts, max(self.ranks), input_dims))
        self.lora_b = mx.zeros((1, experts, output_dims, max(self.ranks)))

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """Return the outputs of the experts `indices`, as mlx-lm's layer has them."""
        y: mx.array = self.linear(x, indices, sorted_indices=sorted_indices)
        if self._drops:
            x = self._drop_rows(x, indices, sorted_indices)
        scale, lora_a, lora_b = self._only(x.dtype)
        for matrix in (lora_a, scale * lora_b):
            x = mx.gather_mm(x, matrix.swapaxes(-1, -2), rhs_indices=indices,
                             sorted_indices=sorted_indices)  # fmt: skip
        return y + x

    def initial(self, rank: int, key: mx.array) -> dict[str, mx.array]:
        """Draw each expert's matrices as those of a linear layer."""
        experts, output_dims, input_dims = weight_dims(self.linear)
        bound = input_dims**-0.5
        return {"lora_a": mx.random.uniform(-bound, bound, (experts, rank, input_dims), key=key),
                "lora_b": mx.zeros((experts, output_dims, rank))}  # fmt: skip

    def weight_update(self) -> mx.array:
        """Return scale * B @ A of every expert: (experts, out, in)."""
        scale, lora_a, lora_b = self._only()
        return (scale * lora_b) @ lora_a

    def _drop_rows(self, x: mx.array, indices: mx.array, sorted_indices: bool) -> mx.array:
        kept = 1 - self.dropout[0]
        mask = self._draw(x.shape[-1], self.salt) < kept
        experts = self.routing.experts
        if sorted_indices and experts is not None:
            # Row p belongs to token order[p] // M: the mixture sorts them by the same argsort.
            mask = mask[mx.argsort(experts.flatten()) // experts.shape[-1]][:, None]
        else:
            mask = mask.reshape(*indices.shape[:-1], 1, 1, -1)
        return mx.where(mask, x / kept, 0)


class RoutedMixture(nn.Module):  # type: ignore[misc]  # MLX's modules are untyped
    """A mixture that tells its adapted layers which experts each token goes to."""

    def __init__(self, mixture: nn.Module, routing: Routing) -> None:
        super().__init__()
        self.mixture = mixture
        self.routing = routing

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """Return what the mixture does."""
        self.routing.experts = indices
        try:
            y: mx.array = self.mixture(x, indices)
        finally:
            self.routing.experts = None
        return y
