"""A chat template of one's own, from prepare to every way of asking the tuned model."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from transformers import AutoTokenizer

from stages.artifacts import Adapter, BaseModel, Merged, Prepared
from stages.data.rows import Rows, open_rows
from stages.generation.answer import answer
from stages.lora.description import trained_template
from stages.merge import merge
from stages.prepare import prepare
from stages.serving.offer import open_offer
from stages.serving.wire import ChatRequest
from stages.settings import Data, Lora, Merge
from stages.train import train
from stages.training_settings import Optimizer, Train

LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}<<SYS>>{{ m.content }}<</SYS>>"
    "{% elif m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
"""In the manner of Llama 2: there is no generation prompt, and an answer begins with a space."""


class Silent:
    """A reporter that says nothing; what a model says it keeps, by the place of its prompt."""

    def __init__(self) -> None:
        self.said: dict[int, str] = {}

    def log(self, message: str) -> None: ...

    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...

    def progress(self, done: int, total: int, fields: Mapping[str, float]) -> None: ...

    def stop_requested(self) -> bool:
        return False

    def text(self, index: int, text: str, finish_reason: str | None) -> None:
        self.said[index] = text


class Chain(NamedTuple):
    """What each stage left."""

    model: BaseModel
    prepared: Prepared
    adapter: Adapter
    merged: Merged


def conversation(number: int) -> dict[str, Any]:
    first = [{"role": "system", "content": "Spell <|im_end|> out."}] if number % 2 else []
    return {"messages": [
        *first, {"role": "user", "content": f"Is {number} even?"},
        {"role": "assistant", "content": "No." if number % 2 else "Yes."},
        {"role": "user", "content": "Sure?\n" * number},
        {"role": "assistant", "content": f"As sure as {number}."},
    ]}  # fmt: skip


@pytest.fixture
def chain(tiny_llama: Callable[..., Any], byte_model: Callable[..., Path], tmp_path: Path) -> Chain:
    """Prepare, train two steps and merge a ChatML model with the other template."""
    directory = byte_model(special=("<|im_start|>", "<|im_end|>", "<s>"), bos="<s>")
    llama = tiny_llama(vocab_size=259)
    mx.save_safetensors(
        str(directory / "model.safetensors"), dict(tree_flatten(llama.parameters()))
    )
    config = {name: value for name, value in vars(llama.args).items() if value is not None}
    (directory / "config.json").write_text(json.dumps(config))
    model = BaseModel(directory=directory, dtype="float32")
    (tmp_path / "llama2.jinja").write_text(LLAMA2)
    rows = tmp_path / "rows"
    rows.mkdir()
    for split, numbers in (("train", range(4)), ("test", range(4, 8))):
        text = "".join(json.dumps(conversation(number)) + "\n" for number in numbers)
        (rows / f"{split}.jsonl").write_text(text)
    data = Data(
        stage="stages.prepare.prepare", path=str(rows), format="auto", supervise="last",
        chat_template=str(tmp_path / "llama2.jinja"), max_seq_length=512, overlong="error",
        valid_fraction=0.0, test_fraction=0.0, duplicates="keep", leakage="keep", redact=False,
        encoding="utf-8", on_error="fail",
    )  # fmt: skip
    prepared = prepare(data, 0, model=model, report=Silent(), out=tmp_path / "prepared")
    lora = Lora(stage="stages.train.train", type="lora", rank=2, alpha=4.0, dropout=0.0,
                targets=("*",), num_layers=None)  # fmt: skip
    optimizer = Optimizer(
        name="adamw", learning_rate=1e-2, schedule="constant", warmup_fraction=0.0, eps=1e-8,
        max_grad_norm=1.0, betas=(0.9, 0.999), weight_decay=0.0,
    )  # fmt: skip
    steps = Train(epochs=1, batch_size=2, grad_accumulation_steps=1, gradient_checkpointing=False,
                  callbacks=(), validations_per_epoch=1, log_every=1,
                  checkpoint_every="5m", resume="auto")  # fmt: skip
    adapter = train(lora, optimizer, steps, 0, model=model, prepared=prepared, report=Silent(),
                    out=tmp_path / "adapter")  # fmt: skip
    how = Merge(stage="stages.merge.merge", quantized="dequantize", dtype=None, rows=2,
                min_kept=0.0)  # fmt: skip
    merged = merge(how, model=model, prepared=prepared, adapter=adapter, report=Silent(),
                   out=tmp_path / "merged")  # fmt: skip
    return Chain(model, prepared, adapter, merged)


def trained_after(rows: Rows, index: int) -> list[int]:
    tokens, supervised = rows[index]
    prompt: list[int] = tokens[: int(np.flatnonzero(supervised)[0])].tolist()
    return prompt


def test_every_way_of_asking_is_the_one_trained(chain: Chain) -> None:
    """Served adapter, served merge, transformers and mlx-lm all begin an answer after the tokens
    that the rows were trained after; the base is asked in its own."""
    digest = hashlib.sha256(LLAMA2.encode()).hexdigest()
    recorded = json.loads((chain.adapter.directory / "adapter_config.json").read_text())
    assert recorded["chat_template_sha256"] == digest
    names = {"base": None, "tuned": "tuned"}
    template = trained_template(chain.adapter.directory)
    served = open_offer(chain.model.directory, names, 8, template)
    alone = open_offer(chain.merged.directory, {"tuned": None}, 8)
    base, merged = chain.model.directory, chain.merged.directory
    others = (AutoTokenizer.from_pretrained(merged), mlx_lm.load(str(merged))[1])
    own = AutoTokenizer.from_pretrained(base)
    assert [tokenizer.chat_template for tokenizer in others] == [LLAMA2, LLAMA2]
    rows = open_rows(chain.prepared.directory, "test")
    assert len(rows) == 4
    for index, number in enumerate(range(4, 8)):
        turns = conversation(number)["messages"][:-1]
        expected = trained_after(rows, index)
        request = ChatRequest(model="tuned", messages=turns)
        for offer in (served, alone):
            assert offer.job(request, offer.sampling(request)).prompt == expected
        if number % 2 == 0:
            # The odd rows spell a special token, which these take for one.
            for tokenizer in others:
                found = tokenizer.apply_chat_template(
                    turns, add_generation_prompt=True, return_dict=False
                )
                assert found == expected
            untuned = request.model_copy(update={"model": "base"})
            assert served.job(untuned, served.sampling(untuned)).prompt == (
                own.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
            )


def test_talking_continues_the_tokens_trained_after(chain: Chain) -> None:
    """`pipeline.generate` says what mlx-lm makes the merged model say after those tokens."""
    rows = open_rows(chain.prepared.directory, "test")
    prompts = [{"where": "here", "messages": conversation(number)["messages"][:-1], "tools": None}
               for number in range(4, 8)]  # fmt: skip
    report = Silent()
    answer(prompts, {"max_tokens": 6}, True, model=chain.model, adapter=chain.adapter,
           report=report)  # fmt: skip
    module, tokenizer = mlx_lm.load(str(chain.merged.directory))
    for index in range(4):
        parts = mlx_lm.stream_generate(module, tokenizer, trained_after(rows, index), max_tokens=6)
        ids = [part.token for part in parts if part.finish_reason != "stop"]
        assert report.said[index] == tokenizer.decode(ids, skip_special_tokens=True)
