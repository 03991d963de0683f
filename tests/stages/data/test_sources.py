"""Reading rows from files: what is accepted, and what a person is told about the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.data.formats import Format, parse
from stages.data.sources import read_source
from stages.errors import InputError

GOOD = {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}]}
LINE = json.dumps(GOOD) + "\n"


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(path: Path, wanted: Format = "chat") -> InputError:
    with pytest.raises(InputError) as caught:
        read_source(str(path), wanted)
    return caught.value


def test_a_file_gives_plain_rows_with_their_lines(tmp_path: Path) -> None:
    """BOM, CRLF and blank lines pass; other keys are left behind; lines are counted as written."""
    odd = {**GOOD, "id": 7, "messages": [{**m, "name": None} for m in GOOD["messages"]]}
    content = b"\xef\xbb\xbf" + LINE.strip().encode() + b"\r\n\r\n  \n" + json.dumps(odd).encode()
    file = write(tmp_path / "mine.jsonl", content)
    rows = read_source(str(file), "chat")["train"]
    assert [row.content for row in rows] == [GOOD, GOOD]
    assert [row.source for row in rows] == ["mine.jsonl:1", "mine.jsonl:4"]
    assert rows[1].where == f"{file}:4"


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path: Path) -> None:
    """JSON text may hold U+2028 and U+0085 unescaped: only a newline ends a row."""
    file = write(tmp_path / "t.jsonl", '{"text": "a\u2028b\x85c"}\n{"text": "d"}\n')
    rows = read_source(str(file), "text")["train"]
    assert [row.text for row in rows] == ["a\u2028b\x85c", "d"]


@pytest.mark.parametrize("spelling", ["valid", "validation", "val", "dev", "eval"])
def test_a_folder_gives_its_splits_under_any_spelling(tmp_path: Path, spelling: str) -> None:
    """Every common name of a validation file is found; a split without a file is absent."""
    write(tmp_path / "train.jsonl", LINE * 2)
    write(tmp_path / f"{spelling}.jsonl", LINE)
    found = read_source(str(tmp_path), "chat")
    assert {split: len(rows) for split, rows in found.items()} == {"train": 2, "valid": 1}


def test_a_path_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`rows/train.jsonl` is looked for where the command was started."""
    write(tmp_path / "rows" / "train.jsonl", LINE)
    monkeypatch.chdir(tmp_path)
    assert read_source("rows", "chat")["train"][0].where == "rows/train.jsonl:1"


def test_a_missing_path_is_refused_at_its_key() -> None:
    """The key is named, with what may stand there."""
    with pytest.raises(InputError) as caught:
        read_source("no/such.jsonl", "chat")
    assert str(caught.value) == (
        "data.path: no file or folder 'no/such.jsonl'; "
        "set data.path to a JSONL file, a folder, or samples"
    )


def test_a_folder_without_train_says_what_it_looked_for_and_found(tmp_path: Path) -> None:
    """Both lists are in the message, so that a misspelt name is seen at once."""
    write(tmp_path / "training.jsonl", LINE)
    found = refused(tmp_path).found
    assert "found training.jsonl;" in found
    assert "looked for train.jsonl, valid.jsonl, validation.jsonl, val.jsonl" in found
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "found nothing" in refused(empty).found


def test_two_files_for_one_split_are_refused(tmp_path: Path) -> None:
    """Neither of two validation files is chosen in silence."""
    for name in ("train", "val", "dev"):
        write(tmp_path / f"{name}.jsonl", LINE)
    assert refused(tmp_path).found == "found val.jsonl and dev.jsonl, expected one valid split"


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xef\xbb\xbf"])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: bytes) -> None:
    """An empty file is an error, not an empty data set."""
    error = refused(write(tmp_path / "e.jsonl", content))
    assert (error.where, error.found.partition(",")[0]) == (
        str(tmp_path / "e.jsonl"),
        "found no rows",
    )


def turn(role: object = "user", content: object = "p") -> dict[str, object]:
    return {"role": role, "content": content}


