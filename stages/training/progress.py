"""What a training run has done so far, and how it is told."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

import mlx.core as mx

from stages.artifacts import Reporter
from stages.training.batches import Step

_GIVEN = frozenset({"report", "total_steps", "log_every", "epochs", "others_memory_bytes", "told"})
"""What does not change while the run goes on, and the rows, which are kept by themselves."""
_KEPT = 0.9
"""Share of the weight of all earlier steps that stays, at each step, in the loss shown."""


def _alone() -> int:
    return 0


@dataclass(slots=True)
class Progress:
    """Counts of the run, and the three channels of the reporter fed from them."""

    report: Reporter
    total_steps: int
    log_every: int
    epochs: int = 0
    """Epochs that the run begins; not shown where 0."""
    others_memory_bytes: Callable[[], int] = _alone
    """The most memory that the other processes of this run have held."""
    steps: int = 0
    input_tokens: int = 0
    padded_tokens: int = 0
    supervised_tokens: int = 0
    seconds: float = 0.0
    """Time in steps; validation is not counted."""
    loss_sum: float = 0.0
    """Over the supervised tokens of the epoch at hand, `epoch_tokens`."""
    epoch_tokens: int = 0
    epoch: int = 0
    valid_loss: float | None = None
    recent_loss_sum: float = 0.0
    """Over `recent_tokens`: those of all steps, the older ones with ever less weight."""
    recent_tokens: float = 0.0
    told: bytearray = field(default_factory=bytearray)
    """Every row of metrics so far, as lines of JSON: for a run that goes on from here."""

    def counts(self) -> dict[str, float | None]:
        """Return all that is counted, by name."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self)
                if spec.name not in _GIVEN}  # fmt: skip

    def go_on(self, counts: Mapping[str, float | None], told: bytes) -> None:
        """Count on from there, having told the rows again."""
        for line in told.splitlines():
            step, values = json.loads(line)
            self._tell(step, values)
        for name, value in counts.items():
            setattr(self, name, value)

    def add(self, step: Step, loss_sum: float, norm: float, rate: float, seconds: float) -> None:
        """Count one step and tell it."""
        if step.epoch != self.epoch:
            self.epoch, self.loss_sum, self.epoch_tokens = step.epoch, 0.0, 0
        tokens = step.supervised_tokens
        inputs = sum(batch.input_tokens for batch in step.batches)
        self.steps += 1
        self.input_tokens += inputs
        self.padded_tokens += sum(batch.padded_tokens for batch in step.batches)
        self.supervised_tokens += tokens
        self.epoch_tokens += tokens
        self.loss_sum += loss_sum
        self.recent_loss_sum = _KEPT * self.recent_loss_sum + loss_sum
        self.recent_tokens = _KEPT * self.recent_tokens + tokens
        self.seconds += seconds
        values = {
            "train.epoch": float(step.epoch + 1),
            "train.loss": loss_sum / max(tokens, 1),
            "train.step_tokens": float(tokens),
            "train.learning_rate": rate,
            "train.grad_norm": norm,
            "train.tokens_per_second": inputs / seconds,
        }
        self._tell(self.steps, values)
        self._show()
        if self.steps % self.log_every == 0:
            # Of one step alone it would depend most on how hard its few rows are.
            self._log(f"loss {self.recent_loss:8.4f}  lr {rate:.2e}  "
                      f"{self.tokens_per_second:9,.0f} tokens/s")  # fmt: skip

    def validating(self, share: float) -> None:
        """Show how much of the validation rows is done, 0 to 1."""
        self._show({"validating": share})

    def validated(self, loss: float, best: bool) -> None:
        """Tell a validation loss and whether it is the lowest of this run."""
        self.valid_loss = loss
        self._tell(self.steps, {"valid.loss": loss})
        self._log(f"valid loss {loss:8.4f}" + ("  best" if best else ""))

    def stopped_early(self, best_step: int, validations: int) -> None:
        """Tell that training ends here, `validations` after the one of the best step."""
        self._log(f"stopped early: no lower validation loss since step {best_step} "
                  f"(train.patience={validations})")  # fmt: skip

    @property
    def recent_loss(self) -> float:
        """Return the mean loss of the supervised tokens, those of about the last ten steps."""
        return self.recent_loss_sum / max(self.recent_tokens, 1)

    @property
    def tokens_per_second(self) -> float:
        """Return unpadded input tokens per second of all steps so far."""
        return self.input_tokens / self.seconds if self.seconds else 0.0

    def totals(self) -> dict[str, float]:
        """Return the run's flat metrics, `train.loss` being the mean of the last epoch's tokens."""
        return {
            "train.loss": self.loss_sum / max(self.epoch_tokens, 1),
            "train.tokens_per_second": self.tokens_per_second,
            "train.supervised_tokens": self.supervised_tokens,
            "train.padding_fraction": 1 - self.input_tokens / self.padded_tokens,
            "train.steps": self.steps,
        }

    def _tell(self, step: int, values: Mapping[str, float]) -> None:
        self.told += json.dumps([step, dict(values)]).encode() + b"\n"
        self.report.metrics(step, values)

    def _show(self, more: dict[str, float] | None = None) -> None:
        fields: dict[str, float] = {}
        if self.epochs:
            fields |= {"epoch": self.epoch + 1, "epochs": self.epochs}
        if self.steps:
            fields |= {"loss": self.recent_loss, "tokens_per_second": self.tokens_per_second}
        if self.valid_loss is not None:
            fields["valid_loss"] = self.valid_loss
        fields["memory_bytes"] = peak_memory_bytes() + self.others_memory_bytes()
        self.report.progress(self.steps, self.total_steps, fields | (more or {}))

    def _log(self, message: str) -> None:
        width = len(str(self.total_steps))
        self.report.log(f"step {self.steps:>{width}}/{self.total_steps}  {message}")


def peak_memory_bytes() -> int:
    """Return the most memory this process has held: resident, or MLX's own count on a GPU."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resident *= 1 if sys.platform == "darwin" else 1024
    return max(resident, mx.get_peak_memory())
