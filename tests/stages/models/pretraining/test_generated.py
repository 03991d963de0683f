"""The generated part of the pretraining corpus: true, copied from what was said, and repeatable."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from datetime import date
from itertools import pairwise
from random import Random

import pytest
from transformers import AutoTokenizer

from stages.data.samples import talk, wordings
from stages.data.samples.vocabulary import names
from stages.inputs import EMBEDDED
from stages.models.pretraining import phrases, turns, vocabulary
from stages.models.pretraining.desks import visit
from stages.models.pretraining.extraction import exchange
from stages.models.pretraining.generated import texts
from stages.models.pretraining.sentences import paragraph


def test_same_seed_same_text_on_every_machine() -> None:
    made = list(texts(100_000))
    digest = hashlib.sha256("\n".join(made).encode()).hexdigest()
    assert digest == "95616415137a5f61ff65c60c1e972ae32dcac4306c7bd9dfb6485418ee5f7b8c"
    assert made != list(texts(100_000, seed=8))


def test_size_is_what_was_asked_for() -> None:
    assert 50_000 <= sum(map(len, texts(50_000))) < 52_500


def test_no_name_of_the_bundled_held_out_rows_is_said() -> None:
    held_out = set(names("valid")) | set(names("test"))
    said = {word for text in texts(2_000_000) for word in re.findall(r"\w+", text)}
    assert held_out.isdisjoint(said)
    assert set(vocabulary.NAMES) <= said


def plain(words: str) -> str:
    return re.sub(r"[^a-z0-9 {}_]", "", words.lower())


def held_out_wordings() -> list[str]:
    requests = [wordings.CREATE, wordings.MOVE, wordings.CANCEL, wordings.LIST, wordings.FIND]
    around = [talk.OTHER_TIME, talk.OTHER_DAY, talk.TAKE_BACK, talk.THANKS]
    replies = [*talk.NAMED.values(), *talk.TALK.values()]
    return [words for kind in (*requests, *around, *replies)
            for split in ("valid", "test") for words in kind[split]]  # fmt: skip


def found_in(said: Iterable[str]) -> set[str]:
    """Return the held-out wordings that are said, whatever stands in their slots.

    Capitals and punctuation do not count, and the name of the assistant is that of any desk.
    """
    lines = "\n".join(plain(each) for each in said)
    slots = ((r"\{name\}", r"\\S+"), ("pip", "{me}"), (r"\{(?!me)\w+\}", r"[^\\n]+?"))
    patterns = {}
    for words in held_out_wordings():
        patterns[words] = plain(words)
        for slot, anything in slots:
            patterns[words] = re.sub(slot, anything, patterns[words])
    return {words for words, pattern in patterns.items()
            if re.search(f"^{pattern}$", lines, re.MULTILINE)}  # fmt: skip


def expanded(pattern: str) -> Iterator[str]:
    """Yield every sentence that a pattern of `phrases` stands for."""
    part = re.search(r"\[([^\[\]]*)\]", pattern)
    if part is None:
        yield pattern
        return
    for words in part[1].split("|"):
        yield from expanded(pattern[: part.start()] + words + pattern[part.end() :])


def test_no_wording_of_the_bundled_held_out_rows_is_said() -> None:
    """None of a desk's sentences, and none of a sample of conversations, but for two greetings."""
    asked = [pattern.replace("{Span}", "{span}").replace("{span}", span)
             for pattern in phrases.ASK for span in phrases.SPANS]  # fmt: skip
    others = [*phrases.BOOK, *phrases.MOVE, *phrases.CANCEL, *phrases.SEEK, *phrases.OTHER_TIME,
              *phrases.OTHER_DAY, *phrases.TAKE_BACK]  # fmt: skip
    small = [pattern for kind in phrases.TALK.values() for pattern in kind]
    every = [*asked, *others, *small]
    for name, words in phrases.COMMON.items():
        every = [pattern.replace(name, words) for pattern in every]
    sentences = {sentence for pattern in every for sentence in expanded(pattern)}
    assert len(sentences) > 5000
    assert found_in(sentences) == {"Hello Pip.", "Thanks, Pip."}
    random = Random(4)
    users = r"<\|im_start\|>user\n(.*?)<\|im_end\|>"
    said = (message for _ in range(20_000)
            for message in re.findall(users, turns.conversation(random)))  # fmt: skip
    assert found_in(said) == set()


