"""What a network answers under every convention, and what follows for its prediction, schedule and labels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from odeddim.checks import conventions
from odeddim.checks.conventions import FLOOR, Convention, noised, residual
from odeddim.ode.field import VectorField
from odeddim.types import InputError

RIGHT, WRONG, UNKNOWN = "right", "wrong", "cannot be told"
SLANT = 0.07
"""How far the slope of the noise over the answer may be from 1, rms over the levels. Right conventions were found to
have 0.03 at most, and wrong ones 0.09 at least (docs/diagnose.md)."""
NONE_FITS = (
    "under no convention that was tried does the network answer as one that was trained on such images: either the "
    "images are unlike those of its training, or it needs a convention that was not tried"
)
MARGIN = 0.02
"""Of the mean log residual, by which another convention must be worse to be ruled out."""
SURE = 3.0
"""Standard errors over images."""
_TWO = 0.1  # of the mean log residual, by which a convention must be better that differs in two things


@dataclass(frozen=True)
class Verdict:
    """The answer to one question.

    Attributes:
        question: "prediction", "schedule", "labels", "shift", "condition", "guidance" or "round trip".
        answer: "right", "wrong" or "cannot be told".
        words: The reason.
    """

    question: str
    answer: str
    words: str


class Answers(NamedTuple):
    """What a convention answers at a level: three figures of each image, (B,) float64."""

    log: Tensor  # of the residual, rms
    both: Tensor  # ε·z
    own: Tensor  # ε·ε

    @classmethod
    def of(cls, eps: Tensor, z: Tensor) -> Answers:
        """The figures of ε where z was added."""
        one, other = eps.double().flatten(1), z.double().flatten(1)
        return cls(log_residual(eps, z), (one * other).sum(1).cpu(), (one * one).sum(1).cpu())

    @property
    def slope(self) -> tuple[float, float]:
        """The slope of z over ε, and its standard error. It is 1 for E[z | x̄], whose error nothing known explains."""
        whole = float(self.own.sum())
        if not 0 < whole < math.inf:
            return math.nan, math.nan
        slope = float(self.both.sum()) / whole
        return slope, float((self.both - slope * self.own).square().sum().sqrt()) / whole


@dataclass(frozen=True)
class Readings:
    """What each convention answers at each level.

    Attributes:
        levels: The noise levels.
        ways: The conventions, the claimed one first.
        found: For each convention its answers by level.
    """

    levels: list[float]
    ways: list[Convention]
    found: list[dict[float, Answers]]

    @classmethod
    def of(cls, field: VectorField, data: Tensor) -> Readings:
        """Evaluate a field under every convention, and as the claimed one under no condition."""
        levels, asked = conventions.levels_of(field.schedule), conventions.inputs(field)
        none, claimed = unconditional(field), replace(asked[0], off="condition")
        by: dict[tuple[object, ...], tuple[Convention, dict[float, Answers]]] = {}
        for k, sigma in enumerate(levels):
            xbar, z = noised(data, sigma, k)
            answers = list(conventions.answers(field, asked, sigma, xbar))
            answers += [] if none is None else [(claimed, none(torch.tensor(sigma, dtype=torch.float64), xbar))]
            for way, eps in answers:
                key = (way.predicts, way.schedule.name, way.time, way.off)
                by.setdefault(key, (way, {}))[1][sigma] = Answers.of(eps, z)
        rows = sorted(by.values(), key=lambda it: it[0].off != "")
        return cls(levels, [way for way, _ in rows], [found for _, found in rows])

    def claimed(self, sigma: float) -> Answers:
        """The answers under the claimed convention at a level."""
        return self.found[0][sigma]

    def other(self, sigma: float) -> tuple[float, str]:
        """The least residual of another convention at a level, and that convention."""
        rows = [(residual_of(its[sigma]), i) for i, its in enumerate(self.found) if i and sigma in its]
        least, i = min(rows, default=(math.nan, 0))
        return least, self.ways[i].words

    def gain(self, i: int, j: int = 0) -> tuple[float, float]:
        """The mean over common levels of log residual, convention j minus i; and the same in standard errors."""
        common = [sigma for sigma in self.found[i] if sigma in self.found[j]]
        each = torch.stack([self.found[j][sigma].log - self.found[i][sigma].log for sigma in common]).mean(0)
        return float(each.mean()), errors(each)

    def slant(self, i: int) -> float:
        """How far the slopes of a convention are from 1 beyond what chance explains, rms over its levels."""
        off = []
        for slope, error in (its.slope for its in self.found[i].values()):
            off.append(max(abs(slope - 1) - error, 0.0) if math.isfinite(slope) else math.inf)
        return math.sqrt(sum(it**2 for it in off) / len(off))

    def better(self) -> int | None:
        """The convention that is right in place of the claimed one: its slopes are 1, and it is nearer to the noise."""
        if self.slant(0) <= SLANT:
            return None
        whole = [i for i, its in enumerate(self.found) if i and 2 * len(its) >= len(self.levels)]
        fit = [i for i in whole if self.slant(i) <= SLANT and self.gain(i)[1] > SURE]
        # One difference is likelier than two, of which there are so many that one fits any images a little.
        fit = [i for i in fit if " and " not in self.ways[i].off or self.gain(i)[0] > _TWO]
        return min(fit, key=lambda i: (" and " in self.ways[i].off, -self.gain(i)[0]), default=None)

    @property
    def verdicts(self) -> list[Verdict]:
        """The answers about the prediction, the schedule, the labels, and the condition."""
        better, fits = self.better(), self.slant(0) <= SLANT
        asked = ["prediction", "schedule", "labels", *(["condition"] if self._rivals("condition") else [])]
        if better is None and not fits:
            return [Verdict(question, UNKNOWN, NONE_FITS) for question in asked]
        verdicts = []
        for question in asked:
            if better is not None and question in self.ways[better].off:
                verdicts.append(Verdict(question, WRONG, self._sentence(question, better)))
                continue
            as_good = [i for i in self._rivals(question) if self.slant(i) <= SLANT and self.gain(i)[0] > -MARGIN]
            if better is None and as_good:
                words = f"{self.ways[as_good[0]].words} would explain these images as well"
                verdicts.append(Verdict(question, UNKNOWN, words))
            else:
                verdicts.append(Verdict(question, RIGHT, "no other that was tried fits these images"))
        return verdicts

    def _rivals(self, question: str) -> list[int]:
        """The conventions that differ by this alone."""
        return [i for i, way in enumerate(self.ways) if way.off == question]

    def _sentence(self, question: str, better: int) -> str:
        claimed, found = self.ways[0], self.found[better]
        sigma = max(found, key=lambda it: float((self.found[0][it].log - found[it].log).mean()))
        falls = (
            f"with {self.ways[better].words} the residual at σ = {sigma:.3g} falls from "
            f"{residual_of(self.claimed(sigma)):.3g} to {residual_of(found[sigma]):.3g}"
        )
        if question == "condition":
            return f"the condition is probably not that of these images: {falls}"
        time = repr(claimed.time) if isinstance(claimed.time, str) else "a function"
        was = {"prediction": repr(claimed.predicts), "schedule": repr(claimed.schedule.name), "labels": time}
        verb = "are" if question == "labels" else "is"
        return f"the {question} {verb} probably wrong (now {was[question]}): {falls}"


def unconditional(field: VectorField) -> VectorField | None:
    """The field under no condition; None if it has no other."""
    if not field.condition.words:
        return None
    try:
        return field.conditioned()
    except InputError:
        return None


def residual_of(found: Answers) -> float:
    """The residual, rms, the geometric mean of the images."""
    return float(torch.exp(found.log.mean()))


def log_residual(eps: Tensor, z: Tensor) -> Tensor:
    return torch.log(residual(eps, z) + FLOOR) / 2


def errors(each: Tensor) -> float:
    """A mean over images, in its standard errors."""
    return float(each.mean()) / max(float(each.std()) / math.sqrt(len(each)), 1e-9)
