"""Our rows and diffusers' schedulers, an implementation nobody here wrote: the same nodes, the same evaluations.

Not only the ends are compared but every point (σ, x̄) at which either side asks the network, in order. Where the two
differ the difference is stated, tested, and shown to be all there is: with it undone they agree again.

diffusers keeps its schedules, and some of its states, in float32. `in_float64` makes its float32 mean float64, so that
its own arithmetic is what is compared: 1e-10 of the scale of x̄ is asked for everywhere. All agree to 1e-11, most to
1e-12; the rest is for its e^h - 1 and (e^h - 1)/h - 1, which lose digits where steps are short.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import odeddim
from odeddim import solvers
from odeddim.ode.analytic import GaussianMixture
from odeddim.plans import Plan, integrate
from odeddim.solvers._points import halfway_in_time
from odeddim.types import Solver, State

diffusers = pytest.importorskip("diffusers", reason="diffusers is installed by the test extra")

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # torch's tensors in its numpy

SCHEDULERS = (
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)

TOLERANCE = 1e-10
# Steps of the whole run, the one to σ = 0 included. diffusers lowers the order at the end of runs of fewer than 15.
SHORT, LONG = (2, 3, 4, 5, 9, 14), (15, 16, 17, 30)
EVERY = SHORT + LONG

# Three points of the plane, unequal weights: nonlinear, coupled, without symmetry.
MIXTURE = GaussianMixture(
    torch.tensor([[-0.6, -0.3], [0.6, 0.0], [0.1, 0.7]], dtype=torch.float64),
    0.15,
    torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64),
)
NOISE = torch.tensor([[-0.5, -0.2], [0.4, 1.3], [1.1, 0.1], [-1.8, -0.4], [0.2, -0.6]], dtype=torch.float64)

EPSILON: dict[str, Any] = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}

Trace = list[tuple[float, Tensor]]
"""The points (σ, x̄) at which the network was asked, and at last where the run ended."""


class InFloat64:
    """A module whose float32 is float64."""

    def __init__(self, module: Any, float64: Any) -> None:
        self.module, self.float32 = module, float64

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


@pytest.fixture(autouse=True)
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every scheduler computes in float64: its betas, its nodes, its coefficients and its states."""
    for name in SCHEDULERS:
        module = sys.modules[getattr(diffusers, name).__module__]
        for library, float64 in (("torch", torch.float64), ("np", np.float64)):
            if hasattr(module, library):
                monkeypatch.setattr(module, library, InFloat64(getattr(module, library), float64))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def uneven(steps: int, low: float = 0.02, high: float = 60.0) -> Tensor:
    """(steps+1,) float64, falling to low > 0: even in σ^(1/5), then bent so that no two steps are alike."""
    u = np.linspace(0, 1, steps + 1)
    u = u + 0.1 * np.sin(2 * np.pi * u) + 0.02 * np.sin(40 * u) * u * (1 - u)
    nodes = (high**0.2 + u * (low**0.2 - high**0.2)) ** 5
    nodes[[0, -1]] = high, low
    assert (np.diff(nodes) < 0).all()
    return torch.from_numpy(nodes)


def to_zero(nodes: Tensor) -> Tensor:
    return torch.cat([nodes, nodes.new_zeros(1)])


def between(nodes: Tensor, parts: Sequence[float]) -> Tensor:
    """The nodes, and in each of their steps the levels at these parts of it in log σ."""
    inner = [[a * (b / a) ** part for part in (0.0, *parts)] for a, b in pairwise(nodes.tolist())]
    return torch.tensor([*np.concatenate(inner).tolist(), float(nodes[-1])], dtype=torch.float64)


