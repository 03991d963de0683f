"""Which texts a conversation is trained as: one, or one for each answer.

An answer is trained as it will be generated: after the prompt of the turns before it, in the words
and up to the end that the template gives it while it is the last. Where the template leaves it so
as turns follow, the conversation is one text. Where it rewrites or drops earlier turns (Qwen3 takes
their thoughts out), the conversation is unrolled: every answer is trained in a text of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stages.data.encoding.kept import check_answer, check_calls, check_tools
from stages.data.encoding.quoting import QUOTE
from stages.data.encoding.template import TemplateFault
from stages.data.encoding.turns import Turns
from stages.data.formats.messages import Message
from stages.errors import InputError

Supervise = Literal["assistant", "last", "all"]


@dataclass(frozen=True, slots=True)
class Span:
    """One answer in a quoted text."""

    start: int
    """Position after its prompt."""
    stop: int
    """Index of the token that ends it among the special tokens of the text."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One text to train on: of turns, with quotes around the template's special tokens."""

    messages: list[Message]
    """What it is made of; it ends with an answer that is trained."""
    text: str
    starts: list[int]
    """Where the answers start, trained or not, as far as their prompts are in the text."""
    answers: list[Span]
    """Those that are trained, or with `others` those that are not."""
    others: bool
    """All tokens are trained but those of `answers`."""
    unrolled: bool
    """It has one answer to train, of a row that has others or had."""
    where: str


@dataclass(frozen=True, slots=True)
class _Answer:
    text: str
    """The turns up to and with the answer, as the template renders them."""
    start: int
    end: int
    """Position after the special token that ends it."""


def says(turn: Message) -> bool:
    """Tell whether an answer says anything, in words or by calling a tool."""
    return bool(turn["content"].strip() or turn.get("tool_calls"))


def trained_turns(messages: Sequence[Message], supervise: Supervise) -> list[int]:
    """Return which turns are trained; with `all` the answers among them."""
    answers = [n for n, turn in enumerate(messages) if turn["role"] == "assistant"]
    chosen = answers[-1:] if supervise == "last" else answers
    return [n for n in chosen if messages[n].get("train", True) and says(messages[n])]


def unroll(
    turns: Turns, messages: list[Message], trained: Sequence[int], supervise: Supervise
) -> list[Passage]:
    """Return the texts to train on: `messages`, given as `turns`, end with the last of `trained`.

    Raises InputError where an answer, a tool or its result is not in the text that the template
    makes, or where that does not begin with the prompt, and TemplateFault where answers do not end.
    """
    last = trained[-1]
    earlier = [n for n in range(last) if messages[n]["role"] == "assistant"]
    answers = {n: _answer(turns, n) for n in trained}
    others = [n for n in earlier if n not in answers] if supervise == "all" else []
    spans = answers | {n: _answer(turns, n) for n in others}
    check_tools(turns, last + 1, answers[last].text)
    for before, after in zip([None, *earlier], [*earlier, last], strict=True):
        check_calls(turns, before, after, before in answers)
    whole = answers[last].text
    if all(whole.startswith(found.text[: found.end]) for found in spans.values()):
        marked = others if supervise == "all" else trained
        found = [spans[n] for n in marked]
        return [_passage(turns, messages, answers[last], found, others=supervise == "all")]
    return [
        _passage(turns, _without_others(messages[: n + 1]), answer, [answer], unrolled=True)
        for n, answer in answers.items()
    ]


def _answer(turns: Turns, number: int) -> _Answer:
    template = turns.template
    text, prompt = turns.render(number + 1), turns.prompt(number)
    if not text.startswith(prompt):
        found = f"its prompt for messages[{number}] of {turns.where} does not begin the whole row"
        mend = "use another model, set data.chat_template, or remove the row"
        raise InputError(template.name, found, mend)
    for match in template.quoting.special.finditer(text, len(prompt)):
        if match[0] in template.stops:
            check_answer(turns, number, text[: match.end()], len(prompt))
            return _Answer(text, len(prompt), match.end())
    names = ", ".join(sorted(map(repr, template.stops)))
    # A template may leave open only the turns that call a tool.
    fault = InputError if "tool_calls" in turns.turn(number) else TemplateFault
    raise fault(
        template.name,
        f"an answer of {turns.where} does not end with a token that generation stops on ({names})",
        "use a model whose chat template closes answers, set data.chat_template to one that does, "
        "or add its token to eos_token_id in generation_config.json",
    )


def _passage(
    turns: Turns, messages: list[Message], last: _Answer, marked: Sequence[_Answer], *,
    others: bool = False, unrolled: bool = False,
) -> Passage:  # fmt: skip
    # After the end of the last answer nothing is trained.
    whole = last.text[: last.end]
    starts = answer_starts(turns, messages, whole)
    positions = sorted(starts.union(*((found.start, found.end) for found in marked)))
    text, quoted = turns.quote(whole, positions)
    at = dict(zip(positions, quoted, strict=True))
    spans = [
        Span(at[found.start], text.count(QUOTE, 0, at[found.end]) // 2 - 1) for found in marked
    ]
    begins = sorted(at[n] for n in starts)
    return Passage(messages, text, begins, spans, others, unrolled, turns.where)


def answer_starts(turns: Turns, messages: Sequence[Message], text: str) -> set[int]:
    """Return where in `text` those of the answers start whose prompts begin it."""
    prompts = [turns.prompt(n) for n, turn in enumerate(messages) if turn["role"] == "assistant"]
    return {len(prompt) for prompt in prompts if text.startswith(prompt)}


def _without_others(messages: list[Message]) -> list[Message]:
    """Return the turns with the last answer as the only one that is trained."""
    *before, answer = messages
    return [
        {**turn, "train": False} if turn["role"] == "assistant" else turn for turn in before
    ] + [answer]
