"""The models, the tokenizer and the rows of tests/benchmarks/train.py.

`train_setup.py DIRECTORY DATA` writes them, unless DIRECTORY holds them already. The weights
are random, the text is real: ../shared/data.
"""

import gzip
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from train_peers import MAX_TOKENS
from transformers import PreTrainedTokenizerFast

from stages.data import rows

SHAPE = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 576,
    "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": True, "max_position_embeddings": 2048, "hidden_act": "silu",
    "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "float32",
}  # fmt: skip
SMALL = SHAPE | {"hidden_size": 12, "intermediate_size": 8, "num_hidden_layers": 1,
                 "num_attention_heads": 3, "num_key_value_heads": 3}  # fmt: skip


def setup(directory: Path, data: Path) -> None:
    """Write the model of SmolLM's shape, a small one, the tokenizer and all rows; not twice."""
    if (directory / "done").exists():
        return
    books = [book for part in sorted((data / "books").glob("*.gz"))[:4] for book in lines(part)]
    texts = {"wikisql": [row["text"] for row in lines(data / "wikisql" / "train.jsonl")],
             "snips": snips(data / "snips"),
             "long": [book["text"][50_000:60_000] for book in books[:40]]}  # fmt: skip
    corpus = [*(book["text"] for book in books), *texts["wikisql"], *texts["snips"]]
    tokenizer = new_tokenizer(corpus, SHAPE["vocab_size"])
    for name, shape in (("model", SHAPE), ("small", SMALL)):
        write_model(directory / name, shape)
        tokenizer.save_pretrained(directory / name)
    for name, found in texts.items():
        write_rows(directory, tokenizer, name, found, "all")
        write_rows(directory, tokenizer, f"{name}_last", found, "last")
    few = texts["wikisql"][::25]
    write_rows(directory, tokenizer, "few", few, "all")
    write_rows(directory, tokenizer, "few_answers", few, "answer")
    (directory / "done").touch()


def new_tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level tokenizer of `size` tokens on the texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as stream:
        yield from map(json.loads, stream)


def snips(folder: Path, pattern: str = "train_*_full.json") -> list[str]:
    """Return rows of SNIPS as text: the command, its intent and its slots."""
    texts = []
    for path in sorted(folder.glob(pattern)):
        content = path.read_bytes()
        encoding = "latin-1" if path.name == "train_PlayMusic_full.json" else "utf-8"
        for intent, found in json.loads(content.decode(encoding)).items():
            for row in found:
                slots = {p["entity"]: p["text"] for p in row["data"] if "entity" in p}
                command = "".join(part["text"] for part in row["data"])
                texts.append(f"{command}\n{json.dumps({'intent': intent, **slots})}")
    return texts


def write_model(directory: Path, shape: dict[str, Any]) -> None:
    """Write a Llama of this shape with random weights."""
    wide, inner, rng = shape["hidden_size"], shape["intermediate_size"], np.random.default_rng(0)
    keys = wide * shape["num_key_value_heads"] // shape["num_attention_heads"]
    sizes = {"self_attn.q_proj": (wide, wide), "self_attn.k_proj": (keys, wide),
             "self_attn.v_proj": (keys, wide), "self_attn.o_proj": (wide, wide),
             "mlp.gate_proj": (inner, wide), "mlp.up_proj": (inner, wide),
             "mlp.down_proj": (wide, inner)}  # fmt: skip
    tensors = {"model.embed_tokens": (shape["vocab_size"], wide), "model.norm": (wide,)}
    for layer in range(shape["num_hidden_layers"]):
        block = sizes | {"input_layernorm": (wide,), "post_attention_layernorm": (wide,)}
        tensors |= {f"model.layers.{layer}.{name}": size for name, size in block.items()}
    weights = {
        f"{name}.weight": np.ones(size, np.float32)
        if len(size) == 1
        else 0.02 * rng.standard_normal(size, np.float32)
        for name, size in tensors.items()
    }
    directory.mkdir(parents=True, exist_ok=True)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(shape))


def write_rows(directory: Path, tokenizer: Any, name: str, texts: Sequence[str], kind: str) -> None:
    """Write the same rows as text and as tokens, of which all, the last or the answer's train."""
    pairs = []
    for text in texts:
        tokens = [*tokenizer.encode(text), tokenizer.eos_token_id][:MAX_TOKENS]
        answer = len(tokenizer.encode(text.partition("\nA: ")[0]))
        start = {"all": 1, "last": len(tokens) - 1, "answer": answer}[kind]
        supervised = (np.arange(len(tokens)) >= start).astype(np.uint8)
        pairs.append((np.array(tokens, np.int32), supervised))
    place = directory / name
    place.mkdir(parents=True, exist_ok=True)
    rows.write_rows(place / "train.safetensors", pairs)
    rows.write_rows(place / "valid.safetensors", [])
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (place / "train.jsonl").write_text(content, encoding="utf-8")


if __name__ == "__main__":
    setup(*map(Path, sys.argv[1:]))
