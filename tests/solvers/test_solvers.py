"""Every row of the solver table, by one measure: order, evaluations, where it evaluates, what it leaves alone.

Nothing here knows a row by its name except where two rows are compared with each other or with their paper.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from odeddim import solvers
from odeddim.ode.analytic import Gaussian, GaussianMixture
from odeddim.solvers._points import lagrange_weights, log_ratio
from odeddim.types import BudgetExceeded, Field, InputError, Solver, State

ROOT = Path(__file__).resolve().parent.parent.parent
ROWS = list(solvers.SOLVERS.values())
ODE = [row for row in ROWS if not row.stochastic]  # tests/solvers/test_stochastic.py has the others
FIXED = [row for row in ODE if not row.adaptive]
ADAPTIVE = [row for row in ODE if row.adaptive]
DIRECTIONS = ("encode", "decode")

# Three points of the plane, unequal weights: nonlinear, coupled, without symmetry.
MEANS = np.array([[-0.6, -0.3], [0.6, 0.0], [0.1, 0.7]])
WEIGHTS = np.array([0.5, 0.2, 0.3])
STD = 0.15
MIXTURE = GaussianMixture(torch.from_numpy(MEANS), STD, torch.from_numpy(WEIGHTS))
IMAGES = torch.tensor(
    [[-0.5, -0.2], [0.4, 0.3], [0.1, 0.1], [-0.8, -0.4], [0.2, 0.6], [0.7, -0.1], [-0.1, 0.5], [0.5, 0.15]],
    dtype=torch.float64,
)
PIXELS = GaussianMixture(torch.tensor([-0.6, 0.6]), STD)  # any shape: every pixel a draw from two modes


def each(rows: Sequence[Solver]) -> pytest.MarkDecorator:
    """Parametrize a test over rows, named by them."""
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.name)


def log_grid(steps: int, low: float, high: float) -> Tensor:
    """(steps+1,) float64, rising: even in log σ."""
    return _between(np.linspace(0, 1, steps + 1), low, high, np.log, np.exp)


def bent_grid(steps: int, low: float, high: float) -> Tensor:
    """(steps+1,) float64, rising: even in σ^(1/3), then bent so that its steps there differ fourfold."""
    u = np.linspace(0, 1, steps + 1)
    return _between(u + 0.1 * np.sin(2 * np.pi * u), low, high, np.cbrt, lambda v: v**3)


def _between(
    u: np.ndarray, low: float, high: float, forth: Callable[..., np.ndarray], back: Callable[..., np.ndarray]
) -> Tensor:
    nodes = back(forth(low) + u * (forth(high) - forth(low)))
    nodes[[0, -1]] = low, high
    return torch.from_numpy(nodes)


GRIDS = {"log": log_grid, "bent": bent_grid}


def exact(xbar: Tensor, sigma_from: float, sigma_to: float) -> Tensor:
    """The mixture's solution, image by image: its formula in numpy, scipy at its tightest, none of the code tested."""

    def slope(lam: float, y: np.ndarray) -> np.ndarray:
        sigma = math.exp(lam)
        variance = STD**2 + sigma**2
        logits = np.log(WEIGHTS) - ((y - MEANS) ** 2).sum(1) / (2 * variance)
        share = np.exp(logits - logits.max())
        return sigma**2 / variance * (y - share @ MEANS / share.sum())

    span = math.log(sigma_from), math.log(sigma_to)
    ends = [solve_ivp(slope, span, y, method="DOP853", rtol=1e-13, atol=1e-15).y[:, -1] for y in xbar.numpy()]
    return torch.from_numpy(np.stack(ends))


@functools.cache
def problem(direction: str, low: float, high: float) -> tuple[State, Tensor, float]:
    """Where a run over the mixture starts, where it should end, and the scale of its errors."""
    if direction == "encode":
        return State(IMAGES, low), exact(IMAGES, low, high), high
    latents = exact(IMAGES, low, high)
    return State(latents, high), exact(latents, high, low), 1.0


def directed(sigmas: Tensor, direction: str) -> Tensor:
    return sigmas if direction == "encode" else sigmas.flip(0)


