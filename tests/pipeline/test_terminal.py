"""The live line says where a stage is, and log lines never break it."""

import io

import pytest

from pipeline.terminal import LiveLine, describe, duration, fitted, live_line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (9.96, "10.0 s"), (59.4, "59 s"), (65, "1 min 05 s"), (7800, "2 h 10 min")],
)
def test_duration_reads_as_a_person_says_it(seconds: float, text: str) -> None:
    """Seconds below a minute, minutes below an hour, then hours."""
    assert duration(seconds) == text


def test_live_line_names_progress_figures_and_time_left() -> None:
    """After 10 of 40 steps in 5 seconds, 15 seconds are left."""
    fields = {"loss": 2.5, "valid_loss": 2.25, "tokens_per_second": 1234.5, "memory_bytes": 2**30}
    line = describe("train", 10, 40, fields, seconds=5)
    assert line == "train     10/40  loss 2.500  valid 2.250  1,234 tok/s  1.00 GiB  15 s left"


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
    """What does not fit is left out from the end, never cut in the middle of a number."""
    line = "train     10/40  loss 2.500  1,234 tok/s  1.00 GiB  15 s left"
    assert fitted(line, 80) == line
    assert fitted(line, 57) == "train     10/40  loss 2.500  1,234 tok/s  1.00 GiB"
    assert fitted(line, 20) == "train     10/40"
    assert fitted(line, 3) == "tra"


def test_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that cannot erase a line is given none that would have to be."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]  # all that is asked of it
    monkeypatch.setattr("sys.stdout", terminal)
    for name, given in (("dumb", False), ("xterm", True)):
        monkeypatch.setenv("TERM", name)
        with live_line() as line:
            assert (line is not None) == given
