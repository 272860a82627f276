"""Measures what the defaults rest on: every solver with fixed steps, on several grids, by evaluations of the network.

    python benchmarks/defaults.py measure    # adds what is missing to defaults.csv; stop it and start it as you like
    python benchmarks/defaults.py show       # the best rows of each budget, and the better grid of each row

For each cell (model, solver, grid, evaluations) three errors, each as median and 10-90% range over images or noises:

    latent      of x_T (unit variance) that the solver encodes images to, rms over pixels, against the reference
    round trip  of those images decoded again by the same solver, rms over pixels, images in [-1, 1]
    decoded     of the images that the solver decodes noise to, rms over pixels, against the reference

The reference shares no code with the solvers: the classical Runge-Kutta method in log σ (`odeddim.bench.solutions`),
from the same Euler step between σ = 0 and σ_1. Its own error is the distance to half as many steps, on the first
images.

Solvers that are one method on a list of nodes are measured once: they are recognised by what they do to an exact field.
Adaptive rows, and those that iterate, have no fixed number of evaluations and are not measured here.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import Tensor

import odeddim
from odeddim import solvers
from odeddim.bench.solutions import decoded, encoded
from odeddim.latents.arithmetic import rms
from odeddim.ode.analytic import GaussianMixture
from odeddim.plans import Plan, integrate
from odeddim.types import InputError, Solver, State

HERE = Path(__file__).resolve().parent
IMAGES = HERE.parent / "odeddim" / "data" / "fashion-mnist-reference.npz"
MODELS = ("fashion-mnist", "fashion-mnist-flow")
BUDGETS = (20, 10, 50, 5)
EVERYWHERE = ("log", "karras")
OF_FAMILY = {
    "linear": (
        *("euler", "edict", "bdia", "belm", "obelm", "leapfrog"),
        *("midpoint-reuse", "uni-inv", "stork-2", "stork-4"),
    ),
    "quadratic": ("euler", "deis-tab1", "deis-tab2", "deis-tab3", "ipndm", "plms", "pndm"),
}
"""Grids over the training levels, for the rows that their authors run on these."""
GRIDS = (*EVERYWHERE, *OF_FAMILY)
FIRST = ("unipc-2", "ab3", "belm", "dpmpp-2m", "unipc-3", "euler", "unipc-1", "dpmpp-3m", "ab2", "ab4", "deis-tab2")
SEED = 11
REFERENCE_STEPS = 200
AT_ONCE = 16  # images in the network at once: what is fastest on one core
CHECKED = 16  # images and noises on which the reference is checked
QUANTILES = (0.5, 0.1, 0.9)
ERRORS = ("latent", "round_trip", "decoded")
BOTH = ("latent", "decoded")
PARTS = ("median", "p10", "p90")
FIGURES = tuple(f"{error}_{part}" for error in ERRORS for part in PARTS)
Line = dict[str, str]
COLUMNS = ("model", "solver", "grid", "budget", "steps", "evaluations", "images", "as", *FIGURES)


def images(first: int, count: int) -> Tensor:
    """Held-out images of Fashion-MNIST, (count, 1, 28, 28) in [-1, 1]."""
    with np.load(IMAGES) as file:
        return torch.from_numpy(file["images"][first : first + count]).float()[:, None] / 127.5 - 1


@torch.no_grad()
def reference(field: odeddim.VectorField, x_0: Tensor, x_T: Tensor, path: Path) -> dict[str, Tensor]:
    """What the solvers are measured by: "latent" and "decoded", (B, *) float64; kept in a file, with its own error."""
    if path.exists():
        found: dict[str, Tensor] = torch.load(path)
    else:
        found = {
            "latent": torch.cat([encoded(field, some, REFERENCE_STEPS) for some in x_0.split(AT_ONCE)]),
            "decoded": torch.cat([decoded(field, some, REFERENCE_STEPS) for some in x_T.split(AT_ONCE)]),
        }
        half = REFERENCE_STEPS // 2
        coarse = {"latent": encoded(field, x_0[:CHECKED], half), "decoded": decoded(field, x_T[:CHECKED], half)}
        found |= {f"{key}_error": rms(found[key][:CHECKED] - coarse[key]) for key in coarse}
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(found, path)
    for key in ("latent", "decoded"):
        error = found[f"{key}_error"].quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
        spread = f"{error[0]:.1e} ({error[1]:.1e} to {error[2]:.1e}) on {CHECKED}"
        steps = f"{REFERENCE_STEPS} steps of RK4, {key}: distance to {REFERENCE_STEPS // 2} steps"
        print(f"{field.name}: reference of {steps} {spread}", flush=True)
    return found


def rows() -> list[Solver]:
    """The rows that take fixed steps, the most used first."""
    fixed = [row for row in solvers.SOLVERS.values() if row.nfe is not None and not row.stochastic]
    return sorted(fixed, key=lambda row: FIRST.index(row.name) if row.name in FIRST else len(FIRST))


def plan_for(row: Solver, grid: str, budget: int, schedule: odeddim.Schedule) -> Plan | None:
    """The longest run that takes no more evaluations than the budget, each way; None if there is none."""
    best = None
    for steps in range(1, budget + 1):
        plan = Plan.of(schedule, row, steps, grid)
        if plan.evaluations > budget:
            break
        best = plan
    return best


def trace(plan: Plan) -> tuple[float, ...]:
    """What a row does to an exact field, both ways: one method, one trace."""
    field = GaussianMixture(torch.tensor([[-0.6], [0.3]], dtype=torch.float64), 0.2)
    up = integrate(field, State(torch.tensor([[0.1]], dtype=torch.float64), float(plan.nodes[0])), plan)
    down = integrate(field, State(torch.tensor([[7.0]], dtype=torch.float64), plan.top), plan)
    return tuple(float(f"{float(value):.9g}") for value in (up.xbar, down.xbar))


def cells(models: tuple[str, ...]) -> Iterator[tuple[str, int, Solver, str]]:
    """All that is to be measured, the most telling first."""
    used = [(budget, row) for budget in BUDGETS for row in rows() if row.name in FIRST]
    others = [(budget, row) for budget in BUDGETS for row in rows() if row.name not in FIRST]
    for budget, row in used + others:
        for grid in (*EVERYWHERE, *(grid for grid, names in OF_FAMILY.items() if row.name in names)):
            for model in models:
                yield model, budget, row, grid


def measure(models: tuple[str, ...], only: tuple[str, ...], first: int, count: int, out: Path, keep: Path) -> None:
    """Add what is missing to the table: of these rows only, if any are named, on images and noises from the first."""
    torch.set_num_threads(1)
    x_0, fields, truth = images(first, count), {}, {}
    x_T = odeddim.noise(count, tuple(x_0.shape[1:]), seed=SEED, start=first)
    for name in models:
        fields[name] = odeddim.load(name)
        truth[name] = reference(fields[name], x_0, x_T, keep / f"reference-{name}-{first}-{count}.pt")
    table = read(out)
    done = {(line["model"], line["solver"], line["grid"], int(line["budget"])): line for line in table}
    known: dict[tuple[object, ...], str] = {}
    for model, budget, row, grid in cells(models):
        field = fields[model]
        plan = plan_for(row, grid, budget, field.schedule)
        if plan is None or (only and row.name not in only):
            continue
        cell: dict[str, object] = {"model": model, "solver": row.name, "grid": grid, "budget": budget}
        cell |= {"steps": plan.steps, "evaluations": f"{plan.evaluations:g}", "images": count}
        try:
            same = known.setdefault((model, grid, budget, row.reversible, trace(plan)), row.name)
            if (model, row.name, grid, budget) in done:
                continue
            twin = done.get((model, same, grid, budget))
            if same != row.name and twin is not None:
                figures: dict[str, object] = {key: twin[key] for key in FIGURES} | {"as": same}
            else:
                figures = errors(field, plan, x_0, x_T, truth[model])
        except InputError as error:
            figures = {"as": f"refused: {error}"[:100]}
        cell |= figures
        done[model, row.name, grid, budget] = {key: str(value) for key, value in cell.items()}
        append(out, cell)
        print(*(cell.get(key, "") for key in COLUMNS), flush=True)


def errors(
    field: odeddim.VectorField, plan: Plan, x_0: Tensor, x_T: Tensor, truth: dict[str, Tensor]
) -> dict[str, object]:
    """The three errors of a run, by the names of the table's columns."""
    runs: dict[str, list[Tensor]] = {error: [] for error in ERRORS}
    for at in range(0, len(x_0), AT_ONCE):
        some = slice(at, at + AT_ONCE)
        state = integrate(field, State(x_0[some], float(plan.nodes[0])), plan)
        # What comes back bit for bit is a test of its own for every such row (tests/solvers/test_reversible.py).
        again = x_0[some] if plan.solver.reversible else integrate(field, state, plan).xbar
        down = integrate(field, State(x_T[some] * math.sqrt(1 + plan.top**2), plan.top), plan).xbar
        for error, value in zip(ERRORS, (state.x, again, down), strict=True):
            runs[error].append(value)
    truth = truth | {"round_trip": x_0}
    found = {error: rms(torch.cat(values) - truth[error]) for error, values in runs.items()}
    return {
        f"{error}_{name}": f"{float(values.nan_to_num(torch.inf).quantile(q)):.4g}"
        for error, values in found.items()
        for name, q in zip(PARTS, QUANTILES, strict=True)
    }


