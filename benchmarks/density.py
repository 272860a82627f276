"""What a log density costs and how far it is off, beside the usual way: RK45 with log p in its state, one probe.

    python benchmarks/density.py [--images FIRST:END] [--block N] [--table]

measures `fashion-mnist` on the test images FIRST, ..., END-1 of the package, which the model was not trained on, with a
draw of uniform dequantisation noise that all methods share, and prints a table. Each block of images is appended to
density.csv beside this file; images that are there are skipped. --table only prints.

The truth is `log_density` by 64 steps of ab3 with 4 probes, seed 1: its own
standard error is in the table, and its square is taken from that of the rms. A product
with the Jacobian counts as the evaluations that its backward pass takes in time, which is measured in the same run.

RK45 is the way of Song et al. 2021 (arXiv 2011.13456, appendix D.2): the probability flow ODE of the variance
preserving SDE with β from 0.1 to 20, scipy's RK45 over (x, log p) of the whole block with one tolerance, and one probe
an image for the whole path. Written here from the paper.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import odeddim
from odeddim.checks.dequantisation import Dequantisation
from odeddim.checks.divergence import signs

MODEL = "fashion-mnist"
RUNS = [("ab3", 20, 2), ("ab3", 24, 1), ("ab3", 24, 2), ("ab3", 24, 4), ("unipc-2", 24, 2)]
TOLERANCES = (1e-3, 1e-5)
TRUTH = {"steps": 64, "probes": 4, "seed": 1}
CSV = Path(__file__).with_suffix(".csv")
COLUMNS = ("image", "method", "bits", "error", "evaluations", "products", "product")
GOAL = 0.01


def held_out(images: list[int]) -> Tensor:
    """The test images of these numbers: (B, 1, 28, 28) in [-1, 1]."""
    with np.load(Path(odeddim.__file__).parent / "data" / "fashion-mnist-reference.npz") as file:
        return torch.from_numpy(file["images"][images]).float()[:, None] / 127.5 - 1


def seconds(function: Any, repeats: int = 5) -> float:
    """The fastest of some calls, which other work on the machine disturbs least."""
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        function()
        taken.append(time.perf_counter() - begun)
    return min(taken)


def price(field: odeddim.VectorField, x: Tensor) -> float:
    """What a product costs, in evaluations: the time of a backward pass over that of an evaluation."""
    sigma, point, v = torch.tensor(1.0, dtype=torch.float64), x.clone().requires_grad_(), torch.ones_like(x)
    out = field(sigma, point)

    def evaluation() -> None:
        with torch.no_grad():
            field(sigma, x)

    def product() -> None:
        torch.autograd.grad(out, point, v, retain_graph=True)

    return seconds(product) / seconds(evaluation)


def usual(field: odeddim.VectorField, x_1: Tensor, tolerance: float, start: int) -> tuple[Tensor, int]:
    """Bits per dimension, (B,), and the number of evaluations, each with a product, as score_sde finds them."""
    low, high = field.schedule.sigma_min, field.schedule.sigma_max
    shape, size = x_1.shape, x_1[0].numel()
    v = signs(len(x_1), shape[1:], key=(0,), start=start)

    def place(sigma: float) -> float:  # where ∫β = 0.1·s + 9.95·s² is log(1+σ²)
        return (math.sqrt(0.01 + 4 * 9.95 * math.log1p(sigma**2)) - 0.1) / (2 * 9.95)

    def slope(s: float, state: Any) -> Any:
        beta, sigma = 0.1 + 19.9 * s, math.sqrt(math.expm1(0.1 * s + 9.95 * s * s))
        scale = math.sqrt(1 + sigma**2)
        x = torch.from_numpy(state[: -len(v)].reshape(shape)).float()
        point = (x * scale).requires_grad_()
        eps = field(torch.tensor(sigma, dtype=torch.float64), point)
        (product,) = torch.autograd.grad(eps, point, v)
        trace = (product * v).flatten(1).double().sum(1)
        noise = beta / 2 * scale / sigma
        drift = -beta / 2 * x + noise * eps.detach()
        return np.concatenate([drift.double().flatten().numpy(), (noise * scale * trace - beta / 2 * size).numpy()])

    begin = np.concatenate([(x_1.double() / math.sqrt(1 + low**2)).flatten().numpy(), np.zeros(len(x_1))])
    run = solve_ivp(slope, (place(low), place(high)), begin, rtol=tolerance, atol=tolerance, method="RK45")
    x_T, volume = run.y[: -len(v), -1].reshape(len(v), -1), run.y[-len(v) :, -1]
    nats = -size / 2 * math.log(2 * math.pi) - (x_T**2).sum(1) / 2 + volume - size / 2 * math.log(1 + low**2)
    return torch.from_numpy(-nats / size / math.log(2)), run.nfev


def measure(field: odeddim.VectorField, images: list[int]) -> Iterator[dict[str, Any]]:
    """A row for each image and method."""
    noise = Dequantisation("uniform", 8, field.schedule.sigma_min)
    x = held_out(images)
    x = x + noise.noise(len(x), x.shape[1:], seed=0, start=images[0], draw=0).float()
    share = price(field, x)

    def rows(method: str, bits: Tensor, error: Tensor, evaluations: float, products: float) -> Iterator[dict[str, Any]]:
        for i, its, off in zip(images, bits.tolist(), error.tolist(), strict=True):
            known = {"evaluations": evaluations, "products": products, "product": round(share, 3)}
            yield {"image": i, "method": method, "bits": its, "error": off, **known}

    for solver, steps, probes in RUNS:
        found = odeddim.log_density(
            x, solver, model=field, steps=steps, probes=probes, dequantise="none", start=images[0]
        )
        name = f"{solver}, {steps} steps, {probes} probe{'s' if probes > 1 else ''}"
        yield from rows(name, found.bits_per_dim, found.standard_error, found.evaluations, found.products)
    for tolerance in TOLERANCES:
        bits, count = usual(field, x, tolerance, images[0])
        yield from rows(f"RK45, {tolerance:g}, 1 probe", bits, torch.full((len(x),), math.nan), count, count)
    found = odeddim.log_density(x, model=field, dequantise="none", start=images[0], **TRUTH)  # type: ignore[arg-type]
    yield from rows("truth", found.bits_per_dim, found.standard_error, found.evaluations, found.products)


def rows_of(path: Path) -> list[dict[str, str]]:
    """What has been measured so far."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table(rows: list[dict[str, str]]) -> str:
    """Markdown: of each method what it takes, and its errors against the truth."""
    truth = {row["image"]: float(row["bits"]) for row in rows if row["method"] == "truth"}
    share = float(np.median([float(row["product"]) for row in rows]))
    known_to = math.sqrt(np.mean([float(row["error"]) ** 2 for row in rows if row["method"] == "truth"]))
    lines = [
        "| method | evaluations | products | cost in evaluations | error, rms | median (10-90%) | reported, median "
        f"| within 1.96 reported | cost to ±{GOAL} |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        its = [row for row in rows if row["method"] == method]
        off = np.array([float(row["bits"]) - truth[row["image"]] for row in its])
        said = np.array([float(row["error"]) for row in its])
        evaluations, products = (np.mean([float(row[name]) for row in its]) for name in ("evaluations", "products"))
        cost = evaluations + share * products
        if method == "truth":
            lines.append(
                f"| {method} | {evaluations:.0f} | {products:.0f} | {cost:.0f} | | | {np.median(said):.4f} | | |"
            )
            continue
        size, rms = np.abs(off), math.sqrt(max((off**2).mean() - known_to**2, 0))
        spread = f"{np.median(size):.4f} ({np.quantile(size, 0.1):.4f}-{np.quantile(size, 0.9):.4f})"
        known = not np.isnan(said).any()
        told = f"{np.median(said):.4f} | {(size <= 1.96 * said).mean():.0%}" if known else "none |"
        runs = max(1.0, (rms / GOAL) ** 2)  # of independent probes; what the solver does wrong they do not mend
        spent = f"{evaluations:.0f} | {products:.0f} | {cost:.0f}"
        lines.append(f"| {method} | {spent} | {rms:.4f} | {spread} | {told} | {cost * runs:.0f} |")
    bits = np.array(list(truth.values()))
    mean = f"mean {bits.mean():.3f} ± {bits.std(ddof=1) / math.sqrt(len(bits)):.3f} bits/dim of continuous data"
    return "\n".join([*lines, "", f"{len(truth)} images, {mean}; a product takes {share:.2f} evaluations"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="1600:1664")
    parser.add_argument("--block", type=int, default=8)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    first, end = map(int, given.images.split(":"))
    if not given.table:
        field = odeddim.load(MODEL)
        there = {int(row["image"]) for row in rows_of(CSV)}
        for start in range(first, end, given.block):
            images = list(range(start, min(start + given.block, end)))
            if there >= set(images):
                continue
            made = list(measure(field, images))
            new = not CSV.exists()
            with CSV.open("a", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                if new:
                    writer.writeheader()
                writer.writerows(made)
    print(table(rows_of(CSV)))


if __name__ == "__main__":
    main()
