"""The scripts of benchmarks/ run for hours, so that no test runs them; that they find all they import is tested."""

import csv
import importlib
import json
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted(path.stem for path in (Path(__file__).parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_finds_what_it_imports(name: str) -> None:
    importlib.import_module(name)


def test_all_benchmarks_are_found() -> None:
    assert {"defaults", "fit", "parallel", "results"} <= set(SCRIPTS)


def test_tables_of_the_league_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    league = importlib.import_module("league")
    for model, latent in (("a", "0.123456789"), ("b", "")):
        (tmp_path / model).mkdir()
        (tmp_path / model / "league.json").write_text(json.dumps({"settings": {"model": model}}), encoding="utf-8")
        table = f"budget,solver,latent,encode_seconds\n5,belm,{latent},1.5\n"
        (tmp_path / model / "league.csv").write_text(table, encoding="utf-8")
    monkeypatch.setattr(league, "KEPT", tmp_path / "league.csv")
    monkeypatch.setattr(sys, "argv", ["league.py", str(tmp_path / "a"), str(tmp_path / "b")])
    league.main()
    with open(tmp_path / "league.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(league.COLUMNS)
    assert [(row["model"], row["budget"], row["latent"]) for row in rows] == [("a", "5", "0.123457"), ("b", "5", "")]
