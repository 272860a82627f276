"""How good the certificate's latent_error is, on held-out images: its ratio to the truth, and whether it ranks.

    python benchmarks/certificate.py [MODEL ...] [--images FIRST:END] [--block N] [--table]

measures the built-in models (both unless named) on the test images FIRST, ..., END-1 of the package, which no model
was trained on, and prints a table. Each block of images is appended to certificate.csv beside this file, a row for
each image and run; images that are there are skipped, so the same command goes on after an interruption. --table only
prints.

The truth is the Adams-Bashforth method of order 4 in log σ, written here, over 640 even steps behind Euler's step from
0 to σ_1, in float64. How far it is known: its distance to that of 320 steps, in the table. On one free core an image
takes about 12 seconds a model.
"""

from __future__ import annotations

import argparse
import csv
import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import scipy.stats
import torch
from torch import Tensor

import odeddim
from odeddim.checks.certificate import LEAST, MORE, reference
from odeddim.latents.arithmetic import rms
from odeddim.ode.field import VectorField
from odeddim.plans import Plan, integrate
from odeddim.types import State

MODELS = ("fashion-mnist", "fashion-mnist-flow")
RUNS = [
    (solver, grid, steps)
    for solver, grids in {
        "belm": ("log",),
        "ab3": ("log", "karras"),
        "unipc-2": ("log",),
        "dpmpp-2m": ("log", "karras"),
        "euler": ("log", "linear"),
    }.items()
    for grid in grids
    for steps in (20, 50)
]
CSV = Path(__file__).with_suffix(".csv")
COLUMNS = ("model", "image", "solver", "grid", "steps", "true", "estimate", "known")


def held_out(images: list[int]) -> Tensor:
    """The test images of these numbers: (B, 1, 28, 28) in [-1, 1]."""
    with np.load(Path(odeddim.__file__).parent / "data" / "fashion-mnist-reference.npz") as file:
        return torch.from_numpy(file["images"][images]).float()[:, None] / 127.5 - 1


@torch.no_grad()
def truth(field: VectorField, x_0: Tensor, steps: int) -> Tensor:
    """x_T by Adams-Bashforth of order 4 in u = log σ, where dx̄/du = σ·ε; begun with Runge and Kutta's steps."""
    low, high = field.schedule.sigma_min, field.schedule.sigma_max
    h = math.log(high / low) / steps

    def slope(i: float, xbar: Tensor) -> Tensor:
        sigma = low * math.exp(i * h)
        return sigma * field(torch.tensor(sigma, dtype=torch.float64), xbar)

    xbar = x_0.double()
    xbar = xbar + low * field(torch.tensor(0.0, dtype=torch.float64), xbar)
    slopes: list[Tensor] = []  # the newest first
    for i in range(steps):
        k = slope(i, xbar)
        slopes = [k, *slopes[:3]]
        if i < 3:
            k2 = slope(i + 0.5, xbar + h / 2 * k)
            k3 = slope(i + 0.5, xbar + h / 2 * k2)
            k4 = slope(i + 1, xbar + h * k3)
            xbar = xbar + h / 6 * (k + 2 * k2 + 2 * k3 + k4)
        else:
            xbar = xbar + h / 24 * sum(w * s for w, s in zip((55, -59, 37, -9), slopes, strict=True))
    return xbar / math.hypot(1, high)


def measure(field: VectorField, x_0: Tensor) -> Iterator[dict[str, Any]]:
    """A row for each run, with the figures of each image, (B,)."""
    exact = truth(field, x_0, 640)
    known = rms(truth(field, x_0, 320) - exact)
    start = State(x_0, 0.0)

    @functools.cache
    def judge(count: int) -> Tensor:  # the same for all runs with so many evaluations: see `certificate.latent_error`
        return reference(start, Plan.of(field.schedule, "euler", 2, "log"), count, field).x

    for solver, grid, steps in RUNS:
        plan = Plan.of(field.schedule, solver, steps, grid)
        x_T = integrate(field, start, plan).x
        estimate = rms(x_T - judge(max(LEAST, int(MORE * plan.evaluations))))
        figures = {"true": rms(x_T - exact), "estimate": estimate, "known": known}
        yield {"solver": solver, "grid": grid, "steps": steps, **figures}


def rows_of(path: Path) -> list[dict[str, str]]:
    """What has been measured so far."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table(rows: list[dict[str, str]]) -> str:
    """Markdown: of each model and run, the true error, the estimate over it, and Spearman's rank correlation."""
    lines = [
        "| model | solver | grid | steps | images | true error, median (10-90%) | estimate / true, 5, 50, 95% "
        "| within 0.75-1.4 | rank correlation | truth known to, median |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for model in MODELS:
        for solver, grid, steps in RUNS:
            key = (model, solver, grid, str(steps))
            its = [row for row in rows if tuple(row[name] for name in ("model", "solver", "grid", "steps")) == key]
            if len(its) < 2:
                continue
            true, estimate, known = (np.array([float(row[name]) for row in its]) for name in COLUMNS[-3:])
            ratio = estimate / true
            low, median, high = np.quantile(true, (0.1, 0.5, 0.9))
            quantiles = " ".join(f"{value:.2f}" for value in np.quantile(ratio, (0.05, 0.5, 0.95)))
            within = np.mean((ratio > 0.75) & (ratio < 1.4))
            rank = scipy.stats.spearmanr(true, estimate).statistic
            lines.append(
                f"| {model} | {solver} | {grid} | {steps} | {len(its)} | {median:.2e} ({low:.1e} to {high:.1e}) "
                f"| {quantiles} | {within:.2f} | {rank:.2f} | {np.median(known):.1e} |"
            )
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--images", default="1100:1200", metavar="FIRST:END")
    parser.add_argument("--block", type=int, default=4, help="images between two writes")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("-o", "--output", type=Path, default=CSV)
    given = parser.parse_args()
    torch.set_num_threads(1)
    first, end = map(int, given.images.split(":"))
    for model in [] if given.table else given.models:
        field = odeddim.load(model)
        there = {int(row["image"]) for row in rows_of(given.output) if row["model"] == model}
        left = [image for image in range(first, end) if image not in there]
        for start in range(0, len(left), given.block):
            images = left[start : start + given.block]
            new = not given.output.exists()
            found = list(measure(field, held_out(images)))  # whole blocks are written, or none
            with given.output.open("a", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                if new:
                    writer.writeheader()
                for i, image in enumerate(images):
                    for run in found:
                        figures = {name: f"{float(run[name][i]):.6e}" for name in ("true", "estimate", "known")}
                        writer.writerow({"model": model, "image": image, **run, **figures})
            print(f"{model}: images {images[0]} to {images[-1]}", flush=True)
    chosen = [row for row in rows_of(given.output) if first <= int(row["image"]) < end]
    print(table(chosen))


if __name__ == "__main__":
    main()
