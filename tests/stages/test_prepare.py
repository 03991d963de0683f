"""The prepare stage as the pipeline calls it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.artifacts import BaseModel, Prepared
from stages.data.rows import open_rows
from stages.errors import InputError, StopRequested
from stages.prepare import prepare
from stages.settings import Data

SPLITS = ("train", "valid", "test")
SHARED = Path(__file__).parents[3] / "shared" / "data"
WIKISQL, SNIPS, GSM8K = SHARED / "wikisql", SHARED / "snips", SHARED / "gsm8k"


@pytest.fixture(scope="module")
def model(byte_model: Callable[..., Path]) -> BaseModel:
    return BaseModel(directory=byte_model(), dtype="float32")


def data(path: object, **changes: Any) -> Data:
    values: dict[str, Any] = {
        "stage": "stages.prepare.prepare", "format": "auto", "supervise": "assistant",
        "max_seq_length": 512, "overlong": "auto", "valid_fraction": 0.1, "test_fraction": 0.1,
        "duplicates": "keep", "leakage": "drop", "redact": False, "encoding": "utf-8",
        "on_error": "fail",
    }  # fmt: skip
    return Data(path=path if isinstance(path, tuple) else str(path), **values | changes)


def write(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def digests(directory: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(directory.iterdir())
    }


def kept(prepared: Prepared, split: str) -> list[dict[str, Any]]:
    with (prepared.directory / f"{split}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_a_folder_gives_tokens_rows_and_counts(
    tmp_path: Path, model: BaseModel, diary: Any
) -> None:
    """Given splits are used as given, and every file and number agrees with the four texts."""
    write(tmp_path / "in" / "train.jsonl", "hé", "abcdefgh")
    write(tmp_path / "in" / "val.jsonl", "x")
    write(tmp_path / "in" / "test.jsonl", "y")
    report = diary()
    out = tmp_path / "out"
    options: dict[str, Any] = {"max_seq_length": 8, "overlong": "drop"}
    result = prepare(data(tmp_path / "in", **options), 0, model=model, report=report, out=out)
    assert result.directory == out
    assert sorted(digests(out)) == [
        "doctor.html", "doctor.json", "test.jsonl", "test.safetensors", "train.jsonl",
        "train.safetensors", "valid.jsonl", "valid.safetensors",
    ]  # fmt: skip
    tokens, supervised = open_rows(out, "train")[0]
    assert (tokens.tolist(), supervised.tolist()) == ([104, 195, 169, 257], [0, 1, 1, 1])
    assert kept(result, "train") == [{"text": "hé", "source": "train.jsonl:1"}]
    assert kept(result, "valid") == [{"text": "x", "source": "val.jsonl:1"}]
    assert result.metrics == {
        "prepare.train.rows": 1.0, "prepare.train.tokens": 4.0,
        "prepare.train.supervised_tokens": 3.0, "prepare.valid.rows": 1.0,
        "prepare.valid.tokens": 2.0, "prepare.valid.supervised_tokens": 1.0,
        "prepare.test.rows": 1.0, "prepare.test.tokens": 2.0,
        "prepare.test.supervised_tokens": 1.0, "prepare.dropped_overlong": 1.0,
    }  # fmt: skip
    doctor = json.loads((out / "doctor.json").read_text())
    assert (doctor["format"], doctor["kind"], doctor["formats"]) == (1, "text", {"text": 4})
    assert doctor["notes"] == {"dropped_overlong": 1}
    train = doctor["splits"]["train"]
    assert [train[key] for key in ("rows", "tokens", "supervised_tokens", "longest")] == [
        1,
        4,
        3,
        4,
    ]
    assert (doctor["stop_tokens"], doctor["template"]) == ([[257, "<|im_end|>"]], None)
    assert [example["pieces"] for example in doctor["examples"]] == [
        [["h", False], ["é<|im_end|>", True]]
    ]
    size = sum(file.stat().st_size for file in (tmp_path / "in").iterdir())
    assert report.steps[-1] == (size, size)


def test_the_bundled_conversations_are_prepared_whole(
    tmp_path: Path, model: BaseModel, diary: Any
) -> None:
    """Every bundled row survives, and what is supervised is its answers with their end tokens."""
    result = prepare(data("samples"), 0, model=model, report=diary(), out=tmp_path / "out")
    for split, least in (("train", 600), ("valid", 100), ("test", 100)):
        rows, texts = open_rows(result.directory, split), kept(result, split)
        assert len(rows) == len(texts) == result.metrics[f"prepare.{split}.rows"] >= least
        for index, text in enumerate(texts):
            tokens, supervised = rows[index]
            answers = [m["content"] for m in text["messages"] if m["role"] == "assistant"]
            expected = b"".join(answer.encode() + b"\xff" for answer in answers)
            trained = tokens[supervised == 1].tolist()
            # Byte 255 never occurs in UTF-8, so it can stand for the end token.
            assert bytes(255 if token == 257 else token for token in trained) == expected
    template = (model.directory / "chat_template.jinja").read_bytes()
    doctor = json.loads((result.directory / "doctor.json").read_text())
    assert doctor["template"]["sha256"] == hashlib.sha256(template).hexdigest()
    assert len(doctor["examples"]) == 5


def test_the_same_rows_give_the_same_bytes_from_any_folder(
    tmp_path: Path, model: BaseModel, diary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the clock nor the place of the data or of the model decides a byte; the seed does."""
    texts = [f"text number {number}" for number in range(60)]
    for place in ("rows", "b/rows"):
        write(tmp_path / place / "train.jsonl", *texts)
    monkeypatch.chdir(tmp_path)
    found = []
    for path, seed, out in (
        ("rows", 7, "one"),
        (tmp_path / "b/rows", 7, "two"),
        ("rows", 8, "three"),
    ):
        prepare(data(path), seed, model=model, report=diary(), out=tmp_path / out)
        found.append(digests(tmp_path / out))
    assert found[0] == found[1]
    assert found[0]["train.safetensors"] != found[2]["train.safetensors"]


TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\U0010fffd"), max_size=12
)


@given(texts=st.lists(TEXT.filter(str.strip), min_size=1, max_size=12), seed=st.integers(0, 9))
@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_row_is_lost_or_mixed_up(
    tmp_path_factory: pytest.TempPathFactory,
    model: BaseModel,
    diary: Any,
    texts: list[str],
    seed: int,
) -> None:
    """All rows together are those that were given, and each row's tokens are its own text."""
    folder = tmp_path_factory.mktemp("any")
    file = write(folder / "mine.jsonl", *texts)
    result = prepare(data(file), seed, model=model, report=diary(), out=folder / "out")
    found: dict[str, str] = {}
    for split in SPLITS:
        rows = open_rows(result.directory, split)
        for index, row in enumerate(kept(result, split)):
            found[row["source"]] = row["text"]
            *ids, _ = rows[index][0].tolist()
            assert bytes(ids).decode() == row["text"]
    assert found == {f"mine.jsonl:{n}": text for n, text in enumerate(texts, 1)}


def test_a_missing_split_is_taken_from_train_and_a_given_one_is_not(
    tmp_path: Path, model: BaseModel, diary: Any
) -> None:
    """With valid.jsonl there, only test rows leave train; a share of zero takes none."""
    folder = tmp_path / "in"
    write(folder / "train.jsonl", *(f"row {number}" for number in range(50)))
    write(folder / "valid.jsonl", "yours", "mine")
    result = prepare(data(folder, test_fraction=0.3), 0, model=model, report=diary(),
                     out=tmp_path / "a")  # fmt: skip
    assert [row["text"] for row in kept(result, "valid")] == ["yours", "mine"]
    sizes = [len(kept(result, split)) for split in ("train", "test")]
    assert sum(sizes) == 50
    assert sizes[1] > 0
    (folder / "valid.jsonl").unlink()
    result = prepare(data(folder, valid_fraction=0, test_fraction=0), 0, model=model,
                     report=diary(), out=tmp_path / "b")  # fmt: skip
    assert [len(open_rows(tmp_path / "b", split)) for split in SPLITS] == [50, 0, 0]


def test_an_overlong_row_stops_the_stage_where_asked(
    tmp_path: Path, model: BaseModel, diary: Any
) -> None:
    """With overlong=error the row, its length and the limit are named."""
    file = write(tmp_path / "rows.jsonl", "four", "fives")
    options: dict[str, Any] = {"max_seq_length": 5, "overlong": "error", "valid_fraction": 0,
                               "test_fraction": 0}  # fmt: skip
    with pytest.raises(InputError) as caught:
        prepare(data(file, **options), 0, model=model, report=diary(), out=tmp_path / "out")
    assert caught.value.where == f"{file}:2"
    assert caught.value.found == "its row has 6 tokens, more than data.max_seq_length=5"
    assert not any((tmp_path / "out").iterdir())


