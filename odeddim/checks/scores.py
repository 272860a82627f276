"""Scores: how far the path of each image, from one short encode, is from the paths of a set of reference images.

A reference keeps the profile of each of its images (`odeddim.checks.paths.PROFILE`). The score of an image is the
distance of its profile to the nearest of them, after the profiles of the reference have been made white. An image is
strange if its score is above the threshold, which a chosen share of images like those of the reference exceeds.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Unpack

from odeddim import defaults, solvers
from odeddim.api import Model, planned, state_dtype, to_data
from odeddim.checks.density import log_density
from odeddim.checks.paths import PROFILE, SUMS, check_path, recorded
from odeddim.checks.whiteness import FIGURES, statistics
from odeddim.latents.arithmetic import rms
from odeddim.models import DEFAULT, FLOW, load
from odeddim.ode.field import VectorField
from odeddim.ode.grids import is_named
from odeddim.plans import Callback, Grid, Plan, check_encodes, integrate
from odeddim.runs.batches import Batches, BatchSize
from odeddim.runs.progress import Progress
from odeddim.storage.atomic import replacing
from odeddim.storage.images import open_images
from odeddim.storage.json_files import read_json
from odeddim.types import InputError, OdeSettings, Solver

FORMAT, VERSION = "odeddim reference", 1
ROUND_TRIP, DENSITY = "round_trip", "bits_per_dim"
"""Statistics that take further evaluations, and are measured if they are asked for."""
WITH_SAMPLES = (DEFAULT, FLOW)
"""The built-in models whose reference can be the sample images of the package."""

_FOLDS = 20  # parts that the reference is cut into, to score each of its images by the others
_RIDGE = 1e-3  # added to the variances of the principal components of a reference, whose features have variance 1
_LARGEST = 1 << 30  # characters of a file
_Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Reference:
    """What the images of a set are like, for a model and a plan: `odeddim.calibrate` makes one.

    Attributes:
        profile: The profiles of the images, (N, 5S-1) float64 for a plan of S steps.
        plan: The plan that encoded them; its notes name the model.
        false_positives: The share of images like these that is called strange.

    Raises:
        InputError: If there are too few images for this share, or the profiles do not suit the plan.

    Example:
        >>> images = odeddim.sample(40, model="exact-gaussian", shape=(1, 4, 4), steps=5)
        >>> reference = odeddim.calibrate(images, model="exact-gaussian", steps=5)
        >>> reference
        <Reference: 40 images, euler, karras grid, 5 steps, end zero, model exact-gaussian>
    """

    profile: Tensor
    plan: Plan
    false_positives: float = 0.05

    def __post_init__(self) -> None:
        check_share(self.false_positives, len(self.profile))
        if self.profile.ndim != 2 or self.profile.shape[1] != len(PROFILE) * (self.plan.steps or 0) - 1:
            raise InputError(f"profiles {tuple(self.profile.shape)} do not suit a plan of {self.plan.steps} steps")

    @cached_property
    def own_scores(self) -> Tensor:
        """The score of each image of the reference by the other parts of it, (N,) float64."""
        whole = self.profile.numpy()
        parts = np.arange(len(whole)) % min(_FOLDS, len(whole))
        own = np.empty(len(whole))
        for part in range(int(parts.max()) + 1):
            own[parts == part] = _Nearest(whole[parts != part]).distances(whole[parts == part])
        return torch.from_numpy(own)

    @cached_property
    def threshold(self) -> float:
        """The score above which an image is strange."""
        return float(self.own_scores.sort().values[_place(self.false_positives, len(self)) - 1])

    @cached_property
    def _nearest(self) -> _Nearest:
        return _Nearest(self.profile.numpy())

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides a score, and whether it is strange."""
        values = hashlib.sha256(self.profile.numpy().tobytes()).hexdigest()
        return hashlib.sha256(json.dumps([self.false_positives, _bare(self.plan), values]).encode()).hexdigest()

    def score(self, profile: Tensor) -> Tensor:
        """The scores of images, given their profiles.

        Args:
            profile: The profiles, (B, 5S-1) float64.

        Returns:
            The scores, (B,) float64, each the same bits in any batch.
        """
        return torch.from_numpy(self._nearest.distances(profile.numpy()))

    def check(self, field: VectorField) -> None:
        """Raise an InputError unless the reference was made for this model and condition."""
        if other := self.plan.unlike(field):
            raise InputError(f"the reference was made {other}: make another one, with this model")

    def to_json(self) -> str:
        """The content of the reference's file, as text."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "false_positives": self.false_positives,
            "plan": self.plan.to_dict(),
            "profile": self.profile.tolist(),
        }
        return json.dumps(content, ensure_ascii=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the reference to a file, for `Reference.load` and `odeddim score --reference`.

        Args:
            path: The file, such as reference.json.

        Raises:
            InputError: If the file cannot be written.
        """
        with replacing(Path(path)) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Reference:
        """Read a reference from a file.

        Args:
            path: A file that `save` or `odeddim score --calibrate` has written.

        Returns:
            The reference.

        Raises:
            InputError: If the file is no reference, or damaged.
        """
        hint = "make one with `odeddim.calibrate` or `odeddim score --calibrate`"
        content = read_json(path, "reference", hint, most=_LARGEST)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(f"{path} is no reference: {hint}")
        if content.get("version") != VERSION:
            raise InputError(f"{path} was written by a newer odeddim: make the reference again")
        plan = Plan.from_dict(content.get("plan"), path)
        try:
            profile = torch.tensor(content["profile"], dtype=torch.float64)
            if not bool(torch.isfinite(profile).all()):
                raise ValueError
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged (its profiles are not rows of numbers): {hint}") from error
        try:
            return cls(profile, plan, content.get("false_positives", 0.0))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def __len__(self) -> int:
        """The number of images, N."""
        return len(self.profile)

    def __repr__(self) -> str:
        return f"<Reference: {len(self)} images, {self.plan}, model {self.plan.notes.get('model', 'unknown')}>"


