"""Adaptive solvers with one step size for each image: their formulas, the queue, and that neighbours change nothing.

What holds for every adaptive row (tolerance, budget, where it evaluates) is tested in test_solvers.py.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from odeddim import solvers
from odeddim.ode.analytic import GaussianMixture
from odeddim.solvers import _embedded, per_image
from odeddim.solvers._embedded import BOSH3, DOPRI5, FORMULAS, TSIT5, VARIABLES, Tableau
from odeddim.solvers._points import lagrange_weights
from odeddim.solvers.per_image import Control, Walk
from odeddim.types import BudgetExceeded, Field, InputError, State

NAMES = tuple(FORMULAS)
LOW, HIGH = 0.01, 157.0
MEANS = torch.tensor([[-0.6, -0.3, 0.2], [0.6, 0.0, -0.5], [0.1, 0.7, 0.4]], dtype=torch.float64)
MIXTURE = GaussianMixture(MEANS, 0.15, torch.tensor([0.5, 0.2, 0.3]))

every_row = pytest.mark.parametrize("name", NAMES)
both_ways = pytest.mark.parametrize(("begin", "end"), [(LOW, HIGH), (HIGH, LOW)], ids=["encode", "decode"])


def images(n: int, sigma: float, dtype: torch.dtype = torch.float64) -> State:
    """n points (n, 3) near the mixture's, with the noise of their level."""
    generator = torch.Generator().manual_seed(0)
    clean = MEANS[torch.randint(3, (n,), generator=generator)]
    noise = torch.randn(n, 3, dtype=torch.float64, generator=generator)
    return State((clean + math.hypot(0.15, sigma) * noise).to(dtype), sigma)


def nodes(begin: float, end: float) -> Tensor:
    return torch.tensor([begin, end], dtype=torch.float64)


def run(name: str, start: State, end: float, field: Field = MIXTURE, **given: object) -> State:
    return solvers.get(name, **given).run(field, start, nodes(start.sigma, end))


def part(state: State, which: slice | list[int]) -> State:
    return State(state.xbar[which], state.sigma)


class Calls:
    """A field that notes what it was asked: `rows` of each call, different `images` in them, and all noise levels."""

    def __init__(self, field: Field = MIXTURE) -> None:
        self.field = field
        self.rows: set[int] = set()
        self.images: list[int] = []
        self.sigmas: list[float] = []

    def __call__(self, sigma: Tensor, xbar: Tensor) -> Tensor:
        assert sigma.shape == (len(xbar),)
        assert sigma.dtype == torch.float64
        self.rows.add(len(xbar))
        self.images.append(len(torch.cat([sigma.unsqueeze(1), xbar], dim=1).unique(dim=0)))
        self.sigmas += sigma.tolist()
        return self.field(sigma, xbar)


# Formulas.

Vector = list[Fraction]


def conditions(order: int, a: list[Vector], c: Vector) -> list[tuple[Vector, Fraction]]:
    """All (φ, 1/γ) with Σ_i b_i φ_i = 1/γ for b of that order: one for each rooted tree (Butcher 1963).

    A tree is the list of its branches; φ_i of a tree is Π over branches of Σ_j a_ij φ_j, γ the product of sizes.
    """

    def phi(tree: tuple) -> Vector:  # type: ignore[type-arg]
        branches = [[sum((w * f for w, f in zip(row, phi(t), strict=True)), Fraction(0)) for row in a] for t in tree]
        return [math.prod((branch[i] for branch in branches), start=Fraction(1)) for i in range(len(a))]

    def size(tree: tuple) -> int:  # type: ignore[type-arg]
        return 1 + sum(map(size, tree))

    def gamma(tree: tuple) -> int:  # type: ignore[type-arg]
        return size(tree) * math.prod(map(gamma, tree))

    trees: dict[int, set[tuple]] = {1: {()}}  # type: ignore[type-arg]
    for n in range(2, order + 1):
        trees[n] = set()
        known = sorted(itertools.chain.from_iterable(trees[m] for m in range(1, n)), key=repr)
        for count in range(1, n):
            for branches in itertools.combinations_with_replacement(known, count):
                if sum(map(size, branches)) == n - 1:
                    trees[n].add(branches)
    assert [len(trees[n]) for n in trees] == [1, 1, 2, 4, 9][:order]
    return [(phi(tree), Fraction(1, gamma(tree))) for n in trees for tree in trees[n]]


