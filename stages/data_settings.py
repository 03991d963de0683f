"""The configuration group `data`: which rows to train on, and which of their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stages.errors import SettingError, require

COLUMN_ROLES = ("system", "user", "assistant", "text", "messages", "tools")
"""What a column of `data.columns` can be."""

_EXAMPLE = "such as {user: question, assistant: answer} or {text: body}"


@dataclass(kw_only=True, slots=True)
class Data:
    """Which rows to train on, and which of their tokens."""

    stage: str
    """Function that prepares the rows, by its dotted name under `stages.`."""
    path: str | tuple[str, ...]
    """`samples` (bundled conversations), a file, a folder, a pattern such as `chats/*.jsonl`, a
    data set of the hub (`owner/name`), or a list of these. Files are JSONL, JSON, CSV, TSV,
    Parquet, plain text or Markdown, all but Parquet also compressed by gzip. In a folder, names
    such as train, valid, validation, dev, eval and test say which split a file holds."""
    weights: tuple[float, ...] | None = None
    """How often each entry of the list `path` is seen in one epoch: 2 is twice, 0.5 a seeded half
    of its training rows; null takes every row once."""
    subset: str | None = None
    """Named configuration of the data set on the hub; null takes its only or default one."""
    split: str | None = None
    """Split of the hub's data set to train on, also a slice such as `train[:10%]`; null takes its
    own train, validation and test splits."""
    revision: str | None = None
    """Branch, tag or commit of the data set on the hub; null takes `main`. Its commit is kept."""
    format: Literal[
        "auto", "messages", "conversations", "alpaca", "prompt_completion", "question_answer",
        "text",
    ]  # fmt: skip
    """How the rows are written: auto looks at the keys of each row and says what it found.
    messages: OpenAI's `messages`, with `tools`; conversations: ShareGPT's; alpaca: `instruction`,
    `input`, `output`; prompt_completion: `prompt`, `completion` or `response`, as text or as turns;
    question_answer: `question`, `answer`; text: `text`. Every kind of conversation may have a
    `system` text."""
    columns: dict[str, str] | None = None
    """Which column holds what, for rows of any other shape: `{user: question, assistant: answer}`
    or `{text: body}`; needs format auto."""
    convert: str | None = None
    """A function of yours, `file.py:function`, that is given each decoded row as it was read and
    its name (`train.json:12`), and returns a row of one of the formats, a list of them, or None.
    A change of its file, or of one that it imports from the working directory, prepares anew."""
    chat_template: str | None = None
    """Jinja file that replaces the tokenizer's own chat template, in training and ever after."""
    supervise: Literal["assistant", "last", "all"]
    """Which tokens of a conversation are trained: those of every assistant turn, of the last one,
    or all. A turn with `"train": false` is never trained. Text is trained whole."""
    max_seq_length: int
    """Longest row in tokens."""
    overlong: Literal["auto", "drop", "error", "truncate_left", "split"]
    """What happens to a longer row. drop: it is left out and counted; error: the stage stops and
    names it; truncate_left: the oldest turns of a conversation go, or the beginning of a text,
    never an answer or its end; split: a text is continued in further rows. auto splits texts and
    drops conversations."""
    valid_fraction: float
    """Share of the rows held out for validation where none are given."""
    test_fraction: float
    """Share of the rows held out for testing where none are given."""
    group_by: str | None = None
    """Column whose equal values stay in one split (a customer, a document); null: only rows that
    ask the same stay together."""
    duplicates: Literal["keep", "drop"]
    """What happens to a row whose words occurred before in its split."""
    leakage: Literal["drop", "keep"]
    """What happens to a training row that asks what a validation or test row asks."""
    redact: bool
    """Replace e-mail addresses and likely secrets by `<EMAIL>` and `<SECRET>`; they are counted
    either way."""
    encoding: Literal["utf-8", "auto"]
    """utf-8 refuses other bytes and says where; auto reads such a byte as Windows-1252 (Latin-1)
    and counts it."""
    on_error: Literal["fail", "skip"]
    """What happens to rows that cannot be used: fail names the first twenty and stops; skip leaves
    them out and writes them to quarantine.jsonl beside the result."""

    def __post_init__(self) -> None:
        paths = (self.path,) if isinstance(self.path, str) else tuple(self.path)
        usable = bool(paths) and all(path.strip() for path in paths)
        require(usable, "data.path", self.path, "a file, a folder, a pattern, `samples`, or a list")
        require(self.max_seq_length >= 2, "data.max_seq_length", self.max_seq_length, "at least 2")
        for name in ("valid_fraction", "test_fraction"):
            value = getattr(self, name)
            require(0 <= value < 1, f"data.{name}", value, "0 or more and less than 1")
        both = self.valid_fraction + self.test_fraction
        require(both < 1, "data.test_fraction", self.test_fraction,
               "less than 1 together with data.valid_fraction")  # fmt: skip
        self._check_weights(len(paths))
        self._check_columns()
        if self.convert is not None:
            file, _, function = self.convert.rpartition(":")
            written = file.endswith(".py") and function.isidentifier()
            require(written, "data.convert", self.convert, "file.py:function")
        if self.format != "text" and self.overlong == "split":
            require(self.format == "auto", "data.overlong", "split",
                   "another policy: only texts can be split")  # fmt: skip

    def _check_weights(self, paths: int) -> None:
        if self.weights is None:
            return
        require(len(self.weights) == paths, "data.weights", self.weights,
               f"one number for each of the {paths} entries of data.path")  # fmt: skip
        usable = all(0 <= weight <= 1000 for weight in self.weights) and any(self.weights)
        require(usable, "data.weights", self.weights, "numbers from 0 to 1000, not all 0")

    def _check_columns(self) -> None:
        if self.columns is None:
            return
        if self.format != "auto":
            found = f"found {self.columns!r}, but data.format={self.format} does not use it"
            raise SettingError("data.columns", found, "leave one of them out")
        named = all(isinstance(column, str) and column for column in self.columns.values())
        require(named, "data.columns", self.columns, f"a column's name for each, {_EXAMPLE}")
        roles = set(self.columns)
        known = roles <= set(COLUMN_ROLES)
        require(known, "data.columns", sorted(roles - set(COLUMN_ROLES)),
               f"some of {', '.join(COLUMN_ROLES)}")  # fmt: skip
        whole = {"user", "assistant"} <= roles or bool(roles & {"messages", "text"})
        expected = f"user and assistant, messages, or text, {_EXAMPLE}"
        require(whole, "data.columns", self.columns, expected)
        mixed = "text" in roles and len(roles) > 1
        mixed = mixed or ("messages" in roles and bool(roles - {"messages", "tools"}))
        require(not mixed, "data.columns", self.columns, f"either turns or text, {_EXAMPLE}")
