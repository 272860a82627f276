"""Work and precision: the error of a run against its evaluations and its seconds.

No images are needed. The reference, a run with many steps, decodes noise x_T and encodes the resulting images. Its
images and latents are the solutions that other runs are compared with. The difference from a run with half the steps is
the error of the solutions, and the floor of the figures. The error of decoding is the rms distance to the reference's
image, per pixel in [-1, 1]. The error of encoding is the rms distance to the reference's latent, divided by σ_T. The
table has the medians over the images, and their spread (`odeddim.bench.measures`). All runs end as the reference does
(`odeddim.ode.grids`), and take the same step at σ = 0.

`odeddim.bench.cheapest` answers the reverse question: how many steps does each solver need to keep an error both ways?
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odeddim import solvers
from odeddim.api import noise
from odeddim.bench.harness import (
    Entry,
    Harness,
    check_settings,
    error_words,
    expected,
    failure_column,
    first_cells,
    planned,
)
from odeddim.bench.measures import mean_square, quantile, spread, spread_columns
from odeddim.bench.tables import Column, Table, counted, telling
from odeddim.bench.timing import described, now
from odeddim.ode.field import VectorField
from odeddim.plans import Plan, check_encodes, integrate
from odeddim.storage.row_files import Columns
from odeddim.types import BudgetExceeded, InputError, Solver, State

REFERENCE = ("ab4", "log", 800)
COARSEST, FINEST = 400, 6400  # the fewest and the most steps of the solutions for `find`
ABOVE = 3.0  # times the floor: smaller errors do not show an order

_RUN = (
    Column("solver", "solver", form="s"),
    Column("grid", "grid", form="s"),
    Column("steps", "steps"),
    Column("tolerance", "tolerance", "rtol and atol of solvers that choose their own steps", ".0e"),
)
_BOTH = (
    Column("decode_evaluations", "dec evals", "evaluations of the network per image, to decode", "g"),
    *spread_columns("decode_error", "decoded", "rms distance to the ODE's image, pixels in [-1, 1]"),
    Column(
        "decode_order", "dec order", "observed order: how the median falls with evaluations, from the row above", ".1f"
    ),
    Column("decode_seconds", "dec s", "seconds per image, to decode", ".3f"),
    Column("encode_evaluations", "enc evals", "evaluations of the network per image, to encode", "g"),
    *spread_columns("encode_error", "encoded", "rms distance to the ODE's latent, over σ_T"),
    Column("encode_order", "enc order", "observed order of encoding", ".1f"),
    Column("encode_seconds", "enc s", "seconds per image, to encode", ".3f"),
    Column("remark", "remark", form="s"),
)


class Truth:
    """Solutions of the ODE from noise.

    Attributes:
        run: The plan of the reference.
        seed: The seed of the noise.
        end: The end of the plan.
        images: The images (n, C, H, W), float64.
        latents: The latents (n, C, H, W) of the images, float64.
        decode: The error that nine images in ten do not exceed, rms over pixels in [-1, 1].
        encode: The error that nine latents in ten do not exceed, rms divided by σ_T.
        words: The reference in words.
    """

    def __init__(self, cell: Columns, run: Plan, seed: int) -> None:
        self.run, self.seed = run, seed
        self.end = run.end
        self.images, self.latents = (torch.from_numpy(cell[name]) for name in ("images", "latents"))
        self.decode, self.encode = (quantile(cell[name], 0.9) for name in ("decode_error", "encode_error"))
        self.words = (
            f"{REFERENCE[0]} on the {REFERENCE[1]} grid with {run.steps} steps, in float64, against half of them"
        )


def truth(
    harness: Harness, count: int, shape: tuple[int, ...], *, seed: int = 0, end: str = "zero", steps: int = REFERENCE[2]
) -> Truth:
    """Return the solutions from the noise of a seed.

    Args:
        harness: The harness that measures the model.
        count: The number of solutions.
        shape: The shape (C, H, W) of an x_T.
        seed: The seed of the noise.
        end: "zero" or "sigma_min".
        steps: The number of steps of the reference.

    Returns:
        The solutions.
    """
    model = harness.model
    coarse, fine = references(model, end, steps)

    def measure(start: int, stop: int) -> Columns:
        top = _noise(model, start, stop, shape, seed).xbar
        image_2, image = (integrate(model, State(top, run.top), run).xbar for run in (coarse, fine))
        latent_2, latent = (_encoded(model, image, run) for run in (coarse, fine))
        return {
            "images": image.cpu().numpy(),
            "latents": latent.cpu().numpy(),
            "decode_error": mean_square(image - image_2).sqrt().cpu().numpy(),
            "encode_error": (mean_square(latent - latent_2).sqrt() / model.schedule.sigma_max).cpu().numpy(),
        }

    settings = harness.settings("solutions", fine, seed=seed, size=list(shape))
    return Truth(harness.measure(settings, count, measure, evaluations=truth_evaluations(steps)), fine, seed)


def references(model: VectorField, end: str, steps: int = REFERENCE[2]) -> tuple[Plan, Plan]:
    """Return the plan with half the steps, which gives the error of the reference, and the plan of the reference."""
    name, grid, _ = REFERENCE
    coarse, fine = (Plan.of(model.schedule, name, n, grid, end) for n in (steps // 2, steps))
    return coarse, fine


def truth_for(
    harness: Harness, error: float, count: int, shape: tuple[int, ...], *, seed: int = 0, end: str = "zero"
) -> Truth:
    """Return solutions that are accurate enough to measure an error.

    The steps of the reference are doubled until nine solutions in ten have less than a third of the error.

    Args:
        harness: The harness that measures the model.
        error: The error that will be measured.
        count: The number of solutions.
        shape: The shape (C, H, W) of an x_T.
        seed: The seed of the noise.
        end: "zero" or "sigma_min".

    Returns:
        The solutions.

    Raises:
        InputError: If 6,400 steps are not enough.
    """
    steps = COARSEST
    while True:
        exact = truth(harness, count, shape, seed=seed, end=end, steps=steps)
        floor = max(exact.decode, exact.encode)
        if floor <= error / ABOVE:
            return exact
        if steps >= FINEST:
            raise InputError(
                f"an error of {error:g} cannot be measured, because with {steps} steps the solutions have errors up to "
                f"{floor:.1e}: ask for an error of {ABOVE * floor:.1e} or more, or give dtype='float64'"
            )
        steps *= 2


def truth_evaluations(steps: int = REFERENCE[2]) -> int:
    """Return the evaluations for a solution, for a progress bar."""
    return 2 * (steps + steps // 2)


def runs_of(
    model: VectorField,
    entries: Sequence[Entry],
    steps: Sequence[int],
    tolerances: Sequence[float],
    end: str,
    settings: Mapping[str, Any],
) -> list[Plan]:
    """Make the plans of a table.

    Args:
        model: The model.
        entries: The solvers on their grids.
        steps: The numbers of steps of solvers with fixed steps.
        tolerances: The values of rtol and atol of adaptive solvers.
        end: "zero" or "sigma_min".
        settings: Other settings of the solvers. Each solver gets the settings that it has.

    Returns:
        The plans, in the order of the entries.

    Raises:
        InputError: If a plan cannot be made, if a solver only decodes, if a grid ends below σ_T, or if none of the
            solvers has one of the settings.
    """
    check_settings(entries, settings)
    runs: list[Plan] = []
    for entry in entries:
        own = {key: value for key, value in settings.items() if key in solvers.get(entry.solver).settings}
        each = [{"rtol": tol, "atol": tol} for tol in tolerances] if solvers.get(entry.solver).adaptive else [{}]
        for more in each:
            runs += planned(model, [entry], steps, end, {**own, **more})
    for run in runs:
        check_encodes(run.solver)
        _check_top(run.nodes, model, f"{run.solver.name}@{run.grid}")
    return runs


def work_precision(harness: Harness, runs: Sequence[Plan], exact: Truth) -> Table:
    """Measure the runs on the solutions, and return the table."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        row = {**first_cells(run), "tolerance": run.solver.chosen.get("rtol"), **_figures(harness, run, exact)}
        before = rows[-1] if rows and all(rows[-1][name] == row[name] for name in ("solver", "grid")) else None
        for way, floor in (("decode", exact.decode), ("encode", exact.encode)):
            row[f"{way}_order"] = _order(before, row, way, floor) if before else None
        rows.append(row)
    conventions = f"{counted(len(exact.images), 'solution')} from seed {exact.seed}, {harness.conventions(exact.run)}"
    title = f"Work and precision: {harness.model.title}, {conventions}"
    return table_of("work-precision", title, harness, exact, (*_RUN, *_BOTH), rows)