@pytest.mark.parametrize(
    ("tableau", "close"), [(BOSH3, 0), (DOPRI5, 0), (TSIT5, Fraction("2e-14"))], ids=["3", "5", "t5"]
)
def test_tableaus(tableau: Tableau, close: Fraction) -> None:
    """Row sums, every order condition of the solution and of the embedded one, and none of the order above."""
    stages = len(tableau.e)
    a = [[*row, *[Fraction(0)] * (stages - len(row))] for row in ((), *tableau.a)]
    assert [len(row) for row in tableau.a] == list(range(1, stages))
    c = [Fraction(0), *tableau.c]
    assert all(abs(sum(row) - part) <= close for row, part in zip(a, c, strict=True))
    b = a[-1]

    def misses(weights: Vector, order: int, target: int = 1) -> list[bool]:
        return [
            abs(sum((w * f for w, f in zip(weights, phi, strict=True)), Fraction(0)) - target * value) > close
            for phi, value in conditions(order, a, c)
        ]

    assert not any(misses(b, tableau.order))
    assert not any(misses(tableau.e, tableau.lower, target=0)), "the embedded solution's order"
    assert any(misses(tableau.e, tableau.lower + 1, target=0)), "the error estimate sees nothing"


def test_dpm_solver_weights() -> None:
    """Against exact integrals in log σ, in both directions and for steps of any length."""
    for span in (1.0, 0.3, -0.02, -1.0, 1e-6):
        start, end = 0.7, 0.7 * math.exp(span)
        third, two_thirds = (start * math.exp(part * span) for part in (1 / 3, 2 / 3))
        first, second, *weights = _embedded.dpm_solver_23(start, end)
        assert (first, second) == pytest.approx((third, two_thirds), rel=1e-14)
        exactly = [
            *lagrange_weights([start], start, third),
            *lagrange_weights([start, third], start, two_thirds),
            *lagrange_weights([start, two_thirds], start, end),
        ]
        assert weights[:5] == pytest.approx(exactly, rel=1e-9 if abs(span) < 1e-3 else 1e-13)
        whole, h = exactly[3:], end - start
        assert weights[5:] == pytest.approx([whole[0] + h / 2, -1.5 * h, whole[1]], rel=1e-9)
        middle, *twelve = _embedded.dpm_solver_12(start, end)
        assert [middle, *twelve] == pytest.approx([math.sqrt(start * end), middle - start, h, -h, h], rel=1e-9)


@every_row
@pytest.mark.parametrize("variable", VARIABLES)
def test_one_step_has_its_order(name: str, variable: str) -> None:
    """The error of one step falls as h^(order+1) and its estimate as h^(lower+1), on a nonlinear field."""
    formula = FORMULAS[name](variable)
    start = images(16, 0.5).xbar
    found = []
    for h in (0.04, 0.02):
        end = 0.5 * math.exp(h)
        plan = torch.tensor(formula.coefficients(0.5, end), dtype=torch.float64).unsqueeze(1).expand(-1, 16)
        levels, weights = plan[: formula.stages], plan[formula.stages :]
        slope = MIXTURE(torch.tensor(0.5, dtype=torch.float64), start)
        _, moved, error = per_image._attempt(formula, MIXTURE, levels, weights, start, slope)
        truth = run("dopri5-per-image", State(start, 0.5), end, rtol=1e-13, atol=1e-13).xbar
        found.append([float((moved - truth).norm()), float(error.norm())])
    orders = [math.log2(coarse / fine) for coarse, fine in zip(*found, strict=True)]
    assert orders == pytest.approx([formula.order + 1, formula.lower + 1], abs=0.5)


@every_row
@both_ways
def test_error_follows_the_tolerance(name: str, begin: float, end: float) -> None:
    """From 1e-4 to 1e-6 the error falls with the tolerance, in proportion; evaluations rise as the order says."""
    start = images(4, begin)
    truth = run("dopri5-per-image", start, end, rtol=1e-11, atol=1e-11).x
    found, costs = [], []
    for tolerance in (1e-4, 1e-6):
        result = run(name, start, end, rtol=tolerance, atol=tolerance)
        found.append(float((result.x - truth).square().mean(dim=1).sqrt().max()))
        costs.append(float(result.report["evaluations"].double().mean()))
    assert found[1] < 50 * 1e-6
    assert 20 < found[0] / found[1] < 2000
    rise = math.log(costs[1] / costs[0]) / math.log(100)
    assert rise < 1.25 / (FORMULAS[name]("sigma").lower + 1)


# The controller.


