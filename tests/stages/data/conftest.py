"""Settings of the data group, and rows encoded with them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.data.encoding.encoder import Encoded, Encoder, open_encoder
from stages.data.formats.parser import Row
from stages.data_settings import Data
from stages.errors import InputError
from stages.models.tokenizer import load_tokenizer

TEMPLATES = Path(__file__).parents[4] / "shared" / "data" / "chat_templates"
DEFAULTS = Path(__file__).parents[3] / "conf" / "data" / "local.yaml"


@pytest.fixture(scope="session")
def make_data() -> Callable[..., Data]:
    """Return a maker of `Data` with the defaults of data=local, except `changes`."""
    values: dict[str, Any] = yaml.safe_load(DEFAULTS.read_text(encoding="utf-8"))
    return lambda **changes: Data(**values | {"path": "rows.jsonl"} | changes)


@pytest.fixture(scope="session")
def known_template() -> Callable[[str], str]:
    """Return a reader of well-known templates; skips where their folder is absent.

    Those laid out over lines are meant to be joined, as their README says.
    """
    if not TEMPLATES.is_dir():
        pytest.skip("no folder of chat templates here")

    def read(name: str) -> str:
        source = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
        if name in ("qwen2.5-instruct", "granite-3.0-instruct"):
            return source
        return source.replace("    ", "").replace("\n", "")

    return read


@pytest.fixture(scope="session")
def open_model(make_data: Callable[..., Data]) -> Callable[..., Encoder]:
    """Return the encoder of a model directory; with `changes` of the settings."""

    @cache
    def make(model: Path, chat_template: str | None = None, **changes: Any) -> Encoder:
        return open_encoder(make_data(**changes), load_tokenizer(model), model, chat_template)

    return make


@pytest.fixture(scope="session")
def encode(
    open_model: Callable[..., Encoder],
) -> Callable[..., list[tuple[list[int], list[int]]]]:
    """Return an encoder of one row, which raises its error: (tokens, supervised) of examples."""

    def encode_row(model: Path, row: Row, **changes: Any) -> list[tuple[list[int], list[int]]]:
        [result] = open_model(model, **changes).encode([row])
        if isinstance(result, InputError):
            raise result
        assert isinstance(result, Encoded)
        return [(one.tokens.tolist(), one.supervised.tolist()) for one in result.examples]

    return encode_row


@pytest.fixture(scope="session")
def encode_turns(open_model: Callable[..., Encoder]) -> Callable[..., Encoded]:
    """Return an encoder of one conversation, which raises its error."""

    def make(model: Path, *turns: dict[str, Any], tools: Any = None, **changes: Any) -> Encoded:
        content = {"messages": list(turns)} | ({"tools": tools} if tools else {})
        [result] = open_model(model, **changes).encode(
            [Row(content, "rows.jsonl:1", "rows.jsonl:1")]
        )
        if isinstance(result, InputError):
            raise result
        return result

    return make


@pytest.fixture(scope="session")
def pieces() -> Callable[[Path, Encoded], list[list[str]]]:
    """Return what shows examples as text, in pieces that are in turn not trained and trained."""

    def show(model: Path, made: Encoded) -> list[list[str]]:
        tokenizer, shown = load_tokenizer(model), []
        for one in made.examples:
            runs: list[list[int]] = [[]]
            for token, flag in zip(one.tokens.tolist(), one.supervised.tolist(), strict=True):
                if flag != (len(runs) + 1) % 2:
                    runs.append([])
                runs[-1].append(token)
            shown.append([tokenizer.decode(run) for run in runs])
        return shown

    return show