def test_a_desk_writes_down_what_was_said() -> None:
    """Days, clock times and names of a request are those of its JSON, and in the same order."""
    random, found = Random(5), 0
    days = "|".join((*vocabulary.WEEKDAYS, "today", "tomorrow"))
    for _ in range(500):
        message, answer = visit(random)[1][0]
        if answer.startswith("{"):
            found += 1
            for pattern in (r"\d\d:\d\d", rf"(?i:\b(?:{days})\b)"):
                heard, written = (list(dict.fromkeys(re.findall(pattern, text.lower())))
                                  for text in (message, answer))  # fmt: skip
                assert heard == written, (message, answer)
            for name in re.findall(r" (?:with|meet|told) ([A-Z]\w+)", message):
                assert f':"{name}"' in answer, (message, answer)
            for minutes in re.findall(r"(\d+) min", message):
                assert re.search(rf":{minutes}\b[,}}]", answer), (message, answer)
    assert found > 300


def test_a_second_thought_changes_what_was_booked() -> None:
    """The same time on another day, another time on the same day, or neither any more."""
    random, found = Random(6), set()
    for _ in range(2000):
        said = visit(random)[1]
        for (first, booked), (second, changed) in pairwise(said):
            if re.match(r"(Move|Push|Change) it to \w*(day|tomorrow)", second):
                times = [re.findall(r"\d\d:\d\d", text) for text in (first, changed)]
                assert times[0] == times[1], (first, second, changed)
                found.add("day")
            elif re.search(r"^\d\d:\d\d (is better|would be right)", second):
                assert re.findall(r"\d\d:\d\d", changed) == [second[:5]]
                found.add("time")
            elif second.startswith("I changed my mind"):
                item, *_ = (value for value in json.loads(changed).values()
                            if value and value in first.lower())  # fmt: skip
                assert item in booked
                assert not re.search(r"\d", changed)
                found.add("off")
    assert found == {"day", "time", "off"}


def test_what_json_says_was_said_in_the_message() -> None:
    random = Random(1)
    for _ in range(500):
        system, said = exchange(random, turns=2)
        assert len(said) == 2
        first, second = (json.loads(answer) for _, answer in said)
        assert list(first) == list(second), "one system text, one order of keys"
        for message, answer in said:
            for key, value in json.loads(answer).items():
                assert re.search(rf"\b{key}\b", system)
                heard = value is None or key == "type" or str(value).lower() in message.lower()
                assert heard, (message, answer)


def test_conversations_are_spelled_as_the_models_template_spells_them() -> None:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    random = Random(2)
    for _ in range(200):
        text = turns.conversation(random)
        found = re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n", text, re.DOTALL)
        messages = [{"role": role, "content": content} for role, content in found]
        assert tokenizer.apply_chat_template(messages, tokenize=False) == text
        ids = tokenizer(text)["input_ids"]
        assert ids.count(1) == ids.count(2) == len(messages)


def test_weekdays_are_those_of_the_calendar() -> None:
    random, found = Random(3), 0
    for _ in range(2000):
        match = re.fullmatch(r"Date: (\S+)\nDay: (\w+)\nEvent.*", paragraph(random), re.DOTALL)
        if match:
            found += 1
            # ISO 8601 counts from Monday.
            number = date.fromisoformat(match[1]).isocalendar().weekday
            assert vocabulary.WEEKDAYS[number - 1] == match[2]
    assert found > 20


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "zero"), (13, "thirteen"), (40, "forty"), (99, "ninety-nine"), (100, "one hundred"),
     (312, "three hundred and twelve"), (999, "nine hundred and ninety-nine")],
)  # fmt: skip
def test_numbers_in_words(number: int, words: str) -> None:
    assert vocabulary.in_words(number) == words


@pytest.mark.parametrize(
    ("number", "said"),
    [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (12, "12th"), (13, "13th"),
     (21, "21st"), (22, "22nd"), (112, "112th")],
)  # fmt: skip
def test_ordinals(number: int, said: str) -> None:
    assert vocabulary.ordinal(number) == said
