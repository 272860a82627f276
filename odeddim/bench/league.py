"""The league: every solver at the same numbers of evaluations, by what it is used for.

For a number of evaluations each solver takes the most steps that need no more of them, in either direction. Each run
encodes images, decodes them again, and decodes noise. Its figures are

    round trip  between an image and its latent decoded again, rms over the pixels in [-1, 1]
    latent      between the latent x_T and that of the reference, rms over its values, which have unit variance
    decoded     between the image of a noise and that of the reference, rms over the pixels
    signs       the share of the values of x_T whose sign is that of the reference's latent: what readers of a
                watermark in the noise need, 0.5 by chance
    whiteness   norm, autocorrelation and normality of x_T (`odeddim.checks.whiteness`)

The reference shares no code with the solvers (`odeddim.bench.solutions`). A solver that adds noise cannot encode: it is
measured by `decoded` only, and does not solve the ODE. Solvers that are one method on the same nodes are measured once:
they are known by what they do to an exact field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odeddim.api import noise, with_noise
from odeddim.bench import solutions
from odeddim.bench.entrants import Draw, Entrant, counts
from odeddim.bench.harness import Harness, Images, error_words, failure_column, hash_of
from odeddim.bench.measures import Values, mean_square, quantile, spread, spread_columns
from odeddim.bench.standings import PLACES, give_places, reversals
from odeddim.bench.tables import Column, Table, counted, telling
from odeddim.bench.timing import described, now
from odeddim.ode.field import VectorField
from odeddim.plans import Plan, integrate
from odeddim.storage.row_files import Columns
from odeddim.types import BudgetExceeded, InputError, State

REFERENCE_STEPS = 200
CHECKED = 16  # images and noises on which the reference is compared with half the steps
WORDS = f"classical Runge-Kutta in log σ with {REFERENCE_STEPS} steps, which shares no code with the solvers"
WHITE = ("norm", "autocorrelation", "normality")
"""The figures of whiteness in the table; for white noise they are 1, 0 and, in the median, 0.5."""
Whiteness = Callable[[Tensor], Mapping[str, Tensor]]
"""A function x_T (B, *) -> figures by name, (B,) each: `odeddim.checks.whiteness.statistics`."""


def _small(columns: Iterable[Column], form: str) -> tuple[Column, ...]:
    return tuple(replace(column, form=form) for column in columns)


_COLUMNS = (
    Column("budget", "at most", "the most evaluations of the network per image and direction"),
    Column("solver", "solver", form="s"),
    Column("grid", "grid", "the grid, or the file of a plan", "s"),
    Column("steps", "steps"),
    Column("encode_evaluations", "enc evals", "evaluations of the network per image, to encode", "g"),
    Column("decode_evaluations", "dec evals", "evaluations of the network per image, to decode", "g"),
    *spread_columns("round_trip", "round trip", "rms over the pixels of an image in [-1, 1]"),
    *spread_columns("latent", "latent", "rms distance of x_T, of unit variance, to the ODE's"),
    *spread_columns("decoded", "decoded", "rms distance of the image of a noise to the ODE's, pixels in [-1, 1]"),
    *_small(spread_columns("signs", "signs", "the share of the values of x_T that have the sign of the ODE's"), ".3f"),
    *_small(spread_columns("norm", "norm", "‖x_T‖/√D, 1 for white noise"), ".3f"),
    *_small(spread_columns("autocorrelation", "neighbours", "their correlation in x_T, 0 for white noise"), ".3f"),
    *_small(spread_columns("normality", "normality", "p-value of x_T against N(0, 1), 0.5 for white noise"), ".2g"),
    Column("encode_seconds", "enc s", "seconds per image, to encode", ".3f"),
    Column("decode_seconds", "dec s", "seconds per image, to decode", ".3f"),
    *PLACES,
    Column("same_as", "same as", "the run that is the same method on the same nodes: it has the place", "s"),
    Column("remark", "remark", form="s"),
)  # fmt: skip


def league(
    harness: Harness,
    images: Images,
    count: int,
    drawn: Draw,
    whiteness: Whiteness,
    *,
    seed: int = 0,
    end: str = "zero",
    source: Mapping[str, Any] | None = None,
) -> Table:
    """Measure all runs, and return the table.

    Args:
        harness: The harness that measures the model.
        images: The images, in the state's dtype and on the model's device.
        count: The number of images, and of noises.
        drawn: The runs.
        whiteness: The function that gives the figures of whiteness.
        seed: The seed of the noises.
        end: The end of the runs, "zero" or "sigma_min".
        source: What the table's settings state about the images.

    Returns:
        The table, by the number of evaluations and then by the error of the latent.
    """
    sha256 = hash_of(images, count)
    told = {"images": sha256, "seed": seed, "truth": WORDS}
    truth = reference(harness, images, count, end, told, whiteness)

    def measured(run: Plan) -> Columns:
        def measure(start: int, stop: int) -> Columns:
            known = {name: torch.from_numpy(truth[name][start:stop]) for name in ("latents", "images")}
            return played(harness.model, images(start, stop), run, known, whiteness, seed=seed, start=start)

        settings = harness.settings("league", run, **told)
        # Seconds depend on these too.
        settings["details"] |= {"machine": described(harness.model), "batch_size": harness.batch_size}
        return harness.measure(settings, count, measure, evaluations=sum(counts(run)))

    own = {(it.budget, it.label): it.plan for it in drawn.entrants if not it.same_as}
    cells = dict(zip(own, harness.each([partial(measured, run) for run in own.values()]), strict=True))
    rows = [_row(it, cells[it.budget, it.same_as or it.label]) for it in drawn.entrants]
    give_places(rows)
    rows.sort(key=lambda row: (row["budget"], math.inf if row["latent"] is None else row["latent"]))
    columns, shown = telling(_COLUMNS, rows, ("same_as", "remark"))
    first = drawn.entrants[0].plan
    errors = {name: quantile(truth[f"{name}_error"][:CHECKED], 0.9) for name in ("latents", "images")}
    white = {name: float(np.median(truth[name])) for name in WHITE}
    return Table(
        bench="league",
        title=f"League: {harness.model.title}, {counted(count, 'image')} and as many noises of seed {seed}, "
        f"{harness.conventions(first)}",
        settings={
            **harness.header(first), "images": count, **(source or {}), "images_sha256": sha256, "seed": seed,
            "end": end, "reference": WORDS, "latent_floor": errors["latents"], "decoded_floor": errors["images"],
            "true latents": white, "figures": "median over the images; 10 and 90 %: the values that one and nine "
            "images in ten do not exceed", "left out": dict(drawn.left_out),
        },
        columns=columns,
        rows=shown,
        notes=(
            f"reference: {WORDS}; for nine in ten, it is at most {errors['latents']:.1e} off for latents and "
            f"{errors['images']:.1e} for images (the difference from half the steps)",
            f"the true latents of these images have norm {white['norm']:.3f}, correlation of neighbours "
            f"{white['autocorrelation']:.3f} and normality {white['normality']:.2g} in the median",
            *([f"left out: {', '.join(drawn.left_out)}"] if drawn.left_out else []),
            *reversals(rows),
        ),
        group=("budget",),
    )  # fmt: skip


def reference(
    harness: Harness, images: Images, count: int, end: str, told: Mapping[str, Any], whiteness: Whiteness
) -> Columns:
    """Return the true latents and images, the first of them with their errors, and the latents' figures of whiteness.

    Args:
        harness: The harness that measures the model.
        images: The images.
        count: The number of images, and of noises.
        end: "zero" or "sigma_min".
        told: The images' hash, the seed and the reference's words, on which the columns depend.
        whiteness: The function that gives the figures of whiteness.

    Returns:
        The columns "latents" and "images" (count, *), "latents_error" and "images_error" (count,), NaN but for the
        first 16, and the figures (count,).
    """
    model = harness.model

    def measure(start: int, stop: int) -> Columns:
        x_0 = images(start, stop)
        x_T = noise(stop - start, tuple(x_0.shape[1:]), seed=told["seed"], start=start).to(x_0.device)
        found: dict[str, Any] = {}
        for name, solve, begin in (("latents", solutions.encoded, x_0), ("images", solutions.decoded, x_T)):
            exact, error = solve(model, begin, REFERENCE_STEPS, end).cpu(), np.full(stop - start, math.nan)
            if checked := max(0, min(stop, CHECKED) - start):
                coarse = solve(model, begin[:checked], REFERENCE_STEPS // 2, end).cpu()
                error[:checked] = _rms(coarse - exact[:checked])
            found |= {name: exact.numpy(), f"{name}_error": error}
        return found | _white(whiteness, torch.from_numpy(found["latents"]))

    # The provenance names a run: the reference walks these nodes, and finer ones for its own stages.
    nodes = Plan.of(model.schedule, "euler", REFERENCE_STEPS, "log", end)
    return harness.measure(
        harness.settings("truth", nodes, **told), count, measure, evaluations=reference_evaluations(),
        at_once=model.network_batch,
    )  # fmt: skip


def reference_evaluations() -> int:
    """Return the evaluations for the true latent of an image and the true image of a noise, for a progress bar."""
    return 2 * 4 * (REFERENCE_STEPS + REFERENCE_STEPS // 2)


def _white(whiteness: Whiteness, x_T: Tensor) -> dict[str, Values]:
    figures = whiteness(x_T)
    return {name: figures[name].numpy() for name in WHITE}


def played(
    model: VectorField,
    x_0: Tensor,
    run: Plan,
    truth: Mapping[str, Tensor],
    whiteness: Whiteness,
    *,
    seed: int,
    start: int,
) -> Columns:
    """Encode images, decode them again, decode noise, and measure each image and noise.

    Args:
        model: The model.
        x_0: The images (B, *) in [-1, 1], at the lower end of the run.
        run: The plan.
        truth: The true "latents" of the images, of unit variance, and the true "images" of the noises, (B, *) each.
        whiteness: The function that gives the figures of whiteness.
        seed: The seed of the noises, and of the noise that a stochastic solver adds.
        start: The index of the first noise.

    Returns:
        The columns, (B,) each; NaN of what the solver cannot do, with the reason in `failure` if it tried.
    """
    count, shape = len(x_0), tuple(x_0.shape[1:])
    if run.solver.stochastic:
        run = run.with_solver(with_noise(run.solver, seed=seed, start=start))
    nothing = np.full(count, math.nan)
    found: dict[str, Any] = dict.fromkeys(("round_trip", "latent", "signs", "decoded", *WHITE), nothing)
    up = _Leg(count, f"solver {run.solver.name!r} only decodes", tried=False)
    back = up
    if not run.solver.stochastic:
        up = _leg(model, lambda: integrate(model, State(x_0, float(run.nodes[0])), run), count)
    if up.end is not None:
        x_T, state = up.end.x.cpu(), up.end
        found |= {"latent": _rms(x_T - truth["latents"]), "signs": same_signs(x_T, truth["latents"])}
        found |= _white(whiteness, x_T)
        back = _leg(model, lambda: integrate(model, state, run), count)
    if back.end is not None:
        found["round_trip"] = _rms(back.end.xbar.cpu() - x_0.cpu())
    x_T = noise(count, shape, seed=seed, start=start).to(x_0)
    top = State(x_T * math.sqrt(1 + run.top**2), run.top)
    down = _leg(model, lambda: integrate(model, top, run), count)
    if down.end is not None:
        found["decoded"] = _rms(down.end.xbar.cpu() - truth["images"])
    for way, leg in (("encode", up), ("decode", down)):
        found |= {f"{way}_evaluations": np.full(count, leg.evaluations), f"{way}_seconds": np.full(count, leg.seconds)}
    failure = next((leg.failure for leg in (up, back, down) if leg.tried and leg.failure), "")
    return {**found, "failure": failure_column(failure, count)}


@dataclass(frozen=True)
class _Leg:
    """A run in one direction: its end, or why it has none; evaluations and seconds per image."""

    count: int
    failure: str = ""
    end: State | None = None
    evaluations: float = math.nan
    seconds: float = math.nan
    tried: bool = True


def _leg(model: VectorField, run: Callable[[], State], count: int) -> _Leg:
    model.reset()
    began = now(model.device)
    try:
        end = run()
    except (InputError, BudgetExceeded) as error:  # the other directions and rows are still useful
        return _Leg(count, str(error))
    return _Leg(count, "", end, model.rows / count, (now(model.device) - began) / count)


def _rms(difference: Tensor) -> Values:
    return mean_square(difference).sqrt().numpy()


def same_signs(x_T: Tensor, truth: Tensor) -> Values:
    """Return the share of the values of each latent that have the sign of the true latent, (B, *) -> (B,) float64.

    Example:
        >>> from odeddim.bench.league import same_signs
        >>> same_signs(torch.tensor([[1.0, -2.0, 0.5, 3.0]]), torch.tensor([[2.0, 1.0, 0.1, 1.0]])).tolist()
        [0.75]
    """
    return ((x_T < 0) == (truth < 0)).double().flatten(1).mean(dim=1).numpy()


def _row(entrant: Entrant, cell: Columns) -> dict[str, Any]:
    figures = ("round_trip", "latent", "decoded", "signs", *WHITE)
    once = ("encode_evaluations", "decode_evaluations", "encode_seconds", "decode_seconds")
    row: dict[str, Any] = {
        "budget": entrant.budget, "solver": entrant.plan.solver.name, "grid": entrant.grid, "steps": entrant.plan.steps,
        **dict.fromkeys(column.name for column in PLACES), "same_as": entrant.same_as,
        "remark": error_words(cell["failure"]),
    }  # fmt: skip
    for name in figures:
        values = cell[name]
        # A run that failed for some of the images has no median.
        row |= spread(name, None if np.isnan(values).any() else values)
    return row | {name: None if np.isnan(cell[name]).any() else float(np.median(cell[name])) for name in once}
