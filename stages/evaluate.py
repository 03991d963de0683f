"""evaluate: base and tuned on the same held-out rows."""

from __future__ import annotations

from pathlib import Path

from stages.artifacts import Adapter, BaseModel, Prepared, Report, Reporter
from stages.evaluation.report import lines_of, read_lines, side_by_side, write_report
from stages.evaluation.scoring import score_model
from stages.lora.files import load_adapter
from stages.models.loading import load_model
from stages.settings import Evaluate


def evaluate_base(
    evaluate: Evaluate,
    seed: int,
    *,
    model: BaseModel,
    prepared: Prepared,
    report: Reporter,
    out: Path,
) -> Report:
    """Score the untuned base: metrics `base.<split>.<metric>`, `answers.jsonl`, `report.json`.

    `evaluate.samples` decides nothing here. Raises StopRequested when asked to stop.
    """
    scores = score_model(load_model(model), model, prepared.directory, evaluate, seed, report)
    metrics = {f"base.{name}": value for name, value in scores.metrics.items()}
    write_report(out, lines_of("base", scores), metrics, scores.counts, evaluate)
    return Report(directory=out, metrics=metrics)


def evaluate(
    evaluate: Evaluate,
    seed: int,
    *,
    model: BaseModel,
    prepared: Prepared,
    adapter: Adapter,
    baseline: Report,
    report: Reporter,
    out: Path,
) -> Report:
    """Score base plus adapter and set it beside the scores of the base in `baseline`.

    Metrics: those of `baseline`, and `tuned.<split>.<metric>`. The files are as `evaluate_base`
    leaves them, with both answers to each question; `evaluate.samples` of them are logged. Raises
    InputError for an adapter that does not fit the base, or a baseline of other rows,
    StopRequested when asked to stop.
    """
    module = load_model(model)
    load_adapter(module, adapter.directory)
    scores = score_model(module, model, prepared.directory, evaluate, seed, report)
    lines = lines_of("tuned", scores, read_lines(baseline.directory, scores))
    tuned = {f"tuned.{name}": value for name, value in scores.metrics.items()}
    metrics = baseline.metrics | tuned
    write_report(out, lines, metrics, scores.counts, evaluate)
    if evaluate.samples and lines:
        report.log(side_by_side(lines, evaluate.samples))
    return Report(directory=out, metrics=metrics)