def make(name: str, **config: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # "dpmsolver" is deprecated there
        return getattr(diffusers, name)(**config)


def on(scheduler: Any, nodes: Tensor) -> Any:
    """The scheduler, set to these falling nodes instead of its own."""
    scheduler.set_timesteps(len(nodes) - 1)
    scheduler.sigmas = nodes.clone()
    return scheduler


def theirs(
    scheduler: Any,
    levels: Tensor,
    *,
    preserving: bool = True,
    output: Callable[[float, Tensor, Tensor], Tensor] | None = None,
    before: Callable[[int], None] | None = None,
) -> Trace:
    """A run of a scheduler over its `timesteps`. levels: σ at each call and, at last, where the run ends.

    preserving: its samples are x = x̄/√(1+σ²), otherwise x̄. output: what its network returns for (σ, x, ε); ε itself
    unless given. before: called with the number of the step that comes.
    """

    def unit(sigma: float) -> float:
        return 1 / math.sqrt(1 + sigma**2) if preserving else 1.0

    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    trace: Trace = []
    nodes = levels.tolist()
    x = nodes[0] * NOISE * unit(nodes[0])
    for step, (timestep, sigma) in enumerate(zip(scheduler.timesteps, nodes[:-1], strict=True)):
        if before is not None:
            before(step)
        trace.append((sigma, x / unit(sigma)))
        if hasattr(scheduler, "is_scale_input_called"):
            scaled = scheduler.scale_model_input(x, timestep)
            assert torch.allclose(scaled, x / math.sqrt(1 + sigma**2), rtol=1e-14), "it is at another σ"
        eps = MIXTURE(torch.tensor(sigma), x / unit(sigma))
        x = scheduler.step(eps if output is None else output(sigma, x, eps), timestep, x).prev_sample
        assert x.dtype == torch.float64
    return [*trace, (nodes[-1], x / unit(nodes[-1]))]


def ours(row: str | Solver, nodes: Tensor, **settings: Any) -> Trace:
    trace: Trace = []

    def field(sigma: Tensor, xbar: Tensor) -> Tensor:
        trace.append((float(sigma), xbar.clone()))
        return MIXTURE(sigma, xbar)

    solver = solvers.get(row, **settings) if isinstance(row, str) else row
    end = integrate(field, State(float(nodes[0]) * NOISE, float(nodes[0])), Plan(solver, nodes.flip(0)))
    return [*trace, (end.sigma, end.xbar)]


def distance(a: tuple[float, Tensor], b: tuple[float, Tensor]) -> float:
    """Between two points of two runs, at one and the same σ, as a share of the scale of x̄ there."""
    assert a[0] == pytest.approx(b[0], rel=1e-12, abs=0)
    return float((a[1] - b[1]).abs().max()) / max(1.0, a[0])


def alike(a: Trace, b: Trace) -> int:
    """How many points two runs have in common from their start."""
    assert len(a) == len(b)
    same = [distance(one, other) < TOLERANCE for one, other in zip(a, b, strict=True)]
    return [*same, False].index(False)


def agree(a: Trace, b: Trace) -> bool:
    return alike(a, b) == len(a)


def orders(steps: int, k: int, *, lowered: bool = False) -> list[int]:
    """Of the steps of a run of order k that begins with lower ones. lowered: ends with them as well."""
    return [min(n + 1, k, steps - n if lowered else k) for n in range(steps)]


def equal(one: list[int], other: list[int]) -> int:
    """How many points two runs have in common whose steps have these orders."""
    return 1 + [*(a == b for a, b in zip(one, other, strict=True)), False].index(False)


@pytest.mark.parametrize("steps", EVERY)
@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_the_nodes_are_theirs(name: str, steps: int) -> None:
    """On nodes a scheduler chose itself: it is in float64 indeed, and its σ are our schedule's at its labels."""
    scheduler = make(name)
    scheduler.set_timesteps(steps)
    assert scheduler.sigmas.dtype == torch.float64
    assert float(scheduler.sigmas[-1]) == 0
    if name != "EulerDiscreteScheduler":  # whose labels are not integers
        levels = odeddim.Schedule.linear().levels[scheduler.timesteps]
        assert torch.allclose(levels, scheduler.sigmas[:-1], rtol=1e-10, atol=0)


@pytest.mark.parametrize("steps", EVERY)
def test_euler(steps: int) -> None:
    scheduler = make("EulerDiscreteScheduler")
    scheduler.set_timesteps(steps)
    assert agree(theirs(scheduler, scheduler.sigmas, preserving=False), ours("euler", scheduler.sigmas))
    nodes = to_zero(uneven(steps - 1))
    for name in ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"):
        assert agree(theirs(on(make(name, solver_order=1), nodes), nodes), ours("dpm-solver-1", nodes))
    positive = uneven(steps)
    for name, config in (
        ("DPMSolverMultistepScheduler", EPSILON),
        ("DEISMultistepScheduler", {}),
    ):
        scheduler = on(make(name, solver_order=1, **config), positive)
        assert agree(theirs(scheduler, positive), ours("euler", positive))


@pytest.mark.parametrize("steps", EVERY)
def test_heun(steps: int) -> None:
    """Its last step, to σ = 0, is Euler's as well."""
    scheduler = make("HeunDiscreteScheduler")
    scheduler.set_timesteps(steps)
    nodes = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]])
    assert agree(theirs(scheduler, scheduler.sigmas, preserving=False), ours("heun", nodes))