def test_control_is_continuous() -> None:
    """Where a rounding decides, both ways lead to the same step."""
    for k in (2, 3, 5):
        control = Control(k, 1.0)
        assert control.again(1.0) == 1.0
        for error in (1.001, 1.01, 1.05, 1.2, 2.0, 1e3):
            factor = control.again(error)
            assert 0.2 <= factor < 1
            assert control.again(error * (1 + 1e-6)) == pytest.approx(factor, rel=1e-5)
        for error in (1.0, 0.5, 0.1, 1e-3, 0.0):
            assert control.after(error, 0.5) == pytest.approx(control.after(error * (1 - 1e-6), 0.5), rel=1e-5)
        assert control.after(0.0, 0.0) == control.after(0.1, 0.1) > 1 > control.after(1.0, 1.0)
        assert control.again(math.inf) == control.again(math.nan) == 0.2


def test_a_step_ends_on_the_target() -> None:
    for begin, end in ((1.0, 1.5), (1.5, 1.0)):
        way = abs(math.log(end / begin))
        assert Walk(0, begin, way * 1.1).aim(end) == Walk(0, begin, way * (1 - 1e-12)).aim(end) == end
        assert min(begin, end) < Walk(0, begin, way / 2).aim(end) < max(begin, end)


@every_row
@both_ways
def test_a_rounding_stays_a_rounding(name: str, begin: float, end: float) -> None:
    """ε disturbed by 1e-9: results move by that, not by the tolerance, though steps are rejected here and there."""
    start = images(200, begin)
    found = []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)

        def field(sigma: Tensor, xbar: Tensor, generator: torch.Generator = generator) -> Tensor:
            return MIXTURE(sigma, xbar) + 1e-9 * torch.randn(xbar.shape, dtype=xbar.dtype, generator=generator)

        found.append(run(name, start, end, field, rtol=1e-4, atol=1e-4, batch=200))
    apart = (found[0].x - found[1].x).abs().amax(dim=1)
    assert int(found[0].report["rejected"].sum()) > 0
    assert float(apart.quantile(0.9)) < 1e-7
    assert float(apart.max()) < 2e-6


# The queue and the neighbours.


@every_row
def test_the_batch_is_full(name: str) -> None:
    """A hundred images, eight at a time: calls have eight rows, hardly ever filled up with the same again."""
    field = Calls()
    result = run(name, images(100, LOW), HIGH, field, rtol=1e-3, atol=1e-3, batch=8)
    assert field.rows == {8}
    assert sum(field.images) / len(field.images) > 0.9 * 8
    assert sum(field.images) == int(result.report["evaluations"].sum())


@every_row
@both_ways
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_nothing_depends_on_the_others(name: str, begin: float, end: float, dtype: torch.dtype) -> None:
    """Alone, in a batch of any size, before or behind others, among shaken ones: the same bits and the same counts."""

    def field(sigma: Tensor, xbar: Tensor) -> Tensor:
        points, demand = xbar.split((3, 1), dim=1)  # a fourth number, which stays, says how much an image is shaken
        wave = torch.tensor([[math.cos(20 * math.log(level))] for level in sigma.tolist()], dtype=xbar.dtype)
        return torch.cat([MIXTURE(sigma, points) + 3 * demand * wave, torch.zeros_like(demand)], dim=1)

    n = 8
    demand = torch.zeros(n, 1, dtype=dtype)
    demand[3::3] = 1.0
    start = State(torch.cat([images(n, begin, dtype).xbar, demand], dim=1), begin)

    def go(state: State, batch: int) -> State:
        return run(name, state, end, field, rtol=1e-2, atol=1e-2, batch=batch)

    together = go(start, 32)
    assert int(together.report["accepted"][3]) > 1.5 * int(together.report["accepted"][0]), "not shaken"
    backwards = list(range(n))[::-1]
    for found, order in (
        (go(start, 1), list(range(n))),
        (go(part(start, backwards), 4), backwards),
        (go(part(start, [0]), 32), [0]),
        (go(part(start, [4]), 32), [4]),
    ):
        assert torch.equal(found.xbar, together.xbar[order])
        for key, counts in together.report.items():
            assert torch.equal(found.report[key], counts[order])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_rows_are_summed_alone(dtype: torch.dtype) -> None:
    """The one reduction that steers: a row's norm has the same bits whatever the number of rows."""
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 3, 7, 17, 100, 784, 3072):
        rows = torch.randn(33, size, dtype=dtype, generator=generator)
        norms = torch.linalg.vector_norm(rows, dim=1)
        for count in (1, 2, 5, 16):
            assert torch.equal(torch.linalg.vector_norm(rows[-count:], dim=1), norms[-count:])


@every_row
def test_a_field_may_return_what_it_was_given(name: str) -> None:
    """ε = x̄, the very tensor: dx̄/dσ = x̄ is solved, while images leave and others take their places."""
    start = State(torch.rand(7, 3, dtype=torch.float64), 0.5)
    before = start.xbar.clone()
    found = run(name, start, 2.0, lambda sigma, xbar: xbar, rtol=1e-5, atol=1e-5, batch=3)
    assert torch.equal(start.xbar, before)
    assert torch.allclose(found.xbar, before * math.exp(1.5), rtol=1e-3)


