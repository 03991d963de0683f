"""No request ends the server: each bad one gets an error object, and the next one its answer."""

import json
import socket
from typing import Any

import httpx
import live
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.serving.body import MAX_BODY_BYTES

HELLO = live.user("Hello")


def alive(server: live.Live) -> bool:
    """Tell whether the server says what it said before."""
    said = server.ask("base")["choices"][0]["message"]["content"]
    health = httpx.get(f"{server.url}/health")
    return said == server.hello and health.json() == {"status": "ok"}


def refused(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Return the error of an answer that is an error object."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"messages": []}, 400),  # (a) an empty prompt
        ({"messages": [{"role": "user", "content": ""}]}, 200),
        ({"top_k": 10**6, "temperature": 1}, 400),  # (b)
        ({"xtc_threshold": 0.9, "xtc_probability": 1.0}, 200),  # (c) no such option here
        ({"stop": [123]}, 400),  # (d)
        ({"messages": None, "prompt": ["a", "b"]}, 400),  # (e) a prompt as a list
    ],
)
def test_what_kills_mlx_lm_s_server_does_not_kill_this_one(server, change, status) -> None:
    """The requests after which `mlx_lm.server` 0.32 answers nobody are refused or answered."""
    body = {"model": "base", "messages": HELLO, "temperature": 0, "max_tokens": 2}
    answer = server.post(**body | change)
    assert answer.status_code == status, answer.text
    assert alive(server)


def test_sending_a_cut_answer_back_is_answered(server) -> None:
    """(f) The last answer, cut short, as the newest turn of the next request."""
    cut = server.ask("base", max_tokens=3)["choices"][0]["message"]
    for more in ([cut], [cut, *live.user("Go on")], []):
        answer = server.post(model="base", messages=[*HELLO, *more], max_tokens=2)
        assert answer.status_code == 200, answer.text
    assert alive(server)


def test_no_url_is_fetched(server) -> None:
    """A picture's address in a message is refused, and nobody calls there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.3)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
        part = {"type": "image_url", "image_url": {"url": url}}
        for model in ("base", "org/vision-model"):
            turn = {"role": "user", "content": [{"type": "text", "text": "See"}, part]}
            error = refused(server.post(model=model, messages=[turn]), 400)
            assert error["param"] == "messages.0.content"
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": ["Hello"]}, "messages.0"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": 6145}, "top_k"),
        ({"min_p": 1.1}, "min_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 65}, "max_tokens"),
        ({"max_completion_tokens": 10**30}, "max_completion_tokens"),
        ({"stop": ""}, "stop.0"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": 1}, "stop"),
        ({"seed": 2**63}, "seed"),
        ({"seed": "7"}, "seed"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(server, change, param) -> None:
    """A wrong type, a wrong range and what would be ignored in silence: 400 with the field."""
    body = {"model": "base", "messages": HELLO, "max_tokens": 2} | change
    for stream in (False, True):
        content = json.dumps(body if "stream" in change else body | {"stream": stream})
        error = refused(send(server, content.encode()), 400)
        assert (error["param"], error["type"]) == (param, "invalid_request_error")
        assert error["message"].startswith(param)


def send(server: live.Live, content: bytes, kind: str = "application/json") -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", content=content, timeout=60,
                      headers={"content-type": kind})  # fmt: skip


def test_unknown_model_is_not_found(server) -> None:
    """404 with the names there are, whatever the name looks like."""
    for name in ("gpt-4o", "", "../tuned", "org/repository", "/etc", "\udcff"):
        body = json.dumps({"model": name, "messages": HELLO}).encode()
        error = refused(send(server, body), 404)
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        assert "'base', 'tuned'" in error["message"]


def test_prompt_longer_than_the_context_names_both_counts(server) -> None:
    """400 with the tokens of the prompt and of the context; one token less is answered."""
    error = refused(server.post(model="base", messages=live.user("1" * 1100)), 400)
    assert error["code"] == "context_length_exceeded"
    assert "1024 tokens" in error["message"]
    short = server.ask(words="1", max_tokens=1)["usage"]["prompt_tokens"]
    assert str(short + 1099) in error["message"]
    # Digits are one token each, so 1 + missing digits fill the context up to the last token.
    words = "1" * (1024 - short)
    answer = server.post(model="base", messages=live.user(words), max_tokens=5, temperature=0)
    assert answer.json()["usage"] == {
        "prompt_tokens": 1023, "completion_tokens": 1, "total_tokens": 1024
    }  # fmt: skip
    refused(server.post(model="base", messages=live.user(words + "1")), 400)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{bad", "application/json"),
        (b"", "application/json"),
        (b"[]", "application/json"),
        (b"null", "application/json"),
        (b'"text"', "application/json"),
        (b"\xff\xfe\xff", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b'{"model": "base"', "application/json"),
        (b'{"model":"base","messages":[{"role":"user","content":"Hello"}]}', "text/plain"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(server, content, kind) -> None:
    """Not JSON, not an object, not sent as JSON (which another site's form could send): 400."""
    refused(send(server, content, kind), 400)
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_body_over_the_limit_is_counted_not_believed(server) -> None:
    """413 with and without a Content-Length, and no more than the limit is ever kept."""
    whole = b" " * (MAX_BODY_BYTES + 1)
    error = refused(send(server, whole), 413)
    assert error["code"] == "body_too_large"

    def pieces():
        for start in range(0, len(whole), 2**16):
            yield whole[start : start + 2**16]

    refused(send(server, pieces()), 413)
    assert alive(server)


def test_unknown_paths_and_methods_are_error_objects(server) -> None:
    """404 and 405 look like every other error."""
    refused(httpx.get(f"{server.url}/v2/nothing"), 404)
    answer = httpx.get(f"{server.url}/v1/chat/completions")
    refused(answer, 405)
    assert answer.headers["allow"] == "POST"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
FIELDS = ("messages", "temperature", "top_p", "top_k", "min_p", "stop", "seed", "stream",
          "stream_options", "n", "tools", "response_format", "user")  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=4))
def test_whatever_stands_in_a_field_is_answered_or_refused(server, change) -> None:
    """Any JSON in any field: an answer or an error object of the 400s, never a failure."""
    body = {"model": "tuned", "messages": HELLO} | change | {"max_tokens": 1}
    answer = send(server, json.dumps(body).encode())
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        refused(answer, 400)


def test_the_server_is_as_it_was(server) -> None:
    """After all of the above."""
    assert alive(server)
