"""The tokenizer of a model from nothing: what is copied is split alike wherever it stands."""

from __future__ import annotations

from random import Random

import pytest
from tokenizers import Tokenizer

from stages.models.pretraining.tokenizer import SPECIAL, VOCABULARY, train
from stages.models.pretraining.turns import conversation


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    random = Random(6)
    return train(conversation(random) for _ in range(3000))


def test_special_tokens_come_first_and_all_bytes_are_known(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_to_id(token) for token in SPECIAL] == [0, 1, 2]
    assert tokenizer.get_vocab_size() <= VOCABULARY
    text = "Ünïcode 日本 \x00\n\t  two  Spaces 😀"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("name", ["Dana", "Marta", "Ørsted", "O'Neill"])
def test_a_name_is_split_alike_after_a_space_and_a_quote(tokenizer: Tokenizer, name: str) -> None:
    alone = tokenizer.encode(name).tokens
    for before in (" with ", '"with":"', "\n"):
        assert tokenizer.encode(before + name).tokens[-len(alone) :] == alone


def test_digits_are_tokens_of_their_own(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("08:35").tokens == ["0", "8", ":", "3", "5"]
    assert tokenizer.encode(" 35").tokens[1:] == ["3", "5"]
