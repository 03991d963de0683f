"""The user's own converter: what it is given, may return, and is told where it fails."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages.data.formats.parser import Parser, open_parser
from stages.data_settings import Data
from stages.errors import InputError, SettingError

SHARED = Path(__file__).parents[5] / "shared" / "data"


def settings(convert: str, **changes: Any) -> Data:
    base: dict[str, Any] = {
        "stage": "stages.prepare.prepare", "path": "x", "format": "auto", "max_seq_length": 64,
        "supervise": "assistant", "overlong": "auto", "valid_fraction": 0.1, "test_fraction": 0.1,
        "duplicates": "keep", "leakage": "drop", "redact": False, "encoding": "utf-8",
        "on_error": "fail",
    }  # fmt: skip
    return Data(**(base | {"convert": convert} | changes))


def converter(folder: Path, code: str, **changes: Any) -> Parser:
    file = folder / "mine.py"
    file.write_text(code, encoding="utf-8")
    return open_parser(settings(f"{file}:convert", **changes))


def test_a_converter_returns_one_row_several_or_none(tmp_path: Path) -> None:
    """Each row that it returns is read as its format; None leaves the record out."""
    parse = converter(tmp_path, "def convert(record, source):\n    return record['rows']\n")
    one, several = {"text": "a"}, [{"text": "b"}, {"question": "q", "answer": "r"}]
    assert [row.content for row in parse({"rows": one}, "s:1", "w:1")] == [{"text": "a"}]
    found = parse({"rows": several}, "s:2", "w:2")
    assert [(row.format, row.source, row.where) for row in found] == [
        ("text", "s:2", "w:2"),
        ("question_answer", "s:2", "w:2"),
    ]
    assert parse({"rows": None}, "s:3", "w:3") == []
    assert parse({"rows": []}, "s:4", "w:4") == []


def test_a_converter_is_given_the_record_as_it_was_read_and_its_name(tmp_path: Path) -> None:
    """Also a record that is no object; the name is that without the folder."""
    code = "def convert(record, source):\n    return {'text': f'{source} {record!r}'}\n"
    (row,) = converter(tmp_path, code)([1, "x"], "t.json:12", "/far/t.json:12")
    assert row.text == "t.json:12 [1, 'x']"


def test_columns_and_groups_apply_to_what_a_converter_returns(tmp_path: Path) -> None:
    """A group that it returns counts; else that of the record as it was read."""
    code = (
        "def convert(record, source):\n"
        "    record.pop('home')\n"
        "    return [{'body': 'a', 'home': 'new'}, {'body': 'b'}]\n"
    )
    parse = converter(tmp_path, code, columns={"text": "body"}, group_by="home")
    rows = parse({"home": "old"}, "s:1", "w:1")
    assert [(row.text, row.home) for row in rows] == [("a", '"new"'), ("b", '"old"')]


RAISES = """\
import json

def helper(record):
    return json.loads(record["data"])

def convert(record, source):
    return helper(record)
"""


@pytest.mark.parametrize(
    ("code", "record", "message", "mend"),
    [
        (RAISES, {}, "data.convert raised KeyError: 'data'", "mend {file}:4"),
        (RAISES, {"data": "?"},
         "data.convert raised JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
         "mend {file}:4"),
        ("def convert(record, source):\n    raise ValueError\n", {},
         "data.convert raised ValueError", "mend {file}:2"),
        (RAISES, {"data": "7"},
         "data.convert returned a number, expected an object, a list of objects, or None", ""),
        (RAISES, {"data": '[{"text": "a"}, "b"]'},
         "data.convert returned a list with text, expected an object, a list of objects, or None",
         ""),
        ("def convert(record, source):\n    yield record\n", {},
         "data.convert returned a value of type generator, "
         "expected an object, a list of objects, or None", ""),
        (RAISES, {"data": '{"text": " "}'},
         "what data.convert returned: found an empty text, expected some", "remove the row"),
        (RAISES, {"data": '[{"text": "a"}, {"question": "q", "answer": null}]'},
         'row 2 of what data.convert returned: found null as "answer", expected text',
         "name the columns by data.columns, or use data.convert"),
    ],
)  # fmt: skip
def test_a_record_that_a_converter_fails_at_is_named(
    tmp_path: Path, code: str, record: object, message: str, mend: str
) -> None:
    """The record, what went wrong, and the line of the user's file."""
    parse = converter(tmp_path, code)
    with pytest.raises(InputError) as caught:
        parse(record, "s:9", "w:9")
    assert (caught.value.where, caught.value.found) == ("w:9", message)
    assert caught.value.mend == mend.format(file=tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("code", "found", "mend"),
    [
        ("def convrt(record, source): ...\n", "found no function 'convert' in {file}",
         "did you mean convrt?"),
        ("from json import loads\ndef other(record): ...\n",
         "found no function 'convert' in {file}", "write it: it has other"),
        ("convert = 1\n", "found no function 'convert' in {file}", "write it: it has none"),
        ("def convert(record): ...\n", "found convert(record), expected convert(record, source)",
         "mend {file}"),
        ("import json\nimport no_such_module_of_mine\n",
         "cannot load it: ModuleNotFoundError: No module named 'no_such_module_of_mine'",
         "mend {file}:2"),
        ("x = 1\ndef convert(record, source)\n", "cannot load it: SyntaxError: expected ':'",
         "mend {file}:2"),
    ],
)  # fmt: skip
def test_a_converter_that_cannot_be_loaded_is_refused_at_its_key(
    tmp_path: Path, code: str, found: str, mend: str
) -> None:
    """Before any record is read, with the line to mend or the name that was meant."""
    with pytest.raises(SettingError) as caught:
        converter(tmp_path, code)
    file, error = tmp_path / "mine.py", caught.value
    assert error.where == "data.convert"
    assert error.found.startswith(found.format(file=file))
    assert error.mend == mend.format(file=file)


