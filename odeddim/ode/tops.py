"""The top of a run: from σ_s to σ_T the model's Gaussian may carry the state, at no evaluation.

    "model"           the solver runs up to σ_T, as usual
    "gaussian"        the Gaussian carries from the σ_s that suits the number of evaluations, or nowhere if none gains
    "gaussian:σ_s"    it carries from this noise level

Below σ_s the solver has fewer noise levels to cross, and so shorter steps; but the Gaussian's flow is not the model's,
and the lower σ_s is, the larger its own error. What both cost was measured on the model (`CURVES`) when its moments
were computed. With N evaluations a solver of the best errs by e(N) from σ_T, and by e(N·L/L_s) from σ_s, where L and
L_s are the widths of the two ranges in log σ. The σ_s with the smallest √(g(σ_s)² + e(N·L/L_s)²) is taken.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import torch
from torch import Tensor

from odeddim.ode.gaussian import Gaussian
from odeddim.ode.schedule import Schedule
from odeddim.types import InputError, State

MODEL, GAUSSIAN = "model", "gaussian"
LACKS = (
    "the model {} has no Gaussian of its data that holds under its condition: compute one with `odeddim moments`, or "
    "leave out top='gaussian'"
)
CURVES = ("sigma", "gaussian_decode", "gaussian_encode", "evaluations", "solver_decode", "solver_encode")
"""What `Gaussian.errors` holds: at a ladder of noise levels σ_s the error that carrying from there makes of images (rms
in [-1, 1]) and of latents (over σ_T); and at a ladder of numbers of evaluations those of the best of some solvers."""
WORTH = 0.9
"""The predicted error must fall to this part of that without a Gaussian, in both directions, or none carries."""
_SAME = 1e-6  # of σ_T: two latents are one up to the rounding of another machine


def gaussian_top(top: str) -> tuple[bool, float | None]:
    """Whether a top is a Gaussian's, and its σ_s if that is given.

    Args:
        top: "model", "gaussian" or "gaussian:σ_s".

    Raises:
        InputError: If it is something else.
    """
    family, colon, number = top.partition(":")
    if top == MODEL:
        return False, None
    if family == GAUSSIAN:
        try:
            low = float(number) if colon else None
        except ValueError:
            low = math.nan
        if low is None or 0 < low < math.inf:
            return True, low
    raise InputError(f"unknown top {top!r}: give 'model', 'gaussian', or a noise level with it, such as 'gaussian:20'")


def begins(
    top: str, moments: Gaussian | None, schedule: Schedule, evaluations: int | None, *, named: bool = True
) -> float | None:
    """The noise level σ_s from which a Gaussian carries; None if none does, NaN for where the given nodes end.

    Args:
        top: As of `gaussian_top`.
        moments: The model's Gaussian, or None if it has none.
        schedule: The model's noise levels.
        evaluations: The evaluations of the run; None if its solver chooses them.
        named: Whether the nodes are those of a named grid, which ends where it is told to.

    Raises:
        InputError: If there is no Gaussian, it was not measured, or the σ_s that is given is outside its range.
    """
    wanted, low = gaussian_top(top)
    if not wanted:
        return None
    if moments is None:
        raise InputError(LACKS.format("of this plan"))
    if low is not None:
        if not schedule.sigma_min < low < schedule.sigma_max:
            raise InputError(
                f"top='gaussian:{low:g}': give a noise level between the model's lowest, {schedule.sigma_min:.6g}, and "
                f"its highest, {schedule.sigma_max:.6g}"
            )
        return low
    if not named:
        return math.nan
    if missing := [name for name in CURVES if name not in moments.errors]:
        raise InputError(
            f"the error of the model's Gaussian was not measured (its moments lack {missing[0]}): compute them with "
            "`odeddim moments`, or give the noise level, such as top='gaussian:20'"
        )
    return None if evaluations is None else best(moments, schedule, evaluations)


def best(moments: Gaussian, schedule: Schedule, evaluations: int) -> float | None:
    """The σ_s with the smallest predicted error; None if no Gaussian is worth it, or beyond what was measured."""
    if evaluations > float(moments.errors["evaluations"][-1]):
        return None  # solvers gain on the prediction there, and the Gaussian's error is near theirs
    sigmas = moments.errors["sigma"]
    width = math.log(schedule.sigma_max / schedule.sigma_min)
    factor = torch.zeros_like(sigmas)  # of the predicted error by that without a Gaussian, in the worse direction
    for way in ("decode", "encode"):
        plain = _at(moments, f"solver_{way}", torch.tensor(float(evaluations), dtype=torch.float64))
        below = _at(moments, f"solver_{way}", evaluations * width / (sigmas / schedule.sigma_min).log())
        factor = torch.maximum(factor, torch.hypot(moments.errors[f"gaussian_{way}"], below) / plain)
    place = int(factor.argmin())
    return float(sigmas[place]) if float(factor[place]) <= WORTH else None


def _at(moments: Gaussian, name: str, evaluations: Tensor) -> Tensor:
    """A solver's error at numbers of evaluations: straight lines between the measured ones, both in logarithms."""
    known, values = moments.errors["evaluations"].log(), moments.errors[name].clamp(min=1e-12).log()
    place = torch.searchsorted(known, evaluations.log()).clamp(1, len(known) - 1)
    share = (evaluations.log() - known[place - 1]) / (known[place] - known[place - 1])
    return torch.lerp(values[place - 1], values[place], share).exp()


def raised(moments: Gaussian, state: State, top: float) -> State:
    """The state at σ_s carried up to σ_T; a reversible solver's x̄ at σ_s is kept for the exact way back."""
    up = replace(state, xbar=moments.carry(state.xbar, state.sigma, top), sigma=top)
    if not state.aux:
        return up
    return replace(up, aux=(*state.aux, state.xbar), kept=f"{state.kept}{_mark(state.sigma, top)}")


def lowered(moments: Gaussian, state: State, low: float, top: float) -> State:
    """The state at σ_T carried down to σ_s: the x̄ that was kept there, if the state is the one that it became."""
    mark = _mark(low, top)
    if not state.kept.endswith(mark) or not state.aux or state.aux[-1].shape != state.xbar.shape:
        return replace(state, xbar=moments.carry(state.xbar, top, low), sigma=low)
    its, aux, kept = state.aux[-1], state.aux[:-1], state.kept.removesuffix(mark)
    apart = float((moments.carry(its, low, top) - state.xbar).detach().abs().max())
    if apart <= _SAME * math.hypot(1, top):
        return replace(state, xbar=its, sigma=low, aux=aux, kept=kept)
    warnings.warn(
        "the latents are not what this Gaussian made of the state below it (they were changed, or the model's moments "
        "were): the run starts from x̄ alone and does not come back exactly",
        stacklevel=4,
    )
    return State(moments.carry(state.xbar, top, low), low)


def _mark(low: float, top: float) -> str:
    """What `State.kept` says of the Gaussian above a reversible run."""
    return f", carried from {low!r} to {top!r}"
