"""The bytes of text rows, beside a count of the bytes that each token stands for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from stages.data.encoding.encoder import open_encoder
from stages.data.formats.parser import Row
from stages.data.rows import open_rows, write_rows
from stages.evaluation.texts import predicted_bytes
from stages.models.tokenizer import load_tokenizer
from stages.settings import Data

ByteModel = Callable[..., Path]
END = "<|im_end|>"


def encoded(model: Path, out: Path, texts: Sequence[str], longest: int = 64) -> list[str]:
    """Write the texts as `out`/test.safetensors and test.jsonl, and return those of the rows."""
    data = Data(
        stage="stages.prepare.prepare", path="x", format="auto", supervise="assistant",
        max_seq_length=longest, overlong="split", valid_fraction=0.0, test_fraction=0.0,
        duplicates="keep", leakage="keep", redact=False, encoding="utf-8", on_error="fail",
    )  # fmt: skip
    encode = open_encoder(data, load_tokenizer(model), model).encode
    made = encode([Row({"text": text}, "r:1", "r:1") for text in texts])
    examples = [example for one in made for example in one.examples]
    write_rows(out / "test.safetensors", [(one.tokens, one.supervised) for one in examples])
    lines = [json.dumps(dict(one.row.content), ensure_ascii=False) + "\n" for one in examples]
    (out / "test.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    return [one.row.text for one in examples]


def counted(model: Path, out: Path) -> list[int]:
    """Return the bytes of each row."""
    rows = open_rows(out, "test")
    found = predicted_bytes(out, "test", rows, range(len(rows)), load_tokenizer(model))
    assert list(found) == list(range(len(rows)))
    return list(found.values())


def letters(model: Path, tokens: Sequence[int]) -> int:
    """Return the bytes of byte-level tokens: one for each letter of their names."""
    tokenizer = load_tokenizer(model)
    special = {number for number, t in tokenizer.added_tokens_decoder.items() if t.special}
    names = tokenizer.convert_ids_to_tokens([int(t) for t in tokens if int(t) not in special])
    return sum(map(len, names))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE whose tokens are words, parts of letters, and letters with parts of one."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=310, special_tokens=[END], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    backend.train_from_iterator(
        ["the été 𝄞 𝄢 a ab abc 日本 日本語 🤷🏽‍♀️", "a𝄞b𝄢c é è"] * 9, trainer
    )
    directory = tmp_path_factory.mktemp("trained")
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END).save_pretrained(directory)
    return directory


WORDS = st.text(st.sampled_from("ab é𝄞𝄢日本🤷\u200d\n"), min_size=1).filter(str.strip)


@given(words=st.lists(WORDS, min_size=1, max_size=3), longest=st.integers(8, 20))
@example(words=["𝄢"], longest=8)
@settings(deadline=None)
def test_bytes_are_those_of_the_predicted_tokens(
    trained: Path, tmp_path_factory: pytest.TempPathFactory, words: list[str], longest: int
) -> None:
    """Whole texts and pieces of them: all but the first token, whatever part of a letter it is."""
    out = tmp_path_factory.mktemp("rows")
    encoded(trained, out, words, longest)
    rows = open_rows(out, "test")
    tokens = [rows[index][0].tolist() for index in range(len(rows))]
    assert counted(trained, out) == [letters(trained, one[1:]) for one in tokens]


@given(words=WORDS, longest=st.integers(4, 7))
@settings(deadline=None)
def test_bytes_of_all_pieces_are_those_of_the_text(
    byte_model: ByteModel, tmp_path_factory: pytest.TempPathFactory, words: str, longest: int
) -> None:
    """Also where pieces are so short that one may end within a letter."""
    model, out = byte_model(), tmp_path_factory.mktemp("rows")
    pieces = encoded(model, out, [words], longest)
    assert sum(counted(model, out)) == len(words.encode()) - len(pieces)


def test_the_first_token_may_be_part_of_a_letter(byte_model: ByteModel, tmp_path: Path) -> None:
    """Of `é` as two tokens the second alone is predicted."""
    model = byte_model(merges=[("a", "b")])
    encoded(model, tmp_path, ["é", "abé", "\ufffd", "x"])
    assert counted(model, tmp_path) == [1, 2, 2, 0]


def begin(backend: Any) -> None:
    """Have the tokenizer begin every text by a token of its own."""
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])


def test_a_token_that_begins_every_text_is_no_byte(byte_model: ByteModel, tmp_path: Path) -> None:
    """Then all bytes of a piece are predicted."""
    model = byte_model(special=("<s>", "</s>"), bos="<s>", eos="</s>", edit=begin)
    pieces = encoded(model, tmp_path, ["abcdefgéhi"], longest=5)
    assert pieces == ["abcd", "efg", "é", "hi"]
    assert counted(model, tmp_path) == [4, 3, 2, 2]


def test_special_tokens_spell_no_bytes(byte_model: ByteModel, tmp_path: Path) -> None:
    """Neither those that are added nor those that a text spells; other added tokens are text."""

    def edit(backend: Any) -> None:
        backend.add_tokens(["<tool>", "é→"])

    model = byte_model(edit=edit)
    encoded(model, tmp_path, [f"ab{END}cd", f"{END}ab", f"ab{END}", "a<tool>b", "<tool>b", "é→b"])
    assert counted(model, tmp_path) == [3, 2, 1, 7, 1, 1]


def sentencepiece(directory: Path, bos: bool) -> Path:
    """Write a tokenizer as SentencePiece makes them: spaces are `▁`, one before any text, and what
    it has no token for is bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), "▁", "▁▁", "a", "b",
              "▁a", "ab", "▁ab"]  # fmt: skip
    merges = [("▁", "▁"), ("▁", "a"), ("a", "b"), ("▁a", "b")]
    backend = Tokenizer(
        models.BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=merges,
                   unk_token="<unk>", byte_fallback=True)
    )  # fmt: skip
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    if bos:
        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    ("text", "first"),
    [("ab ab", 2), ("a  b", 1), (" ab", 3), ("  b", 2), ("éa", 0), ("b", 0), ("\ufffd", 0)],
)
def test_bytes_of_sentencepiece_tokens(tmp_path: Path, text: str, first: int) -> None:
    """The space that it puts before a text is none of the text's bytes."""
    for bos in (True, False):
        model = sentencepiece(tmp_path / str(bos), bos)
        encoded(model, tmp_path, [text])
        assert counted(model, tmp_path) == [len(text.encode()) - (0 if bos else first)]


def test_rows_that_are_no_text_have_no_bytes(byte_model: ByteModel, tmp_path: Path) -> None:
    """Of mixed rows the conversations are left out, and so are rows that are not chosen."""
    row = (np.arange(5, dtype=np.int32), np.array([0, 1, 1, 1, 1], np.uint8))
    write_rows(tmp_path / "test.safetensors", [row] * 4)
    contents: list[dict[str, Any]] = [{"text": "a\u2028b"}, {"messages": []}, {"text": "cd"},
                                      {"text": "efg"}]  # fmt: skip
    lines = [json.dumps(content, ensure_ascii=False) + "\n" for content in contents]
    (tmp_path / "test.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    tokenizer = load_tokenizer(byte_model())
    rows = open_rows(tmp_path, "test")
    assert predicted_bytes(tmp_path, "test", rows, [0, 1, 3], tokenizer) == {0: 4, 3: 2}
