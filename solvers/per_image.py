"""Adaptive solvers with one step size for each image: its steps and its result are its own, whoever it is beside.

Images are evaluated `batch` at a time, stage by stage together, each at its own noise level. One that has arrived
leaves, and the next of the queue takes its place, so a call is full of them for as long as some are waiting.

The state is x̄ and the step |Δ log σ|, in σ and in log σ alike; errors are measured in image units. A formula is a
pure function of the two noise levels of a step; it says where to evaluate and with which weights to add up.

Same image, same latent: everything that is decided about an image is decided in Python floats from its own row, and
every call has the same number of rows, filled up where images are too few: networks round differently in batches of
different sizes. For other sizes or machines the controller is a continuous function of what it sees: where a rounding
decides whether a step is rejected, both ways lead to nearly the same next point (see `Control`).

The price: fewer images than `batch` cost as much as that many. At batch = 16, four images take 320 rows each where
sixteen take 80. And for the same error `unipc-2` takes less than a quarter of the evaluations.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import TYPE_CHECKING, Any

from odeddim.solvers._adaptive import LONGEST, SETTINGS, Watch, check_settings
from odeddim.solvers._plan import log_ratio
from odeddim.types import Field, InputError, Solver, State, pick

if TYPE_CHECKING:
    from torch import Tensor

VARIABLES = ("sigma", "log-sigma")
BATCH = 16  # images at once, of a field that does not say
SHORTEST = 1e-12  # a step in log σ: of a shorter one the stages would be one and the same noise level


@dataclass(frozen=True)
class Formula:
    """A pair of embedded one-step formulas.

    order: of the solution, the better one of the two; lower: of the other. uses[i]: which of the ε's so far are added
    up at the (i+2)-nd stage; the last two rows are the solution's and the error's. fsal: the last stage lies at the
    solution and is the next step's first, so the solution has no row of its own.
    plan(start, end): the noise levels of all stages but the first, then one weight for each entry of `uses`.
    strict: multiplies the tolerances, where errors would otherwise add up to tens of them. longest: step in log σ.
    """

    order: int
    lower: int
    uses: tuple[tuple[int, ...], ...]
    fsal: bool
    plan: Callable[[float, float], list[float]]
    strict: float = 1.0
    longest: float = LONGEST

    @property
    def stages(self) -> int:
        """Evaluations of a step besides its first, which the step before or the start has paid."""
        return len(self.uses) - (1 if self.fsal else 2)


@dataclass(frozen=True)
class Tableau:
    """A Butcher tableau of a first-same-as-last pair, exactly as published; fractions or decimals.

    c: where the stages lie in a step, the first (0) left out. a: their rows; the last is the solution's weights b.
    e: b - b̂ (or b̂ - b), the weights of the error estimate. longest: of steps in log σ.
    """

    order: int
    lower: int
    c: tuple[Fraction, ...]
    a: tuple[tuple[Fraction, ...], ...]
    e: tuple[Fraction, ...]
    strict: float = 1.0
    longest: float = LONGEST

    def formula(self, variable: str) -> Formula:
        """The pair as steps in σ or in log σ, where dx̄/d log σ = σ·ε."""
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

        plan, longest = (in_sigma, LONGEST) if variable == "sigma" else (in_log_sigma, self.longest)
        return Formula(self.order, self.lower, uses, True, plan, self.strict, longest)


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
    """∫_0^1 v·e^{hv} dv for |h| <= LONGEST: the part of a step that ε's slope in log σ gets.

    By its series, to rounding: the closed form (h·e^h - e^h + 1)/h² cancels where steps are small.
    """
    total = 0.0
    for coefficient in _SERIES:
        total = total * h + coefficient
    return total


_SERIES = [1 / (math.factorial(k) * (k + 2)) for k in reversed(range(18))]


def dpm_solver_12(start: float, end: float) -> list[float]:
    """DPM-Solver-1, which is Euler in σ, within DPM-Solver-2, the midpoint rule of log σ: a `Formula.plan`."""
    middle = start * math.exp(log_ratio(end, start) / 2)
    h = end - start
    return [middle, middle - start, h, -h, h]


def dpm_solver_23(start: float, end: float) -> list[float]:
    """DPM-Solver-2 with r1 = 1/3 within DPM-Solver-3 with r1 = 1/3, r2 = 2/3 (Algorithm 2): a `Formula.plan`.

    Weights are exact for ε linear in log σ through the step's start and one stage: the latest at hand.
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
    "dpm-solver-12": lambda _: Formula(2, 1, ((0,), (1,), (0, 1)), fsal=False, plan=dpm_solver_12),
    "dpm-solver-23": lambda _: Formula(3, 2, ((0,), (0, 1), (0, 2), (0, 1, 2)), fsal=False, plan=dpm_solver_23),
}


