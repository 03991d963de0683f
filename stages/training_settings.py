"""The settings of training: the optimizer, and how long and in which portions rows are seen."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from stages.errors import SettingError, require, require_counts, require_option
from stages.memory import size_bytes

_OPTIMIZER_FIELDS: dict[str, frozenset[str]] = {
    "adamw": frozenset({"betas", "eps", "weight_decay"}),
    "adam": frozenset({"betas", "eps"}),
    "sgd": frozenset({"momentum", "nesterov", "weight_decay"}),
    "lion": frozenset({"betas", "weight_decay"}),
    "muon": frozenset({"momentum", "nesterov", "betas", "eps", "weight_decay"}),
    "adafactor": frozenset({"eps", "weight_decay"}),
}


@dataclass(kw_only=True, slots=True)
class Optimizer:
    """How the trained weights move."""

    name: Literal["adamw", "adam", "sgd", "lion", "muon", "adafactor"]
    learning_rate: int | float | Literal["auto"]
    """Peak learning rate, reached after the warm-up; auto takes the one for the model's width and
    family (adam and adamw only), a tenth of it for lora.type=full."""
    schedule: Literal["cosine", "linear", "constant"]
    """Course of the learning rate after the warm-up."""
    warmup_fraction: float
    """Share of all steps in which the learning rate rises linearly from near 0."""
    final_fraction: float | None = None
    """Learning rate of the last step as a share of the peak; null takes 0.1. constant does not
    use it."""
    max_grad_norm: float | None
    """Global gradient norm above which gradients are scaled down; null never clips."""
    betas: tuple[float, float] | None = None
    """Decay of the first and of the second moment (lion: of the update and of its momentum; muon:
    of what AdamW moves, the embeddings, the head and vectors)."""
    eps: float | None = None
    """Added to the denominator (adafactor: to the squared gradient)."""
    weight_decay: float | None = None
    """Decoupled decay of the trained weights (sgd: L2 added to the gradient)."""
    momentum: float | None = None
    """Share of the last update kept."""
    nesterov: bool | None = None
    """Look ahead along the momentum."""

    def __post_init__(self) -> None:
        used = _OPTIMIZER_FIELDS[self.name]
        if self.schedule != "constant":
            used = used | {"final_fraction"}
            # Not in YAML: `optimizer.schedule=constant` alone would then have to be refused.
            self.final_fraction = 0.1 if self.final_fraction is None else self.final_fraction
        what = f"optimizer.name={self.name}, optimizer.schedule={self.schedule}"
        require_option(self, "optimizer", what, used)
        self._check_learning_rate()
        require(self.max_grad_norm is None or self.max_grad_norm > 0, "optimizer.max_grad_norm",
               self.max_grad_norm, "more than 0, or null to never clip")  # fmt: skip
        require(self.eps is None or self.eps > 0, "optimizer.eps", self.eps, "more than 0")
        require(self.weight_decay is None or self.weight_decay >= 0, "optimizer.weight_decay",
               self.weight_decay, "0 or more")  # fmt: skip
        require(self.betas is None or all(0 <= beta < 1 for beta in self.betas), "optimizer.betas",
               self.betas, "two numbers of 0 or more and less than 1")  # fmt: skip
        for name in ("warmup_fraction", "final_fraction", "momentum"):
            value = getattr(self, name)
            require(value is None or 0 <= value < 1, f"optimizer.{name}", value,
                   "0 or more and less than 1")  # fmt: skip
        if self.nesterov and not self.momentum:
            raise SettingError("optimizer.nesterov", "found true, but there is no momentum to look "
                               "along", "set optimizer.momentum above 0")  # fmt: skip

    def _check_learning_rate(self) -> None:
        rate = self.learning_rate
        if isinstance(rate, str):
            if self.name not in ("adam", "adamw"):
                raise SettingError("optimizer.learning_rate", f"found {rate!r}, which is for adam "
                                   f"and adamw, not {self.name}", "set a number")  # fmt: skip
            return
        require(0 < rate < math.inf, "optimizer.learning_rate", rate, "a number above 0")
        self.learning_rate = float(rate)


@dataclass(kw_only=True, slots=True)
class Train:
    """How long and in which portions the rows are seen."""

    epochs: int
    """Times every training row is seen."""
    steps: int | None = None
    """Optimizer steps to stop after, whatever the epochs; null goes by epochs."""
    batch_size: int
    """Rows, at most, in one forward and backward pass; those of other lengths have their own."""
    grad_accumulation_steps: int
    """Batches whose gradients make one step; the effective batch is batch_size times this."""
    gradient_checkpointing: bool
    """Keep only each block's inputs and compute the rest again: less memory, a third more time."""
    workers: int | None = None
    """Processes that compute a part of each step; null takes one for each core of a CPU, four at
    most, and one on a GPU."""
    prefix_cache_gb: float | None = None
    """Disk for what the blocks below the lowest adapter give, in gigabytes: it is then computed
    once for each row; null computes it each time."""
    memory_limit: int | str | None = None
    """Most memory that training may hold, such as 6GB: where it is too little, batch_size is
    halved and as many more passes make a step; null takes what the machine has."""
    validations_per_epoch: int
    """Times per epoch that the validation loss is measured; the best adapter is kept."""
    patience: int | None = None
    """Validations in a row without a lower loss that end training early; null never does."""
    log_every: int
    """Steps between two log lines; changes nothing that is trained."""
    checkpoint_every: int | str
    """Steps, or minutes (`5m`), between two checkpoints; changes nothing that is trained."""
    resume: Literal["auto", "never"]
    """auto goes on from the newest checkpoint of the same training; never starts over."""
    init_adapter: str | None = None
    """Adapter to start from: a run that trained one, `latest`, or a directory; null a new one."""
    callbacks: tuple[str, ...]
    """Functions of yours, `file.py:function`, told each event; they can change and fail nothing."""
    trackio: str | None = None
    """Trackio project that the metrics go to as well; null takes none."""

    def __post_init__(self) -> None:
        require_counts(self, "train", "epochs", "steps", "batch_size", "grad_accumulation_steps",
                      "workers",
                      "validations_per_epoch", "patience", "log_every")  # fmt: skip
        cache = self.prefix_cache_gb
        require(cache is None or 0 < cache < math.inf, "train.prefix_cache_gb", cache,
               "more than 0, or null to keep nothing")  # fmt: skip
        size_bytes("train.memory_limit", self.memory_limit)
        every = self.checkpoint_every
        good = every >= 1 if isinstance(every, int) else re.fullmatch("[1-9][0-9]*m", every)
        require(bool(good), "train.checkpoint_every", every, "steps such as 50, or minutes: 5m")
        require(self.init_adapter != "", "train.init_adapter", "", "a run, a directory or null")
        for callback in self.callbacks:
            name, _, function = callback.rpartition(":")
            written = bool(name) and function.isidentifier()
            require(written, "train.callbacks", callback, "module:function or file.py:function")
        require(self.trackio != "", "train.trackio", self.trackio, "a project, or null for none")
