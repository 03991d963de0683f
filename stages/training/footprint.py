"""What training will hold at its largest batch, told before the first step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from stages.artifacts import Reporter
from stages.data.rows import Rows
from stages.errors import OutOfMemory
from stages.lora.full import Tuning
from stages.lora.weights import weight_dims
from stages.memory import shown, size_bytes, smaller_batch, what_to_change
from stages.models.saving import is_quantized
from stages.training import cpu_gradients, loss
from stages.training.available import available_bytes
from stages.training.batches import input_width
from stages.training.forecast import TOLERANCE, Forecast, Shape, forecast
from stages.training.head import UNCUT
from stages.training.held import held_bytes
from stages.training.peak import WIDTHS
from stages.training.step import few_shapes, tuned_cut
from stages.training_settings import Optimizer, Train

_STATES = {"adamw": 2, "adam": 2, "lion": 1, "muon": 2, "sgd": 1, "adafactor": 1}
"""Numbers that an optimizer keeps for each trained one, at most."""
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k")


def announce(
    tuning: Tuning,
    rows: Rows,
    optimizer: Optimizer,
    train: Train,
    config: Mapping[str, Any],
    report: Reporter,
) -> Forecast:
    """Forecast the memory of this training and tell it; `config` is the model's own.

    Raises OutOfMemory where it is more than train.memory_limit. Of a single row at a time it must
    be more beyond doubt, for nothing is left to try.
    """
    found = forecast_of(tuning, rows, optimizer, train, config)
    limit = size_bytes("train.memory_limit", train.memory_limit)
    there = available_bytes()
    report.log(found.line(there if limit is None else min(there, limit)))
    packable = mx.default_device() != mx.cpu and not is_quantized(tuning.model)
    change = what_to_change(
        train.batch_size, checkpointing=train.gradient_checkpointing, packable=packable
    )
    least = found.total if smaller_batch(train.batch_size) else found.total / TOLERANCE
    if limit is not None and least > limit:
        needs = f"training needs about {shown(found.total)}, more than {shown(limit)}"
        raise OutOfMemory("train.memory_limit", needs, change)
    if found.total > there:
        report.log(f"memory: this may not fit; {change}")
    return found


def forecast_of(
    tuning: Tuning, rows: Rows, optimizer: Optimizer, train: Train, config: Mapping[str, Any]
) -> Forecast:
    """Forecast the largest step: batches of the longest row, with all tokens supervised.

    It is of all processes that train together: each holds the weights and a part of a batch.
    """
    mx.eval(tuning.model.parameters())
    weights = [value.nbytes for _, value in tree_flatten(tuning.model.parameters())]
    own = forecast(
        step_shape(tuning, rows, optimizer, train, config),
        weights=sum(weights), largest_weight=max(weights), held=held_bytes(),
    )  # fmt: skip
    return own.times(train.workers or 1)


def step_shape(
    tuning: Tuning, rows: Rows, optimizer: Optimizer, train: Train, config: Mapping[str, Any]
) -> Shape:
    """Return what decides the memory of the largest step."""
    text = config.get("text_config") or config
    width = input_width(int(rows.lengths.max()), few_shapes())
    tokens = width * -(-min(train.batch_size, len(rows)) // (train.workers or 1))
    logits, itemsize = tokens * _number(text, ("vocab_size",), 0), _itemsize(tuning.model)
    cut = tuned_cut(tuning)
    cpu = mx.default_device() == mx.cpu and itemsize == mx.float32.size and cut != UNCUT
    chunk = cpu_gradients.CHUNK_ELEMENTS if cpu else loss.CHUNK_ELEMENTS
    return Shape(
        tokens=tokens,
        width=width,
        blocks=tuple(_features(tuning, _number(text, _EXPERTS, 1))),
        hidden=_number(text, WIDTHS, 0),
        heads=_number(text, _HEADS, 1),
        logits=logits if cut == UNCUT else min(logits, chunk),
        trained=sum(value.size for _, value in tree_flatten(tuning.parameters())),
        states=_STATES[optimizer.name],
        checkpointing=train.gradient_checkpointing,
        itemsize=itemsize,
        cpu=cpu,
    )


def _features(tuning: Tuning, experts: int) -> Iterator[int]:
    """Yield the features into and out of the layers of each block that the gradient reaches."""
    paths = {id(module): path for path, module in tuning.model.named_modules()}
    # A block may stand there twice, or be on another machine.
    blocks = {paths[id(block)]: block for block in tuning.model.layers if block is not None}
    trained = [next((path for path in blocks if f"{name}.".startswith(f"{path}.")), None)
               for name in tuning.parameters()]  # fmt: skip
    # What is trained outside of the blocks may lie below them all.
    reached = None in trained
    for path, block in blocks.items():
        reached = reached or path in trained
        if reached:
            yield sum(_of_layer(layer, experts) for _, layer in block.named_modules())


def _of_layer(layer: nn.Module, experts: int) -> int:
    if "weight" not in layer or layer.weight.ndim < 2:
        return 0
    *mixture, output_dims, input_dims = weight_dims(layer)
    return (output_dims + input_dims) * (min(experts, mixture[0]) if mixture else 1)


def _itemsize(model: nn.Module) -> int:
    """Return the bytes of an activation: of the type that most floating-point weights have."""
    sizes = Counter(
        value.dtype.size
        for _, value in tree_flatten(model.parameters())
        if mx.issubdtype(value.dtype, mx.floating)
    )
    return int(sizes.most_common(1)[0][0])


def _number(config: Mapping[str, Any], names: Sequence[str], default: int) -> int:
    return next((config[name] for name in names if isinstance(config.get(name), int)), default)
