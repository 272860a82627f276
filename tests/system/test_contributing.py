"""CONTRIBUTING's recipe for a solver is true: its file, as it stands, is a row everywhere and passes the table's tests.

Nothing else is touched: one file, and everything follows.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_file_is_a_solver(tmp_path: Path) -> None:
    (code,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    for name in ("odeddim", "solvers", "cli", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "solvers" / "mine.py").write_text(code, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        return done.stdout

    assert "mine" in run("odeddim", "solvers")
    assert "2 per step" in run("odeddim", "solvers")
    words = ("odeddim", "explain", "--solver", "mine", "--steps", "5", "--model", "exact-mixture")
    assert "9 evaluations" in run(*words)
    assert "4 latents" in run("odeddim", "encode", "--solver", "mine", "-n", "4", "--steps", "3", "-o", "z.h5")
    assert run("pytest", "-q", "-p", "no:cacheprovider", "tests/solvers/test_solvers.py", "-k", "mine").count(".") > 10
