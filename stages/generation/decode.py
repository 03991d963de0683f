"""Many answers at once, for whoever needs them whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from stages.artifacts import Reporter
from stages.errors import StopRequested
from stages.generation.engine import Engine, FinishReason, Job


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished answer."""

    index: int
    """Its place among the jobs."""
    text: str
    finish_reason: FinishReason
    completion_tokens: int


def complete(
    engine: Engine,
    jobs: Sequence[Job],
    report: Reporter,
    on_text: Callable[[str], None] | None = None,
) -> Iterator[Completion]:
    """Generate all answers and yield each as it ends; `on_text` hears every piece as it comes.

    Jobs start in order of their prompts' length, so that those read together need little padding.
    Raises what `Engine.insert` raises before anything is generated, and StopRequested between two
    steps where the run was asked to stop; the engine is empty then.
    """
    order = sorted(range(len(jobs)), key=lambda index: len(jobs[index].prompt))
    try:
        places = {engine.insert(jobs[index]): index for index in order}
        texts = dict.fromkeys(places, "")
        while len(engine):
            if report.stop_requested():
                raise StopRequested
            for event in engine.step():
                texts[event.uid] += event.text
                if on_text and event.text:
                    on_text(event.text)
                if event.finish_reason is not None:
                    yield Completion(places[event.uid], texts.pop(event.uid), event.finish_reason,
                                     event.completion_tokens)  # fmt: skip
    finally:
        engine.reset()
