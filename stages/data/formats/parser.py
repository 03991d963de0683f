"""What a row may look like, and the plain form in which it travels on.

messages: `{"messages": [turn, …]}`, OpenAI's, with `tools` where there are some. conversations:
`{"conversations": [{"from", "value"}, …]}`, ShareGPT's. prompt_completion: `prompt` and
`completion` (or `response`), both texts or both lists of turns; answers in the prompt are not
trained, as in TRL. alpaca: `instruction`, `input` where it is not blank, and `output`, with
`history`; the words of the Alpaca prompt are left to the chat template. question_answer:
`question` and `answer`. text: `{"text": …}`. All but text may have a `system` text.

Other keys of a row are left behind, except those that change what is trained: these are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stages.data.formats.columns import open_columns
from stages.data.formats.conversations import read_conversation
from stages.data.formats.convert import load_converter
from stages.data.formats.detection import find_format, in_known_case
from stages.data.formats.messages import UNREADABLE, check_order, check_trainable, read_turns
from stages.data.formats.messages import Message as Message
from stages.data.formats.pairs import read_alpaca, read_answer, read_completion
from stages.data.formats.tools import read_tools
from stages.data.formats.values import check_text, decode_json, is_empty, keys, kind
from stages.data_settings import Data
from stages.errors import InputError


@dataclass(frozen=True, slots=True)
class Row:
    """One row in its plain form."""

    content: dict[str, Any]
    """`{"messages": [turn, …]}`, with `"tools": […]` where the row has some, or `{"text": …}`."""
    source: str
    """File name and line, `train.jsonl:12`: the same wherever the folder lies."""
    where: str
    """The same with the path as the person wrote it, for messages."""
    format: str = "messages"
    """The format that the row was found to have, as `data.format` calls it, or `columns`."""
    home: str | None = None
    """Value of the column `data.group_by` as JSON: rows of one home stay in one split."""

    @property
    def messages(self) -> list[Message]:
        """Return the turns of a chat row."""
        messages: list[Message] = self.content["messages"]
        return messages

    @property
    def text(self) -> str:
        """Return the text of a text row."""
        text: str = self.content["text"]
        return text


Parser = Callable[[object, str, str], list[Row]]
"""(decoded record, its name as `Row.source`, its name as `Row.where`) to its rows."""

_Record = dict[str, Any]
_Reader = Callable[[_Record, str], tuple[_Record, str]]
"""(record, where) to the row's content and its format."""

_TOOLS = frozenset({"tools", "functions"})
# Dropping one of these in silence would train something else than the file says.
_MEANING = (*UNREADABLE, "tool_calls", "function_call", "reasoning_content", "train", "weight")
_MEANING_SET = frozenset(_MEANING)

_TURNS: dict[str, Callable[[_Record, str], list[Message]]] = {
    "messages": lambda record, where: read_turns(
        decode_json(record["messages"]), where, "messages"
    ),
    "conversations": lambda record, where: read_conversation(
        decode_json(record["conversations"]), where
    ),
    "prompt_completion": read_completion,
    "alpaca": read_alpaca,
    "question_answer": read_answer,
}


def open_parser(data: Data) -> Parser:
    """Return the parser of records, with the user's converter loaded where there is one.

    Raises SettingError where that cannot be loaded. The parser raises InputError for a record that
    cannot be used.
    """
    read = _format_reader(data.format) if data.columns is None else _column_reader(data.columns)
    convert = None if data.convert is None else load_converter(data.convert)
    group_by = data.group_by

    def parse_one(record: object, given: object, source: str, where: str) -> Row:
        if not isinstance(record, dict):
            mend = "make each record an object, or use data.convert"
            raise InputError(where, f"found {kind(record)}, expected an object", mend)
        content, name = read(record, where)
        home = None if group_by is None else _home(record, given, group_by, where)
        return Row(content, source, where, name, home)

    def parse(value: object, source: str, where: str) -> list[Row]:
        # Taken before the converter, which may change the record in place.
        given = value.get(group_by) if group_by and isinstance(value, dict) else None
        if convert is None:
            return [parse_one(value, given, source, where)]
        rows, records = [], convert(value, source, where)
        for number, record in enumerate(records, start=1):
            try:
                rows.append(parse_one(record, given, source, where))
            except InputError as error:
                place = f"row {number} of what" if len(records) > 1 else "what"
                found = f"{place} data.convert returned: {error.found}"
                raise InputError(where, found, error.mend) from error
        return rows

    return parse


def _format_reader(wanted: str) -> _Reader:
    def read(record: _Record, where: str) -> tuple[_Record, str]:
        record = in_known_case(record, wanted)
        name = find_format(record, wanted, where)
        if not _MEANING_SET.isdisjoint(record):
            _refuse_meaning(record, where)
        if name == "text":
            if record.get("tools"):
                found = 'found "tools" beside "text", which would be lost'
                raise InputError(where, found, "remove the key, or the row")
            return _text(record["text"], '"text"', where), name
        turns = _TURNS[name](record, where)
        listed = "prompt + completion" if name == "prompt_completion" else name
        return _chat(record, turns, listed, where), name

    return read


def _column_reader(columns: Mapping[str, str]) -> _Reader:
    take = open_columns(columns)

    def read(record: _Record, where: str) -> tuple[_Record, str]:
        cells = take(record, where)
        if "text" in cells:
            return _text(cells["text"], f'"{columns["text"]}"', where), "columns"
        if "messages" in cells:
            name = columns["messages"]
            turns = read_conversation(decode_json(cells["messages"]), where, name)
            return _chat(cells, turns, name, where), "columns"
        turns = read_answer(cells, where, "user", "assistant")
        return _chat(cells, turns, "columns", where), "columns"

    return read


def _chat(record: _Record, turns: list[Message], name: str, where: str) -> _Record:
    check_order(turns, where, name)
    system = record.get("system")
    if system is not None and check_text(system, '"system"', where).strip():
        if turns[0]["role"] == "system":
            found = f'found a "system" text beside the system turn {name}[0], expected one of them'
            raise InputError(where, found, "remove one, or join them")
        turns = [{"role": "system", "content": system}, *turns]
    check_trainable(turns, where)
    tools = [] if _TOOLS.isdisjoint(record) else read_tools(record, where)
    return {"messages": turns, "tools": tools} if tools else {"messages": turns}


def _text(value: object, name: str, where: str) -> _Record:
    text = check_text(value, name, where)
    if not text.strip():
        raise InputError(where, "found an empty text, expected some", "remove the row")
    return {"text": text}


def _refuse_meaning(record: _Record, where: str) -> None:
    for key in _MEANING:
        value = record.get(key)
        trained = key in ("train", "weight") and isinstance(value, bool | int | float)
        if value != 1 if trained else not is_empty(value):
            mend = "remove the key, or the row, or choose others by data.columns"
            raise InputError(where, f'found "{key}" beside the row, which would be lost', mend)


def _home(record: _Record, given: object, column: str, where: str) -> str:
    value = record.get(column)
    value = given if value is None else value
    if value is None:
        found = f'found {keys(record)}, expected "{column}"'
        if column in record:
            found = f'found null as "{column}", expected what its rows have in common'
        raise InputError(where, found, "mend data.group_by, or the row")
    try:
        return json.dumps(value, sort_keys=True, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        found = f'found {kind(value)} in "{column}" that is not JSON'
        raise InputError(where, found, "mend data.group_by") from error
