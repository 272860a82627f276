"""Reconstruction: encode, decode, compare. The paper's Table 2, for any solver and grid, with the latent's own error.

Round trip: per-dimension mean squared error on the [0, 1] scale, as in Table 2 (the mean over images).
Latent: distance to the ODE's true latent, rms per dimension over σ_T. A method can come back exactly from a latent
that is wrong; so both are given. The true latent comes from a tight run, which is itself checked against a tighter one.
Where a grid ends below σ_T, latents are compared there, and over the σ there.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odeddim import grids, solvers
from odeddim.api import check_encodes, decode, encode, integrate, plan
from odeddim.field import VectorField
from odeddim.hdf5 import writing
from odeddim.local_error import REFERENCE
from odeddim.types import BudgetExceeded, InputError, Solver, State


@dataclass(frozen=True)
class Entry:
    """What to run: a solver on a grid, a name or a file (None: its own)."""

    solver: str
    grid: str | None = None

    @classmethod
    def parse(cls, text: str) -> Entry:
        """From "SOLVER" or "SOLVER@GRID"."""
        solver, _, grid = text.partition("@")
        return cls(solver, grid or None)


DEFAULT_ENTRIES = ("euler@linear", "euler@quadratic", "heun", "dpmpp-2m", "ab3", "unipc-1", "belm", "dopri5")


@dataclass(frozen=True)
class Row:
    """One line of the table. evaluations: per image and direction; seconds: both directions, all images.

    failure: why a solver gave no result; its figures are None then. note: what else it says of itself.
    """

    solver: str
    grid: str
    steps: int | None
    evaluations: float
    round_trip: float | None
    latent: float | None
    seconds: float
    failure: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """The rows, the settings they were made with, and the reference's own error (a floor under `latent`)."""

    model: str
    sha256: str
    images: int
    end: str
    dtype: str
    device: str
    reference: str
    reference_error: float
    rows: tuple[Row, ...]

    def to_json(self) -> str:
        """The whole table as JSON."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)

    def to_csv(self) -> str:
        """The rows as CSV, with a header line."""
        text = io.StringIO()
        names = [item.name for item in fields(Row)]
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        return text.getvalue()

    def save(self, path: Path) -> None:
        """The table as HDF5: a compound dataset `rows` and the settings as attributes."""
        import h5py
        import numpy as np

        text = h5py.string_dtype()
        kinds: list[tuple[str, Any]] = [("solver", text), ("grid", text), ("steps", "i8"), ("evaluations", "f8")]
        kinds += [("round_trip", "f8"), ("latent", "f8"), ("seconds", "f8"), ("failure", text), ("note", text)]
        values = [
            tuple((-1 if key == "steps" else np.nan) if value is None else value for key, value in asdict(row).items())
            for row in self.rows
        ]
        with writing(path) as file:
            file.create_dataset("rows", data=np.array(values, dtype=kinds))
            file["rows"].attrs["units"] = "round_trip: MSE on [0, 1]; latent: rms over sigma_T; steps -1: adaptive"
            file.attrs["format"] = "odeddim reconstruction table"
            for key, value in asdict(self).items():
                if key != "rows":
                    file.attrs[key] = value


def runs(
    field: VectorField, entries: Sequence[Entry], steps: Sequence[int], end: str, settings: dict[str, Any]
) -> list[tuple[Entry, int | None, Solver, Tensor]]:
    """Every (entry, steps) with its solver and nodes, checked before anything runs.

    Adaptive solvers run once, and so do grid files, each with as many steps as it has, whatever `steps` says.
    """
    planned = []
    had = {"rtol", "atol", "max_nfe"}.union(*(solvers.get(entry.solver).settings for entry in entries))
    if unknown := sorted(set(settings) - had):
        raise InputError(f"none of these solvers has a setting {unknown[0]!r} (they have: {', '.join(sorted(had))})")
    for entry in entries:
        row = solvers.get(entry.solver)
        check_encodes(row)
        # Settings such as rtol go to the solvers that have them.
        own = {key: value for key, value in settings.items() if key in row.settings}
        if row.adaptive or (entry.grid is not None and not grids.is_named(entry.grid)):
            solver, nodes = plan(field.schedule, entry.solver, None, entry.grid, end, own)
            planned.append((entry, None if row.adaptive else len(nodes) - 1, solver, nodes))
            continue
        for count in steps:
            solver, nodes = plan(field.schedule, entry.solver, count, entry.grid, end, own)
            planned.append((entry, count, solver, nodes))
    return planned


def reference_latents(
    field: VectorField, images: Tensor, end: str, batch_size: int, advance: Callable[[int], Any], tops: Sequence[float]
) -> tuple[dict[float, Tensor], float]:
    """The true latents x̄ (B, *) at each of these σ, and a bound of their error (rms over σ): against half the steps."""
    name, grid, steps = REFERENCE
    row = solvers.get(name)
    runs = []
    for count in (steps // 2, steps):
        nodes = grids.grid(grid, field.schedule, count, end=end)
        latents: dict[float, list[Tensor]] = {top: [] for top in sorted(tops)}
        for batch in _batches(images, batch_size):
            state = State(batch, float(nodes[0]))
            for top in latents:  # one way up, with a stop at each
                between = nodes[(nodes > state.sigma) & (nodes < top * (1 - 1e-9))]
                state = integrate(field, state, nodes.new_tensor([state.sigma, *between.tolist(), top]), row)
                latents[top].append(state.xbar)
        runs.append({top: torch.cat(parts) for top, parts in latents.items()})
        advance(count)
    coarse, fine = runs
    return fine, max(_latent_error(coarse[top], fine[top], top) for top in fine)


def reconstruction(
    field: VectorField,
    images: Tensor,
    planned: Sequence[tuple[Entry, int | None, Solver, Tensor]],
    *,
    end: str = "zero",
    batch_size: int = 32,
    advance: Callable[[int], Any] = lambda evaluations: None,
) -> Iterator[Row | tuple[str, float]]:
    """The table's rows as they are measured; first of all the reference as (its name, its own error).

    images: (B, C, H, W) in [-1, 1]. planned: from `runs`. advance: told of evaluations done, for a progress bar.
    """
    tops = {float(nodes[-1]) for _, _, _, nodes in planned} | {field.schedule.sigma_max}
    truth, error = reference_latents(field, images, end, batch_size, advance, sorted(tops))
    yield f"{REFERENCE[0]} on the {REFERENCE[1]} grid, {REFERENCE[2]} steps", error
    for entry, steps, solver, nodes in planned:
        field.reset()
        began = time.perf_counter()
        latents, back, failure, residuals = [], [], "", []
        try:
            for batch in _batches(images, batch_size):
                state = encode(batch, solver, model=field, grid=nodes)
                latents.append(state.xbar)
                if "converged" in state.report:
                    residuals += state.report["residual"][~state.report["converged"]].tolist()
                back.append(decode(state, solver, model=field, grid=nodes))
        except (InputError, BudgetExceeded) as error:  # the other rows are worth having all the same
            failure = str(error)
        yield Row(
            solver=solver.name,
            grid="-" if solver.adaptive else entry.grid or solver.grid,
            steps=steps,
            evaluations=field.rows / (2 * len(images)),
            round_trip=None if failure else _mean_square(torch.cat(back).cpu() - images.cpu()) / 4,  # on [0, 1]
            latent=None if failure else _latent_error(torch.cat(latents), truth[float(nodes[-1])], float(nodes[-1])),
            seconds=time.perf_counter() - began,
            failure=failure,
            note=f"{len(residuals)} images did not converge, residual up to {max(residuals):.0e}" if residuals else "",
        )
        advance(expected_evaluations(solver, nodes))


def expected_evaluations(solver: Solver, nodes: Tensor) -> int:
    """Evaluations of a round trip, for the progress bar; a guess for adaptive solvers."""
    steps, at_the_end = (len(nodes) - 2, 1) if float(nodes[0]) == 0 else (len(nodes) - 1, 0)
    own = solver.evaluations(steps)
    return 2 * (100 if own is None else own + at_the_end)


def reference_evaluations() -> int:
    """Evaluations that the reference takes, for the progress bar."""
    return REFERENCE[2] + REFERENCE[2] // 2


def _batches(images: Tensor, size: int) -> Iterator[Tensor]:
    for start in range(0, len(images), size):
        yield images[start : start + size]


def _latent_error(latent: Tensor, truth: Tensor, sigma: float) -> float:
    return math.sqrt(_mean_square(latent - truth)) / sigma


def _mean_square(difference: Tensor) -> float:
    return float(difference.double().square().mean())
