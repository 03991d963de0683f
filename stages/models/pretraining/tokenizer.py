"""Train the tokenizer of the embedded model: byte-level BPE with the special tokens of ChatML.

python -m stages.models.pretraining.tokenizer --corpus corpus --out stages/models/embedded
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Their ids are 0, 1 and 2: padding, and what stands around every turn."""
VOCABULARY = 6144
_GENERATED_PART = 4
"""Of the generated texts every fourth is enough: they say the same things many times."""


def train(texts: Iterator[str]) -> Tokenizer:
    """Train a byte-level BPE.

    Digits stay single, so that numbers are spelled out. A space before a capital is a token of its
    own: a name has the same tokens after a space as after a quote, and can be copied as it stands.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" (?=\p{Lu})"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def texts_of(corpus: Path) -> Iterator[str]:
    """Yield the training texts of a corpus, special tokens taken out."""
    for name in ("books", "fairytales", "generated"):
        file = corpus / name / "train.jsonl"
        every = _GENERATED_PART if name == "generated" else 1
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                if number % every == 0:
                    text: str = json.loads(line)["text"]
                    for token in SPECIAL:
                        text = text.replace(token, "\n")
                    yield text


def main() -> None:
    """Write `tokenizer.json`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in ("corpus", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    if not (given.corpus / "books" / "train.jsonl").is_file():
        parser.error(f"--corpus: no books/train.jsonl in {given.corpus}")
    train(texts_of(given.corpus)).save(str(given.out / "tokenizer.json"))


if __name__ == "__main__":
    main()
