"""The picture shows what the metrics say, looks the same each time, and never fails a run."""

from __future__ import annotations

import math
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.training.canvas import log_ticks, round_ticks
from stages.training.curve import LOSSES, RATES, TRAIN, VALID, Curve, draw, save_curve, smoothed


def row(loss: float, rate: float = 1e-4, tokens: int = 50) -> dict[str, float]:
    return {"train.loss": loss, "train.learning_rate": rate, "train.step_tokens": tokens}


def course(steps: int, high: float = 8.0, low: float = 2.0) -> Curve:
    curve = Curve()
    curve.add(0, {"valid.loss": high})
    for step in range(1, steps + 1):
        loss = high + (low - high) * step / steps
        curve.add(step, row(loss, 1e-4 * step))
    curve.add(steps, {"valid.loss": low})
    return curve


def opened(content: bytes) -> Image.Image:
    return Image.open(BytesIO(content)).convert("RGB")


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour.removeprefix("#")))


def test_equal_losses_give_equal_bytes_without_a_date() -> None:
    """Drawn twice it is the same file, its chunks are pixels alone; another loss is seen."""
    first = draw(course(40))
    assert first == draw(course(40))
    assert first != draw(course(40, low=1.9))
    assert opened(first).size == (1600, 1000)
    assert not any(name in first for name in (b"tEXt", b"iTXt", b"tIME", b"eXIf"))


def test_losses_lie_where_the_axes_say() -> None:
    """From 2.5 down to 2.0 (linear): validation points at both ends, the line in the middle. The
    range of the axis is 6 % wider than that of the losses on either side."""
    image = opened(draw(course(100, high=2.5, low=2.0)))
    left, top, right, bottom = (2 * edge for edge in LOSSES)

    def height(share: float) -> float:
        return bottom - (share + 0.06) / 1.12 * (bottom - top)

    assert image.getpixel((left + 4, round(height(1)))) == rgb(VALID)
    assert image.getpixel((right - 4, round(height(0)))) == rgb(VALID)
    column = [image.getpixel(((left + right) // 2, y)) for y in range(top, bottom)]
    found = [top + y for y, pixel in enumerate(column) if pixel in (rgb(TRAIN), rgb(VALID))]
    assert sum(found) / len(found) == pytest.approx(height(0.5), abs=3)


def test_losses_of_many_sizes_take_a_log_scale() -> None:
    """From 8 to 1/8 in equal factors the course is a straight line, so that 1 is half way."""
    curve = Curve()
    for step in range(65):
        curve.add(step + 1, row(8 / 2 ** (6 * step / 64)))
    image = opened(draw(curve))
    left, top, right, bottom = (2 * edge for edge in LOSSES)
    column = [image.getpixel((left + (right - left) * 33 // 65, y)) for y in range(top, bottom)]
    found = [y for y, pixel in enumerate(column) if pixel == rgb(TRAIN)]
    assert sum(found) / len(found) == pytest.approx((bottom - top) / 2, abs=4)


@pytest.mark.parametrize("valid", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3000])
@pytest.mark.parametrize(("high", "low"), [(0.0, 0.0), (5.0, 5.0), (1e4, 1e-6)])
def test_every_course_can_be_drawn(steps: int, high: float, low: float, valid: bool) -> None:
    """One step or thousands, without validation, with losses all equal, all 0 or far apart."""
    curve = course(steps, high, low)
    if not valid:
        curve.valid.clear()
    assert opened(draw(curve)).getbbox() is not None


def test_smoothed_line_is_the_mean_of_the_tokens_around() -> None:
    """Of 200 steps four on either side count by their tokens, fewer at the ends; steps stay."""
    points = [(float(step), 2 + math.sin(step)) for step in range(200)]
    weights = [float(1 + 7 * step % 50) for step in range(200)]
    found = smoothed(points, weights)
    assert [step for step, _ in found] == [step for step, _ in points]
    for place in (0, 2, 100, 199):
        near = range(max(place - 4, 0), min(place + 5, 200))
        expected = sum(points[step][1] * weights[step] for step in near)
        expected /= sum(weights[step] for step in near)
        assert found[place][1] == pytest.approx(expected)


@given(st.floats(0, 1e3), st.floats(1e-3, 1e6))
@settings(max_examples=200, deadline=None)
def test_ticks_are_few_round_and_in_range(low: float, span: float) -> None:
    """Any range has 2 to 7 ticks in equal distances of 1, 2 or 5 times a power of ten."""
    high = low + span
    ticks = round_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-9 <= tick <= high * (1 + 1e-9) for tick in ticks)
    step = (ticks[-1] - ticks[0]) / (len(ticks) - 1)
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-6)
    assert min(abs(mantissa - size) for size in (1, 2, 5)) < 1e-3


@given(st.floats(1e-6, 1e3), st.floats(4, 1e6))
@settings(max_examples=200, deadline=None)
def test_log_ticks_are_few_and_in_range(low: float, ratio: float) -> None:
    """Any range of a factor of 4 or more has 2 to 8 ticks."""
    ticks = log_ticks(low, low * ratio)
    assert 2 <= len(ticks) <= 8
    assert all(low <= tick <= low * ratio for tick in ticks)


def test_picture_is_saved_beside_the_adapter(tmp_path: Path, recorder: Any) -> None:
    """The file is loss.png and nothing is said about it."""
    report = recorder()
    save_curve(tmp_path, course(5), report)
    assert (tmp_path / "loss.png").read_bytes() == draw(course(5))
    assert report.lines == []


def test_failure_is_one_log_line(
    tmp_path: Path, recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a step, without a directory and without Pillow there is no file, and no error."""
    report = recorder()
    save_curve(tmp_path, Curve(), report)
    save_curve(tmp_path / "missing", course(3), report)
    monkeypatch.delitem(sys.modules, "stages.training.canvas")
    monkeypatch.setitem(sys.modules, "PIL", None)
    save_curve(tmp_path, course(3), report)
    assert [line.split(":")[:2] for line in report.lines] == [
        ["no loss.png", " ValueError"],
        ["no loss.png", " FileNotFoundError"],
        ["no loss.png", " ModuleNotFoundError"],
    ]
    assert list(tmp_path.iterdir()) == []


def test_panels_do_not_overlap() -> None:
    """The learning rate has a panel of its own below the losses, on the same steps."""
    assert LOSSES[3] < RATES[1]
    assert (LOSSES[0], LOSSES[2]) == (RATES[0], RATES[2])
