"""Lines, dots and text on a white picture, smooth at any size, and panels with two axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in points of the picture."""

INK, GRID, FRAME = "#333333", "#E4E4E4", "#8C8C8C"
_PIXELS = 2
"""To a point, in each direction, for screens that show as many."""
_SAMPLES = 2
"""To a pixel, in each direction, while lines are drawn: Pillow's have steps."""
_FONT_POINTS = 13
_MOST_TICKS = 7


class Canvas:
    """A picture of so many points: first all lines are drawn, then, after `flatten`, all text."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.image = Image.new("RGB", _scaled(size, _PIXELS * _SAMPLES), "white")
        self._size = size
        self._pen = ImageDraw.Draw(self.image)
        self._font = ImageFont.load_default(_FONT_POINTS * _PIXELS)

    def panel(self, box: Box, xs: Point, ys: Point, *, log: bool = False) -> Panel:
        """Return a panel of this picture; `xs` and `ys` are the ranges of its axes."""
        return Panel(self, box, xs, ys, log)

    def line(self, places: Sequence[Point], colour: str, width: float) -> None:
        """Draw a line through places of the picture."""
        scale = _PIXELS * _SAMPLES
        self._pen.line([(x * scale, y * scale) for x, y in places], colour, round(width * scale),
                       joint="curve")  # fmt: skip

    def dot(self, place: Point, colour: str, radius: float) -> None:
        """Draw a dot with a white edge."""
        scale = _PIXELS * _SAMPLES
        x, y, wide = place[0] * scale, place[1] * scale, radius * scale
        self._pen.ellipse((x - wide, y - wide, x + wide, y + wide), colour, "white", scale)

    def flatten(self) -> None:
        """Bring the picture to its own size, which makes what was drawn smooth."""
        self.image = self.image.resize(_scaled(self._size, _PIXELS), Image.Resampling.BOX)
        self._pen = ImageDraw.Draw(self.image)

    def width_of(self, text: str) -> float:
        """Return how wide `text` will be, in points."""
        return self._font.getlength(text) / _PIXELS

    def text(self, place: Point, text: str, anchor: str, colour: str = INK) -> None:
        """Write `text` at `place`; `anchor` says what of it lies there, as Pillow has it."""
        spot = (place[0] * _PIXELS, place[1] * _PIXELS)
        self._pen.text(spot, text, colour, self._font, anchor)

    def upright(self, place: Point, text: str) -> None:
        """Write `text` from below to above; the middle of its left edge lies at `place`."""
        width, height = (math.ceil(edge) for edge in self._font.getbbox(text, anchor="la")[2:])
        label = Image.new("RGB", (width, height), "white")
        ImageDraw.Draw(label).text((0, 0), text, INK, self._font, "la")
        left, middle = (round(part * _PIXELS) for part in place)
        self.image.paste(label.transpose(Image.Transpose.ROTATE_90), (left, middle - width // 2))


@dataclass(frozen=True, slots=True)
class Panel:
    """A box of the picture with an axis along its lower and its left side."""

    canvas: Canvas
    box: Box
    xs: Point
    ys: Point
    log: bool
    """The vertical axis is logarithmic."""

    def place(self, point: Point) -> Point:
        """Return where on the picture a pair of values lies."""
        left, top, right, bottom = self.box
        across = (point[0] - self.xs[0]) / (self.xs[1] - self.xs[0])
        low, high, value = (math.log(y) if self.log else y for y in (*self.ys, point[1]))
        up = (value - low) / (high - low)
        return left + across * (right - left), bottom - up * (bottom - top)

    def line(self, points: Sequence[Point], colour: str, width: float) -> None:
        """Draw a line through pairs of values; one alone is a dot."""
        places = [self.place(point) for point in points]
        if len(places) == 1:
            self.canvas.dot(places[0], colour, width + 1)
        elif places:
            self.canvas.line(places, colour, width)

    def grid(self, across: Sequence[float], upwards: Sequence[float]) -> None:
        """Draw pale lines at values of the horizontal and of the vertical axis."""
        left, top, right, bottom = self.box
        for value in across:
            x = self.place((value, self.ys[1]))[0]
            self.canvas.line([(x, top), (x, bottom)], GRID, 1)
        for value in upwards:
            y = self.place((self.xs[0], value))[1]
            self.canvas.line([(left, y), (right, y)], GRID, 1)

    def frame(self) -> None:
        """Draw the two axes."""
        left, top, right, bottom = self.box
        self.canvas.line([(left, top), (left, bottom), (right, bottom)], FRAME, 1)

    def x_ticks(self) -> list[float]:
        """Return round whole values along the horizontal axis."""
        return [tick for tick in round_ticks(*self.xs) if tick == int(tick)]

    def y_ticks(self) -> list[float]:
        """Return round values along the vertical axis."""
        return log_ticks(*self.ys) if self.log else round_ticks(*self.ys)


def round_ticks(low: float, high: float) -> list[float]:
    """Return the multiples of 1, 2 or 5 times a power of ten in a range, 7 at most."""
    power = 10.0 ** math.floor(math.log10((high - low) / _MOST_TICKS))
    step = next(
        size * power
        for size in (1, 2, 5, 10)
        if math.floor(high / (size * power)) - math.ceil(low / (size * power)) < _MOST_TICKS
    )
    first, last = math.ceil(low / step), math.floor(high / step)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return round values of a range that spans several multiples, evenly on a log scale."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for sizes in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{size * 10.0**power:.12g}") for power in powers for size in sizes]
        found = [tick for tick in ticks if low <= tick <= high]
        if len(found) <= _MOST_TICKS + 1:
            break
    return found


def _scaled(size: tuple[int, int], scale: int) -> tuple[int, int]:
    return size[0] * scale, size[1] * scale
