"""What the user can mend is refused at once, in three lines, and nothing is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

REFUSED: list[tuple[str, str, str]] = [
    # unknown keys and groups
    ("lora.rnak=3", "lora.rnak", "did you mean lora.rank=3?"),
    ("rank=16", "rank", "did you mean lora.rank=16?"),
    ("lr=3e-5", "lr", "did you mean optimizer.learning_rate=3e-5?"),
    ("lora.batch_size=4", "lora.batch_size", "or train.batch_size=4?"),
    ("path=rows.jsonl", "path", "data.path=rows.jsonl or model.path=rows.jsonl?"),
    ("modle=tiny", "modle", "did you mean model=tiny?"),
    ("xyzzy=1", "xyzzy", "--cfg job shows all keys"),
    ("+foo=1", "foo", "no such key"),
    ("++foo.bar=1", "foo.bar", "no such key"),
    ("+lora.rnak=3", "lora.rnak", "did you mean lora.rank=3?"),
    ("++lora.rank=3", "++lora.rank=3", "write lora.rank=3"),
    ("~lora.rank", "~lora.rank", "set lora.rank to a value"),
    ("lora.rank.x=3", "lora.rank.x", "no such key"),
    ("model@lora=tiny", "model@lora=tiny", "write model=tiny"),
    ("stages=extend_list(train)", "stages=extend_list(train)", "write it whole"),
    ("hydra.rnu.dir=x", "hydra.rnu", "--cfg hydra"),
    # types
    ("lora.rank=q", "lora.rank", "found 'q', expected a whole number"),
    ("lora.rank=1.5", "lora.rank", "found 1.5, expected a whole number"),
    ("lora.rank=", "lora.rank", "found '', expected a whole number"),
    ("lora.rank=[1,2]", "lora.rank", "expected a whole number"),
    ("train.epochs=two", "train.epochs", "found 'two', expected a whole number"),
    ("train.epochs=null", "train.epochs", "found null, expected a whole number"),
    ("lora.type=x", "lora.type", "found 'x', expected one of lora, rslora"),
    ("optimizer.learning_rate=fast", "optimizer.learning_rate", "expected a number or auto"),
    ("optimizer.learning_rate=null", "optimizer.learning_rate", "found null, expected a number or"),
    ("optimizer.learning_rate=true", "optimizer.learning_rate", "found True, expected a number or"),
    ("optimizer.nesterov=maybe", "optimizer.nesterov", "true or false"),
    ("optimizer.betas=[0.9]", "optimizer.betas", "2 numbers in a list"),
    ("lora.targets=q_proj", "lora.targets", "write 'lora.targets=[q_proj]'"),
    ("stages=train", "stages", "write 'stages=[train]'"),
    ("seed=${lora.rnk}", "seed", "lora.rnk"),
    # ranges
    ("lora.rank=0", "lora.rank", "found 0, expected at least 1"),
    ("lora.dropout=1", "lora.dropout", "less than 1"),
    ("train.checkpoint_every=0", "train.checkpoint_every", "found 0, expected steps such as 50"),
    ("train.checkpoint_every=5s", "train.checkpoint_every", "or minutes: 5m"),
    ("train.checkpoint_every=null", "train.checkpoint_every", "a whole number or text"),
    ("train.resume=always", "train.resume", "expected one of auto, never"),
    ("train.init_adapter=", "train.init_adapter", "found '', expected a run, a directory"),
    ("optimizer.learning_rate=0", "optimizer.learning_rate", "found 0, expected a number above 0"),
    ("optimizer.learning_rate=inf", "optimizer.learning_rate", "found inf, expected a number"),
    ("train.patience=0", "train.patience", "found 0, expected at least 1"),
    ("train.prefix_cache_gb=0", "train.prefix_cache_gb", "more than 0, or null to keep nothing"),
    ("train.prefix_cache_gb=8GB", "train.prefix_cache_gb", "found '8GB', expected a number"),
    ("train.memory_limit=6", "train.memory_limit", "found 6, which is 6 bytes"),
    ("train.memory_limit=6gb", "train.memory_limit", "found '6gb', expected a size such as 6GB"),
    ("train.memory_limit=-6GB", "train.memory_limit", "expected a size such as 6GB, or null"),
    ("train.memory_limit=6.5", "train.memory_limit", "6.5"),
    ("train.memory_limit=true", "train.memory_limit", "rue"),
    ("train.workers=0", "train.workers", "found 0, expected at least 1"),
    ("train.workers=two", "train.workers", "found 'two', expected a whole number"),
    ("train.workers=99", "train.workers", "found 99, but a step has 8 rows"),
    ("seed=-1", "seed", "0 or more"),
    ("name=../x", "name", "letters, digits"),
    ("objective=test.loss", "objective", "validation rows"),
    ("outputs=' '", "outputs", "expected a directory"),
    ("stages=[]", "stages", "choose from prepare"),
    ("stages=[fly]", "stages", "prepare, train"),
    ("stages=[trian]", "stages", "did you mean train?"),
    # options
    ("model=tiyn", "model", "did you mean model=tiny?"),
    ("model=./somewhere", "model", "did you mean model.path=./somewhere?"),
    ("data=rows.jsonl", "data", "did you mean data.path=rows.jsonl?"),
    ("data=chat", "data", "expected one of conversations, hub, local"),
    ("sweeper=xyzzy", "sweeper", "expected one of grid"),
    ("experiment=xyzzy", "experiment", "expected one of pretrain_tiny, smoke, snips"),
    ("experiment=null", "experiment", "expected one of pretrain_tiny, smoke, snips"),
    ("lora={rank:3}", "lora", "lora.<key>=<value>"),
    # keys that an option does not use, or needs
    ("optimizer=sgd optimizer.eps=1e-8", "optimizer.eps", "leave optimizer.eps out"),
    ("optimizer.name=sgd", "optimizer.betas", "choose the option as a whole: optimizer=sgd"),
    (
        "optimizer.schedule=constant optimizer.final_fraction=0.1",
        "optimizer.final_fraction",
        "leave optimizer.final_fraction out",
    ),
    (
        "optimizer=sgd optimizer.momentum=0 optimizer.nesterov=true",
        "optimizer.nesterov",
        "set optimizer.momentum above 0",
    ),
    ("optimizer=lion optimizer.learning_rate=auto", "optimizer.learning_rate", "adam and adamw"),
    ("lora.rank=null", "lora.rank", "needs it"),
    ("lora=full lora.rank=8", "lora.rank", "leave lora.rank out"),
    ("lora=full lora.num_layers=2", "lora.num_layers", "leave lora.num_layers out"),
    ("lora=full model.quantization=4", "model.quantization", "trains the weights themselves"),
    ("lora.type=full", "lora.rank", "choose the option as a whole: lora=full"),
    ("data=local", "data.path", "data=local needs it"),
    ("data=hub", "data.path", "data=hub needs it"),
    ("data.weights=[1,2]", "data.weights", "one number for each of the 1 entries"),
    ("data.weights=2", "data.weights", "write 'data.weights=[2]'"),
    ("data.path=[samples,samples] data.weights=[0,0]", "data.weights", "not all 0"),
    ("data.columns={user:question}", "data.columns", "user and assistant, messages, or text"),
    ("data.columns={ask:question}", "data.columns", "found ['ask'], expected some of system, user"),
    ("data.columns=question", "data.columns", "found 'question', expected a mapping such as"),
    ("data.columns=[question]", "data.columns", "found a list, expected a mapping such as"),
    ("data.columns.text=body", "data.columns.text", "write 'data.columns={text: body}'"),
    ("data.columns={text:body} data.format=text", "data.columns", "leave one of them out"),
    ("data.format=sharegpt", "data.format", "expected one of auto, messages, conversations"),
    ("data.format=messages data.overlong=split", "data.overlong", "only texts can be split"),
    ("data.convert=mine.py", "data.convert", "expected file.py:function"),
    ("data.subset=main", "data.subset", "data.path names no data set of the hub"),
    ("data.split=test", "data.split", "data.path names no data set of the hub"),
    ("data.revision=v1", "data.revision", "data.path names no data set of the hub"),
    ("data.path=[a/b,c/d] data.revision=v1", "data.revision", "data.path names 2 data sets"),
    ("model=local", "model.path", "model=local needs it"),
    ("model.init_seed=-1", "model.init_seed", "found -1, expected 0 or more"),
    ("model.init_seed=x", "model.init_seed", "found 'x', expected a whole number or null"),
    ("model.init_seed=1 model.quantization=4", "model.quantization", "leave one of the two out"),
    ("model.init=induction", "model.init", "set model.init_seed too"),
    ("model.init=x model.init_seed=1", "model.init", "expected one of normal, induction"),
    # what does not exist
    ("data.path=nope.jsonl", "data.path", "no file or folder 'nope.jsonl'"),
    ("data.path=sample", "data.path", "did you mean data.path=samples?"),
    ("data.path=[samples,nope.jsonl]", "data.path", "no file or folder 'nope.jsonl'"),
    ("data.path=", "data.path", "found '', expected a file, a folder"),
    ("data.path=[]", "data.path", "expected a file, a folder"),
    ("data.path=chats/*.jsonl", "chats/*.jsonl", "the pattern matches no file"),
    ("data.convert=mine.py:convert", "data.convert", "no file 'mine.py'"),
    ("data.chat_template=mine.jinja", "data.chat_template", "no file 'mine.jinja'"),
    ("model.path=./nope", "model.path", "no directory './nope'"),
    ("model.path=tinny", "model.path", "did you mean model.path=tiny?"),
    ("model.path=a/b/c", "model.path", "owner/name"),
    ("lora.stage=os.system", "lora.stage", "under `stages.`"),
    ("lora.stage=stages.train.trian", "lora.stage", "did you mean stages.train.train?"),
    ("lora.stage=stages.trian.train", "lora.stage", "did you mean stages.train?"),
    ("lora.stage=stages.nope.x", "lora.stage", "no module 'nope'"),
    ("data.stage=stages.settings.re", "data.stage", "no function 're'"),
    ("run=latest", "run=latest", "has succeeded yet"),
    ("run=nowhere", "run=nowhere", "no such run directory"),
    ("run=latest experiment=smoke", "experiment", "cannot be combined with run="),
    ("--config-dir nowhere", "--config-dir", "found no directory 'nowhere'"),
    # what cannot be read
    ("lora.rank=[1", "lora.rank=[1", "cannot be read as key=value"),
    ("foo", "foo", "found no `=`"),
    ("=3", "=3", "found no key"),
    # sweeps
    ("lora.rank=2,4", "lora.rank", "python -m pipeline -m lora.rank=2,4"),
    ("stages=prepare,train", "stages", "'stages=[prepare,train]'"),
    ("data.path=a.jsonl,b.jsonl", "data.path", "'data.path=[a.jsonl,b.jsonl]'"),
    ("-m lora.rank=2,q", "lora.rank", "found 'q'"),
    ("-m lora.rank=2,0", "lora.rank", "found 0"),
    ("-m optimizer.learning_rate=auto,1,fast", "optimizer.learning_rate", "found 'fast'"),
    ("-m model=tiny,tiyn", "model", "did you mean model=tiny?"),
    ("-m lora.rank=interval(2,4)", "lora.rank", "found an interval"),
    ("-m lora.rank=range(4,4)", "lora.rank", "no value to sweep over"),
    ("-m name=a,b", "name", "a sweep has one value"),
    # before a look at the configuration, too
    ("--cfg job lora.rnak=3", "lora.rnak", "did you mean lora.rank=3?"),
    ("--help lora.rank=q", "lora.rank", "expected a whole number"),
    ("--cfg job run=latest", "--cfg", "dry_run=true"),
    ("dry_run=true lora.rank=0", "lora.rank", "at least 1"),
]


@pytest.fixture(scope="module")
def ends(commands):
    """Every refused command line, run once."""
    lines = [line.split(" ") if line != "outputs=' '" else [line] for line, _, _ in REFUSED]
    return dict(zip([line for line, _, _ in REFUSED], commands(*lines), strict=True))


@pytest.mark.parametrize(("line", "where", "said"), REFUSED, ids=[line for line, _, _ in REFUSED])
def test_refused_in_three_lines_before_anything_is_written(ends, line, where, said):
    """Exit code 1, the key, what mends it, no trace on disk, no MLX."""
    end = ends[line]
    assert end.code == 1, end.err
    assert end.err.startswith(f"error: {where}: ")
    assert said in end.err
    assert len(end.err.splitlines()) <= 3
    assert "full_key" not in end.err
    assert "To append" not in end.err
    assert end.out == ""
    assert end.made == []
    assert not end.mlx


def test_a_process_refuses_alike(tmp_path):
    """`python -m pipeline`, started as a person does, exits with 1 and the same lines."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "lora.rnak=3"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "error: lora.rnak: no such key\n  did you mean lora.rank=3?\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["--nope", "-m --cfg job", "--resolve", "--config-path x"])
