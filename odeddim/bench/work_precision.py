"""Work and precision: how far a run is from the ODE's solution, against evaluations and against seconds.

No images are needed: noise x_T is decoded by a tight run, the images that come out are encoded by it, and both are
what others are measured by. How far the tight run itself is known, by one with half its steps, is the floor of the
figures. Decoding: rms distance to the tight run's image, per pixel of [-1, 1]. Encoding, of those images: rms distance
to the tight run's latent, over σ_T. All runs end as the tight one does (`odeddim.grids`), and take its step at σ = 0.

`cheapest` turns the question round: how many steps does each solver on each grid need to keep an error both ways?
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odeddim import grids, solvers
from odeddim.api import check_encodes, integrate, noise, plan
from odeddim.bench.reconstruction import mean_square, rms
from odeddim.bench.stand import Entry, Planned, Stand, check_settings, error_words, failure_column, planned
from odeddim.bench.tables import Column, Table, counted, telling
from odeddim.bench.timing import described, now
from odeddim.field import VectorField
from odeddim.preset import Preset
from odeddim.rows import Columns
from odeddim.types import BudgetExceeded, InputError, Solver, State

GRIDS = ("log", "karras", "quadratic")  # and each solver's own
REFERENCE = ("ab4", "log", 800)
COARSEST, FINEST = 400, 6400  # steps of the solutions that an error is found by
LADDER = tuple(round(5 * 2 ** (i / 2)) for i in range(17))  # steps that `cheapest` tries before it halves: up to 1,280
CLOSE = 0.04  # of the steps: as near as `cheapest` comes to the fewest
ABOVE = 3.0  # times the floor: errors below it say nothing of an order

_RUN = (
    Column("solver", "solver", form="s"),
    Column("grid", "grid", form="s"),
    Column("steps", "steps"),
    Column("tolerance", "tolerance", "rtol and atol of solvers that choose their steps", ".0e"),
)
_BOTH = (
    Column("decode_evaluations", "dec evals", "evaluations of the network per image, to decode", "g"),
    Column("decode_error", "decoded", "rms distance to the ODE's image, pixels in [-1, 1]", ".2e"),
    Column("decode_order", "dec order", "observed, from the row above: how the error falls with evaluations", ".1f"),
    Column("decode_seconds", "dec s", "seconds per image, to decode", ".3f"),
    Column("encode_evaluations", "enc evals", "evaluations of the network per image, to encode", "g"),
    Column("encode_error", "encoded", "rms distance to the ODE's latent, over σ_T", ".2e"),
    Column("encode_order", "enc order", "observed, of encoding", ".1f"),
    Column("encode_seconds", "enc s", "seconds per image, to encode", ".3f"),
    Column("remark", "remark", form="s"),
)


class Truth:
    """Images and latents of the ODE's solutions from noise, (n, *) float64 each, and how far each way is known.

    seed: of the noise. run: what has solved it.
    """

    def __init__(self, cell: Columns, run: Planned, seed: int) -> None:
        self.run, self.seed = run, seed
        self.end = "zero" if float(run.nodes[0]) == 0 else "sigma_min"
        self.images, self.latents = (torch.from_numpy(cell[name]) for name in ("images", "latents"))
        self.decode, self.encode = (rms(cell[name]) for name in ("decode_error", "encode_error"))
        self.words = (
            f"{REFERENCE[0]} on the {REFERENCE[1]} grid with {run.steps} steps, in float64, against half of them"
        )


def truth(
    stand: Stand, count: int, shape: tuple[int, ...], *, seed: int = 0, end: str = "zero", steps: int = REFERENCE[2]
) -> Truth:
    """The solutions from `count` noises (C, H, W) of this seed."""
    model = stand.model
    coarse, fine = references(model, end, steps)

    def measure(start: int, stop: int) -> Columns:
        top = _noise(model, start, stop, shape, seed).xbar
        image_2, image = (_walk(model, top, run.nodes.flip(0), run.solver) for run in (coarse, fine))
        latent_2, latent = (_walk(model, image, run.nodes, run.solver) for run in (coarse, fine))
        return {
            "images": image.cpu().numpy(),
            "latents": latent.cpu().numpy(),
            "decode_error": mean_square(image - image_2).sqrt().cpu().numpy(),
            "encode_error": (mean_square(latent - latent_2).sqrt() / model.schedule.sigma_max).cpu().numpy(),
        }

    settings = stand.settings("solutions", fine, seed=seed, size=list(shape))
    return Truth(stand.measure(settings, count, measure, evaluations=truth_evaluations(steps)), fine, seed)


def references(model: VectorField, end: str, steps: int = REFERENCE[2]) -> tuple[Planned, Planned]:
    """The runs that others are measured by: one that shows how far the other is known, and that other."""
    name, grid, _ = REFERENCE
    coarse, fine = (
        Planned(solvers.get(name), grid, n, grids.grid(grid, model.schedule, n, end=end), {})
        for n in (steps // 2, steps)
    )
    return coarse, fine


def truth_for(
    stand: Stand, error: float, count: int, shape: tuple[int, ...], *, seed: int = 0, end: str = "zero"
) -> Truth:
    """The solutions, known three times better than an error: their steps are doubled until they are.

    Errors: InputError if 6,400 steps are not enough.
    """
    steps = COARSEST
    while True:
        exact = truth(stand, count, shape, seed=seed, end=end, steps=steps)
        floor = max(exact.decode, exact.encode)
        if floor <= error / ABOVE:
            return exact
        if steps >= FINEST:
            raise InputError(
                f"with {steps} steps the solutions are known to {floor:.1e} only, so an error of {error:g} cannot be "
                f"told: ask for {ABOVE * floor:.1e} or more, or --dtype float64"
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
) -> list[Planned]:
    """What is to be measured: fixed-step rows with each number of steps, adaptive ones with each tolerance."""
    check_settings(entries, settings)
    runs: list[Planned] = []
    for entry in entries:
        own = {key: value for key, value in settings.items() if key in solvers.get(entry.solver).settings}
        each = [{"rtol": tol, "atol": tol} for tol in tolerances] if solvers.get(entry.solver).adaptive else [{}]
        for more in each:
            runs += planned(model, [entry], steps, end, {**own, **more})
    for run in runs:
        check_encodes(run.solver)
        _check_top(run.nodes, model, f"{run.solver.name}@{run.grid}")
    return runs


def work_precision(stand: Stand, runs: Sequence[Planned], exact: Truth) -> Table:
    """The table of these runs."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        row = {**run.label, "tolerance": run.settings.get("rtol"), **_figures(stand, run, exact)}
        before = rows[-1] if rows and all(rows[-1][name] == row[name] for name in ("solver", "grid")) else None
        for way, floor in (("decode", exact.decode), ("encode", exact.encode)):
            row[f"{way}_order"] = _order(before, row, way, floor) if before else None
        rows.append(row)
    conventions = f"{counted(len(exact.images), 'solution')} from seed {exact.seed}, {stand.conventions(exact.run)}"
    title = f"Work and precision: {stand.model.title}, {conventions}"
    return _table("work-precision", title, stand, exact, (*_RUN, *_BOTH), rows)


