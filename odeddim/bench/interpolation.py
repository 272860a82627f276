"""Interpolation: the smoothness of the images between two latents, for each solver. DDIM's appendix D.5.

Noise x_T is interpolated on great circles (`odeddim.latents.interpolate`), and each point is decoded. The solution of
the ODE depends smoothly on x_T, so its images lie on a path. DDPM adds independent noise to each point, so neighbouring
images have little in common.

The measures are those of the polygon through the images v_0, ..., v_{K-1} in pixel space, with sides
d_i = rms(v_{i+1} - v_i), for images in [-1, 1]. For reference, the table has the cross-fade, which is the straight line
between the end images of the first solver.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from odeddim.api import noise, solve, with_noise
from odeddim.bench import defaults
from odeddim.bench.harness import Harness, error_words, expected, failure_column, first_cells, in_words
from odeddim.bench.measures import rms_per_row
from odeddim.bench.tables import Column, Sheet, Table, telling
from odeddim.latents.interpolate import LatentPath
from odeddim.plans import Plan
from odeddim.storage.png import to_bytes
from odeddim.storage.row_files import Columns
from odeddim.types import BudgetExceeded, InputError, State

CROSS_FADE = "cross-fade"

_COLUMNS = (
    Column("solver", "solver", form="s"),
    Column("grid", "grid", form="s"),
    Column("steps", "steps"),
    Column("evaluations", "evals", "evaluations of the network per image", "g"),
    Column("ends", "ends", "distance between the first and the last image, rms over pixels in [-1, 1]", ".3f"),
    Column("step", "step", "mean distance between neighbours; twice as many points halve it on a smooth path", ".4f"),
    Column("largest", "largest/mean", "the largest distance between neighbours divided by the mean; 1: even", ".2f"),
    Column("length", "length", "length of the path divided by the distance between its ends; 1: straight", ".2f"),
    Column("turn", "turn", "mean angle between a step and the next, in degrees; 0: straight, 120: unrelated", ".1f"),
    Column("remark", "remark", form="s"),
)


@dataclass(frozen=True)
class Smoothness:
    """The measures of P paths of K images. Each is a mean over the paths.

    Attributes:
        ends: The rms distance between the first and the last image.
        step: The mean rms distance between neighbours.
        largest: The largest distance between neighbours divided by the mean.
        length: The length of the path divided by the distance between its ends.
        turn: The mean angle between a step and the next, in degrees.
        steps: The rms distances between neighbours (K-1,).
        distances: The rms distances (K,) of each image from the first.
    """

    ends: float
    step: float
    largest: float
    length: float
    turn: float
    steps: tuple[float, ...]
    distances: tuple[float, ...]


def smoothness(images: np.ndarray[Any, Any]) -> Smoothness:
    """Measure the smoothness of paths of images.

    The means leave out quotients by zero, such as those of a path that returns to its start or does not move.

    Args:
        images: The images (P, K, *) of P paths, with K >= 3.

    Returns:
        The measures.
    """
    paths = np.asarray(images, np.float64).reshape(*images.shape[:2], -1)
    moves = np.diff(paths, axis=1)
    steps, distances = rms_per_row(moves), rms_per_row(paths - paths[:, :1])
    cosines = _quotient((moves[:, 1:] * moves[:, :-1]).mean(axis=-1), steps[:, 1:] * steps[:, :-1])
    return Smoothness(
        ends=float(distances[:, -1].mean()),
        step=float(steps.mean()),
        largest=_mean(_quotient(steps.max(axis=1), steps.mean(axis=1))),
        length=_mean(_quotient(steps.sum(axis=1), distances[:, -1])),
        turn=_mean(np.degrees(np.arccos(np.clip(cosines, -1, 1)))),
        steps=tuple(steps.mean(axis=0).tolist()),
        distances=tuple(distances.mean(axis=0).tolist()),
    )


def _quotient(above: np.ndarray[Any, Any], below: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0))


def _mean(values: np.ndarray[Any, Any]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def interpolation(
    harness: Harness,
    runs: Sequence[Plan],
    shape: Sequence[int],
    *,
    pairs: int = defaults.INTERPOLATION.count,
    points: int = defaults.POINTS,
    side: int = defaults.SIDE,
    seed: int = 0,
) -> Table:
    """Decode lines between latents by every run, and measure how smooth the images are.

    Args:
        harness: The harness that measures the model.
        runs: The plans that decode. The first also decodes the grid.
        shape: The shape (C, H, W) of an x_T.
        pairs: The number of lines; line p lies between the noise of (seed, 2p) and (seed, 2p + 1).
        points: The number of images on each line, at least 3.
        side: The number of images along each side of the grid between the noise of (seed, 0), ..., (seed, 3); 0 for no
            grid.
        seed: The seed of the noise.

    Returns:
        The table, with sheets of the images.

    Raises:
        InputError: If `points` is below 3, or if `side` is 1.
    """
    if points < 3:
        raise InputError(f"a line of {points} images has no angle between steps: give points=3 or more")
    ends = [_latent(i, shape, seed) for i in range(max(2 * pairs, 4))]
    lines = [LatentPath.line(ends[2 * p], ends[2 * p + 1], points) for p in range(pairs)]
    between = [LatentPath.grid(ends[:4], side)] if side else []
    found = _Found()
    decoded = harness.each([partial(_decoded, harness, run, lines, seed) for run in runs])
    for run, (cell, failure) in zip(runs, decoded, strict=True):
        name, images = _name(run, runs), found.line(run, lines, cell, failure)
        if images is None:
            continue
        if not found.shown and between:
            grid, failure = _decoded(harness, run, between, seed)
            found.square = None if failure else (name, grid["image"].reshape(side, side, *images.shape[2:]))
        found.shown[name] = images
    for images in [*found.shown.values()][:1]:
        u = np.linspace(0, 1, points).reshape(1, -1, *[1] * len(shape))
        label = {"solver": CROSS_FADE, "grid": "-", "steps": None, "evaluations": None}
        found.add(label, smoothness((1 - u) * images[:, :1] + u * images[:, -1:]))
    columns, said = telling(_COLUMNS, found.rows, ("remark",))
    return Table(
        bench="interpolation",
        title=f"Interpolation: {harness.model.title}, {pairs} lines of {points} images{_steps(runs)}, seed {seed}, "
        f"{harness.conventions(runs[0])}",
        settings={
            **harness.header(runs[0]), "seed": seed, "shape": list(shape),
            "pairs": pairs, "points": points, "side": side, "images": "in [-1, 1]; nothing is clipped",
            "path": "x_T on the great circle between two (slerp)", "profiles": found.profiles,
        },
        columns=columns,
        rows=said,
        notes=(
            "all values are means over the lines",
            f"{CROSS_FADE}: the straight line in pixel space between the end images of "
            f"{next(iter(found.shown), 'the first solver')}, which has the shortest possible mean step",
        ),
        group=("solver", "grid"),
        sheets=tuple(_sheets(harness.model.title, found.shown, found.square)),
    )  # fmt: skip


def _latent(i: int, shape: Sequence[int], seed: int) -> State:
    """Return the noise of (seed, i) as a state at σ = 0, where x̄ equals x, so that x_T itself is interpolated."""
    return State(noise(1, tuple(shape), seed=seed, start=i), 0.0)


def _decoded(harness: Harness, run: Plan, paths: Sequence[LatentPath], seed: int) -> tuple[Columns, str]:
    """Decode all points of paths of equal length, and return the cell, with `image` (N, C, H, W), and the failure.

    A stochastic solver adds the noise of (seed, i, step) to point i.
    """
    each, corners = len(paths[0]), len(paths[0].corners.xbar)
    shape = paths[0].corners.xbar.shape[1:]

    def measure(start: int, stop: int) -> Columns:
        x_T = torch.cat([paths[i // each].read(i % each, i % each + 1).xbar for i in range(start, stop)])
        images = torch.full((len(x_T), *harness.model.shape_of_images(shape)), torch.nan, dtype=harness.dtype)
        failure = ""
        harness.model.reset()
        try:
            noisy = run.with_solver(with_noise(run.solver, seed=seed, start=start))
            images = solve(x_T.to(harness.dtype), model=harness.model, plan=noisy)
        except (InputError, BudgetExceeded) as error:  # the other rows are still useful
            failure = str(error)
        return {
            "image": images.cpu().numpy(),
            "evaluations": np.full(stop - start, harness.model.rows / (stop - start)),
            "failure": failure_column(failure, stop - start),
        }

    settings = harness.settings(
        "interpolation", run, seed=seed, size=list(shape), paths=len(paths), corners=corners, points=each
    )
    cell = harness.measure(settings, len(paths) * each, measure, evaluations=expected(run))
    return cell, error_words(cell["failure"])


_NOTHING: dict[str, Any] = dict.fromkeys(column.name for column in _COLUMNS)


@dataclass
class _Found:
    """The results of the runs: the rows, the lines of the figure, and the images of the sheets."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    profiles: list[dict[str, Any]] = field(default_factory=list)
    shown: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    square: tuple[str, np.ndarray[Any, Any]] | None = None

    def add(self, label: Mapping[str, Any], found: Smoothness) -> None:
        """Add a row of the table, and its line in the figure."""
        figures = {key: value for key, value in asdict(found).items() if key not in ("steps", "distances")}
        self.rows.append({**label, **figures, "remark": ""})
        about = {key: label[key] for key in ("solver", "grid", "steps")}
        self.profiles.append({**about, "lengths": list(found.steps), "distances": list(found.distances)})

    def line(self, run: Plan, lines: Sequence[LatentPath], cell: Columns, failure: str) -> np.ndarray[Any, Any] | None:
        """Add a run's row, and return the images (P, K, C, H, W) of its lines; None if the run failed."""
        label = {**first_cells(run), "evaluations": float(cell["evaluations"].mean())}
        if failure:
            self.rows.append({**_NOTHING, **label, "remark": failure})
            return None
        images = cell["image"].reshape(len(lines), len(lines[0]), *cell["image"].shape[1:])
        self.add(label, smoothness(images))
        return images