class Recorder:
    """A field that notes where it was asked: `sigmas` of its calls, images in each in `rows`."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.moments = getattr(field, "moments", None)
        self.sigmas: list[float] = []
        self.batches: list[Tensor] = []

    def __call__(self, sigma: Tensor, xbar: Tensor) -> Tensor:
        assert sigma.shape in ((), (len(xbar),))
        assert sigma.dtype == torch.float64
        self.sigmas.extend(sigma.reshape(-1).tolist())
        self.batches.append(xbar)
        return self.field(sigma, xbar)

    @property
    def rows(self) -> list[int]:
        return [len(xbar.unique(dim=0)) for xbar in self.batches]  # a row may be repeated to fill a batch


def measured_order(row: Solver, direction: str, grid: str) -> float:
    """The slope of log error against log steps: the median of the last three doublings that are above rounding.

    Rows of many evaluations a step show their order with fewer steps: the first run beyond 1500 is the last.
    """
    low, high = 0.03, 10.0
    state, truth, scale = problem(direction, low, high)
    errors: list[float] = []
    for steps in (33, 66, 132, 264, 528):  # multiples of 3: methods that take intervals by threes leave none over
        field = Recorder(MIXTURE)
        found = row.run(field, state, directed(GRIDS[grid](steps, low, high), direction)).xbar
        errors.append(float((found - truth).square().mean().sqrt()) / scale)
        if errors[-1] < 1e-9 or len(field.sigmas) > 1500:
            break
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    return float(np.median(slopes[-3:]))


def check_order(row: Solver, direction: str, grid: str) -> None:
    assert abs(measured_order(row, direction, grid) - row.order) < 0.35


@pytest.mark.parametrize(
    ("direction", "grid"),
    [
        ("encode", "bent"),
        ("decode", "log"),
        pytest.param("encode", "log", marks=pytest.mark.slow),
        pytest.param("decode", "bent", marks=pytest.mark.slow),
    ],
)
@each(FIXED)
def test_order(row: Solver, direction: str, grid: str) -> None:
    check_order(row, direction, grid)


def test_a_row_that_lies_is_found() -> None:
    honest = solvers.get("heun")
    for order in (1, 3):
        with pytest.raises(AssertionError):
            check_order(dataclasses.replace(honest, order=order), "encode", "log")
    for lie in ({"nfe": 1}, {"nfe": 3}, {"warmup": (1,)}):
        with pytest.raises(AssertionError):
            check_run(dataclasses.replace(honest, **lie), 5, "encode", torch.float64)


def check_run(row: Solver, steps: int, direction: str, dtype: torch.dtype) -> None:
    """One run: evaluations as declared, at its own nodes, inside the interval; finite, of the dtype it was given."""
    low, high = 0.01, 157.0
    sigmas = directed(log_grid(steps, low, high), direction)
    xbar = IMAGES[:2].to(dtype) * (1 if direction == "encode" else high)
    state, before = State(xbar, float(sigmas[0])), xbar.clone()
    field = Recorder(MIXTURE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = row.run(field, state, sigmas)
    assert torch.equal(state.xbar, before), "the caller's state was changed"
    assert result.sigma == float(sigmas[-1])
    assert result.xbar.shape == xbar.shape
    assert result.xbar.dtype == dtype
    assert bool(torch.isfinite(result.xbar).all())
    assert min(field.sigmas) >= low
    assert max(field.sigmas) <= high
    if row.nfe is not None:
        assert len(field.sigmas) == row.evaluations(steps)
        assert set(field.rows) == {2}
        assert set(sigmas[1:-1].tolist()) <= set(field.sigmas), "a node was missed"
        assert {float(sigmas[0]), float(sigmas[-1])} & set(field.sigmas), "both ends were missed"


@pytest.mark.parametrize(("direction", "dtype"), [("encode", torch.float64), ("decode", torch.float32)])
@each(ODE)
def test_every_number_of_steps(row: Solver, direction: str, dtype: torch.dtype) -> None:
    """Beyond 10 no row begins or ends otherwise; `pytest -m slow` takes every number up to 40, both ways in both."""
    for steps in (1, 40) if row.adaptive else (*range(1, 11), 19, 40):
        check_run(row, steps, direction, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("direction", DIRECTIONS)
@each(FIXED)
def test_every_number_of_steps_up_to_40(row: Solver, direction: str, dtype: torch.dtype) -> None:
    for steps in range(1, 41):
        check_run(row, steps, direction, dtype)


@pytest.mark.parametrize("direction", DIRECTIONS)
@each(ODE)
def test_one_gaussian_is_solved(row: Solver, direction: str) -> None:
    """Against the closed form x̄(σ) = m + (x̄_0 - m)·√(s²+σ²)/√(s²+σ_0²), from σ = 0.01 to 157."""
    field = Gaussian(0.2, 0.5)
    sigmas = directed(log_grid(100, 0.01, 157.0), direction)
    begin, end = float(sigmas[0]), float(sigmas[-1])
    xbar = field.flow(IMAGES, 0.01, begin)
    truth = field.flow(xbar, begin, end)
    found = row.run(field, State(xbar, begin), sigmas).xbar
    bound = 1e-3 if row.adaptive else max(20 * (math.log(157 / 0.01) / 100) ** row.order, 1e-5)
    assert float((found - truth).abs().max() / truth.abs().max()) < bound


def live_states(size: int) -> float:
    """How many states of `size` float64 numbers all tensors made since gc.freeze hold, each storage counted once."""
    found = [thing for thing in gc.get_objects() if type(thing) is Tensor]
    tensors = [tensor for tensor in found if tensor.layout == torch.strided and not tensor.is_meta]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values()) / (8 * size)


@each(ODE)
def test_memory_does_not_grow(row: Solver) -> None:
    """Three hundred steps, or as many evaluations, hold no more than a few states at any time."""
    size, calls = 128, 0
    found: list[float] = []

    def field(sigma: Tensor, xbar: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls in (40, 280):
            found.append(live_states(size))
        return PIXELS(sigma, xbar)

    field.moments = PIXELS.moments  # type: ignore[attr-defined]
    exacting = row.with_settings(rtol=1e-10, atol=1e-10, max_nfe=300) if row.adaptive else row
    gc.freeze()  # what lived before is looked at no more: the whole test process has a million objects
    try:
        with contextlib.suppress(BudgetExceeded):
            exacting.run(field, State(torch.full((1, size), 0.3, dtype=torch.float64), 0.1), log_grid(300, 0.1, 10.0))
    finally:
        gc.unfreeze()
    assert found
    assert 0 < max(found) < 60


@pytest.mark.parametrize("direction", DIRECTIONS)
@each(ADAPTIVE)
def test_tolerance_is_kept(row: Solver, direction: str) -> None:
    """The worst image's error falls with rtol = atol, and stays within 50 times of it over ten e-folds of σ."""
    low, high = 0.01, 157.0
    state, truth, scale = problem(direction, low, high)
    start, truth = State(state.xbar[:4], state.sigma), truth[:4]
    errors = []
    for tolerance in (1e-3, 1e-6):
        tight = row.with_settings(rtol=tolerance, atol=tolerance)
        found = tight.run(MIXTURE, start, directed(log_grid(1, low, high), direction)).xbar
        errors.append(float((found - truth).square().mean(dim=1).sqrt().max()) / scale)
        assert errors[-1] < 50 * tolerance
    assert errors[1] < errors[0] / 10