def read(path: Path) -> list[Line]:
    """The lines of the table."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(path: Path, cell: dict[str, object]) -> None:
    """One more line, in one write."""
    new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(cell)


def best(table: list[Line], model: str, budget: int, error: str) -> list[Line]:
    """The runs of a budget that do not come back exactly by themselves, those with the smallest error first."""
    some = [line for line in table if (line["model"], int(line["budget"])) == (model, budget) and not line["as"]]
    some = [line for line in some if line[f"{error}_median"] and float(line[f"{error}_median"]) > 0]
    return sorted(some, key=lambda line: float(line[f"{error}_median"]))


def grids_of(table: list[Line], solver: str) -> list[tuple[float, str]]:
    """The grids of a row with their errors, the better first.

    The error is the geometric mean of the medians of "latent" and "decoded", over the models and budgets that were
    measured on each of the grids that are compared.
    """
    own = [line for line in table if line["solver"] == solver and line["latent_median"]]
    cells = {grid: {(line["model"], line["budget"]): line for line in own if line["grid"] == grid} for grid in GRIDS}
    cells = {grid: lines for grid, lines in cells.items() if lines}
    common = set.intersection(*map(set, cells.values())) if cells else set()
    return sorted(
        (
            math.exp(
                float(np.mean([math.log(float(lines[key][f"{error}_median"])) for key in common for error in BOTH]))
            ),
            grid,
        )
        for grid, lines in cells.items()
        if common
    )


def overall(table: list[Line], errors: tuple[str, ...]) -> list[tuple[float, str, str]]:
    """(error, solver, grid) of the runs that were measured with every model and budget of the table, the best first.

    The error is the geometric mean of the medians of these errors over models and budgets; of 10 evaluations and more,
    for with 5 no row is far from another.
    """
    runs: dict[tuple[str, str], list[Line]] = {}
    for line in table:
        if not line["as"] and int(line["budget"]) >= 10:
            runs.setdefault((line["solver"], line["grid"]), []).append(line)
    every = len({(line["model"], line["budget"]) for lines in runs.values() for line in lines})
    found = []
    for (solver, grid), lines in runs.items():
        values = [float(line[f"{error}_median"]) for line in lines for error in errors]
        if len(lines) == every and min(values) > 0:
            found.append((math.exp(float(np.mean(np.log(values)))), solver, grid))
    return sorted(found)


def show(path: Path, count: int) -> None:
    """Print the best rows of each budget by each error and of all, and the better grid of each row."""
    table = read(path)
    for model in MODELS:
        for budget in sorted(BUDGETS):
            for error in ERRORS:
                lines = best(table, model, budget, error)
                if lines:
                    print(f"\n{model}, {budget} evaluations, {error.replace('_', ' ')}: median (10-90%)")
                for line in lines[:count]:
                    spread = f"{line[f'{error}_p10']} to {line[f'{error}_p90']}"
                    print(f"  {line['solver']}@{line['grid']:10s} {line[f'{error}_median']:>10s} ({spread})")
    for errors in (("latent",), ("decoded",), BOTH):
        print(f"\n{' and '.join(errors)}: geometric mean of the medians over models and budgets from 10")
        for error, solver, grid in overall(table, errors)[:count]:
            print(f"  {solver}@{grid:10s} {error:.3g}")
    print("\nGrids by the geometric mean of latent and decoded:")
    for name in dict.fromkeys(line["solver"] for line in table):
        ordered = grids_of(table, name)
        has = solvers.get(name).grid
        flag = f"   (the row has {has})" if ordered and ordered[0][1] != has else ""
        print(f"  {name:20s}", ", ".join(f"{grid} {error:.3g}" for error, grid in ordered), flag)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "show"))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--rows", default="", help="only these, with commas between them  [all]")
    parser.add_argument("--first", type=int, default=0, help="the first image, and noise  [0]")
    parser.add_argument("-n", "--count", type=int, default=64, help="images, and noises  [64]")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "defaults.csv")
    parser.add_argument("--keep", type=Path, default=Path("runs"), help="where the reference is kept  [runs]")
    parser.add_argument("--best", type=int, default=8, help="rows to show of each  [8]")
    given = parser.parse_args()
    if given.what == "show":
        show(given.output, given.best)
    else:
        only = tuple(given.rows.split(",")) if given.rows else ()
        measure(tuple(given.models.split(",")), only, given.first, given.count, given.output, given.keep)


if __name__ == "__main__":
    sys.exit(main())
