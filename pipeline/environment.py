"""Where the work runs: device, BLAS kernel, threads, versions; all found without MLX."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

from pipeline import launched
from pipeline.errors import Unable
from stages.errors import SettingError
from stages.training_settings import Train

MOST_WORKERS = 4
"""Processes that train together unless train.workers says more: each holds the base's weights."""

_AVX512 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


def device() -> str:
    """Return the device MLX computes on: `gpu` with Metal or a CUDA wheel, else `cpu`."""
    if sys.platform == "darwin":
        return "gpu"
    names = (found.metadata["Name"] or "" for found in distributions())
    return "gpu" if any(name.lower().startswith("mlx-cuda") for name in names) else "cpu"


def compute_dtype(wanted: str | None) -> str:
    """Return the type to compute in: as wanted, else float32 on a CPU and `stored` on a GPU.

    On a CPU, bfloat16 and float16 matrix products run 50 times slower than float32.
    """
    return wanted or ("float32" if device() == "cpu" else "stored")


def cpu_count() -> int:
    """Return the number of CPUs this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def blas_kernel() -> str | None:
    """Return the OpenBLAS kernel for this CPU, the user's own choice first."""
    if chosen := os.environ.get("OPENBLAS_CORETYPE"):
        return chosen
    if sys.platform != "linux":
        return None
    return choose_kernel(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))


def choose_kernel(cpuinfo: str) -> str | None:
    """Name the OpenBLAS kernel for the CPU that the text of /proc/cpuinfo describes.

    OpenBLAS takes AVX2 kernels on AVX-512 CPUs newer than itself, at half the speed. None leaves
    the choice to it.
    """
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    found = set(flags[1].split()) if flags else set()
    if found >= _AVX512:
        return "SkylakeX"
    return "Haswell" if {"avx2", "fma"} <= found else None


def blas_threads(model_path: str | None) -> int:
    """Return the threads of OpenBLAS for a model, the user's own choice first.

    The matrices of `tiny` are too small to share: a second thread waits, and slows the first down
    to a third wherever another process is at work.
    """
    if chosen := os.environ.get("OPENBLAS_NUM_THREADS"):
        return int(chosen)
    return 1 if model_path == "tiny" else cpu_count()


def training_workers(train: Train) -> int:
    """Return how many processes train together: as told, else 1 on a GPU, a few on a CPU.

    There MLX computes all but matrix products on one core, so each core gets a process of its own,
    up to MOST_WORKERS. Raises SettingError for more of them than a step has rows.
    """
    rows = train.batch_size * train.grad_accumulation_steps
    if place := launched.place():
        return _launched_workers(place.size, train.workers, rows)
    if train.workers is None:
        return 1 if device() == "gpu" else min(cpu_count(), rows, MOST_WORKERS)
    if train.workers > 1 and device() == "gpu":
        raise SettingError("train.workers", f"found {train.workers}, but one process uses all of "
                           "a GPU", "leave train.workers out")  # fmt: skip
    if train.workers > rows:
        raise SettingError("train.workers", f"found {train.workers}, but a step has {rows} rows",
                           "lower it, or raise train.batch_size")  # fmt: skip
    return train.workers


def _launched_workers(size: int, wanted: int | None, rows: int) -> int:
    if wanted not in (None, size):
        raise SettingError("train.workers", f"found {wanted}, but mlx.launch started {size} "
                           "processes", "leave train.workers out")  # fmt: skip
    if size > rows:
        raise SettingError("train.workers", f"mlx.launch started {size} processes, but a step has "
                           f"{rows} rows", "start fewer, or raise train.batch_size")  # fmt: skip
    return size


def threads_of_each(workers: int, model_path: str | None) -> int:
    """Return the threads of OpenBLAS in each of the processes that train together."""
    place = launched.place()
    sharing = place.on_this_host if place and workers > 1 else workers
    return max(blas_threads(model_path) // sharing, 1)


def worker_variables(model_path: str | None = None, threads: int | None = None) -> dict[str, str]:
    """Return the environment variables that must be set before the worker's Python starts."""
    if sys.platform != "linux":
        return {}
    kernel = blas_kernel()
    return {
        "OPENBLAS_NUM_THREADS": str(threads or blas_threads(model_path)),
        # Large arrays come and go each step: keep them in the heap instead of mapping anew.
        "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
        "MALLOC_TOP_PAD_": str(1 << 26),
        "TOKENIZERS_PARALLELISM": "true",
        **({"OPENBLAS_CORETYPE": kernel} if kernel else {}),
    }


def execution(dtype: str | None, model_path: str | None = None, workers: int = 1) -> dict[str, Any]:
    """Return what of the machine decides the bytes of a result: part of a stage's key."""
    facts: dict[str, Any] = {"device": device(), "dtype": compute_dtype(dtype)}
    if sys.platform == "linux" and facts["device"] == "cpu":
        facts["blas_kernel"] = blas_kernel() or platform.machine()
        facts |= versions(("scipy-openblas32",))
        facts["blas_threads"] = threads_of_each(workers, model_path)
    if workers > 1:
        facts["workers"] = workers
    return facts


def versions(libraries: Iterable[str]) -> dict[str, str | None]:
    """Return the installed version of each distribution, None where it is missing."""
    found: dict[str, str | None] = {}
    for name in libraries:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def require_mlx() -> None:
    """Raise `Unable` with the package to install where MLX or its back end is missing."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        needed, back_ends = "pip install mlx mlx-lm", ("mlx-metal",)
    elif sys.platform == "linux":
        needed, back_ends = (
            "pip install 'mlx[cpu]' mlx-lm",
            ("mlx-cpu", "mlx-cuda-12", "mlx-cuda-13"),
        )
    else:
        what = f"MLX does not run on {sys.platform} {platform.machine()}"
        raise Unable("mlx", what, "use a Mac with Apple silicon, or Linux")
    missing = [name for name, found in versions(("mlx", "mlx-lm")).items() if found is None]
    if not missing and not any(versions(back_ends).values()):
        missing = [back_ends[0]]
    if missing:
        raise Unable(missing[0], "is not installed, and this stage computes with it", needed)


def describe(dtype: str | None, model_path: str | None = None) -> dict[str, Any]:
    """Return what `run.json` records of this machine and its software; arguments as configured."""
    libraries = ("mlx", "mlx-lm", "transformers", "tokenizers", "hydra-core", "mlx-lora-pipeline")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "execution": execution(dtype, model_path),
        "versions": versions(libraries),
    }