@each(ADAPTIVE)
def test_no_step_leaps_over_the_decision(row: Solver) -> None:
    """Each image by itself: no step is so long that its error estimate misses where the image is decided."""
    for tolerance, low, high in ((1e-3, 0.01, 157.0), (1e-5, 0.05, 5.0)):
        start, truth, scale = problem("encode", low, high)
        exacting = row.with_settings(rtol=tolerance, atol=tolerance)
        for i in range(len(IMAGES)):
            found = exacting.run(MIXTURE, State(start.xbar[i : i + 1], low), log_grid(1, low, high)).xbar
            assert float((found - truth[i]).abs().max()) < 50 * tolerance * scale


@each(ADAPTIVE)
def test_interior_nodes_do_not_matter(row: Solver) -> None:
    ends = [row.run(MIXTURE, State(IMAGES, 0.1), log_grid(steps, 0.1, 10.0)).xbar for steps in (1, 7)]
    assert torch.equal(*ends)


@each(ODE)
def test_an_image_alone_and_beside_others(row: Solver) -> None:
    """Neighbours at rest change nothing: were they averaged into the error, they would hide 19/20 of it."""

    def field(sigma: Tensor, xbar: Tensor) -> Tensor:
        return MIXTURE(sigma, xbar) * (xbar != 0)  # an image of zeros stays where it is

    field.moments = MIXTURE.moments  # type: ignore[attr-defined]
    sigmas = log_grid(20, 10.0, 0.1)
    alone = row.run(field, State(10 * IMAGES[:1], 10.0), sigmas).xbar
    beside = row.run(field, State(torch.cat([10 * IMAGES[:1], torch.zeros(19, 2).double()]), 10.0), sigmas).xbar
    assert torch.allclose(alone[0], beside[0], rtol=0, atol=1e-12)