@dataclass(frozen=True)
class Control:
    """Which step comes next: a PI controller on the error of a step, in units of what it may be.

    k: the lower order + 1. longest: step in log σ.

    After an accepted step, error E <= 1, the next is (AIM·E^-ALPHA·E_before^BETA)^(1/k) times as long: the constants of
    Hairer's DOPRI5, whose safety factor is 0.9 at k = 5 (Hairer, Nørsett & Wanner 1993; Hairer & Wanner 1996, IV.2).
    After a rejected one it is (AIM/E)^(1/k) times as long, or E^-RETRY if that is longer: just above E = 1 that is
    nearly the same step again, which is then accepted, so what is found is a continuous function of E. The first
    factor alone, as is usual, would make a jump of the size of the tolerance out of a rounding of ε.

    Errors below SMALLEST count as that: they are mostly rounding, and steps would grow as the rounding says. Of 400
    points decoded twice by dpm-solver-23 at 1e-4, with ε disturbed by 5e-7, 22% came apart by more than 1e-5
    and 3 times what the same steps give if it is 1e-4, as in DOPRI5. With 0.1 it is 0.2%, for 14% more evaluations.
    """

    k: int
    longest: float

    AIM = 0.6
    ALPHA, BETA = 0.85, 0.2
    RETRY = 2.0
    SMALLEST = 0.1
    SHRINK = 0.2  # at most, at once

    def after(self, error: float, before: float) -> float:
        """The factor on an accepted step."""
        error, before = max(error, self.SMALLEST), max(before, self.SMALLEST)
        factor: float = (self.AIM * error**-self.ALPHA * before**self.BETA) ** (1 / self.k)
        return factor

    def again(self, error: float) -> float:
        """The factor on a rejected step; its error may be infinite or NaN."""
        factor: float = max(self.SHRINK, (self.AIM / error) ** (1 / self.k), error**-self.RETRY)
        return factor


@dataclass
class Walk:
    """One image on its way: its place in the state, where it is, the step in log σ that it will try, and its costs."""

    index: int
    sigma: float
    step: float
    error: float = 1.0  # of the last accepted step
    evaluations: int = 1
    accepted: int = 0
    rejected: int = 0

    def judge(self, error: float, end: float, control: Control) -> bool:
        """Whether its step to `end`, with an error in units of what it may be, is accepted; sets the next step."""
        step = abs(log_ratio(end, self.sigma))
        if error <= 1:
            self.accepted += 1
            self.sigma, self.step = end, min(step * control.after(error, self.error), control.longest)
            self.error = error
            return True
        self.rejected += 1
        self.step = step * control.again(error)
        return False

    def aim(self, target: float) -> float:
        """Where its next step ends: at the target itself if it can be reached."""
        way = log_ratio(target, self.sigma)
        if abs(way) <= self.step * (1 + 1e-9):
            return target
        return self.sigma * math.exp(math.copysign(self.step, way))


# An image in a place: its walk, x̄ (n,) and ε (n,) where it is.
_Row = tuple[Walk, "Tensor", "Tensor"]


