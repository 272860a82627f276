"""The quality of samples over η and the number of steps, DDIM's Tables 1 and 3, for DDIM and any other solver.

Each row of the table has N samples. Sample i depends on (seed, i) only, and is rounded to the 8 bits of a PNG. The
features of the samples are compared with those of reference images: Fréchet distance, KID, precision and recall
(`odeddim.bench.distances`). The result depends on the feature network. Only with Inception's features is the Fréchet
distance called FID.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odeddim.api import sample
from odeddim.bench.distances import frechet, kid, precision_recall
from odeddim.bench.features import Features
from odeddim.bench.harness import (
    Harness,
    Pictures,
    error_words,
    expected,
    failure_column,
    first_cells,
    hash_of,
    in_words,
)
from odeddim.bench.paper import TAU, check_setting
from odeddim.bench.tables import Column, Sheet, Table, sheet, telling
from odeddim.plans import Plan
from odeddim.storage.png import to_bytes
from odeddim.storage.row_files import Columns
from odeddim.types import BudgetExceeded, InputError

HAT = "hat"
SHOWN = 8  # samples of each row on the sheet
_NEIGHBOURS = 3  # for precision and recall

_ALL_STEPS = (10, 20, 50, 100, 1000)
_FID: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "cifar10": {
        "0": (13.36, 6.84, 4.67, 4.16, 4.04),
        "0.2": (14.04, 7.11, 4.77, 4.25, 4.09),
        "0.5": (16.66, 8.35, 5.25, 4.46, 4.29),
        "1": (41.07, 18.36, 8.01, 5.78, 4.73),
        HAT: (367.43, 133.37, 32.72, 9.99, 3.17),
    },
    "celeba": {
        "0": (17.33, 13.73, 9.17, 6.53, 3.51),
        "0.2": (17.66, 14.11, 9.51, 6.79, 3.64),
        "0.5": (19.86, 16.06, 11.01, 8.09, 4.28),
        "1": (33.12, 26.03, 18.48, 13.93, 5.98),
        HAT: (299.71, 183.83, 71.71, 45.20, 3.26),
    },
    "bedroom": {"0": (16.95, 8.89, 6.75, 6.62), "1": (42.78, 22.77, 10.81, 6.81)},
    "church": {"0": (19.45, 12.47, 10.84, 10.58), "1": (51.56, 23.37, 11.16, 8.27)},
}
PAPER = {
    dataset: {(eta, steps): value for eta, row in rows.items() for steps, value in zip(_ALL_STEPS, row, strict=False)}
    for dataset, rows in _FID.items()
}
"""The FIDs in DDIM (arXiv 2010.02502) by η and steps: Table 1 (CIFAR-10, CelebA), Table 3 (LSUN; DDPM is η = 1)."""


def _columns(measure: str, paper: str | None) -> tuple[Column, ...]:
    return (
        Column("eta", "η", "DDIM's η; 0: the ODE; 1: DDPM; hat: DDPM with the larger variance σ̂ (appendix D.3)", "s"),
        Column("solver", "solver", form="s"),
        Column("grid", "grid", form="s"),
        Column("steps", "steps"),
        Column("evaluations", "evals", "evaluations of the network per image", "g"),
        Column("frechet", measure, "distance between the features of samples and of reference images", ".3f"),
        Column("kid", "KID", "kernel distance between these features, mean over subsets", ".4f"),
        Column("kid_std", "±", "standard deviation of KID over subsets of 1000 samples, or of all if fewer", ".4f"),
        Column("precision", "precision", f"share of samples near real images, by {_NEIGHBOURS} neighbours", ".3f"),
        Column("recall", "recall", f"share of real images near samples, by {_NEIGHBOURS} neighbours", ".3f"),
        Column("paper", "paper", f"the paper's FID for {paper}", "g"),
        Column("seconds", "seconds", "seconds of sampling, for all images", ".1f"),
        Column("remark", "remark", form="s"),
    )


@dataclass(frozen=True)
class Sampled:
    """A row of the table.

    Attributes:
        run: The plan that samples.
        eta: The value of η; "" for solvers outside DDIM's family.
    """

    run: Plan
    eta: str = ""


def quality(
    harness: Harness,
    lines: Sequence[Sampled],
    count: int,
    shape: tuple[int, ...],
    features: Features,
    reference: Pictures,
    *,
    seed: int = 0,
    end: str = "zero",
    paper: str | None = None,
    others: Pictures | None = None,
) -> Table:
    """Sample by every run, and compare the samples with reference images.

    Args:
        harness: The harness that measures the model.
        lines: The runs, with their η.
        count: The number of samples of each run.
        shape: The shape (C, H, W) of a sample.
        features: The network whose features are compared.
        reference: The real images that samples are compared with.
        seed: The seed of the noise; sample i depends on (seed, i) only.
        end: The end of the runs, "zero" or "sigma_min".
        paper: The data set, if the model and the reference are the paper's. A column then has the paper's FIDs.
        others: Other real images, for the baseline: as many of them as there are samples are compared with the
            reference. A perfect sampler would reach the baseline.

    Returns:
        The table, with a sheet of the first samples.

    Raises:
        InputError: If there are too few images, or if `paper` is given and the setting is not the paper's.
    """
    _check(harness, features, (paper, shape, end), (count, reference.count))
    real = of_images(harness, features, reference)
    references = reference.count
    width = real.shape[1]
    cells = harness.each([partial(sampled, harness, line.run, features, width, count, shape, seed) for line in lines])
    rows = [_row(line, cell, real, seed, paper) for line, cell in zip(lines, cells, strict=True)]
    good = [line for line, row in zip(lines, rows, strict=True) if not row["remark"]]
    first = harness.each([partial(shown, harness, line.run, min(SHOWN, count), shape, seed) for line in good])
    sheets = [*zip(good, first, strict=True)]
    best = {} if others is None else _best(harness, features, real, others, count, seed)
    columns, said = telling(_columns(features.measure, paper), rows, ("eta", "paper", "remark"))
    return Table(
        bench="quality",
        title=f"Quality: {harness.model.title}, {count} samples of seed {seed} against {references} images, "
        f"{harness.conventions(lines[0].run)}",
        settings={
            **harness.header(lines[0].run), "samples": count, "seed": seed, "end": end,
            "size": list(shape), "measure": features.measure, "features": features.name,
            "features_sha256": features.sha256, **reference.described,
            "rounding": "samples are clipped and rounded to 8 bits, as in a PNG", **best,
        },
        columns=columns,
        rows=said,
        notes=(
            f"features: {features.name}, with {references} reference images; compare only results for equally many "
            "samples",
            *_best_words(best, features.measure),
        ),
        group=tuple(column.name for column in columns if column.name in ("eta", "solver", "grid")),
        sheets=_sheets(sheets),
    )  # fmt: skip


def _row(line: Sampled, cell: Columns, real: Tensor, seed: int, paper: str | None) -> dict[str, Any]:
    failure = error_words(cell["failure"])
    found = dict.fromkeys(("frechet", "kid", "kid_std", "precision", "recall"))
    if not failure:
        found = compared(real, torch.from_numpy(cell["features"]), seed)
    return {
        "eta": line.eta,
        **first_cells(line.run),
        "evaluations": float(cell["evaluations"].mean()),
        **found,
        "paper": PAPER[paper].get((line.eta, line.run.steps or 0)) if paper and line.run.grid in TAU else None,
        "seconds": float(cell["seconds"].sum()),
        "remark": failure,
    }


def _check(
    harness: Harness, features: Features, setting: tuple[str | None, tuple[int, ...], str], counts: tuple[int, int]
) -> None:
    """Raise an InputError if there are too few images, or if the setting is not that of `paper`."""
    paper, shape, end = setting
    if paper:
        check_setting(paper, harness.model, shape, end)
        if features.measure != "FID":
            raise InputError(
                f"the paper's results are FIDs, but these are distances between features of {features.name}: leave out "
                "paper=..., or give the weights of Inception (features='inception:WEIGHTS.pth')"
            )
    if min(counts) <= _NEIGHBOURS:
        raise InputError(
            f"{counts[0]} samples and {counts[1]} reference images are too few: give at least {_NEIGHBOURS + 1} of each"
        )


def _best(
    harness: Harness, features: Features, real: Tensor, others: Pictures, count: int, seed: int
) -> dict[str, Any]:
    """Return the baseline, the results of `count` other real images in place of samples, for the table's settings."""
    held = of_images(harness, features, replace(others, count=min(count, others.count)))
    found = {f"{key} of real images": value for key, value in compared(real, held, seed).items()}
    return {**found, "real images": len(held)}


