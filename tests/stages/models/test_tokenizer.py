"""Tokenizers load from their directory alone, and say plainly when they cannot."""

import json

import pytest

from stages.errors import InputError
from stages.models.tokenizer import load_tokenizer, stop_token_ids


def test_damaged_and_missing_files_are_named(copy):
    """A directory whose tokenizer cannot be read is refused with its path."""
    (copy / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"model: no tokenizer in it"):
        load_tokenizer(copy)
    (copy / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(InputError, match="its tokenizer cannot be read"):
        load_tokenizer(copy)


def test_code_beside_a_tokenizer_is_not_run(copy):
    """A tokenizer that exists only as Python code is refused, and its file stays unread."""
    marker = copy / "ran"
    (copy / "tokenization.py").write_text(f"open({str(marker)!r}, 'w')")
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": ["tokenization.Own", None]}, "tokenizer_class": "Own"}
    (copy / "tokenizer_config.json").unlink()
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError):
        load_tokenizer(copy)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (None, None, (2,)),
        (7, 2, (2, 7)),
        ([9, 2, 7], [7, 8], (2, 9, 7, 8)),
    ],
)
def test_stop_tokens_come_from_all_three_places(copy, generation, config, expected):
    """The tokenizer's own comes first, then one or many of each file, each once."""
    for name, value in (("generation_config.json", generation), ("config.json", config)):
        (copy / name).unlink()
        (copy / name).write_text(json.dumps({"model_type": "llama", "eos_token_id": value}))
    assert stop_token_ids(copy, load_tokenizer(copy)) == expected


def test_stop_tokens_of_a_damaged_file(copy):
    """A generation_config.json that is no JSON is named."""
    tokenizer = load_tokenizer(copy)
    (copy / "generation_config.json").unlink()
    (copy / "generation_config.json").write_text("[")
    with pytest.raises(InputError, match=r"generation_config.json: is no JSON object"):
        stop_token_ids(copy, tokenizer)
