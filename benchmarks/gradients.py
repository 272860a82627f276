"""What gradients cost, and how far they hold, on the built-in model.

    python benchmarks/gradients.py cost      # minutes: time and memory of each way
    python benchmarks/gradients.py trust     # half an hour: the sensitivity of 64 decodes, and how far they are linear

Times are CPU times of a run with its backward pass over that of "direct" right after it, medians of 7 pairs. Memory is
the most that a process holds, less what it held before its first run: three of 10 steps, and one of the steps named.
"""

from __future__ import annotations

import odeddim  # isort: skip  # before torch: its waiting threads then sleep

import argparse
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor

SOLVERS = ("belm", "edict", "mf-heun", "unipc-2", "heun")
NOISES, BATCH, SEED, STEPS = 64, 4, 20, 10
RADII = (0.1, 0.3, 1.0, 3.0)
PEAK = """
import odeddim, re, sys, torch
torch.set_num_threads(1)
solver, way, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
def most():
    # Not getrusage, which a process inherits from the one that began it.
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
def run(steps):
    x_T = odeddim.noise(1, (1, 28, 28), seed=1).requires_grad_()
    odeddim.solve(x_T, solver, steps=steps, gradients=way).square().sum().backward()
with torch.no_grad():
    odeddim.solve(odeddim.noise(1, (1, 28, 28)), solver, steps=2)
before = most()
for _ in range(3):  # until the gaps of the process's memory are found
    run(10)
run(steps)
print(most() - before)
"""


def seconds(solver: str, way: str, seed: int) -> float:
    """CPU time of a run of 10 steps over 2 images with its backward pass, in x_T alone."""
    x_T = odeddim.noise(2, (1, 28, 28), seed=seed).requires_grad_()
    start = time.process_time()
    odeddim.solve(x_T, solver, steps=STEPS, gradients=way).square().sum().backward()  # type: ignore[arg-type]
    return time.process_time() - start


def ratio(solver: str, way: str, times: int = 7) -> float:
    """The time of this way over that of "direct": the median of pairs, one right after the other."""
    pairs = [(seconds(solver, way, n), seconds(solver, "direct", n)) for n in range(times + 1)]
    return statistics.median(one / other for one, other in pairs[1:])


def peak(solver: str, way: str, steps: int) -> float:
    """MiB that a run of one image with its backward pass takes, in a process of its own."""
    command = [sys.executable, "-c", PEAK, solver, way, str(steps)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def cost() -> None:
    """Time and memory of each way."""
    print(f"{'solver':10} {'way':12} {'time / direct':>14} {'MiB, 10 steps':>14} {'200 steps':>10}")
    for solver in SOLVERS:
        row = odeddim.solvers.get(solver)
        for way in (row.gradients[0], "direct"):
            times = 1.0 if way == "direct" else ratio(solver, way)
            many = "-" if way == "direct" else f"{peak(solver, way, 200):.0f}"
            print(f"{solver:10} {way:12} {times:14.2f} {peak(solver, way, STEPS):14.0f} {many:>10}", flush=True)


def norms(images: Tensor) -> Tensor:
    return images.flatten(1).norm(dim=1)


def trust() -> None:
    """The largest singular values, and how wrong the linear map is at some distance: in that direction, and in any."""
    values, off = [], {radius: ([], []) for radius in RADII}
    for first in range(0, NOISES, BATCH):
        x_T = odeddim.noise(BATCH, (1, 28, 28), seed=SEED, start=first)
        found = odeddim.sensitivity(x_T, steps=STEPS, iterations=4)
        values.append(found.values)
        anyhow = odeddim.noise(BATCH, (1, 28, 28), seed=SEED + 1, start=first)
        anyhow /= norms(anyhow).reshape(-1, 1, 1, 1)
        with torch.no_grad():
            image = odeddim.solve(x_T, steps=STEPS)
            for which, way in enumerate((found.directions, anyhow)):
                near = (odeddim.solve(x_T + 1e-2 * way, steps=STEPS) - image) / 1e-2
                for radius in RADII:
                    change = odeddim.solve(x_T + radius * way, steps=STEPS) - image
                    off[radius][which].append(norms(change - radius * near) / norms(change))
    shown = torch.cat(values)
    words = ", ".join(f"{float(shown.quantile(part)):.3g}" for part in (0.1, 0.5, 0.9))
    print(f"largest singular value of {NOISES} decodes (unipc-2, {STEPS} steps): 10%, median, 90%: {words}")
    print(f"{'change of x_T':>14} {'off, along it':>24} {'off, in any direction':>24}")
    for radius in RADII:
        cells = []
        for parts in off[radius]:
            low, middle, high = (float(torch.cat(parts).quantile(part)) for part in (0.1, 0.5, 0.9))
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        print(f"{radius:14g} {cells[0]:>24} {cells[1]:>24}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["cost", "trust"])
    {"cost": cost, "trust": trust}[parser.parse_args().what]()
