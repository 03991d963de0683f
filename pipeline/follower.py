"""A process that mlx.launch started beside the first: it trains with it, and records nothing.

What the training takes it makes itself or finds in the store, as the first one does. Its run
directory is a temporary one; of the training it keeps nothing.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from pipeline import meeting
from pipeline.execution import opened
from pipeline.keys import Planned
from pipeline.launched import Place
from pipeline.parent import Parent
from pipeline.runner import Run
from pipeline.schema import Config


def follow(config: Config, place: Place, parent: Parent | None) -> None:
    """Train with the first process, if this run trains at all; raises what ended it."""
    if "train" not in config.stages:
        return
    stages = tuple(stage for stage in config.stages if stage in ("prepare", "train"))
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        directory = scratch / "run"
        directory.mkdir()
        alone = replace(config, stages=stages)
        with opened(alone, directory=directory, command=["mlx.launch"], parent=parent) as run:
            for position, planned in enumerate(run.plan.steps):
                if planned.step.name == "train":
                    _train(run, planned, place, scratch)
                else:
                    run.take(position)


def _train(run: Run, planned: Planned, place: Place, scratch: Path) -> None:
    own = run.store.checkpoints("train", planned.key)
    received = scratch / "checkpoints"
    with meeting.attend(
        place, planned.ingredients or {}, own, received, run.check_stop
    ) as checkpoints:
        if checkpoints is not None:
            given = {"checkpoints": str(checkpoints.resolve())}
            run.work(planned, scratch / "out", given)
