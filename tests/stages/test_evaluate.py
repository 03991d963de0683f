"""Scores are those of PyTorch on the same rows, and the files show what they were made from."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stages.artifacts import Adapter, BaseModel, Prepared, Report
from stages.data.rows import open_rows
from stages.errors import InputError, StopRequested
from stages.evaluate import evaluate, evaluate_base
from stages.lora.files import save_adapter
from stages.lora.layers import AdapterShape, linear_dims
from stages.lora.targets import find_targets
from stages.models.loading import load_model
from stages.models.tokenizer import load_tokenizer
from stages.prepare import prepare
from stages.settings import Data, Evaluate

SETTINGS = Evaluate(
    stage="stages.evaluate.evaluate", rows=None, batch_size=3, max_tokens=12, samples=2
)
END = 257
SCALE = 2.0


class Silent:
    """A reporter for what only prepares a test."""

    def log(self, message: str) -> None: ...

    def metrics(self, step: int, values: dict[str, float]) -> None: ...

    def progress(self, done: int, total: int, fields: dict[str, float]) -> None: ...

    def stop_requested(self) -> bool:
        return False


@pytest.fixture(scope="module")
def model(byte_model) -> BaseModel:
    """A Llama of bytes with random weights that PyTorch made."""
    directory = byte_model(config={"eos_token_id": END})
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=160,
        eos_token_id=END, bos_token_id=None, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": END}))
    return BaseModel(directory=directory, dtype="float32")


def chat(number: int) -> dict[str, Any]:
    question = {"role": "user", "content": f"{number} and {'more ' * (number % 4)}?"}
    answer = f'{{"n": {number}}}' if number % 2 else f"It is {number}."
    return {"messages": [question, {"role": "assistant", "content": answer}]}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def prepared(model: BaseModel, tmp_path_factory) -> Prepared:
    """7 conversations to validate and 5 to test, some answered by JSON."""
    folder = tmp_path_factory.mktemp("rows")
    for split, numbers in (("train", [0]), ("valid", range(7)), ("test", range(7, 12))):
        write(folder / f"{split}.jsonl", [chat(number) for number in numbers])
    return make(folder, model, folder / "out")


def make(path: Path, model: BaseModel, out: Path, **changes: Any) -> Prepared:
    values: dict[str, Any] = {
        "stage": "stages.prepare.prepare", "path": str(path), "format": "auto",
        "overlong": "error", "supervise": "assistant", "max_seq_length": 512,
        "valid_fraction": 0.0, "test_fraction": 0.0, "duplicates": "keep", "leakage": "keep",
        "redact": False, "encoding": "utf-8", "on_error": "fail",
    }  # fmt: skip
    data = Data(**values | changes)
    return prepare(data, 0, model=model, report=Silent(), out=out)


@pytest.fixture(scope="module")
def adapter(model: BaseModel, tmp_path_factory) -> Adapter:
    """A random adapter of rank 2 on every linear layer."""
    module = load_model(model)
    targets = find_targets(module, ("*",), None)
    layers = dict(module.named_modules())
    random = np.random.default_rng(5)
    weights = {}
    for path in targets.paths:
        input_dims, output_dims = linear_dims(layers[path])
        weights[path] = {
            "lora_a": mx.array(random.normal(size=(input_dims, 2), scale=0.2).astype(np.float32)),
            "lora_b": mx.array(random.normal(size=(2, output_dims), scale=0.2).astype(np.float32)),
        }
    directory = tmp_path_factory.mktemp("adapter")
    save_adapter(directory, weights, AdapterShape(2, SCALE), targets, {})
    return Adapter(directory=directory)


def oracle(model: BaseModel, adapter: Adapter | None = None) -> LlamaForCausalLM:
    """The same model in PyTorch, the adapter folded into its weights."""
    torch_model = LlamaForCausalLM.from_pretrained(model.directory).eval()
    if adapter is not None:
        tensors = mx.load(str(adapter.directory / "adapters.safetensors"))
        for name, parameter in torch_model.named_parameters():
            path = name.removesuffix(".weight")
            if f"{path}.lora_a" in tensors:
                lora_a, lora_b = (np.array(tensors[f"{path}.lora_{x}"]) for x in "ab")
                parameter.data += torch.tensor(SCALE * (lora_a @ lora_b).T)
    return torch_model


def oracle_loss(
    torch_model: LlamaForCausalLM, prepared: Prepared, split: str, wanted: list[int] | None = None
) -> float:
    """Return the mean loss of a split, or of some of its rows."""
    total, count = 0.0, 0
    rows = open_rows(prepared.directory, split)
    for index in range(len(rows)) if wanted is None else wanted:
        tokens, supervised = rows[index]
        with torch.no_grad():
            logits = torch_model(torch.tensor(tokens[None], dtype=torch.long)).logits[0, :-1]
        targets = torch.tensor(tokens[1:], dtype=torch.long)
        losses = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="none")
        trained = torch.tensor(supervised[1:] != 0)
        total += float(losses[trained].sum())
        count += int(trained.sum())
    return total / count


def oracle_answer(
    torch_model: LlamaForCausalLM, model: BaseModel, line: dict, template: str | None = None
) -> tuple[str, str]:
    tokenizer = load_tokenizer(model.directory)
    ids = tokenizer.apply_chat_template(
        line["prompt"], tools=line.get("tools"), chat_template=template,
        add_generation_prompt=True, return_dict=False,
    )  # fmt: skip
    with torch.no_grad():
        made = torch_model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False, max_new_tokens=SETTINGS.max_tokens, pad_token_id=0,
        )[0, len(ids):].tolist()  # fmt: skip
    ended = made[-1] == END
    return tokenizer.decode(made, skip_special_tokens=True), "stop" if ended else "length"


def lines(report: Report) -> list[dict[str, Any]]:
    *texts, last = (report.directory / "answers.jsonl").read_text().split("\n")
    assert last == ""
    return [json.loads(text) for text in texts]


@pytest.fixture(scope="module")
def baseline(model: BaseModel, prepared: Prepared, tmp_path_factory) -> Report:
    out = tmp_path_factory.mktemp("baseline")
    return evaluate_base(SETTINGS, 0, model=model, prepared=prepared, report=Silent(), out=out)


def test_base_scores_are_pytorchs(model, prepared, baseline) -> None:
    """Loss, perplexity and every greedy answer of the base are those of PyTorch, row by row."""
    torch_model = oracle(model)
    for split, count in (("valid", 7), ("test", 5)):
        expected = oracle_loss(torch_model, prepared, split)
        assert baseline.metrics[f"base.{split}.loss"] == pytest.approx(expected, rel=1e-5)
        perplexity = baseline.metrics[f"base.{split}.perplexity"]
        assert perplexity == pytest.approx(math.exp(expected), rel=1e-4)
        assert sum(line["split"] == split for line in lines(baseline)) == count
    for line in lines(baseline):
        answer = oracle_answer(torch_model, model, line)
        assert (line["base"]["text"], line["base"]["finish_reason"]) == answer


def test_tuned_scores_are_pytorchs(
    model, prepared, adapter, baseline, tmp_path: Path, diary
) -> None:
    """With the adapter the same holds, beside the untouched scores of the base."""
    report = diary()
    scored = evaluate(SETTINGS, 0, model=model, prepared=prepared, adapter=adapter,
                      baseline=baseline, report=report, out=tmp_path)  # fmt: skip
    torch_model = oracle(model, adapter)
    assert baseline.metrics.items() < scored.metrics.items()
    for split in ("valid", "test"):
        expected = oracle_loss(torch_model, prepared, split)
        assert scored.metrics[f"tuned.{split}.loss"] == pytest.approx(expected, rel=1e-5)
        assert abs(expected - scored.metrics[f"base.{split}.loss"]) > 0.1
        assert scored.metrics[f"tuned.{split}.json_valid"] == 0.0
        assert scored.metrics[f"tuned.{split}.slot_f1"] == 0.0
    for before, line in zip(lines(baseline), lines(scored), strict=True):
        assert line.items() > before.items()
        answer = oracle_answer(torch_model, model, line)
        assert (line["tuned"]["text"], line["tuned"]["finish_reason"]) == answer
    ended = [line["tuned"]["finish_reason"] == "stop" for line in lines(scored)[:7]]
    assert scored.metrics["tuned.valid.stop_rate"] == pytest.approx(sum(ended) / 7)
    assert report.steps[-1] == (24, 24)


def test_report_says_how_it_was_made(prepared, baseline) -> None:
    """report.json holds the metrics, a definition of each, and the counts behind them."""
    described = json.loads((baseline.directory / "report.json").read_text())
    assert described["format"] == 1
    assert described["metrics"] == baseline.metrics
    assert {name.rpartition(".")[2] for name in baseline.metrics} | {"bits_per_byte"} == (
        described["definitions"].keys()
    )
    supervised = open_rows(prepared.directory, "test")
    tokens = sum(int(supervised[index][1].sum()) for index in range(5))
    assert described["counts"]["test"] == {
        "rows": 5, "scored_rows": 5, "supervised_tokens": tokens, "json_references": 3,
        "reference_slots": 3, "tool_calls": 0,
    }  # fmt: skip


def test_batch_size_and_samples_change_no_score(
    model, prepared, baseline, tmp_path: Path, diary
) -> None:
    """Alone or in a batch a row is answered alike; how many answers are shown decides nothing."""
    settings = replace(SETTINGS, batch_size=1, samples=0)
    again = evaluate_base(settings, 0, model=model, prepared=prepared, report=diary(), out=tmp_path)
    assert lines(again) == lines(baseline)
    assert again.metrics == pytest.approx(baseline.metrics)


def test_samples_are_shown_side_by_side(
    model, prepared, adapter, baseline, tmp_path: Path, diary
) -> None:
    """So many test rows are logged with what was asked, expected and said; 0 logs none."""
    for samples in (2, 0):
        report = diary()
        scored = evaluate(replace(SETTINGS, samples=samples), 0, model=model, prepared=prepared,
                          adapter=adapter, baseline=baseline, report=report,
                          out=tmp_path / str(samples))  # fmt: skip
        assert len(report.lines) == (samples > 0)
        text = "\n".join(report.lines)
        shown = [line for line in lines(scored) if line["split"] == "test"][:samples]
        assert text.count("expected") == samples
        for line in shown:
            assert line["reference"] in text
            assert line["prompt"][-1]["content"] in text


def test_limited_rows_are_scored_alike_for_both(
    model, prepared, adapter, tmp_path: Path, diary
) -> None:
    """evaluate.rows scores the same drawn rows of base and tuned, and another seed other rows."""
    settings = replace(SETTINGS, rows=2)
    scored = []
    for seed in (0, 1):
        out = tmp_path / str(seed)
        base = evaluate_base(settings, seed, model=model, prepared=prepared, report=diary(),
                             out=out / "base")  # fmt: skip
        scored.append(
            evaluate(settings, seed, model=model, prepared=prepared, adapter=adapter,
                     baseline=base, report=diary(), out=out / "tuned")
        )  # fmt: skip
        assert len(lines(scored[-1])) == 4
    with pytest.raises(InputError) as caught:
        evaluate(settings, 0, model=model, prepared=prepared, adapter=adapter, baseline=base,
                 report=diary(), out=tmp_path / "mixed")  # fmt: skip
    assert caught.value.where.endswith("answers.jsonl")


def test_text_rows_are_not_asked(model, adapter, tmp_path: Path, diary) -> None:
    """Text has a loss and bits per byte, and no answers; a split without rows has no metric. The
    model knows bytes alone, so that each predicted token but the end is a byte."""
    for split, texts in (("train", ["x"]), ("test", ["one", "two and a half, été 𝄞"])):
        write(tmp_path / f"{split}.jsonl", [{"text": text} for text in texts])
    changes = {"overlong": "split", "max_seq_length": 12}
    prepared = make(tmp_path, model, tmp_path / "out", **changes)
    base = evaluate_base(SETTINGS, 0, model=model, prepared=prepared, report=diary(),
                         out=tmp_path / "base")  # fmt: skip
    report = diary()
    scored = evaluate(SETTINGS, 0, model=model, prepared=prepared, adapter=adapter, baseline=base,
                      report=report, out=tmp_path / "tuned")  # fmt: skip
    names = {f"{who}.test.{what}" for who in ("base", "tuned")
             for what in ("loss", "perplexity", "bits_per_byte")}  # fmt: skip
    assert scored.metrics.keys() == names
    expected = oracle_loss(oracle(model, adapter), prepared, "test")
    assert scored.metrics["tuned.test.loss"] == pytest.approx(expected, rel=1e-5)
    rows = open_rows(prepared.directory, "test")
    predicted = np.concatenate([rows[index][0][1:] for index in range(len(rows))])
    text_bytes = int((predicted < 256).sum())
    assert (len(rows), len(predicted) - text_bytes) == (4, 2)
    bits = expected * len(predicted) / math.log(2)
    assert scored.metrics["tuned.test.bits_per_byte"] == pytest.approx(bits / text_bytes, rel=1e-5)
    counts = json.loads((scored.directory / "report.json").read_text())["counts"]["test"]
    assert counts == {"rows": 4, "scored_rows": 4, "supervised_tokens": len(predicted),
                      "text_rows": 4, "text_bytes": text_bytes}  # fmt: skip
    assert lines(scored) == []
    assert report.lines == []


def test_bits_per_byte_of_a_uniform_model(model, tmp_path: Path, diary) -> None:
    """A model to which all 258 tokens are as likely needs log2(258) bits for each of them."""
    write(tmp_path / "train.jsonl", [{"text": "x"}])
    write(tmp_path / "valid.jsonl", [{"text": "hé"}, {"text": "abcd"}])
    directory = shutil.copytree(model.directory, tmp_path / "uniform")
    torch_model = LlamaForCausalLM.from_pretrained(directory)
    torch_model.lm_head.weight.data.zero_()
    torch_model.save_pretrained(directory)
    uniform = BaseModel(directory=directory, dtype="float32")
    base = evaluate_base(SETTINGS, 0, model=uniform, prepared=make(tmp_path, model, tmp_path / "o"),
                         report=diary(), out=tmp_path / "base")  # fmt: skip
    # Predicted are two bytes and the end of the one, three bytes and the end of the other.
    expected = math.log2(258) * 7 / 5
    assert base.metrics["base.valid.bits_per_byte"] == pytest.approx(expected, rel=1e-6)


TOOLS_TEMPLATE = (
    "{% for t in tools or [] %}({{ t.function.name }}){% endfor %}{% for m in messages %}"
    "[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}"
    "!{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def template(folder: Path) -> str:
    """Write the template into a file and return its name, for data.chat_template."""
    path = folder / "own.jinja"
    path.write_text(TOOLS_TEMPLATE)
    return str(path)


def test_mixed_rows_have_a_loss_and_conversations_answers(
    model, adapter, tmp_path: Path, diary
) -> None:
    """The loss is that of every row; asked are conversations alone, unless they end in a call of a
    tool, which is counted and said."""
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    asks = {"role": "assistant", "content": "I call.", "tool_calls": [call]}
    calling = {"messages": [{"role": "user", "content": "1?"}, asks]}
    tools = {"tools": [{"type": "function", "function": {"name": "add", "parameters": {}}}]}
    rows = {"train": [chat(0)], "test": [{"text": "some text"}, chat(1) | tools, calling, chat(2)]}
    for split, some in rows.items():
        write(tmp_path / f"{split}.jsonl", some)
    prepared = make(tmp_path, model, tmp_path / "out", chat_template=template(tmp_path))
    base = evaluate_base(SETTINGS, 0, model=model, prepared=prepared, report=diary(),
                         out=tmp_path / "base")  # fmt: skip
    report = diary()
    scored = evaluate(SETTINGS, 0, model=model, prepared=prepared, adapter=adapter, baseline=base,
                      report=report, out=tmp_path / "tuned")  # fmt: skip
    torch_model = oracle(model, adapter)
    expected = oracle_loss(torch_model, prepared, "test")
    assert scored.metrics["tuned.test.loss"] == pytest.approx(expected, rel=1e-5)
    bits = oracle_loss(torch_model, prepared, "test", [0]) * len("some text") / math.log(2)
    expected = bits / (len("some text") - 1)
    assert scored.metrics["tuned.test.bits_per_byte"] == pytest.approx(expected, rel=1e-5)
    assert [line["row"] for line in lines(scored)] == [1, 3]
    for line in lines(base):
        answer = oracle_answer(oracle(model), model, line, TOOLS_TEMPLATE)
        assert (line["base"]["text"], line["base"]["finish_reason"]) == answer
    counts = json.loads((scored.directory / "report.json").read_text())["counts"]["test"]
    assert (counts["rows"], counts["scored_rows"], counts["tool_calls"]) == (4, 4, 1)
    assert report.lines[0].startswith("test: 1 rows end in a call of a tool")
    assert report.steps[-1] == (6, 6)


def test_given_chat_template_asks_both(model, tmp_path: Path, diary) -> None:
    """The template of data.chat_template is what the base is asked with too; PyTorch answers the
    same to the same tokens."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for split, numbers in (("train", [0]), ("test", range(4))):
        write(folder / f"{split}.jsonl", [chat(number) for number in numbers])
    prepared = make(folder, model, tmp_path / "out", chat_template=template(tmp_path))
    base = evaluate_base(SETTINGS, 0, model=model, prepared=prepared, report=diary(),
                         out=tmp_path / "base")  # fmt: skip
    plain = evaluate_base(SETTINGS, 0, model=model, prepared=make(folder, model, tmp_path / "own"),
                          report=diary(), out=tmp_path / "plain")  # fmt: skip
    assert [line["base"] for line in lines(base)] != [line["base"] for line in lines(plain)]
    for line in lines(base):
        answer = oracle_answer(oracle(model), model, line, TOOLS_TEMPLATE)
        assert (line["base"]["text"], line["base"]["finish_reason"]) == answer


