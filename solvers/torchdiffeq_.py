"""The solvers of torchdiffeq: its fixed-step methods over our nodes, its adaptive methods inside our interval.

torchdiffeq 0.2.5 casts time to the dtype of the state, returns an interpolation in place of the end point, evaluates
beyond the interval, and controls one error for the whole batch. This module corrects that through its public interface,
except that the images of a batch take common steps.
"""

from __future__ import annotations

import contextlib
import functools
import math
from typing import TYPE_CHECKING, Any

from odeddim.solvers._adaptive import BOSH3, EMBEDDED, IN_LOG, IN_SIGMA, LONGEST, Watch, adaptive_row, check_settings
from odeddim.solvers.onestep import HEUN
from odeddim.types import Field, Observe, Solver, State

if TYPE_CHECKING:
    from torch import Tensor


class OverNodes:
    """dx̄/ds over the index of the nodes, s = 0, ..., N, with σ(s) linear on each step: the ODE in σ itself.

    The index is exact in float32 too, so the field is evaluated exactly at the nodes.
    """

    def __init__(self, field: Field, sigmas: Tensor, observe: Observe | None = None) -> None:
        self.field = field
        self.sigmas = sigmas
        self.nodes = sigmas.tolist()
        self.observe = observe
        self.step = 0

    def callback_step(self, s: Tensor, xbar: Tensor, ds: Tensor) -> None:
        """torchdiffeq calls this at the start of each step, because s at a node does not say which step it is in."""
        self.step = int(s)
        if self.observe is not None and self.step > 0:
            self.observe(self.nodes[self.step], xbar)

    def at(self, s: float) -> tuple[float, float]:
        """σ and dσ/ds at s, in the present step."""
        here, there = self.nodes[self.step : self.step + 2]
        part = s - self.step
        return there if part == 1 else here + part * (there - here), there - here

    def __call__(self, s: Tensor, xbar: Tensor) -> Tensor:
        sigma, slope = self.at(float(s))
        return self.field(self.sigmas.new_tensor(sigma), xbar) * slope


class OverCurve(OverNodes):
    """dx̄/ds over the index of the nodes, with σ(s) one smooth curve: the cubic spline of log σ through the nodes.

    The Adams methods of torchdiffeq take their nodes as evenly spaced, which the index is on every grid.
    """

    def __init__(self, field: Field, sigmas: Tensor, observe: Observe | None = None) -> None:
        from scipy.interpolate import CubicSpline

        super().__init__(field, sigmas, observe)
        self.curve = CubicSpline(range(len(self.nodes)), [math.log(sigma) for sigma in self.nodes])
        self.low, self.high = sorted((self.nodes[0], self.nodes[-1]))

    def at(self, s: float) -> tuple[float, float]:
        sigma = self.nodes[int(s)] if s.is_integer() else math.exp(self.curve(s))
        sigma = min(max(sigma, self.low), self.high)
        return sigma, sigma * float(self.curve(s, 1))


def fixed(
    field: Field,
    state: State,
    sigmas: Tensor,
    *,
    method: str,
    over: type[OverNodes] = OverNodes,
    observe: Observe | None = None,
    **options: Any,
) -> State:
    """A fixed-step method of torchdiffeq, one step from node to node.

    It asks torchdiffeq for two points in time only, so memory does not grow with the number of steps.

    Args:
        field: ε(σ, x̄).
        state: The start, at sigmas[0].
        sigmas: Noise levels (N+1,) float64, all positive, rising or falling.
        method: torchdiffeq's name of the method.
        over: The variable of the integration.
        observe: What is shown x̄ at each node between the first and the last.
        **options: torchdiffeq's options of the method.

    Returns:
        The state at sigmas[-1].
    """
    import torch
    from torchdiffeq import odeint

    index = torch.arange(len(sigmas), dtype=state.xbar.dtype, device=state.xbar.device)
    with torch.no_grad():
        ends = odeint(
            over(field, sigmas, observe),
            state.xbar,
            index[[0, -1]],
            # Only for the corrector of Adams-Moulton: never to be iterated, so that its cost is known.
            rtol=1e9,
            method=method,
            options={"grid_constructor": lambda *_: index, **options},
        )
    return State(ends[-1].clone(), float(sigmas[-1]))


class _ArrivedError(Exception):
    """The integrator stands at the end of the interval."""


