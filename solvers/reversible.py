"""Exactly reversible solvers: each method is a list of operations on the two registers of a run."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from odeddim.solvers import _reversing, onestep, torchdiffeq_
from odeddim.solvers._embedded import DOPRI5, TSIT5, Tableau
from odeddim.solvers._operations import Kick, Mix, Moves, Operation, Reached
from odeddim.solvers._points import points_row
from odeddim.solvers._reversing import account
from odeddim.solvers._settings import defaults_of
from odeddim.types import Depends, Field, Gradients, InputError, Solver, State

if TYPE_CHECKING:
    from torch import Tensor


def two_step(nodes: Sequence[float], *, neighbour: Callable[[float, float, float], float]) -> Moves:
    """A consistent two-step method of BELM: downwards x̄_{i-1} = a·x̄_{i+1} + (1-a)·x̄_i - (h_i + a·h_{i+1})·ε_i.

    Here h_i = σ_i - σ_{i-1}. Upwards the same equation is solved for x̄_{i+1}. The first step is Euler's, and each step
    costs one evaluation.

    Args:
        nodes: Noise levels, all positive, rising or falling.
        neighbour: neighbour(σ_{i-1}, σ_i, σ_{i+1}) is a, the method's choice.

    Returns:
        The operations of the run.

    Source:
        Wang et al. 2024, arXiv 2410.07273.
    """
    operations: list[Operation] = [Kick(1, here, there - here) for here, there in pairwise(nodes[:2])]
    reached = [Reached(0, 0, nodes[0]), *(Reached(1, 1, there) for there in nodes[1:2])]
    new = 0
    for before, here, there in zip(nodes, nodes[1:], nodes[2:], strict=False):
        a = neighbour(there, here, before) if there < here else 1 / neighbour(before, here, there)
        # The register with the point before becomes the point after, from the other one, which is here.
        row = (a, 1 - a) if new == 0 else (1 - a, a)
        if a != 1:
            operations.append(Mix((row, (0.0, 1.0)) if new == 0 else ((1.0, 0.0), row)))
        operations.append(Kick(new, here, (there - here) + a * (here - before)))
        reached.append(Reached(len(operations), new, there))
        new = 1 - new
    return Moves(tuple(operations), 1 - new if operations else 0, tuple(reached))


def leapfrog(lower: float, middle: float, upper: float) -> float:
    """a = 1, the explicit midpoint rule: x̄_{i-1} = x̄_{i+1} - (σ_{i+1} - σ_{i-1})·ε_i."""
    return 1.0


def belm(lower: float, middle: float, upper: float) -> float:
    """a = h_i/h_{i+1}: ε_i is the mean of the slopes of both steps."""
    return (middle - lower) / (upper - middle)


def obelm(lower: float, middle: float, upper: float) -> float:
    """a = (h_i/h_{i+1})², which is O-BELM: no other a has a local error of O(h³) on every grid."""
    return belm(lower, middle, upper) ** 2


def bdia(lower: float, middle: float, upper: float, *, gamma: float) -> float:
    """a = γ·√(α_{i+1}/α_{i-1}): BDIA's γ(z_{i+1} - DDIM's z_{i+1}) + DDIM's z_{i-1}, in its own z = √α·x̄."""
    return gamma * math.sqrt((1 + lower**2) / (1 + upper**2))


def bdia_moves(nodes: Sequence[float], *, gamma: float = 1.0) -> Moves:
    """BDIA, a two-step method with the weight `bdia`.

    Args:
        nodes: Noise levels, all positive, rising or falling.
        gamma: The γ of the paper, above 0 and at most 1.

    Returns:
        The operations of the run.

    Raises:
        InputError: For a gamma out of its range.

    Source:
        Zhang et al. 2023, arXiv 2307.10829.
    """
    if not 0 < gamma <= 1:
        raise InputError(f"bdia: gamma must be above 0 and at most 1, not {gamma}")
    return two_step(nodes, neighbour=functools.partial(bdia, gamma=gamma))


def mixing_weight(steps: int) -> float:
    """EDICT's p at so many steps: the mixtures of a run amplify by p^(-2N) upwards, which is then the same for all."""
    return math.pow(0.93, 50 / max(steps, 1))


P = Depends(float, "0.93^(50/N) at N steps", mixing_weight)