@dataclass(frozen=True, eq=False)
class Scores:
    """What one encode says of each image, and how far it is from a reference.

    Attributes:
        statistics: By name, (B,) float64 each: DiffPath's six sums (`odeddim.checks.paths.SUMS`), the statistics of
            the latent (`odeddim.checks.whiteness.FIGURES`), and "round_trip" and "bits_per_dim" if they were asked for.
        profile: The profiles, (B, 5S-1) float64.
        score: The distance to the nearest profile of the reference, (B,) float64.
        strange: Whether the score is above the threshold of the reference, (B,) bool.
        reference: The reference.

    Example:
        >>> some = odeddim.sample(44, model="exact-gaussian", shape=(1, 4, 4), steps=5)
        >>> reference = odeddim.calibrate(some[:40], model="exact-gaussian", steps=5)
        >>> len(odeddim.score(some[40:], model="exact-gaussian", reference=reference))
        4
    """

    statistics: Mapping[str, Tensor]
    profile: Tensor
    score: Tensor
    strange: Tensor
    reference: Reference

    def __len__(self) -> int:
        """The number of images, B."""
        return len(self.score)


def score(
    images: Tensor | NDArray[Any],
    solver: str | Solver = defaults.SCORE,
    *,
    model: Model = DEFAULT,
    reference: Reference | None = None,
    steps: int | None = None,
    grid: Grid = None,
    plan: Plan | None = None,
    round_trip: bool = False,
    density: bool = False,
    batch_size: BatchSize = None,
    progress: Progress = False,
    **settings: Unpack[OdeSettings],
) -> Scores:
    """Score images by the path of one short encode: how far each is from the images of a reference.

    The score is a distance between profiles, and not the gradient of the log density.

    Args:
        images: The images, (B, C, H, W) in [-1, 1], a tensor or a NumPy array.
        solver: A name of `odeddim.solvers.names()`, or a row of your own, with one evaluation a step.
        model: As of `odeddim.solve`.
        reference: What `calibrate` made for this model; None for the 256 sample images of the package, which the
            built-in models of clothes take, and which are encoded first.
        steps: The number of steps, 10 by default.
        grid: As of `odeddim.encode`, but "karras" by default.
        plan, batch_size, progress, **settings: As of `odeddim.encode`. With a reference the run is that of the
            reference: what is given besides must say the same.
        round_trip: Whether to decode each latent again, for the statistic "round_trip". It doubles the evaluations.
        density: Whether to measure the log density of each image too, as continuous data by the defaults of
            `odeddim.log_density`, for the statistic "bits_per_dim". It takes 42 evaluations and 42 products more.

    Returns:
        The scores.

    Raises:
        InputError: If an argument cannot be used, or the reference is for another model or another run.

    Source:
        The six sums: Heng, Thiery and Soh 2024, arXiv 2405.11881 (DiffPath).

    Example:
        >>> some = odeddim.sample(44, model="exact-gaussian", shape=(1, 4, 4), steps=5)
        >>> reference = odeddim.calibrate(some[:40], model="exact-gaussian", steps=5)
        >>> found = odeddim.score(some[40:], model="exact-gaussian", reference=reference)
        >>> found.score.shape, found.strange.dtype
        (torch.Size([4]), torch.bool)
    """
    field = load(model)
    said = short_plan(field, plan, solver, steps, grid, "zero", settings)
    check_run(said if reference is None else reference.plan, round_trip)
    if reference is None:
        reference = of_samples(field, said, torch.float32, batch_size, progress)
    plan = plan_by(reference, field, said if _is_said(plan, solver, steps, grid, settings) else None)
    statistics, profile = measured(field, images, plan, asked_for(round_trip, density), batch_size, progress)
    return scored(statistics, profile, reference)


