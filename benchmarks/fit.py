"""Solvers fitted to the built-in models, against the best solver with named nodes, on images that no fit has seen.

    python benchmarks/fit.py measure    # hours on one core: adds what is missing to fit.csv; stop it and start it again
    python benchmarks/fit.py show       # the table

Solvers are fitted as `odeddim fit` does by default, so to noises. Errors are those of 64 other noises, decoded, and of
64 held-out images of Fashion-MNIST, encoded: rms of each image in [-1, 1], of each latent over σ_T; the median and the
10% and 90% quantiles. The reference is the classical Runge-Kutta method in log σ (`odeddim.bench.solutions`). Plain
rows run on the grids "log" and "karras", with images at σ = 0, as fitted ones, and at σ_1, each against a reference of
its own.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import odeddim  # isort: skip  # before torch: its waiting threads then sleep

import torch
from defaults import images
from torch import Tensor

from odeddim import solvers
from odeddim.bench.solutions import runge_kutta
from odeddim.fitting.checkpoint import Checkpoint
from odeddim.fitting.fit import QUANTILES, Aim, Fit
from odeddim.latents.arithmetic import rms
from odeddim.plans import Plan, integrate
from odeddim.types import InputError, State

TABLE = Path(__file__).with_suffix(".csv")
MODELS = ("fashion-mnist", "fashion-mnist-flow")
DIRECTIONS = ("decode", "encode")
STEPS = (5, 8, 10)
PLAIN = ("ab2", "ab3", "dpmpp-2m", "dpmpp-3m", "ipndm", "unipc-1", "unipc-2", "belm", "bdia", "euler")
GRIDS = ("log", "karras", "linear")
ENDS = ("zero", "sigma_min")
COUNT, SEED, AT_ONCE = 64, 11, 32
REFERENCE_STEPS = 60
COLUMNS = ("model", "direction", "steps", "solver", "grid", "end", "images", "median", "p10", "p90")
Line = dict[str, str]


class Bench:
    """One model: the held-out noises and images, and their references."""

    def __init__(self, name: str, kept: Path, *, compiled: bool = False) -> None:
        self.name, self.kept = name, kept
        self.field = odeddim.load(name, compile=compiled)
        self.checkpoint = Checkpoint(kept / f"{name}-truth", name)
        schedule = self.field.schedule
        self.low, self.top = schedule.sigma_min, schedule.sigma_max

    def pair(self, direction: str, end: str) -> tuple[Tensor, Tensor]:
        """x̄ at the start of a direction and the reference's x̄ at its end, (COUNT, *) each."""
        made = self.checkpoint.tensors(f"{direction} {end}", lambda: self._truth(direction, end))
        return made["start"], made["goal"]

    def _truth(self, direction: str, end: str) -> dict[str, Tensor]:
        low, top = self.low, self.top
        if direction == "encode":
            start = images(0, COUNT)
            lifted = [self._euler(part, 0.0, low) if end == "zero" else part for part in start.split(AT_ONCE)]
            goal = [runge_kutta(self.field, part, low, top, REFERENCE_STEPS) for part in lifted]
            return {"start": start, "goal": torch.cat(goal)}
        start = odeddim.noise(COUNT, (1, 28, 28), seed=SEED) * (1 + top**2) ** 0.5
        if end == "zero":
            lower = self.pair(direction, "sigma_min")[1]
            return {"start": start, "goal": torch.cat([self._euler(part, low, 0.0) for part in lower.split(AT_ONCE)])}
        goal = [runge_kutta(self.field, part, top, low, REFERENCE_STEPS) for part in start.split(AT_ONCE)]
        return {"start": start, "goal": torch.cat(goal)}

    def _euler(self, xbar: Tensor, here: float, there: float) -> Tensor:
        return xbar + (there - here) * self.field(torch.tensor(here, dtype=torch.float64), xbar)

    def errors(self, direction: str, plan: Plan, end: str) -> list[float]:
        """The quantiles of the errors of a plan."""
        start, goal = self.pair(direction, end)
        begin = float(plan.nodes[0]) if direction == "encode" else plan.top
        found = [integrate(self.field, State(part, begin), plan).xbar for part in start.split(AT_ONCE)]
        unit = self.top if direction == "encode" else 1.0
        off = rms((torch.cat(found) - goal).double()) / unit
        return [float(value) for value in torch.quantile(off, torch.tensor(QUANTILES, dtype=off.dtype))]

    def fitted(self, direction: str, steps: int) -> Plan:
        """The plan of `odeddim fit`; fits of one model share their solutions."""
        path = self.kept / f"{self.name}-{direction}-{steps}.json"
        if not path.exists():
            folder = path.with_suffix(".fit")
            work = Fit(self.field, Aim(steps, direction), checkpoint=folder, mark=path.name)
            work.solutions = Checkpoint(self.kept / f"{self.name}-solutions", self.name)
            work.run(progress=True).plan.save(path)
            work.checkpoint.remove()
        return Plan.load(path)

    def plain(self, steps: int) -> Iterator[tuple[str, str, str, Plan]]:
        """Rows that take one evaluation a step, on named grids: name, grid, end, plan."""
        for name in PLAIN:
            row = solvers.get(name)
            row = row.with_settings(warmup="lower") if "warmup" in row.settings else row
            for grid in GRIDS:
                for end in ENDS:
                    if grid != "linear" or name in ("euler", "bdia"):
                        yield name, grid, end, Plan.of(self.field.schedule, row, steps, grid, end)