def _table(
    bench: str,
    title: str,
    stand: Stand,
    exact: Truth,
    columns: Sequence[Column],
    rows: Sequence[dict[str, Any]],
    **settings: Any,
) -> Table:
    columns, shown = telling(columns, rows, ("remark", "tolerance"))
    return Table(
        bench=bench,
        title=title,
        settings={
            **stand.header(exact.run), "solutions": len(exact.images), "seed": exact.seed, "end": exact.end,
            "reference": exact.words, "decode_floor": exact.decode, "encode_floor": exact.encode,
            "decode error": "rms over pixels in [-1, 1], root of the mean square over all solutions",
            "encode error": "rms of x̄ over σ_T, root of the mean square over all solutions", **settings,
        },
        columns=columns,
        rows=shown,
        notes=(
            f"the solutions are those of {exact.words}; they are known to {exact.decode:.1e} decoded and "
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


def _figures(stand: Stand, run: Planned, exact: Truth) -> dict[str, Any]:
    """Errors, evaluations and seconds of a run both ways, over all solutions."""
    settings = stand.settings(
        "work-precision", run, seed=exact.seed, size=list(exact.images.shape[1:]), truth=exact.words
    )

    def measure(start: int, stop: int) -> Columns:
        return both_ways(stand, run, exact, start, stop)

    # Seconds depend on these, too.
    settings["details"] |= {"machine": described(stand.model), "batch_size": stand.batch_size}
    cell = stand.measure(settings, len(exact.images), measure, evaluations=2 * run.evaluations)
    failure = error_words(cell["failure"])
    found: dict[str, Any] = {"remark": failure}
    for way in ("decode", "encode"):
        found[f"{way}_error"] = None if failure else rms(cell[f"{way}_error"])
        for name in ("evaluations", "seconds"):
            found[f"{way}_{name}"] = float(cell[f"{way}_{name}"].mean())
    return found


def both_ways(stand: Stand, run: Planned, exact: Truth, start: int, stop: int) -> Columns:
    """Decode noises and encode images of solutions, and say of each how far off it is: columns of (B,) each."""
    model, count, failure = stand.model, stop - start, ""
    shape = tuple(exact.images.shape[1:])
    found: dict[str, np.ndarray[Any, Any]] = {}
    _warm_up(model, exact.images[start:stop].to(stand.dtype), run.solver)
    for way, nodes in (("decode", run.nodes.flip(0)), ("encode", run.nodes)):
        if way == "decode":
            begin, goal, scale = _noise(model, start, stop, shape, exact.seed).xbar, exact.images[start:stop], 1.0
        else:
            begin, goal, scale = exact.images[start:stop], exact.latents[start:stop], float(run.nodes[-1])
        model.reset()
        began, error = now(model.device), torch.full((count,), math.nan)
        try:
            end = _walk(model, begin.to(stand.dtype), nodes, run.solver)
            error = mean_square(end.cpu().double() - goal).sqrt() / scale
        except (InputError, BudgetExceeded) as stopped:  # the other rows are worth having all the same
            failure = failure or str(stopped)
        found[f"{way}_seconds"] = np.full(count, (now(model.device) - began) / count)
        found[f"{way}_evaluations"] = np.full(count, model.rows / count)
        found[f"{way}_error"] = error.numpy()
    return {**found, "failure": failure_column(failure, count)}


def _warm_up(model: VectorField, xbar: Tensor, row: Solver) -> None:
    """A short run, so that no run is timed with what only the first of its kind does."""
    top = model.schedule.sigma_max
    with contextlib.suppress(InputError, BudgetExceeded):
        integrate(model, State(xbar, top), torch.tensor([top, top / 1.01], dtype=torch.float64), row)


def _noise(model: VectorField, start: int, stop: int, shape: tuple[int, ...], seed: int) -> State:
    sigma = model.schedule.sigma_max
    x_T = noise(stop - start, shape, seed=seed, start=start).double()
    return State(x_T * math.sqrt(1 + sigma**2), sigma)


def _walk(model: VectorField, begin: Tensor, nodes: Tensor, row: Solver) -> Tensor:
    return integrate(model, State(begin, float(nodes[0])), nodes, row).xbar


def _check_top(nodes: Tensor, model: VectorField, what: str) -> None:
    if not math.isclose(float(nodes[-1]), model.schedule.sigma_max, rel_tol=1e-6):
        raise InputError(
            f"{what} ends at σ = {float(nodes[-1]):.6g}, below the model's σ_T = {model.schedule.sigma_max:.6g}, where "
            "the solutions begin: leave it out here"
        )


def candidates(names: Sequence[str]) -> list[Entry]:
    """What `cheapest` tries: SOLVER@GRID as given, a SOLVER on its own grid and the usual ones."""
    found = []
    for entry in (Entry.parse(name) for name in names):
        row = solvers.get(entry.solver)
        if row.adaptive:
            raise InputError(f"solver {row.name!r} chooses its own steps: there are none to find")
        check_encodes(row)
        if entry.grid is not None and not grids.is_named(entry.grid):
            raise InputError(f"{entry.grid} has as many steps as it has: name a grid, whose steps can be found")
        found += [entry] if entry.grid else [Entry(row.name, grid) for grid in dict.fromkeys((row.grid, *GRIDS))]
    return found


def cheapest(
    stand: Stand,
    error: float,
    entries: Sequence[Entry],
    exact: Truth,
    *,
    settings: Mapping[str, Any] | None = None,
    advance: Callable[[int], Any] = lambda tried: None,
) -> tuple[Table, Preset]:
    """The fewest steps of each solver on each grid that keep an error both ways, and the cheapest of all as a preset.

    error: rms, of decoding over pixels in [-1, 1] and of encoding over σ_T: both are to be no larger. Cheap: few
    evaluations to encode and decode. A solver that does not keep the error with nearly as many as the cheapest before
    it is given up. The steps are the fewest to within 4%, as far as errors fall with the steps.
    exact: from `truth_for`, or others known well enough. advance: told of each entry that is done.
    Errors: InputError if nothing keeps the error.
    """
    check_settings(entries, settings or {})
    best: tuple[float, Planned, float] | None = None
    rows, nearest = [], math.inf
    for entry in entries:
        tried: dict[int, tuple[float, float, dict[str, Any]]] = {}

        def work(count: int, entry: Entry = entry, tried: dict[int, Any] = tried) -> tuple[Planned, float, float]:
            """A run, its evaluations both ways and its error, measured."""
            row, nodes = plan(stand.model.schedule, entry.solver, count, entry.grid, exact.end, _own(entry, settings))
            run = Planned(row, entry.grid or row.grid, count, nodes, _own(entry, settings))
            figures = _figures(stand, run, exact)
            found = [figures["decode_error"], figures["encode_error"]]
            worst = math.inf if None in found else max(found)
            spent = figures["decode_evaluations"] + figures["encode_evaluations"]
            tried[count] = (spent, worst, figures)
            return run, spent, worst

        low, high, kept = 0, None, None
        for count in _worth_trying(stand.model, entry, exact.end, None if best is None else best[0]):
            run, spent, worst = work(count)
            if worst <= error:
                high, kept = count, (run, spent, worst)
                break
            low = count
            nearest = min(nearest, worst)
        while high is not None and high - low > max(1, CLOSE * high):
            middle = (low + high) // 2
            run, spent, worst = work(middle)
            if worst <= error:
                high, kept = middle, (run, spent, worst)
            else:
                low = middle
        advance(1)
        if not tried:  # its fewest steps already cost more
            continue
        if kept is not None and (best is None or kept[1] < best[0]):
            best = (kept[1], kept[0], kept[2])
        shown = kept[0].steps if kept and kept[0].steps else max(tried)
        spent, worst, figures = tried[shown]
        rows.append({
            "solver": entry.solver, "grid": entry.grid or "", "steps": shown, "evaluations": spent,
            "decode_error": figures["decode_error"], "encode_error": figures["encode_error"],
            "found": "yes" if kept else "more", "worst": worst, "remark": figures["remark"],
        })  # fmt: skip
    if best is None:
        raise InputError(
            f"none of these solvers keeps an error of {error:g} with up to {LADDER[-1]} steps (the best has "
            f"{nearest:.1e}): ask for more, or give other solvers"
        )
    rows.sort(key=lambda row: (row["found"] != "yes", row["evaluations"] if row["found"] == "yes" else row["worst"]))
    columns = (
        *_RUN[:3],
        Column("evaluations", "evals", "evaluations of the network per image, to encode and to decode", "g"),
        Column("decode_error", "decoded", "rms distance to the ODE's image, pixels in [-1, 1]", ".2e"),
        Column("encode_error", "encoded", "rms distance to the ODE's latent, over σ_T", ".2e"),
        Column(
            "found",
            "kept",
            f"both errors are {error:g} or less; more: not with fewer evaluations than the best so far",
            "s",
        ),
        Column("remark", "remark", form="s"),
    )
    title = f"Cheapest runs with errors of {error:g}: {stand.model.title}, {stand.conventions(exact.run)}"
    table = _table("cheapest", title, stand, exact, columns, rows, error=error)
    run = best[1]
    assert run.steps is not None
    model = stand.model
    found = Preset(
        model.name, model.sha256, run.solver.name, run.grid, run.steps, exact.end, run.settings, best[2], best[0],
        model.condition.words,
    )  # fmt: skip
    return dataclasses.replace(table, group=()), found


def _worth_trying(model: VectorField, entry: Entry, end: str, most: float | None) -> list[int]:
    """The steps to try in turn, as far as the grid has room; of the evaluations of a cheapest run the most below."""
    row = solvers.get(entry.solver)
    counts: list[int] = []
    for count in LADDER if most is None or row.nfe is None else range(1, LADDER[-1] + 1):
        inner, at_zero = (count - 1, 1) if end == "zero" else (count, 0)
        if most is not None and row.nfe is not None and 2 * ((row.evaluations(inner) or 0) + at_zero) >= most:
            break
        try:
            plan(model.schedule, row, count, entry.grid, end)
        except InputError as problem:  # a grid of whole labels has room for no more
            if not counts:
                raise InputError(f"{entry.solver}@{entry.grid}: {problem}") from problem
            break
        counts.append(count)
    return counts if most is None else counts[-1:]


def _own(entry: Entry, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    has = solvers.get(entry.solver).settings
    return {key: value for key, value in (settings or {}).items() if key in has and value is not None}