@pytest.mark.parametrize("steps", [2, 3, 9, 30])
def test_dpm_solver_2_is_kdpm2(steps: int) -> None:
    """k-diffusion's DPM-2: the stage in the middle in log σ; the step to σ = 0 is Euler's."""
    scheduler = make("KDPM2DiscreteScheduler")
    scheduler.set_timesteps(steps)
    levels = scheduler.sigmas[: 2 * steps].clone()
    nodes = torch.cat([levels[:1], levels[1::2]])
    levels[1:-1:2] = scheduler.sigmas_interpol[1 : 2 * steps - 1 : 2]
    assert agree(theirs(scheduler, levels, preserving=False), ours("dpm-solver-2", nodes))


@pytest.mark.parametrize("steps", EVERY)
def test_dpmpp_2m(steps: int) -> None:
    """To σ = 0 alike; to σ_min their short runs end with Euler's step, ours with one like the others."""
    own = make("DPMSolverMultistepScheduler", solver_order=2)
    own.set_timesteps(steps)
    assert agree(theirs(own, own.sigmas), ours("dpmpp-2m", own.sigmas))
    nodes = to_zero(uneven(steps - 1))
    scheduler = on(make("DPMSolverMultistepScheduler", solver_order=2), nodes)
    assert agree(theirs(scheduler, nodes), ours("dpmpp-2m", nodes))
    nodes = uneven(steps)
    scheduler = on(make("DPMSolverMultistepScheduler", solver_order=2, final_sigmas_type="sigma_min"), nodes)
    assert alike(theirs(scheduler, nodes), ours("dpmpp-2m", nodes)) == (steps if steps < 15 else steps + 1)


def with_the_whole_second_difference(scheduler: Any) -> Any:
    """The scheduler, its multistep third order mended: the half of D2's term that it leaves out is added.

    The polynomial through three x̂0 (or ε) is D0 + D1·s + D2·s², s from 0 to 1 over the step. ∫ e^(-h(1-s)) h s² ds is
    1 - 2(...)/h², twice the factor that diffusers, the authors' own code and k-diffusion give to D2: theirs is φ_3,
    which belongs to the second derivative 2·D2. Their one-step third order has D2 = 2(...), right.
    """
    halved = scheduler.multistep_dpm_solver_third_order_update

    def update(outputs: list[Tensor], sample: Tensor, noise: Tensor | None = None) -> Tensor:
        n = scheduler.step_index
        oldest, older, old, end = (-scheduler.sigmas[n - 2 : n + 2].log()).tolist()
        h = end - old
        last, before = (outputs[-1] - outputs[-2]) / (old - older), (outputs[-2] - outputs[-3]) / (older - oldest)
        D2 = h**2 * (last - before) / (old - oldest)
        sigma = float(scheduler.sigmas[n + 1])
        alpha = 1 / math.sqrt(1 + sigma**2)
        if scheduler.config.algorithm_type == "dpmsolver++":
            rest = -alpha * ((math.expm1(-h) + h) / h**2 - 0.5) * D2
        else:
            rest = -alpha * sigma * ((math.expm1(h) - h) / h**2 - 0.5) * D2
        whole: Tensor = halved(outputs, sample=sample, noise=noise) + rest
        return whole

    scheduler.multistep_dpm_solver_third_order_update = update
    return scheduler


@pytest.mark.parametrize("steps", EVERY)
def test_dpmpp_3m(steps: int) -> None:
    """With "heun", whose steps of order 2 are polynomials as well, and the mended D2; ours must begin as theirs does.

    Of short runs the last positive step has order 2 in both.
    """
    nodes = to_zero(uneven(steps - 1))
    found = ours("dpmpp-3m", nodes, warmup="lower")
    config = {"solver_order": 3, "solver_type": "heun"}
    mended = on(with_the_whole_second_difference(make("DPMSolverMultistepScheduler", **config)), nodes)
    assert agree(theirs(mended, nodes), found)
    # As they are: the first step of order 3 is the third, and its end the fourth point.
    halved = theirs(on(make("DPMSolverMultistepScheduler", **config), nodes), nodes)
    taken = [*orders(steps, 3, lowered=steps < 15)[:-1], 1]
    assert alike(halved, found) == equal(taken, [min(order, 2) for order in taken])
    # "midpoint" takes steps of order 2 as ++2M does: there is one unless every step is Euler's.
    midpoint = theirs(on(make("DPMSolverMultistepScheduler", solver_order=3), nodes), nodes)
    assert alike(midpoint, found) == equal(taken, [1] * steps)


