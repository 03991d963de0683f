"""A worker with a trained model in it, which answers until it is closed."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline.errors import Interrupted, PipelineError
from pipeline.process import Event, WorkerProcess
from pipeline.prompts import Prompt
from pipeline.trained import Trained

FUNCTION = "stages.generation.answer.answer"


class Speaker:
    """Made by `open_speaker`; the model is loaded with the first answer and stays."""

    def __init__(
        self, worker: WorkerProcess, trained: Trained, sampling: Mapping[str, Any]
    ) -> None:
        self._worker = worker
        self._trained = trained
        self._sampling = sampling
        self._stop_signal: int | None = None

    def answer(self, prompts: list[Prompt], on_text: Callable[[Event], None]) -> dict[str, float]:
        """Answer the prompts and return how much was generated, and how fast.

        `on_text` gets `text` events: of one prompt the pieces, of several the whole answers, each
        with its `index`. Ctrl-C ends the answer with `Interrupted`, and the next may follow;
        twice, it ends the worker.
        """
        self._stop_signal = None
        self._worker.go_on()
        request = {
            "stage": "generate",
            "function": FUNCTION,
            "tensors": True,
            "settings": [("prompts", prompts), ("sampling", dict(self._sampling)),
                         ("chat", self._trained.chat)],
            "handed_over": self._trained.handed_over,
            "extra": {},
        }  # fmt: skip
        with self._signals():
            try:
                done = self._worker.run(request, on_text)
            except PipelineError:
                if self._stop_signal is not None:
                    raise Interrupted(self._stop_signal) from None
                raise
        metrics: dict[str, float] = done["metrics"]
        return metrics

    @contextmanager
    def _signals(self) -> Iterator[None]:
        watched = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._on_signal) for number in watched}
        try:
            yield
        finally:
            for number, old in before.items():
                signal.signal(number, old)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._stop_signal is None:
            self._stop_signal = number
            self._worker.request_stop()
        else:
            self._worker.kill()


@contextmanager
def open_speaker(trained: Trained, sampling: Mapping[str, Any]) -> Iterator[Speaker]:
    """Start the worker; `sampling` holds fields of `stages.generation.sampling.Sampling`."""
    with tempfile.TemporaryDirectory() as folder:
        worker = WorkerProcess(Path(folder) / "worker.log", trained.model_path)
        try:
            yield Speaker(worker, trained, sampling)
        finally:
            worker.close()
