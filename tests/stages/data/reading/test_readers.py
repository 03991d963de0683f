"""What is written is what is read, wherever blocks of a file end; Parquet; real folders."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stages.data import samples
from stages.data.reading import documents
from stages.data.reading.arrays import read_array
from stages.data.reading.documents import read_document
from stages.data.reading.encodings import Text
from stages.data.reading.lines import decode_line, read_lines
from stages.data.reading.records import Chunk
from stages.data.reading.sources import read
from stages.data.reading.tables import read_delimited
from stages.errors import InputError
from stages.inputs import DataFile, find_files

DATA = Path(__file__).parents[5] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no folder of real data here")

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
BLANK = st.text(" \t\r\n", max_size=4)
SIZES = st.integers(5, 40)
"""Bytes in a block: smaller than the marks, characters and records in them."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readers")


def write(path: Path, content: str | bytes) -> DataFile:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return DataFile(str(path), path.name, "train", 0)


def records(chunks: Iterator[Chunk] | list[Chunk]) -> list[tuple[int, Any]]:
    return [pair for chunk in chunks for pair in zip(chunk.numbers, chunk.values, strict=True)]


@given(st.lists(st.tuples(VALUES, st.sampled_from(["\n", "\r\n", "\n \t\n", "\n\n\n"]))), SIZES)
def test_lines_come_back_with_their_numbers(
    place: Path, written: list[tuple[Any, str]], size: int
) -> None:
    """Each line is decoded to what was written, and stands where the newlines before it say."""
    content, expected = "", []
    for number, (value, end) in enumerate(written):
        expected.append((content.count("\n") + 1, value))
        content += json.dumps(value, ensure_ascii=bool(number % 2)) + end
    found = records(read_lines(write(place / "a.jsonl", content.rstrip()), size))
    assert [(number, decode_line(line, "", "utf-8")) for number, line in found] == [
        (number, (value, 0)) for number, value in expected
    ]


@given(st.lists(st.tuples(BLANK, VALUES, BLANK)), st.booleans(), SIZES, st.data())
def test_lists_come_back_with_their_lines(
    place: Path,
    written: list[tuple[str, Any, str]],
    wrapped: bool,
    size: int,
    data: st.DataObject,
) -> None:
    """Odd white space, laid out or not, alone or inside an object: the same records."""
    content, expected = "[", []
    if wrapped := wrapped and bool(written):
        written[0] = (written[0][0], {"first": 1}, written[0][2])
        note = json.dumps(data.draw(VALUES.filter(lambda value: not isinstance(value, list))))
        content = '\n{ "note" :\r\n' + note + ', "rows": ['
    for number, (before, value, after) in enumerate(written):
        content += ", "[: 2 * bool(number)] + before
        expected.append((content.count("\n") + 1, value))
        content += json.dumps(value, indent=data.draw(st.sampled_from([None, 1]))) + after
    content += '], "more": {}} \n' if wrapped else "]"
    assert records(read_array(write(place / "a.json", content), "utf-8", size)) == expected


@given(st.text('[]{}",:0123456789.eE+-truefalsn \n\\ué'), SIZES)
def test_a_broken_list_fails_as_a_whole_text_does(place: Path, inside: str, size: int) -> None:
    """What Python's own decoder takes is read, anything else refused, wherever blocks end."""
    content = f'[{{"a": 1}},{inside}]'
    chunks: list[Chunk] = []
    reading = read_array(write(place / "a.json", content), "utf-8", size)
    try:
        expected = json.loads(content)
    except ValueError:
        with pytest.raises(InputError):
            chunks.extend(reading)
        assert records(chunks)[0] == (1, {"a": 1})
        return
    assume("inf" not in repr(expected))  # Python takes 1e999 for infinity
    assert [value for _, value in records(reading)] == expected


@pytest.mark.parametrize("size", range(5, 30))
def test_a_number_is_read_to_its_end(tmp_path: Path, size: int) -> None:
    """A block may end inside a number, where what is read so far is one too."""
    file = write(tmp_path / "a.json", "[0.25, 15, -1.5e2, 12e-1,1234567,7]")
    values = [value for _, value in records(read_array(file, "utf-8", size))]
    assert values == [0.25, 15, -150.0, 1.2, 1234567, 7]


