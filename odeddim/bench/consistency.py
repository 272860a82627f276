"""Consistency: the same x_T decoded by every solver with every number of steps, DDIM's Figure 5 and section 5.2.

The ODE assigns one image to each x_T. Only the solver's error makes the decoded image depend on the number of steps.
Each image is therefore compared, in pixels and in features, with the image that the reference, a run with many steps,
makes of the same x_T. The share is the median of these distances divided by the distance between the images of
different x_T. A share of 1 means that the two images have no more in common than images of different x_T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from odeddim.api import sample
from odeddim.bench.features import Features
from odeddim.bench.harness import Harness, error_words, expected, failure_column, first_cells, in_words
from odeddim.bench.measures import Values, quantile, rms_per_image, spread, spread_columns
from odeddim.bench.tables import Column, Sheet, Table, sheet, telling
from odeddim.bench.work_precision import references
from odeddim.plans import Plan
from odeddim.storage.row_files import Columns
from odeddim.types import BudgetExceeded, InputError

SHOWN = 8  # images in each column of a sheet

_COLUMNS = (
    Column("solver", "solver", form="s"),
    Column("grid", "grid", form="s"),
    Column("steps", "steps"),
    Column("evaluations", "evals", "evaluations of the network per image", "g"),
    *spread_columns("pixels", "pixels", "rms distance to the reference's image of the same x_T, pixels in [-1, 1]"),
    Column("pixel_share", "share", "the median divided by the rms distance between images of different x_T", ".1%"),
    *spread_columns("features", "features", "rms distance to the reference's image of the same x_T, in features"),
    Column("feature_share", "share", "the median divided by the rms distance between images of different x_T", ".1%"),
    Column("remark", "remark", form="s"),
)


def consistency(
    harness: Harness,
    runs: Sequence[Plan],
    count: int,
    shape: tuple[int, ...],
    *,
    seed: int = 0,
    end: str = "zero",
    features: Features | None = None,
) -> Table:
    """Decode the same noise by every run, and compare the images with those of the reference.

    Args:
        harness: The harness that measures the model.
        runs: The plans that decode.
        count: The number of x_T, at least 2.
        shape: The shape (C, H, W) of an x_T.
        seed: The seed of the noise; x_T number i is the noise of (seed, i).
        end: The end of the reference, "zero" or "sigma_min".
        features: A network whose features are compared too; None for pixels only.

    Returns:
        The table, with a sheet of images for each solver.

    Raises:
        InputError: If `count` is below 2, or if the reference fails.
    """
    if count < 2:
        raise InputError("consistency compares images of different x_T: give count=2 or more")
    goal = _reference(harness, count, shape, seed, end, features)
    rows: list[dict[str, Any]] = []
    shown: dict[str, list[tuple[str, Tensor]]] = {}
    cells = harness.each([partial(decoded, harness, run, count, shape, seed) for run in runs])
    for run, cell in zip(runs, cells, strict=True):
        rows.append(_row(run, cell, goal, features))
        label = f"S = {run.steps}" if run.steps else "adaptive"
        shown.setdefault(in_words(run), []).append((label, torch.from_numpy(cell["images"][:SHOWN])))
    optional = ["remark", *([] if features else ["features", "features_10", "features_90", "feature_share"])]
    columns, said = telling(_COLUMNS, rows, optional)
    return Table(
        bench="consistency",
        title=f"Consistency: {harness.model.title}, {count} x_T of seed {seed}, {harness.conventions(goal.plan)}",
        settings={
            **harness.header(goal.plan), "x_T": count, "seed": seed, "end": end,
            "reference": goal.words, "reference_error": goal.error, "features": features.name if features else "none",
            "features_sha256": features.sha256 if features else "", "pixels between different x_T": goal.pixels_apart,
            "features between different x_T": goal.features_apart,
        },
        columns=columns,
        rows=said,
        notes=(
            f"reference: {goal.words}; its error in pixels is at most {goal.error:.1e} for nine images in ten",
            f"features: {features.name if features else 'none'}",
        ),
        group=("solver", "grid"),
        sheets=tuple(_sheet(words, series, goal.images[:SHOWN]) for words, series in shown.items()),
    )  # fmt: skip


class _Reference(NamedTuple):
    """The run that the others are compared with.

    Attributes:
        plan: Its plan.
        words: The plan in words.
        images: The images (N, C, H, W) of the x_T.
        features: Their features (N, d); None without a feature network.
        error: The error that nine images in ten do not exceed, rms over pixels.
        pixels_apart: The rms distance between images of different x_T.
        features_apart: The rms distance between features of different x_T.
    """

    plan: Plan
    words: str
    images: Tensor
    features: Tensor | None
    error: float
    pixels_apart: float | None
    features_apart: float | None


def _reference(
    harness: Harness, count: int, shape: tuple[int, ...], seed: int, end: str, features: Features | None
) -> _Reference:
    coarse, fine = references(harness.model, end)
    words = f"{fine.solver.name} on the {fine.grid} grid, {fine.steps} steps"
    cells = [*harness.each([partial(decoded, harness, run, count, shape, seed) for run in (coarse, fine)])]
    if failure := next((failed for cell in cells if (failed := error_words(cell["failure"]))), ""):
        raise InputError(f"the reference, {words}, failed: {failure}")
    before, images = (torch.from_numpy(cell["images"]) for cell in cells)
    found = features(images) if features else None
    error = quantile(rms_per_image(images - before), 0.9)
    return _Reference(fine, words, images, found, error, _between(images), _between(found))


def _row(run: Plan, cell: Columns, goal: _Reference, features: Features | None) -> dict[str, Any]:
    failure, images = error_words(cell["failure"]), torch.from_numpy(cell["images"])
    pixels = compared = None
    if not failure:
        pixels = rms_per_image(images - goal.images)
        if features is not None and goal.features is not None:
            compared = rms_per_image(features(images) - goal.features)
    return {
        **first_cells(run),
        "evaluations": float(cell["evaluations"].mean()),
        **_distances("pixels", "pixel_share", pixels, goal.pixels_apart),
        **_distances("features", "feature_share", compared, goal.features_apart),
        "remark": failure,
    }


def _sheet(words: str, series: Sequence[tuple[str, Tensor]], goal: Tensor) -> Sheet:
    """Return a solver's sheet: an x_T in each row, a number of steps in each column, and the reference at the right."""
    images = torch.stack([*(images for _, images in series), goal], dim=1)
    columns = [*(label for label, _ in series), "reference"]
    return sheet(f"{words}: one x_T in each row", images, [f"x_T {i}" for i in range(len(goal))], columns)