def _best_words(best: Mapping[str, Any], measure: str) -> tuple[str, ...]:
    if not best:
        return ()
    figures = (("frechet", measure, ".3f"), ("kid", "KID", ".4f"), ("precision", "precision", ".3f"),
               ("recall", "recall", ".3f"))  # fmt: skip
    words = ", ".join(f"{label} {best[f'{key} of real images']:{form}}" for key, label, form in figures)
    return (f"baseline: {best['real images']} other real images in place of samples have {words}",)


def _sheets(shown: Sequence[tuple[Sampled, Tensor]]) -> tuple[Sheet, ...]:
    if not shown:
        return ()
    labels = [
        f"{f'η = {line.eta}' if line.eta not in ('', HAT) else 'σ̂' if line.eta else in_words(line.run)}"
        f"{f', S = {line.run.steps}' if line.run.steps else ''}"
        for line, _ in shown
    ]
    count = shown[0][1].shape[0]
    images = torch.stack([images for _, images in shown])
    return (sheet("The first samples of each run, from the same x_T", images, labels, [str(i) for i in range(count)]),)


def compared(real: Tensor, fake: Tensor, seed: int) -> dict[str, Any]:
    """Compare the features of samples with those of reference images.

    Args:
        real: The features (M, d) of the reference images.
        fake: The features (N, d) of the samples.
        seed: The seed of KID's subsets.

    Returns:
        The cells frechet, kid, kid_std, precision and recall.

    Raises:
        InputError: If the features cannot be compared, or if torchmetrics is missing.
    """
    mean, spread = kid(real, fake, seed=seed)
    precision, recall = precision_recall(real, fake, _NEIGHBOURS)
    return {
        "frechet": frechet(real, fake), "kid": mean, "kid_std": spread, "precision": precision, "recall": recall,
    }  # fmt: skip


