"""Matrix products of MLX on this CPU: with the BLAS of its wheel, and with the one we preload.

Run `python tests/benchmarks/blas.py`. Each BLAS has processes of its own, taken in turns.
"""

import json
import os
import statistics
import subprocess
import sys
import time

from pipeline.environment import worker_variables

# (rows, inner, columns): a square, a projection of a 135M-parameter model, and its backward.
SHAPES = ((1024, 1024, 1024), (1024, 576, 1536), (576, 1024, 1536), (4, 576, 1536))
ROUNDS = 3
SECONDS_PER_SHAPE = 1.0


def measure(preloaded: bool) -> dict[str, object]:
    """Return the BLAS used and, for every shape, the rates of its products in GFLOP/s."""
    name = "wheel"
    if preloaded:
        from stages.models.blas import preload

        name = preload() or "none could be preloaded"
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    rates = []
    for rows, inner, columns in SHAPES:
        a, b = mx.random.normal((rows, inner)), mx.random.normal((inner, columns))
        mx.eval(a @ b)
        found: list[float] = []
        end = time.perf_counter() + SECONDS_PER_SHAPE
        while time.perf_counter() < end or len(found) < 3:
            start = time.perf_counter()
            mx.eval(a @ b)
            found.append(2e-9 * rows * inner * columns / (time.perf_counter() - start))
        rates.append(statistics.median(found))
    return {"name": name, "rates": rates}


def main() -> None:
    """Print one row per shape: median rate of either BLAS over the rounds, and their ratio."""
    results: dict[str, list[dict]] = {"wheel": [], "preloaded": []}
    environment = {**os.environ, **worker_variables()}
    for _ in range(ROUNDS):
        for kind, found in results.items():
            command = [sys.executable, __file__, kind]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True
            )
            found.append(json.loads(done.stdout))
    print(f"preloaded: {results['preloaded'][0]['name']}")
    print(f"{'shape':>20} {'wheel GF/s':>12} {'preloaded':>12} {'ratio':>8}")
    for index, shape in enumerate(SHAPES):
        slow, fast = (
            statistics.median(run["rates"][index] for run in results[kind]) for kind in results
        )
        text = " x ".join(map(str, shape))
        print(f"{text:>20} {slow:>12.1f} {fast:>12.1f} {fast / slow:>7.1f}x")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1] == "preloaded")))
    else:
        main()
