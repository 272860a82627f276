"""Work and precision: how far a run is from the ODE's solution, against evaluations and against seconds.

No images are needed. A run with many steps, the reference, decodes noise x_T and encodes the images that come out; its
images and latents are the solutions that other runs are compared with. The difference to a run with half the steps says
how well the solutions are known, and is the floor of the figures. The error of decoding is the rms distance to the
reference's image, per pixel in [-1, 1]. The error of encoding those images is the rms distance to the reference's
latent, over σ_T. Both are medians over the images, with their spread (`odeddim.bench.measures`). All runs end as the
reference does (`odeddim.ode.grids`), and take its step at σ = 0.

`odeddim.bench.cheapest` asks the reverse: how many steps does each solver need to keep an error both ways?
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
COARSEST, FINEST = 400, 6400  # steps of the solutions that an error is found by
ABOVE = 3.0  # times the floor: errors below it say nothing of an order

_RUN = (
    Column("solver", "solver", form="s"),
    Column("grid", "grid", form="s"),
    Column("steps", "steps"),
    Column("tolerance", "tolerance", "rtol and atol of solvers that choose their steps", ".0e"),
)
_BOTH = (
    Column("decode_evaluations", "dec evals", "evaluations of the network per image, to decode", "g"),
    *spread_columns("decode_error", "decoded", "rms distance to the ODE's image, pixels in [-1, 1]"),
    Column("decode_order", "dec order", "observed, from the row above: how the median falls with evaluations", ".1f"),
    Column("decode_seconds", "dec s", "seconds per image, to decode", ".3f"),
    Column("encode_evaluations", "enc evals", "evaluations of the network per image, to encode", "g"),
    *spread_columns("encode_error", "encoded", "rms distance to the ODE's latent, over σ_T"),
    Column("encode_order", "enc order", "observed, of encoding", ".1f"),
    Column("encode_seconds", "enc s", "seconds per image, to encode", ".3f"),
    Column("remark", "remark", form="s"),
)


class Truth:
    """Images and latents of the ODE's solutions from noise, (n, *) float64 each.

    Attributes:
        run: The plan of the reference.
        seed: Of the noise.
        decode: The error of the images that nine in ten do not exceed.
        encode: The same of the latents.
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
    """The solutions from `count` noises (C, H, W) of this seed."""
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
    """The plan with half the steps, which gives the error of the reference, and the plan of the reference."""
    name, grid, _ = REFERENCE
    coarse, fine = (Plan.of(model.schedule, name, n, grid, end) for n in (steps // 2, steps))
    return coarse, fine


def truth_for(
    harness: Harness, error: float, count: int, shape: tuple[int, ...], *, seed: int = 0, end: str = "zero"
) -> Truth:
    """The solutions with an error below a third of this error for nine in ten; the steps are doubled until it is so.

    Raises:
        InputError: Where 6,400 steps are not enough.
    """
    steps = COARSEST
    while True:
        exact = truth(harness, count, shape, seed=seed, end=end, steps=steps)
        floor = max(exact.decode, exact.encode)
        if floor <= error / ABOVE:
            return exact
        if steps >= FINEST:
            raise InputError(
                f"with {steps} steps the solutions are known to {floor:.1e} only, so an error of {error:g} cannot be "
                f"told: ask for {ABOVE * floor:.1e} or more, or dtype='float64'"
            )
        steps *= 2


def truth_evaluations(steps: int = REFERENCE[2]) -> int:
    """Evaluations that the solutions take, for the progress bar."""
    return 2 * (steps + steps // 2)


def runs_of(
    model: VectorField,
    entries: Sequence[Entry],
    steps: Sequence[int],
    tolerances: Sequence[float],
    end: str,
    settings: Mapping[str, Any],
) -> list[Plan]:
    """The plans: solvers with fixed steps with each number of steps, adaptive solvers with each tolerance."""
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
    """The table of these runs."""
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
    """The table of a bench that compares with these solutions. settings: more settings of the table."""
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
            f"the solutions are those of {exact.words}; nine in ten are known to {exact.decode:.1e} decoded and to "
            f"{exact.encode:.1e} encoded",
        ),
        group=("solver", "grid"),
    )  # fmt: skip


def _order(before: Mapping[str, Any], after: Mapping[str, Any], way: str, floor: float) -> float | None:
    """The order that two rows show, None where one of them is near the floor or the work is the same."""
    errors = [row[f"{way}_error"] for row in (before, after)]
    work = [row[f"{way}_evaluations"] for row in (before, after)]
    if any(error is None or error <= ABOVE * floor for error in errors) or work[0] >= work[1]:
        return None
    return math.log(errors[0] / errors[1]) / math.log(work[1] / work[0])


def measured(harness: Harness, run: Plan, exact: Truth) -> Columns:
    """The columns of `both_ways` for all solutions, measured or read."""
    settings = harness.settings(
        "work-precision", run, seed=exact.seed, size=list(exact.images.shape[1:]), truth=exact.words
    )

    def measure(start: int, stop: int) -> Columns:
        return both_ways(harness, run, exact, start, stop)

    # Seconds depend on these, too.
    settings["details"] |= {"machine": described(harness.model), "batch_size": harness.batch_size}
    return harness.measure(settings, len(exact.images), measure, evaluations=2 * expected(run))


def _figures(harness: Harness, run: Plan, exact: Truth) -> dict[str, Any]:
    """Errors, evaluations and seconds of a run both ways, over all solutions."""
    cell = measured(harness, run, exact)
    failure = error_words(cell["failure"])
    found: dict[str, Any] = {"remark": failure}
    for way in ("decode", "encode"):
        found |= spread(f"{way}_error", None if failure else cell[f"{way}_error"])
        for name in ("evaluations", "seconds"):
            found[f"{way}_{name}"] = float(cell[f"{way}_{name}"].mean())
    return found


def both_ways(harness: Harness, run: Plan, exact: Truth, start: int, stop: int) -> Columns:
    """Decode the noise and encode the images of solutions, and measure the error of each: columns of (B,) each."""
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
        except (InputError, BudgetExceeded) as stopped:  # the other rows are still of use
            failure = failure or str(stopped)
        found[f"{way}_seconds"] = np.full(count, (now(model.device) - began) / count)
        found[f"{way}_evaluations"] = np.full(count, model.rows / count)
        found[f"{way}_error"] = error.numpy()
    return {**found, "failure": failure_column(failure, count)}


def _warm_up(model: VectorField, xbar: Tensor, row: Solver) -> None:
    """A short run: the first run of its kind takes longer, and must not be the one that is timed."""
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
            "the solutions begin: leave it out here"
        )
