"""One model on the held-out rows: the loss of their tokens, and its answers to their questions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from mlx import nn

from stages.artifacts import BaseModel, Reporter
from stages.data.encoding.given_template import given_template
from stages.data.rows import Rows, open_rows
from stages.errors import StopRequested
from stages.evaluation.metrics import Score, answer_metrics, loss_metrics, score, text_metrics
from stages.evaluation.questions import SPLITS, Question, choose, read_kind, read_questions
from stages.evaluation.texts import predicted_bytes
from stages.generation.decode import complete
from stages.generation.engine import Engine, Job
from stages.generation.prompts import open_chat
from stages.generation.sampling import Sampling
from stages.models.tokenizer import load_tokenizer, stop_token_ids
from stages.settings import Evaluate
from stages.training.batches import collate, input_width
from stages.training.head import find_cut
from stages.training.loss import batch_arrays, row_losses

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PASS_TOKENS = 2048
"""Padded tokens in one forward pass: its activations are what needs memory."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said, and what it was worth."""

    text: str
    finish_reason: str
    completion_tokens: int
    score: Score


@dataclass(slots=True)
class Scores:
    """Everything about one model."""

    metrics: dict[str, float]
    """By `<split>.<metric>`."""
    counts: dict[str, dict[str, int]]
    """By split."""
    questions: list[Question]
    answers: list[Answer]
    """One for each question."""


class _Progress:
    """Counts rows, and ends the stage between two of them where the run is asked to stop."""

    def __init__(self, report: Reporter, total: int) -> None:
        self._report, self._total, self._done = report, total, 0

    def advance(self, rows: int) -> None:
        self._done += rows
        self._report.progress(self._done, self._total, {})
        if self._report.stop_requested():
            raise StopRequested


def score_model(
    module: nn.Module,
    model: BaseModel,
    prepared: Path,
    evaluate: Evaluate,
    seed: int,
    report: Reporter,
) -> Scores:
    """Score `module`, the base as it is or with an adapter on it, on valid and test rows.

    The same arguments on the same kind of machine give the same scores. Text rows, and rows that
    end in a call of a tool, are not asked.
    """
    module.eval()
    tokenizer = load_tokenizer(model.directory)
    kind = read_kind(prepared)
    splits = {split: open_rows(prepared, split) for split in SPLITS}
    chosen = {split: choose(len(rows), evaluate.rows, seed, split)
              for split, rows in splits.items()}  # fmt: skip
    questions = {split: read_questions(prepared, split, rows)
                 for split, rows in chosen.items()} if kind != "text" else {}  # fmt: skip
    scores = Scores({}, {}, [one for split in questions.values() for one in split.asked], [])
    progress = _Progress(report, sum(map(len, chosen.values())) + len(scores.questions))
    for split, rows in splits.items():
        losses, tokens = _losses(module, rows, chosen[split], progress)
        _add(scores, split, loss_metrics(math.fsum(losses.values()), tokens))
        scores.counts[split] = {"rows": len(rows), "scored_rows": len(chosen[split]),
                                "supervised_tokens": tokens}  # fmt: skip
        if kind != "chat":
            spelled = predicted_bytes(prepared, split, rows, chosen[split], tokenizer)
            text_bytes = sum(spelled.values())
            _add(scores, split, text_metrics(math.fsum(losses[r] for r in spelled), text_bytes))
            scores.counts[split] |= {"text_rows": len(spelled), "text_bytes": text_bytes}
    if scores.questions:
        template = given_template(prepared)
        scores.answers = _answers(
            module, model, tokenizer, template, scores.questions, evaluate, report, progress
        )
    for split, read in questions.items():
        pairs = zip(scores.questions, scores.answers, strict=True)
        judged = [answer.score for question, answer in pairs if question.split == split]
        _add(scores, split, answer_metrics(judged))
        scores.counts[split] |= {
            "json_references": sum(one.json_valid is not None for one in judged),
            "reference_slots": sum(one.slots.expected for one in judged if one.slots),
            "tool_calls": read.tool_calls,
        }
        if read.tool_calls:
            report.log(f"{split}: {read.tool_calls:,} rows end in a call of a tool and "
                       "are scored by their loss alone")  # fmt: skip
    return scores


def _add(scores: Scores, split: str, metrics: dict[str, float]) -> None:
    scores.metrics |= {f"{split}.{name}": value for name, value in metrics.items()}


def _losses(
    module: nn.Module, rows: Rows, chosen: Sequence[int], progress: _Progress
) -> tuple[dict[int, float], int]:  # fmt: skip
    """Return the summed loss of each of the chosen rows and the supervised tokens of all."""
    losses: dict[int, float] = {}
    tokens = 0
    cut = find_cut(module)
    for part in _passes(rows, chosen):
        batch = collate(rows, part)
        made = row_losses(module, cut, batch_arrays(batch))
        losses |= zip(part, np.array(made).tolist(), strict=True)
        tokens += batch.supervised_tokens
        progress.advance(len(part))
    return losses, tokens


def _passes(rows: Rows, chosen: Sequence[int]) -> Iterator[list[int]]:
    """Cut the rows, shortest first, into parts that fit in one pass."""
    part: list[int] = []
    for row in sorted(chosen, key=lambda row: int(rows.lengths[row])):
        if part and (len(part) + 1) * input_width(int(rows.lengths[row])) > _PASS_TOKENS:
            yield part
            part = []
        part.append(row)
    if part:
        yield part


def _answers(
    module: nn.Module,
    model: BaseModel,
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    questions: Sequence[Question],
    evaluate: Evaluate,
    report: Reporter,
    progress: _Progress,
) -> list[Answer]:
    """Return the greedy answer to each question; one that fills the context gets an empty one."""
    stops = stop_token_ids(model.directory, tokenizer)
    engine = Engine(module, tokenizer, stops, batch_size=evaluate.batch_size)
    encode = open_chat(tokenizer, model.directory, template)
    sampling = Sampling(max_tokens=evaluate.max_tokens)
    answers = [Answer("", "length", 0, score(q.reference, "", "length")) for q in questions]
    jobs, places = [], []
    for place, question in enumerate(questions):
        prompt = encode(question.prompt, question.source, question.tools)
        if engine.context_tokens is None or len(prompt) < engine.context_tokens:
            jobs.append(Job(prompt=prompt, sampling=sampling))
            places.append(place)
    progress.advance(len(questions) - len(jobs))
    for made in complete(engine, jobs, report):
        place = places[made.index]
        judged = score(questions[place].reference, made.text, made.finish_reason)
        answers[place] = Answer(made.text, made.finish_reason, made.completion_tokens, judged)
        progress.advance(1)
    return answers