BAD_CHAT = [
    ('{"messages": [', "invalid JSON at character 15 (Expecting value)"),
    ("[" * 100_000, "JSON beyond reason"),
    ("\ufeff" + LINE.strip(), "invalid JSON at character 1"),
    (b'{"messages": "\xe9t\xe9"}', "byte 15 of the line is not UTF-8"),
    ("[1]", 'found a list, expected an object with "messages"'),
    ("7", 'found a number, expected an object with "messages"'),
    ('{"text": "x"}', 'found the keys "text", expected an object with "messages"; '
     "these rows look like text: use data=text"),
    ('{"conversations": []}', 'found the keys "conversations", expected an object with "messages"'),
    ("{}", 'found an empty object, expected an object with "messages"'),
    ({"messages": []}, 'found an empty list in "messages", expected a list of turns'),
    ({"messages": "hi"}, 'found text in "messages", expected a list of turns'),
    ({"messages": ["hi"]}, 'found text as messages[0], expected an object with "role" and'),
    ({"messages": [{"role": "user"}]}, 'found the keys "role" in messages[0], expected "content"'),
    ({"messages": [{"from": "human", "value": "x"}]},
     'found the keys "from", "value" in messages[0], expected "role"'),
    ({"messages": [turn("tool")]},
     "found role 'tool' in messages[0], expected one of system, user, assistant"),
    ({"messages": [turn(["user"])]}, "found role ['user'] in messages[0]"),
    ({"messages": [turn(), turn("assistant", None)]}, 'found null as "content" of messages[1]'),
    ({"messages": [turn(content=[{"type": "text"}])]}, 'found a list as "content" of messages[0]'),
    ({"messages": [turn(), turn("system")]}, "found no assistant turn, expected at least one"),
    ({"messages": [turn("assistant"), turn()]}, "found an assistant turn first"),
    ('{"messages": [{"role": "user", "content": "a\\ud800"}]}',
     'found half of a surrogate pair in "content" of messages[0], at character 2'),
    ({"messages": [turn(), {**turn("assistant", ""), "tool_calls": [{}]}]},
     'found "tool_calls", which would be lost'),
    ({"messages": [turn(), {**turn("assistant"), "train": False}]}, 'found "train"'),
    ({**GOOD, "tools": [{}]}, 'found "tools", which would be lost'),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), BAD_CHAT)
def test_a_bad_conversation_is_named_by_file_and_line(
    tmp_path: Path, line: object, message: str
) -> None:
    """The second line is bad: its number, what was found there and what was expected are said."""
    written = line if isinstance(line, str | bytes) else json.dumps(line)
    second = written if isinstance(written, bytes) else written.encode()
    error = refused(write(tmp_path / "bad.jsonl", LINE.encode() + second + b"\n" + b"worse"))
    assert error.where == f"{tmp_path / 'bad.jsonl'}:2"
    assert message in str(error)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LINE, 'found the keys "messages", expected an object with "text"; '
               "these rows look like chat: use data=chat"),
        ('{"text": null}', 'found null as "text", expected text'),
        ('{"text": " \\n"}', "found an empty text, expected some; remove the row"),
        ('{"text": "\\udfff"}', 'found half of a surrogate pair in "text", at character 1'),
    ],
)  # fmt: skip
def test_a_bad_text_is_named_by_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    """Text rows are checked as conversations are."""
    error = refused(write(tmp_path / "bad.jsonl", '{"text": "x"}\n' + line), "text")
    assert error.where.endswith("bad.jsonl:2")
    assert message in str(error)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    """A folder that is called train.jsonl counts as no training file."""
    (tmp_path / "train.jsonl").mkdir()
    assert refused(tmp_path).found.startswith("no train.jsonl in it (found train.jsonl")


def test_the_samples_are_a_source() -> None:
    """`samples` gives all three splits, each row with a name of its own."""
    found = read_source("samples", "chat")
    assert set(found) == {"train", "valid", "test"}
    assert found["test"][2].source == "samples/test:3"
    with pytest.raises(InputError, match="these rows look like chat: use data=chat"):
        read_source("samples", "text")


def test_an_answer_may_be_empty() -> None:
    """To answer nothing is an answer; the row is kept as it is."""
    row = parse({"messages": [turn(), turn("assistant", "")]}, "chat", "s", "w")
    assert row.messages[1] == {"role": "assistant", "content": ""}