def test_a_converter_that_is_not_there_is_refused_at_its_key() -> None:
    """The file is named as it was written."""
    with pytest.raises(SettingError) as caught:
        open_parser(settings("no/such.py:convert"))
    assert str(caught.value) == (
        "data.convert: cannot read no/such.py (No such file or directory); "
        "name a Python file of yours"
    )


def test_loading_leaves_nothing_behind(tmp_path: Path) -> None:
    """No cache beside the file, no path to import from, and a changed file is run as it is now."""
    before, path = set(sys.modules), list(sys.path)
    code = (
        "from __future__ import annotations\n"
        "from dataclasses import asdict, dataclass\n"
        "@dataclass\n"
        "class Line:\n"
        "    text: str = 'a'\n"
        "def convert(record, source):\n"
        "    return asdict(Line())\n"
    )
    (row,) = converter(tmp_path, code)({}, "s", "w")
    assert row.text == "a"
    (row,) = converter(tmp_path, code.replace("'a'", "'b'"))({}, "s", "w")
    assert row.text == "b"
    assert [file.name for file in tmp_path.iterdir()] == ["mine.py"]
    assert sys.path == path
    added = {name for name in set(sys.modules) - before if not name.startswith("stages.")}
    assert all(name.startswith("_data_convert_") for name in added)


def test_a_new_process_finds_the_converter_by_its_path(tmp_path: Path) -> None:
    """The settings alone are enough, as a worker has them; a path counts from where it runs."""
    (tmp_path / "mine.py").write_text("def convert(record, source):\n    return {'text': 'here'}\n")
    script = (
        "import pickle, sys\n"
        "from stages.data.formats.parser import open_parser\n"
        "data = pickle.load(sys.stdin.buffer)\n"
        "print(open_parser(data)({}, 's', 'w')[0].text)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(settings("mine.py:convert")),
        cwd=tmp_path, capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout.decode().strip() == "here"


SNIPS = '''\
"""SNIPS: a spoken command as parts, some of which are slots; the file's name says the intent."""

import json


def convert(record, source):
    parts = record["data"]
    slots = {part["entity"]: part["text"] for part in parts if "entity" in part}
    intent = source.split("_")[1].split(".")[0]
    answer = json.dumps({"intent": intent, "slots": slots}, ensure_ascii=False)
    return {"messages": [
        {"role": "user", "content": "".join(part["text"] for part in parts)},
        {"role": "assistant", "content": answer},
    ]}
'''


def test_snips_is_read_by_a_converter_that_a_user_could_write(tmp_path: Path) -> None:
    """Every command of all seven intents becomes a request and its answer as JSON."""
    files = sorted((SHARED / "snips").glob("validate_*.json"))
    if not files:
        pytest.skip("the shared data sets are not beside this project")
    parse = converter(tmp_path, SNIPS)
    rows = []
    for file in files:
        ((_, records),) = json.loads(file.read_text(encoding="utf-8")).items()
        for number, record in enumerate(records, start=1):
            rows += parse(record, f"{file.name}:{number}", f"{file}:{number}")
    assert len(rows) == 700
    assert rows[0].messages == [
        {
            "role": "user",
            "content": "I'd like to have this track onto my Classical Relaxations playlist.",
        },
        {
            "role": "assistant",
            "content": '{"intent": "AddToPlaylist", "slots": {"music_item": "track", '
            '"playlist_owner": "my", "playlist": "Classical Relaxations"}}',
        },
    ]
    intents = [json.loads(row.messages[1]["content"])["intent"] for row in rows]
    assert [intents.count(intent) for intent in sorted(set(intents))] == [100] * 7