@given(
    st.lists(TEXT, min_size=2, max_size=4, unique=True),
    st.lists(st.lists(TEXT, min_size=4, max_size=4)),
    st.sampled_from([",", ";", "\t"]),
    SIZES,
)
def test_tables_come_back_with_their_lines(
    place: Path, names: list[str], rows: list[list[str]], delimiter: str, size: int
) -> None:
    """Quotes, delimiters and line ends inside cells are kept; a row starts where its quote does."""
    stripped = [name.strip() for name in names]
    assume(len(set(stripped)) == len(names))
    table = io.StringIO()
    writer = csv.writer(table, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(names)
    expected = []
    for row in rows:
        expected.append((table.getvalue().count("\n") + 1, dict(zip(stripped, row, strict=False))))
        writer.writerow(row[: len(names)])
    file = write(place / ("a.tsv" if delimiter == "\t" else "a.csv"), table.getvalue())
    assert records(read_delimited(file, "utf-8", size)) == expected


@given(st.text("ab \n\ré"), SIZES)
def test_documents_joined_are_the_text(place: Path, content: str, size: int) -> None:
    """Cut where a paragraph ends if one does, else a line; each no longer than allowed."""
    with patch.object(documents, "DOCUMENT_CHARACTERS", 20):
        found = records(read_document(write(place / "a.txt", content), "utf-8", size))
    whole = content.replace("\r\n", "\n")
    if not whole.strip():
        assert isinstance(found[0][1], InputError)
        return
    at = 0
    for number, value in found:
        text = value["text"]
        blank = whole[at : whole.index(text, at)]
        assert not blank.strip()
        at += len(blank) + len(text)
        assert number == whole[: at - len(text)].count("\n") + 1
        assert 0 < len(text) <= 20
        window = whole[at - len(text) :][10:20]
        if len(whole) - (at - len(text)) > 20 and "\n" in window:
            assert text.endswith("\n\n" if "\n\n" in window else "\n")
    assert not whole[at:].strip()


@given(st.binary(), SIZES)
def test_any_bytes_are_read_by_auto(place: Path, content: bytes, size: int) -> None:
    """UTF-8 is read as it is; each other byte is one character and one repair."""
    file = write(place / "a.txt", b"    " + content.replace(b"\0", b""))
    raw = Path(file.path).read_bytes()
    text = Text(file.path, "auto", size)
    assert len("".join(text)) == len(raw.decode("utf-8", "surrogateescape"))
    repairs = sum("\udc80" <= c <= "\udcff" for c in raw.decode("utf-8", "surrogateescape"))
    assert text.take_repairs() == repairs
    strict = (
        "".join(Text(file.path, "utf-8", size)) if not repairs else raw.decode("utf-8", "ignore")
    )
    assert strict == raw.decode("utf-8", "ignore")


def jsonl(rows: list[str]) -> str:
    return "".join(f'{{"a": "{row}"}}\n' for row in rows)


def array(rows: list[str]) -> str:
    return "[" + ",".join(f'{{"a": "{row}"}}' for row in rows) + "]"


def table(rows: list[str]) -> str:
    return "a,b\n" + "".join(f"{row},\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "form"), [("a.jsonl", jsonl), ("a.json", array), ("a.csv", table)]
)
def test_chunks_are_bounded(tmp_path: Path, name: str, form: Callable[[list[str]], str]) -> None:
    """At most 1,000 records and 1 MiB in one, a longer record alone; and none is lost."""
    lengths = [1] * 5_000 + [40_000] * 60 + [3_000_000, 1, 1_100_000, 7]
    sizes = []
    file = write(tmp_path / name, form(["x" * length for length in lengths]))
    for chunk in read(file, "utf-8"):
        values = [json.loads(v) if isinstance(v, bytes) else v for v in chunk.values]
        sizes.append([len(value["a"]) for value in values])
    assert [length for chunk_sizes in sizes for length in chunk_sizes] == lengths
    assert max(map(len, sizes)) == 1000
    assert all(sum(part) <= 2**20 or len(part) == 1 for part in sizes)


def parquet(path: Path, columns: dict[str, Any]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return path.read_bytes()


def test_parquet_rows_are_numbered_from_1(tmp_path: Path) -> None:
    """Nested columns become lists and objects; long rows come in small chunks."""
    path = tmp_path / "a.parquet"
    turns = [[{"role": "user", "content": "é"}], None, []]
    file = write(path, parquet(path, {"messages": turns, "n": [1, 2, 3]}))
    expected = [(n + 1, {"messages": turns[n], "n": n + 1}) for n in range(3)]
    assert records(read(file, "utf-8")) == expected
    write(path, parquet(path, {"text": [f"{n}" * 100_000 for n in range(100, 140)]}))
    found = list(read(file, "utf-8"))
    assert max(len(chunk.values) for chunk in found) <= 4
    assert [number for number, _ in records(found)] == list(range(1, 41))


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    """Cut off, overwritten, empty, without rows; a text that is not UTF-8 spoils its row alone."""
    path = tmp_path / "a.parquet"
    whole = parquet(path, {"text": ["a", "b"]})
    for damaged in (whole[:-20], b"x" * 100, b""):
        with pytest.raises(InputError, match=r"a.parquet: cannot be read \("):
            list(read(write(path, damaged), "utf-8"))
    file = write(path, parquet(path, {"text": []}))
    with pytest.raises(InputError, match=r"a.parquet: found no rows, expected rows"):
        list(read(file, "utf-8"))
    latin = parquet(path, {"text": ["one", "ééé", "two"]}).replace("ééé".encode(), b"\xe9" * 6)
    first, second, third = records(read(write(path, latin), "utf-8"))
    assert (first, third) == ((1, {"text": "one"}), (3, {"text": "two"}))
    assert (second[1].where, second[1].found) == (f"{path}:2", "found a text that is not UTF-8")


def test_the_samples_are_a_source() -> None:
    """`samples` gives all three splits, each row with a name of its own."""
    for file in find_files("samples")[0]:
        found = list(read(file, "utf-8"))
        assert [value for _, value in records(found)] == samples.rows(file.split)
        assert found[0].source(2) == f"samples/{file.split}:3"


@needs_data
def test_snips_is_read_whole_and_its_one_latin_1_file_is_named() -> None:
    """13,784 and 700 rows, as its README says; the place is that of the first odd byte."""
    found, _ = find_files(str(DATA / "snips"))
    counts = dict.fromkeys(("train", "valid"), 0)
    repairs = {}
    for file in found:
        chunks = list(read(file, "auto"))
        counts[file.split] += len(records(chunks))
        repairs[file.name] = sum(chunk.repairs for chunk in chunks)
    assert counts == {"train": 13_784, "valid": 700}
    (odd,) = [file for file in found if repairs[file.name]]
    assert odd.name == "train_PlayMusic_full.json"
    raw = Path(odd.path).read_bytes()
    with pytest.raises(UnicodeDecodeError) as caught:
        raw.decode()
    before = raw[: caught.value.start]
    with pytest.raises(InputError) as refused:
        list(read(odd, "utf-8"))
    line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
    assert refused.value.where == f"{odd.path}:{line}:{column}"


@needs_data
@pytest.mark.parametrize(("folder", "sizes"), [("books", [186]), ("fairytales", [23, 232, 23])])
def test_gzipped_lines_are_read_whole(folder: str, sizes: list[int]) -> None:
    """186 books; 23, 232 and 23 tales in test, train and val, as their README says."""
    counts: dict[str, int] = {}
    for file in find_files(str(DATA / folder))[0]:
        lines = records(read(file, "utf-8"))
        counts[file.split] = counts.get(file.split, 0) + len(lines)
        assert '"text"' in lines[-1][1].decode()
    assert list(counts.values()) == sizes
