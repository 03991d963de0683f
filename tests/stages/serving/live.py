"""A real server on loopback, on a model of random weights and an adapter that changes answers."""

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import mlx.core as mx

from stages.artifacts import Adapter, BaseModel, Merged, Report
from stages.lora.bank import attach, initial
from stages.lora.files import save_adapter
from stages.lora.layers import AdapterShape
from stages.lora.targets import find_targets
from stages.models.loading import load_model
from stages.serve import serve
from stages.settings import Serve


class Desk:
    """A reporter that remembers lines and asks to stop when told to."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.said = threading.Event()
        self.stop = threading.Event()

    def log(self, message: str) -> None:
        self.lines.append(message)
        if message.startswith("curl "):
            self.said.set()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        raise AssertionError("serving has no steps")

    def progress(self, done: int, total: int, fields: Mapping[str, float]) -> None:
        raise AssertionError("serving has no end to move towards")

    def stop_requested(self) -> bool:
        return self.stop.is_set()


class Live:
    """The verb, running on a thread."""

    def __init__(self, arguments: dict[str, Any], settings: Serve) -> None:
        self.desk = Desk()
        self.report: Report | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(settings, arguments))
        self._thread.start()
        while not self.desk.said.wait(0.05):
            if self.error is not None:
                raise self.error
        found = re.search(r"http://\S+(?=/v1 )", self.desk.lines[0])
        assert found
        self.url = found[0]

    def _run(self, settings: Serve, arguments: dict[str, Any]) -> None:
        try:
            self.report = serve(settings, report=self.desk, **arguments)
        except BaseException as error:
            self.error = error

    @cached_property
    def hello(self) -> str:
        """What the base said when it was asked for the first time."""
        return str(self.ask()["choices"][0]["message"]["content"])

    def ended(self) -> Report:
        """Ask to stop, wait, and return what the verb returned."""
        self.desk.stop.set()
        self._thread.join()
        if self.error is not None:
            raise self.error
        assert self.report is not None
        return self.report

    def post(self, **body: Any) -> httpx.Response:
        """Send one chat request."""
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=60)

    def ask(self, model: str = "base", words: str = "Hello", **more: Any) -> dict[str, Any]:
        """Return the answer to one user turn, the likeliest unless told otherwise."""
        body = {"max_tokens": 8, "temperature": 0, **more}
        answer = self.post(model=model, messages=user(words), **body)
        assert answer.status_code == 200, answer.text
        return answer.json()


def user(words: str) -> list[dict[str, str]]:
    """Return a conversation of one turn."""
    return [{"role": "user", "content": words}]


def settings(**given: Any) -> Serve:
    """Return settings with a free port."""
    values: dict[str, Any] = {
        "stage": "stages.serve.serve", "host": "127.0.0.1", "port": 0, "weights": "adapter",
        "batch_size": 8, "max_tokens": 512,
    }  # fmt: skip
    return Serve(**values | given)


def make_adapter(model: BaseModel, directory: Path) -> Adapter:
    """Write an adapter of random weights, large enough to change every answer."""
    directory.mkdir()
    module = load_model(model)
    targets = find_targets(module, ["*"], None)
    shape = AdapterShape(4, 2.0)
    weights = initial(attach(module, targets, [shape]).layers, 4, seed=0)
    for number, matrices in enumerate(weights.values()):
        key = mx.random.key(number)
        matrices["lora_b"] = 0.1 * mx.random.normal(matrices["lora_b"].shape, key=key)
    save_adapter(directory, weights, shape, targets, {})
    return Adapter(directory=directory)


@contextmanager
def running(
    model: BaseModel,
    out: Path,
    *,
    adapter: Adapter | None = None,
    merged: Merged | None = None,
    name: str = "tuned",
    **given: Any,
) -> Iterator[Live]:
    """Serve for a while."""
    arguments = {"model": model, "adapter": adapter, "merged": merged, "name": name, "out": out}
    server = Live(arguments, settings(**given))
    try:
        yield server
    finally:
        server.ended()
