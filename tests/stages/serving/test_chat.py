"""Answers over HTTP: what is said, how it is counted, and how it is streamed."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import live
import mlx.core as mx
import pytest
from mlx_lm import load
from mlx_lm.generate import generate_step
from transformers import AutoTokenizer

WORDS = ("Hello", "What is this?", "Tell me", "One two three four")


def events(answer: httpx.Response) -> list[Any]:
    """Return what a stream carried, parsed; `[DONE]` as text."""
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def text_of(chunks: list[Any]) -> str:
    return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])


def solo(model, adapter, words: str, max_tokens: int) -> str:
    """Return the likeliest answer as mlx-lm alone finds it, one conversation, one token a time,
    without the special tokens that a model of random weights may say."""
    path = str(adapter.directory) if adapter else None
    network, tokenizer = load(str(model.directory), adapter_path=path)
    prompt = tokenizer.apply_chat_template(live.user(words), add_generation_prompt=True)
    tokens: list[int] = []
    for token, _ in generate_step(mx.array(prompt), network, max_tokens=max_tokens):
        if token in tokenizer.eos_token_ids:
            break
        tokens.append(token)
    return tokenizer.decode(tokens, skip_special_tokens=True)


def test_eight_threads_get_what_each_model_says_alone(server, served_model, served_adapter) -> None:
    """Base and tuned, asked at the same time, answer as mlx-lm does one by one."""
    adapters = {"base": None, "tuned": served_adapter}
    cases = [(name, words) for words in WORDS for name in adapters]
    expected = [solo(served_model, adapters[name], words, 24) for name, words in cases]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda case: server.ask(*case, max_tokens=24), cases))
    assert [answer["choices"][0]["message"]["content"] for answer in answers] == expected
    assert [answer["model"] for answer in answers] == [name for name, _ in cases]


def test_usage_counts_the_template_s_and_the_answer_s_tokens(server, served_model) -> None:
    """Prompt tokens are those of transformers' own chat template; a cut answer has max_tokens."""
    tokenizer = AutoTokenizer.from_pretrained(served_model.directory)
    prompt = tokenizer.apply_chat_template(live.user("Tell me"), add_generation_prompt=True)
    answer = server.ask(words="Tell me", max_completion_tokens=7)
    count = len(prompt["input_ids"])
    expected = {"prompt_tokens": count, "completion_tokens": 7, "total_tokens": count + 7}
    assert answer["usage"] == expected
    assert answer["choices"][0]["finish_reason"] == "length"


def test_developer_and_text_parts_are_the_same_conversation(server) -> None:
    """`developer` is what templates call `system`, and text parts are their text."""
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello you"}]
    parts = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "you"}]
    other = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    a, b = (server.post(model="base", messages=m, temperature=0, max_tokens=8).json()
            for m in (plain, other))  # fmt: skip
    assert a["choices"] == b["choices"]
    assert a["usage"] == b["usage"]


def test_stream_keeps_the_contract(server) -> None:
    """Role, then text, one finish chunk without text, usage, one `[DONE]`, null until then."""
    body = {"model": "tuned", "messages": live.user("Hello"), "temperature": 0, "max_tokens": 6}
    options = {"stream": True, "stream_options": {"include_usage": True}}
    answer = server.post(**body, **options)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(answer)
    assert done == "[DONE]"
    assert answer.text.endswith("data: [DONE]\n\n")
    first, *middle, finish, usage = chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(set(chunk["choices"][0]["delta"]) == {"content"} for chunk in middle)
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in (first, *middle))
    assert (finish["choices"][0]["delta"], finish["choices"][0]["finish_reason"]) == ({}, "length")
    assert all(chunk["usage"] is None for chunk in (first, *middle, finish))
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 6)
    same = {(c["id"], c["created"], c["object"], c["model"]) for c in chunks}
    assert [(kind, model) for _, _, kind, model in same] == [("chat.completion.chunk", "tuned")]


def test_stream_without_usage_never_names_it(server) -> None:
    """A client that did not ask for usage gets none, also with empty stream options."""
    for options in ({}, None, {"include_usage": False}):
        answer = server.post(model="base", messages=live.user("Hello"), temperature=0,
                             max_tokens=2, stream=True, stream_options=options)  # fmt: skip
        *chunks, _ = events(answer)
        assert all("usage" not in chunk for chunk in chunks)
        assert [c["choices"][0]["finish_reason"] for c in chunks][-1] == "length"


@pytest.mark.parametrize("seed", range(2))
def test_stream_says_what_the_plain_answer_says(server, seed: int) -> None:
    """The pieces of a hot answer, broken UTF-8 and all, join to the answer in one piece."""
    body = {"model": "base", "messages": live.user("Hello"), "temperature": 2, "max_tokens": 64}
    plain = server.post(**body, seed=seed).json()["choices"][0]["message"]["content"]
    *chunks, _ = events(server.post(**body, seed=seed, stream=True))
    assert text_of(chunks) == plain
    assert len(chunks) > 20


