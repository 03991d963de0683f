"""One configuration from its plan to the record of what came out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline import environment, keys, retreats, summary
from pipeline.errors import PipelineError
from pipeline.latest import update_latest
from pipeline.parent import Parent
from pipeline.record import RunRecord
from pipeline.runner import Run
from pipeline.schema import Config
from pipeline.signals import watched
from pipeline.store import Store
from pipeline.terminal import live_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to."""

    directory: Path
    status: str
    metrics: dict[str, float]


@contextmanager
def opened(
    config: Config,
    *,
    directory: Path,
    command: list[str],
    parent: Parent | None = None,
    study: str | None = None,
    trial: int | None = None,
) -> Iterator[Run]:
    """Plan the configuration, begin its record in `directory`, and end its worker afterwards."""
    plan = keys.make(config, parent)
    store = Store(Path(config.outputs) / "store")
    plan = retreats.follow(plan, config, store)
    keys.check_upstream(plan, config, store, parent)
    with ExitStack() as stack:
        record = stack.enter_context(
            RunRecord.start(
                directory,
                config=asdict(config),
                command=command,
                model=plan.model_record(),
                data=[{"path": k, "commit": v} for k, v in plan.data_commits.items()],
                environment=environment.describe(config.model.dtype, config.model.path),
                parent=str(parent.directory) if parent else None,
                study=study,
                trial=trial,
            )
        )
        run = Run(config, plan, record, stack.enter_context(live_line()))
        # The others that mlx.launch started see it, and end.
        stack.callback(run.meeting.close)
        stack.callback(run.close)
        stack.enter_context(watched(run.on_signal))
        try:
            yield run
        except PipelineError:
            run.check_stop()
            raise


def execute(
    config: Config,
    *,
    directory: Path,
    command: list[str],
    parent: Parent | None = None,
    study: str | None = None,
    trial: int | None = None,
) -> Outcome:
    """Run the configuration in `directory`, record it there and say what came out.

    Raises a `PipelineError` for whatever ended the run; its record says so too.
    """
    with opened(
        config, directory=directory, command=command, parent=parent, study=study, trial=trial
    ) as run:
        run.execute()
    record = run.record
    update_latest(directory)
    summary.show(record, figures=config.stages != ("serve",))
    return Outcome(directory=directory, status="succeeded", metrics=record.metrics)
