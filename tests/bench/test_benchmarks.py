"""The scripts of benchmarks/ run for hours, so that no test runs them; that they find all they import is tested."""

import importlib
from pathlib import Path

import pytest

SCRIPTS = sorted(path.stem for path in (Path(__file__).parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_finds_what_it_imports(name: str) -> None:
    importlib.import_module(name)


def test_all_benchmarks_are_found() -> None:
    assert {"defaults", "fit", "parallel", "results"} <= set(SCRIPTS)
