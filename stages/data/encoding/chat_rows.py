"""Rows of conversations, encoded by a chat template, also those that are too long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from stages.data.encoding.examples import Encoded, Example, too_long
from stages.data.encoding.masks import encode_passages
from stages.data.encoding.overlong import shorten
from stages.data.encoding.template import Template, TemplateFault
from stages.data.encoding.turns import open_turns
from stages.data.encoding.unroll import Passage, Supervise, says, trained_turns, unroll
from stages.data.formats.messages import Message
from stages.data.formats.parser import Row
from stages.data.rows import Supervised, Tokens
from stages.data_settings import Data
from stages.errors import InputError

_Pair = tuple[Tokens, Supervised]
_Unencoded = list[tuple[Passage, _Pair | InputError]]


def open_chats(
    data: Data, template: Template
) -> Callable[[Sequence[Row]], list[Encoded | InputError]]:
    """Return the encoder of rows of conversations: one result for each.

    It raises TemplateFault where the template can be used for none.
    """

    def encode(rows: Sequence[Row]) -> list[Encoded | InputError]:
        made = [_passages_of(template, row, data.supervise) for row in rows]
        passages = [passage for found in made if isinstance(found, list) for passage in found]
        pairs = iter(zip(passages, encode_passages(template, passages), strict=True))
        return [
            found
            if isinstance(found, InputError)
            else _finished(data, template, row, [next(pairs) for _ in found])
            for row, found in zip(rows, made, strict=True)
        ]

    return encode


def _passages_of(template: Template, row: Row, supervise: Supervise) -> list[Passage] | InputError:
    try:
        return _passages(template, row, row.messages, supervise)
    except TemplateFault:
        raise
    except InputError as error:
        return error


def _passages(
    template: Template, row: Row, messages: list[Message], supervise: Supervise
) -> list[Passage]:  # fmt: skip
    trained = trained_turns(messages, supervise)
    if not trained:
        return []
    # What follows the last trained answer trains nothing.
    if trained[-1] + 1 < len(messages):
        messages = messages[: trained[-1] + 1]
    turns = open_turns(template, messages, row.content.get("tools"), row.where)
    return unroll(turns, messages, trained, supervise)


def _finished(data: Data, template: Template, row: Row, found: _Unencoded) -> Encoded | InputError:
    """Return the examples of a row, those that are too long dealt with as `data` says."""
    notes = _notes(template, row, found)
    examples: list[Example] = []
    for passage, pair in found:
        if isinstance(pair, InputError):
            return pair
        if len(pair[0]) <= data.max_seq_length:
            examples.append(_example(row, passage, pair))
            continue
        if data.overlong == "error":
            return too_long(row, len(pair[0]), data.max_seq_length)
        shorter = None
        if data.overlong == "truncate_left":
            supervise = "last" if passage.unrolled else data.supervise
            try:
                shorter = _shortened(template, row, passage, supervise, data.max_seq_length)
            except InputError as error:
                return error
        notes.append("dropped_overlong" if shorter is None else "truncated")
        examples += shorter or []
    return Encoded(examples, tuple(dict.fromkeys(notes)))


def _shortened(
    template: Template, row: Row, passage: Passage, supervise: Supervise, longest: int
) -> list[Example] | None:  # fmt: skip
    def attempt(messages: list[Message]) -> list[Example] | None:
        passages = _passages(template, row, messages, supervise)
        examples = []
        for made, pair in zip(passages, encode_passages(template, passages), strict=True):
            if isinstance(pair, InputError):
                raise pair
            if len(pair[0]) > longest:
                return None
            examples.append(_example(row, made, pair))
        return examples

    return shorten(passage.messages, attempt)


def _notes(template: Template, row: Row, found: _Unencoded) -> list[str]:
    messages, notes = row.messages, []
    if any(passage.unrolled for passage, _ in found):
        notes.append("unrolled")
    if (
        template.merges_system
        and messages[0]["role"] == "system"
        and messages[0]["content"].strip()
    ):
        notes.append("system_merged")
    asked = [turn for turn in messages if turn["role"] == "assistant" and turn.get("train", True)]
    if not all(map(says, asked)):
        notes.append("empty_answer")
    if not found:
        notes.append("supervises_nothing")
    return notes


def _example(row: Row, passage: Passage, pair: _Pair) -> Example:
    if passage.messages != row.messages:
        row = replace(row, content={**row.content, "messages": passage.messages})
    return Example(row, *pair)