@every_row
@settings(max_examples=25)
@given(
    ends=st.tuples(st.floats(1e-3, 200.0), st.floats(1e-3, 200.0)).filter(lambda pair: pair[0] != pair[1]),
    digits=st.floats(1.0, 6.0),
    ratio=st.floats(-2.0, 2.0),
    count=st.integers(1, 6),
    batch=st.integers(1, 8),
    single=st.booleans(),
)
def test_any_run(
    name: str,
    ends: tuple[float, float],
    digits: float,
    ratio: float,
    count: int,
    batch: int,
    single: bool,
) -> None:
    """Any interval, direction, tolerance and batch: finite, inside, on the very end, and every evaluation told."""
    begin, end = ends
    field = Calls()
    start = images(count, begin, torch.float32 if single else torch.float64)
    tolerance = 10**-digits if not single else 10 ** -min(digits, 4.0)
    result = run(name, start, end, field, rtol=tolerance, atol=tolerance * 10**ratio, batch=batch)
    assert result.sigma == end
    assert result.xbar.dtype == start.xbar.dtype
    assert bool(torch.isfinite(result.xbar).all())
    assert min(ends) <= min(field.sigmas) <= max(field.sigmas) <= max(ends)
    assert field.rows == {batch}
    report = result.report
    assert all(counts.shape == (count,) and counts.dtype == torch.int64 for counts in report.values())
    assert int(report["evaluations"].sum()) == sum(field.images)
    formula = FORMULAS[name]("sigma")
    if formula.fsal:
        assert field.sigmas.count(end) >= count, "the last stage of the last step lies on the end"
    again = 0 if formula.fsal else report["accepted"] - 1
    expected = 1 + formula.stages * (report["accepted"] + report["rejected"]) + again
    assert torch.equal(report["evaluations"], expected)
    assert bool((report["accepted"] >= abs(math.log(begin / end)) - 1e-9).all()), "a step longer than an e-fold"


# What goes wrong.


def test_the_image_that_fails_is_named() -> None:
    """The budget is each image's own; the exception says which was spent, where, and brings its last point."""

    def field(sigma: Tensor, xbar: Tensor) -> Tensor:
        wave = torch.cos(200 * sigma.log()).unsqueeze(1) * (xbar[:, :1] > 8)
        return MIXTURE(sigma, xbar) + wave

    start = images(9, LOW)
    start.xbar[6] += 10.0
    with pytest.raises(
        BudgetExceeded, match=r"bosh3-per-image, image 6 of the batch needs more than max_nfe = 150"
    ) as e:
        run("bosh3-per-image", start, 1.5, field, max_nfe=150, batch=4, rtol=1e-3, atol=1e-3)
    assert e.value.state.xbar.shape == (1, 3)
    assert e.value.nfe <= 150
    assert LOW < e.value.state.sigma < 1.5
    assert float(e.value.state.xbar.min()) > 5


def test_the_image_that_is_not_finite_is_named() -> None:
    def field(sigma: Tensor, xbar: Tensor) -> Tensor:
        gone = (sigma > 1).unsqueeze(1) & (xbar[:, :1] > 8)
        return torch.where(gone, torch.full_like(xbar, math.inf), MIXTURE(sigma, xbar))

    start = images(5, LOW)
    start.xbar[2] += 10.0
    with pytest.raises(InputError, match=r"image 2 of the batch: the field is not finite at σ = 1\."):
        run("dopri5-per-image", start, 1.5, field, batch=2)


@every_row
def test_a_wild_field_is_met_with_short_steps(name: str) -> None:
    """Numbers that overflow a float32 norm are a rejected step, not a failure: here beyond σ = 1, behind a bend."""

    def field(sigma: Tensor, xbar: Tensor) -> Tensor:
        return MIXTURE(sigma, xbar) - 1e25 * (xbar.abs() > 3).to(xbar)

    result = run(name, images(2, LOW, torch.float32), 0.5, field, rtol=1e-3, atol=1e-3)
    assert bool(torch.isfinite(result.xbar).all())


def test_settings() -> None:
    with pytest.raises(InputError, match="batch"):
        run("dopri5-per-image", images(1, LOW), HIGH, batch=0)
    with pytest.raises(InputError, match="did you mean log-sigma"):
        run("dopri5-per-image", images(1, LOW), HIGH, variable="log-sigm")
    with pytest.raises(InputError, match="no setting 'variable'"):
        run("dpm-solver-12", images(1, LOW), HIGH, variable="sigma")
