"""How much memory a training step comes to hold: arithmetic, checked against measured peaks."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from stages.memory import shown


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is kept of a step, measured on Llamas 256 and 576 wide, rows of 32 to 1,024 tokens."""

    features: float
    """For the backward pass of a block, of all that goes into and comes out of its layers."""
    scores: int
    """Attention scores of each block, by their number."""
    working_blocks: int
    """Whose forward or backward pass holds as much again as they keep: MLX runs ahead."""
    working_scores: int
    """Of the block at work alone."""
    logits: int


_MLX = _Kept(features=1.1, scores=1, working_blocks=2, working_scores=0, logits=6)
_CPU = _Kept(features=1.4, scores=0, working_blocks=0, working_scores=4, logits=1)
"""With the functions of cpu_functions.py and cpu_gradients.py, which go over less at a time."""
_SPARE = 1.05
"""What MLX and malloc hold beyond the arrays of a step, as a share of these."""
TOLERANCE = 1.25
"""How much too high a forecast may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Bytes that the process holds at its peak, by what they are for."""

    weights: float
    program: float
    """What the process holds besides: the interpreter, libraries, what earlier stages left."""
    trained: float
    """Trained weights, their gradients and the optimizer's state."""
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """Return the whole."""
        return sum(map(float, asdict(self).values()))

    def times(self, processes: int) -> Forecast:
        """Return what several such processes hold together."""
        return Forecast(**{name: size * processes for name, size in asdict(self).items()})

    def line(self, available_bytes: int) -> str:
        """Say in one line how much of the memory there is will be held."""
        parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in asdict(self).items())
        return f"memory: about {shown(self.total)} of {shown(available_bytes)}: {parts}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What decides the memory of a step, in numbers."""

    tokens: int
    """Of the largest batch, padding included."""
    width: int
    """Of its rows."""
    blocks: tuple[int, ...]
    """Of each block from the lowest that is trained on: features into and out of its layers."""
    hidden: int
    heads: int
    logits: int
    """That the head makes at a time."""
    trained: int
    """Trained numbers."""
    states: int
    """Numbers that the optimizer keeps for each."""
    checkpointing: bool
    itemsize: int
    """Bytes of an activation."""
    cpu: bool
    """Computed by the functions for a CPU, in float32."""


def forecast(shape: Shape, *, weights: int, largest_weight: int, held: int) -> Forecast:
    """Return what a step of this shape comes to hold; all of it in bytes.

    `held` is what the process holds before it, its weights included. Method: what is kept for
    the backward pass of each block (arXiv 1604.06174), checked against measured peaks.
    `largest_weight` is copied once while it is multiplied with.
    """
    of = _CPU if shape.cpu else _MLX
    scores = shape.tokens * shape.heads * shape.width
    kept = [of.features * shape.tokens * features + of.scores * scores for features in shape.blocks]
    largest = max(kept, default=0)
    at_work = of.working_blocks * largest + of.working_scores * scores
    if shape.checkpointing:
        kept = [shape.tokens * shape.hidden * len(kept), largest]
    logits = of.logits * shape.logits
    trained = shape.trained * 4
    # Weights, the best ones, states, a sum of gradients; then new ones of each, and no activation.
    step, update = trained * (4 + shape.states), trained * (6 + 2 * shape.states)
    activations = _SPARE * (sum(kept) + at_work) * shape.itemsize + largest_weight
    beside = activations + logits * 4
    return Forecast(
        weights=weights,
        program=max(held - weights, 0),
        trained=max(step, update - beside),
        activations=activations,
        logits=logits * 4,
    )
