"""Embedded pairs of one-step formulas, whose difference estimates the error of a step.

A formula is a pure function of the two noise levels of a step: it says where to evaluate and with which weights to add
up. The Butcher tableaus are those of the papers, as steps in σ or in log σ; the exponential ones integrate ε exactly
as a polynomial in log σ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from odeddim.solvers._adaptive import LONGEST
from odeddim.solvers._points import log_ratio

VARIABLES = ("sigma", "log-sigma")


@dataclass(frozen=True)
class Formula:
    """A pair of embedded one-step formulas, of which the better one is the solution.

    Attributes:
        order: The order of the solution.
        lower: The order of the other formula.
        uses: Row i has the indices of the ε's that are added up at stage i+2. The last two rows are those of the
            solution and of the error.
        fsal: First same as last: the last stage lies at the solution and is the first one of the next step. The
            solution then has no row of its own in `uses`.
        coefficients: Called with (start, end), it returns the noise levels of all stages but the first, then a weight
            for each index in `uses`.
        strict: A factor on the tolerances, for formulas whose errors would add up to tens of them.
        longest: The longest step in log σ.
    """

    order: int
    lower: int
    uses: tuple[tuple[int, ...], ...]
    fsal: bool
    coefficients: Callable[[float, float], list[float]]
    strict: float = 1.0
    longest: float = LONGEST

    @property
    def stages(self) -> int:
        """The evaluations of a step without its first, which the step before it has made."""
        return len(self.uses) - (1 if self.fsal else 2)


@dataclass(frozen=True)
class Tableau:
    """The Butcher tableau of a first-same-as-last pair, exactly as published, in fractions or decimals.

    Attributes:
        order: The order of the solution.
        lower: The order of the other formula.
        c: The parts of a step at which the stages lie, without the first, 0.
        a: The rows of the stages; the last one has the weights b of the solution.
        e: The weights of the error estimate, b - b̂ or b̂ - b.
        strict: See `Formula`.
        longest: See `Formula`; of steps in log σ only.
    """

    order: int
    lower: int
    c: tuple[Fraction, ...]
    a: tuple[tuple[Fraction, ...], ...]
    e: tuple[Fraction, ...]
    strict: float = 1.0
    longest: float = LONGEST

    def formula(self, variable: str) -> Formula:
        """The pair as steps in a variable: "sigma", or "log-sigma", where dx̄/d log σ = σ·ε."""
        rows = (*self.a, self.e)
        uses = tuple(tuple(j for j, weight in enumerate(row) if weight) for row in rows)
        weights = [(j, float(row[j])) for row, used in zip(rows, uses, strict=True) for j in used]
        inner = [float(part) for part in self.c if part < 1]
        ends = len(self.c) - len(inner)  # stages at the end itself, which rounding must not miss

        def in_sigma(start: float, end: float) -> list[float]:
            h = end - start
            return [start + part * h for part in inner] + [end] * ends + [h * weight for _, weight in weights]

        def in_log_sigma(start: float, end: float) -> list[float]:
            h = log_ratio(end, start)
            nodes = [start * math.exp(part * h) for part in inner] + [end] * ends
            slopes = [h * start, *(h * node for node in nodes)]
            return nodes + [slopes[j] * weight for j, weight in weights]

        coefficients, longest = (in_sigma, LONGEST) if variable == "sigma" else (in_log_sigma, self.longest)
        return Formula(self.order, self.lower, uses, True, coefficients, self.strict, longest)


def _tableau(order: int, lower: int, c: str, *rows: str, **limits: float) -> Tableau:
    parts, *a, e = (tuple(map(Fraction, row.split())) for row in (c, *rows))
    return Tableau(order, lower, parts, tuple(a), e, **limits)


BOSH3 = _tableau(
    3, 2,
    "1/2 3/4 1",
    "1/2",
    "0 3/4",
    "2/9 1/3 4/9",
    "5/72 -1/12 -1/9 1/8",
    strict=0.25,
    longest=0.5,  # its error estimate of y' = y is h³(1 + h)/48: over one e-fold downwards it is blind
)  # fmt: skip
DOPRI5 = _tableau(
    5, 4,
    "1/5 3/10 4/5 8/9 1 1",
    "1/5",
    "3/40 9/40",
    "44/45 -56/15 32/9",
    "19372/6561 -25360/2187 64448/6561 -212/729",
    "9017/3168 -355/33 46732/5247 49/176 -5103/18656",
    "35/384 0 500/1113 125/192 -2187/6784 11/84",
    "71/57600 0 -71/16695 71/1920 -17253/339200 22/525 -1/40",
)  # fmt: skip
TSIT5 = _tableau(
    5, 4,
    "0.161 0.327 0.9 0.9800255409045097 1 1",
    "0.161",
    "-0.008480655492356989 0.335480655492357",
    "2.8971530571054935 -6.359448489975075 4.3622954328695815",
    "5.325864828439257 -11.748883564062828 7.4955393428898365 -0.09249506636175525",
    "5.86145544294642 -12.92096931784711 8.159367898576159 -0.071584973281401 -0.028269050394068383",
    "0.09646076681806523 0.01 0.4798896504144996 1.379008574103742 -3.290069515436081 2.324710524099774",
    "-0.001780011052225777 -0.0008164344596567469 0.007880878010261995 -0.1447110071732629 0.5823571654525552 "
    "-0.45808210592918697 0.015151515151515152",
)  # fmt: skip


def growth(h: float) -> float:
    """∫_0^1 v·e^{hv} dv for |h| <= LONGEST: the weight in a step of the slope that ε has in log σ.

    It is computed from its series, to rounding, because the closed form (h·e^h - e^h + 1)/h² loses digits where steps
    are small.
    """
    total = 0.0
    for coefficient in _SERIES:
        total = total * h + coefficient
    return total


_SERIES = [1 / (math.factorial(k) * (k + 2)) for k in reversed(range(18))]


def dpm_solver_12(start: float, end: float) -> list[float]:
    """A `Formula.coefficients`: DPM-Solver-1, which is Euler in σ, within DPM-Solver-2, the midpoint rule of log σ."""
    middle = start * math.exp(log_ratio(end, start) / 2)
    h = end - start
    return [middle, middle - start, h, -h, h]


def dpm_solver_23(start: float, end: float) -> list[float]:
    """`Formula.coefficients`: DPM-Solver-2 with r1 = 1/3 within DPM-Solver-3 with r1 = 1/3, r2 = 2/3 (Algorithm 2).

    The weights are exact for an ε that is linear in log σ, through the start of the step and the latest stage.
    """
    h = log_ratio(end, start)
    first, second = start * math.exp(h / 3), start * math.exp(2 * h / 3)

    def linear(part: float, through: float) -> tuple[float, float]:
        """Weights of ε at the start and `through` of the step, over `part` of it."""
        slope = start * h * part**2 / through * growth(part * h)
        return start * math.expm1(part * h) - slope, slope

    two_thirds, whole = linear(2 / 3, 1 / 3), linear(1, 2 / 3)
    lower = -0.5 * (end - start), 1.5 * (end - start)  # as in its paper, a factor 1/(2·r1): it is the midpoint rule's
    error = whole[0] - lower[0], -lower[1], whole[1]
    return [first, second, first - start, *two_thirds, *whole, *error]


FORMULAS: dict[str, Callable[[str], Formula]] = {
    "bosh3-per-image": BOSH3.formula,
    "dopri5-per-image": DOPRI5.formula,
    "tsit5-per-image": TSIT5.formula,
    "dpm-solver-12": lambda _: Formula(2, 1, ((0,), (1,), (0, 1)), fsal=False, coefficients=dpm_solver_12),
    "dpm-solver-23": lambda _: Formula(3, 2, ((0,), (0, 1), (0, 2), (0, 1, 2)), fsal=False, coefficients=dpm_solver_23),
}