def test_characters_of_many_tokens_arrive_whole(server) -> None:
    """Half a character is never sent: each piece is valid, and none ends in a replacement that the
    whole answer does not have."""
    body = {"model": "base", "messages": live.user("Hello"), "temperature": 2, "max_tokens": 64}
    answers = []
    for seed in range(4):
        answers.append(server.post(**body, seed=seed).json()["choices"][0]["message"]["content"])
        *chunks, _ = events(server.post(**body, seed=seed, stream=True))
        assert text_of(chunks) == answers[-1]
    assert "\ufffd" in "".join(answers)


def begun(server: live.Live) -> tuple[str, str, str]:
    """Return a question, and the first two tokens of its answer as text: the first is long, and
    what the tests stop at is nowhere before."""
    for words in WORDS:
        first, both = (
            server.ask(words=words, max_tokens=n)["choices"][0]["message"]["content"]
            for n in (1, 2)
        )
        second = both.removeprefix(first)
        long = len(first) > 3 and second
        if long and first.index(first[2:]) == 2 and first[-1] + second[0] not in first:
            return words, first, second
    raise AssertionError("no answer begins with a long token")


def test_stop_text_inside_a_token_ends_the_answer(server) -> None:
    """A stop text ends the answer where it starts, also inside a token, and generation with it."""
    words, first, _ = begun(server)
    for stream in (False, True):
        answer = server.post(model="base", messages=live.user(words), temperature=0,
                             max_tokens=60, stop=first[2:], stream=stream,
                             stream_options={"include_usage": True})  # fmt: skip
        if stream:
            *chunks, usage, _ = events(answer)
            text, finish = text_of(chunks), chunks[-1]["choices"][0]["finish_reason"]
        else:
            usage = answer.json()
            choice = usage["choices"][0]
            text, finish = choice["message"]["content"], choice["finish_reason"]
        assert (text, finish, usage["usage"]["completion_tokens"]) == (first[:2], "stop", 1)


def test_stop_text_across_tokens_is_never_seen_in_a_stream(server) -> None:
    """A stop text that begins in one token and ends in another leaves no trace in any chunk."""
    words, first, second = begun(server)
    stop = first[-1] + second[0]
    answer = server.post(model="base", messages=live.user(words), temperature=0, max_tokens=60,
                         stop=["never said", stop], stream=True)  # fmt: skip
    *chunks, _ = events(answer)
    assert text_of(chunks) == first[:-1]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_seed_decides_whatever_the_neighbours(server) -> None:
    """The same seed says the same alone and beside seven others; another seed says something else,
    and so do two requests without one."""

    def hot(seed: int | None) -> str:
        answer = server.ask("tuned", temperature=1, top_p=0.9, top_k=500, seed=seed, max_tokens=16)
        return answer["choices"][0]["message"]["content"]

    alone = hot(7)
    with ThreadPoolExecutor(8) as pool:
        crowd = list(pool.map(hot, [1, 2, 7, 3, None, None, -(2**63), 2**63 - 1]))
    assert crowd[2] == alone
    assert len(set(crowd)) == 8


def test_top_k_of_one_is_the_likeliest(server) -> None:
    """Filters are applied: one candidate left, by any of the three, is the greedy answer."""
    likeliest = server.ask("base")["choices"]
    for only_one in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert server.ask("base", temperature=1.5, **only_one)["choices"] == likeliest


def test_what_clients_send_besides_is_ignored(server) -> None:
    """null is the same as nothing, and fields that change no answer are taken."""
    names = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens",
             "stop", "seed", "stream", "stream_options", "n", "logprobs", "top_logprobs", "tools",
             "tool_choice", "response_format", "logit_bias", "frequency_penalty")  # fmt: skip
    nothing = server.post(model="base", messages=live.user("Hello"), **dict.fromkeys(names))
    assert nothing.status_code == 200
    turn = {"role": "user", "content": "Hello", "name": "me"}
    more = {"user": "me", "metadata": {"a": "b"}, "store": False, "n": 1, "logit_bias": {},
            "frequency_penalty": 0.0, "response_format": {"type": "text"}, "tools": [],
            "service_tier": "auto", "parallel_tool_calls": True, "made_up": [1]}  # fmt: skip
    answer = server.post(model="base", messages=[turn], temperature=0, max_tokens=8, **more)
    assert answer.json()["choices"] == server.ask("base")["choices"]


def test_models_are_listed_by_name(server) -> None:
    """The two names there are, each to be had alone; no path and no other name."""
    listed = httpx.get(f"{server.url}/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["base", "tuned"]
    assert httpx.get(f"{server.url}/v1/models/tuned").json() == listed["data"][1]
    missing = httpx.get(f"{server.url}/v1/models/org/name")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_no_other_site_may_read_answers(server) -> None:
    """No cross-origin access is granted, so a web page cannot use the server."""
    origin = {"origin": "http://example.org", "access-control-request-method": "POST"}
    asked = httpx.options(f"{server.url}/v1/chat/completions", headers=origin)
    plain = httpx.get(f"{server.url}/v1/models", headers=origin)
    for answer in (asked, plain):
        assert not [name for name in answer.headers if name.startswith("access-control")]
