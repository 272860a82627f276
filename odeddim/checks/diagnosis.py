"""Why do images not come back, or latents not look like noise? What noised images say about a model, level by level."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from odeddim import defaults
from odeddim.api import Model, planned, state_dtype, to_data
from odeddim.checks import conventions
from odeddim.checks.conventions import noised
from odeddim.checks.readings import (
    MARGIN,
    NONE_FITS,
    RIGHT,
    SURE,
    UNKNOWN,
    WRONG,
    Readings,
    Verdict,
    errors,
    log_residual,
    residual_of,
    unconditional,
)
from odeddim.models import DEFAULT, load
from odeddim.ode.field import VectorField
from odeddim.plans import Grid, Plan
from odeddim.solvers.stochastic import noise
from odeddim.trajectories import trajectory
from odeddim.types import InputError, Settings, Solver

_LEAST = 0.002  # of the mean log residual, by which labels must gain by a shift
_BENT = 0.4  # how much of a gain by a shift of labels must turn into a loss by a shift the other way
_LOST = 0.1  # rms in [-1, 1] of a round trip that is called lost
_SMALL = 4  # images of the amplification
_ROUNDS = 4  # of power iteration


@dataclass(frozen=True)
class Level:
    """What is found at a noise level; figures are over all images.

    Attributes:
        sigma: The noise level σ.
        label: The network's label t there.
        residual: How far ε is from the noise that was added, rms; zeros would have 1.
        slope: The slope of that noise over ε, all numbers together: 1 for a network that is asked as it was trained.
        best: The least residual under another convention, and
        convention: that convention in words.
        amplification: By how much the field amplifies an error, for each factor e of σ: the dominant eigenvalue of
            σ·∂ε/∂x̄ in size. The field of a distribution of images has none above 1 that stretches on the way up.
        unguided: The same at guidance 1; None without guidance.
        gap: How far the way back is from the way up at this level, rms in units of x; None if it is not known.
    """

    sigma: float
    label: float
    residual: float
    slope: float
    best: float
    convention: str
    amplification: float
    unguided: float | None
    gap: float | None


@dataclass(frozen=True)
class Diagnosis:
    """What noised images say about a model.

    Attributes:
        model: The name of the model, with its condition.
        images: How many images were taken.
        plan: The plan of the round trip in words.
        levels: The noise levels, rising.
        verdicts: The answers, in the order in which they were asked.
        round_trip: The error of the round trip, rms over the numbers of the data, median of the images; None if it is
            not known.
        cause: The question with the most likely cause; "" if nothing was found.
        words: The most likely cause in one sentence.

    Example:
        >>> found = odeddim.diagnose(odeddim.open_images()[:4], model="exact-samples", steps=8)
        >>> found.cause, len(found.levels), found.levels[0].sigma
        ('', 8, 0.05)
    """

    model: str
    images: int
    plan: str
    levels: tuple[Level, ...]
    verdicts: tuple[Verdict, ...]
    round_trip: float | None
    cause: str
    words: str

    def to_json(self) -> str:
        """The diagnosis as JSON. Numbers that are not finite become null."""
        content = asdict(self)
        for row in content["levels"]:
            row.update({k: None for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)})
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)


@torch.no_grad()
def diagnose(
    images: Tensor | np.ndarray,
    solver: str | Solver = defaults.SOLVE,
    *,
    model: Model = DEFAULT,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    plan: Plan | None = None,
    **settings: Unpack[Settings],
) -> Diagnosis:
    """Find out why a model's images do not come back, or its latents do not look like noise.

    Noise is added to the images, and the network is asked for it at 8 noise levels, as the model claims that it must be
    asked, and under other conventions of what it predicts, its schedule and its labels. The one that is right is
    nearest to the noise. About 150 evaluations and those of one round trip.

    Args:
        images: Images that are like those of the model's training, (B, C, H, W) in [-1, 1]; 16 are enough.
        solver, model, steps, grid, end, plan, **settings: The model under its condition, and the run that is to be
            diagnosed, as of `odeddim.encode`; 20 steps unless given.

    Returns:
        The figures of each level, an answer to each question, and the most likely cause in words.

    Raises:
        InputError: If an argument cannot be used, or there are fewer than 2 images.

    Example:
        >>> found = odeddim.diagnose(odeddim.open_images()[:8], model="exact-samples")
        >>> found.words[:13], {it.question: it.answer for it in found.verdicts}["prediction"]
        ('nothing found', 'right')
    """
    field = load(model)
    if plan is None and steps is None:
        steps = defaults.DIAGNOSE_STEPS
    plan = planned(field, plan, solver, defaults.SOLVE, steps, grid, end, settings)
    given = state_dtype(images)
    field.check(given, field.image_sizes)
    if len(given) < 2:
        raise InputError("a diagnosis compares images with each other: give at least 2, and better 16")
    data = to_data(field, given.to(field.device or given.device))
    ode = field.on_data()
    told = {name: value for name, value in ode.condition.to_dict().items() if name in ("label", "prompt")}
    plain = ode.conditioned(**told)
    readings = Readings.of(plain, data)
    verdicts = readings.verdicts
    if all(it.answer != WRONG or it.question == "labels" for it in verdicts):
        verdicts = [_shift(plain, data), *verdicts]
    if all(it.answer != WRONG for it in verdicts):
        verdicts += _guided_already(plain, data) + _guidance(ode, plain, data)
    nodes, gaps, trip, verdict = _round_trip(ode, data[:_SMALL], plan)
    verdicts.append(verdict)
    levels = tuple(
        Level(
            sigma=sigma,
            label=float(plain.schedule.label(torch.tensor(sigma), plain.time)),
            residual=residual_of(readings.claimed(sigma)),
            slope=readings.claimed(sigma).slope[0],
            best=readings.other(sigma)[0],
            convention=readings.other(sigma)[1],
            amplification=_amplification(ode, data[:_SMALL], sigma, k),
            unguided=None if ode.condition.guidance == 1 else _amplification(plain, data[:_SMALL], sigma, k),
            gap=float(np.interp(math.log(sigma), np.log(nodes), gaps)) if len(nodes) else None,
        )
        for k, sigma in enumerate(readings.levels)
    )
    cause, words = _cause(verdicts)
    return Diagnosis(ode.title, len(data), str(plan), levels, tuple(verdicts), trip, cause, words)


def _cause(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    """The most likely cause, and the sentence: the first question whose answer is "wrong"."""
    if any(it.words == NONE_FITS for it in verdicts):
        lost = [f"; {it.words}" for it in verdicts if it.question == "round trip" and it.answer == WRONG]
        return "", f"it cannot be told: {NONE_FITS}{''.join(lost)}"
    for it in verdicts:
        if it.answer == WRONG:
            return it.question, it.words
    open_ = [it.question for it in verdicts if it.answer == UNKNOWN]
    return "", "nothing found" + (f"; it cannot be told whether these are right: {', '.join(open_)}" if open_ else "")


def _shift(field: VectorField, data: Tensor) -> Verdict:
    """Whether all labels are one level too high or too low. It shows at the lowest levels alone."""
    logs: dict[int, Tensor] = {}
    for by in (-1, 0, 1):
        its = conventions.shifted(field, by)
        if its is None:
            return Verdict("shift", RIGHT, "labels are functions of σ, without a number to be off by")
        rows = []
        for k, sigma in enumerate(conventions.lowest_of(field.schedule)):
            xbar, z = noised(data, sigma, 100 + k)
            rows.append(log_residual(its(torch.tensor(sigma, dtype=torch.float64), xbar), z))
        logs[by] = torch.stack(rows).sum(0)
    change = {by: logs[by] - logs[0] for by in (-1, 1)}
    by = min(change, key=lambda it: float(change[it].mean()))
    gain, sure = -float(change[by].mean()), -errors(change[by])
    if gain < 0:
        both = all(errors(it) > SURE for it in change.values())
        return Verdict("shift", RIGHT if both else UNKNOWN, "labels one level higher or lower fit no better")
    low = conventions.lowest_of(field.schedule)
    if sure < SURE or gain < _LEAST * len(low) or abs(float((change[-1] + change[1]).mean())) < _BENT * gain:
        return Verdict("shift", UNKNOWN, "labels one level higher or lower make no clear difference on these images")
    return Verdict(
        "shift",
        WRONG,
        f"the labels are probably one level too {'high' if by < 0 else 'low'}: shifted by {by:+d} they lower the "
        f"residual by {-100 * math.expm1(-gain / len(low)):.1f}% at σ = {low[0]:.3g} to {low[-1]:.3g}",
    )


def _guided_already(plain: VectorField, data: Tensor) -> list[Verdict]:
    """Which guidance would answer best, where 1 is expected: ε_none + w·(ε_condition - ε_none) is a parabola in w."""
    none = unconditional(plain)
    if none is None:
        return []
    above, below = torch.zeros(len(data), dtype=torch.float64), torch.zeros(len(data), dtype=torch.float64)
    for k, sigma in enumerate(conventions.levels_of(plain.schedule)):
        xbar, z = noised(data, sigma, k)
        level = torch.tensor(sigma, dtype=torch.float64)
        untold, told = none(level, xbar).double(), plain(level, xbar).double()
        weight = 1 / (untold - z).square().mean().cpu()
        above += weight * ((z - untold) * (told - untold)).flatten(1).sum(1).cpu()
        below += weight * (told - untold).square().flatten(1).sum(1).cpu()
    if float(below.sum()) <= 0:
        return [Verdict("guidance", UNKNOWN, "the network answers alike under the condition and under none")]
    best = float(above.sum() / below.sum())
    spread = float((above - best * below).square().sum().sqrt() / below.sum())
    words = f"the guidance that answers best is {best:.2f} ± {spread:.2g}, where 1 is expected"
    if not 0.25 < best < 4 or spread > 0.1:
        return [Verdict("guidance", UNKNOWN, words)]
    if best < 0.75:
        fold = f"the network's answers are probably guided already, {1 / best:.2g} fold: {words}"
        return [Verdict("guidance", WRONG, fold)]
    return [Verdict("guidance", RIGHT, words)]


def _guidance(field: VectorField, plain: VectorField, data: Tensor) -> list[Verdict]:
    """Whether guidance leads away from the field of a distribution of images."""
    if field.condition.guidance == 1:
        return []
    change = []
    for k, sigma in enumerate(conventions.levels_of(plain.schedule)):
        xbar, z = noised(data, sigma, k)
        level = torch.tensor(sigma, dtype=torch.float64)
        change.append(log_residual(field(level, xbar), z) - log_residual(plain(level, xbar), z))
    each = torch.stack(change)
    worse, k = float(each.mean()), int(each.mean(1).argmax())
    words = (
        f"guidance {field.condition.guidance:g} raises the residual by {100 * math.expm1(worse):.2g}% in the mean over "
        f"all levels, most at σ = {conventions.levels_of(plain.schedule)[k]:.3g}"
    )
    if worse > MARGIN and errors(each.mean(0)) > SURE:
        return [Verdict("guidance", WRONG, f"the guided field is no field of images: {words}; encode at guidance 1")]
    return [Verdict("guidance", RIGHT, words)]


def _amplification(field: VectorField, data: Tensor, sigma: float, place: int) -> float:
    """The dominant eigenvalue of σ·∂ε/∂x̄ in size, the median of the images: power iteration by central differences."""
    xbar, _ = noised(data, sigma, place)
    level = torch.tensor(sigma, dtype=torch.float64)
    size = math.sqrt(xbar[0].numel())
    v = noise(len(xbar), tuple(xbar.shape[1:]), step=200 + place).to(xbar)
    length = torch.ones(len(xbar), dtype=xbar.dtype, device=xbar.device)
    for _ in range(_ROUNDS):
        v = v * (size / v.flatten(1).norm(dim=1).clamp(min=1e-30)).reshape(-1, *[1] * (v.ndim - 1))
        step = 3e-3 * sigma
        v = sigma * (field(level, xbar + step * v) - field(level, xbar - step * v)) / (2 * step)
        length = v.flatten(1).norm(dim=1) / size
    return float(length.double().median())


def _round_trip(field: VectorField, data: Tensor, plan: Plan) -> tuple[list[float], list[float], float | None, Verdict]:
    """Nodes above 0 and the gap between both ways there, rms in units of x; the error at the end, and the answer."""
    try:
        up = trajectory(data, direction="encode", model=field, plan=plan)
        assert up.end is not None
        down = trajectory(up.end, direction="decode", model=field, plan=plan)
    except InputError as error:
        return [], [], None, Verdict("round trip", UNKNOWN, str(error))
    order = torch.argsort(up.sigmas)
    back = torch.argsort(down.sigmas)
    apart = (up.xbar[order] - down.xbar[back]).double().flatten(2).square().mean(2).sqrt().cpu()
    nodes = up.sigmas[order].double().cpu()
    gaps = apart.median(1).values / torch.sqrt(1 + nodes**2)
    trip = float(apart[0].median())
    lost = [float(nodes[int((gaps > share * gaps.max()).nonzero().max())]) for share in (0.9, 0.1)] if trip else [0, 0]
    words = f"the round trip is {trip:.2g} off (rms), most of it lost between σ = {lost[0]:.3g} and {lost[1]:.3g}"
    high = nodes > 0
    found = nodes[high].tolist(), gaps[high].tolist(), trip
    if not trip > _LOST:
        return *found, Verdict("round trip", RIGHT, words if trip else "the round trip is exact")
    return *found, Verdict("round trip", WRONG, f"the solver loses the images: {words}; take more steps")
