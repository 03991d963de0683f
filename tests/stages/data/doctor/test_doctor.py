"""The data doctor: from findings to numbers, advice, JSON, table and page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.data.doctor.advice import advice
from stages.data.doctor.findings import (
    Example,
    Findings,
    NearRows,
    Source,
    SourceFile,
    Split,
    TemplateUse,
    describe,
    histogram,
    percentiles,
)
from stages.data.doctor.page import chart, page
from stages.data.doctor.report import to_json, write_doctor
from stages.data.doctor.table import WIDTH, table
from stages.data.reading.records import Fault
from stages.data.selection.select import SplitCounts

LENGTHS = st.lists(st.integers(1, 40_000), min_size=1, max_size=300)
NASTY = '</pre></style><script>alert("x")</script><img src=http://evil.example/a.png onerror=x> & é'


def split(lengths: list[int], supervised_tokens: int = 0, **found: int) -> Split:
    counts = {
        "rows": len(lengths), "exact_duplicates": 0, "duplicates": 0, "repeated_questions": 0,
        "other_answers": 0, **found,
    }  # fmt: skip
    return describe(np.array(lengths, np.int32), supervised_tokens, SplitCounts(**counts))


def findings(**changes: Any) -> Findings:
    """Return findings about clean data, but for the changes."""
    clean = Findings(
        kind="chat",
        settings={"max_seq_length": 512, "overlong": "auto", "valid_fraction": 0.1,
                  "test_fraction": 0.0},
        sources=(
            Source(path="chats", files=(
                SourceFile(name="train.jsonl", split="train", records=60),
                SourceFile(name="dev.csv", split="valid", records=2),
            )),
            Source(path="owner/name", files=(SourceFile(name="test", split="test", records=1),),
                   weight=0.5, revision="c0ffee"),
        ),
        formats={"messages": 60, "question_answer": 3},
        splits={
            "train": split([*range(5, 63), 98, 98], 1200),
            "valid": split([7, 9], 5),
            "test": split([11], 3),
        },
        near=NearRows(searched=63, rows=63, within={"train": 0, "valid": 0, "test": 0},
                      in_train={"valid": 0, "test": 0}),
        redacted=False,
        template=TemplateUse(name="chat template of models/tiny", sha256="ab12", given=False,
                             treatments=("Turns are merged.",)),
        tokenizer_sha256="cd34",
        stop_tokens=((2, "<|im_end|>"),),
        examples=(Example(source="train.jsonl:1", tokens=9, supervised_tokens=2,
                          pieces=(("user\n  hi\n", False), ("yes<|im_end|>", True))),),
    )  # fmt: skip
    return replace(clean, **changes)


def flawed() -> Findings:
    """Return findings about data in which everything is wrong."""
    return findings(
        kind="mixed",
        notes={"dropped_overlong": 7, "truncated": 1, "empty_answer": 3, "split": 0},
        splits={
            "train": split([20, 30], 9, rows=40, duplicates=5, exact_duplicates=2,
                           repeated_questions=6, other_answers=1, removed_leaks=9),
            "valid": split([21] * 700, asked_in_train=9, exact_in_train=2),
            "test": split([], rows=0),
        },
        near=NearRows(searched=500, rows=742, within={"train": 12}, in_train={"valid": 31},
                      examples=(("a.jsonl:1", "b.jsonl:2", 0.875),)),
        fault_count=25,
        faults=(Fault("a.jsonl:3:7", f"found {NASTY}", "remove it", "a.jsonl:3", "secret record"),),
        repairs={"a.jsonl": 12},
        private={"email": 31, "aws": 1, "hugging_face": 2},
        passed_over=(NASTY,),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("lengths", "bounds", "counts"),
    [
        ([], (0,), ()),
        ([7], (7, 8), (1,)),
        ([5, 5, 9], (5, 6, 7, 8, 9, 10), (2, 0, 0, 0, 1)),
        ([*range(1, 101)], (0, *range(10, 111, 10)), (9, *[10] * 9, 1)),
        # One row in two hundred is far away: the last bin takes it.
        ([10, 11] * 100 + [5001], (10, 11, 12, 5002), (100, 100, 1)),
    ],
)
def test_histogram_of_known_lengths(
    lengths: list[int], bounds: tuple[int, ...], counts: tuple[int, ...]
) -> None:
    """The bins are those that a person would choose."""
    assert histogram(np.array(lengths, np.int32)) == (bounds, counts)


@given(LENGTHS)
def test_histogram_counts_every_row_in_few_round_bins(lengths: list[int]) -> None:
    """Each row falls into one of 20 bins at most, equally wide but for the last, round."""
    bounds, counts = histogram(np.array(lengths, np.int32))
    assert len(counts) <= 20
    assert list(counts) == [
        sum(low <= length < high for length in lengths) for low, high in pairwise(bounds)
    ]
    assert sum(counts) == len(lengths)
    width = bounds[1] - bounds[0]
    if len(counts) > 2:
        assert str(width).rstrip("0") in ("1", "2", "5")
    if len(counts) > 1:
        assert {high - low for low, high in pairwise(bounds[:-1])} == {width}
    assert all(bound % width == 0 for bound in bounds)


@given(LENGTHS)
def test_percentiles_are_lengths_that_enough_rows_do_not_exceed(lengths: list[int]) -> None:
    """The shortest such length, as counting finds it."""
    assert percentiles(np.array(lengths, np.int32)) == {
        str(percent): min(
            length for length in lengths
            if 100 * sum(other <= length for other in lengths) >= percent * len(lengths)
        )
        for percent in (50, 90, 99)
    }  # fmt: skip


def test_describe_sums_in_64_bits() -> None:
    """Tokens of a split may be more than an int32 holds."""
    found = describe(np.full(3, 2**30, np.int32), 5, split([1]).found)
    assert (found.rows, found.tokens, found.longest) == (3, 3 * 2**30, 2**30)
    assert describe(np.array([], np.int32), 0, split([]).found).longest == 0


def test_json_holds_the_findings_by_name() -> None:
    """The fields of doctor.json, written out by hand."""
    described = json.loads(json.dumps(to_json(flawed())))
    assert list(described)[:2] == ["format", "kind"]
    assert described["format"] == 1
    assert described["kind"] == "mixed"
    assert described["sources"][1] == {
        "path": "owner/name", "weight": 0.5, "revision": "c0ffee",
        "files": [{"name": "test", "split": "test", "records": 1}],
    }  # fmt: skip
    assert described["splits"]["train"] == {
        "rows": 2, "tokens": 50, "supervised_tokens": 9, "longest": 30,
        "percentiles": {"50": 20, "90": 30, "99": 30},
        "bounds": list(range(20, 32)), "counts": [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        "found": {
            "rows": 40, "exact_duplicates": 2, "duplicates": 5, "repeated_questions": 6,
            "other_answers": 1, "asked_in_train": 0, "exact_in_train": 0, "removed_leaks": 9,
            "removed_duplicates": 0, "left_out": 0, "repeated": 0,
        },
    }  # fmt: skip
    assert described["near"]["examples"] == [["a.jsonl:1", "b.jsonl:2", 0.875]]
    assert described["faults"] == [
        {"where": "a.jsonl:3:7", "found": f"found {NASTY}", "mend": "remove it"}
    ]
    assert described["private"] == {"email": 31, "aws": 1, "hugging_face": 2}
    assert described["stop_tokens"] == [[2, "<|im_end|>"]]
    assert described["examples"][0]["pieces"] == [["user\n  hi\n", False], ["yes<|im_end|>", True]]
    assert described["advice"] == advice(flawed())


def test_metrics_are_flat() -> None:
    """Counts of each split, and how many rows were dropped."""
    assert flawed().metrics == {
        "prepare.train.rows": 2, "prepare.train.tokens": 50, "prepare.train.supervised_tokens": 9,
        "prepare.valid.rows": 700, "prepare.valid.tokens": 14700,
        "prepare.valid.supervised_tokens": 0,
        "prepare.test.rows": 0, "prepare.test.tokens": 0, "prepare.test.supervised_tokens": 0,
        "prepare.dropped_overlong": 7,
    }  # fmt: skip


def test_clean_data_gets_no_advice() -> None:
    """Advice is given only where something is to be known or done."""
    assert advice(findings()) == []


def test_advice_on_flawed_data() -> None:
    """Every sentence, with its numbers."""
    assert advice(flawed()) == [
        "25 records cannot be used: see quarantine.jsonl",
        f"1 file not read, as other names say a split: {NASTY}",
        "9 of 700 validation rows ask what train asks: 9 training rows were removed",
        "31 of 700 validation rows ask nearly what train asks: scores on such rows flatter the "
        "model",
        "7 rows (11 %) were dropped as longer than data.max_seq_length=512",
        "1 row (1.6 %) was cut at the beginning as longer than data.max_seq_length=512",
        "3 likely secrets (hugging face 2, aws 1) and 31 e-mail addresses were found: "
        "data.redact=true replaces them",
        "3 rows with an empty answer: such answers are not trained",
        "5 of 40 training rows (12 %) repeat an earlier one: data.duplicates=drop removes them",
        "1 file not UTF-8, 12 bytes read as Windows-1252: a.jsonl",
        "only 2 training rows: the model may learn them by heart",
        "no row is held out for testing: data.test_fraction holds some out",
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"private": {"email": 1}, "redacted": True}, "1 e-mail address was replaced"),
        ({"private": {"npm": 1}}, "1 likely secret (npm 1) was found: data.redact=true replaces "
                                  "them"),
        ({"notes": {"supervises_nothing": 1}},
         "1 row without a supervised token: left out, as nothing is learned"),
        ({"passed_over": ("README.md",)},
         "1 file not read, as other names say a split: README.md"),
        ({"repairs": dict.fromkeys("abcde", 2)},
         "5 files not UTF-8, 10 bytes read as Windows-1252: a, b, c and 2 more"),
        ({"splits": dict(findings().splits) | {"test": split([1], asked_in_train=1)}},
         "1 of 1 test row asks what train asks: data.leakage=drop removes those training rows"),
    ],
)  # fmt: skip
def test_single_flaw_gives_one_sentence(changes: dict[str, Any], expected: str) -> None:
    """Of one flaw the advice says one thing, in the right number."""
    assert advice(findings(**changes)) == [expected]


def test_table_of_clean_data() -> None:
    """Nine lines, written out by hand."""
    assert table(findings()) == [
        "chat · 63 rows (messages 60, question answer 3) of 3 files",
        "                       train    valid     test",
        "rows                      60        2        1",
        "tokens                 2,139       16       11",
        "supervised tokens      1,200        5        3",
        "half the rows up to       34        7       11",
        "99 % of them up to        98        9       11",
        "longest                   98        9       11",
        "lengths of train  5 ███████████▅      ▄ 99  (5 tokens a bar)",
    ]


def test_table_of_flawed_data_fits_a_terminal() -> None:
    """Only counts that are not all zero; no line is too long; the advice is whole."""
    lines = table(flawed())
    assert max(map(len, lines)) <= WIDTH
    counts = {line[:27].rstrip(): line[27:].split() for line in lines}
    assert counts["repeat an earlier row"] == ["5", "0", "0"]
    assert counts["asked in train"] == ["0", "9", "0"]
    assert counts["removed as asked elsewhere"] == ["9", "0", "0"]
    assert not any(line.startswith("added by weight") for line in lines)
    assert "rows: dropped as overlong 7, cut at the beginning 1, empty answer 3" in lines
    text = " ".join(line.strip() for line in lines)
    assert all(f"! {sentence}" in text for sentence in advice(flawed()))


class Parsed(HTMLParser):
    """What a browser would make of a page: tags in balance, attributes and text."""

    VOID = frozenset({"meta"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.marked = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if "mark" in self.open and "pre" in self.open:
            self.marked += data


def test_page_shows_hostile_text_as_text() -> None:
    """Tags in rows, names and faults are words; nothing is run or loaded."""
    hostile = Example(source=NASTY, tokens=3, supervised_tokens=1, pieces=((NASTY, True),))
    source = page(replace(flawed(), examples=(hostile,)))
    parsed = Parsed(source)
    assert parsed.open == []
    assert not {"script", "img", "link", "iframe", "a"} & {tag for tag, _ in parsed.tags}
    assert not any({"src", "href", "onerror"} & attrs.keys() for _, attrs in parsed.tags)
    assert not re.search(r"url\(|@import|@font-face", source)
    assert parsed.text.count(NASTY) == 5
    assert parsed.marked == NASTY


def test_page_tells_all_findings() -> None:
    """Sources, digests, counts, advice, faults and near-duplicates are there."""
    found = flawed()
    text = " ".join(Parsed(page(found)).text.split())
    wanted = [
        "chats", "train.jsonl", "dev.csv", "owner/name", "commit c0ffee", "weight 0.5", "ab12",
        "cd34", "<|im_end|> (2)", "Turns are merged.", "a.jsonl:3:7", "1 of 25", "0.88",
        "500 of 742", "likely secrets: hugging face", "e-mail addresses", "data.max_seq_length",
        *advice(found),
    ]  # fmt: skip
    assert [phrase for phrase in wanted if phrase not in text] == []
    assert "secret record" not in text


def test_page_of_clean_data_says_so() -> None:
    """Without flaws there is one good word, and no empty section."""
    text = Parsed(page(findings())).text
    assert "Nothing was found that needs a look." in text
    assert "No e-mail address and no likely secret." in text
    assert "Encoding" not in text
    assert "cannot be used" not in text


def test_page_keeps_whitespace_and_shows_what_is_invisible() -> None:
    """Spaces stay, line breaks are drawn and kept, control characters get their pictures."""
    pieces = (("a  b\n\n\tc\x00\r\n", False), ("  yes\n", True), ("end", False))
    example = Example(source="x", tokens=9, supervised_tokens=1, pieces=pieces)
    parsed = Parsed(page(findings(examples=(example,))))
    assert "a  b↵\n↵\n\tc␀␍↵\n  yes↵\nend" in parsed.text
    assert parsed.marked == "  yes↵\n"


def test_chart_draws_counts_to_scale() -> None:
    """Bar heights are in proportion to the counts, on the ground line, inside the picture."""
    picture = chart("train", split([1] * 4 + [2] * 2 + [3]))
    heights = [bar.height for bar in picture.bars]
    assert heights == pytest.approx([heights[2] * 4, heights[2] * 2, heights[2]], abs=0.05)
    assert len({round(bar.y + bar.height, 1) for bar in picture.bars}) == 1
    assert all(bar.y >= 0 and bar.x + bar.width <= picture.width for bar in picture.bars)
    assert [bar.title for bar in picture.bars] == [
        "1 token: 4 rows", "2 tokens: 2 rows", "3 tokens: 1 row",
    ]  # fmt: skip
    assert [label for _, label in picture.levels] == ["0", "1", "2", "3", "4"]
    assert [label for _, _, label in picture.ticks] == ["1", "2", "3", "4"]


def test_both_files_are_written_and_are_the_same_again(tmp_path: Path) -> None:
    """The table comes back; the same findings give the same bytes."""
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        assert write_doctor(flawed(), tmp_path / name) == table(flawed())
        written.append([path.read_bytes() for path in sorted((tmp_path / name).iterdir())])
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "doctor.html", "doctor.json",
    ]  # fmt: skip
    assert written[0] == written[1]
    assert json.loads(written[0][1]) == json.loads(json.dumps(to_json(flawed())))


def test_names_that_are_not_unicode_are_written(tmp_path: Path) -> None:
    """A file's name may hold a lone surrogate; doctor.json gives it back."""
    write_doctor(findings(passed_over=("caf\udce9.bin",)), tmp_path)
    assert json.loads((tmp_path / "doctor.json").read_text())["passed_over"] == ["caf\udce9.bin"]
    assert "caf\\udce9.bin" in (tmp_path / "doctor.html").read_text(encoding="utf-8")
