"""OpenAI's own client, as a person points it at the server."""

from collections.abc import Iterator

import live
import openai
import pytest

HELLO = live.user("Hello")


@pytest.fixture
def client(server: live.Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0,
                       _strict_response_validation=True) as made:  # fmt: skip
        yield made


def test_an_answer(client: openai.OpenAI) -> None:
    """One call, typed and counted."""
    answer = client.chat.completions.create(
        model="tuned", messages=HELLO, temperature=0, max_completion_tokens=6, seed=1
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage
    assert answer.usage.completion_tokens == 6


def test_a_conversation_goes_on(client: openai.OpenAI) -> None:
    """The answer's message, as the client holds it, is a turn of the next request."""
    said = client.chat.completions.create(model="base", messages=HELLO, max_tokens=4)
    turns = [*HELLO, said.choices[0].message.model_dump(), {"role": "user", "content": "And?"}]
    again = client.chat.completions.create(model="base", messages=turns, max_tokens=4)
    assert again.usage.prompt_tokens > said.usage.prompt_tokens


def test_a_stream(client: openai.OpenAI) -> None:
    """The pieces join to the answer that is not streamed; usage comes last."""
    ask = {"model": "tuned", "messages": HELLO, "temperature": 0, "max_tokens": 12}
    whole = client.chat.completions.create(**ask)
    with client.chat.completions.create(
        **ask, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_the_stream_helper(client: openai.OpenAI, server: live.Live) -> None:
    """The client's own accumulator builds the same message."""
    ask = {"model": "base", "messages": HELLO, "temperature": 0, "stop": server.hello[-2:]}
    with client.chat.completions.stream(**ask) as stream:
        final = stream.get_final_completion()
    whole = client.chat.completions.create(**ask)
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == "stop"


def test_models(client: openai.OpenAI) -> None:
    """Listed and retrieved."""
    assert [model.id for model in client.models.list()] == ["base", "tuned"]
    assert client.models.retrieve("base").id == "base"


def test_errors_are_the_client_s_exceptions(client: openai.OpenAI) -> None:
    """400 and 404 arrive as what the client's users catch, with field and code."""
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="base", messages=HELLO, temperature=9)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")