@each(ODE)
def test_an_image_beside_a_demanding_one(row: Solver) -> None:
    """With fixed steps nothing changes; adaptive rows may take other steps, within their tolerance."""

    def field(sigma: Tensor, xbar: Tensor) -> Tensor:
        points, demand = xbar.split((2, 1), dim=1)  # a third number, which stays, says how much an image is shaken
        shaken = MIXTURE(sigma, points) + 3 * demand * torch.cos(30 * sigma.log()).reshape(-1, 1)
        return torch.cat([shaken, torch.zeros_like(demand)], dim=1)

    field.moments = PIXELS.moments  # type: ignore[attr-defined]
    low, high = 0.05, 5.0
    row = row.with_settings(rtol=1e-4, atol=1e-4) if row.adaptive else row
    images = torch.cat([IMAGES[:2], torch.tensor([[0.0], [1.0]], dtype=torch.float64)], dim=1)
    truth = exact(IMAGES[:1], low, high)
    alone = row.run(field, State(images[:1], low), log_grid(20, low, high)).xbar
    beside = row.run(field, State(images, low), log_grid(20, low, high)).xbar[:1]
    if row.adaptive:
        for found in (alone, beside):
            assert float((found[:, :2] - truth).abs().max()) < 50 * 1e-4 * high
    else:
        assert torch.allclose(alone, beside, rtol=0, atol=1e-12)


@pytest.mark.parametrize("direction", DIRECTIONS)
@each(ADAPTIVE)
def test_a_spent_budget(row: Solver, direction: str) -> None:
    """The exception says where and why, and brings a point of the solution."""
    low, high = 0.01, 157.0
    start = problem(direction, low, high)[0]
    start = State(start.xbar[:1], start.sigma)
    field = Recorder(MIXTURE)
    with pytest.raises(BudgetExceeded, match=r"max_nfe = 60 .* σ = .* loosen rtol") as raised:
        row.with_settings(max_nfe=60).run(field, start, directed(log_grid(1, low, high), direction))
    assert sum(field.rows) == raised.value.nfe <= 60
    state = raised.value.state
    assert low < state.sigma < high
    assert state.xbar.shape == start.xbar.shape
    assert f"{state.sigma:.6g}" in str(raised.value)
    truth = exact(start.xbar, start.sigma, state.sigma)
    assert float((state.xbar - truth).abs().max()) < 50 * 1e-5 * max(1.0, state.sigma)


@each(ADAPTIVE)
def test_a_field_that_cannot_be_followed(row: Solver) -> None:
    """Noise of 1e30 leaves no step small enough: an end with an explanation, not an assertion or a loop."""
    generator = torch.Generator().manual_seed(0)

    def field(sigma: Tensor, xbar: Tensor) -> Tensor:
        return 1e30 * torch.randn(xbar.shape, dtype=xbar.dtype, generator=generator)

    with pytest.raises((BudgetExceeded, InputError), match="σ = "):
        row.with_settings(max_nfe=2000).run(field, State(IMAGES[:1], 0.1), log_grid(1, 0.1, 10.0))


@each(ADAPTIVE)
def test_a_field_that_is_not_finite(row: Solver) -> None:
    def field(sigma: Tensor, xbar: Tensor) -> Tensor:
        return MIXTURE(sigma, xbar) if sigma.max() > 1 else torch.full_like(xbar, math.nan)

    with pytest.raises(InputError, match="not finite at σ = 0"):
        row.run(field, State(IMAGES[:1], 10.0), log_grid(1, 0.1, 10.0).flip(0))


@each(ADAPTIVE)
def test_settings(row: Solver) -> None:
    for setting in ({"rtol": 0.0}, {"atol": -1.0}, {"max_nfe": 0}):
        with pytest.raises(InputError, match="positive"):
            row.with_settings(**setting).run(MIXTURE, State(IMAGES, 0.1), log_grid(1, 0.1, 10.0))


def test_jacobians_come_in_batches() -> None:
    """An implicit row on an image of 100 numbers: few calls, none of them large, and the same answer as without."""
    image = torch.linspace(-0.8, 0.8, 100, dtype=torch.float64).reshape(1, 1, 10, 10)
    field = Recorder(PIXELS)
    sigmas = log_grid(1, 0.1, 10.0)
    found = solvers.get("scipy-radau", rtol=1e-7, atol=1e-7).run(field, State(image, 0.1), sigmas).xbar
    truth = solvers.get("scipy-dop853", rtol=1e-10, atol=1e-10).run(PIXELS, State(image, 0.1), sigmas).xbar
    assert max(field.rows) == 64
    assert len(field.rows) < sum(field.rows)
    assert float((found - truth).abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["scipy-lsoda", "scipy-radau", "scipy-bdf"])