def measure(kept: Path, models: Sequence[str], steps: Sequence[int], *, compiled: bool = False) -> None:
    """Add to the table what is missing."""
    lines = read()
    done = {tuple(line[name] for name in COLUMNS[:6]) for line in lines}
    benches = [Bench(model, kept, compiled=compiled) for model in models]
    for count, bench, direction in itertools.product(steps, benches, DIRECTIONS):
        cells = [("fitted", "fitted", "zero", None), *bench.plain(count)]
        for name, grid, end, plan in cells:
            if (bench.name, direction, str(count), name, grid, end) in done:
                continue
            try:
                found = bench.errors(direction, plan or bench.fitted(direction, count), end)
            except InputError as error:
                print(f"{bench.name} {direction} {count} {name}@{grid}: {error}", file=sys.stderr)
                continue
            values = (bench.name, direction, count, name, grid, end, COUNT, *(f"{value:.4g}" for value in found))
            lines.append(dict(zip(COLUMNS, map(str, values), strict=True)))
            write(lines)


def read() -> list[Line]:
    if not TABLE.exists():
        return []
    with open(TABLE, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(lines: Sequence[Line]) -> None:
    temporary = TABLE.with_suffix(".tmp")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    temporary.replace(TABLE)


def show() -> None:
    """The table: the fitted solver, the best plain row, and how many times larger its median is."""
    lines = read()
    print(f"{'model':<19} {'error':<7} {'steps':>5}  {'fitted':<24} {'best plain row':<50} {'times':>5}")
    for model in MODELS:
        for direction in DIRECTIONS:
            for steps in sorted({int(line["steps"]) for line in lines}):
                cell = [
                    it for it in lines if (it["model"], it["direction"], it["steps"]) == (model, direction, str(steps))
                ]
                own = [line for line in cell if line["solver"] == "fitted"]
                plain = sorted(
                    (line for line in cell if line["solver"] != "fitted"), key=lambda it: float(it["median"])
                )
                if own and plain:
                    print(_compared(own[0], plain[0]))


def _compared(own: Line, best: Line) -> str:
    """A line of the table."""
    what = {"decode": "image", "encode": "latent"}[own["direction"]]
    where = f"{best['solver']}@{best['grid']} to {best['end']}  {words(best)}"
    times = float(best["median"]) / float(own["median"])
    return f"{own['model']:<19} {what:<7} {own['steps']:>5}  {words(own):<24} {where:<50} {times:>5.1f}"


def words(line: Line) -> str:
    return f"{float(line['median']):.2g} ({float(line['p10']):.2g} to {float(line['p90']):.2g})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "show"))
    parser.add_argument("--kept", type=Path, default=Path("out/fit"), help="where plans and solutions are kept")
    parser.add_argument("--model", choices=MODELS, nargs="+", default=MODELS)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="compile the networks: 0.7 of the time on a CPU")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with torch.no_grad():
        measure(given.kept, given.model, given.steps, compiled=given.compile) if given.what == "measure" else show()
