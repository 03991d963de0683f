"""A trained run is served by one command, answers OpenAI's client, and stops when told to."""

import json
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cli
import openai
import pytest

SERVE = ("stages=[serve]", "run=latest")


@contextmanager
def serving(finished, *more: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Start to serve the finished run; yield the process and what it said until it was ready."""
    process = cli.start(finished.cwd, *SERVE, *more)
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.rstrip())
        if line.startswith("curl "):
            break
    else:
        raise AssertionError(process.communicate())
    try:
        yield process, lines
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def base_url(lines: list[str]) -> str:
    return next(word for word in lines[-2].split() if word.startswith("http://"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_served_until_stopped(finished, number: signal.Signals) -> None:
    """The official client gets an answer from base and from the run's name; a signal, sent while
    it is answering, ends the server cleanly and the run as a success."""
    ask: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
    with serving(finished, "serve.port=0") as (process, lines):
        with openai.OpenAI(base_url=base_url(lines), api_key="-", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["base", "default"]
            for model in ("base", "default"):
                answer = client.chat.completions.create(model=model, max_tokens=5, **ask)
                assert answer.usage.completion_tokens <= 5
            ask |= {"model": "default", "max_tokens": 100, "stream": True}
            with client.chat.completions.create(**ask) as stream:
                next(iter(stream))
                process.send_signal(number)
                finish = [chunk.choices[0].finish_reason for chunk in stream][-1]
        _, err = process.communicate(timeout=60)
    assert finish in ("stop", "length")
    assert process.returncode == 0, err
    assert err == ""


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_curl_line_works_as_it_is(finished) -> None:
    """What the server prints to try it is pasted into a shell and answers."""
    with serving(finished, "serve.port=0", "serve.max_tokens=4") as (process, lines):
        pasted = subprocess.run(lines[-1], shell=True, capture_output=True, text=True, timeout=60,
                                check=True)  # fmt: skip
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    answer = json.loads(pasted.stdout)
    assert answer["model"] == "default"
    assert answer["usage"]["completion_tokens"] <= 4


def test_a_port_in_use_names_its_key(finished) -> None:
    """Exit code 1 and two lines: serve.port, who has it, what to do."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = cli.run(finished.cwd, *SERVE, f"serve.port={port}")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: serve.port: found {port}")
    assert len(done.stderr.splitlines()) <= 3