class UpTo(Watch):
    """A watched field as torchdiffeq calls it; torchdiffeq reports every step before it tries it."""

    observe: Observe | None = None
    observing = False  # still true after an observer has raised an error

    def callback_step(self, u: Tensor, xbar: Tensor, du: Tensor) -> None:
        """Note the last accepted point, u and x̄. At the target it is the solution, and torchdiffeq is stopped."""
        before, self.reached = self.reached, State(xbar, self.sigma(float(u)))
        if float(u) == self.u(self.target):
            raise _ArrivedError
        if self.observe is not None and self.reached.sigma != before.sigma:  # it is the same after a rejected step
            self.observing = True
            self.observe(self.reached.sigma, xbar)
            self.observing = False

    def __call__(self, u: Tensor, xbar: Tensor) -> Tensor:
        return self.rate(float(u), xbar)


def worst_image(error: Tensor) -> Tensor:
    """The largest root mean square of any image, (B, *) -> (): a tolerance in this norm holds for every image."""
    return error.reshape(error.shape[0], -1).square().mean(dim=1).sqrt().max()


def adaptive(
    field: Field,
    state: State,
    sigmas: Tensor,
    *,
    method: str,
    log: bool,
    strict: float = 1.0,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_nfe: int = 10_000,
    observe: Observe | None = None,
) -> State:
    """An adaptive method of torchdiffeq from sigmas[0] to sigmas[-1].

    Args:
        field: ε(σ, x̄).
        state: The start, at sigmas[0].
        sigmas: Noise levels (N+1,) float64, all positive, rising or falling. Those between the ends are not used.
        method: torchdiffeq's name of the method.
        log: Whether the method takes its steps in log σ, not in σ.
        strict: A factor on both tolerances.
        rtol: The relative tolerance on x̄, root mean square over an image.
        atol: The absolute tolerance on x̄, root mean square over an image.
        max_nfe: The most evaluations, each of the whole batch.
        observe: What is shown x̄ at the end of each accepted step but the last.

    Returns:
        The state at sigmas[-1]. Its report has "evaluations", (B,) int64.

    Raises:
        BudgetExceeded: With the last accepted point, if the run needs more than max_nfe or steps that are too small.
        InputError: If a setting is out of its range, or the field is not finite.
    """
    import torch
    from torchdiffeq import odeint

    check_settings(rtol, atol, max_nfe)

    def time(*u: float) -> Tensor:
        return torch.tensor(u, dtype=torch.float64, device=state.xbar.device)

    start = State(state.xbar, float(sigmas[0]))
    watch = UpTo(f"torchdiffeq {method}", field, start, float(sigmas[-1]), log=log, max_nfe=max_nfe)
    watch.observe = observe
    begin, end = watch.u(start.sigma), watch.u(watch.target)
    # Asked for a point behind the end and told to step on the end, it comes by the end itself, not an interpolation.
    behind = end + (end - begin)
    try:
        with torch.no_grad(), contextlib.suppress(_ArrivedError):
            odeint(
                watch,
                state.xbar,
                time(begin, behind),
                rtol=rtol * strict,
                atol=atol * strict,
                method=method,
                options={
                    "norm": worst_image,
                    "step_t": time(end),
                    "max_step": LONGEST if log else math.inf,
                },
            )
    except AssertionError as error:  # its way to say that the step has become 0
        if watch.observing:
            raise
        raise watch.stopped("cannot make its steps small enough") from error
    spent = torch.full((len(state.xbar),), watch.nfe)
    return State(watch.reached.xbar, watch.target, report={"evaluations": spent})


MIDPOINT = """
u = x̄ₙ + hₙ/2·εₙ
x̄ₙ₊₁ = x̄ₙ + hₙ·ε(u, σₙ + hₙ/2)
"""
HEUN3 = """
k₁ = εₙ,  k₂ = ε(x̄ₙ + hₙ/3·k₁, σₙ + hₙ/3),  k₃ = ε(x̄ₙ + 2hₙ/3·k₂, σₙ + 2hₙ/3)
x̄ₙ₊₁ = x̄ₙ + hₙ/4·(k₁ + 3·k₃)
"""
RK4 = """
k₁ = εₙ,  k₂ = ε(x̄ₙ + hₙ/3·k₁, σₙ + hₙ/3)
k₃ = ε(x̄ₙ + hₙ·(k₂ - k₁/3), σₙ + 2hₙ/3),  k₄ = ε(x̄ₙ + hₙ·(k₁ - k₂ + k₃), σₙ₊₁)
x̄ₙ₊₁ = x̄ₙ + hₙ/8·(k₁ + 3·k₂ + 3·k₃ + k₄)
"""
OVER_CURVE = "f = σ'(s)·ε;  s: the index of the nodes;  log σ(s): a cubic spline through them"
EXPLICIT_ADAMS = f"""
x̄ₙ₊₁ = x̄ₙ + (55·fₙ - 59·fₙ₋₁ + 37·fₙ₋₂ - 9·fₙ₋₃)/24
{OVER_CURVE}
Steps 1 and 2: `rk4` in s;  step 3: x̄ₙ₊₁ = x̄ₙ + (23·fₙ - 16·fₙ₋₁ + 5·fₙ₋₂)/12
"""
IMPLICIT_ADAMS = f"""
u = x̄ₙ + (23·fₙ - 16·fₙ₋₁ + 5·fₙ₋₂)/12
x̄ₙ₊₁ = x̄ₙ + (9·f(u, σₙ₊₁) + 19·fₙ - 5·fₙ₋₁ + fₙ₋₂)/24
{OVER_CURVE}
Steps 1 and 2: `rk4` in s
"""
FEHLBERG2 = """
k₁ = εₙ,  k₂ = ε(x̄ₙ + H/2·k₁, σₙ + H/2)
k₃ = ε(x̄ₙ + H/256·(k₁ + 255·k₂), σₙ₊₁)
x̄ₙ₊₁ = x̄ₙ + H/512·(k₁ + 510·k₂ + k₃)
error = H/512·(k₃ - k₁),  H = σₙ₊₁ - σₙ
"""
ADAPTIVE_HEUN = """
x̄ₙ₊₁: a step of `heun`
error = hₙ/2·(ε(u, σₙ₊₁) - εₙ), the difference to `euler`
"""


