"""The live line says where a stage is, and log lines never break it."""

import io

import pytest

from pipeline.terminal import LiveLine, countdown, describe, duration, fitted, live_line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (9.96, "10.0 s"), (59.4, "59 s"), (65, "1 min 05 s"), (7800, "2 h 10 min")],
)
def test_duration_reads_as_a_person_says_it(seconds: float, text: str) -> None:
    """Seconds below a minute, minutes below an hour, then hours."""
    assert duration(seconds) == text


FIELDS = {
    "epoch": 1.0, "epochs": 2.0, "loss": 2.5, "valid_loss": 2.25, "tokens_per_second": 1234.5,
    "memory_bytes": 1.5 * 2**30,
}  # fmt: skip


def test_live_line_names_progress_figures_and_time_left() -> None:
    """Every field has its part, the order is fixed, and what is not known is left out."""
    line = fitted(describe("train", 10, 40, FIELDS, seconds_left=15), 120)
    assert line == ("train     10/40  epoch 1/2  loss 2.500  valid 2.250  1,234 tok/s  1.5 GiB  "
                    "0:15 left")  # fmt: skip
    assert describe("prepare", 256, 1080, {}, None) == {"stage": "prepare    256/1080"}


def test_validation_in_progress_stands_in_the_place_of_the_loss() -> None:
    """While validation rows are computed the line says how far it is."""
    parts = describe("train", 10, 40, FIELDS | {"validating": 0.25}, None)
    assert parts["loss"] == "validating 25%"


def test_time_left_counts_from_the_first_step_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed at step 500, then 30 seconds of validation: ten steps in 5 seconds more leave 20
    seconds for the last 40. With no step to go by, and at the end, no time is stated."""
    clock = iter([100.0, 130.0, 135.0, 155.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    line = LiveLine(stream)
    for done in (500, 500, 510, 550):
        line.show("train", done, 550, {})
    assert stream.getvalue().split("\r\x1b[2K")[1:] == [
        "train     500/550", "train     500/550", "train     510/550  0:20 left",
        "train     550/550",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (7800, "2:10:00")]
)
def test_countdown_reads_as_a_clock(seconds: float, text: str) -> None:
    """Minutes and seconds, with hours where there are some."""
    assert countdown(seconds) == text


def test_log_text_erases_the_line_and_draws_it_again() -> None:
    """A log line stands on a line of its own, and the live line comes back below it."""
    stream = io.StringIO()
    line = LiveLine(stream)
    line.show("train", 4, 4, {})
    line.write("saved\n")
    erase = "\r\x1b[2K"
    assert stream.getvalue() == f"{erase}train     4/4{erase}saved\n{erase}train     4/4"


def test_cleared_line_leaves_plain_text() -> None:
    """Once cleared, log text passes through unchanged."""
    stream = io.StringIO()
    line = LiveLine(stream)
    line.show("train", 4, 4, {})
    line.clear()
    stream.truncate(0)
    stream.seek(0)
    line.write("done\n")
    assert stream.getvalue() == "done\n"


def test_narrow_terminal_loses_whole_parts() -> None:
    """At 80 columns all is there with narrow gaps; narrower, the least telling parts go first,
    the time left last, and no number is ever cut while another part remains."""
    parts = describe("train", 10, 40, FIELDS, seconds_left=15)
    whole = "train 10/40 epoch 1/2 loss 2.500 valid 2.250 1,234 tok/s 1.5 GiB 0:15 left"
    assert fitted(parts, 77) == whole
    assert fitted(parts, 70) == whole.replace(" 1.5 GiB", "")
    assert fitted(parts, 50) == "train 10/40 loss 2.500 valid 2.250 0:15 left"
    assert fitted(parts, 22) == "train 10/40 0:15 left"
    assert fitted(parts, 12) == "train 10/40"
    assert fitted(parts, 3) == "tra"


def test_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that cannot erase a line is given none that would have to be."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]  # all that is asked of it
    monkeypatch.setattr("sys.stdout", terminal)
    for name, given in (("dumb", False), ("xterm", True)):
        monkeypatch.setenv("TERM", name)
        with live_line() as line:
            assert (line is not None) == given