@pytest.mark.parametrize("mended", [False, True])
def test_their_third_order_misses_parabolas(mended: bool) -> None:
    """What D2 is halved from: with x̂0 = λ², λ = -log σ, a step of order 3 must give (x̄/σ)' = x̂0 its exact integral."""

    def parabola(sigma: float, x: Tensor, eps: Tensor) -> Tensor:
        return (x * math.sqrt(1 + sigma**2) - math.log(sigma) ** 2) / sigma

    def integral(sigma: float) -> float:
        return (math.log(sigma) ** 2 + 2 * math.log(sigma) + 2) / sigma  # of λ² e^λ

    nodes = uneven(20, 0.1, 10.0)
    config = {"solver_order": 3, "solver_type": "heun", "final_sigmas_type": "sigma_min", "lower_order_final": False}
    scheduler = make("DPMSolverMultistepScheduler", **config)
    scheduler = with_the_whole_second_difference(scheduler) if mended else scheduler
    trace = theirs(on(scheduler, nodes), nodes, output=parabola)
    for n, ((a, xbar), (b, end)) in enumerate(pairwise(trace)):
        missed = (end / b - xbar / a) - (integral(b) - integral(a))
        exact = bool((missed.abs() < 1e-12 * integral(b)).all())
        assert exact == (mended and n >= 2), n


@pytest.mark.parametrize("steps", EVERY)
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "DEISMultistepScheduler"])
def test_ab(name: str, k: int, steps: int) -> None:
    """ε in log σ: DEIS "logrho", and the multistep form of DPM-Solver in "heun", its D2 mended.

    They have no logarithm of σ = 0: their runs end at σ_min, in short ones with lower orders unless told not to; ours
    keep the order there. (DPM-Solver's multistep form in "midpoint", ε held as ++2M holds x̂0, is no row of ours.)
    """
    nodes = uneven(steps)
    found = ours(f"ab{k}", nodes, **({} if k == 2 else {"warmup": "lower"}))
    dpm_solver = name == "DPMSolverMultistepScheduler"
    config: dict[str, Any] = {"solver_type": "heun", **EPSILON} if dpm_solver else {}
    for lowered in (False, True):
        scheduler = on(make(name, solver_order=k, lower_order_final=lowered, **config), nodes)
        if dpm_solver and k == 3:
            scheduler = with_the_whole_second_difference(scheduler)
        common = equal(orders(steps, k, lowered=lowered and steps < 15), orders(steps, k))
        assert alike(theirs(scheduler, nodes), found) == common


def test_only_the_data_chart_reaches_zero() -> None:
    for name in ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"):
        with pytest.raises(ValueError, match="sigma_min"):
            make(name, algorithm_type="dpmsolver", final_sigmas_type="zero")


@pytest.mark.parametrize("steps", [2, 3, 4, 5, 9, 13, 14, 20])
def test_two_evaluations_a_step(steps: int) -> None:
    """DPM-Solver++(2S) and DPM-Solver-2: their stages are nodes, in pairs, ours lie in the middle of a step in log σ.

    An odd number of their steps to σ = 0 leaves a single one for the end, which is Euler's in both.
    """
    nodes = between(uneven(steps), (1 / 2,))
    scheduler = on(make("DPMSolverSinglestepScheduler", solver_order=2), to_zero(nodes))
    assert scheduler.order_list == [1, 2] * steps + [1]
    assert agree(theirs(scheduler, to_zero(nodes)), ours("dpmpp-2s", to_zero(nodes[::2])))
    scheduler = make("DPMSolverSinglestepScheduler", solver_order=2, **EPSILON, lower_order_final=False)
    assert agree(theirs(on(scheduler, nodes), nodes), ours("dpm-solver-2", nodes[::2]))


