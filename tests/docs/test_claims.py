"""What pages of the manual say of figures and of what the package has not: they fail when a page is out of date."""

from __future__ import annotations

import csv
import re

import pytest
from pages import ROOT

import odeddim
from odeddim import solvers

CHOOSING = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
COMPARISON = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
COLUMNS = {"latent": "latent_median", "image": "decoded_median", "round trip": "round_trip_median"}


def measured() -> dict[tuple[str, str, str], dict[str, str]]:
    """(model, SOLVER@GRID, evaluations) -> the line of benchmarks/defaults.csv."""
    with open(ROOT / "benchmarks" / "defaults.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return {(line["model"], f"{line['solver']}@{line['grid']}", line["budget"]): line for line in lines}


def rounded(figure: str, said: str) -> bool:
    """Whether `said` is the figure, rounded to as many digits."""
    digits = len(said.replace("0.", "").lstrip("0")) or 1
    return float(f"{float(figure):.{digits}g}") == pytest.approx(float(said))


def test_how_many_steps_is_what_was_measured() -> None:
    table = re.findall(r"^\| `(\S+@\S+)` \| (\w+) \| (.*) \|$", CHOOSING, re.MULTILINE)
    assert len(table) == 7
    for name, error, figures in table:
        for budget, said in zip(("5", "10", "20", "50"), figures.split(" | "), strict=True):
            assert rounded(measured()["fashion-mnist", name, budget][COLUMNS[error]], said), (name, error, budget)


@pytest.mark.parametrize(
    ("job", "model", "row"),
    [
        ("samples, or noise decoded", "fashion-mnist", "unipc-2@log"),
        ("an image back exactly", "fashion-mnist", "belm@log"),
        ("latents as accurate", "fashion-mnist", "unipc-2@log"),
        ("interpolated or shifted", "fashion-mnist", "unipc-2@log"),
        ("to compare with DDIM", "fashion-mnist", "euler@linear"),
        ("a rectified flow", "fashion-mnist-flow", "unipc-2@log"),
    ],
)
def test_the_decision_table_is_what_was_measured(job: str, model: str, row: str) -> None:
    (cell,) = re.findall(rf"^\| {job}.* \| (.*) \|$", CHOOSING, re.MULTILINE)
    figures = re.findall(r"(latent|image|round trip) ([0-9.]+)", cell)
    assert figures
    for error, said in figures:
        assert rounded(measured()[model, row, "20"][COLUMNS[error]], said), (job, error)


def league() -> dict[tuple[str, int, str], dict[str, str]]:
    """(model, evaluations, SOLVER@GRID) -> the line of benchmarks/league.csv, names of one method once."""
    with open(ROOT / "benchmarks" / "league.csv", newline="", encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if not line["same_as"]]
    return {(line["model"], int(line["budget"]), f"{line['solver']}@{line['grid']}"): line for line in lines}


def test_the_best_with_few_evaluations_are_those_of_the_league() -> None:
    table = re.findall(r"^\| (5|8|10) \| (`.*) \|$", CHOOSING, re.MULTILINE)
    assert len(table) == 3
    kinds = [(model, error) for model in ("fashion-mnist", "fashion-mnist-flow") for error in ("latent", "decoded")]
    for evaluations, cells in table:
        said = cells.split(" | ")
        for (model, error), best, ddim in zip(kinds, said[::2], said[1::2], strict=True):
            its = {
                run: float(line[error])
                for (of, budget, run), line in league().items()
                if (of, budget) == (model, int(evaluations)) and line[error]
            }
            name, figure = best.replace("`", "").split()
            assert its[name] == min(its.values()), (model, evaluations, error)
            assert rounded(str(its[name]), figure)
            assert rounded(str(its["euler@linear"]), ddim)


def test_the_grids_are_what_was_measured() -> None:
    import defaults as benchmark

    lines = benchmark.read(ROOT / "benchmarks" / "defaults.csv")
    table = re.findall(r"^\| `(\S+)` \| ([0-9.]+) \| ([0-9.]+) \|(.*)\|$", CHOOSING, re.MULTILINE)
    assert len(table) == 6
    for name, log, karras, others in table:
        said = {"log": log, "karras": karras, **dict(each.split() for each in others.split(",") if each.strip())}
        assert {grid: f"{error:.3g}" for error, grid in benchmark.grids_of(lines, name)} == said


def test_what_the_comparison_says_is_missing() -> None:
    """Whoever adds one of these finds the page to correct."""
    noisy = {name for name, row in solvers.SOLVERS.items() if row.stochastic}
    assert noisy == {"ddim-eta", "ddpm", "ddpm-sigma-hat", "er-sde-2", "er-sde-3", "sa-solver"}
    assert len([row for row in solvers.SOLVERS.values() if row.family.startswith("torchdiffeq")]) == 11
    assert "Eleven of torchdiffeq's methods are rows here" in COMPARISON


def test_the_comparison_names_the_versions_that_run_here() -> None:
    from importlib.metadata import version

    assert f"odeddim {odeddim.__version__}" in COMPARISON
    assert "torchdiffeq 0.2.5" in COMPARISON
    assert version("torchdiffeq") >= "0.2.5"
    assert len(range(0, 1000, 1000 // 30)) == 31  # DDIM's code with S = 30
