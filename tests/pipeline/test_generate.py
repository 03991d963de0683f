"""A trained model can be talked to, by one prompt, by a file of them, and line by line."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import load, stream_generate

from pipeline import environment, generate
from pipeline.errors import Refused
from pipeline.prompts import read_prompts
from pipeline.record import RunRecord
from pipeline.store import Store
from stages.generation.engine import Engine, Job
from stages.generation.sampling import Sampling
from stages.lora.files import save_adapter
from stages.lora.layers import AdapterShape, linear_dims
from stages.lora.targets import find_targets
from stages.models.loading import read_model
from stages.models.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]
TEXT_RUN = "text/20260101-000000"
PROMPT = "When is my next meeting?"


class Made(NamedTuple):
    """A directory with outputs/ in which runs lie as the orchestrator leaves them."""

    cwd: Path
    base: Path
    adapter: Path


def commit(store: Store, stage: str, key: str, fill: Any) -> Any:
    staging = store.stage_directory(stage, key)
    fill(staging)
    return store.commit(staging, stage, key, ingredients={}, metrics={}, seconds=1.0)


@pytest.fixture(scope="module")
def made(draw_model, tmp_path_factory) -> Made:
    """Two finished runs of a model drawn anew: `chat`, and `text`, which has no adapter."""
    cwd = tmp_path_factory.mktemp("made")
    store = Store(cwd / "outputs" / "store")
    base = commit(store, "model", "0" * 64, draw_model)

    def fill(out: Path) -> None:
        module, _ = read_model(base.directory)
        targets = find_targets(module, ("*",), None)
        layers, random = dict(module.named_modules()), np.random.default_rng(1)
        weights = {}
        for path in targets.paths:
            inputs, outputs = linear_dims(layers[path])
            lora_a, lora_b = (
                random.normal(size=size) * 0.1 for size in ((inputs, 2), (2, outputs))
            )
            weights[path] = {"lora_a": mx.array(lora_a, mx.float32),
                             "lora_b": mx.array(lora_b, mx.float32)}  # fmt: skip
        save_adapter(out, weights, AdapterShape(2, 1.0), targets, {})

    adapter = commit(store, "train", "1" * 64, fill)
    for name in ("text", "chat"):
        config = {"name": name, "outputs": "outputs", "data": {"format": "auto"},
                  "model": {"path": "tiny", "dtype": None, "init_seed": 0}}  # fmt: skip
        model = {"path": "tiny", "kind": "tiny", "commit": None, "key": "0" * 64}
        directory = cwd / "outputs" / "runs" / name / "20260101-000000"
        with RunRecord.start(
            directory, config=config, command=[], model=model, environment={}
        ) as run:
            run.link_stage("model", base.directory)
            run.stage("prepare", name, "ran", commit(store, "prepare", name, doctor(name)))
            if name == "chat":
                run.stage("train", "1" * 64, "ran", adapter)
    return Made(cwd, base.directory, adapter.directory)


def doctor(kind: str) -> Callable[[Path], None]:
    return lambda out: (out / "doctor.json").write_text(json.dumps({"kind": kind}))


def expected(made: Made, adapter: Path | None, messages: list[dict], max_tokens: int) -> str:
    """Answer as mlx-lm does with the same files."""
    model, tokenizer = load(str(made.base), adapter_path=str(adapter) if adapter else None)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    parts = stream_generate(model, tokenizer, prompt, max_tokens=max_tokens)
    ids = [part.token for part in parts if part.finish_reason != "stop"]
    return tokenizer.decode(ids, skip_special_tokens=True)


def call(made: Made, monkeypatch, *arguments: str) -> int:
    monkeypatch.chdir(made.cwd)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return generate.main(arguments)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_one_prompt_is_answered_by_the_tuned_model(made: Made, monkeypatch, capsys) -> None:
    """The answer is mlx-lm's own with base and adapter; the speed stands on stderr."""
    assert call(made, monkeypatch, "--prompt", PROMPT, "--max-tokens", "12") == 0
    said = capsys.readouterr()
    assert said.out == expected(made, made.adapter, [user(PROMPT)], 12) + "\n"
    assert said.err.startswith("12 tokens, ")
    assert said.err.endswith(" tokens/s\n")


