"""The dataclass of every configuration group that a stage takes.

Settings are flat: text, numbers, booleans, None, or tuples and mappings of these. A field that an
option does not use is None there. Ranges are checked here; the string under a field documents it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stages.data_settings import Data
from stages.errors import SettingError, require, require_counts, require_option
from stages.training_settings import Optimizer, Train


@dataclass(kw_only=True, slots=True)
class Model:
    """Which base model, and in which form."""

    path: str
    """`tiny` (ships inside), a hub repository such as `Qwen/Qwen3-0.6B`, or a local directory."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null takes `main` and records the commit it resolved to."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type to compute in; null takes float32 on a CPU and the stored type on a GPU."""
    quantization: int | None = None
    """Bits per weight to quantize to when loading (2, 3, 4, 5, 6 or 8); null keeps the weights."""
    group_size: int | None = None
    """Weights that share one scale when quantizing (32, 64 or 128); null takes 64."""
    init_seed: int | None = None
    """Draw all weights anew from this seed, to pretrain from scratch: of model.path only config and
    tokenizer are taken; null keeps the weights."""
    init: Literal["normal", "induction"] = "normal"
    """What init_seed draws: normal numbers, or with heads that repeat what they saw laid into them
    (of a Llama with tied embeddings), which a small model would need very long to find."""

    def __post_init__(self) -> None:
        require(bool(self.path.strip()), "model.path", self.path, "a name or a directory")
        bits = (None, 2, 3, 4, 5, 6, 8)
        require(self.quantization in bits, "model.quantization", self.quantization, "2-6 or 8 bits")
        require(self.group_size in (None, 32, 64, 128), "model.group_size", self.group_size,
               "32, 64 or 128")  # fmt: skip
        if self.group_size is not None and self.quantization is None:
            raise SettingError("model.group_size", f"found {self.group_size}, but nothing is "
                               "quantized", "set model.quantization too")  # fmt: skip
        if self.path == "tiny" and self.revision is not None:
            raise SettingError("model.revision", f"found {self.revision!r}, but tiny has none",
                               "leave model.revision out")  # fmt: skip
        seed = self.init_seed
        require(seed is None or 0 <= seed < 2**32, "model.init_seed", seed,
                "0 or more and below 2**32")  # fmt: skip
        if seed is not None and self.quantization is not None:
            raise SettingError("model.quantization", f"found {self.quantization}, but "
                               f"model.init_seed={seed} draws weights that know nothing yet",
                               "leave one of the two out")  # fmt: skip
        if seed is None and self.init != "normal":
            raise SettingError("model.init", f"found {self.init!r}, but no weights are drawn",
                               "set model.init_seed too")  # fmt: skip


_ADAPTER = frozenset({"rank", "alpha", "dropout", "targets"})


@dataclass(kw_only=True, slots=True)
class Lora:
    """What is trained on top of the frozen base."""

    stage: str
    """Function that trains, by its dotted name under `stages.`."""
    type: Literal["lora", "rslora", "dora", "full"]
    """lora scales by alpha/rank; rslora by alpha/sqrt(rank); dora is lora that also trains the norm
    of every row of the weight; full trains all weights of the base instead of an adapter."""
    rank: int | None = None
    """Width of the adapter matrices."""
    alpha: float | None = None
    """Strength: the update is scaled by alpha/rank (rslora: alpha/sqrt(rank))."""
    dropout: float | None = None
    """Share of the adapter's inputs set to zero while training."""
    targets: tuple[str, ...] | None = None
    """Layers to adapt, as patterns matched against the end of their path (`q_proj`,
    `self_attn.*`, `layers.3.mlp.*`); `*` takes every linear layer of the blocks. Experts,
    embeddings and the head are adapted where their name is spelt (`switch_mlp.*`, `embed_tokens`,
    `lm_head`)."""
    rank_pattern: tuple[str, ...] | None = None
    """Ranks of the layers that match a pattern (`[q_proj:32,mlp.*:4]`), and scales that follow
    them; the other layers have lora.rank."""
    b_learning_rate_ratio: float | None = None
    """LoRA+: `lora_b` moves at this many times the learning rate (16, for example); null is 1."""
    num_layers: int | None
    """Adapt only the last so many blocks, and what lora.targets spells outside them; null takes
    all blocks."""

    def __post_init__(self) -> None:
        full = self.type == "full"
        # These two may be null in an adapter.
        free = {name for name in ("rank_pattern", "b_learning_rate_ratio")
                if getattr(self, name) is not None}  # fmt: skip
        used = frozenset() if full else _ADAPTER | free
        require_option(self, "lora", f"lora.type={self.type}", used)
        if full and self.num_layers is not None:
            raise SettingError("lora.num_layers", f"found {self.num_layers}, but lora.type=full "
                               "does not use it", "leave lora.num_layers out")  # fmt: skip
        require_counts(self, "lora", "rank", "num_layers")
        require(self.alpha is None or self.alpha > 0, "lora.alpha", self.alpha, "more than 0")
        require(self.dropout is None or 0 <= self.dropout < 1, "lora.dropout", self.dropout,
               "0 or more and less than 1")  # fmt: skip
        require(self.targets is None or len(self.targets) > 0, "lora.targets", self.targets,
               "at least one pattern")  # fmt: skip
        ratio = self.b_learning_rate_ratio
        require(ratio is None or 0 < ratio < math.inf, "lora.b_learning_rate_ratio", ratio,
               "a number above 0, or null for 1")  # fmt: skip
        self._check_ranks()

    def ranks(self) -> dict[str, int]:
        """Return lora.rank_pattern as pattern and rank."""
        pairs = (entry.rpartition(":") for entry in self.rank_pattern or ())
        return {pattern: int(rank) for pattern, _, rank in pairs}

    def _check_ranks(self) -> None:
        key, entries = "lora.rank_pattern", self.rank_pattern
        require(entries is None or len(entries) > 0, key, entries,
               "at least one pattern:rank, or null")  # fmt: skip
        for entry in entries or ():
            pattern, _, rank = entry.rpartition(":")
            good = bool(pattern) and rank.isascii() and rank.isdecimal() and int(rank) >= 1
            require(good, key, entry, "a pattern and its rank, such as q_proj:32")
        require(len(self.ranks()) == len(entries or ()), key, entries, "each pattern once")