def test_unknown_flags_exit_with_2(commands, line):
    """Flags that do not exist or do not go together exit with 2 and the usage."""
    [end] = commands(line.split())
    assert end.code == 2
    assert end.err.startswith("usage: python -m pipeline")
    assert len(end.err.splitlines()) == 2
    assert end.made == []


DATA: list[tuple[str, str, str]] = [
    ("data.path={0}/rows.jsnol", "data.path", "did you mean data.path={0}/rows.jsonl?"),
    ("data.path=[samples,{0}/rows.jsnol]", "data.path", "did you mean {0}/rows.jsonl?"),
    ("data.path={0}/rows.xlsx", "{0}/rows.xlsx", "found the ending '.xlsx', expected .jsonl"),
    ("data.path={0}/pictures", "{0}/pictures", "no file of rows (found cat.png"),
    ("data.path={0}/tests", "{0}/tests", "no training file in it (found test.jsonl"),
    ("data.convert={0}/convrt.py:convert", "data.convert", "did you mean {0}/convert.py"),
    ("data.chat_template={0}/own.jinj", "data.chat_template", "did you mean {0}/own.jinja"),
]


def test_data_that_cannot_be_read_is_refused_before_anything_is_written(commands, tmp_path):
    """Files, folders, a converter and a template that are not there: the key, and what is."""
    for name in ("rows.jsonl", "rows.xlsx", "pictures/cat.png", "tests/test.jsonl", "convert.py",
                 "own.jinja"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    ended = commands(*([line.format(tmp_path)] for line, _, _ in DATA))
    for end, (_, where, said) in zip(ended, DATA, strict=True):
        assert (end.code, end.out, end.made) == (1, "", [])
        assert end.err.startswith(f"error: {where.format(tmp_path)}: ")
        assert said.format(tmp_path) in end.err
        assert len(end.err.splitlines()) <= 3


FILES: dict[str, tuple[str, str, str]] = {
    "key": ("lora:\n  rnak: 3\n", "lora.rnak", "did you mean lora.rank?"),
    "type": ("lora:\n  rank: q\n", "lora.rank", "found 'q', expected a whole number"),
    "mapping": ("data:\n  columns:\n    ask: question\n", "data.columns", "found ['ask']"),
    "range": ("lora:\n  rank: 0\n", "lora.rank", "found 0, expected at least 1"),
    "stage": ("lora:\n  stage: os.system\n", "lora.stage", "under `stages.`"),
    "reference": ("lora:\n  alpha: ${lora.x}\n", "lora.alpha", "lora.x"),
    "option": ("defaults:\n  - override /model: tiyn\n", "model", "did you mean model=tiny?"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_mistake_in_the_users_own_file_names_the_file(commands, tmp_path, name):
    """A wrong key or value in an option of --config-dir is found by its file and key."""
    content, key, said = FILES[name]
    options = tmp_path / "mine" / "experiment"
    options.mkdir(parents=True)
    (options / f"{name}.yaml").write_text(f"# @package _global_\n{content}")
    [end] = commands(["--config-dir", str(tmp_path / "mine"), f"experiment={name}"])
    assert end.code == 1, end.err
    assert end.err.startswith(f"error: {options / name}.yaml: {key}: ")
    assert said in end.err
    assert len(end.err.splitlines()) <= 3
    assert end.made == []


def test_a_file_that_is_no_yaml_is_named_with_its_line(commands, tmp_path):
    """A syntax error points at file and line."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "odd.yaml").write_text("# @package _global_\nlora: [\n")
    [end] = commands(["--config-dir", str(tmp_path), "experiment=odd"])
    assert end.code == 1
    assert f"{tmp_path / 'experiment' / 'odd.yaml'}:3: " in end.err


def test_an_option_named_like_ours_is_refused(commands, tmp_path):
    """An own file that a built-in option would hide is refused instead of ignored."""
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "lora.yaml").write_text("rank: 4\n")
    [end] = commands(["--config-dir", str(tmp_path)])
    assert end.code == 1
    assert "give the file another name" in end.err