def edict(nodes: Sequence[float], *, p: float | Depends = P) -> Moves:
    """EDICT: two states take the steps of DDIM, each with the ε of the other, and are then mixed.

    A step costs two evaluations, both with the label of its upper level. The second one is made at a state that is at
    the lower level already, and the network takes it in the units of that level, x = x̄/√(1+σ_{n+1}²), so the field at
    σ_n gets x̄·√(1+σ_n²)/√(1+σ_{n+1}²). After each step downwards the two are mixed with the weight p, first x and then
    y. The states take turns in being moved first, as in the authors' code. Upwards it is the inverse. x is DDIM's, of
    unit variance at σ_T, whatever the model's own units are.

    Args:
        nodes: Noise levels, all positive, rising or falling.
        p: The weight of the mixtures, above 0 and at most 1. The paper has 0.93 at its 50 steps, and the default
            amplifies by the same factor at any number of steps.

    Returns:
        The operations of the run.

    Raises:
        InputError: For a p out of its range.

    Source:
        Wallace et al. 2022, arXiv 2211.12446.
    """
    falling = list(nodes) if nodes[-1] < nodes[0] else list(nodes)[::-1]
    steps = len(falling) - 1
    p = float(p.value(steps)) if isinstance(p, Depends) else p
    if not 0 < p <= 1:
        raise InputError(f"edict: p must be above 0 and at most 1, not {p}")
    operations: list[Operation] = []
    reached = [Reached(0, 0, falling[0])]
    for n in range(steps):
        here, there = falling[n], falling[n + 1]
        first = n % 2
        units = math.hypot(1, here) / math.hypot(1, there)
        operations += [Kick(first, here, there - here), Kick(1 - first, here, there - here, ratio=units)]
        if p != 1:
            operations += [Mix(((p, 1 - p), (0.0, 1.0))), Mix(((1.0, 0.0), (1 - p, p)))]
        reached.append(Reached(len(operations), 0, there))
    if nodes[-1] > nodes[0]:
        operations = [operation.inverse() for operation in reversed(operations)]
        reached = [Reached(len(operations) - after, register, sigma) for after, register, sigma in reversed(reached)]
    return Moves(tuple(operations), reached=tuple(reached))


def reversible_heun(nodes: Sequence[float]) -> Moves:
    """Reversible Heun: v = 2u - v + h·ε(v), then u = u + h·(ε(old v) + ε(new v))/2.

    A step costs one evaluation, and the first step one more.

    Args:
        nodes: Noise levels, all positive, rising or falling.

    Returns:
        The operations of the run.

    Source:
        Kidger et al. 2021, arXiv 2105.13493, Algorithm 1.
    """
    operations: list[Operation] = []
    reached = [Reached(0, 0, nodes[0])]
    for here, there in pairwise(nodes):
        half = (there - here) / 2
        operations += [Kick(0, here, half), Mix(((1.0, 0.0), (2.0, -1.0))), Kick(0, there, half)]
        reached.append(Reached(len(operations), 0, there))
    return Moves(tuple(operations), reached=tuple(reached))


def coupling_strength(steps: int) -> float:
    """The λ of `coupled` at so many steps: the way back amplifies by λ^(-N), which is then the same for all."""
    return math.exp(-1 / max(steps, 1))


COUPLING = Depends(float, "e^(-1/N) at N steps", coupling_strength)


def coupled(nodes: Sequence[float], *, base: Solver, data: bool = False, coupling: float | Depends = COUPLING) -> Moves:
    """Any one-step solver, made reversible: u = λ·u + (1-λ)·v + Ψ_h(v), then v = v - Ψ_{-h}(u).

    Ψ is the increment of the solver's step. A step costs twice the evaluations of the solver's. In the data frame u, v
    and Ψ are of x̄/σ; here the registers are held in units of x̄, and each step scales them by the ratio of its ends.

    Args:
        nodes: Noise levels, all positive, rising or falling.
        base: The row of the one-step solver.
        data: Whether x̄/σ is coupled, and not x̄.
        coupling: λ, above 0 and at most 1. With the default the way back amplifies by the same factor at any number
            of steps.

    Returns:
        The operations of the run.

    Raises:
        InputError: For a coupling out of its range.

    Source:
        McCallum & Foster 2024, arXiv 2410.11648; in the data frame Blasingame & Liu 2025, arXiv 2502.08834.
    """
    coupling = float(coupling.value(len(nodes) - 1)) if isinstance(coupling, Depends) else coupling
    if not 0 < coupling <= 1:
        raise InputError(f"coupling must be above 0 and at most 1, not {coupling}")
    operations: list[Operation] = []
    reached = [Reached(0, 0, nodes[0])]
    for here, there in pairwise(nodes):
        scale = there / here if data else 1.0
        if coupling != 1 or scale != 1:
            operations.append(Mix(((scale * coupling, scale * (1 - coupling)), (0.0, scale))))
        operations += [
            Kick(0, here, 1.0, base, there, ratio=1 / scale, data=data),
            Kick(1, there, -scale, base, here, data=data),
        ]
        reached.append(Reached(len(operations), 0, there))
    return Moves(tuple(operations), reached=tuple(reached), data=data)


def _operations(nodes: Sequence[float], *, moves: Callable[..., Moves], **settings: Any) -> Sequence[Operation]:
    return moves(nodes, **settings).operations