def exact_stages(scheduler: Any) -> Callable[[int], None]:
    """What makes their steps of DPM-Solver-3 those of its Algorithm 2, to be called before each.

    Its second stage is a step of order 2 through the first, with ε linear in λ, which they have as "heun" (Algorithm 2:
    e^(r2 h) - 1)/(r2 h) - 1), while its end is "midpoint": linear through the start and the second stage. Their one
    switch turns both; "heun" at the end is the parabola through all three.
    """

    def before(step: int) -> None:
        inside = scheduler.order_list[step] == 2 and scheduler.order_list[step + 1 : step + 2] == [3]
        scheduler.register_to_config(solver_type="heun" if inside else "midpoint")

    return before


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9])
def test_dpm_solver_3(steps: int) -> None:
    nodes = between(uneven(steps), (1 / 3, 2 / 3))
    found = ours("dpm-solver-3", nodes[::3])
    scheduler = on(make("DPMSolverSinglestepScheduler", solver_order=3, **EPSILON, lower_order_final=False), nodes)
    assert scheduler.order_list == [1, 2, 3] * steps
    assert agree(theirs(scheduler, nodes, before=exact_stages(scheduler)), found)
    for kind, common in (("midpoint", 2), ("heun", 3)):  # points: the start and the stages that are Algorithm 2's
        scheduler = make(
            "DPMSolverSinglestepScheduler", solver_order=3, solver_type=kind, **EPSILON, lower_order_final=False
        )
        assert alike(theirs(on(scheduler, nodes), nodes), found) == common


@pytest.mark.parametrize("steps", range(2, 31))
def test_dpm_solver_fast(steps: int) -> None:
    """Steps of order 3 over three nodes each, lower ones at the end, as the paper has it and diffusers in all lengths.

    Ours has the paper's end in runs of fewer than 14 steps. In longer ones no step of order 1 is left: 3k steps are
    theirs with lower_order_final=False, 3k+1 end with 2 and 2 for their 3 and 1, and 3k+2 end with 2 in both.
    """
    nodes = uneven(steps)
    long = steps >= 14
    lower = not (long and steps % 3 == 0)
    scheduler = make("DPMSolverSinglestepScheduler", solver_order=3, **EPSILON, lower_order_final=lower)
    scheduler = on(scheduler, nodes)
    found = theirs(scheduler, nodes, before=exact_stages(scheduler))
    common = steps - 4 + 2 if long and steps % 3 == 1 else steps + 1  # 2 and 3 have their first stage in common
    assert alike(found, ours("dpm-solver-fast", nodes)) == common


@pytest.mark.parametrize("steps", EVERY)
@pytest.mark.parametrize("b", ["bh1", "bh2"])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_unipc(p: int, b: str, steps: int) -> None:
    """Every predicted point, where the network is asked, and with them the corrected ones, from which they start.

    Nothing is corrected at the end: at σ = 0 both return x̂0 of the last prediction, but for their B₁(h) = h, which is
    infinite there and makes it NaN. They end with lower orders in runs of any length, ours in those of fewer than 14
    steps to σ_min: at p = 3 the last step before σ = 0 has order 2 or 3.
    """
    row = f"unipc-{p}" if b == "bh2" else f"unipc-{p}-{b}"
    settings = {"warmup": "lower"} if p == 3 else {}
    nodes = to_zero(uneven(steps - 1))
    scheduler = on(make("UniPCMultistepScheduler", solver_order=p, solver_type=b), nodes)
    common = steps - 1 if p == 3 and steps >= 15 else steps + 1
    expected, found = theirs(scheduler, nodes), ours(row, nodes, **settings)
    assert bool(expected[-1][1].isnan().all()) == (b == "bh1")
    assert alike(expected, found) == (min(common, steps) if b == "bh1" else common)
    # To σ_min, no order lowered: to the end in long runs, in short ones but for the order 2 of our last step.
    nodes = uneven(steps)
    config = {"final_sigmas_type": "sigma_min", "lower_order_final": False}
    scheduler = on(make("UniPCMultistepScheduler", solver_order=p, solver_type=b, **config), nodes)
    common = steps if p == 3 and 2 < steps < 14 else steps + 1
    assert alike(theirs(scheduler, nodes), ours(row, nodes, **settings)) == common


@pytest.mark.parametrize("steps", EVERY)
def test_lms(steps: int) -> None:
    """To σ_min; their step to σ = 0 is one of order 4 more, ours Euler's."""
    scheduler = make("LMSDiscreteScheduler")
    scheduler.set_timesteps(steps)
    nodes = scheduler.sigmas
    found, expected = ours("lms", nodes, warmup="lower"), theirs(scheduler, nodes, preserving=False)
    assert alike(found, expected) == steps
    (sigma, xbar), (_, end) = found[-2:]
    assert torch.equal(end, xbar - sigma * MIXTURE(torch.tensor(sigma), xbar))


def of_levels(levels: Tensor) -> list[float]:
    """β of a schedule whose σ are these rising levels."""
    alphas = 1 / (1 + levels**2)
    return (1 - alphas / torch.cat([alphas.new_ones(1), alphas[:-1]])).tolist()