def test_no_training_row_left_is_an_error(tmp_path: Path, model: BaseModel, diary: Any) -> None:
    """Where every row is overlong there is nothing to train, and the limit is to blame."""
    file = write(tmp_path / "rows.jsonl", "too long", "longer still")
    with pytest.raises(InputError, match="none of 2 rows fits in 4 tokens"):
        prepare(data(file, max_seq_length=4, overlong="drop"), 0, model=model, report=diary(),
                out=tmp_path / "out")  # fmt: skip


def test_a_stop_request_ends_the_stage_between_batches(
    tmp_path: Path, model: BaseModel, diary: Any
) -> None:
    """A stage that is asked to stop writes nothing."""
    file = write(tmp_path / "rows.jsonl", *(f"row {number}" for number in range(5000)))
    report = diary(stop_after=2)
    with pytest.raises(StopRequested):
        prepare(data(file), 0, model=model, report=report, out=tmp_path / "out")
    assert len(report.steps) == 2
    assert not any((tmp_path / "out").iterdir())


WITHOUT_MLX = """
import sys
sys.modules["mlx"] = sys.modules["mlx_lm"] = None
from pathlib import Path
from stages.artifacts import BaseModel
from stages.prepare import prepare
from stages.settings import Data

class Silent:
    log = progress = lambda *_: None
    stop_requested = lambda _: False

data = Data(stage="stages.prepare.prepare", path="samples", format="auto", supervise="assistant",
            max_seq_length=512, overlong="auto", valid_fraction=0.1, test_fraction=0.1,
            duplicates="keep", leakage="drop", redact=False, encoding="utf-8", on_error="fail")
prepare(data, 0, model=BaseModel(directory=Path(sys.argv[1]), dtype="float32"), report=Silent(),
        out=Path(sys.argv[2]))
"""


