"""The built wheel works from an empty directory, without the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel installs, and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
             "--wheel-dir", str(folder), str(ROOT)]  # fmt: skip
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(site: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # -P keeps the working directory off the path; the editable install must not answer either.
    code = f"import sys; sys.path.insert(0, {str(site)!r}); import pipeline.app as a; a.main()"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_wheel_holds_configuration_and_code_only(site: Path) -> None:
    """The wheel has the three packages, every YAML of conf, the embedded model, and no test."""
    tops = {path.name for path in site.iterdir()}
    assert {"conf", "pipeline", "stages"} <= tops
    assert all(
        name in {"conf", "pipeline", "stages"} or name.endswith(".dist-info") for name in tops
    )
    ours = {path.relative_to(ROOT) for path in (ROOT / "conf").rglob("*.yaml")}
    assert {path.relative_to(site) for path in (site / "conf").rglob("*.yaml")} == ours
    model = {file.name for file in (site / "stages" / "models" / "embedded").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= model


def test_wheel_composes_from_an_empty_directory(site: Path, tmp_path: Path) -> None:
    """`--cfg job` finds the configuration inside the wheel."""
    done = run(site, tmp_path, "--cfg", "job", "lora.rank=3")
    assert done.returncode == 0, done.stderr
    assert "rank: 3" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_wheel_plans_from_an_empty_directory(site: Path, tmp_path: Path) -> None:
    """A dry run plans every step with the wheel's own stages, and writes nothing."""
    done = run(site, tmp_path, "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "prepare" in done.stdout
    assert "never made" in done.stdout
    assert list(tmp_path.iterdir()) == []