@pytest.mark.parametrize("steps", EVERY)
def test_ipndm(steps: int) -> None:
    """Its network predicts v = √α·ε - √(1-α)·x0 in x's units; its own first node has α = 0, so it is given ours.

    To σ_min; its step to σ = 0 is one with four ε more, ours Euler's.
    """
    nodes = to_zero(uneven(steps - 1))
    sines = nodes / torch.sqrt(1 + nodes**2)
    scheduler = make("IPNDMScheduler", trained_betas=sines.tolist())
    scheduler.set_timesteps(steps)

    def v(sigma: float, x: Tensor, eps: Tensor) -> Tensor:
        cosine, sine = 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)
        return cosine * eps - sine * (x - sine * eps) / cosine

    assert alike(theirs(scheduler, nodes, output=v), ours("ipndm", nodes)) == steps


@pytest.mark.parametrize("steps", EVERY)
def test_plms(steps: int) -> None:
    """PNDM without Runge-Kutta steps, on a schedule of as many levels as there are nodes.

    The step to σ = 0 is one with four ε more there, Euler's in ours.
    """
    nodes = uneven(steps - 1)
    config = {"num_train_timesteps": steps, "trained_betas": of_levels(nodes.flip(0)), "set_alpha_to_one": True}
    scheduler = make("PNDMScheduler", skip_prk_steps=True, **config)
    scheduler.set_timesteps(steps)
    levels = to_zero(nodes)
    asked = torch.cat([levels[:2], levels[1:]])  # Heun's first step asks at its end as well, like the next one
    assert alike(theirs(scheduler, asked), ours("plms", levels)) == steps + 1


def half_way(nodes: Tensor) -> Tensor:
    """The nodes and the levels in the middle between them in the time of DDPM, where our stages lie."""
    inner = [(a, halfway_in_time(a, b)) for a, b in pairwise(nodes.tolist())]
    return torch.tensor([*np.ravel(inner).tolist(), float(nodes[-1])], dtype=torch.float64)


def asked_by_pndm(nodes: Tensor, inner: Tensor) -> Tensor:
    """σ of its calls and of the end: in each of three steps the start, the middle twice, the end, then the nodes."""
    runge_kutta = [torch.stack([nodes[n], inner[n], inner[n], nodes[n + 1]]) for n in range(3)]
    return torch.cat([*runge_kutta, nodes[3:]])


@pytest.mark.parametrize("steps", [4, 5, 9, 14, 15, 30])
def test_pndm(steps: int) -> None:
    """On a schedule with two levels a step, every other one where our stages lie: one algorithm, to σ_min.

    The step to σ = 0 is one with four ε more there, Euler's in ours. Its first three steps need four nodes.
    """
    nodes = uneven(steps - 1)
    both = half_way(nodes)
    levels = torch.cat([both[-1:] / 2, both.flip(0)])  # a label below the last node, for 2·steps in all
    config = {"num_train_timesteps": 2 * steps, "trained_betas": of_levels(levels), "steps_offset": 1}
    scheduler = make("PNDMScheduler", **config, set_alpha_to_one=True)
    scheduler.set_timesteps(steps)
    end = to_zero(nodes)
    assert alike(theirs(scheduler, asked_by_pndm(end, both[1::2])), ours("pndm", end)) == steps + 9


@pytest.mark.parametrize("steps", [10, 20, 50, 100])
def test_pndm_on_the_linear_schedule(steps: int) -> None:
    """Its labels halfway and our levels halfway, on the discrete form of the process whose time ours takes.

    The half of a label is another level than the half of the time by 1e-2/steps² of it, x̄ at the nodes by far less.
    """
    scheduler = make("PNDMScheduler", set_alpha_to_one=True, timestep_spacing="leading")
    scheduler.set_timesteps(steps)
    levels = torch.sqrt((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod)
    labels = scheduler.timesteps
    nodes = levels[torch.cat([labels[0:9:4], labels[12:]])]
    inner = levels[labels[1:10:4]]
    for level, (a, b) in zip(inner.tolist(), pairwise(nodes.tolist()), strict=False):
        assert abs(level / halfway_in_time(a, b) - 1) < 0.01 / steps**2
    expected, found = theirs(scheduler, to_zero(levels[labels])), ours("pndm", to_zero(nodes))
    for point in (4, 8, *range(12, steps + 9)):  # the nodes; between them each is at its own half
        assert distance(expected[point], found[point]) < 1e-6 * (10 / steps) ** 3