def run(
    field: Field, state: State, sigmas: Tensor, *, gradients: Gradients = None, portable: bool = False, **how: Any
) -> State:
    """A reversible run: see `odeddim.solvers._reversing.run`.

    Args:
        field, state, sigmas, **how: As there.
        gradients: None for a run without any; "reversible" for the same bits with gradients; "checkpoint" or "direct"
            for the same operations in float64 numbers, whose results are equal up to rounding.
        portable: Whether the bits are to be those of any machine (`odeddim.solvers._portable`).

    Returns:
        The state at sigmas[-1], with what its way back needs in `aux`.
    """
    if portable:
        from odeddim.solvers import _portable

        return _portable.reversible(field, state, sigmas, **how)
    if gradients is None:
        return _reversing.run(field, state, sigmas, **how)
    from odeddim.solvers import _gradients

    if gradients == "reversible":
        return _reversing.run(_gradients.Traced(field), state, sigmas, bank=_gradients.Rebuilt, **how)
    return _reversing.run(field, state, sigmas, bank=_gradients.Reals, **how)


def reversible_row(
    name: str,
    moves: Callable[..., Moves],
    order: int,
    nfe: int,
    reference: str,
    formula: str,
    *settings: str,
    **declared: Any,
) -> Solver:
    """A row that does the operations of a moves.

    Args:
        name: See `Solver`, as for order, nfe, reference and formula.
        moves: moves(nodes, **settings) makes the operations; the nodes are positive, rising or falling.
        *settings: The keyword arguments of `moves` that are settings of the row.
        **declared: Further fields of the row.

    Returns:
        The row, with its instructions and the growth of its rounding errors.
    """
    return Solver(
        name=name,
        run=functools.partial(run, name=name, moves=moves),
        instructions=functools.partial(_operations, moves=moves),
        growth=functools.partial(account, moves=moves),
        family="reversible",
        order=order,
        nfe=nfe,
        reversible=True,
        observable=True,
        to_zero=True,
        reference=reference,
        formula=formula,
        rebuilds=True,
        settings=defaults_of(moves, *settings),
        **{"portable": True, **declared},
    )


def mccallum_foster(base: Solver, *, data: bool = False) -> Solver:
    """The row `mf-NAME` that makes a one-step row reversible: of the same order, at twice the evaluations.

    Args:
        base: A one-step row whose evaluations per step are fixed.
        data: Whether x̄/σ is coupled, and not x̄.

    Returns:
        The row. Its run is described at `coupled`.

    Raises:
        InputError: For a row of another kind.
    """
    if not base.onestep or base.nfe is None:
        raise InputError(f"{base.name!r} cannot be coupled: give a one-step solver with a fixed number of evaluations")
    moves = functools.partial(coupled, base=base, data=data)
    reference, formula = (REX, DATA_COUPLED) if data else (COUPLING_PAPER, COUPLED)
    reference = f"{reference}, over `{base.name}`"
    row = reversible_row(
        f"mf-{base.name}", moves, base.order, 2 * base.nfe, reference, formula, "coupling", portable=base.portable
    )
    return row if base.differentiable else replace(row, differentiable=False)


def _of_tableau(
    name: str, order: int, source: str, parts: Sequence[float], rows: Sequence[Sequence[float]], *, data: bool
) -> Solver:
    """The coupled row of a Runge-Kutta method with fixed steps, which is no row itself: mf-NAME, or mf-data-NAME."""
    points = functools.partial(onestep.runge_kutta, parts=parts, rows=rows, data=data)
    shown = f"data-{name}" if data else name
    base = points_row(shown, points, family="", order=order, nfe=len(parts), onestep=True, reference=source)
    return replace(mccallum_foster(base, data=data), reference=f"{REX if data else COUPLING_PAPER}, over {source}")


def _of_pair(name: str, source: str, tableau: Tableau, *, data: bool) -> Solver:
    """The same of the better formula of an embedded pair, whose last stage lies at the solution."""
    rows = [[float(weight) for weight in row] for row in tableau.a]
    return _of_tableau(name, tableau.order, source, [float(part) for part in tableau.c], rows, data=data)