def test_implicit_rows_are_at_home_in_stiffness(name: str) -> None:
    """A stiff linear field that is not symmetric: with a wrong Jacobian each of them needs thousands of evaluations."""
    matrix = torch.tensor([[-50.0, 400.0], [0.0, -60.0]], dtype=torch.float64)

    def field(sigma: Tensor, xbar: Tensor) -> Tensor:
        return xbar @ matrix.T / (1 + sigma)

    start = State(torch.ones(1, 2, dtype=torch.float64), 0.1)
    end = solvers.get(name, max_nfe=600).run(field, start, log_grid(1, 0.1, 100.0)).xbar
    assert float(end.abs().max()) < 1e-5


def test_the_table() -> None:
    assert solvers.names() == tuple(solvers.SOLVERS)
    assert [solvers.get(name).name for name in solvers.names()] == list(solvers.names())
    with pytest.raises(InputError, match=r"did you mean.*euler"):
        solvers.get("eulr")
    with pytest.raises(InputError, match="no setting 'rtol'"):
        solvers.get("euler", rtol=1e-3)


def test_rows_made_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every row that allows it, listed or not, one's own included."""
    monkeypatch.setattr(solvers, "SOLVERS", dict(solvers.SOLVERS))
    solvers.add(dataclasses.replace(solvers.get("heun"), name="mine"))
    for name in ("mf-mine", "exact-midpoint", "mf-midpoint", "exact-mine"):
        assert solvers.get(name).name == name
    check_order(solvers.get("mf-mine"), "encode", "log")
    assert solvers.get("exact-deis-tab2", accuracy=1e-5).order == 3
    with pytest.raises(InputError, match="one-step"):
        solvers.get("mf-ab2")
    with pytest.raises(InputError, match="no inverse"):
        solvers.get("exact-dopri5")
    with pytest.raises(InputError, match="unknown solver"):
        solvers.get("mf-nothing")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mf-midpoint", "exact-midpoint", "exact-heun"])
def test_orders_of_rows_made_of_rows(name: str) -> None:
    check_order(solvers.get(name), "encode", "log")


def test_adding_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solvers, "SOLVERS", dict(solvers.SOLVERS))
    euler = solvers.get("euler")
    solvers.add(dataclasses.replace(euler, name="my-euler"))
    assert solvers.get("my-euler").run is euler.run
    with pytest.raises(InputError, match="already"):
        solvers.add(euler)
    for wrong in ({"name": "My Euler"}, {"order": 0}, {"nfe": 0}, {"warmup": (-1,)}, {"family": ""}, {"reference": ""}):
        with pytest.raises(InputError):
            solvers.add(dataclasses.replace(euler, **{"name": "other", **wrong}))