def calibrate(
    images: Tensor | NDArray[Any],
    solver: str | Solver = defaults.SCORE,
    *,
    model: Model = DEFAULT,
    false_positives: float = 0.05,
    steps: int | None = None,
    grid: Grid = None,
    plan: Plan | None = None,
    batch_size: BatchSize = None,
    progress: Progress = False,
    **settings: Unpack[OdeSettings],
) -> Reference:
    """Make the reference that `score` compares with, of images that are as they should be.

    Args:
        images: The images, (N, C, H, W) in [-1, 1]; if possible not those that the model was trained on.
        solver, model, steps, grid, plan, batch_size, progress, **settings: As of `score`.
        false_positives: The share p of images like these that `score` is to call strange. With N images it is kept to
            ±√(p·(1-p)/N).

    Returns:
        The reference; its `save` keeps it in a file.

    Raises:
        InputError: If an argument cannot be used, or there are too few images.

    Example:
        >>> images = odeddim.sample(40, model="exact-gaussian", shape=(1, 4, 4), steps=5)
        >>> odeddim.calibrate(images, model="exact-gaussian", false_positives=0.1).plan.steps
        10
    """
    field = load(model)
    plan = short_plan(field, plan, solver, steps, grid, "zero", settings)
    check_run(plan, False)
    _, profile = measured(field, images, plan, (), batch_size, progress)
    return Reference(profile, plan.noted(field), false_positives)


def check_run(plan: Plan, round_trip: bool) -> None:
    """Raise an InputError unless paths can be recorded on a plan, and the round trip says something if it is asked."""
    check_encodes(plan.solver)
    check_path(plan.solver)
    if round_trip and plan.solver.reversible:
        raise InputError(
            f"solver {plan.solver.name!r} comes back exactly from any latent, so round_trip=True says nothing: leave "
            "it out"
        )


def of_samples(
    field: VectorField, plan: Plan, dtype: torch.dtype, batch_size: BatchSize = None, progress: Progress = False
) -> Reference:
    """The reference that is made of the sample images of the package, with a state of this dtype.

    Raises:
        InputError: If the model is not one of clothes.
    """
    if field.name not in WITH_SAMPLES:
        raise InputError(
            f"the model {field.name!r} has no reference of its own: give reference=..., made of images that are as "
            "they should be"
        )
    _, profile = measured(field, open_images()[:].to(dtype), plan, (), batch_size, progress)
    return Reference(profile, plan.noted(field))


def plan_by(reference: Reference, field: VectorField, said: Plan | None) -> Plan:
    """The plan of a reference on a model.

    Args:
        reference: The reference.
        field: The model.
        said: The plan that was asked for besides; None for none.

    Raises:
        InputError: If the reference is for another model, or the plan that was asked for is another one.
    """
    reference.check(field)
    plan = reference.plan.on(field.schedule)
    if said is not None and _bare(said) != _bare(plan):
        raise InputError(
            f"the reference was made by {plan}, and a run by {said} cannot be compared with it: leave out solver=... "
            "and steps=..., or make another reference"
        )
    return plan


def _bare(plan: Plan) -> dict[str, Any]:
    """What a plan does, without what is told of it."""
    return {key: value for key, value in plan.to_dict().items() if key not in ("notes", "grid")}


