"""A chat template of one's own: read, written down, and put into a model for others to find."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mlx_lm.utils import load_tokenizer as mlx_lm_load_tokenizer
from transformers import AutoTokenizer

from stages.data.encoding.given_template import (
    given_template,
    read_given,
    replace_template,
    template_digest,
    write_template,
)
from stages.errors import InputError, SettingError

OWN = "{% for m in messages %}[{{ m.role }}] {{ m.content }} ü<|im_end|>\r\n{% endfor %}"
TURNS = [{"role": "user", "content": "Hi"}]


def test_template_survives_byte_by_byte(tmp_path: Path) -> None:
    """What is written is read again, line ends and all, and a directory without one has none."""
    assert given_template(tmp_path) is None
    write_template(tmp_path, OWN)
    assert (tmp_path / "chat_template.jinja").read_bytes() == OWN.encode()
    assert given_template(tmp_path) == OWN
    assert template_digest(OWN) == hashlib.sha256(OWN.encode()).hexdigest()


def test_named_file_is_read(tmp_path: Path) -> None:
    """data.chat_template names a file, with or without a byte order mark; null names none."""
    (tmp_path / "own.jinja").write_bytes(b"\xef\xbb\xbf{{ messages }}\r\n")
    assert read_given(str(tmp_path / "own.jinja")) == "{{ messages }}\n"
    assert read_given(None) is None


@pytest.mark.parametrize(
    ("content", "found"),
    [(None, "no such file"), (b"{{ \xfc }}", "not UTF-8, at byte 3"), (b" \n", "is empty")],
)
def test_file_that_is_no_template_is_refused_by_the_key(
    tmp_path: Path, content: bytes | None, found: str
) -> None:
    """A file that is missing, empty or no text is named under data.chat_template."""
    file = tmp_path / "Own.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingError) as caught:
        read_given(str(file))
    assert caught.value.where == "data.chat_template"
    assert str(file) in caught.value.found
    assert found in caught.value.found


def test_damaged_copy_is_named(tmp_path: Path) -> None:
    """A copy that is no UTF-8 any more is refused by its path."""
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(InputError) as caught:
        given_template(tmp_path)
    assert caught.value.where == str(tmp_path / "chat_template.jinja")


@pytest.mark.parametrize("place", ["jinja", "config", "list", "mlx_lm", None])
def test_replaced_template_is_what_others_load(
    byte_model: Callable[..., Path], place: str | None
) -> None:
    """Wherever the model had its own, transformers and mlx-lm render the new one."""
    directory = byte_model(None)
    old = "{% for m in messages %}old{% endfor %}"
    config = json.loads((directory / "tokenizer_config.json").read_text())
    if place == "jinja":
        (directory / "chat_template.jinja").write_text(old)
    elif place:
        named = [{"name": "default", "template": old}, {"name": "tool_use", "template": old}]
        config |= {"chat_template": named if place == "list" else old}
        config |= {"chat_template_type": "deepseek_v32"} if place == "mlx_lm" else {}
    text = json.dumps(config)
    (directory / "tokenizer_config.json").write_text(text)
    replace_template(directory, OWN)
    for tokenizer in (AutoTokenizer.from_pretrained(directory), mlx_lm_load_tokenizer(directory)):
        rendered = tokenizer.apply_chat_template(TURNS, tokenize=False)
        assert rendered == "[user] Hi ü<|im_end|>\n"
    kept = json.loads((directory / "tokenizer_config.json").read_text())
    assert kept.items() <= config.items()
    assert config.keys() - kept.keys() <= {"chat_template", "chat_template_type"}