def table_of(
    bench: str,
    title: str,
    harness: Harness,
    exact: Truth,
    columns: Sequence[Column],
    rows: Sequence[dict[str, Any]],
    **settings: Any,
) -> Table:
    """Return the table of a bench that compares runs with solutions.

    Args:
        bench: The name of the bench.
        title: The title.
        harness: The harness that measured the model.
        exact: The solutions.
        columns: The columns.
        rows: The rows.
        **settings: Further settings of the table.

    Returns:
        The table.
    """
    columns, shown = telling(columns, rows, ("remark", "tolerance"))
    return Table(
        bench=bench,
        title=title,
        settings={
            **harness.header(exact.run), "solutions": len(exact.images), "seed": exact.seed, "end": exact.end,
            "reference": exact.words, "decode_floor": exact.decode, "encode_floor": exact.encode,
            "decode error": "rms over the pixels of an image in [-1, 1]", "encode error": "rms of x̄ over σ_T",
            **settings,
        },
        columns=columns,
        rows=shown,
        notes=(
            f"solutions: {REFERENCE[0]} on the {REFERENCE[1]} grid with {exact.run.steps} steps in float64; for nine "
            f"in ten, their errors are at most {exact.decode:.1e} decoded and {exact.encode:.1e} encoded (the "
            "difference from half the steps)",
        ),
        group=("solver", "grid"),
    )  # fmt: skip