def test_mlx_is_not_needed(tmp_path: Path, model: BaseModel) -> None:
    """On a machine where MLX cannot be imported the bundled rows are prepared all the same."""
    command = [sys.executable, "-c", WITHOUT_MLX, str(model.directory), str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(open_rows(tmp_path, "test")) >= 100


@pytest.mark.skipif(not WIKISQL.is_dir(), reason="no WikiSQL files here")
def test_wikisql_is_prepared_as_text(tmp_path: Path, model: BaseModel, diary: Any) -> None:
    """Real rows: all 1,200 are kept, one token for each byte of UTF-8 and one for the end."""
    result = prepare(data(WIKISQL, overlong="drop"), 0, model=model, report=diary(), out=tmp_path)
    for split, count in (("train", 1000), ("valid", 100), ("test", 100)):
        lines = (WIKISQL / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["text"] for line in lines]
        lengths = [len(text.encode()) + 1 for text in texts if len(text.encode()) < 512]
        assert open_rows(result.directory, split).lengths.tolist() == lengths
        assert len(texts) == count


CONVERTER = """
import json

def row(record, source):
    words = "".join(part["text"] for part in record["data"])
    slots = {part["entity"]: part["text"] for part in record["data"] if "entity" in part}
    answer = json.dumps({"intent": source.split("_")[1], "slots": slots})
    return {"prompt": words, "completion": answer}
"""


def doctor_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "doctor.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.skipif(not SNIPS.is_dir(), reason="no SNIPS files here")
def test_the_doctor_finds_what_is_known_of_snips(
    tmp_path: Path, model: BaseModel, diary: Any
) -> None:
    """205 training rows ask again, 9 validation rows are in train, one file is Latin-1."""
    (tmp_path / "snips.py").write_text(CONVERTER)
    settings = data(SNIPS, convert=f"{tmp_path}/snips.py:row", encoding="auto", test_fraction=0)
    report = diary()
    result = prepare(settings, 0, model=model, report=report, out=tmp_path / "out")
    doctor = doctor_of(result.directory)
    train, valid = doctor["splits"]["train"], doctor["splits"]["valid"]
    assert (train["found"]["rows"], valid["rows"]) == (13784, 700)
    assert train["found"]["repeated_questions"] == 205
    assert valid["found"]["asked_in_train"] == train["found"]["removed_leaks"] == 9
    assert train["rows"] == 13784 - 9
    assert list(doctor["repairs"]) == ["train_PlayMusic_full.json"]
    assert "! 1 file not UTF-8, 6 bytes read as Windows-1252: train_PlayMusic_full.json" in (
        report.lines
    )


@pytest.mark.skipif(not SNIPS.is_dir(), reason="no SNIPS files here")
def test_a_latin_1_file_is_named_by_line_and_column(
    tmp_path: Path, model: BaseModel, diary: Any
) -> None:
    """Without data.encoding=auto the first such byte stops the stage."""
    (tmp_path / "snips.py").write_text(CONVERTER)
    settings = data(SNIPS, convert=f"{tmp_path}/snips.py:row")
    with pytest.raises(InputError, match=r"train_PlayMusic_full\.json:9091:40: byte 0xED is not"):
        prepare(settings, 0, model=model, report=diary(), out=tmp_path / "out")


@pytest.mark.skipif(not GSM8K.is_dir(), reason="no GSM8K files here")
def test_gsm8k_is_found_to_be_questions_and_answers(
    tmp_path: Path, model: BaseModel, diary: Any
) -> None:
    """Every row is kept or dropped as too long, in the splits its files and the seed say."""
    settings = data(GSM8K, max_seq_length=600)
    result = prepare(settings, 0, model=model, report=diary(), out=tmp_path / "out")
    doctor = doctor_of(result.directory)
    assert doctor["formats"] == {"question_answer": 7473 + 1319}
    rows = sum(split["rows"] for split in doctor["splits"].values())
    assert rows + doctor["notes"]["dropped_overlong"] == 7473 + 1319
    assert doctor["splits"]["valid"]["rows"] > 0


def test_faults_are_listed_counted_and_nothing_is_kept(
    tmp_path: Path, model: BaseModel, diary: Any
) -> None:
    """The first twenty are named by line and column, all are counted."""
    good = json.dumps({"text": "good"}) + "\n"
    (tmp_path / "rows.jsonl").write_text(good + '{"text": 1}\n' * 30 + '{"text": "x"\n' + good)
    report = diary()
    with pytest.raises(InputError, match="the first of 31 records that cannot be used") as caught:
        prepare(data(tmp_path / "rows.jsonl"), 0, model=model, report=report, out=tmp_path / "out")
    assert caught.value.where == f"{tmp_path}/rows.jsonl:2"
    lines = ", ".join(f":{number}" for number in range(2, 22))
    assert report.lines == [
        f'{tmp_path}/rows.jsonl{lines}: found a number as "text", expected text', "… and 11 more",
    ]  # fmt: skip
    assert not any((tmp_path / "out").iterdir())


def test_faults_are_set_aside_where_asked(tmp_path: Path, model: BaseModel, diary: Any) -> None:
    """on_error=skip keeps the good rows, and the bad ones as they were read."""
    lines = ['{"text": "good"}', "{oops", '{"text": "fine"}', '{"words": "x"}', '{"text": "well"}']
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    settings = data(tmp_path / "rows.jsonl", on_error="skip", test_fraction=0)
    result = prepare(settings, 0, model=model, report=diary(), out=tmp_path / "out")
    written = (tmp_path / "out" / "quarantine.jsonl").read_text(encoding="utf-8")
    aside = [json.loads(line) for line in written.splitlines()]
    assert [(row["source"], row["record"]) for row in aside] == [
        ("rows.jsonl:2", "{oops"), ("rows.jsonl:4", '{"words": "x"}'),
    ]  # fmt: skip
    assert sorted(row["text"] for split in SPLITS for row in kept(result, split)) == [
        "fine", "good", "well",
    ]  # fmt: skip
    doctor = doctor_of(result.directory)
    assert doctor["fault_count"] == 2
    assert doctor["faults"][0]["where"] == "rows.jsonl:2:2"


def test_a_large_input_gives_the_same_bytes_from_any_number_of_processes(
    tmp_path: Path, model: BaseModel, diary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process or three: not a byte differs, faults included."""
    lines = [json.dumps({"question": f"{n} and {n % 7}?", "answer": str(n)}) for n in range(4000)]
    lines[1234] = "{"
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    found = []
    for processes in (1, 3):
        monkeypatch.setattr("stages.data.gather.processes_for", lambda _, n=processes: n)
        out = tmp_path / str(processes)
        settings = data(tmp_path / "rows.jsonl", on_error="skip")
        prepare(settings, 0, model=model, report=diary(), out=out)
        found.append(digests(out))
    assert found[0] == found[1]


def test_weights_decide_how_often_a_source_is_seen(
    tmp_path: Path, model: BaseModel, diary: Any
) -> None:
    """Twice all of one source, about half of the other; held-out rows are not repeated."""
    for name in ("often", "seldom"):
        write(tmp_path / f"{name}.jsonl", *(f"{name} {number}" for number in range(200)))
    settings = data(
        (f"{tmp_path}/often.jsonl", f"{tmp_path}/seldom.jsonl"), weights=(2.0, 0.5),
        test_fraction=0,
    )  # fmt: skip
    result = prepare(settings, 0, model=model, report=diary(), out=tmp_path / "out")
    texts = [row["text"] for row in kept(result, "train")]
    often = [text for text in texts if text.startswith("often")]
    assert len(often) == 2 * len(set(often))
    assert 60 < len(texts) - len(often) == len(set(texts) - set(often)) < 120
    assert len({row["text"] for row in kept(result, "valid")}) == len(kept(result, "valid"))


@pytest.mark.skipif(sys.platform == "darwin", reason="names of files are UTF-8 there")
def test_the_name_of_a_file_may_be_no_utf8(tmp_path: Path, model: BaseModel, diary: Any) -> None:
    """Its rows, and those set aside, are named as JSON escapes it."""
    source = tmp_path / "in" / "rows\udcff.jsonl"
    write(source, "a", "b")
    with source.open("a") as file:
        file.write("{broken\n")
    changes = {"on_error": "skip", "valid_fraction": 0.0, "test_fraction": 0.0}
    out = tmp_path / "out"
    result = prepare(data(source.parent, **changes), 0, model=model, report=diary(), out=out)
    assert [row["source"] for row in kept(result, "train")] == [
        "rows\udcff.jsonl:1", "rows\udcff.jsonl:2",
    ]  # fmt: skip
    [aside] = (out / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(aside)["source"] == "rows\udcff.jsonl:3"


def test_the_counts_add_up(tmp_path: Path, model: BaseModel, diary: Any) -> None:
    """Every row read is in a split, or counted as left out."""
    answers: list[dict[str, Any]] = [
        *({"content": f"a{n}"} for n in range(20)), {"content": " "}, {"content": ""},
        {"content": "b", "train": False}, {"content": "c" * 600},
    ]  # fmt: skip
    turns = [
        [{"role": "user", "content": f"q{n}"}, {"role": "assistant", **answer}]
        for n, answer in enumerate(answers)
    ]
    # An empty answer beside another: such a row is kept.
    turns.append([*turns[20], *turns[0]])
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in turns))
    out = tmp_path / "out"
    prepare(data(path), 0, model=model, report=diary(), out=out)
    doctor = json.loads((out / "doctor.json").read_text())
    assert doctor["notes"] == {"dropped_overlong": 1, "empty_answer": 3, "supervises_nothing": 3}
    assert sum(split["found"]["rows"] for split in doctor["splits"].values()) == 25 - 1 - 3


def test_faults_of_all_files_are_named_at_once(
    tmp_path: Path, model: BaseModel, diary: Any
) -> None:
    """A file that cannot be read to its end hides neither earlier faults nor those of others."""
    write(tmp_path / "a.jsonl", "a").write_text('{"text": 1}\n')
    (tmp_path / "b.csv").write_bytes(b"text\ncaf\xe9\n")
    (tmp_path / "c.jsonl").write_text("")
    (tmp_path / "d.jsonl").write_text("{\n")
    report = diary()
    with pytest.raises(InputError, match="first of 4"):
        prepare(data(tmp_path), 0, model=model, report=report, out=tmp_path / "out")
    named = "\n".join(report.lines)
    assert all(f"{name}:" in named for name in ("a.jsonl", "b.csv", "c.jsonl", "d.jsonl"))
