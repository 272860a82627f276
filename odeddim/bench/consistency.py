"""Consistency: one x_T through every solver and number of steps, DDIM's Figure 5 and section 5.2.

The ODE's images of an x_T do not depend on the steps, but for the solver's error. So each image is compared with the
one that a tight run makes of the same x_T, in pixels and in features. The median of these distances is set beside the
distance between different x_T: a share of 1 would mean that nothing but chance is left in common.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odeddim.api import sample
from odeddim.bench.features import Features
from odeddim.bench.harness import Stand, error_words, expected, failure_column, first_cells, in_words
from odeddim.bench.reconstruction import mean_square
from odeddim.bench.spread import quantile, spread, spread_columns
from odeddim.bench.tables import Column, Table, sheet, telling
from odeddim.bench.work_precision import references
from odeddim.plans import Plan
from odeddim.storage.row_files import Columns
from odeddim.types import BudgetExceeded, InputError

SHOWN = 8  # images on a sheet

_COLUMNS = (
    Column("solver", "solver", form="s"),
    Column("grid", "grid", form="s"),
    Column("steps", "steps"),
    Column("evaluations", "evals", "evaluations of the network per image", "g"),
    *spread_columns("pixels", "pixels", "rms distance to the reference's image of the same x_T, pixels in [-1, 1]"),
    Column("pixel_share", "share", "the median, over the rms distance between the images of different x_T", ".1%"),
    *spread_columns("features", "features", "rms distance to the reference's image of the same x_T, in features"),
    Column("feature_share", "share", "the median, over the rms distance between the images of different x_T", ".1%"),
    Column("remark", "remark", form="s"),
)


def consistency(
    stand: Stand,
    runs: Sequence[Plan],
    count: int,
    shape: tuple[int, ...],
    *,
    seed: int = 0,
    end: str = "zero",
    features: Features | None = None,
) -> Table:
    """The table of these runs from `count` noises (C, H, W) of a seed, and a sheet of images for each solver.

    features: a network to compare images by, if there is one that takes them. Errors: InputError for one x_T alone,
    which nothing can be set beside.
    """
    if count < 2:
        raise InputError("the images of one x_T alone have nothing to be set beside: give 2 or more")
    coarse, fine = references(stand.model, end)
    reference = f"{fine.solver.name} on the {fine.grid} grid, {fine.steps} steps"
    cells = [decoded(stand, run, count, shape, seed) for run in (coarse, fine)]
    if failure := next((words for cell in cells if (words := error_words(cell["failure"]))), ""):
        raise InputError(f"the reference, {reference}, failed: {failure}")
    before, goal = (torch.from_numpy(cell["images"]) for cell in cells)
    goal_features = features(goal) if features else None
    apart = _between(goal), _between(goal_features)
    error = quantile(_rms(goal - before), 0.9)
    rows: list[dict[str, Any]] = []
    shown: dict[str, list[tuple[str, Tensor]]] = {}
    for run in runs:
        cell = decoded(stand, run, count, shape, seed)
        failure, images = error_words(cell["failure"]), torch.from_numpy(cell["images"])
        seen = spread("pixels", None if failure else _rms(images - goal))
        compared = None
        if features is not None and goal_features is not None and not failure:
            compared = _rms(features(images) - goal_features)
        felt = spread("features", compared)
        rows.append({
            **first_cells(run), "evaluations": float(cell["evaluations"].mean()),
            **seen, "pixel_share": _share(seen["pixels"], apart[0]),
            **felt, "feature_share": _share(felt["features"], apart[1]),
            "remark": failure,
        })  # fmt: skip
        label = f"S = {run.steps}" if run.steps else "adaptive"
        shown.setdefault(in_words(run), []).append((label, images[:SHOWN]))
    optional = ["remark", *([] if features else ["features", "features_10", "features_90", "feature_share"])]
    columns, said = telling(_COLUMNS, rows, optional)
    return Table(
        bench="consistency",
        title=f"Consistency: {stand.model.title}, {count} x_T of seed {seed}, {stand.conventions(fine)}",
        settings={
            **stand.header(fine), "x_T": count, "seed": seed, "end": end,
            "reference": reference, "reference_error": error, "features": features.name if features else "none",
            "features_sha256": features.sha256 if features else "", "pixels between different x_T": apart[0],
            "features between different x_T": apart[1],
        },
        columns=columns,
        rows=said,
        notes=(
            f"the reference is {reference}, itself known to {error:.1e} in pixels for nine images in ten",
            f"features: {features.name if features else 'none given'}",
        ),
        group=("solver", "grid"),
        sheets=tuple(
            sheet(
                f"{words}: an x_T in each row",
                torch.stack([*(images for _, images in series), goal[:SHOWN]], dim=1),
                [f"x_T {i}" for i in range(min(count, SHOWN))],
                [*(label for label, _ in series), "reference"],
            )
            for words, series in shown.items()
        ),
    )  # fmt: skip


def decoded(stand: Stand, run: Plan, count: int, shape: tuple[int, ...], seed: int) -> Columns:
    """The images (count, C, H, W) that a run makes of the noises of a seed, image i of (seed, i)."""
    settings = stand.settings("consistency", run, seed=seed, size=list(shape))

    def measure(start: int, stop: int) -> Columns:
        n, failure = stop - start, ""
        images = torch.full((n, *(stand.model.image_shape or shape)), math.nan)
        stand.model.reset()
        try:
            images = sample(n, seed=seed, start=start, model=stand.model, plan=run, shape=shape)
        except (InputError, BudgetExceeded) as error:  # the other rows are worth having all the same
            failure = str(error)
        return {
            "images": images.cpu().to(torch.float32).numpy(),
            "evaluations": np.full(n, stand.model.rows / n),
            "failure": failure_column(failure, n),
        }

    return stand.measure(settings, count, measure, evaluations=expected(run))


def _rms(difference: Tensor) -> np.ndarray[Any, Any]:
    """The rms of each image, (N, *) -> (N,)."""
    return mean_square(difference).sqrt().cpu().numpy()


def _share(distance: float | None, apart: float | None) -> float | None:
    return None if distance is None or apart is None else distance / apart


def _between(values: Tensor | None) -> float | None:
    """The rms distance between different rows of (N, *): over all pairs, √2 times the spread about the mean."""
    if values is None:
        return None
    spread = values.double() - values.double().mean(dim=0)
    return math.sqrt(2 * float(spread.square().flatten(1).mean(dim=1).sum()) / (len(values) - 1))