def _name(run: Plan, runs: Sequence[Plan]) -> str:
    """Return the name of a run on the sheets, with its steps if the runs have different steps."""
    return in_words(run) + (f", {run.steps} steps" if run.steps and not _steps(runs) else "")


def _steps(runs: Sequence[Plan]) -> str:
    """Return the words of a title about the steps, if all runs have the same."""
    counts = {run.steps for run in runs}
    return f", {counts.pop()} steps" if len(counts) == 1 and None not in counts else ""


def _sheets(
    model: str, lines: Mapping[str, np.ndarray[Any, Any]], square: tuple[str, np.ndarray[Any, Any]] | None
) -> Iterator[Sheet]:
    """Yield a sheet with the lines (P, K, C, H, W) of all solvers, ordered by pair of latents, and one of the grid."""
    found = [*lines.values()]
    if not found or found[0].shape[2] not in (1, 3):
        return  # data of other channels cannot be shown as images
    pairs, points = found[0].shape[:2]
    rows = [(f"{name}, pair {p + 1}", images[p]) for p in range(pairs) for name, images in lines.items()]
    yield Sheet(
        f"Interpolation: {model}, images between two latents",
        np.stack([_pixels(images) for _, images in rows]),
        tuple(name for name, _ in rows),
        _fractions(points),
    )
    if square:
        name, images = square
        side = _fractions(len(images))
        yield Sheet(f"Interpolation: {model}, images between four latents, {name}", _pixels(images), side, side)


def _pixels(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Convert images (*, C, H, W) in [-1, 1] to (*, H, W, C) uint8."""
    return np.asarray(to_bytes(torch.from_numpy(np.moveaxis(images, -3, -1))).numpy())


def _fractions(count: int) -> tuple[str, ...]:
    return tuple(f"{i / (count - 1):.2g}" for i in range(count))
