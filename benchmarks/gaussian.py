"""What the Gaussian of the data gains at few evaluations: errors with top="gaussian" and without, row by row.

    python benchmarks/gaussian.py measure [--model NAME] [--evaluations 5,8,10] [--compile]  # goes on where it stopped
    python benchmarks/gaussian.py show

Decoding starts from 64 noises, encoding from the first 64 of the 2,048 test images of Fashion-MNIST in the package. The
Gaussians in the package, and the σ_s that they choose, were found on neither: on the 256 sample images, which are other
test images, and on noises of another seed. The truth is a run of unipc-2 over 100 steps in log σ. Images lie at σ_1.
Errors are medians over the 64: rms over pixels in [-1, 1] of images, rms over σ_T of latents.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import Tensor

import odeddim
from odeddim import solvers
from odeddim.ode.field import VectorField
from odeddim.plans import Plan, integrate
from odeddim.storage.atomic import replacing
from odeddim.types import State

MODELS = ("fashion-mnist", "fashion-mnist-flow")
PLAIN = ("ab2", "ab3", "dpmpp-2m", "dpmpp-3m", "ipndm", "unipc-2")
GAUSS = ("gauss-ab2", "gauss-ab3", "gauss-ab3 lower")
GRIDS = ("log", "karras")
EVALUATIONS = (5, 8, 10, 3, 6, 15, 20, 50)
COUNT, SEED = 64, 202
FINE, FINE_STEPS = "unipc-2", 100
OUT = Path("out/gaussian")
KEPT = Path(__file__).resolve().parent / "gaussian.json"


@dataclass(frozen=True)
class Truth:
    """Starts and ends of the ODE: noises and their images, images and their latents, x̄ (64, *) each."""

    noise: Tensor
    decoded: Tensor
    images: Tensor
    latents: Tensor


def truth(name: str, field: VectorField) -> Truth:
    """The ends by a fine run, kept in out/gaussian/."""
    path = OUT / f"{name}.pt"
    if not path.exists():
        low, high = field.schedule.sigma_min, field.schedule.sigma_max
        fine = Plan.of(field.schedule, FINE, FINE_STEPS, "log", "sigma_min")
        with np.load(Path(odeddim.__file__).parent / "data" / "fashion-mnist-reference.npz") as file:
            images = torch.from_numpy(file["images"][:COUNT]).float()[:, None] / 127.5 - 1
        noise = odeddim.noise(COUNT, tuple(images.shape[1:]), seed=SEED) * math.hypot(1, high)
        ends = [integrate(field, State(*start), fine).xbar for start in ((noise, high), (images, low))]
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            torch.save([noise, ends[0], images, ends[1]], temporary)
    return Truth(*torch.load(path, weights_only=True))


def plan_of(field: VectorField, row: str, grid: str, count: int, top: str) -> Plan | None:
    """The plan of a row with so many evaluations; None where there are too few for it."""
    name, _, start = row.partition(" ")
    solver = solvers.get(name, **({"warmup": start} if start else {}))
    steps = count - (0 if start else sum(solver.warmup))
    if steps < 1:
        return None
    return Plan.of(field.schedule, solver, steps, grid, "sigma_min", top=top, moments=field.moments)


def measure(names: list[str], counts: list[int], *, compiled: bool = False) -> None:
    """Measure what is not measured yet."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for count in counts:
        for name in names:
            field = odeddim.load(name, compile=compiled)
            ends, high = truth(name, field), field.schedule.sigma_max
            for row in (*PLAIN, *GAUSS):
                for grid in GRIDS:
                    for top in ("model", "gaussian"):
                        key = f"{name} {count} {row} {grid} {top}".replace(" lower", ",lower")
                        plan = plan_of(field, row, grid, count, top)
                        if key in kept or plan is None or (top == "gaussian" and not plan.carried):
                            continue
                        down = integrate(field, State(ends.noise, high), plan).xbar - ends.decoded
                        up = integrate(field, State(ends.images, float(plan.nodes[0])), plan).xbar - ends.latents
                        sigma = plan.solved.top if plan.carried else None
                        kept[key] = {"sigma": sigma, "decode": _quartiles(down), "encode": _quartiles(up / high)}
                        with replacing(KEPT) as temporary:
                            temporary.write_text(json.dumps(kept, indent=0) + "\n")
            print(f"{name}: {count} evaluations measured", flush=True)


def _quartiles(apart: Tensor) -> list[float]:
    """The first quartile, the median and the third of the rms of each image."""
    each = apart.flatten(1).double().square().mean(1).sqrt()
    return [round(float(each.quantile(part)), 6) for part in (0.25, 0.5, 0.75)]


def show(names: list[str]) -> None:
    """Print the tables."""
    kept = json.loads(KEPT.read_text())
    for name in names:
        for way in ("decode", "encode"):
            print(f"{name}, {way}: median (quartiles) of the best row without and with the Gaussian's top")
            print(f"{'evals':>5}  {'σ_s':>6}  {'plain':<42}{'top':<42}{'gain':>5}  same row, worst gain")
            for count in sorted(EVALUATIONS):
                _line(kept, name, way, count)
            print()


def _line(kept: dict[str, dict[str, list[float]]], name: str, way: str, count: int) -> None:
    rows: dict[str, dict[tuple[str, str], list[float]]] = {"model": {}, "gaussian": {}}
    sigmas = set()
    for key, figures in kept.items():
        model, its, row, grid, top = key.split(" ")
        if model == name and int(its) == count and (top == "gaussian" or row in PLAIN):
            rows[top][row, grid] = figures[way]
            sigmas |= {figures["sigma"]} - {None}
    if not rows["model"]:
        return
    best = {top: min(found.items(), key=lambda it: it[1][1]) for top, found in rows.items() if found}
    words = {top: f"{row[0]} {row[1]} {b:.3f} ({a:.3f} to {c:.3f})" for top, (row, (a, b, c)) in best.items()}
    if "gaussian" not in best:
        print(f"{count:>5}  {'-':>6}  {words['model']:<42}{'none: as without':<42}{1:>5.2f}")
        return
    gain = best["model"][1][1] / best["gaussian"][1][1]
    own = min(rows["model"][key][1] / rows["gaussian"][key][1] for key in rows["gaussian"] if key in rows["model"])
    low = min(float(sigma) for sigma in sigmas)  # type: ignore[arg-type]
    print(f"{count:>5}  {low:>6.3g}  {words['model']:<42}{words['gaussian']:<42}{gain:>5.2f}  {own:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["measure", "show"])
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--evaluations", default=",".join(map(str, EVALUATIONS)))
    parser.add_argument("--compile", action="store_true", help="compile the networks: 0.7 of the time on a CPU")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        if given.task == "measure":
            counts = [int(count) for count in given.evaluations.split(",")]
            measure(given.model or list(MODELS), counts, compiled=given.compile)
        else:
            show(given.model or list(MODELS))


if __name__ == "__main__":
    main()
