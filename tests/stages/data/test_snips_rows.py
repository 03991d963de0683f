"""The converter of SNIPS: by hand on written rows, and on every row of the benchmark."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages.data.formats.convert import load_converter
from stages.errors import InputError

FILE = Path(__file__).parents[3] / "stages" / "data" / "samples" / "snips.py"
SNIPS = Path(__file__).parents[4] / "shared" / "data" / "snips"
SYSTEM = {"role": "system", "content": "Reply with the intent and its slots as JSON."}

Part = str | tuple[str, str]


def converted(*parts: Part, source: str = "train_PlayMusic_full.json:12") -> dict[str, Any]:
    """Return the row of a record that holds words and, as (slot, words), slots."""
    data = [{"text": part} if isinstance(part, str) else {"text": part[1], "entity": part[0]}
            for part in parts]  # fmt: skip
    (row,) = load_converter(f"{FILE}:command")({"data": data}, source, f"far/{source}")
    return row


def answer(*parts: Part) -> str:
    """Return what the record is answered by."""
    text: str = converted(*parts)["messages"][2]["content"]
    return text


def test_a_command_is_asked_and_its_intent_and_slots_are_the_answer() -> None:
    """One conversation; the answer is one line of compact JSON, slots as they occur."""
    row = converted("Play ", ("sort", "the newest"), " ", ("music_item", "song"), " by ",
                    ("artist", "Sigur Rós"), " ")  # fmt: skip
    assert row == {"messages": [
        SYSTEM,
        {"role": "user", "content": "Play the newest song by Sigur Rós"},
        {"role": "assistant", "content": '{"intent":"PlayMusic","slots":{"sort":"the newest",'
         '"music_item":"song","artist":"Sigur Rós"}}'},
    ]}  # fmt: skip


def test_slots_that_occur_again_are_a_list() -> None:
    """It stands where the slot occurred first; words that are no slot stay out."""
    assert answer(("year", "1983"), " a ", ("sort", "top"), " or ", ("year", "1984 "), ", ",
                  ("year", "1983")) == (
        '{"intent":"PlayMusic","slots":{"year":["1983","1984","1983"],"sort":"top"}}'
    )  # fmt: skip
    assert answer("play something") == '{"intent":"PlayMusic","slots":{}}'


def test_white_space_at_the_ends_goes_and_stays_within() -> None:
    """Of the command and of each slot."""
    row = converted("  play  ", ("service", " vimeo "))
    assert row["messages"][1]["content"] == "play   vimeo"
    assert json.loads(row["messages"][2]["content"])["slots"] == {"service": "vimeo"}


@pytest.mark.parametrize(
    ("source", "intent"),
    [("train_RateBook_full.json:1", "RateBook"), ("validate_RateBook.json:7", "RateBook"),
     ("GetWeather/train_GetWeather_full.json.gz:3", "GetWeather")],
)  # fmt: skip
def test_the_name_of_the_file_says_the_intent(source: str, intent: str) -> None:
    """In whatever folder it lies."""
    row = converted("a", source=source)
    assert json.loads(row["messages"][2]["content"])["intent"] == intent


def test_a_file_of_another_name_is_refused() -> None:
    """Nothing else says the intent."""
    with pytest.raises(InputError) as caught:
        converted("a", source="rows.json:4")
    assert "expected a file train_<intent> or validate_<intent>" in caught.value.found
    assert caught.value.where == "far/rows.json:4"


def test_the_example_needs_nothing_of_this_project() -> None:
    """It is imported alone, by a Python that has neither this folder nor any package."""
    code = f"import sys; sys.path.insert(0, {str(FILE.parent)!r}); import snips; snips.command"
    subprocess.run([sys.executable, "-S", "-I", "-B", "-c", code], check=True)


@pytest.mark.skipif(not SNIPS.is_dir(), reason="the SNIPS files are not beside the checkout")
def test_every_command_of_snips_is_converted() -> None:
    """13,784 + 700 rows; each slot is found in its command, in its order, and none is lost."""
    convert = load_converter(f"{FILE}:command")
    counts = {"train": 0, "validate": 0}
    intents, lists = set(), 0
    for file in SNIPS.glob("*.json"):
        ((intent, records),) = json.loads(file.read_text("utf-8", "replace")).items()
        for number, record in enumerate(records, 1):
            (row,) = convert(record, f"{file.name}:{number}", str(file))
            system, user, assistant = row["messages"]
            said = json.loads(assistant["content"])
            assert (system, list(said)) == (SYSTEM, ["intent", "slots"])
            assert "\n" not in assistant["content"]
            assert said["intent"] == intent
            places = [user["content"].find(value if isinstance(value, str) else value[0])
                      for value in said["slots"].values()]  # fmt: skip
            assert -1 not in places
            values = [len(v) if isinstance(v, list) else 1 for v in said["slots"].values()]
            assert sum(values) == sum("entity" in part for part in record["data"])
            lists += any(isinstance(value, list) for value in said["slots"].values())
            counts[file.name.partition("_")[0]] += 1
        intents.add(intent)
    assert counts == {"train": 13_784, "validate": 700}
    assert (len(intents), lists) == (7, 61)
