"""The wheel holds every module and the data, and works away from the checkout; so does the checkout itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_wheel_holds_everything(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder, package in (("odeddim", "odeddim"), ("solvers", "odeddim/solvers"), ("cli", "odeddim/cli")):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"{package}/{path.relative_to(ROOT / folder).as_posix()}" in inside
    top = {name.split("/")[0] for name in inside}
    assert {name for name in top if not name.endswith(".dist-info")} == {"odeddim"}  # no `solvers` in site-packages
    assert wheel.stat().st_size < 15_000_000  # two models of 6 MB each


def test_the_wheel_works_anywhere(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    code = (
        "import odeddim, odeddim.solvers, odeddim.cli\n"
        f"assert odeddim.solvers.__file__.startswith({str(site)!r}), odeddim.solvers.__file__\n"
        "print(odeddim.load().shape, len(odeddim.solvers.names()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("(1, 28, 28)")


def test_the_checkout_works_as_it_lies(tmp_path: Path) -> None:
    """`python -m odeddim` at the root, where odeddim/ comes first on the path and holds no solvers/ or cli/."""
    for arguments in (["-m", "odeddim", "--version"], ["-c", "import odeddim; print(odeddim.solvers.names()[0])"]):
        result = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    code = "import pkgutil, odeddim; print(len(list(pkgutil.walk_packages(odeddim.__path__, 'odeddim.'))))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr  # and it ends


def test_a_second_checkout_uses_its_own_solvers(tmp_path: Path) -> None:
    """Even where this one is installed in editable mode, whose finder knows `odeddim.solvers` too."""
    for name in ("odeddim", "solvers", "cli"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "data"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    code = (
        "import odeddim.solvers, odeddim.cli; print(odeddim.__file__, odeddim.solvers.__file__, odeddim.cli.__file__)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert all(Path(file).is_relative_to(tmp_path) for file in result.stdout.split())


def test_names_are_handed_on_lazily() -> None:
    code = (
        "import sys, odeddim\n"
        "assert 'torch' not in sys.modules\n"
        "for name in dir(odeddim): getattr(odeddim, name)\n"
        "assert odeddim.solve.__module__ == 'odeddim.api'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    import odeddim

    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = odeddim.nonsense
