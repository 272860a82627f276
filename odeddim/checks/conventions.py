"""Under which convention a network answers noised images best: what it predicts, its schedule, its labels.

Add noise z to images x0 of the network's data, x̄ = x0 + σ·z. No function of x̄ is nearer to z, in the mean square, than
E[z | x̄], which is what a network is trained to answer. So the convention under which a trained network is read rightly
has the smallest residual ε - z at every noise level, and another one that is nearer to z is the right one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odeddim.ode.field import VectorField
from odeddim.ode.predictions import PREDICTIONS
from odeddim.ode.schedule import TIMES, Schedule, Time
from odeddim.solvers.stochastic import noise
from odeddim.types import InputError

SALT = 7_000
"""The noise of level k is that of step SALT + k: images that a model drew from noise of a seed have no part in it."""
FLOOR = 1e-8
"""Added to mean squares before their logarithm is taken: exact fields of a few images have a residual of 0."""


@dataclass(frozen=True)
class Convention:
    """How a network's answer is read.

    Attributes:
        predicts: What it predicts, a name of `odeddim.ode.predictions.PREDICTIONS`.
        schedule: Its noise levels, and the units of its input.
        time: Its labels, a name of `odeddim.ode.schedule.TIMES` or a function of σ.
        off: By what it differs from the convention that the model claims: "prediction", "schedule", "labels", or both
            of two of these, as in "schedule and prediction"; "condition" for the claimed one under no condition; "" for
            the claimed one.
    """

    predicts: str
    schedule: Schedule
    time: Time
    off: str = ""

    @property
    def words(self) -> str:
        """The parts by which it differs from the claimed one: "predicts v, labels unit"."""
        told = []
        if "schedule" in self.off:
            told.append(f"schedule {self.schedule.name}")
        if "labels" in self.off:
            told.append(f"labels {self.time!r}")
        if "prediction" in self.off:
            told.append(f"predicts {self.predicts!r}")
        if self.off == "condition":
            told.append("no condition")
        return ", ".join(told)


def inputs(field: VectorField) -> list[Convention]:
    """The ways in which x and t might be meant, the claimed one first; all of them with the claimed prediction."""
    claimed, T = field.schedule, field.schedule.T if field.schedule.kind == "preserving" else 1000
    found = [Convention(field.predicts, claimed, field.time)]
    same = {field.time, "integer", "index" if field.time == "integer" else ""}  # "integer" rounds "index"
    found += [Convention(field.predicts, claimed, time, "labels") for time in TIMES if time not in same]
    others = [Schedule.linear(T), Schedule.scaled_linear(T), Schedule.cosine(T), Schedule.rectified_flow()]
    for other in [*others, Schedule.edm()]:
        if other.name != claimed.name:
            times = {"flow": ("unit", "index", "reversed"), "exploding": ("sigma", "log-sigma")}.get(
                other.kind, ("index",)
            )
            found += [Convention(field.predicts, other, time, "schedule") for time in times]
    return found


def levels_of(schedule: Schedule, count: int = 8) -> list[float]:
    """The noise levels where conventions are compared: evenly in log σ from 0.05 to 50, as far as the schedule goes."""
    low, high = max(schedule.sigma_min, 0.05), min(schedule.sigma_max, 50.0)
    if low >= high:
        low, high = schedule.sigma_min, schedule.sigma_max
    return torch.logspace(math.log10(low), math.log10(high), count, dtype=torch.float64).clamp(low, high).tolist()


def lowest_of(schedule: Schedule) -> list[float]:
    """The second, third, fifth and ninth level: there labels lie furthest apart in log σ, so a shift of one shows."""
    return [float(schedule.levels[i]) for i in (1, 2, 4, 8) if i < schedule.T - 1]


def noised(data: Tensor, sigma: float, place: int) -> tuple[Tensor, Tensor]:
    """Data with noise of one level, and the noise z, (B, *) each. place: the number of the level; each has its own."""
    z = noise(len(data), tuple(data.shape[1:]), step=SALT + place).to(data)
    return data + sigma * z, z


def residual(eps: Tensor, z: Tensor) -> Tensor:
    """The mean square of ε - z over the numbers of each image, (B,) float64; infinite where an answer is not finite."""
    found = (eps - z).double().square().flatten(1).mean(1).cpu()
    return torch.where(torch.isfinite(found), found, torch.inf)


def answers(
    field: VectorField, ways: Sequence[Convention], sigma: float, xbar: Tensor
) -> Iterator[tuple[Convention, Tensor]]:
    """ε at a noise level under every convention of these ways, read as every prediction.

    The network is evaluated once for each different input. A way whose labels the network does not take, or whose
    schedule does not have the level, is left out.
    """
    raw: dict[tuple[float, float], Tensor | None] = {}
    level = torch.tensor(sigma, dtype=torch.float64)
    for way in ways:
        if way.off and not way.schedule.sigma_min <= sigma <= way.schedule.sigma_max:
            continue
        key = float(way.schedule.scale(level)), float(way.schedule.label(level, way.time))
        if key not in raw:
            its = field.assuming(predicts="eps", schedule=way.schedule, time=way.time)
            raw[key] = _raw(its, level, xbar, claimed=not way.off)
        answer = raw[key]
        if answer is None:
            continue
        here = torch.full((len(xbar), *[1] * (xbar.ndim - 1)), sigma, dtype=xbar.dtype, device=xbar.device)
        for predicts, conversion in PREDICTIONS.items():
            if predicts.startswith("flow") and way.schedule.kind != "flow" and predicts != field.predicts:
                continue  # a velocity is that of a straight path
            off = way.off if predicts == field.predicts else f"{way.off} and prediction" if way.off else "prediction"
            yield Convention(predicts, way.schedule, way.time, off), conversion(answer, xbar, here)


def _raw(field: VectorField, level: Tensor, xbar: Tensor, *, claimed: bool) -> Tensor | None:
    """The network's answer; None if it does not take a label that the model does not claim, or answers with NaN."""
    try:
        return field(level, xbar)
    except (InputError, IndexError, RuntimeError, ValueError):
        if claimed:
            raise
        return None


def shifted(field: VectorField, by: int) -> VectorField | None:
    """The field with labels of another level, `by` levels higher; None if its labels are no numbers of levels.

    Labels "sigma" and "log-sigma" are functions of the noise level and have no number to be off by.
    """
    schedule, time = field.schedule, field.time
    if time in ("sigma", "log-sigma"):
        return None
    ends = schedule.label(schedule.levels[[0, -1]], time)
    step = float(ends[1] - ends[0]) / (schedule.T - 1)
    return field.assuming(time=lambda sigma: schedule.label(sigma, time) + by * step)
