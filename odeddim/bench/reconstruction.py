"""Reconstruction: encode images, decode them, and compare. DDIM's Table 2 for any solver and grid, with latent errors.

The error of the round trip is the rms over the pixels of an image in [-1, 1]. The error of the latent is the distance
to the ODE's true latent, rms per dimension divided by σ_T. The table has the medians over the images, and their spread
(`odeddim.bench.measures`). Both errors are needed, because a solver can return exactly from a wrong latent. The true
latent is that of the reference, a run with many steps; the difference from a run with half the steps is its error. If a
grid ends below σ_T, latents are compared at the σ where the grid ends. In the paper's setting (`odeddim.bench.paper`)
the table also has the values of the paper's Table 2, and the mean squared error, which the paper reports.

Labels: eq. 14 reversed evaluates ε(x, t) at the step's source, and so does every solver of odeddim. Other code that
inverts DDIM often takes x at the source, but the label t of the step's target. `labels` measures this for `euler` too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odeddim import solvers
from odeddim.api import decode, encode
from odeddim.bench.harness import Harness, Images, error_words, expected, failure_column, first_cells, hash_of
from odeddim.bench.measures import mean_square, quantile, spread, spread_columns
from odeddim.bench.paper import RECONSTRUCTION, TAU, check_setting
from odeddim.bench.tables import Column, Table, counted, telling
from odeddim.ode import grids
from odeddim.ode.field import VectorField
from odeddim.plans import Plan, check_encodes, integrate
from odeddim.storage.row_files import Columns
from odeddim.types import BudgetExceeded, InputError, State

LABELS = ("source", "target")
REFERENCE = ("ab4", "log", 200)
"""The solver, grid and steps of the reference."""

_COLUMNS = (
    Column("solver", "solver", form="s"),
    Column("grid", "grid", form="s"),
    Column("labels", "labels", "whether encoding takes the label t of the step's source or of its target", "s"),
    Column("steps", "steps", "empty: the solver chooses its steps"),
    Column("evaluations", "evals", "evaluations of the network per image and direction", "g"),
    *spread_columns("round_trip", "round trip", "rms over the pixels of an image in [-1, 1]"),
    *spread_columns("latent", "latent", "rms distance to the ODE's true latent, over σ_T or the σ where the grid ends"),
    Column("mean_square", "MSE", "mean squared error of the round trip on the [0, 1] scale, mean over images", ".2e"),
    Column("paper", "paper", "the mean squared error in DDIM's Table 2", ".4f"),
    Column("seconds", "seconds", "seconds in both directions, for all images", ".1f"),
    Column("remark", "remark", form="s"),
)


def reconstruction(
    harness: Harness,
    images: Images,
    count: int,
    runs: Sequence[Plan],
    *,
    end: str = "zero",
    labels: Sequence[str] = ("source",),
    source: Mapping[str, Any] | None = None,
    paper: bool = False,
) -> Table:
    """Encode and decode images by every run, and measure both errors.

    Args:
        harness: The harness that measures the model.
        images: The images, in the state's dtype and on the model's device.
        count: The number of images.
        runs: The plans.
        end: The end of the runs, "zero" or "sigma_min".
        labels: "source", "target" or both.
        source: What the table's settings state about the images.
        paper: Whether the model and the images are the paper's for CIFAR-10. A column then has the values of Table 2.

    Returns:
        The table.

    Raises:
        InputError: If a solver only decodes, or if `paper` is given and the setting is not the paper's.
    """
    if paper:
        check_setting("cifar10", harness.model, tuple(images(0, 1).shape[1:]), end)
    for run in runs:
        check_encodes(run.solver)
    sha256 = hash_of(images, count)
    truth = reference(harness, images, count, runs, end, sha256)

    def measured(run: Plan, where: str) -> Columns:
        def measure(start: int, stop: int) -> Columns:
            return round_trip(harness.model, images(start, stop), run, truth.at(run, start, stop), where)

        settings = harness.settings("reconstruction", run, images=sha256, labels=where)
        return harness.measure(settings, count, measure, evaluations=2 * expected(run))

    named = _with_labels(runs, labels)
    cells = harness.each([partial(measured, *each) for each in named])
    rows = [_row(*each, cell) for each, cell in zip(named, cells, strict=True)]
    several = any(row["labels"] != "source" for row in rows)
    without = {"mean_square", "paper"} if not paper else set()
    without |= set() if several else {"labels"}
    columns, shown = telling([column for column in _COLUMNS if column.name not in without], rows, ("remark",))
    return Table(
        bench="reconstruction",
        title=f"Reconstruction: {harness.model.title}, {counted(count, 'image')}, {harness.conventions(runs[0])}, "
        f"labels {' and '.join(dict.fromkeys(labels))}",
        settings={
            **harness.header(runs[0]), "images": count, **(source or {}), "images_sha256": sha256, "end": end,
            "round trip": "rms over the pixels of an image in [-1, 1]; nothing is clipped",
            "figures": "median over the images; 10 and 90 %: the values that one and nine images in ten do not exceed",
            "label convention": "source: eq. 14 reversed, ε(x_source, t_source); target: ε(x_source, t_target)",
            "reference": truth.words, "reference_error": truth.error,
        },
        columns=columns,
        rows=shown,
        notes=(f"true latent: {truth.words}; its error is at most {truth.error:.1e} for nine images in ten",),
        group=("solver", "grid", *(["labels"] if several else [])),
    )  # fmt: skip


def _with_labels(runs: Sequence[Plan], labels: Sequence[str]) -> list[tuple[Plan, str]]:
    """Return the runs with each label convention. The target's label is defined for DDIM's Euler step only."""
    if "target" in labels and not any(run.solver.ddim for run in runs):
        raise InputError("the target's label is defined only for DDIM's step: add the solver 'euler' to solvers=...")
    where = dict.fromkeys(labels)
    return [(run, name) for name in where for run in runs if name == "source" or run.solver.ddim]


def _row(run: Plan, where: str, cell: Columns) -> dict[str, Any]:
    failure = error_words(cell["failure"])
    residual = cell["residual"]
    lost = int((residual > 0).sum())
    remark = failure or (
        f"{counted(lost, 'image')} did not converge, residual up to {residual.max():.0e}" if lost else ""
    )
    as_there = run.solver.ddim and run.grid in TAU and where == "source"
    return {
        **first_cells(run),
        "labels": where,
        "evaluations": float(cell["evaluations"].mean()),
        **spread("round_trip", None if failure else 2 * np.sqrt(cell["round_trip"])),
        **spread("latent", None if failure else cell["latent"]),
        "mean_square": None if failure else float(cell["round_trip"].mean()),
        "paper": RECONSTRUCTION.get(run.steps or 0) if as_there else None,
        "seconds": float(cell["seconds"].sum()),
        "remark": remark,
    }


def round_trip(model: VectorField, x_0: Tensor, run: Plan, truth: Tensor, labels: str = "source") -> Columns:
    """Encode and decode a batch, and measure each image.

    Args:
        model: The model.
        x_0: The images (B, C, H, W) in [-1, 1].
        run: The plan.
        truth: The true latents x̄ (B, C, H, W) of the images at the top of the plan.
        labels: "source" or "target".

    Returns:
        The columns, (B,) each. `round_trip` is the mean square on the [0, 1] scale, as in the paper.
    """
    import time

    count, failure = len(x_0), ""
    up = model
    if labels == "target":
        following = {float(a): float(b) for a, b in itertools.pairwise(run.nodes)}
        up = model.relabelled(following.__getitem__)
    model.reset()
    up.reset()
    back, latent, residual = (torch.full((count,), value, dtype=torch.float64) for value in (math.nan, math.nan, 0.0))
    began = time.perf_counter()
    try:
        state = encode(x_0, model=up, plan=run)
        latent = mean_square(state.xbar.cpu() - truth.cpu()).sqrt() / state.sigma
        if "converged" in state.report:
            residual = torch.where(state.report["converged"], 0.0, state.report["residual"].double()).cpu()
        back = mean_square(decode(state, model=model, plan=run).cpu() - x_0.cpu()) / 4  # on [0, 1]
    except (InputError, BudgetExceeded) as error:  # the other rows are still useful
        failure = str(error)
    seconds = (time.perf_counter() - began) / count
    rows = model.rows if up is model else model.rows + up.rows
    return {
        "round_trip": back.cpu().numpy(),
        "latent": latent.cpu().numpy(),
        "residual": residual.numpy(),
        "evaluations": np.full(count, rows / (2 * count)),
        "seconds": np.full(count, seconds),
        "failure": failure_column(failure, count),
    }


class Truth:
    """The true latents of images at the tops of grids.

    Attributes:
        error: The error that nine latents in ten do not exceed, rms divided by σ.
        words: The reference in words.
    """

    def __init__(self, cell: Columns, tops: Sequence[float]) -> None:
        self._cell, self._tops = cell, {top: i for i, top in enumerate(tops)}
        self.error = max(quantile(cell[f"error/{i}"], 0.9) for i in range(len(tops)))
        name, grid, steps = REFERENCE
        self.words = f"{name} on the {grid} grid, {steps} steps"

    def at(self, run: Plan, start: int, stop: int) -> Tensor:
        """Return x̄ (B, C, H, W) of the images start, ..., stop-1 at the top of a run."""
        return torch.from_numpy(self._cell[f"latent/{self._tops[run.top]}"][start:stop])


def reference(
    harness: Harness,
    images: Images,
    count: int,
    runs: Sequence[Plan],
    end: str,
    sha256: str,
) -> Truth:
    """Return the true latents at the tops of the runs, with their errors: the differences from half the steps."""
    tops = sorted({run.top for run in runs} | {harness.model.schedule.sigma_max})
    name, grid, steps = REFERENCE
    fine = Plan.of(harness.model.schedule, name, steps, grid, end)

    def measure(start: int, stop: int) -> Columns:
        x_0 = images(start, stop)
        coarse, exact = (true_latents(harness.model, x_0, tops, end, part) for part in (steps // 2, steps))
        found: dict[str, Any] = {}
        for i, top in enumerate(tops):
            found[f"latent/{i}"] = exact[top].cpu().numpy()
            found[f"error/{i}"] = (mean_square(coarse[top] - exact[top]).sqrt() / top).cpu().numpy()
        return found

    settings = harness.settings("reference", fine, images=sha256, tops=tops)
    cell = harness.measure(
        settings, count, measure, evaluations=reference_evaluations(), at_once=harness.model.network_batch
    )
    return Truth(cell, tops)


def true_latents(model: VectorField, x_0: Tensor, tops: Sequence[float], end: str, steps: int) -> dict[float, Tensor]:
    """Encode images once by the reference solver, and return x̄ at each of the rising noise levels `tops`."""
    name, grid, _ = REFERENCE
    nodes = grids.grid(grid, model.schedule, steps, end=end)
    state, latents = State(x_0, float(nodes[0])), {}
    for top in tops:
        between = nodes[(nodes > state.sigma) & (nodes < top * (1 - 1e-9))]
        piece = nodes.new_tensor([state.sigma, *between.tolist(), top])
        state = integrate(model, state, Plan(solvers.get(name), piece))
        latents[top] = state.xbar
    return latents


def expected_evaluations(runs: Sequence[Plan], labels: Sequence[str]) -> int:
    """Return the evaluations for an image in the whole table, for a progress bar."""
    return reference_evaluations() + sum(2 * expected(run) for run, _ in _with_labels(runs, labels))


def reference_evaluations() -> int:
    """Return the evaluations for the true latent of an image, for a progress bar."""
    return REFERENCE[2] + REFERENCE[2] // 2
