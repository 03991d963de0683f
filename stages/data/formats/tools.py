"""Tools of a conversation and calls of them, in OpenAI's shape, as chat templates expect it.

https://platform.openai.com/docs/guides/function-calling
"""

from __future__ import annotations

from typing import Any

from stages.data.formats.values import check_json, check_text, decode_json, keys, kind
from stages.errors import InputError

_CALL = '{"type": "function", "function": {"name": …, "arguments": {…}}}'
_TOOL = '{"type": "function", "function": {"name": …}}'


def read_tools(record: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Return the tools of a record, from `tools` or the older `functions`; most have none.

    Either is a list or a text of JSON that holds one; functions without their wrapping get it.
    Raises InputError at `where`.
    """
    given = {key: _decoded(record.get(key)) for key in ("tools", "functions")}
    given = {key: value for key, value in given.items() if value not in (None, [])}
    if len(given) > 1:
        found = 'found both "tools" and "functions", expected one of them'
        raise InputError(where, found, 'remove "functions"')
    return [
        _tool(tool, f"{key}[{n}]", where)
        for key, value in given.items()
        for n, tool in enumerate(_list(value, f'"{key}"', where))
    ]


def read_calls(value: object, name: str, where: str) -> list[dict[str, Any]]:
    """Return the tool calls of a turn, their arguments as objects; raises InputError at `where`."""
    calls = _list(value, f'"tool_calls" of {name}', where)
    return [_call(call, f"{name}.tool_calls[{n}]", where) for n, call in enumerate(calls)]


def read_function_call(value: object, name: str, where: str) -> dict[str, Any]:
    """Return `{"name", "arguments"}` as a tool call; raises InputError at `where`.

    The arguments are an object or a text of JSON that holds one.
    """
    expected = 'expected an object with "name" and "arguments"'
    if not isinstance(value, dict):
        raise InputError(where, f"found {kind(value)} as {name}, {expected}")
    for key in ("name", "arguments"):
        if key not in value:
            raise InputError(where, f'found {keys(value)} in {name}, expected "{key}"')
    arguments = decode_json(value["arguments"])
    if not isinstance(arguments, dict):
        found = f'found {kind(arguments)} as "arguments" of {name}'
        raise InputError(where, f"{found}, expected an object or JSON text of one",
                         "write {} where there are none")  # fmt: skip
    check_json(arguments, f'"arguments" of {name}', where)
    function = {"name": _name(value["name"], name, where), "arguments": arguments}
    return {"type": "function", "function": function}


def _call(value: object, name: str, where: str) -> dict[str, Any]:
    wrapping = _wrapping(value, name, where, _CALL)
    call = read_function_call(wrapping["function"], f"{name}.function", where)
    if wrapping.get("id") is not None:
        call["id"] = check_text(wrapping["id"], f'"id" of {name}', where)
    return call


def _tool(value: object, name: str, where: str) -> dict[str, Any]:
    if isinstance(value, dict) and "function" not in value and "name" in value:
        value = {"function": value}
    function = _wrapping(value, name, where, _TOOL)["function"]
    if not isinstance(function, dict) or "name" not in function:
        found = keys(function) if isinstance(function, dict) else kind(function)
        raise InputError(where, f'found {found} as "function" of {name}, expected {_TOOL}')
    _name(function["name"], f"{name}.function", where)
    check_json(function, f'"function" of {name}', where)
    return {"type": "function", "function": function}


def _wrapping(value: object, name: str, where: str, expected: str) -> dict[str, Any]:
    if not isinstance(value, dict) or "function" not in value:
        found = keys(value) if isinstance(value, dict) else kind(value)
        raise InputError(where, f"found {found} as {name}, expected {expected}")
    if value.get("type") not in (None, "function"):
        raise InputError(where, f"found another type of tool as {name}, expected a function")
    return value


def _name(value: object, name: str, where: str) -> str:
    text = check_text(value, f'"name" of {name}', where)
    if not text.strip():
        raise InputError(where, f'found an empty "name" of {name}, expected some')
    return text


def _list(value: object, name: str, where: str) -> list[object]:
    if not isinstance(value, list):
        raise InputError(where, f"found {kind(value)} as {name}, expected a list")
    return value


def _decoded(value: object) -> object:
    # An empty cell of a table stands for no tools.
    return None if isinstance(value, str) and not value.strip() else decode_json(value)
