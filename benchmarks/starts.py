"""What encodings that begin with noise (`--start forward:K`) do to the latents, and to the images that come back.

    python benchmarks/starts.py [MODEL ...]    # about four minutes of CPU a model

64 held-out images, 20 steps. Printed as medians and, in brackets, 10 to 90% of the images: Moran's I of the latent, the
correlation of direct neighbours, which is 0 ± 0.026 for white noise; the rms over pixels of the decoded images minus
the images. "white" is the part of the latents whose p-value of the test of normality is above 0.01. σ_K is where the
solver goes on.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from defaults import AT_ONCE, MODELS, images
from torch import Tensor

import odeddim
from odeddim.checks.whiteness import statistics
from odeddim.latents.arithmetic import rms

FIRST, COUNT, STEPS = 400, 64, 20
RUNS = (("euler", "linear", (0, 1, 2)), ("unipc-2", "log", (0, 6, 8)))


def spread(values: Tensor) -> str:
    """The median, and 10 to 90%."""
    low, middle, high = values.double().quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    given = parser.parse_args()
    torch.set_num_threads(1)
    x_0 = images(FIRST, COUNT)
    print(f"{'run':<42} {'σ_K':>6}  {'correlation of neighbours':<26} {'white':>5}  round trip")
    for model in given.models:
        field = odeddim.load(model)
        for solver, grid, starts in RUNS:
            for k in starts:
                start = f"forward:{k}" if k else None
                run = {"model": field, "steps": STEPS, "grid": grid, "batch_size": AT_ONCE}
                with torch.no_grad():
                    state = odeddim.encode(x_0, solver, start=start, **run)
                    back = odeddim.decode(state, batch_size=AT_ONCE, model=field)
                figures = statistics(state.x)
                white = float((figures["normality"] > 0.01).double().mean())
                name = f"{model}, {solver}@{grid}{f', {start}' if start else ''}"
                sigma = float(state.plan.nodes[k])
                correlation, error = spread(figures["autocorrelation"]), spread(rms(back.double() - x_0))
                print(f"{name:<42} {sigma:>6.3f}  {correlation:<26} {white:>5.0%}  {error}", flush=True)


if __name__ == "__main__":
    main()