def test_listing_the_table_loads_nothing_heavy() -> None:
    code = (
        "import sys, odeddim.solvers as s\n"
        "assert s.get('ab3').order == 3 and len(s.names()) > 20\n"
        "print(sorted({'torch', 'numpy', 'scipy', 'torchdiffeq'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


@pytest.mark.parametrize("gap", [1e-13, 1e-8, 1e-3, 0.5, 5.0])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_weights_against_fifty_digits(k: int, gap: float) -> None:
    """Nodes `gap` apart in log σ, unevenly, rising and falling, against mpmath."""
    mpmath.mp.dps = 50
    for sign in (1, -1):
        nodes = [0.7 * math.exp(sign * gap * place) for place in (0.0, -1.0, -1.7, -3.0)][:k]
        end = 0.7 * math.exp(sign * gap)
        exactly = [mpmath.mpf(node) for node in nodes]
        for j, weight in enumerate(lagrange_weights(nodes, nodes[0], end)):

            def integrand(u: mpmath.mpf, j: int = j, exactly: list[mpmath.mpf] = exactly) -> mpmath.mpf:
                lam = mpmath.log(exactly[0]) + u
                others = [mpmath.log(other) for i, other in enumerate(exactly) if i != j]
                return mpmath.exp(lam) * mpmath.fprod((lam - m) / (mpmath.log(exactly[j]) - m) for m in others)

            truth = mpmath.quad(integrand, [0, mpmath.log(mpmath.mpf(end) / exactly[0])])
            assert abs(weight / truth - 1) < 1e-13


def test_weights_of_a_stage_inside_the_step() -> None:
    """Polynomials in log σ are integrated exactly from nodes on both sides of the interval's middle too."""
    start, end = 0.3, 0.8
    nodes = [start, start * (end / start) ** (2 / 3)]
    for power in (0, 1):
        truth = mpmath.quad(lambda u, n=power: u**n * mpmath.exp(u), [mpmath.log(start), mpmath.log(end)])
        found = sum(
            w * math.log(node) ** power for w, node in zip(lagrange_weights(nodes, start, end), nodes, strict=True)
        )
        assert abs(found - truth) < 1e-14


def test_log_ratio_of_neighbours() -> None:
    a = math.nextafter(157.0, 158.0)
    assert log_ratio(a, 157.0) == pytest.approx((a - 157.0) / 157.0, rel=1e-12)
    assert log_ratio(1e-9, 157.0) == pytest.approx(math.log(1e-9) - math.log(157.0), rel=1e-15)


def test_two_implementations_of_one_method_agree() -> None:
    sigmas = log_grid(17, 0.05, 20.0)
    ours, theirs = (solvers.get(name).run(MIXTURE, State(IMAGES, 0.05), sigmas).xbar for name in ("heun", "heun2"))
    assert torch.allclose(ours, theirs, rtol=1e-13, atol=1e-13)


def test_ab4_starts_with_dpm_solver_3() -> None:
    """Algorithm 2 of arXiv 2206.00927 in the paper's own x = √α·x̄ and λ, its r1 = 1/3 and r2 = 2/3."""
    start, end = 5.0, 2.0

    def alpha(lam: float) -> float:
        return 1 / math.sqrt(1 + math.exp(-2 * lam))

    def eps(lam: float, x: Tensor) -> Tensor:
        return MIXTURE(torch.tensor(math.exp(-lam), dtype=torch.float64), x / alpha(lam))

    begin, h = -math.log(start), math.log(start / end)
    x = alpha(begin) * 5 * IMAGES
    first = eps(begin, x)

    def moved(part: float, growth: Tensor) -> Tensor:
        """From the start over `part` of the step, ε growing in λ by `growth` over the whole step."""
        lam, phi = begin + part * h, math.expm1(part * h)
        sigma = math.exp(-lam) * alpha(lam)
        bent = part * (phi / (part * h) - 1) * growth
        return alpha(lam) / alpha(begin) * x - sigma * (phi * first + bent)

    second = eps(begin + h / 3, moved(1 / 3, torch.zeros_like(x)))
    third = eps(begin + 2 * h / 3, moved(2 / 3, 3 * (second - first)))
    truth = moved(1, 3 / 2 * (third - first)) / alpha(begin + h)
    nodes = torch.tensor([start, end], dtype=torch.float64)
    found = solvers.get("ab4").run(MIXTURE, State(5 * IMAGES, start), nodes).xbar
    assert torch.allclose(found, truth, rtol=1e-12, atol=1e-12)


def test_dpmpp_2m_as_in_its_paper() -> None:
    """Algorithm 2 of arXiv 2211.01095 in the paper's own x = √α·x̄, with α_t = √α, σ_t = √(1-α), λ = log(α_t/σ_t)."""
    sigmas = bent_grid(9, 0.05, 20.0).flip(0)
    xbar = 20 * IMAGES
    alpha, sigma = 1 / (1 + sigmas**2).sqrt(), sigmas / (1 + sigmas**2).sqrt()
    lam = torch.log(alpha / sigma)
    x, images = alpha[0] * xbar, []
    for i in range(1, 10):
        eps = MIXTURE(sigmas[i - 1], x / alpha[i - 1])
        images.append((x - sigma[i - 1] * eps) / alpha[i - 1])
        h = lam[i] - lam[i - 1]
        blend = images[-1]
        if i > 1:
            r = (lam[i - 1] - lam[i - 2]) / h
            blend = (1 + 1 / (2 * r)) * images[-1] - images[-2] / (2 * r)
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * torch.expm1(-h) * blend
    found = solvers.get("dpmpp-2m").run(MIXTURE, State(xbar, 20.0), sigmas).xbar
    assert torch.allclose(found, x / alpha[-1], rtol=1e-12, atol=1e-12)