def _order(before: Mapping[str, Any], after: Mapping[str, Any], way: str, floor: float) -> float | None:
    """Return the order that two rows show; None if an error is near the floor, or if the work does not increase."""
    errors = [row[f"{way}_error"] for row in (before, after)]
    work = [row[f"{way}_evaluations"] for row in (before, after)]
    if any(error is None or error <= ABOVE * floor for error in errors) or work[0] >= work[1]:
        return None
    return math.log(errors[0] / errors[1]) / math.log(work[1] / work[0])


def measured(harness: Harness, run: Plan, exact: Truth) -> Columns:
    """Return the columns of `both_ways` for all solutions."""
    settings = harness.settings(
        "work-precision", run, seed=exact.seed, size=list(exact.images.shape[1:]), truth=exact.words
    )

    def measure(start: int, stop: int) -> Columns:
        return both_ways(harness, run, exact, start, stop)

    # Seconds depend on these too.
    settings["details"] |= {"machine": described(harness.model), "batch_size": harness.batch_size}
    return harness.measure(settings, len(exact.images), measure, evaluations=2 * expected(run))


def _figures(harness: Harness, run: Plan, exact: Truth) -> dict[str, Any]:
    """Return the cells of a run: errors, evaluations and seconds in both directions, over all solutions."""
    cell = measured(harness, run, exact)
    failure = error_words(cell["failure"])
    found: dict[str, Any] = {"remark": failure}
    for way in ("decode", "encode"):
        found |= spread(f"{way}_error", None if failure else cell[f"{way}_error"])
        for name in ("evaluations", "seconds"):
            found[f"{way}_{name}"] = float(cell[f"{way}_{name}"].mean())
    return found


def both_ways(harness: Harness, run: Plan, exact: Truth, start: int, stop: int) -> Columns:
    """Decode the noise and encode the images of the solutions start, ..., stop-1.

    Args:
        harness: The harness that measures the model.
        run: The plan.
        exact: The solutions.
        start: The first solution.
        stop: The solution after the last.

    Returns:
        The errors, seconds and evaluations of both directions and the failure, as columns of (B,) each.
    """
    model, count, failure = harness.model, stop - start, ""
    shape = tuple(exact.images.shape[1:])
    found: dict[str, np.ndarray[Any, Any]] = {}
    _warm_up(model, exact.images[start:stop].to(harness.dtype), run.solver)
    for way in ("decode", "encode"):
        if way == "decode":
            begin, goal, scale = _noise(model, start, stop, shape, exact.seed).xbar, exact.images[start:stop], 1.0
        else:
            begin, goal, scale = exact.images[start:stop], exact.latents[start:stop], run.top
        model.reset()
        began, error = now(model.device), torch.full((count,), math.nan)
        try:
            sigma = run.top if way == "decode" else float(run.nodes[0])
            end = integrate(model, State(begin.to(harness.dtype), sigma), run).xbar
            error = mean_square(end.cpu().double() - goal).sqrt() / scale
        except (InputError, BudgetExceeded) as stopped:  # the other rows are still useful
            failure = failure or str(stopped)
        found[f"{way}_seconds"] = np.full(count, (now(model.device) - began) / count)
        found[f"{way}_evaluations"] = np.full(count, model.rows / count)
        found[f"{way}_error"] = error.numpy()
    return {**found, "failure": failure_column(failure, count)}


def _warm_up(model: VectorField, xbar: Tensor, row: Solver) -> None:
    """Make a short run, so that the timed run is not the first of its kind, which takes longer."""
    top = model.schedule.sigma_max
    with contextlib.suppress(InputError, BudgetExceeded):
        integrate(model, State(xbar, top), Plan(row, torch.tensor([top / 1.01, top], dtype=torch.float64)))


def _noise(model: VectorField, start: int, stop: int, shape: tuple[int, ...], seed: int) -> State:
    sigma = model.schedule.sigma_max
    x_T = noise(stop - start, shape, seed=seed, start=start).double()
    return State(x_T * math.sqrt(1 + sigma**2), sigma)


def _encoded(model: VectorField, images: Tensor, run: Plan) -> Tensor:
    return integrate(model, State(images, float(run.nodes[0])), run).xbar


def _check_top(nodes: Tensor, model: VectorField, what: str) -> None:
    if not math.isclose(float(nodes[-1]), model.schedule.sigma_max, rel_tol=1e-6):
        raise InputError(
            f"{what} ends at σ = {float(nodes[-1]):.6g}, below the model's σ_T = {model.schedule.sigma_max:.6g}, where "
            "the solutions begin: leave it out of solvers=..."
        )