def _fixed(
    name: str,
    order: int,
    nfe: int,
    reference: str,
    formula: str,
    grid: str = "log",
    warmup: tuple[int, ...] = (),
    **settings: Any,
) -> Solver:
    return Solver(
        name=name,
        run=functools.partial(fixed, method=name.replace("-", "_"), **settings),
        family="torchdiffeq",
        order=order,
        nfe=nfe,
        warmup=warmup,
        observable=True,
        onestep=not warmup,
        grid=grid,
        reference=f"{reference}; torchdiffeq 0.2.5",
        formula=formula,
        differentiable=False,
    )


def _adaptive(name: str, order: int, reference: str, formula: str, **settings: Any) -> Solver:
    run = functools.partial(adaptive, method=name.replace("-", "_"), **settings)
    source = f"{reference}; torchdiffeq 0.2.5"
    shared: dict[str, Any] = {
        "family": "torchdiffeq adaptive",
        "shares_steps": True,
        "observable": True,
        "differentiable": False,
    }
    return adaptive_row(name, run, order, source, formula, **shared)


ROWS = (
    _fixed("midpoint", 2, 2, "Runge 1895, midpoint rule", MIDPOINT),
    _fixed("heun2", 2, 2, "Heun 1900, order 2 (the trapezoidal rule, as `heun`)", HEUN, "karras"),
    _fixed("heun3", 3, 3, "Heun 1900, order 3", HEUN3),
    _fixed("rk4", 4, 4, "Kutta 1901, 3/8 rule", RK4, "karras"),
    # Adams-Bashforth of 4 nodes, and of 3 corrected once by Adams-Moulton of 4 (PECE). Orders up to 12, torchdiffeq's
    # default, are unstable at our step sizes. Both start with two steps of the 3/8 rule.
    _fixed(
        "explicit-adams",
        4,
        1,
        "Adams & Bashforth 1883, 4 nodes",
        EXPLICIT_ADAMS,
        "karras",
        (3, 3),
        over=OverCurve,
        max_order=5,
    ),
    _fixed(
        "implicit-adams",
        4,
        2,
        "Adams & Moulton 1926, PECE",
        IMPLICIT_ADAMS,
        "karras",
        (2, 2),
        over=OverCurve,
        max_order=4,
        max_iters=1,
    ),
    # In log σ the methods of high order need fewest evaluations, in σ those of low order: on a Gaussian mixture, for
    # 1e-4 from σ = 0.01 to 157 and back, 256 against 346 (dopri5), 264 against 420 (dopri8), 790 against 334 (bosh3).
    _adaptive("dopri5", 5, "Dormand & Prince 1980", EMBEDDED + IN_LOG, log=True),
    _adaptive("dopri8", 8, "Prince & Dormand 1981", EMBEDDED + IN_LOG, log=True),
    _adaptive("bosh3", 3, "Bogacki & Shampine 1989", BOSH3 + IN_SIGMA, log=False),
    # Its error estimate is 1/256 of that of adaptive-heun: taken as it is, errors are hundreds of times the tolerance.
    _adaptive("fehlberg2", 2, "Fehlberg 1969, RK1(2)", FEHLBERG2, log=False, strict=0.03),
    _adaptive("adaptive-heun", 2, "Heun 1900 with Euler", ADAPTIVE_HEUN, log=False),
)