def of_images(harness: Harness, features: Features, images: Pictures) -> Tensor:
    """Return the features (N, d) of real images."""
    sha256 = hash_of(images.read, images.count)
    settings = {"made_by": "bench features", "features": harness.identity(features), "images": sha256}

    def measure(start: int, stop: int) -> Columns:
        return {"features": features(images.read(start, stop).float()).numpy()}

    return torch.from_numpy(harness.measure(settings, images.count, measure, at_once=256)["features"])


def sampled(
    harness: Harness, run: Plan, features: Features, width: int, count: int, shape: tuple[int, ...], seed: int
) -> Columns:
    """Return the features (count, width) of samples, and the seconds and evaluations of each (count,), as columns."""
    settings = harness.settings("quality", run, seed=seed, size=list(shape), features=harness.identity(features))

    def measure(start: int, stop: int) -> Columns:
        n, failure = stop - start, ""
        harness.model.reset()
        began, found = time.perf_counter(), None
        try:
            images = _samples(harness, run, start, stop, shape, seed)
            seconds = time.perf_counter() - began
            found = features(images)
        except (InputError, BudgetExceeded) as error:  # the other rows are still useful
            failure, seconds = str(error), time.perf_counter() - began
        return {
            "features": np.full((n, width), math.nan, np.float32) if found is None else found.numpy(),
            "evaluations": np.full(n, harness.model.rows / n),
            "seconds": np.full(n, seconds / n),
            "failure": failure_column(failure, n),
        }

    return harness.measure(settings, count, measure, evaluations=expected(run))


def shown(harness: Harness, run: Plan, count: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return the first samples (count, C, H, W)."""
    settings = harness.settings("samples", run, seed=seed, size=list(shape))

    def measure(start: int, stop: int) -> Columns:
        return {"images": _samples(harness, run, start, stop, shape, seed).numpy()}

    return torch.from_numpy(harness.measure(settings, count, measure, evaluations=expected(run))["images"])


def _samples(harness: Harness, run: Plan, start: int, stop: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return samples with the precision of a PNG, float32 in [-1, 1]."""
    of_images = harness.model.shape_of_images(shape)
    images = sample(stop - start, seed=seed, start=start, model=harness.model, plan=run, shape=of_images)
    if not bool(torch.isfinite(images).all()):
        raise InputError(f"{run.solver.name} returned NaN or infinite values: take more steps or another grid")
    return to_bytes(images).float() / 127.5 - 1
