"""The README's examples run as they stand, and what it names exists."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
from pages import Run, run_in_order

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_read_in_five_minutes() -> None:
    assert len(README.splitlines()) <= 150


def test_the_examples_run_in_order(furnished: Callable[[str], Path], run: Run) -> None:
    names = {"images": torch.rand(2, 3, 8, 8) * 2 - 1}
    furnished(README)
    run_in_order(README, "README.md", run, names)


PARTS = ("median", "p10", "p90")


def test_the_figures_of_its_solvers_are_those_of_the_table() -> None:
    """Each "median (10% to 90%)" stands in a table that a command has measured, to two digits."""
    known = set()
    for name, parts in (
        ("defaults", [[f"{error}_{part}" for part in PARTS] for error in ("latent", "round_trip", "decoded")]),
        ("league", [[error, f"{error}_10", f"{error}_90"] for error in ("latent", "decoded")]),
        ("fit", [list(PARTS)]),
    ):
        with open(ROOT / "benchmarks" / f"{name}.csv", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["model"] == "fashion-mnist"]
        known |= {tuple(f"{float(row[it] or 'nan'):.2g}" for it in three) for row in rows for three in parts}
    found = re.findall(r"([0-9.]+) \(([0-9.]+) to ([0-9.]+)\)", README.partition("## Which solver")[2])
    assert len(found) == 11
    for median, low, high in found:
        assert (median, low, high) in known


def test_its_table_is_what_the_command_printed() -> None:
    """The medians that stand in the README, to two digits, are those of benchmarks/results/reconstruction.json."""
    kept = json.loads((ROOT / "benchmarks" / "results" / "reconstruction.json").read_text(encoding="utf-8"))
    assert f"`{kept['commands'][0]}` printed" in README
    printed = [[cell.strip() for cell in line.split("│")[1:-1]] for line in kept["output"].splitlines()]
    rows = re.findall(r"^\| `(\w[\w-]*@\w+)`[^|]*\|" + r" ([0-9.]+) \|" * 6 + "$", README, re.MULTILINE)
    assert len(rows) == 4
    for solver, *figures in rows:
        own = [cells for cells in printed if len(cells) > 7 and solver == f"{cells[0]}@{cells[1]}"]
        assert figures == [f"{float(cells[column]):.2g}" for column in (4, 7) for cells in own], solver


def test_every_file_it_names_exists() -> None:
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)\)", README):
        assert (ROOT / target).exists(), target
