"""The training loop, by optimizer steps: gradients, guard, update, validation, best adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from pathlib import Path
from time import perf_counter

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from numpy.typing import NDArray

from stages.artifacts import Reporter
from stages.data.rows import Rows
from stages.errors import SettingError, StageError, StopRequested
from stages.lora.bank import Parameters
from stages.lora.full import Tuning
from stages.memory import size_bytes
from stages.training.batches import (
    BY_LENGTH,
    Layout,
    Step,
    count_steps,
    dropout_keys,
    training_steps,
    validation_batches,
    validation_steps,
)
from stages.training.checkpointing import gradient_checkpointing
from stages.training.course import Best, Course, State
from stages.training.cpu_functions import cpu_functions, packed
from stages.training.head import UNCUT
from stages.training.held import Limited
from stages.training.keeper import Keeper
from stages.training.loss import batch_arrays
from stages.training.optimizers import learning_rate
from stages.training.packing import can_pack, longest_together
from stages.training.progress import Progress
from stages.training.ranks import ALONE, Ranks
from stages.training.reuse import PLAIN, Feed, Feeds
from stages.training.step import (
    Gradients,
    RowLosses,
    Update,
    compile_gradients,
    compile_losses,
    compile_update,
    few_shapes,
    initial_states,
    tuned_cut,
)
from stages.training_settings import Optimizer, Train


def fit(
    tuning: Tuning,
    rows: Rows,
    valid: Rows,
    *,
    optimizer: Optimizer,
    train: Train,
    seed: int,
    report: Reporter,
    b_learning_rate_ratio: float | None = None,
    feeds: Feeds = PLAIN,
    ranks: Ranks = ALONE,
    checkpoints: Path | None = None,
) -> tuple[Parameters, dict[str, float]]:
    """Train the one adapter or all weights, and return the best with the run's metrics.

    `b_learning_rate_ratio` multiplies the learning rate of `lora_b` (LoRA+, arXiv 2402.12354).
    All `ranks` return the same. Goes on from the newest of the `checkpoints`; the first rank keeps
    new ones there. Raises StageError at a loss or gradient that is not finite, before it is
    applied, StopRequested when a rank was asked to stop, EnvironmentFailure where the disk takes
    no checkpoint.
    """
    with cpu_functions(tuning.model):
        return _fit(tuning, rows, valid, optimizer, train, seed, report, b_learning_rate_ratio,
                    feeds, ranks, checkpoints)  # fmt: skip


def _fit(
    tuning: Tuning,
    rows: Rows,
    valid: Rows,
    optimizer: Optimizer,
    train: Train,
    seed: int,
    report: Reporter,
    b_learning_rate_ratio: float | None,
    feeds: Feeds,
    ranks: Ranks,
    checkpoints: Path | None,
) -> tuple[Parameters, dict[str, float]]:
    cut = tuned_cut(tuning)
    if cut == UNCUT:
        report.log(f"the head of {type(tuning.model).__module__.rpartition('.')[2]} cannot be cut "
                   "off: it makes the logits of all tokens, supervised or not")  # fmt: skip
    together = longest_together((rows, valid), train.batch_size)
    layout = Layout(few_shapes(), can_pack(tuning, cut, together), ranks.size)
    limited = Limited(size_bytes("train.memory_limit", train.memory_limit), ranks.size)
    gradients = limited.over(compile_gradients(tuning, cut))
    losses = limited.over(compile_losses(tuning, cut))
    update = compile_update(tuning, [optimizer], b_learning_rate_ratio)
    states = initial_states(tuning, [optimizer], b_learning_rate_ratio)
    state = State(tuning.parameters(), states)
    best = Best(state.parameters)
    per_epoch, total = count_steps(rows, train)
    others = [0]
    progress = Progress(report, total, train.log_every, epochs=-(-total // per_epoch),
                        others_memory_bytes=lambda: others[0])  # fmt: skip
    course = Course(state, best, progress)
    keeper = Keeper(checkpoints, train, report, writes=ranks.rank == 0)
    keeper.resume(course)
    ranks.require_same(progress.steps)
    keeper.require_space(course)
    validate_after = validation_steps(per_epoch, total, train.validations_per_epoch)

    def settle() -> None:
        """Do what is due after the newest step: validate, and keep the best."""
        steps, before = progress.steps, course.loss_before
        if steps == 0 or (before is not None and steps in validate_after):
            found = validation_loss(losses, state.parameters, valid, train.batch_size, report,
                                    feeds.valid, layout, ranks)  # fmt: skip
            if steps == 0:
                _begin(course, found, train, report)
            elif found is not None:
                _keep_best(best, state.parameters, found, progress)
        elif before is None:
            best.parameters, best.step = state.parameters, steps
        course.settled = steps

    with _checkpointing(tuning, train), keeper.keeping(course), ranks.watched():
        if course.settled < progress.steps:
            settle()
        clock = perf_counter()
        for step in training_steps(rows, train, seed, layout, progress.steps):
            if best.misses == train.patience:
                progress.stopped_early(best.step, best.misses)
                break
            rate = learning_rate(optimizer, step.number, total)
            keys = [dropout_keys(seed, step.epoch, batch.rows) if tuning.has_dropout else None
                    for batch in step.batches]  # fmt: skip
            # Here, for a process that is lost now has taken no part of a step.
            others[0] = ranks.others_memory_bytes()
            stop = report.stop_requested()
            if ranks.size == 1 and stop:
                raise StopRequested
            loss, norm, stop = take_step(
                gradients, update, state, step, keys, rate, feeds.train, ranks, stop
            )
            progress.add(step, loss, norm, rate, perf_counter() - clock)
            keeper.after(course, stop)
            settle()
            clock = perf_counter()
    metrics = progress.totals() | {"train.best_step": best.step}
    if train.patience is not None:
        metrics["train.stopped_early"] = float(progress.steps < total)
    if course.loss_before is not None:
        metrics |= {"valid.loss": best.loss, "valid.loss_before": course.loss_before}
    return tuning.split(best.parameters)[0], metrics


def _refuse_patience(train: Train) -> None:
    if train.patience is not None:
        found = f"found {train.patience}, but there are no validation rows"
        mend = "leave it out, or hold some out: data.valid_fraction"
        raise SettingError("train.patience", found, mend)


def _checkpointing(tuning: Tuning, train: Train) -> AbstractContextManager[None]:
    if not train.gradient_checkpointing:
        return nullcontext()
    return gradient_checkpointing(tuning, tuning.parameters())


def take_step(
    gradients: Gradients,
    update: Update,
    state: State,
    step: Step,
    keys: Sequence[NDArray[np.uint32] | None],
    rate: float,
    feed: Feed = batch_arrays,
    ranks: Ranks = ALONE,
    stop: bool = False,
) -> tuple[float, float, bool]:
    """Sum the gradients of all batches, over all ranks, and apply them once.

    Returns the summed loss, the gradient's norm, and whether any rank was asked to stop.
    """
    total: Parameters = {}
    by_row = np.zeros(len(step.rows), np.float32)
    starts = [0, *accumulate(len(batch.rows) for batch in step.batches)]
    waiting: list[tuple[int, mx.array]] = []
    for place in ranks.own(step.batches):
        batch, row_keys = step.batches[place], keys[place]
        fed, fed_keys = feed(batch), None if row_keys is None else mx.array(row_keys)
        with packed(batch.lengths):
            loss, gradient = gradients(state.parameters, fed, fed_keys)
        total = tree_map(mx.add, total, gradient) if total else gradient
        # Start now: the activations of one batch are gone before those of the next.
        mx.async_eval(total, loss)  # type: ignore[no-untyped-call]  # MLX has no stub for it
        waiting.append((starts[place], loss))
    for start, loss in waiting:
        by_row[start : start + loss.size] = loss
    total = total or tree_map(mx.zeros_like, state.parameters)
    told = [mx.array(by_row), mx.array([float(stop)])]
    summed, [losses, stops] = _over_ranks(ranks, total, told)
    counts = mx.array([max(step.supervised_tokens, 1)], mx.float32)
    parameters, optimizers, norms = update(
        state.parameters, summed, state.optimizers, counts, mx.array([rate], mx.float32)
    )
    mx.eval(parameters, optimizers, norms)
    where = f"train step {step.number + 1}"
    loss_sum = _checked_sum(where, step.rows, losses)
    (norm,) = np.array(norms).tolist()
    if not math.isfinite(norm):
        raise _not_finite(where, "gradient norm", norm, step.rows)
    state.parameters, state.optimizers = parameters, optimizers
    return loss_sum, norm, bool(stops.item())


def _over_ranks(
    ranks: Ranks, gradients: Parameters, others: Sequence[mx.array]
) -> tuple[Parameters, list[mx.array]]:
    names = [(path, name) for path, weights in gradients.items() for name in weights]
    summed = ranks.total([*(gradients[path][name] for path, name in names), *others])
    result: Parameters = {path: {} for path in gradients}
    for (path, name), value in zip(names, summed, strict=False):
        result[path][name] = value
    return result, summed[len(names) :]


def validation_loss(
    losses: RowLosses,
    parameters: Parameters,
    valid: Rows,
    batch_size: int,
    report: Reporter,
    feed: Feed = batch_arrays,
    layout: Layout = BY_LENGTH,
    ranks: Ranks = ALONE,
) -> float | None:
    """Return the mean loss of all supervised tokens of the split; None where it has none."""
    by_row, tokens = np.zeros((2, len(valid)), np.float32)
    for batch in validation_batches(valid, batch_size, layout, ranks.rank):
        if ranks.size == 1 and report.stop_requested():
            raise StopRequested
        fed = feed(batch)
        with packed(batch.lengths):
            by_row[list(batch.rows)] = losses(parameters, fed)
        tokens[list(batch.rows)] = batch.counts
    found, counted, stops = ranks.total(
        [mx.array(by_row), mx.array(tokens), mx.array([float(report.stop_requested())])]
    )
    if stops.item():
        raise StopRequested
    total, count = _checked_sum("validation", range(len(valid)), found), np.array(counted).sum()
    return total / float(count) if count else None


def _begin(course: Course, loss: float | None, train: Train, report: Reporter) -> None:
    course.loss_before = loss
    if loss is None:
        _refuse_patience(train)
        report.log("no validation rows: the last adapter is kept")
    else:
        course.progress.validated(loss, best=False)


def _keep_best(best: Best, parameters: Parameters, loss: float, progress: Progress) -> None:
    better = loss < best.loss
    best.misses += 1
    if better:
        best.parameters, best.step, best.loss = parameters, progress.steps, loss
        best.misses = 0
    progress.validated(loss, better)


def _checked_sum(where: str, rows: Sequence[int], losses: mx.array) -> float:
    """Sum the rows' losses in float64; raises StageError naming the rows that are not finite."""
    values = np.array(losses, dtype=np.float64)
    if not np.isfinite(values).all():
        bad = [row for row, value in zip(rows, values, strict=True) if not math.isfinite(value)]
        raise _not_finite(where, "loss", values.sum(), bad)
    return float(values.sum())


def _not_finite(where: str, what: str, value: float, rows: Sequence[int]) -> StageError:
    named = ", ".join(map(str, rows[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
    return StageError(where, f"{what} is {value} in rows {named}",
                      "lower optimizer.learning_rate, or look at these rows")  # fmt: skip
