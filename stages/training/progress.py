"""What a training run has done so far, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from stages.artifacts import Reporter
from stages.training.batches import Step


@dataclass(slots=True)
class Progress:
    """Counts of the run, and the three channels of the reporter fed from them."""

    report: Reporter
    total_steps: int
    log_every: int
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
        self.seconds += seconds
        loss = loss_sum / max(tokens, 1)
        values = {
            "train.loss": loss,
            "train.learning_rate": rate,
            "train.grad_norm": norm,
            "train.tokens_per_second": inputs / seconds,
        }
        self.report.metrics(self.steps, values)
        fields = {"loss": loss, "tokens_per_second": self.tokens_per_second}
        if self.valid_loss is not None:
            fields["valid_loss"] = self.valid_loss
        fields["memory_bytes"] = mx.get_peak_memory()
        self.report.progress(self.steps, self.total_steps, fields)
        if self.steps % self.log_every == 0:
            self._log(f"loss {loss:8.4f}  lr {rate:.2e}  {self.tokens_per_second:9,.0f} tokens/s")

    def validated(self, loss: float, best: bool) -> None:
        """Tell a validation loss and whether it is the lowest of this run."""
        self.valid_loss = loss
        self.report.metrics(self.steps, {"valid.loss": loss})
        self._log(f"valid loss {loss:8.4f}" + ("  best" if best else ""))

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

    def _log(self, message: str) -> None:
        width = len(str(self.total_steps))
        self.report.log(f"step {self.steps:>{width}}/{self.total_steps}  {message}")
