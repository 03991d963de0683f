"""Metrics of a training run for Trackio, the experiment tracker; a package of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from stages.errors import EnvironmentFailure

KEY = "train.trackio"


def require_trackio() -> None:
    """Raise EnvironmentFailure where the package is not installed."""
    if find_spec("trackio") is None:
        mend = "pip install trackio, or set train.trackio=null"
        raise EnvironmentFailure(KEY, "the package trackio is not installed", mend)


def open_sink(project: str) -> Callable[[Mapping[str, Any]], None]:
    """Return a callback that makes the events of one training a run of `project`.

    Its configuration is what the event `start` tells. Trackio's own variables say where to: without
    any, to the user's cache, where `trackio show` finds it.
    """

    def tell(event: Mapping[str, Any]) -> None:
        # Only now: it takes a second, for which the training need not wait.
        trackio = import_module("trackio")
        # Trackio groups by what stands before a slash.
        values = {name.replace(".", "/", 1): value for name, value in event.items()}
        kind, step = values.pop("event"), values.pop("step", None)
        if kind == "start":
            trackio.init(project=project, config=values, embed=False)
        elif kind == "end":
            trackio.finish()
        elif kind != "resumed":
            trackio.log(values, step=step)

    return tell
