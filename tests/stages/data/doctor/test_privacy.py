"""Privacy: which texts hold an e-mail address or a secret, and what is left of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.data.doctor.privacy import scan
from stages.data.formats.parser import Row

# Invented tokens, written in two pieces so that scanners of this repository stay calm.
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789" * 4
HEX = "0123456789abcdef" * 8
KEY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj\n" * 3 + "MzEfYyjiWA==\n"
PRIVATE = "PRIVATE" + " KEY"
PEM = f"-----BEGIN RSA {PRIVATE}-----\n{KEY}-----END RSA {PRIVATE}-----"
JWT = ".".join(("eyJhbGciOiJIUzI1NiJ9", "eyJzdWIiOiIxMjM0NTY3ODkwIn0", "dozjgNryP4J3jVmNHl0w5N"))

SECRETS = {
    "anthropic": "sk-ant-" f"api03-{LETTERS[:93]}AA",
    "atlassian": "ATAT" f"T3{LETTERS[:186]}",
    "aws": "AKIA" "IOSFODNN7EXAMPLE",
    "azure": "abc8" f"Q~{LETTERS[:34]}",
    "databricks": "da" f"pi{HEX[:32]}",
    "discord": "MTk4NjIyNDgzNDcx" "OTI1MjQ4.Cl2FMQ.ZnCjm1XVW7vRze4b7Cq4se7kKWs",
    "github": "gh" f"p_{LETTERS[:36]}",
    "gitlab": "glp" f"at-{LETTERS[:20]}",
    "google": "AI" f"za{LETTERS[:35]}",
    "hugging_face": "h" f"f_{LETTERS[:34]}",
    "json_web_token": JWT,
    "mailchimp": HEX[:32] + "-us" "12",
    "npm": "np" f"m_{LETTERS[:36]}",
    "openai": f"sk-{LETTERS[:20]}" "T3Blb" f"kFJ{LETTERS[20:40]}",
    "private_key": PEM,
    "pypi": "pypi-" f"AgEIcHlwaS5vcmc{LETTERS[:80]}",
    "sendgrid": "S" f"G.{LETTERS[:22]}.{LETTERS[:43]}",
    "shopify": "shp" f"at_{HEX[:32]}",
    "slack": "xo" "xb-123456789012-1234567890123-AbCdEfGhIjKlMnOpQrStUvWx",
    "square": "sq0" f"atp-{LETTERS[:22]}",
    "stripe": "sk_li" f"ve_{LETTERS[:24]}",
    "telegram": "123456789" f":AA{LETTERS[:33]}",
    "twilio": "S" f"K{HEX[:32]}",
    "vault": "hv" f"s.{LETTERS[:95]}",
}  # fmt: skip
# Of these a part stays: (text, kind, what is left).
IN_PLACE = [
    ("https://ann:tops3cret@host.org/x", "basic_auth", "https://<SECRET>@host.org/x"),
    ("redis://:hunter2@[::1]:6379/0", "basic_auth", "redis://<SECRET>@[::1]:6379/0"),
    ("aws_secret_access_key = " + LETTERS[:40], "aws_secret_key",
     "aws_secret_access_key = <SECRET>"),
    ('{"SecretAccessKey": "' + "/+" + LETTERS[:38] + '"}', "aws_secret_key",
     '{"SecretAccessKey": "<SECRET>"}'),
    ("AccountName=a;AccountKey=" + LETTERS[:86] + "==;", "azure_storage_key",
     "AccountName=a;AccountKey=<SECRET>;"),
    ("https://hooks.slack.com/serv" f"ices/T0001/B0002/{LETTERS[:34]}", "slack",
     "https://<SECRET>"),
    ("key: github" f"_pat_{LETTERS[:82]}.", "github", "key: <SECRET>."),
    (f"-----BEGIN {PRIVATE}-----\n{KEY}", "private_key", "<SECRET>\n"),
    (PEM.replace("\n", "\\n") + '"}', "private_key", '<SECRET>"}'),
    ("mail joe@example.com.", "email", "mail <EMAIL>."),
    ("<Ann.O'Neil+x_1@mail.co.uk>", "email", "<<EMAIL>>"),
    ("请联系support@example.com谢谢", "email", "请联系<EMAIL>谢谢"),
    ("почта@пример.рф, übel@müller.de", "email", "<EMAIL>, <EMAIL>"),
    ("mailto:a@b.co?subject=x", "email", "mailto:<EMAIL>?subject=x"),
]  # fmt: skip
HARMLESS = [
    "a@b", "see @user and @app.route(x)", "me@localhost", "root@10.0.0.1", "react@18.2.0",
    "git@github.com:owner/repo.git", "y = x@w.mean(0)", "a @ b.c", "joe@.com", "joe@x..com",
    "https://example.com:8080/a@b", "https://{user}:{password}@host.org", "http://%s:%s@host",
    "https://ann:***@host.org", "ftp://$USER:$PASSWORD@host", "AKIA" "SHORT",
    "XAKIA" "IOSFODNN7EXAMPLE", "AKIA" "IOSFODNN7EXAMPLEX", "gh" f"p_{LETTERS[:35]}",
    "da39a3ee5e6b4b0d3255bfef95601890afd80709", "550e8400-e29b-41d4-a716-446655440000",
    f"A key file starts with -----BEGIN RSA {PRIVATE}----- and then the key.",
    "-----BEGIN CERTIFICATE-----\n" + KEY + "-----END CERTIFICATE-----",
    "xMTk4NjIyNDgzNDcx" "OTI1MjQ4.Cl2FMQ.ZnCjm1XVW7vRze4b7Cq4se7kKWs",
    "password: hunter2", "eyJhbGciOiJIUzI1NiJ9", "192.168.0.1", "The task-force is in MTA.",
]  # fmt: skip


def text(value: str) -> Row:
    return Row({"text": value}, "a.txt:1", "a.txt:1", "text")


@pytest.mark.parametrize("kind", SECRETS)
def test_secret_is_counted_once_and_replaced(kind: str) -> None:
    """A token of each form, in a sentence, counts as one of its kind and goes whole."""
    row, counts = scan(text(f"token='{SECRETS[kind]}', keep it"), redact=True)
    assert counts == {kind: 1}
    assert row.text == "token='<SECRET>', keep it"


@pytest.mark.parametrize(("given_text", "kind", "left"), IN_PLACE)
def test_only_the_private_part_is_replaced(given_text: str, kind: str, left: str) -> None:
    """What stands around a secret or an address stays to the letter."""
    row, counts = scan(text(given_text), redact=True)
    assert row.text == left
    assert counts == {kind: left.count("<EMAIL>") or 1}


@pytest.mark.parametrize("harmless", HARMLESS)
def test_look_alikes_are_let_be(harmless: str) -> None:
    """Handles, versions, placeholders, digests and tokens of another length are nothing private."""
    row = text(harmless)
    assert scan(row, redact=True) == (row, {})


def test_counting_leaves_the_row_as_it_is() -> None:
    """Without `redact`, the row stays; the counts are the same."""
    row = text(f"joe@example.com {SECRETS['github']} ann@example.org")
    assert scan(row, redact=False) == (row, {"email": 2, "github": 1})
    assert scan(row, redact=False)[0] is row


def test_overlapping_kinds_count_as_one() -> None:
    """A token that is the password of a URL with an e-mail's look is one secret."""
    secret = SECRETS["github"]
    row, counts = scan(text(f"https://joe:{secret}@example.com/"), redact=True)
    assert (row.text, counts) == ("https://<SECRET>@example.com/", {"basic_auth": 1})


CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Write to boss@example.com"},
        {"role": "user", "content": "hi", "name": "joe@example.com"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "joe@example.com asks",
            "tool_calls": [{
                "type": "function",
                "id": "id@example.com",
                "function": {
                    "name": "send",
                    "arguments": {
                        "id": "joe@example.com", "n": 3, "key@example.com": [{"cc": "a@b.org"}],
                    },
                },
            }],
        },
        {"role": "tool", "content": "sent to joe@example.com", "tool_call_id": "id@example.com"},
        {"role": "assistant", "content": "done", "train": False},
    ],
    "tools": [{"type": "function", "function": {
        "name": "send", "description": "ask ops@example.com", "parameters": {
            "properties": {"id": {"description": "such as joe@example.com"}}},
    }}],
}  # fmt: skip


def test_every_text_of_a_conversation_is_redacted() -> None:
    """Turns, reasoning, arguments at any depth and tools are; keys, roles and identifiers never."""
    before = copy.deepcopy(CHAT)
    row = Row(CHAT, "a.jsonl:1", "a.jsonl:1", home='"a"')
    clean, counts = scan(row, redact=True)
    assert counts == {"email": 8}
    assert before == CHAT
    written = repr(clean.content)
    assert written.count("<EMAIL>") == 8
    assert written.count("id@example.com") == 2
    assert "'key@example.com': [{'cc': '<EMAIL>'}]" in written
    assert clean.messages[2]["tool_calls"][0]["function"]["arguments"]["n"] == 3
    assert [turn["role"] for turn in clean.messages] == [turn["role"] for turn in CHAT["messages"]]
    assert (clean.source, clean.where, clean.home) == (row.source, row.where, row.home)


PIECES = st.sampled_from([
    *SECRETS.values(), *HARMLESS, *(given_text for given_text, _, _ in IN_PLACE),
    "@", "://", ":", ".", "-", "_", "a", "Z9", " ", "\n", "<", "x@y.com", "joe@", "@host.org",
])  # fmt: skip


@given(st.lists(st.one_of(PIECES, st.text(max_size=4)), max_size=8))
def test_redacting_twice_changes_nothing(pieces: list[str]) -> None:
    """However private pieces touch, one redaction leaves nothing to count."""
    given_row = text("".join(pieces))
    row, counts = scan(given_row, redact=True)
    assert scan(row, redact=True) == (row, {})
    assert (row == given_row) == (not counts)


@given(st.lists(st.text("abcdefghij KLMPQ.,:;!?\n'\"()éß中文0123", max_size=200), min_size=1))
def test_text_without_findings_is_untouched(contents: list[str]) -> None:
    """Text without an at sign or a form of a token comes back as the same row."""
    turns = [{"role": "user", "content": content} for content in contents]
    row = Row({"messages": turns}, "a.jsonl:1", "a.jsonl:1")
    assert scan(row, redact=True)[0] is row
