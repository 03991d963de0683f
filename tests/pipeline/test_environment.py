"""What the machine decides is found without MLX: kernel, threads, device, what to install."""

import pytest

from pipeline import environment
from pipeline.errors import Unable


@pytest.mark.parametrize(
    ("flags", "kernel"),
    [
        ("fpu avx2 fma avx512f avx512dq avx512cd avx512bw avx512vl", "SkylakeX"),
        ("fpu avx2 fma avx512f avx512cd avx512er", "Haswell"),
        ("fpu avx2 fma", "Haswell"),
        ("fpu avx", None),
    ],
)
def test_kernel_by_cpu_flags(flags, kernel):
    """AVX-512 as servers have it takes SkylakeX, AVX2 Haswell, all else OpenBLAS's own choice."""
    cpuinfo = f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\nbugs\t\t: avx512f\n"
    assert environment.choose_kernel(cpuinfo) == kernel


def test_no_kernel_is_chosen_on_arm():
    """Their cpuinfo has features, not flags, and OpenBLAS knows these CPUs."""
    assert environment.choose_kernel("processor\t: 0\nFeatures\t: fp asimd sve\n") is None


def test_worker_has_one_kernel_and_its_key_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel that the worker is given is the one that stands in the keys of its results."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(environment, "device", lambda: "cpu")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Nehalem")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    variables = environment.worker_variables()
    facts = environment.execution(None)
    assert variables["OPENBLAS_CORETYPE"] == facts["blas_kernel"] == "Nehalem"
    assert (variables["OPENBLAS_NUM_THREADS"], facts["blas_threads"]) == ("3", 3)


@pytest.mark.parametrize(
    ("device", "wanted", "dtype"),
    [
        ("cpu", None, "float32"),
        ("gpu", None, "stored"),
        ("cpu", "bfloat16", "bfloat16"),
        ("gpu", "float32", "float32"),
    ],
)
def test_dtype_follows_the_device_unless_given(
    monkeypatch: pytest.MonkeyPatch, device: str, wanted: str | None, dtype: str
) -> None:
    """A CPU computes in float32, a GPU as stored; a type that is given is taken."""
    monkeypatch.setattr(environment, "device", lambda: device)
    assert environment.compute_dtype(wanted) == dtype


@pytest.mark.parametrize(
    ("system", "machine", "needed"),
    [
        ("darwin", "arm64", "pip install mlx mlx-lm"),
        ("linux", "x86_64", "pip install 'mlx[cpu]' mlx-lm"),
        ("darwin", "x86_64", "Apple silicon"),
        ("win32", "AMD64", "Linux"),
    ],
)
def test_missing_mlx_names_the_package_of_the_platform(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, needed: str
) -> None:
    """Each platform is told its own package, and one without MLX what to use instead."""
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(environment, "versions", lambda names: dict.fromkeys(names))
    with pytest.raises(Unable) as caught:
        environment.require_mlx()
    assert needed in caught.value.mend
    assert caught.value.exit_code == 3


def test_another_openblas_is_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The release of OpenBLAS decides the bytes of a matrix product, so it is part of the key."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(environment, "device", lambda: "cpu")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Nehalem")
    before = environment.execution(None)
    monkeypatch.setattr(environment, "version", lambda name: "9.9")
    assert environment.execution(None) == {**before, "scipy-openblas32": "9.9"}
    assert before["scipy-openblas32"] != "9.9"


def test_record_tells_the_type_that_was_computed_in() -> None:
    """What run.json says of the execution follows model.dtype, as the keys of the stages do."""
    assert environment.describe("float16")["execution"]["dtype"] == "float16"


def test_the_embedded_model_takes_one_thread_and_others_take_all(monkeypatch) -> None:
    """One thread for `tiny`, every CPU for the rest, and what the user set for both."""
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setattr(environment, "cpu_count", lambda: 6)
    assert (environment.blas_threads("tiny"), environment.blas_threads("Qwen/Qwen3-0.6B")) == (1, 6)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "4")
    assert (environment.blas_threads("tiny"), environment.blas_threads(None)) == (4, 4)
