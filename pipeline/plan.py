"""The steps of a run as a table: what each takes, from whom, and what decides its result."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One row of the plan."""

    name: str
    function: str
    """Configuration key that holds the stage function's dotted name, or that name itself."""
    settings: tuple[str, ...]
    """Configuration given to the function by position: names of groups or of root keys."""
    upstream: tuple[str, ...]
    """Steps whose artifacts the function takes as keywords."""
    artifact: str
    """Class of the artifact in stages.artifacts; its keyword is `keyword`."""
    keyword: str
    """Name under which a later stage takes this step's artifact."""
    libraries: tuple[str, ...]
    """Distributions whose version is part of the key, because it decides the result."""
    tensors: bool
    """Needs MLX; its key then holds device, dtype and BLAS kernel."""
    unkeyed: frozenset[str] = frozenset()
    """Configuration keys that stay out of the key: they decide no byte of the result, or what
    they name (a file's content, a commit, a function, a type) stands there itself."""
    tokenizer_only: bool = False
    """Reads the base's tokenizer but not its weights, so a change of weights keeps its result."""
    implied: bool = False
    """Runs where a listed step needs it; `stages` does not list it."""
    resumes: bool = False
    """Is given a directory of its key's, for unfinished work that the same key goes on from."""
    stored: bool = True
    """Leaves a result in the store; a server does not."""


_TEXT_LIBRARIES = ("tokenizers", "transformers", "jinja2")
_MLX_LIBRARIES = ("mlx", "mlx-lm")

TABLE: tuple[Step, ...] = (
    Step(
        name="model",
        function="stages.models.materialize.materialize",
        settings=("model",),
        upstream=(),
        artifact="BaseModel",
        keyword="model",
        libraries=(*_MLX_LIBRARIES, "tokenizers"),
        tensors=True,
        unkeyed=frozenset({"model.path", "model.revision", "model.dtype"}),
        implied=True,
    ),
    Step(
        name="prepare",
        function="data.stage",
        settings=("data", "seed"),
        upstream=("model",),
        artifact="Prepared",
        keyword="prepared",
        libraries=(*_TEXT_LIBRARIES, "rensa"),
        tensors=False,
        unkeyed=frozenset(
            {"data.stage", "data.path", "data.revision", "data.convert", "data.chat_template"}
        ),
        tokenizer_only=True,
    ),
    Step(
        name="train",
        function="lora.stage",
        settings=("lora", "optimizer", "train", "seed"),
        upstream=("model", "prepare"),
        artifact="Adapter",
        keyword="adapter",
        libraries=_MLX_LIBRARIES,
        tensors=True,
        # A limit that changes the micro-batch gives another key by that: see retreats.py.
        unkeyed=frozenset(
            {
                "lora.stage",
                # How many there come to be stands with the machine.
                "train.workers",
                "train.log_every",
                "train.callbacks",
                "train.trackio",
                "train.memory_limit",
                "train.checkpoint_every",
                "train.resume",
                "train.init_adapter",
            }
        ),
        resumes=True,
    ),
    Step(
        name="merge",
        function="merge.stage",
        settings=("merge",),
        upstream=("model", "prepare", "train"),
        artifact="Merged",
        keyword="merged",
        libraries=_MLX_LIBRARIES,
        tensors=True,
        unkeyed=frozenset({"merge.stage"}),
    ),
    Step(
        name="baseline",
        function="stages.evaluate.evaluate_base",
        settings=("evaluate", "seed"),
        upstream=("model", "prepare"),
        artifact="Report",
        keyword="baseline",
        libraries=(*_MLX_LIBRARIES, *_TEXT_LIBRARIES),
        tensors=True,
        unkeyed=frozenset({"evaluate.stage", "evaluate.samples"}),
        implied=True,
    ),
    Step(
        name="evaluate",
        function="evaluate.stage",
        settings=("evaluate", "seed"),
        upstream=("model", "prepare", "train", "baseline"),
        artifact="Report",
        keyword="evaluation",
        libraries=(*_MLX_LIBRARIES, *_TEXT_LIBRARIES),
        tensors=True,
        unkeyed=frozenset({"evaluate.stage"}),
    ),
    Step(
        name="serve",
        function="serve.stage",
        settings=("serve",),
        upstream=("model", "train", "merge"),
        artifact="Report",
        keyword="served",
        libraries=_MLX_LIBRARIES,
        tensors=True,
        stored=False,
    ),
)
"""In the order in which they run. The implied ones: `model` makes the base where the
configuration names one that does not lie ready on disk (quantized, or its weights drawn anew);
`baseline` scores the untuned base, once for each base and data."""

STEPS: tuple[str, ...] = tuple(step.name for step in TABLE if not step.implied)
"""The names that the key `stages` may list."""


def upstream(step: Step, serve_weights: str) -> tuple[str, ...]:
    """Return the steps whose artifacts `step` takes: a server takes the adapter or the merged."""
    unused = {"adapter": "merge", "merged": "train"}[serve_weights] if step.name == "serve" else ""
    return tuple(name for name in step.upstream if name != unused)