def test_file_of_prompts_is_answered_in_order(made: Made, monkeypatch, capsys, tmp_path) -> None:
    """Each row of a file comes back in its order with its answer, from the base if asked."""
    turns = [user("a"), {"role": "assistant", "content": "b"}, user("c " * 30)]
    rows = [{"messages": turns, "id": 7}, {"prompt": "short\u2028er"}, {"prompt": PROMPT}]
    source, target = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    source.write_text(f"{lines[0]}\n\n{lines[1]}\r\n{lines[2]}")
    code = call(made, monkeypatch, "--prompts", str(source), "--out", str(target), "--base",
                "--system", "Be brief.", "--max-tokens", "9")  # fmt: skip
    assert code == 0
    assert capsys.readouterr().out == ""
    *answers, last = [json.loads(line or "0") for line in target.read_text().split("\n")]
    assert last == 0
    for row, answer in zip(rows, answers, strict=True):
        messages = [{"role": "system", "content": "Be brief."},
                    *row.get("messages", [user(str(row.get("prompt")))])]  # fmt: skip
        text = expected(made, None, messages, 9)
        assert answer == {**row, "answer": text, "finish_reason": "length"}


def test_conversation_keeps_its_turns(made: Made, monkeypatch) -> None:
    """Lines on standard input are turns of one conversation, until /exit; the model stays."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.generate", "--max-tokens", "6", "--seed", "3"],
        input=f"{PROMPT}\n\nAnd then?\n/exit\nnot read\n",
        cwd=made.cwd, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first = expected(made, made.adapter, [user(PROMPT)], 6)
    turns = [user(PROMPT), {"role": "assistant", "content": first}, user("And then?")]
    assert done.stdout == f"{first}\n{expected(made, made.adapter, turns, 6)}\n"
    assert done.stderr.count("6 tokens, ") == 2


def test_text_run_continues_the_text(made: Made, monkeypatch, capsys) -> None:
    """A run on text continues the prompt itself, without any turn, up to a stop text."""
    model, tokenizer = load(str(made.base))
    sampling = Sampling(max_tokens=24, temperature=1.5, seed=11)
    engine = Engine(model, load_tokenizer(made.base), [], batch_size=1)
    engine.insert(Job(prompt=tokenizer.encode("the evening"), sampling=sampling))
    whole = "".join(event.text for _ in range(30) for event in engine.step())
    stop = whole[8:11]
    arguments = ["--run", TEXT_RUN, "--base", "--prompt", "the evening", "--max-tokens", "24",
                 "--temperature", "1.5", "--seed", "11", "--stop", "never said"]  # fmt: skip
    assert call(made, monkeypatch, *arguments, "--stop", stop) == 0
    assert capsys.readouterr().out == whole[: whole.index(stop)] + "\n"


def test_ctrl_c_ends_an_answer_and_not_the_conversation(made: Made) -> None:
    """Ctrl-C stops the answer that is being written; the next line is answered all the same."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.generate", "--max-tokens", "300", "--base"],
        cwd=made.cwd, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, bufsize=0,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    process.stdin.write("Hello\n")
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    process.stdin.write("Hello\n/exit\n")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err.startswith("interrupted\n")
    assert " tokens/s" in err
    assert out.count("\n") >= 2


