"""The optimizers of `optimizer=…`, their learning rate, and gradient clipping."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
from mlx import optimizers
from mlx.utils import tree_flatten, tree_map, tree_map_with_path

from stages.lora.bank import Parameters
from stages.training_settings import Optimizer

_ELEMENTWISE = frozenset({"adamw", "adam", "sgd", "lion"})
"""Optimizers that move each number by itself."""
_MOST_JOINED = 1 << 23
"""Numbers that are laid out as vectors: it takes copies, and large ones have no need of it."""


_TABLE = re.compile(r"(^|\.)(\w*embed\w*|wte|wpe|lm_head|head|output)\.weight$")
"""Weights with a row for each token or place: embeddings and the head."""


class Muon(optimizers.Muon):  # type: ignore[misc]  # MLX's optimizers are untyped
    """Muon for matrices, AdamW for vectors, embeddings and the head, all at AdamW's learning rate.

    MLX's own takes every weight for a matrix and adds the decay to the gradient. Method:
    https://kellerjordan.github.io/posts/muon/; the size of a move and the decoupled decay are
    those of arXiv 2502.16982: numbers move by 0.2 of the learning rate (root mean square).
    """

    def __init__(self, learning_rate: float, adamw: optimizers.AdamW, **options: Any) -> None:
        super().__init__(learning_rate, weight_decay=0.0, **options)
        self.adamw = adamw

    def init(self, parameters: Parameters) -> None:
        """Make the state of every weight: the one of what AdamW moves holds `m`."""
        super().init(parameters)

        def give(path: str, weight: mx.array, state: dict[str, mx.array]) -> None:
            if weight.ndim < 2 or _TABLE.search(path):
                state.setdefault("m", mx.zeros_like(weight))

        tree_map_with_path(give, parameters, self.state)

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: Any) -> mx.array:
        """Shrink the parameter, then move it along the orthogonalised momentum."""
        moved: mx.array
        if "m" in state:
            self.adamw.state = {"step": self.step, "learning_rate": self.learning_rate}
            moved = self.adamw.apply_single(gradient, parameter, state)
            return moved
        shrunk = parameter * (1 - self.learning_rate * self.adamw.weight_decay)
        rows, columns = parameter.shape[0], parameter.size // parameter.shape[0]
        # MLX multiplies by sqrt(rows / columns) where there are more rows.
        size = 0.2 * math.sqrt(max(rows, columns)) / math.sqrt(max(1, rows / columns))
        moved = super().apply_single(gradient, mx.zeros_like(parameter), state)
        moved = shrunk + size * moved
        return moved


class LoRAPlus(optimizers.Optimizer):  # type: ignore[misc]  # MLX's optimizers are untyped
    """Two optimizers of one kind: `lora_b` moves at `ratio` times the rate of all other weights.

    Takes weights by layer and name. Method: LoRA+, arXiv 2402.12354.
    """

    def __init__(
        self, lora_b: optimizers.Optimizer, others: optimizers.Optimizer, ratio: float
    ) -> None:
        self.parts = {"lora_b": lora_b, "others": others}
        self.ratio = ratio
        self.learning_rate = others.learning_rate

    def init(self, parameters: Parameters) -> None:
        """Make the state of every weight."""
        for name, part in self.parts.items():
            part.init(_part(parameters, name))

    def apply_gradients(self, gradients: Parameters, parameters: Parameters) -> Parameters:
        """Return the moved weights of every layer that has gradients."""
        moved: Parameters = {path: {} for path in gradients}
        for name, part in self.parts.items():
            for path, weights in part.apply_gradients(_part(gradients, name), parameters).items():
                moved[path] |= weights
        return moved

    @property
    def state(self) -> dict[str, Any]:
        """Return the states of both."""
        return {name: part.state for name, part in self.parts.items()}

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.state = state[name]

    @property
    def learning_rate(self) -> Any:
        """Return the rate of all weights but `lora_b`."""
        return self.parts["others"].learning_rate

    @learning_rate.setter
    def learning_rate(self, rate: Any) -> None:
        self.parts["others"].learning_rate = rate
        self.parts["lora_b"].learning_rate = self.ratio * rate


def make_optimizer(
    settings: Optimizer, b_learning_rate_ratio: float | None = None
) -> optimizers.Optimizer:
    """Build MLX's optimizer from the settings, for LoRA+ (a ratio is given) two of them.

    Adam and AdamW correct the bias of their moments.
    """
    if b_learning_rate_ratio is None:
        return _optimizer(settings)
    return LoRAPlus(_optimizer(settings), _optimizer(settings), b_learning_rate_ratio)


def _optimizer(settings: Optimizer) -> optimizers.Optimizer:
    rate, decay = float(settings.learning_rate), settings.weight_decay
    momentum = {"momentum": settings.momentum, "nesterov": settings.nesterov}
    match settings.name:
        case "adamw":
            return _adamw(settings)
        case "adam":
            return optimizers.Adam(rate, settings.betas, settings.eps, bias_correction=True)
        case "lion":
            return optimizers.Lion(rate, settings.betas, decay)
        case "muon":
            return Muon(rate, _adamw(settings), **momentum)
        case "adafactor":
            # With a given learning rate the paper's own step sizes would scale it to near 0:
            # lora_b starts at zero, and they are relative to the size of the weights.
            return optimizers.Adafactor(
                rate, (settings.eps, 1e-3), weight_decay=decay,
                scale_parameter=False, relative_step=False,
            )  # fmt: skip
    return optimizers.SGD(rate, weight_decay=decay, **momentum)


def _adamw(settings: Optimizer) -> optimizers.AdamW:
    return optimizers.AdamW(
        float(settings.learning_rate), settings.betas, settings.eps, settings.weight_decay,
        bias_correction=True,
    )  # fmt: skip


def joined(settings: Optimizer, weights: Parameters) -> Parameters:
    """Lay weights out as two vectors, all `lora_b` and all others, where each moves by itself.

    Few large operations take the place of many small ones. Of a matrix optimizer (muon, adafactor)
    the weights stay as they are.
    """
    if not _joins(settings, weights):
        return weights
    vectors: dict[str, list[mx.array]] = {}
    for name, weight in _leaves(weights):
        vectors.setdefault(_group(name), []).append(weight.reshape(-1))
    return {"all": {group: mx.concatenate(found) for group, found in vectors.items()}}


def parted(settings: Optimizer, weights: Parameters, like: Parameters) -> Parameters:
    """Undo `joined`: weights with the names and shapes of `like`."""
    if not _joins(settings, like):
        return weights
    starts = dict.fromkeys(weights["all"], 0)
    result: Parameters = {path: {} for path in like}
    for path, own in like.items():
        for name, weight in own.items():
            group = _group(name)
            start, end = starts[group], starts[group] + weight.size
            result[path][name] = weights["all"][group][start:end].reshape(weight.shape)
            starts[group] = end
    return result


def _joins(settings: Optimizer, weights: Parameters) -> bool:
    size = sum(weight.size for _, weight in _leaves(weights))
    return settings.name in _ELEMENTWISE and size <= _MOST_JOINED


def _leaves(weights: Parameters) -> Iterator[tuple[str, mx.array]]:
    for own in weights.values():
        yield from own.items()


def _group(name: str) -> str:
    return name if name == "lora_b" else "others"


def _part(weights: Parameters, name: str) -> Parameters:
    """Take `lora_b` of every layer, or all weights but that."""
    return {path: {own: value for own, value in layer.items()
                   if (own == "lora_b") == (name == "lora_b")}
            for path, layer in weights.items()}  # fmt: skip


def learning_rate(settings: Optimizer, step: int, total_steps: int) -> float:
    """Return the learning rate of `step` (from 0): linear warm-up, then the schedule.

    The first step after the warm-up has the peak, the last one `final_fraction` of it.
    """
    peak = float(settings.learning_rate)
    warmup = min(round(settings.warmup_fraction * total_steps), total_steps - 1)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return peak
    done = (step - warmup) / max(total_steps - 1 - warmup, 1)
    left = 1 - done if settings.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    final = settings.final_fraction or 0.0
    return peak * (final + (1 - final) * left)


def clip(gradients: Any, max_norm: float | None) -> tuple[Any, mx.array]:
    """Scale the gradients down to `max_norm`; returns them with the norm they had, float32."""
    squares = [g.astype(mx.float32).square().sum() for _, g in tree_flatten(gradients)]
    norm = mx.sqrt(mx.stack(squares).sum())
    if max_norm is None:
        return gradients, norm
    # The 1e-6 is torch's and MLX's own.
    factor = mx.minimum(max_norm / (norm + 1e-6), 1.0)
    return tree_map(lambda g: g * factor, gradients), norm
