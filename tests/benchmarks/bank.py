"""What one adapter costs: our layer, built for K of them, against mlx-lm's own, built for one.

Run `python tests/benchmarks/bank.py`. Both take turns; a step is forward and backward.
"""

import os
import statistics
import time
from collections.abc import Callable

from pipeline.environment import worker_variables
from stages.models.blas import preload

# Before anything imports MLX.
os.environ.update(worker_variables("tiny"))
BLAS = preload()

import mlx.core as mx  # noqa: E402
from mlx import nn  # noqa: E402
from mlx_lm.models.llama import Model, ModelArgs  # noqa: E402
from mlx_lm.tuner.lora import LoRALinear as TheirLinear  # noqa: E402
from mlx_lm.tuner.utils import linear_to_lora_layers  # noqa: E402

from stages.lora.bank import Parameters, attach, initial  # noqa: E402
from stages.lora.layers import AdapterShape, LoRALinear, Routing  # noqa: E402
from stages.lora.targets import find_targets  # noqa: E402

RANK, SCALE, ROUNDS = 8, 2.0, 41
# (tokens, in, out): projections of a 135M-parameter model, and a batch of few tokens.
LAYERS = ((1024, 576, 1536), (1024, 1536, 576), (128, 576, 576))
Take = Callable[[], object]


def one_layer(tokens: int, input_dims: int, output_dims: int) -> tuple[Take, Take]:
    """Return a step of our layer and of theirs, over one base and with one adapter."""
    base = nn.Linear(input_dims, output_dims, bias=False)
    ours = LoRALinear(base, "layer", [AdapterShape(RANK, SCALE)], Routing())
    theirs = TheirLinear.from_base(base, r=RANK, scale=SCALE)
    theirs.lora_b = mx.random.normal(theirs.lora_b.shape)
    x = mx.random.normal((4, tokens // 4, input_dims))
    adapter = {"lora_a": theirs.lora_a, "lora_b": theirs.lora_b}

    def loss(weights: dict[str, mx.array], x: mx.array, layer: nn.Module) -> mx.array:
        for name, value in weights.items():
            layer[name] = value
        return layer(x).square().sum()

    step = mx.value_and_grad(loss, argnums=(0, 1))
    stacked = {name: value[None] for name, value in adapter.items()}
    mx.eval(base.parameters(), adapter, stacked, x)
    return lambda: step(stacked, x, ours), lambda: step(adapter, x, theirs)


def small_model() -> tuple[Take, Take]:
    """Return a step of one small model with an adapter of ours, and of one with theirs."""

    def make() -> Model:
        mx.random.seed(0)
        sizes = ModelArgs(
            model_type="llama", hidden_size=256, intermediate_size=768, num_hidden_layers=6,
            num_attention_heads=4, num_key_value_heads=2, vocab_size=4096, rms_norm_eps=1e-5,
        )  # fmt: skip
        model = Model(sizes)
        model.freeze()
        return model

    ours, theirs = make(), make()
    shape = AdapterShape(RANK, SCALE)
    bank = attach(ours, find_targets(ours, ["*"], None), [shape])
    bank.update(bank.join([initial(bank.layers, shape, seed=0)]))
    linear_to_lora_layers(theirs, 6, {"rank": RANK, "scale": SCALE, "dropout": 0.0})
    tokens = mx.random.randint(0, 4096, (4, 129))

    def loss(model: nn.Module) -> mx.array:
        return nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]).mean()

    def our_loss(parameters: Parameters) -> mx.array:
        with bank.using(parameters):
            return loss(ours)

    our_step, their_step = mx.value_and_grad(our_loss), nn.value_and_grad(theirs, loss)
    parameters = bank.parameters()
    mx.eval(ours.parameters(), theirs.parameters(), tokens)
    return lambda: our_step(parameters), lambda: their_step(theirs)


def medians(steps: tuple[Take, Take]) -> list[float]:
    """Return the median milliseconds of either step, taken in turns."""
    found: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for step, times in zip(steps, found, strict=True):
            start = time.perf_counter()
            mx.eval(step())
            times.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(times) for times in found]


def main() -> None:
    """Print one row for each layer and one for the model."""
    mx.set_default_device(mx.cpu)
    print(f"BLAS: {BLAS}; K = 1, rank {RANK}; median of {ROUNDS} steps in turns")
    print(f"{'':>24} {'ours ms':>10} {'mlx-lm ms':>10} {'ratio':>7}")
    rows = [(" x ".join(map(str, sizes)), one_layer(*sizes)) for sizes in LAYERS]
    for name, steps in [*rows, ("model, 6 blocks", small_model())]:
        ours, theirs = medians(steps)
        print(f"{name:>24} {ours:>10.2f} {theirs:>10.2f} {ours / theirs:>7.2f}")


if __name__ == "__main__":
    main()