def measured(
    field: VectorField,
    images: Tensor | NDArray[Any],
    plan: Plan,
    more: tuple[str, ...] = (),
    batch_size: BatchSize = None,
    progress: Progress = False,
    *,
    start: int = 0,
) -> tuple[dict[str, Tensor], Tensor]:
    """The statistics of images and their profiles.

    Args:
        field: The model.
        images: The images, (B, C, H, W).
        plan: The plan.
        more: The further statistics, see `asked_for`.
        batch_size, progress: As of `odeddim.encode`.
        start: The index of the first image.

    Returns:
        The statistics, (B,) float64 by name, and the profiles, (B, 5S-1) float64, on the CPU.

    Raises:
        InputError: If the plan or the images cannot be used.
    """
    images = state_dtype(images)
    field.check(images, field.image_sizes)

    def batch(rows: slice, plan: Plan, callback: Callback | None) -> Tensor:
        data = to_data(field, images[rows])
        state, seen = recorded(field, data, plan, callback)
        found = [torch.from_numpy(seen.sums), *(each[:, None] for each in statistics(state.x).values())]
        if ROUND_TRIP in more:
            found.append(rms(integrate(field, state, plan).xbar - data.to(state.xbar.device))[:, None])
        if DENSITY in more:
            density = log_density(images[rows], model=field, dequantise="none", start=start + rows.start)
            found.append(density.bits_per_dim[:, None])
        return torch.cat([*found, torch.from_numpy(seen.profile)], 1)

    batches = Batches(field, plan, batch_size, progress)
    found = batches.run(batch, len(images), torch.device("cpu"), "scoring", tuple(images.shape[1:]))
    names = names_of(more)
    return dict(zip(names, found.T[: len(names)], strict=True)), found[:, len(names) :]


def asked_for(round_trip: bool, density: bool) -> tuple[str, ...]:
    """The names of the statistics that are measured only if they are asked for."""
    return (*((ROUND_TRIP,) if round_trip else ()), *((DENSITY,) if density else ()))


def names_of(more: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the statistics."""
    return (*SUMS, *FIGURES, *more)


def scored(statistics: Mapping[str, Tensor], profile: Tensor, reference: Reference) -> Scores:
    """The scores of images whose profiles are known."""
    distance = reference.score(profile)
    return Scores(statistics, profile, distance, distance > reference.threshold, reference)


def check_share(share: object, count: int) -> None:
    """Raise an InputError unless so many images can tell which of them are in this last share."""
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
        raise InputError(f"false_positives must be a share between 0 and 1, such as 0.05, not {share!r}")
    if _place(share, count) > count:
        raise InputError(
            f"a reference of {count} images cannot tell a share of {share:g}: give at least "
            f"{math.ceil(1 / share - 1e-9) - 1} images, or a larger false_positives=..."
        )


def _place(share: float, count: int) -> int:
    """The place of the threshold among the scores of a reference, from 1.

    Of N + 1 scores in random order the last exceeds the k-th of the others with the probability 1 - k/(N+1) at most.
    """
    return math.ceil((count + 1) * (1 - share) - 1e-9)


class _Nearest:
    """Distances to the nearest of many profiles, made white."""

    def __init__(self, profiles: _Array) -> None:
        self.mean, scale = profiles.mean(0), profiles.std(0)
        # A feature that is the same in all images, up to rounding, keeps its units.
        self.scale = np.where(scale > 1e-9 * (1 + np.abs(self.mean)), scale, 1.0)
        z = (profiles - self.mean) / self.scale
        variances, axes = np.linalg.eigh(z.T @ z / len(z))
        self.axes = np.ascontiguousarray((axes / np.sqrt(np.maximum(variances, 0) + _RIDGE)).T)
        self.points = np.stack([*self._white(profiles)])

    def _white(self, profiles: _Array) -> Iterator[_Array]:
        """One by one: the rounding of a product with a whole batch depends on the batch."""
        return (self.axes @ np.ascontiguousarray((profile - self.mean) / self.scale) for profile in profiles)

    def distances(self, profiles: _Array) -> _Array:
        """The distance of each profile to the nearest of those, (B,)."""
        nearest = [np.square(self.points - point).sum(1).min() for point in self._white(profiles)]
        return np.sqrt(np.array(nearest, np.float64))


def short_plan(
    field: VectorField,
    plan: Plan | None,
    solver: str | Solver,
    steps: int | None,
    grid: Grid,
    end: str,
    settings: Mapping[str, Any],
) -> Plan:
    """The plan of the arguments that a user gives, of few steps by default.

    Raises:
        InputError: If an argument cannot be used, or a step of the solver has more evaluations than one.
    """
    row = plan.solver if isinstance(plan, Plan) else solver
    row = solvers.get(row) if isinstance(row, str) else row
    if isinstance(row, Solver):
        check_path(row)
    if plan is None:
        grid = defaults.SCORE_GRID if grid is None else grid
        short = steps is None and isinstance(grid, str) and is_named(grid)
        steps = defaults.SCORE_STEPS if short else steps
    return planned(field, plan, solver, defaults.SCORE, steps, grid, end, settings)


def _is_said(
    plan: Plan | None, solver: str | Solver, steps: int | None, grid: Grid, settings: Mapping[str, Any]
) -> bool:
    """Whether anything was said of the run."""
    given = (plan, steps, grid, *settings.values())
    return solver != defaults.SCORE or any(value is not None for value in given)
