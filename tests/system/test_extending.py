"""The manual's recipes for a solver, a format and a job are true: their files, as they stand, work everywhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


Run = Callable[..., str]


def recipes(title: str) -> list[str]:
    """The files in the section of this title."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def recipe(title: str) -> str:
    """The only file in the section of this title."""
    (code,) = recipes(title)
    return code


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs Python in a copy of the checkout, which lies in tmp_path."""
    for name in ("odeddim", "solvers", "cli", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        return done.stdout

    return run


def test_a_file_is_a_solver(tmp_path: Path, run: Run) -> None:
    (tmp_path / "solvers" / "mine.py").write_text(recipe("Add a solver"), encoding="utf-8")
    listed = run("odeddim", "solvers")
    assert "mine" in listed
    assert "2 per step" in listed
    words = ("odeddim", "explain", "--solver", "mine", "--steps", "5", "--model", "exact-mixture")
    assert "9 evaluations" in run(*words)
    assert "4 latents" in run("odeddim", "encode", "--solver", "mine", "-n", "4", "--steps", "3", "-o", "z.h5")
    assert run("pytest", "-q", "-p", "no:cacheprovider", "tests/solvers/test_solvers.py", "-k", "mine").count(".") > 7


def test_a_file_and_its_name_are_a_format(tmp_path: Path, run: Run) -> None:
    (tmp_path / "odeddim" / "models" / "formats" / "toy.py").write_text(recipe("Add a checkpoint format"))
    models = tmp_path / "odeddim" / "models" / "__init__.py"
    named = models.read_text(encoding="utf-8").replace("FORMATS = (", 'FORMATS = ("toy",', 1)
    assert '"toy"' in named
    models.write_text(named, encoding="utf-8")
    torch.save(torch.nn.Sequential(OrderedDict(conv=torch.nn.Conv2d(1, 1, 3))).state_dict(), tmp_path / "net.toy")
    assert "net.toy" in run("odeddim", "inspect", "net.toy")
    words = ("--model", "net.toy", "--solver", "euler", "--steps", "3", "-n", "2")
    assert "2 latents" in run("odeddim", "encode", *words, "-o", "z.h5")
    assert "2 images" in run("odeddim", "decode", "z.h5", "-o", "out.h5")


def test_two_files_and_their_names_are_a_job(tmp_path: Path, run: Run) -> None:
    job, command = recipes("Add a job")
    (tmp_path / "odeddim" / "jobs" / "sizes.py").write_text(job, encoding="utf-8")
    (tmp_path / "cli" / "sizes.py").write_text(command, encoding="utf-8")
    names, commands = tmp_path / "odeddim" / "jobs" / "__init__.py", tmp_path / "cli" / "__init__.py"
    names.write_text(names.read_text() + "from odeddim.jobs.sizes import sizes as sizes\n", encoding="utf-8")
    listed = commands.read_text(encoding="utf-8").replace("COMMANDS = {", 'COMMANDS = {\n    "sizes": "Sizes.",', 1)
    commands.write_text(listed, encoding="utf-8")
    assert "sizes" in run("odeddim", "--help")
    assert "sizes.csv" in run("odeddim", "sizes", "--help")
    run("odeddim", "encode", "-n", "3", "--model", "exact-samples", "--steps", "4", "-o", "z.h5")
    for _ in range(2):  # the second time it is its own
        assert run("odeddim", "sizes", "z.h5", "-o", "sizes.csv").strip() == "3 sizes in sizes.csv"
    lines = (tmp_path / "sizes.csv").read_text().splitlines()[1:]
    assert [line.partition(",")[0] for line in lines] == ["000000", "000001", "000002"]
    assert all(0 < float(line.partition(",")[2]) < 10 for line in lines)