def per_image(
    field: Field,
    state: State,
    sigmas: Tensor,
    *,
    name: str,
    variable: str = "log-sigma",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_nfe: int = 10_000,
    batch: int | None = None,
) -> State:
    """A row of FORMULAS from sigmas[0] to sigmas[-1], every image in steps of its own; nodes between are not used.

    state.xbar (B, *). A step that ends at x̄ and σ may have an error, root mean square over the image's numbers, of
    (atol + rtol·rms(x))·√(1+σ²), with x = x̄/√(1+σ²): both are errors of the image (or the latent of unit variance) as
    the network sees it, the same at σ = 0.01 and 157, where |x| is about 1. max_nfe: evaluations of one image; a step
    is begun only if they suffice for it. batch: rows of every call, field(sigma (batch,), xbar (batch, *)), whether
    there are so many images or not, so that each always meets the same kernels; for a single image, 1 is the fastest.
    Without it as many as the field's network always sees at once (`network_batch`), where it has such a number, or 16.
    variable: "sigma" or "log-sigma", in which the stages lie and ε is integrated (not for exponential formulas).

    The result's report has "evaluations", "accepted" and "rejected", (B,) int64. Errors: BudgetExceeded with the last
    accepted point of the image (1, *) that failed, InputError where the field is not finite.
    """
    import torch

    check_settings(rtol, atol, max_nfe)
    batch = batch if batch is not None else getattr(field, "network_batch", None) or BATCH
    if batch < 1:
        raise InputError(f"batch, the images evaluated at once, must be positive, not {batch}")
    formula = FORMULAS[name](pick(variable, VARIABLES, "variable"))
    control = Control(formula.lower + 1, formula.longest)
    rtol, atol = rtol * formula.strict, atol * formula.strict
    first_step = min((rtol + atol) ** (1 / control.k), control.longest)
    shape = state.xbar.shape[1:]

    def evaluate(sigma: Tensor, xbar: Tensor) -> Tensor:
        """ε (b, n) of b images, in a call of exactly `batch` rows: the first image fills the places that are empty."""
        b = len(sigma)
        if b < batch:
            sigma = torch.cat([sigma, sigma[:1].expand(batch - b)])
            xbar = torch.cat([xbar, xbar[:1].expand(batch - b, -1)])
        eps = field(sigma, xbar.reshape(batch, *shape)).flatten(1)
        return eps if b == batch else eps[:b].clone()  # a view would keep all the rows alive

    def euler(xbar: Tensor, here: Tensor, there: Tensor) -> Tensor:
        """The step between σ = 0 and its neighbour, in the same calls of `batch` rows: it has no error to control."""
        parts = [part.flatten(1) for part in torch.split(xbar, batch)]
        moved = [part + (there - here) * evaluate(here.expand(len(part)), part) for part in parts]
        return torch.cat(moved).to(xbar.dtype).reshape(xbar.shape)

    at_zero = int(float(sigmas[0]) == 0), int(float(sigmas[-1]) == 0)
    if at_zero[0]:
        state, sigmas = State(euler(state.xbar, sigmas[0], sigmas[1]), float(sigmas[1])), sigmas[1:]
    lowest, sigmas = sigmas[-2:], sigmas[: len(sigmas) - at_zero[1]]
    begin, target = float(sigmas[0]), float(sigmas[-1])
    low, high = sorted((begin, target))

    def arrivals() -> Iterator[_Row]:
        """All images in order, at the start, where they are evaluated as many at once as there are places."""
        for first in range(0, len(state.xbar), batch):
            xbar = state.xbar[first : first + batch].flatten(1)
            sigma = torch.full((len(xbar),), begin, dtype=torch.float64)
            for i, row in enumerate(zip(xbar, evaluate(sigma, xbar), strict=True)):
                yield (Walk(first + i, begin, first_step), *row)

    def watch(walk: Walk, xbar: Tensor) -> Watch:
        start = State(state.xbar[walk.index : walk.index + 1], begin)
        watch = Watch(f"{name}, image {walk.index} of the batch", field, start, target, log=True, max_nfe=max_nfe)
        watch.reached, watch.nfe = State(xbar.reshape(start.xbar.shape), walk.sigma), walk.evaluations
        return watch

    result = torch.empty_like(state.xbar)
    report = torch.zeros(3, len(result), dtype=torch.int64)
    waiting = arrivals()
    walks, xbar, slope = _together(islice(waiting, batch))
    while True:
        for i, walk in enumerate(walks):
            if walk.evaluations + formula.stages + (not formula.fsal) > max_nfe:
                raise watch(walk, xbar[i]).stopped(f"needs more than max_nfe = {max_nfe} evaluations")
            if walk.step < SHORTEST:
                raise watch(walk, xbar[i]).stopped("cannot make its steps small enough")
        ends = [walk.aim(target) for walk in walks]
        plans = [formula.plan(walk.sigma, end) for walk, end in zip(walks, ends, strict=True)]
        plan = torch.tensor(plans, dtype=torch.float64).T.contiguous()
        nodes = plan[: formula.stages].clamp(low, high)
        slopes, moved, error = _attempt(formula, evaluate, nodes, plan[formula.stages :].to(xbar), xbar, slope)

        # Over each row by itself, whatever the number of rows; see `test_rows_are_summed_alone`.
        norms = [(torch.linalg.vector_norm(rows, dim=1) / math.sqrt(rows.shape[1])).tolist() for rows in (error, moved)]
        accepted = []
        for i, (walk, end, wrong, size) in enumerate(zip(walks, ends, *norms, strict=True)):
            walk.evaluations += formula.stages
            ratio = wrong / (atol * math.sqrt(1 + end**2) + rtol * size)
            if not math.isfinite(ratio):
                levels = [walk.sigma, *nodes[:, i].tolist()]
                _check_finite(watch(walk, xbar[i]).who, levels, [eps[i] for eps in slopes])
            accepted.append(walk.judge(ratio, end, control))
        xbar = _where(accepted, moved, xbar)
        if formula.fsal:
            slope = _where(accepted, slopes[-1], slope)
        elif moving := [i for i, walk in enumerate(walks) if accepted[i] and walk.sigma != target]:
            sigma = torch.tensor([walks[i].sigma for i in moving], dtype=torch.float64)
            if len(moving) == len(walks):
                slope = evaluate(sigma, xbar)
            else:
                places = torch.tensor(moving, device=xbar.device)
                slope = slope.index_copy(0, places, evaluate(sigma, xbar[places]))
            for i in moving:
                walks[i].evaluations += 1

        if any(walk.sigma == target for walk in walks):
            staying: list[_Row] = []
            for row in zip(walks, xbar, slope, strict=True):
                walk = row[0]
                if walk.sigma != target:
                    staying.append(row)
                    continue
                result[walk.index] = row[1].reshape(shape)
                report[:, walk.index] = torch.tensor([walk.evaluations, walk.accepted, walk.rejected])
            if not (rows := [*staying, *islice(waiting, batch - len(staying))]):
                break
            walks, xbar, slope = _together(rows)
    if at_zero[1]:
        result, target = euler(result, *lowest), 0.0
    report[0] += sum(at_zero)
    return State(result, target, report=dict(zip(("evaluations", "accepted", "rejected"), report, strict=True)))


