"""The thread that owns MLX outlives what goes wrong in it, or says that it is dead."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import live
import openai
import pytest

from stages.generation.engine import Engine
from stages.serving.app import create_app
from stages.serving.engine_thread import EngineThread
from stages.serving.offer import open_offer
from stages.serving.server import HttpServer, listen, url

HELLO = live.user("Hello")
LONG = {"model": "base", "messages": HELLO, "temperature": 0, "max_tokens": 500}


@pytest.fixture
def narrow(served_model, served_adapter, tmp_path) -> Iterator[live.Live]:
    """A server that answers one request at a time; four more may wait."""
    with live.running(served_model, tmp_path, adapter=served_adapter, batch_size=1) as running:
        yield running


def open_stream(server: live.Live, client: httpx.Client, **more: Any) -> httpx.Response:
    """Send a streamed request and return once its headers are there."""
    body = LONG | {"stream": True} | more
    request = client.build_request("POST", f"{server.url}/v1/chat/completions", json=body)
    return client.send(request, stream=True)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_queue_is_bounded_and_what_left_makes_room(narrow) -> None:
    """The sixth request is told to come back; streams that close give back their places, running
    or waiting."""
    with httpx.Client(timeout=60) as client:
        streams = [open_stream(narrow, client) for _ in range(5)]
        refused = narrow.post(**LONG)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 0
        assert refused.json()["error"]["code"] == "queue_full"
        with (
            openai.OpenAI(base_url=f"{narrow.url}/v1", api_key="-", max_retries=0) as official,
            pytest.raises(openai.RateLimitError),
        ):
            official.chat.completions.create(**LONG)
        for stream in streams:
            stream.close()
        until(lambda: narrow.post(**LONG | {"max_tokens": 1}).status_code == 200)
    metrics = narrow.ended().metrics
    # The answers are far longer than what was read of them: those that had started were dropped.
    assert metrics["serve.requests"] == 1
    assert metrics["serve.cancelled"] >= 1
    assert metrics["serve.completion_tokens"] == 1


def test_a_client_that_waits_for_a_whole_answer_may_leave_too(narrow) -> None:
    """Giving up on an answer that is not streamed ends its generation."""
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{narrow.url}/v1/chat/completions", json=LONG, timeout=0.3)
    assert narrow.ask(max_tokens=1)["usage"]["completion_tokens"] == 1
    metrics = narrow.ended().metrics
    assert (metrics["serve.requests"], metrics["serve.cancelled"]) == (1, 1)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> dict[str, Exception]:
    """What the real engine raises, by method, once each is set."""
    armed: dict[str, Exception] = {}

    def arm(name: str) -> None:
        real = getattr(Engine, name)

        def method(self: Engine, *arguments: Any) -> Any:
            if name in armed:
                raise armed.pop(name)
            return real(self, *arguments)

        monkeypatch.setattr(Engine, name, method)

    for name in ("insert", "step", "cancel", "reset"):
        arm(name)
    return armed


def test_a_failed_insert_is_that_request_s_own(server, faults) -> None:
    """500 for one request; the stream beside it says what it always says."""
    expected = server.ask(max_tokens=40)["choices"][0]["message"]["content"]
    with httpx.Client(timeout=60) as client:
        lines = open_stream(server, client, max_tokens=40).iter_lines()
        begun: list[str] = []
        # Its own insert is over once it has said something.
        while not said("\n\n".join(begun)):
            begun.append(next(lines))
        faults["insert"] = RuntimeError("secret inside")
        failed = server.post(model="base", messages=HELLO)
        text = "\n\n".join([*begun, *lines])
    assert failed.status_code == 500
    assert failed.json()["error"]["type"] == "server_error"
    assert "secret" not in failed.text
    assert said(text) == expected


def said(stream: str) -> str:
    chunks = [json.loads(line[6:]) for line in stream.split("\n\n") if line.startswith("data: {")]
    return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)


@pytest.mark.parametrize("method", ["step", "cancel"])
def test_a_failed_step_ends_its_requests_and_no_others(server, faults, method) -> None:
    """Everyone inside gets an error, a stream its error chunk and `[DONE]`; the next request is
    answered by a rebuilt generator, and the log says why."""
    expected = server.ask()["choices"]
    with httpx.Client(timeout=60) as client:
        if method == "cancel":
            faults["cancel"] = RuntimeError("no such row")
        stream, leaving = (open_stream(server, client, max_tokens=64) for _ in range(2))
        # The second one is inside once its first word is here.
        next(piece for piece in leaving.iter_text() if '"delta":{"content"' in piece)
        if method == "step":
            faults["step"] = RuntimeError("no such row")
        leaving.close()
        text = stream.read().decode()
    *_, error, done, end = text.split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "internal_error"
    assert (done, end) == ("data: [DONE]", "")
    assert text.count("[DONE]") == 1
    assert server.ask()["choices"] == expected
    assert any("no such row" in line for line in server.desk.lines)


def test_an_error_in_a_stream_is_the_client_s_exception(server, faults) -> None:
    """OpenAI's client raises APIError where the stream turns into an error."""
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client,
        client.chat.completions.create(**LONG | {"max_tokens": 64}, stream=True) as stream,
    ):
        next(iter(stream))
        faults["step"] = RuntimeError("no such row")
        with pytest.raises(openai.APIError, match="failed"):
            list(stream)
    assert server.ask()["choices"]


def test_a_dead_engine_is_not_ready_and_ends_the_verb(
    served_model, served_adapter, tmp_path, faults
) -> None:
    """Where not even a reset helps, those inside are told, and serving ends with the reason."""
    server = live.Live(
        {"model": served_model, "adapter": served_adapter, "out": tmp_path}, live.settings()
    )
    faults["step"] = RuntimeError("no such row")
    faults["reset"] = RuntimeError("no memory")
    assert server.post(**LONG).status_code == 500
    with pytest.raises(RuntimeError, match="no memory"):
        server.ended()


def test_health_and_requests_say_503_when_the_engine_is_dead(served_model) -> None:
    """HTTP that still answers says that nobody computes."""

    def load() -> Engine:
        raise RuntimeError("no memory")

    engine = EngineThread(load, print, slots=1, waiting_limit=1)
    engine.start()
    with pytest.raises(RuntimeError, match="no memory"):
        engine.wait_until_ready(60)
    with listen("127.0.0.1", 0) as listener:
        offer = open_offer(served_model.directory, {"base": None}, 8)
        http = HttpServer(create_app(engine, offer), listener)
        http.start()
        health = httpx.get(f"{url(listener)}/health")
        chat = httpx.post(f"{url(listener)}/v1/chat/completions",
                          json={"model": "base", "messages": HELLO})  # fmt: skip
        http.stop()
    for answer in (health, chat):
        assert answer.status_code == 503
        assert answer.json()["error"]["type"] == "server_error"


def test_a_stuck_engine_is_not_ready(server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readiness looks at the heartbeat: a step that never ends makes it fail."""
    entered, leave = threading.Event(), threading.Event()
    real = Engine.step

    def stuck(self: Engine) -> Any:
        entered.set()
        leave.wait()
        return real(self)

    monkeypatch.setattr("stages.serving.engine_thread.STALE_SECONDS", 0.3)
    monkeypatch.setattr(Engine, "step", stuck)
    with httpx.Client(timeout=60) as client:
        stream = open_stream(server, client, max_tokens=2)
        entered.wait()
        until(lambda: client.get(f"{server.url}/health").status_code == 503)
        leave.set()
        stream.read()
        until(lambda: client.get(f"{server.url}/health").status_code == 200)