def test_prompt_that_fills_the_context_gets_no_answer(model, tmp_path: Path, diary) -> None:
    """A row longer than the model's context costs its own answer, not the stage."""
    long = chat(1)
    long["messages"][0]["content"] = "x" * 200
    for split, rows in (("train", [chat(0)]), ("valid", [long, chat(2)]), ("test", [chat(3)])):
        write(tmp_path / f"{split}.jsonl", rows)
    prepared = make(tmp_path, model, tmp_path / "out")
    base = evaluate_base(SETTINGS, 0, model=model, prepared=prepared, report=diary(),
                         out=tmp_path / "base")  # fmt: skip
    first, second, _ = lines(base)
    assert (first["base"]["text"], first["base"]["finish_reason"]) == ("", "length")
    assert second["base"]["completion_tokens"] > 0


def test_same_arguments_give_the_same_bytes(
    model, prepared, baseline, tmp_path: Path, diary
) -> None:
    """Scoring again leaves the same files, byte by byte."""
    again = evaluate_base(SETTINGS, 0, model=model, prepared=prepared, report=diary(), out=tmp_path)
    for name in ("answers.jsonl", "report.json"):
        assert (again.directory / name).read_bytes() == (baseline.directory / name).read_bytes()


@pytest.mark.parametrize("looks", [0, 3, 20])
def test_stop_request_ends_the_stage(model, prepared, tmp_path: Path, diary, looks: int) -> None:
    """A request to stop ends the stage while it measures losses and while it answers."""
    with pytest.raises(StopRequested):
        evaluate_base(SETTINGS, 0, model=model, prepared=prepared, report=diary(looks),
                      out=tmp_path)  # fmt: skip


def test_adapter_of_another_base_is_refused(
    model, prepared, adapter, baseline, tmp_path: Path, diary
) -> None:
    """An adapter that does not fit is named before anything is scored."""
    other = shutil.copytree(adapter.directory, tmp_path / "other")
    config = json.loads((other / "adapter_config.json").read_text())
    config["lora_parameters"]["rank"] = 3
    (other / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as caught:
        evaluate(SETTINGS, 0, model=model, prepared=prepared, adapter=Adapter(directory=other),
                 baseline=baseline, report=diary(), out=tmp_path)  # fmt: skip
    assert "rank" in str(caught.value)
