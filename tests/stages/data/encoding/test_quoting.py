"""Special tokens are the template's alone, whatever kind of tokenizer it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stages.data.encoding.template import read_template
from stages.data.formats.parser import Row
from stages.errors import InputError
from stages.models.tokenizer import load_tokenizer

# As Mistral and Llama 2 have it: text tags, and special tokens around the turns.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
LETTERS = [chr(code) for code in range(0x21, 0x7F)] + ["▁", "\n"]
SCHEMES = ["first", "always", "never", "legacy"]


def spaced_model(directory: Path, scheme: str, template: str, *, rstrip: bool = False) -> Path:
    """Save a tokenizer of letters in which words begin with ▁, as SentencePiece makes them."""
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *LETTERS])}
    vocabulary |= {"▁a": len(vocabulary), "▁b": len(vocabulary) + 1}
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[("▁", "a"), ("▁", "b")], unk_token="<unk>")
    )
    if scheme == "legacy":
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        backend.normalizer = normalizers.Sequence(steps)
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.add_special_tokens(["<unk>", "<s>", AddedToken("</s>", rstrip=rstrip, special=True)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    return directory


Shown = Callable[..., tuple[list[str], list[str], list[str]]]


@pytest.fixture
def show(encode: Callable[..., Any]) -> Shown:
    """Return what shows a row's tokens, those that are trained, and those of transformers."""

    def encode_row(model: Path, *contents: str) -> tuple[list[str], ...]:
        roles = ("user", "assistant") * (len(contents) // 2)
        messages = [
            {"role": role, "content": words} for role, words in zip(roles, contents, strict=True)
        ]
        tokenizer = load_tokenizer(model)
        [(tokens, mask)] = encode(model, Row({"messages": messages}, "r.jsonl:3", "r.jsonl:3"))
        trained = [token for token, flag in zip(tokens, mask, strict=True) if flag]
        own = tokenizer.apply_chat_template(messages, return_dict=False)
        return tuple(tokenizer.convert_ids_to_tokens(ids) for ids in (tokens, trained, own))

    return encode_row


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("rstrip", [False, True])
def test_ids_are_those_of_transformers_without_spelled_tokens(
    tmp_path: Path, show: Shown, scheme: str, rstrip: bool
) -> None:
    """Quoting changes no id, and each answer is trained from its first word to its end token."""
    template = MISTRAL.replace("</s>", "</s>\n ")
    model = spaced_model(tmp_path, scheme, template, rstrip=rstrip)
    tokens, trained, own = show(model, "b a", "a b", "c", "a")
    assert tokens == own[: len(tokens)]
    assert ("\n" in tokens) == (not rstrip)
    assert trained == ["▁a", "▁b", "</s>", "▁a", "</s>"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_spelled_token_has_the_tokens_of_its_letters(
    tmp_path: Path, show: Shown, scheme: str
) -> None:
    """`</s>` in a turn is encoded among its neighbours, as any text of that shape is."""
    model = spaced_model(tmp_path, scheme, MISTRAL)
    spelled, trained, own = show(model, "a </s> b<s>", "is </s>a")
    _, _, like = show(model, "a </q> b<q>", "is </q>a")
    replaced = "".join(like).replace("</q>", "</s>").replace("<q>", "<s>")
    assert "".join(spelled) == replaced
    assert (spelled.count("<s>"), spelled.count("</s>")) == (1, 1)
    assert trained == ["▁", "i", "s", "▁", "<", "/", "s", ">", "a", "</s>"]
    assert own.count("</s>") == 3


def test_a_prompt_that_shares_a_token_with_the_answer_is_refused(
    tmp_path: Path, show: Shown
) -> None:
    """Where a cut between them would add a space to the text, the template is to blame."""
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    model = spaced_model(tmp_path, "always", template)
    with pytest.raises(InputError, match=r"an answer of r\.jsonl:3 shares a token with the answer"):
        show(model, "b", "a")


def test_the_quote_itself_is_refused(tmp_path: Path, show: Shown) -> None:
    """The one character that steers the quoting is not let in."""
    with pytest.raises(InputError, match=r"r\.jsonl:3: found the private character U\+10FFFD"):
        show(spaced_model(tmp_path, "first", MISTRAL), "a", "\U0010fffd</s>\U0010fffd")


def test_a_vocabulary_with_gaps_is_refused_rather_than_mixed_up(tmp_path: Path) -> None:
    """Where a quoted token would get the id of another token, the tokenizer is named."""
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *LETTERS])}
    vocabulary["zz"] = len(vocabulary) + 1
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("z", "z")], unk_token="<unk>"))
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.chat_template = MISTRAL
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="the ids of its tokenizer leave no room for more"):
        read_template(load_tokenizer(tmp_path), tmp_path)