def test_ctrl_c_ends_a_single_answer_with_130(made: Made) -> None:
    """Ctrl-C during the only answer leaves with 130, at once and without a traceback."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.generate", "--prompt", "Hi", "--max-tokens", "900"],
        cwd=made.cwd, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "interrupted\n"


def refused(made: Made, monkeypatch, capsys, *arguments: str) -> str:
    assert call(made, monkeypatch, *arguments) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert len(said.err.splitlines()) <= 3
    return said.err


def test_what_the_user_can_mend_is_refused(made: Made, monkeypatch, capsys, tmp_path) -> None:
    """Each mistake is named with the flag, file or line to mend, and exit code 1."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    dialogue = tmp_path / "dialogue.jsonl"
    turns = [user("a"), {"role": "assistant", "content": "b"}]
    dialogue.write_text(json.dumps({"messages": turns}))
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")

    def said(*arguments: str) -> str:
        return refused(made, monkeypatch, capsys, *arguments)

    assert "did you mean" in said("--run", "chat/20260101-00000")
    assert "no adapter" in said("--run", TEXT_RUN, "--prompt", "x")
    assert "--out" in said("--prompt", "x", "--out", "y")
    assert "rows.jsonl:2" in said("--prompts", str(rows))
    assert "dialogue.jsonl:1: ends in an assistant turn" in said("--prompts", str(dialogue))
    assert "no prompts" in said("--prompts", str(empty))
    assert "gone.txt: cannot be read" in said("--prompts", str(tmp_path / "gone.txt"))
    assert "--system" in said("--run", TEXT_RUN, "--base", "--system", "x", "--prompt", "y")
    cannot = str(tmp_path / "no" / "folder.jsonl")
    assert "cannot be written" in said("--prompts", __file__, "--out", cannot)


def test_without_mlx_the_package_is_named(made: Made, monkeypatch, capsys) -> None:
    """Where MLX is not installed, exit code 3 and the command that installs it."""
    monkeypatch.setattr(environment, "versions", dict.fromkeys)
    assert call(made, monkeypatch, "--prompt", "x") == 3
    assert "pip install" in capsys.readouterr().err


def test_sampling_out_of_range_is_refused_by_its_flag(made: Made, monkeypatch, capsys) -> None:
    """A value that only the worker can judge comes back under the name of its flag."""
    text = refused(made, monkeypatch, capsys, "--prompt", "x", "--top-p", "1.5")
    assert text.startswith("error: --top-p: found 1.5, expected ")


def test_damaged_adapter_is_refused(made: Made, monkeypatch, capsys) -> None:
    """An adapter that is not as it was committed is not used."""
    file = made.adapter / "adapter_config.json"
    content = file.read_bytes()
    try:
        file.write_bytes(content + b" ")
        text = refused(made, monkeypatch, capsys, "--prompt", "x")
    finally:
        file.write_bytes(content)
    assert "gone or damaged" in text


def test_text_files_have_a_prompt_on_each_line(tmp_path: Path) -> None:
    """Empty lines count for nothing, white space around a prompt is kept, lines keep their
    numbers."""
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff one\r\n\n \ntwo\u2028three".encode())
    prompts, rows = read_prompts(path, chat=False, system=None)
    assert prompts == [{"where": f"{path}:1", "text": " one"},
                       {"where": f"{path}:4", "text": "two\u2028three"}]  # fmt: skip
    assert rows == [{"prompt": " one"}, {"prompt": "two\u2028three"}]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"{", "not JSON"), (b"[]", "an object"), (b'{"prompt": 3}', "either"),
        (b'{"messages": "a"}', "either"), (b'{"prompt": "a", "messages": 1}', "either"),
        (b'{"prompt": null}', "either"), (b"\xff", "not UTF-8"),
    ],
)  # fmt: skip
def test_line_that_is_no_prompt_is_named(tmp_path: Path, line: bytes, found: str) -> None:
    """A wrong line of a file is refused with its number and what is wrong."""
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "good"}\n' + line)
    with pytest.raises(Refused) as caught:
        read_prompts(path, chat=True, system=None)
    assert found in caught.value.found
    assert caught.value.where in (str(path), f"{path}:2")


@pytest.fixture(autouse=True)
def _signals_are_restored() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
