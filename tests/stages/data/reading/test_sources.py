"""Reading files: what is accepted, and what a person is told about the rest, case by case."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from stages.data.reading.encodings import Encoding
from stages.data.reading.records import Chunk
from stages.data.reading.sources import decode_line, read
from stages.errors import InputError
from stages.inputs import DataFile

BOM = b"\xef\xbb\xbf"
MANY = {"messages": [{"role": "user", "content": "a"}]}


def chunks(
    name: str, content: str | bytes, encoding: Encoding = "utf-8"
) -> tuple[list[Chunk], InputError | None]:
    """Write a file in the working directory; return what was read of it and what ended that."""
    raw = content.encode() if isinstance(content, str) else content
    Path(name).write_bytes(raw)
    read_so_far: list[Chunk] = []
    try:
        for chunk in read(DataFile(name, name, "train", 0), encoding):
            read_so_far.append(chunk)  # noqa: PERF402  # what came before an error is kept
    except InputError as error:
        return read_so_far, error
    return read_so_far, None


def rows(name: str, content: str | bytes, encoding: Encoding = "utf-8") -> list[tuple[int, Any]]:
    """Return number and value of each record; a fault is its message. Lines are decoded."""
    found, error = chunks(name, content, encoding)
    made: list[tuple[int, Any]] = []
    for chunk in found:
        for index, value in enumerate(chunk.values):
            try:
                if isinstance(value, bytes):
                    value = decode_line(value, chunk.where(index), encoding)[0]
            except InputError as fault:
                value = fault
            made.append(
                (chunk.numbers[index], str(value) if isinstance(value, InputError) else value)
            )
    return [*made, (0, str(error))] if error else made


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


LINE_MEND = "put one whole JSON object on each line"
NUL = "found a NUL character, expected text; remove it, or save the file as UTF-8"
ADD = "write some, or remove the file"
# Name of the file, what it holds, its records by number; (0, …) is what ended the reading.
JSON_MEND = "make the file one list of objects; one object on each line is a .jsonl file"
CELLS_MEND = "fix the row; a cell that holds the delimiter, a quote or a line end is quoted"
UTF8_MEND = "save the file as UTF-8, or set data.encoding=auto to read it as Windows-1252"
CASES: list[tuple[str, str | bytes, list[tuple[int, Any]]]] = [
    # Byte order marks, line ends, blank lines.
    ("bom.jsonl", BOM + b'{"a": 1}\n', [(1, {"a": 1})]),
    ("bom.json", BOM + b'[{"a": 1}]', [(1, {"a": 1})]),
    ("bom.csv", BOM + b"a,b\n1,2\n", [(2, {"a": "1", "b": "2"})]),
    ("bom.txt", BOM + b"hello", [(1, {"text": "hello"})]),
    ("bom-inside.jsonl", b'{"a": 1}\n' + BOM + b'{"a": 2}\n', [(1, {"a": 1}), (
        2, "bom-inside.jsonl:2:1: invalid JSON (a byte order mark inside the file); "
           f"{LINE_MEND}")]),
    ("crlf.jsonl", '{"a": 1}\r\n\r\n  \n\n{"a": 2}', [(1, {"a": 1}), (5, {"a": 2})]),
    ("crlf.json", '[\r\n{"a":\r\n1},\r\n{"a": 2}\r\n]\r\n', [(2, {"a": 1}), (4, {"a": 2})]),
    ("crlf.csv", '\r\na,b\r\n1,"2\r\n3"\r\n\r\n  \r\n4,5\r\n',
     [(3, {"a": "1", "b": "2\r\n3"}), (7, {"a": "4", "b": "5"})]),
    ("crlf.md", "# a\r\n\r\nb\r\n", [(1, {"text": "# a\n\nb\n"})]),
    ("separators.jsonl", '{"a": "x\u2028y\x85z"}\n{"a": 2}\n',
     [(1, {"a": "x\u2028y\x85z"}), (2, {"a": 2})]),
    ("separators.csv", "a,b\nx\u2028y\x85z\x0c,2\n", [(2, {"a": "x\u2028y\x85z\x0c", "b": "2"})]),
    # JSON that is none.
    ("comma.jsonl", '{"a": 1}\n{"é": 1 "b": 2}\n{"a": 3}\n', [
        (1, {"a": 1}),
        (2, f"comma.jsonl:2:9: invalid JSON (Expecting ',' delimiter); {LINE_MEND}"),
        (3, {"a": 3})]),
    ("nul.jsonl", b'{"a": 1}\n\0\0\0\n', [(1, {"a": 1}), (
        2, f"nul.jsonl:2:1: invalid JSON (a NUL character); {LINE_MEND}")]),
    ("nul.json", b'[{"a": 1},\n {"a": "\0"}]', [(1, {"a": 1}), (
        0, f"nul.json:2:9: {NUL}")]),
    ("nul.txt", b"ab\nc\0", [
        (0, f"nul.txt:2:2: {NUL}")]),
    ("nan.jsonl", '{"a": "NaN\\"", "b": -Infinity}', [(
        1, f"nan.jsonl:1:21: invalid JSON (-Infinity is no number in JSON); {LINE_MEND}")]),
    ("nan.json", '[{"a": 1},\n {"b":\n NaN}]', [(1, {"a": 1}), (
        0, f"nan.json:3:2: invalid JSON (NaN is no number in JSON); {JSON_MEND}")]),
    ("large.jsonl", '{"a": 1e308, "b": -1e309}', [(
        1, f"large.jsonl:1:19: invalid JSON (-1e309 is too large a number); {LINE_MEND}")]),
    ("digits.jsonl", '{"a": 7, "b": ' + "9" * 5000 + "}", [(
        1, "digits.jsonl:1:15: invalid JSON (a number of 5000 characters is too large a number); "
           f"{LINE_MEND}")]),
    ("deep.jsonl", "[" * 100_000, [(
        1, f"deep.jsonl:1:1: invalid JSON (nested too deep); {LINE_MEND}")]),
    ("half.json", '[{"a": 1},\n {"a": 2},\n {"a": ', [(1, {"a": 1}), (2, {"a": 2}), (
        0, f"half.json:3:8: invalid JSON (Expecting value); {JSON_MEND}")]),
    ("open.json", '[{"a": 1}\n', [(1, {"a": 1}), (
        0, f"open.json:2:1: invalid JSON (the file ends inside its list); {JSON_MEND}")]),
    ("broken.json", '[{"a": 1},\n {"é" 2},\n {"a": 3}]', [(1, {"a": 1}), (
        0, f"broken.json:2:7: invalid JSON (Expecting ':' delimiter); {JSON_MEND}")]),
    ("trailing.json", '[{"a": 1},]', [(1, {"a": 1}), (
        0, f"trailing.json:1:11: invalid JSON (Expecting value); {JSON_MEND}")]),
    ("between.json", '[{"a": 1} {"a": 2}]', [(1, {"a": 1}), (
        0, f"between.json:1:11: invalid JSON (Expecting ',' or ']'); {JSON_MEND}")]),
    ("after.json", '[{"a": 1}]\n[2]', [(1, {"a": 1}), (
        0, f"after.json:2:1: invalid JSON (more text after its end); {JSON_MEND}")]),
    # What a .json file may be.
    ("object.json", '{"v": [1],\n"data": [\n{"a": 1}\n,{"a": 2}], "n": {"x": []}}\n',
     [(3, {"a": 1}), (4, {"a": 2})]),
    ("one.json", ' \n{"text": "a",\n "tags": ["x"], "n": []}\n',
     [(2, {"text": "a", "tags": ["x"], "n": []})]),
    ("turns.json", json.dumps({"tools": [{"type": "function"}], **MANY}),
     [(1, {"tools": [{"type": "function"}], **MANY})]),
    ("lines.json", '{"d": [{"a": 1}]}\n\n{"d": []}\n', [(1, {"d": [{"a": 1}]}), (3, {"d": []})]),
    ("joined.json", '{"a":\n1}{"a": 2}\n7', [(1, {"a": 1}), (2, {"a": 2}), (3, 7)]),
    ("two.json", '{"train": [{"a": 1}],\n "test": [{"a": 2}]}', [(1, {"a": 1}), (
        0, "two.json:2:10: found two lists of objects, 'train' and 'test', "
           f"expected one; {JSON_MEND}")]),
    ("name.json", '{"a": 1,}', [(
        0, f"name.json:1:9: invalid JSON (Expecting a name in double quotes); {JSON_MEND}")]),
    ("colon.json", '{"a" 1}', [(0, f"colon.json:1:6: invalid JSON (Expecting ':'); {JSON_MEND}")]),
    ("single.json", '{"a": 1', [(
        0, f"single.json:1:8: invalid JSON (Expecting ',' or '}}'); {JSON_MEND}")]),
    # Tables.
    ("ragged.csv", "a,b\n1\n2,3\n4,5,6\n7,8\n", [
        (2, f"ragged.csv:2: found 1 cells, expected 2 as in the header; {CELLS_MEND}"),
        (3, {"a": "2", "b": "3"}),
        (4, f"ragged.csv:4: found 3 cells, expected 2 as in the header; {CELLS_MEND}"),
        (5, {"a": "7", "b": "8"})]),
    ("quotes.csv", 'a,b\n"x"y,1\n2,3\n"4,5\n', [
        (2, f"quotes.csv:2: the table is broken here (',' expected after '\"'); {CELLS_MEND}"),
        (3, {"a": "2", "b": "3"}),
        (4, f"quotes.csv:4: the table is broken here (unexpected end of data); {CELLS_MEND}")]),
    ("twice.csv", "a,b,a\n1,2,3\n", [
        (0, "twice.csv:1: found two columns named 'a', expected different names; "
            "rename one of them")]),
    ("empty-cells.csv", "a,b\n,\n", [(2, {"a": "", "b": ""})]),
    ("europe.csv", '"a,1,2,3";b\n"1,5";x;\n2;3,4\n', [
        (2, f"europe.csv:2: found 3 cells, expected 2 as in the header; {CELLS_MEND}"),
        (3, {"a,1,2,3": "2", "b": "3,4"})]),
    ("tabs.tsv", "a\tb\n1,2\t3;4\n", [(2, {"a": "1,2", "b": "3;4"})]),
    # Encodings.
    ("latin.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', [(1, {"a": 1}), (
        2, f"latin.jsonl:2:8: byte 0xE9 is not UTF-8; {UTF8_MEND}")]),
    ("latin.json", b'[{"a": "\xc3\xa9"},\n{"a": "\xc3\xa9\xe9"}]', [(1, {"a": "é"}), (
        0, f"latin.json:2:10: byte 0xE9 is not UTF-8; {UTF8_MEND}")]),
    ("latin.csv", b"a,b\n1,2\n3,\xe94\n", [(2, {"a": "1", "b": "2"}), (
        0, f"latin.csv:3:3: byte 0xE9 is not UTF-8; {UTF8_MEND}")]),
    ("latin.txt", b"caf\xe9", [(0, f"latin.txt:1:4: byte 0xE9 is not UTF-8; {UTF8_MEND}")]),
    # Nothing at all.
    ("blank.jsonl", b"\n \r\n", [
        (0, f"blank.jsonl: found no rows, expected one JSON object on each line; {ADD}")]),
    ("blank.json", BOM, [(
        0, f"blank.json: found no rows, expected a list of objects; {ADD}")]),
    ("blank-list.json", "[]", [(
        0, f"blank-list.json: found no rows, expected a list of objects; {ADD}")]),
    ("header.csv", "a,b\n", [
        (0, f"header.csv: found no rows, expected a header and rows; {ADD}")]),
    ("blank.txt", "\n \n", [(1, f"blank.txt: found no text; {ADD}")]),
    # Files that are something else.
    ("packed.jsonl", gzip.compress(b"{}"), [
        (0, "packed.jsonl: found gzip data, expected text; call the file .gz")]),
    ("sheet.csv", b"PK\x03\x04rest", [
        (0, "sheet.csv: found a ZIP archive, expected text; "
            "unpack it, or save a spreadsheet as CSV")]),
    ("plain.txt.gz", b"hello there", [
        (0, "plain.txt.gz: the gzip file is damaged (Not a gzipped file (b'he')); "
            "fetch or compress it again")]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "expected"), CASES, ids=[case[0] for case in CASES])
def test_each_file_gives_these_records_and_messages(
    name: str, content: str | bytes, expected: list[tuple[int, Any]]
) -> None:
    """One file for each case: records by their line, a fault where it stands, and what ends it."""
    assert rows(name, content) == expected


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.md.gz"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16_is_named(name: str, encoding: str) -> None:
    """What an older Windows program saves as Unicode is refused under its own name."""
    content = ("" if encoding == "utf-16" else "\ufeff").encode(encoding) + "a,b\n".encode(encoding)
    packed = gzip.compress(content) if name.endswith(".gz") else content
    (ended,) = rows(name, packed)
    assert ended[1] == (
        f"{name}: found UTF-16 (it starts with that byte order mark), expected UTF-8; "
        "save the file as UTF-8"
    )


def test_auto_reads_other_bytes_as_windows_1252_and_counts_them() -> None:
    """0x80 is the euro sign there, 0x81 nothing: that one is read as Latin-1."""
    raw = b"caf\xe9 \x80 \x81 \xc3\xa9"
    line = b'{"text": "' + raw + b'"}'
    text = "café € \x81 é"
    assert decode_line(line, "w", "auto") == ({"text": text}, 3)
    for name, content in [
        ("a.txt", raw),
        ("a.json", b"[" + line + b"]"),
        ("a.csv", b"text\n" + raw),
    ]:
        (chunk,), error = chunks(name, content, "auto")
        assert (chunk.values, chunk.repairs, error) == (({"text": text},), 3, None)


@pytest.mark.parametrize("name", ["cut.jsonl.gz", "cut.csv.gz", "cut.json.gz", "cut.txt.gz"])
def test_a_truncated_gzip_keeps_what_was_read_before(name: str) -> None:
    """Records before the place come first; the file is named, not a line of it."""
    lines = [json.dumps({"a": n, "b": "x" * (n % 7)}) for n in range(20_000)]
    table = [f"{n},{'x' * (n % 7)}" for n in range(20_000)]
    text = {
        "jsonl": "\n".join(lines),
        "csv": "\n".join(["a,b", *table]),
        "json": "[" + ",\n".join(lines) + "]",
        "txt": "\n".join(table),
    }[name.split(".")[1]]
    packed = gzip.compress(text.encode())
    *before, ended = rows(name, packed[: len(packed) // 2])
    assert ended == (0, f"{name}: the gzip file ends too early; fetch or compress it again")
    if name == "cut.txt.gz":
        assert text.startswith("".join(value["text"] for _, value in before))
        return
    assert [int(value["a"]) for _, value in before] == list(range(len(before)))
    assert 5_000 < len(before) < 20_000


def test_damage_inside_a_gzip_is_named() -> None:
    """A wrong byte in the middle fails its checks."""
    packed = bytearray(
        gzip.compress(json.dumps({"a": "".join(map(chr, range(32, 2000)))}).encode())
    )
    packed[len(packed) // 2] ^= 0xFF
    (ended,) = rows("wrong.jsonl.gz", bytes(packed))
    assert ended[1].startswith("wrong.jsonl.gz: the gzip file is damaged (")


@pytest.mark.parametrize("name", ["gone.jsonl", "gone.json", "gone.csv", "gone.parquet", "gone.md"])
def test_a_file_that_cannot_be_opened_is_named(name: str) -> None:
    """The system's own words say why."""
    with pytest.raises(InputError, match=f"{name}: cannot be read \\(No such file or directory\\)"):
        list(read(DataFile(name, name, "train", 0), "utf-8"))


