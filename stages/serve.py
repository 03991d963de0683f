"""serve: base and tuned answer over HTTP, in OpenAI's format, until the run is stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from stages.artifacts import Adapter, BaseModel, Merged, Report, Reporter
from stages.errors import SettingError, StopRequested
from stages.lora.description import trained_template
from stages.serving.app import create_app
from stages.serving.engine_thread import EngineThread
from stages.serving.loading import load_engine
from stages.serving.offer import open_offer
from stages.serving.server import HttpServer, listen, url
from stages.settings import Serve

BASE = "base"
"""Name of the untuned model."""

_POLL_SECONDS = 0.1
_DRAIN_SECONDS = 10.0

# Waiting answers per running one: beyond, a client is better told at once to come back.
_WAITING_PER_SLOT = 4


def serve(
    serve: Serve,
    *,
    model: BaseModel,
    adapter: Adapter | None = None,
    merged: Merged | None = None,
    name: str = "tuned",
    report: Reporter,
    out: Path,
) -> Report:
    """Serve until a stop is requested, then finish what is running, within 10 seconds.

    Given an adapter, one resident base answers as `base` and, with the adapter, as `name`; given
    merged weights, they answer as `name`. Each is asked in the chat template it was trained with,
    the base in its own. Returns counts of what was answered. Raises SettingError where the address
    cannot be had.
    """
    if name == BASE:
        raise SettingError("name", f"found {BASE!r}, which names the untuned model when serving",
                           "set another name")  # fmt: skip
    adapters: Mapping[str, Path] = {name: adapter.directory} if adapter else {}
    if merged is not None:
        model = BaseModel(directory=merged.directory, dtype=model.dtype)
    template = trained_template(adapter.directory) if adapter else None
    names = {BASE: None, name: name} if adapter else {name: None}
    with listen(serve.host, serve.port) as listener:
        offer = open_offer(model.directory, names, serve.max_tokens, template)
        hello = [{"role": "user", "content": "Hello"}]
        prompt = offer.encoders[name](hello, str(model.directory))
        engine = EngineThread(
            partial(load_engine, model, adapters, serve.batch_size, prompt),
            report.log,
            slots=serve.batch_size,
            waiting_limit=_WAITING_PER_SLOT * serve.batch_size,
        )
        engine.start()
        while not engine.wait_until_ready(_POLL_SECONDS):
            if report.stop_requested():
                raise StopRequested
        http = HttpServer(create_app(engine, offer), listener)
        http.start()
        _announce(report, url(listener), list(names))
        try:
            _watch(engine, http, report)
        finally:
            engine.stop(_DRAIN_SECONDS)
            http.stop()
    if engine.failure is not None:
        raise engine.failure
    return Report(directory=out, metrics=engine.metrics())


def _announce(report: Reporter, address: str, names: list[str]) -> None:
    turns = [{"role": "user", "content": "Hello"}]
    request = {"model": names[-1], "messages": turns, "temperature": 0}
    report.log(f"serving {', '.join(names)} at {address}/v1 (Ctrl-C stops it)")
    report.log(
        f"curl {address}/v1/chat/completions -H 'Content-Type: application/json' "
        f"-d '{json.dumps(request)}'"
    )


def _watch(engine: EngineThread, http: HttpServer, report: Reporter) -> None:
    while engine.failure is None and not report.stop_requested():
        if not http.alive:
            raise RuntimeError("the HTTP thread ended by itself")
        time.sleep(_POLL_SECONDS)
