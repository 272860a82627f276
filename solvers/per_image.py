"""Adaptive solvers with a step size for each image: its steps and its result do not depend on its neighbours.

The images of a batch are evaluated together, stage by stage, each at its own noise level. An image that has arrived
leaves, and the next one of the queue takes its place, so the evaluations stay full as long as images are waiting.

The state is x̄, and the length of a step is |Δ log σ|, for formulas in σ as well as in log σ. Errors are measured in
image units.

Every decision about an image is made in Python floats from its own row. Every evaluation has the same number of rows,
filled up where there are too few images, because networks round differently in batches of different sizes. So the same
image always gets the same latent. For batches of another size, and on other machines, the controller is a continuous
function of the error: if rounding decides whether a step is rejected, both ways lead to nearly the same next point (see
`Control`).

The price: fewer images than `batch` cost as much as that many. At batch = 16, four images take 320 rows each, and
sixteen images take 80. For the same error `unipc-2` takes fewer evaluations,
and the fewer in comparison the smaller the error is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from odeddim.solvers._adaptive import BOSH3, EMBEDDED, IN_LOG, IN_SIGMA, Watch, adaptive_row, check_settings
from odeddim.solvers._embedded import FORMULAS, VARIABLES, Formula
from odeddim.solvers._points import log_ratio
from odeddim.types import Depends, Field, InputError, Solver, State, pick

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BATCH = 16  # images at once, of a field that does not say
SHORTEST = 1e-12  # a step in log σ: of a shorter one the stages would be one and the same noise level


@dataclass(frozen=True)
class Control:
    """A PI controller: the length of the next step from the error E of the last one, relative to what is allowed.

    After an accepted step, E <= 1, the next one is (AIM·E^-ALPHA·E_before^BETA)^(1/k) times as long. The constants are
    those of Hairer's DOPRI5, whose safety factor is 0.9 at k = 5.

    After a rejected step the next one is (AIM/E)^(1/k) times as long, or E^-RETRY if that is longer. Just above E = 1
    that is nearly the same step again, which is then accepted, so the result is a continuous function of E. The first
    factor alone, as is usual, would turn a rounding of ε into a jump of the size of the tolerance.

    Errors below SMALLEST count as SMALLEST: they are mostly rounding, which would decide how much steps grow. Of 400
    points decoded twice by dpm-solver-23 at 1e-4, with ε disturbed by 5e-7, 22% came apart by more than 1e-5 and by 3
    times what the same steps give, if SMALLEST is 1e-4 as in DOPRI5. With 0.1 it is 0.2%, for 14% more evaluations.

    Attributes:
        k: The lower order of the formula, plus 1.
        longest: The longest step in log σ.

    Source:
        Hairer, Nørsett & Wanner 1993; Hairer & Wanner 1996, section IV.2.
    """

    k: int
    longest: float

    AIM = 0.6
    ALPHA, BETA = 0.85, 0.2
    RETRY = 2.0
    SMALLEST = 0.1
    SHRINK = 0.2  # at most, at once

    def after(self, error: float, before: float) -> float:
        """The factor on the length of an accepted step, given its error and that of the step before."""
        error, before = max(error, self.SMALLEST), max(before, self.SMALLEST)
        factor: float = (self.AIM * error**-self.ALPHA * before**self.BETA) ** (1 / self.k)
        return factor

    def again(self, error: float) -> float:
        """The factor on the length of a rejected step, whose error may be infinite or NaN."""
        factor: float = max(self.SHRINK, (self.AIM / error) ** (1 / self.k), error**-self.RETRY)
        return factor


@dataclass
class Walk:
    """One image on its way.

    Attributes:
        index: Its index in the batch.
        sigma: The noise level σ that it has reached.
        step: The length of its next step in log σ.
        error: The error of its last accepted step, relative to what is allowed.
        evaluations: Its evaluations so far.
        accepted: Its accepted steps so far.
        rejected: Its rejected steps so far.
    """

    index: int
    sigma: float
    step: float
    error: float = 1.0
    evaluations: int = 1
    accepted: int = 0
    rejected: int = 0

    def judge(self, error: float, end: float, control: Control) -> bool:
        """Accept or reject the step to `end`, by its error relative to what is allowed, and set the next step."""
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
        """The noise level at which its next step ends: the target itself if it can be reached."""
        way = log_ratio(target, self.sigma)
        if abs(way) <= self.step * (1 + 1e-9):
            return target
        return self.sigma * math.exp(math.copysign(self.step, way))


# An image in a place: its walk, x̄ (n,) and ε (n,) where it is.
_Row = tuple[Walk, "Tensor", "Tensor"]


class _Batches:
    """The field, evaluated in calls of exactly `batch` rows."""

    def __init__(self, field: Field, batch: int, shape: torch.Size) -> None:
        self.field = field
        self.batch = batch
        self.shape = shape

    def __call__(self, sigma: Tensor, xbar: Tensor) -> Tensor:
        """ε (b, n) of b images, sigma (b,), xbar (b, n): the first image fills the places that are empty."""
        import torch

        b = len(sigma)
        if b < self.batch:
            sigma = torch.cat([sigma, sigma[:1].expand(self.batch - b)])
            xbar = torch.cat([xbar, xbar[:1].expand(self.batch - b, -1)])
        eps = self.field(sigma, xbar.reshape(self.batch, *self.shape)).flatten(1)
        return eps if b == self.batch else eps[:b].clone()  # a view would keep all the rows alive

    def euler(self, xbar: Tensor, here: Tensor, there: Tensor) -> Tensor:
        """The step between σ = 0 and its neighbour, whose error is not controlled. xbar (B, *)."""
        import torch

        parts = [part.flatten(1) for part in torch.split(xbar, self.batch)]
        moved = [part + (there - here) * self(here.expand(len(part)), part) for part in parts]
        return torch.cat(moved).to(xbar.dtype).reshape(xbar.shape)


def network_batch_of(field: Field) -> int:
    """How many images the network of a field always sees at once (`network_batch`), or 16 if the field does not say."""
    return getattr(field, "network_batch", None) or BATCH


ROWS_OF_A_CALL = Depends(int, "what the network sees at once, or 16", network_batch_of)


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
    batch: int | Depends = ROWS_OF_A_CALL,
) -> State:
    """An embedded formula from sigmas[0] to sigmas[-1], every image in steps of its own.

    A step that ends at x̄ and σ may have an error of (atol + rtol·rms(x))·√(1+σ²), with x = x̄/√(1+σ²), root mean
    square over the numbers of the image. Both are errors of the image (or of the latent of unit variance) as the
    network sees it, where |x| is about 1 at any σ.

    Args:
        field: ε(σ, x̄). It is called with sigma (batch,) and xbar (batch, *).
        state: The start, at sigmas[0].
        sigmas: Noise levels (N+1,) float64, rising or falling; the lowest may be 0. Those between are not used, but
            for the neighbour of 0.
        name: The row, a key of `FORMULAS`.
        variable: "sigma" or "log-sigma": the variable in which the stages lie and ε is integrated. Exponential
            formulas do not use it.
        rtol: The relative tolerance.
        atol: The absolute tolerance.
        max_nfe: The most evaluations of an image. A step begins only if they suffice for it.
        batch: The rows of every call, however many images there are, so that each image always meets the same
            kernels. For a single image, 1 is the fastest.

    Returns:
        The state at sigmas[-1]. Its report has "evaluations", "accepted" and "rejected", (B,) int64.

    Raises:
        BudgetExceeded: With the last accepted point of the image (1, *) that needs more than max_nfe, or steps that
            are too small.
        InputError: If a setting is out of its range, or the field is not finite.
    """
    check_settings(rtol, atol, max_nfe)
    batch = batch.value(field) if isinstance(batch, Depends) else batch
    if batch < 1:
        raise InputError(f"batch, the number of images that are evaluated at once, must be positive, not {batch}")
    formula = FORMULAS[name](pick(variable, VARIABLES, "variable"))
    evaluate = _Batches(field, batch, state.xbar.shape[1:])
    at_zero = int(float(sigmas[0]) == 0), int(float(sigmas[-1]) == 0)
    if at_zero[0]:
        state, sigmas = State(evaluate.euler(state.xbar, sigmas[0], sigmas[1]), float(sigmas[1])), sigmas[1:]
    lowest, sigmas = sigmas[-2:], sigmas[: len(sigmas) - at_zero[1]]
    start, target = State(state.xbar, float(sigmas[0])), float(sigmas[-1])
    result, report = _Crowd(name, formula, evaluate, start, target, rtol, atol, max_nfe).run()
    if at_zero[1]:
        result, target = evaluate.euler(result, *lowest), 0.0
    report[0] += sum(at_zero)
    return State(result, target, report=dict(zip(("evaluations", "accepted", "rejected"), report, strict=True)))


class _Crowd:
    """All images of a run: those in work, one in each place of a batch, and those that wait."""

    def __init__(
        self,
        name: str,
        formula: Formula,
        evaluate: _Batches,
        start: State,
        target: float,
        rtol: float,
        atol: float,
        max_nfe: int,
    ) -> None:
        self.name = name
        self.formula = formula
        self.evaluate = evaluate
        self.start = start
        self.target = target
        self.rtol, self.atol = rtol * formula.strict, atol * formula.strict
        self.max_nfe = max_nfe
        self.control = Control(formula.lower + 1, formula.longest)

    def run(self) -> tuple[Tensor, Tensor]:
        """x̄ (B, *) at the target, and the evaluations, accepted and rejected steps of each image, (3, B) int64."""
        import torch

        batch, shape = self.evaluate.batch, self.evaluate.shape
        result = torch.empty_like(self.start.xbar)
        report = torch.zeros(3, len(result), dtype=torch.int64)
        waiting = self._arrivals()
        walks, xbar, slope = _together(islice(waiting, batch))
        while True:
            self._check_budget(walks, xbar)
            xbar, slope = self._step(walks, xbar, slope)
            if any(walk.sigma == self.target for walk in walks):
                staying: list[_Row] = []
                for row in zip(walks, xbar, slope, strict=True):
                    walk = row[0]
                    if walk.sigma != self.target:
                        staying.append(row)
                        continue
                    result[walk.index] = row[1].reshape(shape)
                    report[:, walk.index] = torch.tensor([walk.evaluations, walk.accepted, walk.rejected])
                if not (rows := [*staying, *islice(waiting, batch - len(staying))]):
                    return result, report
                walks, xbar, slope = _together(rows)

    def _arrivals(self) -> Iterator[_Row]:
        """All images in order, at the start, where they are evaluated as many at once as there are places."""
        import torch

        batch, begin = self.evaluate.batch, self.start.sigma
        first_step = min((self.rtol + self.atol) ** (1 / self.control.k), self.control.longest)
        for first in range(0, len(self.start.xbar), batch):
            xbar = self.start.xbar[first : first + batch].flatten(1)
            sigma = torch.full((len(xbar),), begin, dtype=torch.float64)
            for i, row in enumerate(zip(xbar, self.evaluate(sigma, xbar), strict=True)):
                yield (Walk(first + i, begin, first_step), *row)

    def _watch(self, walk: Walk, xbar: Tensor) -> Watch:
        """What says in an error where this image is."""
        start = State(self.start.xbar[walk.index : walk.index + 1], self.start.sigma)
        who = f"{self.name}, image {walk.index} of the batch"
        watch = Watch(who, self.evaluate.field, start, self.target, log=True, max_nfe=self.max_nfe)
        watch.reached, watch.nfe = State(xbar.reshape(start.xbar.shape), walk.sigma), walk.evaluations
        return watch

    def _check_budget(self, walks: Sequence[Walk], xbar: Tensor) -> None:
        """Raise BudgetExceeded unless every image can take its next step."""
        for i, walk in enumerate(walks):
            if walk.evaluations + self.formula.stages + (not self.formula.fsal) > self.max_nfe:
                raise self._watch(walk, xbar[i]).stopped(f"needs more than max_nfe = {self.max_nfe} evaluations")
            if walk.step < SHORTEST:
                raise self._watch(walk, xbar[i]).stopped("cannot make its steps small enough")

    def _step(self, walks: Sequence[Walk], xbar: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """x̄ (b, n) and ε (b, n) after a step of every image; those whose step is rejected stay where they are."""
        import torch

        formula = self.formula
        ends = [walk.aim(self.target) for walk in walks]
        found = [formula.coefficients(walk.sigma, end) for walk, end in zip(walks, ends, strict=True)]
        coefficients = torch.tensor(found, dtype=torch.float64).T.contiguous()
        nodes = coefficients[: formula.stages].clamp(*sorted((self.start.sigma, self.target)))
        weights = coefficients[formula.stages :].to(xbar, non_blocking=True)
        slopes, moved, error = _attempt(formula, self.evaluate, nodes, weights, xbar, slope)

        # Over each row by itself, whatever the number of rows; see `test_rows_are_summed_alone`.
        norms = [torch.linalg.vector_norm(rows, dim=1) / math.sqrt(rows.shape[1]) for rows in (error, moved)]
        accepted = []
        for i, (walk, end, wrong, size) in enumerate(zip(walks, ends, *torch.stack(norms).tolist(), strict=True)):
            walk.evaluations += formula.stages
            ratio = wrong / (self.atol * math.sqrt(1 + end**2) + self.rtol * size)
            if not math.isfinite(ratio):
                levels = [walk.sigma, *nodes[:, i].tolist()]
                _check_finite(self._watch(walk, xbar[i]).who, levels, [eps[i] for eps in slopes])
            accepted.append(walk.judge(ratio, end, self.control))
        xbar = _where(accepted, moved, xbar)
        if formula.fsal:
            return xbar, _where(accepted, slopes[-1], slope)
        return xbar, self._first_slopes(walks, accepted, xbar, slope)

    def _first_slopes(self, walks: Sequence[Walk], accepted: Sequence[bool], xbar: Tensor, slope: Tensor) -> Tensor:
        """ε (b, n) at x̄, evaluated for the images that have moved and go on."""
        import torch

        moving = [i for i, walk in enumerate(walks) if accepted[i] and walk.sigma != self.target]
        if not moving:
            return slope
        for i in moving:
            walks[i].evaluations += 1
        sigma = torch.tensor([walks[i].sigma for i in moving], dtype=torch.float64)
        if len(moving) == len(walks):
            return self.evaluate(sigma, xbar)
        places = torch.tensor(moving).to(xbar.device, non_blocking=True)
        return slope.index_copy(0, places, self.evaluate(sigma, xbar[places]))


def _attempt(
    formula: Formula, evaluate: Field, nodes: Tensor, weights: Tensor, xbar: Tensor, slope: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The ε of all stages of a step, its end and its error, each (b, n).

    nodes: (stages, b). weights: (weights of the formula, b). xbar: (b, n). slope: ε there, (b, n).
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
    """The rows of `new` that are chosen, and of `old` the others."""
    import torch

    if all(chosen):
        return new
    return torch.where(torch.tensor(chosen).to(new.device, non_blocking=True).unsqueeze(1), new, old)


def _check_finite(who: str, sigmas: Iterable[float], slopes: Iterable[Tensor]) -> None:
    """Raise an InputError if an ε of one image is not finite. A step may be too long without that."""
    for sigma, eps in zip(sigmas, slopes, strict=True):
        if not bool(eps.isfinite().all()):
            raise InputError(f"{who}: the field is not finite at σ = {sigma:.6g}: check its input there")


EITHER = f"\nvariable = log-sigma: {IN_LOG}\nvariable = sigma: {IN_SIGMA}"
DPM_SOLVER_12 = """
x̄ₙ₊₁: a step of `dpm-solver-2`, with its stage u at s
error = hₙ·(ε(u, s) - εₙ), the difference to `dpm-solver-1`
"""
DPM_SOLVER_23 = """
x̄ₙ₊₁: a step of `dpm-solver-3`, with its first stage u₁ at s₁
error = x̄ₙ₊₁ - x̄ₙ - hₙ·(3/2·ε(u₁, s₁) - 1/2·εₙ)
That is the difference to DPM-Solver-2 with r₁ = 1/3
"""


def _row(name: str, order: int, reference: str, formula: str, **variable: Any) -> Solver:
    run = functools.partial(per_image, name=name, **variable)
    own = ("batch", *variable)
    return adaptive_row(name, run, order, reference, formula, *own, family="per image", to_zero=True, queued=True)


ROWS = (
    _row("bosh3-per-image", 3, "Bogacki & Shampine 1989, 3(2)", BOSH3.rstrip() + EITHER, variable="sigma"),
    _row("dopri5-per-image", 5, "Dormand & Prince 1980, 5(4)", EMBEDDED.rstrip() + EITHER, variable="log-sigma"),
    _row("tsit5-per-image", 5, "Tsitouras 2011, 5(4)", EMBEDDED.rstrip() + EITHER, variable="log-sigma"),
    _row("dpm-solver-12", 2, "Lu et al. 2022, arXiv 2206.00927 (adaptive DPM-Solver)", DPM_SOLVER_12),
    _row("dpm-solver-23", 3, "Lu et al. 2022, arXiv 2206.00927 (adaptive DPM-Solver)", DPM_SOLVER_23),
)