def _attempt(
    formula: Formula, evaluate: Field, nodes: Tensor, weights: Tensor, xbar: Tensor, slope: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """One step of every image: the ε of its stages, where it leads, and its error, each (b, n).

    nodes: (stages, b), weights: (all of the formula's, b), xbar: (b, n), slope: ε there.
    """
    remaining = iter(weights.unsqueeze(2))  # each (b, 1)
    slopes = [slope]
    moved = xbar
    for sigma, used in zip(nodes, formula.uses, strict=False):
        moved = _sum(used, remaining, slopes, xbar)
        slopes.append(evaluate(sigma, moved))
    if not formula.fsal:
        moved = _sum(formula.uses[-2], remaining, slopes, xbar)
    return slopes, moved, _sum(formula.uses[-1], remaining, slopes)


def _together(rows: Iterable[_Row]) -> tuple[list[Walk], Tensor, Tensor]:
    """Images in their places: walks, x̄ (b, n), ε (b, n)."""
    import torch

    walks, xbars, slopes = zip(*rows, strict=True)
    return list(walks), torch.stack(xbars), torch.stack(slopes)


def _sum(
    used: Iterable[int], weights: Iterator[Tensor], slopes: Sequence[Tensor], start: Tensor | None = None
) -> Tensor:
    """start + Σ_j w_j ε_j, (b, n): the next of the weights, each (b, 1), on the slopes that are used."""
    first, *others = used
    weight = next(weights)
    total = slopes[first] * weight if start is None else start.addcmul(slopes[first], weight)
    for j in others:
        total.addcmul_(slopes[j], next(weights))
    return total


def _where(chosen: list[bool], new: Tensor, old: Tensor) -> Tensor:
    """The rows of `new` that are chosen, the others of `old`."""
    import torch

    return new if all(chosen) else torch.where(torch.tensor(chosen, device=new.device).unsqueeze(1), new, old)


def _check_finite(who: str, sigmas: Iterable[float], slopes: Iterable[Tensor]) -> None:
    """Raises InputError if one image's ε are not finite; a step may be too long without that."""
    for sigma, eps in zip(sigmas, slopes, strict=True):
        if not bool(eps.isfinite().all()):
            raise InputError(f"{who}: the field is not finite at σ = {sigma:.6g}; see whether its input there is")


def _row(name: str, order: int, reference: str, **variable: Any) -> Solver:
    return Solver(
        name=name,
        run=functools.partial(per_image, name=name, **variable),
        family="per image",
        order=order,
        nfe=None,
        adaptive=True,
        to_zero=True,
        settings={**SETTINGS, "batch": int, **dict.fromkeys(variable, str)},
        reference=reference,
    )


ROWS = (
    _row("bosh3-per-image", 3, "Bogacki & Shampine 1989, 3(2)", variable="sigma"),
    _row("dopri5-per-image", 5, "Dormand & Prince 1980, 5(4)", variable="log-sigma"),
    _row("tsit5-per-image", 5, "Tsitouras 2011, 5(4)", variable="log-sigma"),
    _row("dpm-solver-12", 2, "Lu et al. 2022, arXiv 2206.00927 (adaptive DPM-Solver)"),
    _row("dpm-solver-23", 3, "Lu et al. 2022, arXiv 2206.00927 (adaptive DPM-Solver)"),
)
