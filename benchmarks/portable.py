"""Portable runs of the built-in model: over what their bits are the same, what is certified, and what they cost.

    python benchmarks/portable.py                       # 1,000 images: hours on one core
    python benchmarks/portable.py -n 16 --steps 10      # minutes
    python benchmarks/portable.py --solvers belm        # one of the two
    python benchmarks/portable.py --keep bits.npz       # and in an environment with another PyTorch, or elsewhere:
    python benchmarks/portable.py --against bits.npz

The last two make the portable latents once, and print nothing else than what differs.

For each solver the images are encoded with threads 1 and 2, network batches 1, 7 and 64, and oneDNN on and off; the
first of these, decoded, is compared with its images. `differ` counts images whose bits are not those of the first run,
for the portable run and for the same run in float64; `unnamed` those among the portable ones that were certified, of
which there must be none: the exit code is 1 if there is one. `margin` is the least of all (at least 1: all certified).
`off` is the distance (rms of x_T) to float64, of the portable run and of float32. `time` is CPU time over that of
float32, in turns, in one run.
"""

from __future__ import annotations

import odeddim  # isort: skip  # before torch: its waiting threads then sleep

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from odeddim.storage.images import open_images
from odeddim.types import State

SOLVERS = ("unipc-2", "belm")
MACHINES = ((1, 7, True), (1, 1, True), (1, 64, True), (2, 7, True), (1, 7, False), (2, 64, False))
"""Threads, network batch, oneDNN."""
BLOCK = 64


def same(a: State, b: State) -> torch.Tensor:
    """Which images have the same bits, (B,) bool."""
    parts = zip((a.xbar, *a.aux), (b.xbar, *b.aux), strict=True)
    return torch.stack([(x == y).flatten(1).all(1) for x, y in parts]).all(0)


def timed(run: Callable[[], State], spent: dict[str, float], name: str) -> State:
    """The result of a run, whose CPU time is added to that of its kind."""
    began = time.process_time()
    end = run()
    spent[name] = spent.get(name, 0.0) + time.process_time() - began
    return end


def measure(solver: str, images: torch.Tensor, steps: int) -> bool:
    """Print the figures of a solver. Whether nothing went unnoticed."""
    double, single = odeddim.load("fashion-mnist", dtype="float64"), odeddim.load("fashion-mnist")
    spent: dict[str, float] = {}
    ends, differ, plain, unnamed, off, returned = [], 0, 0, 0, [0.0, 0.0], 0

    def encode(x_0: torch.Tensor, model: odeddim.VectorField, portable: bool = False) -> State:
        return odeddim.encode(x_0, solver, model=model, steps=steps, portable=portable)

    for begin in range(0, len(images), BLOCK):
        x_0 = images[begin : begin + BLOCK].double()
        first: list[State] = []
        for threads, batch, onednn in MACHINES:
            torch.set_num_threads(threads)
            double.network_batch = single.network_batch = batch
            with torch.backends.mkldnn.flags(enabled=onednn):
                if first:
                    found = encode(x_0, double, portable=True)
                    other = ~same(found, first[0])
                    differ += int(other.sum())
                    unnamed += int((other & (first[0].report["margin"] >= 1)).sum())
                    plain += int((~same(encode(x_0, double), first[1])).sum())
                    continue
                if begin == 0:
                    encode(x_0, double, portable=True)  # finds how much other machines' answers may differ
                made = timed(lambda x=x_0: encode(x.float(), single), spent, "float32")  # type: ignore[misc]
                first.append(timed(lambda x=x_0: encode(x, double, portable=True), spent, "portable"))  # type: ignore[misc]
                first.append(timed(lambda x=x_0: encode(x, double), spent, "float64"))  # type: ignore[misc]
                returned += int((odeddim.decode(first[0], model=double) == x_0).flatten(1).all(1).sum())
        ends.append(first[0])
        for i, end in enumerate((first[0], made)):
            off[i] += float((end.x.double() - first[1].x).square().sum())
    torch.set_num_threads(1)
    margin = torch.cat([end.report["margin"] for end in ends])
    rms = [(total / images.numel()) ** 0.5 for total in off]
    runs = len(images) * (len(MACHINES) - 1)
    print(
        f"{solver}, {steps} steps, {len(images)} images: differ {differ} of {runs} (float64: {plain}), "
        f"unnamed {unnamed}, certified {int((margin >= 1).sum())}, margin {float(margin.min()):.3g}, "
        f"returned bit for bit {returned}\n  off {rms[0]:.2g} (float32: {rms[1]:.2g}), "
        f"time {spent['portable'] / spent['float32']:.2f} (float64: {spent['float64'] / spent['float32']:.2f})"
    )
    return unnamed == 0


def encoded(solver: str, images: torch.Tensor, steps: int) -> State:
    """The portable latents of the first machine, with their margins."""
    double, ends = odeddim.load("fashion-mnist", dtype="float64"), []
    double.network_batch = MACHINES[0][1]
    for x_0 in images.double().split(BLOCK):
        ends.append(odeddim.encode(x_0, solver, model=double, steps=steps, portable=True))
    margin = torch.cat([end.report["margin"] for end in ends])
    return State(torch.cat([end.xbar for end in ends]), ends[0].sigma, report={"margin": margin})


def main() -> int:
    """Measure the solvers, or keep or compare their latents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=1000, help="images; those beyond 256 are samples")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--solvers", nargs="+", default=SOLVERS, choices=SOLVERS)
    parser.add_argument("--keep", type=Path, help="where to keep the portable latents")
    parser.add_argument("--against", type=Path, help="what --keep has kept elsewhere")
    said = parser.parse_args()
    warnings.filterwarnings("ignore", "TF32 acceleration")
    torch.set_num_threads(1)
    sample = open_images()
    images, more = sample[0 : min(said.n, len(sample))], said.n - len(sample)
    if more > 0:
        made = odeddim.sample(more, steps=10, portable=True, batch_size=BLOCK)
        images = torch.cat([images, made.clamp(-1, 1).to(images.dtype)])
    print(f"PyTorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    kept, well = {}, True
    for solver in said.solvers:
        if not (said.keep or said.against):
            well &= measure(solver, images, said.steps)
            continue
        latents = encoded(solver, images, said.steps)
        kept[solver], kept[f"{solver} margin"] = latents.xbar.numpy(), latents.report["margin"].numpy()
    if said.keep:
        np.savez(said.keep, **kept)
    if said.against:
        with np.load(said.against) as there:
            for solver in said.solvers:
                other = (there[solver] != kept[solver]).reshape(len(images), -1).any(1)
                sure = there[f"{solver} margin"] >= 1
                print(f"{solver}: {other.sum()} of {len(other)} images differ from {said.against}, "
                      f"{(other & sure).sum()} of them certified")  # fmt: skip
                well &= not (other & sure).any()
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
