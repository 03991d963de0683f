"""SNIPS as conversations: a spoken command is asked, its intent and slots are the answer.

For `data.convert=stages/data/samples/snips.py:command`. It is 2017-06-custom-intent-engines of
sonos/nlu-benchmark on GitHub (Coucke et al., arXiv 1805.10190): one JSON file for each intent and
split, {"PlayMusic": [{"data": [{"text": "play "}, {"text": "Ada", "entity": "artist"}]}, …]}.
"""

from __future__ import annotations

import json
import re
from typing import Any

SYSTEM = "Reply with the intent and its slots as JSON."
"""What the model is told before each command."""

_NAME = re.compile(r"(?:train|validate)_([A-Za-z]+)(?:_full)?\.json")


def command(record: dict[str, Any], source: str) -> dict[str, Any]:
    """Return a command of SNIPS as a conversation, answered by one line of compact JSON.

    `source` names the record, `train_PlayMusic_full.json:12`; the file's name says the intent.
    Slots stand in the order of their first occurrence, one that occurs again holds a list. Raises
    ValueError for a file of any other name.
    """
    name = _NAME.match(source.rpartition("/")[2])
    if name is None:
        raise ValueError("expected a file train_<intent> or validate_<intent>")
    answer = {"intent": name[1], "slots": _slots(record["data"])}
    return {
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": "".join(part["text"] for part in record["data"]).strip()},
            {
                "role": "assistant",
                "content": json.dumps(answer, ensure_ascii=False, separators=(",", ":")),
            },
        ]
    }


def _slots(parts: list[dict[str, str]]) -> dict[str, str | list[str]]:
    found: dict[str, list[str]] = {}
    for part in parts:
        if "entity" in part:
            found.setdefault(part["entity"], []).append(part["text"].strip())
    return {slot: values[0] if len(values) == 1 else values for slot, values in found.items()}
