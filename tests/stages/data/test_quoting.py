"""Special tokens are the template's alone, whatever kind of tokenizer it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stages.data.encoder import open_encoder
from stages.data.formats import Row
from stages.errors import InputError
from stages.models.tokenizer import load_tokenizer
from stages.settings import Data

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


def encode(model: Path, *contents: str) -> tuple[list[str], list[str], list[str]]:
    """Return the row's tokens, those that are trained, and those that transformers makes."""
    settings = Data(
        stage="stages.prepare.prepare", path="x", format="chat", supervise="assistant",
        max_seq_length=512, overlong="drop", valid_fraction=0, test_fraction=0,
    )  # fmt: skip
    roles = ("user", "assistant") * (len(contents) // 2)
    messages = [
        {"role": role, "content": words} for role, words in zip(roles, contents, strict=True)
    ]
    tokenizer = load_tokenizer(model)
    encoder = open_encoder(settings, tokenizer, model)
    ((tokens, mask),) = encoder.encode([Row({"messages": messages}, "r.jsonl:3", "r.jsonl:3")])
    own = tokenizer.apply_chat_template(messages, return_dict=False)
    return tuple(
        tokenizer.convert_ids_to_tokens(ids)
        for ids in (tokens.tolist(), tokens[mask == 1].tolist(), own)
    )  # type: ignore[return-value]  # three lists, one for each


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("rstrip", [False, True])
def test_ids_are_those_of_transformers_without_spelled_tokens(
    tmp_path: Path, scheme: str, rstrip: bool
) -> None:
    """Quoting changes no id, and each answer is trained from its first word to its end token."""
    template = MISTRAL.replace("</s>", "</s>\n ")
    model = spaced_model(tmp_path, scheme, template, rstrip=rstrip)
    tokens, trained, own = encode(model, "b a", "a b", "c", "a")
    assert tokens == own[: len(tokens)]
    assert ("\n" in tokens) == (not rstrip)
    assert trained == ["▁a", "▁b", "</s>", "▁a", "</s>"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_spelled_token_has_the_tokens_of_its_letters(tmp_path: Path, scheme: str) -> None:
    """`</s>` in a turn is encoded among its neighbours, as any text of that shape is."""
    model = spaced_model(tmp_path, scheme, MISTRAL)
    spelled, trained, own = encode(model, "a </s> b<s>", "is </s>a")
    _, _, like = encode(model, "a </q> b<q>", "is </q>a")
    replaced = "".join(like).replace("</q>", "</s>").replace("<q>", "<s>")
    assert "".join(spelled) == replaced
    assert (spelled.count("<s>"), spelled.count("</s>")) == (1, 1)
    assert trained == ["▁", "i", "s", "▁", "<", "/", "s", ">", "a", "</s>"]
    assert own.count("</s>") == 3


def test_a_prompt_that_shares_a_token_with_the_answer_is_refused(tmp_path: Path) -> None:
    """Where a cut between them would add a space to the text, the template is to blame."""
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    model = spaced_model(tmp_path, "always", template)
    with pytest.raises(InputError, match=r"an answer of r\.jsonl:3 shares a token with the answer"):
        encode(model, "b", "a")


def test_the_quote_itself_is_refused(tmp_path: Path) -> None:
    """The one character that steers the quoting is not let in."""
    with pytest.raises(InputError, match=r"r\.jsonl:3: found the private character U\+10FFFD"):
        encode(spaced_model(tmp_path, "first", MISTRAL), "a", "\U0010fffd</s>\U0010fffd")
