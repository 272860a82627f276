"""Runs in parallel in time on the built-in model: rounds, evaluations, and how far off the sequential run's result is.

    python benchmarks/parallel.py      # a quarter of an hour on one core; the network is compiled

Decoding is of 16 noises, encoding of 16 of the sample images. The window is as long as the run, or the one that is
named. `Gaussian` says whether the first guess follows the Gaussian of the model's data: the one beside the model, or
where it has none, that of 256 of its own samples. `off` is the distance to the result of the sequential run (rms; of
latents over σ_T). Medians, and the smallest and the largest. `time` is CPU time over that of the sequential run: what
a device that is faster with many images gains is not seen here.
"""

from __future__ import annotations

import odeddim  # isort: skip  # before torch: its waiting threads then sleep

import math
import time

import torch
from torch import Tensor

from odeddim.ode.gaussian import Gaussian

COUNT, SEED, FIRST = 16, 31, 240
RUNS = (  # solver, grid, steps, window, whether the model's Gaussian is used
    ("euler", "linear", 50, 50, True),
    ("euler", "log", 50, 50, True),
    ("euler", "log", 50, 50, False),
    ("euler", "log", 50, 16, True),
    ("dpmpp-2m", "log", 20, 20, True),
    ("unipc-2", "log", 20, 20, True),
)


def spread(values: Tensor, form: str) -> str:
    """The median, the smallest and the largest."""
    middle, low, high = float(values.double().median()), float(values.min()), float(values.max())
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def begin(plan: odeddim.Plan, direction: str) -> odeddim.State:
    if direction == "encode":
        return odeddim.State(torch.as_tensor(odeddim.open_images()[FIRST : FIRST + COUNT]), float(plan.nodes[0]))
    return odeddim.State(odeddim.noise(COUNT, (1, 28, 28), seed=SEED) * math.hypot(1, plan.top), plan.top)


@torch.no_grad()
def main() -> None:
    """Print the table."""
    field = odeddim.load(compile=True)
    field.network_batch = 8
    moments = field.moments or Gaussian.of(odeddim.sample(256, model=field, steps=20, seed=900, batch_size=64))
    print(
        f"{'run':24} {'':6} {'window':>6} {'Gaussian':8} {'tolerance':>9} {'rounds':>16} {'evaluations':>16} "
        f"{'off':>28} {'time':>5}"
    )
    for solver, grid, steps, window, follows in RUNS:
        plan = odeddim.plan(field, solver, steps=steps, grid=grid)
        field.moments = moments if follows else None
        for direction in ("decode", "encode"):
            started = time.process_time()
            right = odeddim.integrate(field, begin(plan, direction), plan)
            usual = time.process_time() - started
            for tolerance in (1e-2, 1e-3):
                started = time.process_time()
                found = odeddim.integrate(field, begin(plan, direction), odeddim.Parallel(window, tolerance).on(plan))
                ratio = (time.process_time() - started) / usual
                off = (found.xbar - right.xbar).flatten(1).square().mean(1).sqrt() / math.hypot(1, right.sigma)
                print(
                    f"{f'{solver}, {grid}, {steps} steps':24} {direction} {window:6} {'yes' if follows else 'no':8} "
                    f"{tolerance:9g} {spread(found.report['rounds'], '.0f'):>16} "
                    f"{spread(found.report['evaluations'], '.0f'):>16} {spread(off, '.1e'):>28} {ratio:5.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