@dataclass(kw_only=True, slots=True)
class Merge:
    """How the adapter becomes part of the weights."""

    stage: str
    """Function that merges, by its dotted name under `stages.`."""
    quantized: Literal["dequantize", "requantize"]
    """What becomes of a quantized base: plain weights, or quantized again as they were."""
    dtype: Literal["float32", "bfloat16", "float16"] | None
    """Type of the merged weights; null keeps the base's own."""
    rows: int
    """Held-out rows on which the merged model is compared with base plus adapter."""
    min_kept: float
    """Share of the tuning that must survive the merge, 0 to 1, or the stage fails."""

    def __post_init__(self) -> None:
        require_counts(self, "merge", "rows")
        require(0 <= self.min_kept <= 1, "merge.min_kept", self.min_kept, "0 to 1")


@dataclass(kw_only=True, slots=True)
class Evaluate:
    """How base and tuned are compared on held-out rows."""

    stage: str
    """Function that evaluates, by its dotted name under `stages.`."""
    rows: int | None
    """Most rows of a split that are scored; null takes all."""
    batch_size: int
    """Answers generated side by side."""
    max_tokens: int
    """Longest answer."""
    samples: int
    """Answers shown side by side, base and tuned."""

    def __post_init__(self) -> None:
        require_counts(self, "evaluate", "rows", "batch_size", "max_tokens")
        require(self.samples >= 0, "evaluate.samples", self.samples, "0 or more")


@dataclass(kw_only=True, slots=True)
class Serve:
    """How the model is offered over HTTP."""

    stage: str
    """Function that serves, by its dotted name under `stages.`."""
    host: str
    """Address to listen on; 127.0.0.1 is this machine alone."""
    port: int
    """TCP port; 0 takes a free one."""
    weights: Literal["adapter", "merged"]
    """adapter: base and adapter, the untuned base beside it; merged: the merged weights."""
    batch_size: int
    """Answers generated side by side; more requests wait."""
    max_tokens: int
    """Longest answer a request may ask for, and what it gets if it names none."""

    def __post_init__(self) -> None:
        require(bool(self.host.strip()), "serve.host", self.host, "an address")
        require(0 <= self.port <= 65535, "serve.port", self.port, "0 to 65535")
        require_counts(self, "serve", "batch_size", "max_tokens")


GROUPS: dict[str, type[Any]] = {
    "model": Model,
    "data": Data,
    "lora": Lora,
    "optimizer": Optimizer,
    "train": Train,
    "merge": Merge,
    "evaluate": Evaluate,
    "serve": Serve,
}
"""Every group that a stage takes, by its name."""


def from_values(group: str, values: Mapping[str, Any]) -> Any:
    """Build the settings of `group` from plain values, as they arrive over JSON (lists: tuples)."""
    return GROUPS[group](**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
