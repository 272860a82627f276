"""A run hands out its nodes: every row that has nodes shows x̄ at each of them, and an observer changes nothing."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from test_solvers import IMAGES, MIXTURE, ROWS, log_grid
from torch import Tensor

from odeddim import solvers
from odeddim.plans import Plan, integrate
from odeddim.solvers.reversible import mccallum_foster
from odeddim.types import Field, Solver, State

STEPS = 7
POSITIVE = log_grid(STEPS, 0.05, 20.0)
ZERO = torch.cat([torch.zeros(1, dtype=torch.float64), log_grid(STEPS - 1, 0.05, 20.0)])
WITH_NODES = [row for row in ROWS if not row.adaptive]
WHOLE = ("exact-dpmpp-2m", "exact-ab2")
"""Rows that find an encoding as a whole: nothing of it is known before its end."""

Seen = list[tuple[int, float, Tensor]]


def start_of(nodes: Tensor, *, rising: bool, dtype: torch.dtype = torch.float64) -> State:
    sigma = float(nodes[0 if rising else -1])
    return State(((1 if rising else sigma) * IMAGES[:3]).to(dtype), sigma)


def watched(row: Solver, start: State, nodes: Tensor) -> tuple[State, Seen]:
    seen: Seen = []
    end = integrate(MIXTURE, start, Plan(row, nodes), callback=lambda *it: seen.append(it))
    return end, seen


def check(row: Solver, start: State, nodes: Tensor, whole: bool = False) -> tuple[State, Seen]:
    """As many calls as steps, at the nodes, the last with the result; and the run is the one without an observer."""
    end, seen = watched(row, start, nodes)
    way = nodes.tolist() if start.sigma == float(nodes[0]) else nodes.tolist()[::-1]
    wanted = [sigma for sigma in way[1:] if not whole or sigma in (way[-1], ZERO[1])]
    assert [sigma for _, sigma, _ in seen] == wanted
    assert [step for step, _, _ in seen] == list(range(1, len(wanted) + 1))
    assert torch.equal(seen[-1][2], end.xbar)
    assert all(xbar.dtype == start.xbar.dtype and xbar.shape == start.xbar.shape for _, _, xbar in seen)
    alone = integrate(MIXTURE, start, Plan(row, nodes))
    assert end == alone
    assert {k: v.tolist() for k, v in end.report.items()} == {k: v.tolist() for k, v in alone.report.items()}
    return end, seen


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("nodes", [POSITIVE, ZERO], ids=["positive", "zero"])
@pytest.mark.parametrize("row", WITH_NODES, ids=lambda row: row.name)
def test_every_row_shows_its_nodes(row: Solver, nodes: Tensor, dtype: torch.dtype) -> None:
    check(row, start_of(nodes, rising=False, dtype=dtype), nodes)
    if not row.stochastic:
        state, _ = check(row, start_of(nodes, rising=True, dtype=dtype), nodes, row.name in WHOLE)
        if row.reversible:  # and its way back, which undoes what was done
            check(row, state, nodes)


BENDING = ("unipc-", "dpm-solver-fast", "dpmpp-3m", "edict", "sa-solver")
"""Rows that end a run in another way than they go on: without a corrector, at a lower order, or by turns."""


@pytest.mark.parametrize("row", [row for row in WITH_NODES if row.name not in WHOLE], ids=lambda row: row.name)
def test_what_is_shown_is_where_a_shorter_run_ends(row: Solver) -> None:
    """No stage of a step, and no other register; in units of the way to the next node."""
    bending = row.name.startswith(BENDING)
    row = row.with_settings(**{key: 0.9 for key in ("p", "coupling") if key in row.settings})  # whatever the steps
    row = row.with_settings(eta=0.0) if bending and row.stochastic else row  # its last step adds no noise
    nodes = log_grid(60 if bending else STEPS, 0.05, 20.0)
    for rising in (False, True)[: 1 if row.stochastic else 2]:
        start = start_of(nodes, rising=rising)
        way = nodes if rising else nodes.flip(0)
        points = [start.xbar, *(xbar for *_, xbar in watched(row, start, nodes)[1])]
        off = []
        for n in range(1, len(nodes) - 1):
            shorter = row.run(MIXTURE, start, way[: n + 1]).xbar
            step = min(torch.dist(points[n], points[n - 1]), torch.dist(points[n + 1], points[n]))
            off.append(float(torch.dist(points[n], shorter) / step))
        assert sorted(off)[len(off) // 2] < 0.05
        assert bending or max(off) < 1e-9


def test_euler_is_the_loop() -> None:
    """Against a loop written here: eq. 13 at every node, the end at σ = 0 among them."""
    for rising in (False, True):
        start = start_of(ZERO, rising=rising)
        way = ZERO if rising else ZERO.flip(0)
        xbar, wanted = start.xbar, []
        for here, there in pairwise(way):
            xbar = xbar + (there - here) * MIXTURE(here, xbar)
            wanted.append(xbar)
        _, seen = watched(solvers.get("euler"), start, ZERO)
        assert len(seen) == len(wanted) == STEPS
        for (_, _, shown), right in zip(seen, wanted, strict=True):
            assert torch.allclose(shown, right, rtol=1e-14, atol=1e-14)


def test_the_way_back_of_a_reversible_row_passes_the_same_points() -> None:
    for row in (row for row in WITH_NODES if row.reversible and row.name not in WHOLE):
        state, up = watched(row, start_of(ZERO, rising=True), ZERO)
        _, down = watched(row, state, ZERO)
        for (_, sigma, there), (_, again, back) in zip(up[:-1], down[-2::-1], strict=True):
            assert sigma == again
            assert torch.allclose(there, back, rtol=1e-9, atol=1e-9), (row.name, sigma)


def test_a_callback_cannot_corrupt_a_run() -> None:
    def spoil(step: int, sigma: float, xbar: Tensor) -> None:
        xbar.fill_(float("nan"))

    for name in ("euler", "ab3", "unipc-2", "rk4", "belm", "edict", "exact-euler", "ddpm", "dopri5"):
        row = solvers.get(name)
        nodes = ZERO if not row.adaptive else ZERO[[0, 1, -1]]
        start = start_of(nodes, rising=False)
        plan = Plan(row, nodes)
        assert integrate(MIXTURE, start, plan, callback=spoil) == integrate(MIXTURE, start, plan), name


@pytest.mark.parametrize("error", [AssertionError, KeyboardInterrupt, StopIteration, ValueError])
def test_an_error_of_a_callback_ends_the_run_as_it_is(error: type[BaseException]) -> None:
    def stop(step: int, sigma: float, xbar: Tensor) -> None:
        if step == 2:
            raise error("enough")

    for name in ("euler", "rk4", "belm", "exact-euler", "ddpm", "dopri5"):
        row = solvers.get(name)
        nodes = ZERO if not row.adaptive else ZERO[[0, 1, -1]]
        start = start_of(nodes, rising=False)
        with pytest.raises(error, match="enough"):
            integrate(MIXTURE, start, Plan(row, nodes), callback=stop)
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("row", [row for row in ROWS if row.adaptive], ids=lambda row: row.name)
def test_adaptive_rows_show_their_own_steps_or_only_the_ends(row: Solver) -> None:
    nodes = ZERO[[0, 1, -1]]
    start = start_of(nodes, rising=True)
    end, seen = watched(row, start, nodes)
    sigmas = [sigma for _, sigma, _ in seen]
    assert torch.equal(seen[-1][2], end.xbar)
    assert integrate(MIXTURE, start, Plan(row, nodes)) == end
    assert sigmas == sorted(set(sigmas))
    assert sigmas[-1] == float(nodes[-1])
    if row.shares_steps:
        assert len(sigmas) > 4
        assert sigmas[0] == float(nodes[1])
    else:
        assert len(sigmas) <= 2


def test_a_row_of_ones_own_shows_where_it_ends() -> None:
    def run(field: Field, state: State, sigmas: Tensor) -> State:
        return State(state.xbar + 1, float(sigmas[-1]))

    row = Solver("mine", run, family="mine", order=1, nfe=1, reference="here")
    _, seen = watched(row, start_of(ZERO, rising=True), ZERO)
    assert [sigma for _, sigma, _ in seen] == [float(ZERO[1]), float(ZERO[-1])]


def test_derived_rows_are_observable_too() -> None:
    for row in (mccallum_foster(solvers.get("dpm-solver-3")), solvers.get("exact-rk4")):
        check(row, start_of(ZERO, rising=True), ZERO)
