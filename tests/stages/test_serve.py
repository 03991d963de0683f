"""The verb: where it listens, what it announces, and how it ends."""

import hashlib
import json
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent / "serving"))

import live
from transformers import AutoTokenizer

from stages.artifacts import Adapter, BaseModel, Merged
from stages.errors import InputError, SettingError, StopRequested
from stages.serve import serve


@pytest.fixture(scope="module")
def model(draw_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return BaseModel(directory=draw_model(tmp_path_factory.mktemp("serve")), dtype="float32")


@pytest.fixture(scope="module")
def adapter(model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    return live.make_adapter(model, tmp_path_factory.mktemp("serve") / "adapter")


def names(server: live.Live) -> list[str]:
    return [entry["id"] for entry in httpx.get(f"{server.url}/v1/models").json()["data"]]


def test_says_where_it_is_and_how_to_ask(model, adapter, tmp_path) -> None:
    """The first line has the address, the second is a command that a shell runs as it is."""
    with live.running(model, tmp_path, adapter=adapter, name="mine") as server:
        first, second = server.desk.lines
        assert f"{server.url}/v1 " in first
        assert "base, mine" in first
        assert second.startswith(f"curl {server.url}/v1/chat/completions ")
        assert '"model": "mine"' in second
        assert names(server) == ["base", "mine"]
        report = server.ended()
    assert report.metrics["serve.requests"] == 0
    assert report.directory == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_merged_weights_answer_under_the_run_s_name_alone(model, tmp_path) -> None:
    """Merged weights are the model: there is no untuned one beside them."""
    with live.running(model, tmp_path, merged=Merged(directory=model.directory)) as server:
        assert names(server) == ["tuned"]
        assert server.ask("tuned")["usage"]["completion_tokens"] == 8
        assert server.post(model="base", messages=live.user("Hello")).status_code == 404


def test_a_stop_lets_running_answers_finish(model, adapter, tmp_path) -> None:
    """A stop turns readiness off and refuses new requests, but the answers under way are whole."""
    body = {"model": "tuned", "messages": live.user("Hello"), "temperature": 0, "stream": True}
    before = set(threading.enumerate())
    with live.running(model, tmp_path, adapter=adapter) as server, httpx.Client(timeout=60) as http:
        request = http.build_request("POST", f"{server.url}/v1/chat/completions",
                                     json=body | {"max_tokens": 300})  # fmt: skip
        stream = http.send(request, stream=True)
        server.desk.stop.set()
        while (health := http.get(f"{server.url}/health")).status_code == 200:
            time.sleep(0.02)
        refused = server.post(**body)
        text = stream.read().decode()
        report = server.ended()
        with pytest.raises(httpx.ConnectError):
            http.get(f"{server.url}/health")
    assert health.status_code == 503
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert '"finish_reason":"length"' in text
    assert text.endswith("data: [DONE]\n\n")
    assert report.metrics["serve.completion_tokens"] == 300
    assert set(threading.enumerate()) <= before


def test_answers_that_take_too_long_are_ended(model, tmp_path, monkeypatch) -> None:
    """Beyond the bound a stream gets an error and `[DONE]`, and serving ends all the same."""
    monkeypatch.setattr("stages.serve._DRAIN_SECONDS", 0.0)
    merged = Merged(directory=model.directory)
    body = {"model": "tuned", "messages": live.user("Hello"), "temperature": 0, "max_tokens": 500}
    with live.running(model, tmp_path, merged=merged) as server, httpx.Client(timeout=60) as http:
        request = http.build_request("POST", f"{server.url}/v1/chat/completions",
                                     json=body | {"stream": True})  # fmt: skip
        stream = http.send(request, stream=True)
        server.desk.stop.set()
        text = stream.read().decode()
        assert server.ended().metrics["serve.requests"] == 0
    assert '"code":"unavailable"' in text
    assert text.endswith("data: [DONE]\n\n")


def test_a_stop_while_loading_ends_at_once(model, tmp_path, monkeypatch) -> None:
    """A person who stops a large model from loading does not wait for it."""
    entered, leave = threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        entered.set()
        leave.wait()
        raise RuntimeError("loaded too late")

    monkeypatch.setattr("stages.serve.load_engine", slow)
    desk = live.Desk()
    desk.stop.set()
    with pytest.raises(StopRequested):
        serve(live.settings(), model=model, report=desk, out=tmp_path)
    assert entered.is_set()
    leave.set()


def test_a_port_in_use_is_refused_by_its_key(model, tmp_path) -> None:
    """The message names serve.port and what mends it; nothing is loaded for it."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SettingError) as error:
            serve(live.settings(port=port), model=model, report=live.Desk(), out=tmp_path)
    assert error.value.where == "serve.port"
    assert str(port) in error.value.found
    assert "serve.port=0" in error.value.mend


def test_a_host_of_another_machine_is_refused_by_its_key(model, tmp_path) -> None:
    """An address that is not this machine's, and a name that is none."""
    for host in ("192.0.2.1", "no such host"):
        with pytest.raises(SettingError) as error:
            serve(live.settings(host=host), model=model, report=live.Desk(), out=tmp_path)
        assert error.value.where == "serve.host"


def test_a_run_named_base_is_refused(model, adapter, tmp_path) -> None:
    """Two models cannot have one name."""
    with pytest.raises(SettingError) as error:
        serve(live.settings(), model=model, adapter=adapter, name="base",
              report=live.Desk(), out=tmp_path)  # fmt: skip
    assert error.value.where == "name"


def test_a_broken_adapter_is_refused_and_the_port_is_free_again(model, tmp_path) -> None:
    """What loading finds wrong ends the verb with that error, and nothing keeps listening."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    with pytest.raises(InputError) as error:
        serve(live.settings(port=port), model=model, adapter=Adapter(directory=tmp_path),
              report=live.Desk(), out=tmp_path)  # fmt: skip
    assert str(tmp_path) in error.value.where
    socket.create_server(("127.0.0.1", port)).close()


LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}"
    "{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
)


def asked(server: live.Live, name: str) -> int:
    return server.ask(name, max_tokens=1)["usage"]["prompt_tokens"]


def test_each_is_asked_in_its_own_chat_template(model, adapter, tmp_path) -> None:
    """The adapter is asked in the template it was trained with, the base in its own; a base that
    has none takes the adapter's."""
    given = shutil.copytree(adapter.directory, tmp_path / "adapter")
    (given / "chat_template.jinja").write_text(LLAMA2)
    config = json.loads((given / "adapter_config.json").read_text())
    config["chat_template_sha256"] = hashlib.sha256(LLAMA2.encode()).hexdigest()
    (given / "adapter_config.json").write_text(json.dumps(config))
    bare = shutil.copytree(model.directory, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    tokenizer = AutoTokenizer.from_pretrained(model.directory)
    own, other = (
        len(tokenizer.apply_chat_template(live.user("Hello"), chat_template=template,
                                          add_generation_prompt=True, return_dict=False))
        for template in (None, LLAMA2)
    )  # fmt: skip
    assert own != other
    for directory, base in ((model.directory, own), (bare, other)):
        served = BaseModel(directory=directory, dtype="float32")
        with live.running(served, tmp_path / "out", adapter=Adapter(directory=given)) as server:
            assert (asked(server, "base"), asked(server, "tuned")) == (base, other)


def test_an_adapter_without_the_template_it_was_trained_with_is_refused(
    model, adapter, tmp_path
) -> None:
    """A template that is recorded but missing ends the verb in one line that names the file."""
    damaged = shutil.copytree(adapter.directory, tmp_path / "adapter")
    config = json.loads((damaged / "adapter_config.json").read_text())
    config["chat_template_sha256"] = "0" * 64
    (damaged / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as error:
        serve(live.settings(), model=model, adapter=Adapter(directory=damaged),
              report=live.Desk(), out=tmp_path)  # fmt: skip
    assert error.value.where == str(damaged / "chat_template.jinja")
