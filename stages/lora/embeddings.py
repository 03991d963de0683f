"""The adapted embedding, which a tied model also uses as its head."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
from mlx import nn

from stages.lora.keys import fold, words
from stages.lora.layers import AdapterShape, LoRALayer, Routing
from stages.lora.weights import plain_weight, weight_dims


class LoRAEmbedding(LoRALayer):
    """A frozen embedding plus `scale * lora_a[token] @ lora_b`, of one adapter alone.

    `lora_a` is (1, vocabulary, r) and `lora_b` (1, r, dims). Dropout sets shares of the update to
    zero in a look-up and shares of the input in a head, as mlx-lm has it.
    """

    def __init__(
        self, embedding: nn.Module, path: str, shapes: Sequence[AdapterShape], routing: Routing
    ) -> None:
        super().__init__(path, shapes, routing)
        self.embedding = embedding
        vocabulary, dims = weight_dims(embedding)
        self.lora_a = mx.zeros((1, vocabulary, max(self.ranks)))
        self.lora_b = mx.zeros((1, max(self.ranks), dims))
        self.head_salt = words(fold(0, "layer", path, "head"))

    @property
    def base(self) -> nn.Module:
        """Return the frozen layer."""
        return self.embedding

    @property
    def weight(self) -> mx.array:
        """Return the adapted weight; some tied models multiply by it instead of `as_linear`."""
        adapted = plain_weight(self.embedding) + self.weight_update()
        return adapted.astype(self.embedding(mx.array([0])).dtype)

    def __call__(self, tokens: mx.array) -> mx.array:
        """Return the vectors of the tokens: (…) to (…, dims)."""
        y: mx.array = self.embedding(tokens)
        scale, lora_a, lora_b = self._only(y.dtype)
        update = lora_a[tokens] @ lora_b
        return y + scale * (self._drop(update) if self._drops else update)

    def as_linear(self, x: mx.array) -> mx.array:
        """Return the logits of a tied head: hidden states (…, dims) to (…, vocabulary)."""
        y: mx.array = self.embedding.as_linear(x)
        if self._drops:
            x = self._drop(x, self.head_salt)
        scale, lora_a, lora_b = self._only(x.dtype)
        return mx.addmm(y, x @ lora_b.T, lora_a.T, alpha=scale)

    def initial(self, rank: int, key: mx.array) -> dict[str, mx.array]:
        """Draw as PEFT does: `lora_a` zero, `lora_b` normal."""
        vocabulary, dims = weight_dims(self.embedding)
        return {"lora_a": mx.zeros((vocabulary, rank)),
                "lora_b": mx.random.normal((rank, dims), key=key)}  # fmt: skip

    def weight_update(self) -> mx.array:
        """Return scale * A @ B: (vocabulary, dims)."""
        scale, lora_a, lora_b = self._only()
        return (scale * lora_a) @ lora_b
