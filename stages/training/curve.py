"""The course of a training run as a picture: losses above, the learning rate below."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from stages.artifacts import Reporter

if TYPE_CHECKING:
    from stages.training.canvas import Canvas, Panel

FILE = "loss.png"
SIZE = (800, 500)
LOSSES, RATES = (76, 54, 780, 372), (76, 392, 780, 446)
"""Left, top, right, bottom of the two panels."""
# Okabe and Ito, "Color Universal Design": told apart by colour-blind people too.
TRAIN, TRAIN_PALE, VALID, RATE = "#0072B2", "#9CCBE6", "#D55E00", "#00664A"

_LOG_RATIO = 4
"""From this ratio of the highest to the lowest loss on, their axis is logarithmic."""
_SMOOTHED_PART = 25
"""Each point of the smoothed line is the mean of the tokens of this part of the run, 1 / 25, or
of three steps."""
_LEGEND = (("training, each step", TRAIN_PALE, 1.5), ("smoothed", TRAIN, 3.0))
_LEGEND_Y, _SAMPLE, _GAP = 30, 22, 8
_DOT = 4.5

Point = tuple[float, float]


def _numbers() -> array[float]:
    return array("d")


@dataclass(slots=True)
class Curve:
    """What the picture shows, taken from rows of metrics."""

    steps: array[float] = field(default_factory=_numbers)
    losses: array[float] = field(default_factory=_numbers)
    tokens: array[float] = field(default_factory=_numbers)
    """Supervised ones of each step."""
    rates: array[float] = field(default_factory=_numbers)
    valid: list[Point] = field(default_factory=list)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Take over one row of metrics."""
        if "valid.loss" in values:
            self.valid.append((step, values["valid.loss"]))
        if "train.loss" in values:
            self.steps.append(step)
            self.losses.append(values["train.loss"])
            self.tokens.append(values["train.step_tokens"])
            self.rates.append(values["train.learning_rate"])


def save_curve(directory: Path, curve: Curve, report: Reporter) -> None:
    """Write `loss.png`, equal bytes for equal losses; where this fails, one log line says so."""
    path = directory / FILE
    try:
        path.write_bytes(draw(curve))
    except Exception as error:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        report.log(f"no {FILE}: {type(error).__name__}: {error}")


def draw(curve: Curve) -> bytes:
    """Return the picture as PNG. Raises ValueError without a step."""
    # Only now: a run that trains has no use for Pillow, and needs the memory.
    from stages.training.canvas import Canvas

    if not curve.steps:
        raise ValueError("no step to draw")
    canvas = Canvas(SIZE)
    train = list(zip(curve.steps, curve.losses, strict=True))
    smooth, span = smoothed(train, curve.tokens), (0.0, curve.steps[-1])
    ys, log = _loss_axis(curve, smooth)
    losses = canvas.panel(LOSSES, span, ys, log=log)
    rates = canvas.panel(RATES, span, (0.0, 1.15 * max(curve.rates) or 1.0))
    losses.grid(losses.x_ticks(), losses.y_ticks())
    losses.line(train, TRAIN_PALE, 1)
    losses.line(smooth, TRAIN, 2.5)
    losses.line(curve.valid, VALID, 1.5)
    for point in curve.valid:
        canvas.dot(losses.place(point), VALID, _DOT)
    losses.frame()
    rates.grid(losses.x_ticks(), [])
    rates.line(list(zip(curve.steps, curve.rates, strict=True)), RATE, 2)
    rates.frame()
    _draw_legend(canvas, curve)
    canvas.flatten()
    _write(canvas, losses, rates, curve)
    found = BytesIO()
    canvas.image.save(found, "PNG", optimize=True)
    return found.getvalue()


def smoothed(points: Sequence[Point], weights: Sequence[float]) -> list[Point]:
    """Replace each value by the weighted mean of those around it, of fewer at the two ends."""
    reach = max(len(points) // (2 * _SMOOTHED_PART), 1)
    # A step without a token has a loss, 0, but nothing to say.
    sums = [0.0, *accumulate(y * weight for (_, y), weight in zip(points, weights, strict=True))]
    total = [0.0, *accumulate(weights)]
    found = []
    for place, (step, _) in enumerate(points):
        first, last = max(place - reach, 0), min(place + reach + 1, len(points))
        found.append((step, (sums[last] - sums[first]) / max(total[last] - total[first], 1)))
    return found


def _loss_axis(curve: Curve, smooth: Sequence[Point]) -> tuple[Point, bool]:
    """Return the range of all losses with some room, and whether its axis is logarithmic."""
    course = [loss for _, loss in (*smooth, *curve.valid)]
    low, high = min(*course, *curve.losses), max(*course, *curve.losses)
    if low > 0 and max(course) / min(course) > _LOG_RATIO:
        return (low / 1.08, high * 1.08), True
    room = 0.06 * (high - low) or 0.1 * high or 1.0
    return (max(low - room, 0.0), high + room), False


def _legend(canvas: Canvas, curve: Curve) -> list[tuple[float, str, str, float]]:
    """Return left edge, name, colour and width of line of every kind of value there is."""
    left, found = float(LOSSES[0]), []
    for name, colour, width in (*_LEGEND, *([("validation", VALID, 1.5)] if curve.valid else [])):
        found.append((left, name, colour, width))
        left += _SAMPLE + _GAP + canvas.width_of(name) + 2.5 * _GAP
    return found


def _draw_legend(canvas: Canvas, curve: Curve) -> None:
    for left, _, colour, width in _legend(canvas, curve):
        canvas.line([(left, _LEGEND_Y), (left + _SAMPLE, _LEGEND_Y)], colour, width)
        if colour == VALID:
            canvas.dot((left + _SAMPLE / 2, _LEGEND_Y), VALID, _DOT)


def _write(canvas: Canvas, losses: Panel, rates: Panel, curve: Curve) -> None:
    left, top, right, bottom = LOSSES
    for start, name, _, _ in _legend(canvas, curve):
        canvas.text((start + _SAMPLE + _GAP, _LEGEND_Y), name, "lm")
    if curve.valid:
        step, loss = min(curve.valid[1:] or curve.valid, key=lambda point: point[1])
        canvas.text(
            (right, _LEGEND_Y), f"lowest validation loss {loss:.4f}, step {step:,.0f}", "rm", VALID
        )
    for value in losses.y_ticks():
        canvas.text((left - _GAP, losses.place((0, value))[1]), f"{value:g}", "rm")
    for value in losses.x_ticks():
        canvas.text((rates.place((value, 0))[0], RATES[3] + 6), f"{value:,.0f}", "ma")
    peak = max(curve.rates)
    canvas.text((left - _GAP, rates.place((0, peak))[1]), f"{peak:.1e}".replace("e-0", "e-"), "rm")
    canvas.text((left - _GAP, RATES[3]), "0", "rm")
    canvas.text((right - _GAP, RATES[1] + 6), "learning rate", "ra", RATE)
    canvas.text(((left + right) / 2, SIZE[1] - 8), "optimizer step", "ms")
    scale = ", log scale" if losses.log else ""
    canvas.upright((10, (top + bottom) / 2), f"loss (nats per supervised token{scale})")
