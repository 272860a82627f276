"""The sdist, and the wheel that is built from it as for a release, made once for all tests of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = (".ci", "odeddim", "solvers", "cli", "tests", "benchmarks", "docs", "examples")
LEFTOVERS = (
    "build/lib/odeddim/gone.py", "build/html/index.html", "dist/odeddim-0.0.1.tar.gz", "docs/_build/index.html",
    "solvers/__pycache__/gone.cpython-311.pyc", "docs/notebooks/.ipynb_checkpoints/gone.md", "out/000000.png",
    "z.h5", "report.html", ".venv/pyvenv.cfg",
)  # fmt: skip
"""What must not come into an sdist."""


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution of a copy of the checkout (a build in the checkout would leave its build/ behind)."""
    pytest.importorskip("setuptools", reason="setuptools is installed by the test extra")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    for name in FOLDERS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("_build"))
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, source)
    for name in LEFTOVERS:  # a checkout that has been worked in
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("left over", encoding="utf-8")
    code = f"from setuptools import build_meta; print(build_meta.build_sdist({str(out)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=source)
    (made,) = out.glob("*.tar.gz")
    return made


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the sdist."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, sdist]
    subprocess.run(command, check=True, capture_output=True)
    (made,) = out.glob("*.whl")
    return made