TWO_STEP = "x̄ₙ₊₁ = a·x̄ₙ₋₁ + (1 - a)·x̄ₙ + (hₙ + a·hₙ₋₁)·εₙ"
BELM_STEP = f"""
{TWO_STEP},  a = hₙ/hₙ₋₁
that is x̄ₙ₊₁ = a·x̄ₙ₋₁ + (1 - a)·x̄ₙ + 2·hₙ·εₙ
"""
OBELM_STEP = f"{TWO_STEP},  a = (hₙ/hₙ₋₁)²"
LEAPFROG_STEP = "x̄ₙ₊₁ = x̄ₙ₋₁ + (σₙ₊₁ - σₙ₋₁)·εₙ"
BDIA_STEP = f"""
{TWO_STEP}
Decoding: a = γ·√((1 + σₙ₊₁²)/(1 + σₙ₋₁²))
Encoding, the same equation solved for its upper end:
a = √((1 + σₙ₊₁²)/(1 + σₙ₋₁²))/γ
"""
EDICT_STEP = """
Decoding, from a pair u = v = x̄:
u ← u + hₙ·ε(v, σₙ)
v ← v + hₙ·ε(u·√(1 + σₙ²)/√(1 + σₙ₊₁²), σₙ)
u ← p·u + (1 - p)·v
v ← (1 - p)·u + p·v
x̄ₙ₊₁ = u;  in every second step v moves before u
Encoding: the inverse operations, the last one first
"""
REVERSIBLE_HEUN = """
From a pair u = v = x̄:
v' = 2·u - v + hₙ·ε(v, σₙ)
u' = u + hₙ/2·(ε(v, σₙ) + ε(v', σₙ₊₁))
x̄ₙ₊₁ = u'
"""
COUPLED = """
From a pair u = v = x̄:
u ← λ·u + (1 - λ)·v + Ψ(v, σₙ → σₙ₊₁)
v ← v - Ψ(u, σₙ₊₁ → σₙ)
x̄ₙ₊₁ = u
Ψ(v, σₙ → σₙ₊₁): what a step of the row NAME adds to v
λ: the setting `coupling`
"""
DATA_COUPLED = """
From a pair u = v = x̄:
u ← ρₙ·(λ·u + (1 - λ)·v) + Ψ(v, σₙ → σₙ₊₁)
v ← ρₙ·v - ρₙ·Ψ(u, σₙ₊₁ → σₙ)
x̄ₙ₊₁ = u
Ψ(v, σ → τ): x̄ after a step of the method NAME in 1/σ, with slopes x̂, minus τ/σ·v
λ: the setting `coupling`
"""
BELM = "Wang et al. 2024, arXiv 2410.07273"
COUPLING_PAPER = "McCallum & Foster 2024, arXiv 2410.11648"
REX = "Blasingame & Liu 2025, arXiv 2502.08834 (Rex, data prediction)"
SAME = ("dpm-solver-1", "heun2")  # as euler and heun
BASES = [row for family in (onestep, torchdiffeq_) for row in family.ROWS if row.onestep and row.name not in SAME]
GRIDS = {"heun": "karras", "midpoint": "karras", "rk4": "karras"}
"""Of coupled rows, where it is not log: what benchmarks/defaults.py has measured."""
DERIVED = {"mf-": mccallum_foster}
MIDPOINT = (1 / 2, 1), ((1 / 2,), (0, 1))
THREE_EIGHTHS = (1 / 3, 2 / 3, 1, 1), ((1 / 3,), (-1 / 3, 1), (1, -1, 1), (1 / 8, 3 / 8, 3 / 8, 1 / 8))
PAIRS = (("tsit5", "Tsitouras 2011", TSIT5), ("dopri5", "Dormand & Prince 1980", DOPRI5))
ROWS = (
    reversible_row("edict", edict, 1, 2, "Wallace et al. 2022, arXiv 2211.12446", EDICT_STEP, "p", grid="linear"),
    reversible_row("bdia", bdia_moves, 2, 1, "Zhang et al. 2023, arXiv 2307.10829", BDIA_STEP, "gamma"),
    reversible_row(
        "belm", functools.partial(two_step, neighbour=belm), 2, 1, f"{BELM}, weighted by the ratio of steps", BELM_STEP
    ),
    reversible_row(
        "obelm", functools.partial(two_step, neighbour=obelm), 2, 1, f"{BELM} (O-BELM)", OBELM_STEP, grid="karras"
    ),
    reversible_row(
        "leapfrog",
        functools.partial(two_step, neighbour=leapfrog),
        2,
        1,
        "Gragg 1965, explicit midpoint rule",
        LEAPFROG_STEP,
    ),
    reversible_row(
        "reversible-heun",
        reversible_heun,
        2,
        1,
        "Kidger et al. 2021, arXiv 2105.13493, Algorithm 1",
        REVERSIBLE_HEUN,
        warmup=(1,),
    ),
    *(replace(mccallum_foster(base), grid=GRIDS.get(base.name, "log")) for base in BASES),
    *(_of_pair(*pair, data=False) for pair in PAIRS),
    _of_tableau("euler", 1, "`euler`", (1,), ((1,),), data=True),
    _of_tableau("midpoint", 2, "Runge 1895, midpoint rule", *MIDPOINT, data=True),
    _of_tableau("rk4", 4, "Kutta 1901, 3/8 rule", *THREE_EIGHTHS, data=True),
    *(_of_pair(*pair, data=True) for pair in PAIRS),
)