def test_a_line_of_10_mb_is_read_in_a_chunk_of_its_own() -> None:
    """A long row is a row, in a line, a list, a cell and a document cut into several."""
    long = "x" * 10_000_000
    content = json.dumps({"a": long})
    (one, two), _ = chunks("long.jsonl", content + '\n{"a": 1}\n')
    assert (one.values, two.numbers) == ((content.encode(),), (2,))
    assert rows("long.json", f'[{content},\n{{"a": 1}}]') == [(1, {"a": long}), (2, {"a": 1})]
    assert rows("long.csv", f"a,b\n{long},1\n2,3\n")[0] == (2, {"a": long, "b": "1"})
    assert [len(value["text"]) for _, value in rows("long.txt", long)] == [65_536] * 152 + [38_528]


def test_a_line_beyond_64_mib_is_named_and_the_next_is_read() -> None:
    """More likely a file without line ends than a row; memory stays bounded."""
    content = b'{"a": 1}\n' + b"x" * (64 * 2**20 + 1) + b'\n{"a": 3}\n'
    packed = gzip.compress(content, compresslevel=1)
    first, fault, last = rows("huge.jsonl.gz", packed)
    assert (first, last) == ((1, {"a": 1}), (3, {"a": 3}))
    assert fault == (2, "huge.jsonl.gz:2: a line of more than 64 MiB, expected one JSON object on "
                        "each line; write each row on a line of its own")  # fmt: skip


def test_a_quote_that_never_closes_ends_one_record() -> None:
    """The limit on a cell names the line with the quote; others' limit is left as it was."""
    before = csv.field_size_limit()
    found = rows("open.csv", 'a,b\n1,"2\n' + "3,4\n" * 3_000_000)
    assert found[0][0] == 2
    assert "open.csv:2: the table is broken here (field larger than field limit" in found[0][1]
    assert found[-1] == (3_000_002, {"a": "3", "b": "4"})
    assert csv.field_size_limit() == before
