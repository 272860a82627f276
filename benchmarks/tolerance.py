"""How well `odeddim decode --tol` keeps its tolerance, on 64 noises that nothing was chosen by.

    python benchmarks/tolerance.py [-o FILE]    # some minutes a model on one core

Each image is decoded to 1e-2 and 1e-3 by the default solver, and compared with the reference of benchmarks/defaults.py
(the classical Runge-Kutta method in log σ, 200 steps). Printed: the share of images whose true error is at most the
tolerance, the error over the tolerance of nine images in ten and of the worst one, and the steps taken.
"""

from __future__ import annotations

import argparse
import math
import os
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from defaults import AT_ONCE, MODELS, images, reference

import odeddim
from odeddim import defaults
from odeddim.checks.certificate import decode_to, rungs_of
from odeddim.latents.arithmetic import rms
from odeddim.types import State

SEED, FIRST, COUNT = 23, 200, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--keep", type=Path, default=Path("runs"), help="where the reference is kept  [runs]")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for model in given.models:
        field = odeddim.load(model)
        x_T = odeddim.noise(COUNT, (1, 28, 28), seed=SEED)
        kept = given.keep / f"reference-tolerance-{model}.pt"
        truth = reference(field, images(FIRST, COUNT), x_T, kept)["decoded"]
        rungs = rungs_of(field.schedule, defaults.TOLERANCE, None, None, "zero", {})
        top = rungs[max(rungs)].top
        for tolerance in (1e-2, 1e-3):
            errors, steps = [], Counter[int]()
            for at in range(0, COUNT, AT_ONCE):
                state = State(x_T[at : at + AT_ONCE] * math.sqrt(1 + top**2), top)
                found, taken, _ = decode_to(tolerance, state, rungs, field)
                errors.append(rms(found.double() - truth[at : at + AT_ONCE]))
                steps.update(taken.tolist())
            ratio = torch.cat(errors) / tolerance
            share, nine, worst = float((ratio <= 1).double().mean()), float(ratio.quantile(0.9)), float(ratio.max())
            told = ", ".join(f"{count} steps for {images}" for count, images in sorted(steps.items()))
            print(
                f"{model}, {tolerance:g}: {share:.0%} of {COUNT} keep it; nine in ten are within {nine:.2f} of it, the "
                f"worst {worst:.2f}; {told}",
                flush=True,
            )


if __name__ == "__main__":
    main()