def decoded(harness: Harness, run: Plan, count: int, shape: tuple[int, ...], seed: int) -> Columns:
    """Return the images (count, C, H, W) that a run decodes from noise; image i is from the noise of (seed, i)."""
    settings = harness.settings("consistency", run, seed=seed, size=list(shape))
    of_images = harness.model.shape_of_images(shape)

    def measure(start: int, stop: int) -> Columns:
        n, failure = stop - start, ""
        images = torch.full((n, *of_images), math.nan)
        harness.model.reset()
        try:
            images = sample(n, seed=seed, start=start, model=harness.model, plan=run, shape=of_images)
        except (InputError, BudgetExceeded) as error:  # the other rows are still useful
            failure = str(error)
        return {
            "images": images.cpu().to(torch.float32).numpy(),
            "evaluations": np.full(n, harness.model.rows / n),
            "failure": failure_column(failure, n),
        }

    return harness.measure(settings, count, measure, evaluations=expected(run))


def _distances(name: str, share: str, values: Values | None, apart: float | None) -> dict[str, float | None]:
    """Return the cells of distances (N,), and of their median divided by the distance between different x_T."""
    cells = spread(name, values)
    middle = cells[name]
    return {**cells, share: None if middle is None or apart is None else middle / apart}


def _between(values: Tensor | None) -> float | None:
    """Return the rms distance between different rows of (N, *): over all pairs, √2 times the standard deviation."""
    if values is None:
        return None
    deviation = values.double() - values.double().mean(dim=0)
    return math.sqrt(2 * float(deviation.square().flatten(1).mean(dim=1).sum()) / (len(values) - 1))
