"""Trajectories: the points that a run passes, against closed forms, SciPy and torch.distributions."""

from __future__ import annotations

import math
import pickle
import weakref
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn
from torch.distributions import Normal

import odeddim
from odeddim import solvers
from odeddim.ode.analytic import Gaussian, GaussianMixture
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.plans import Plan, integrate
from odeddim.runs import dense
from odeddim.types import Field, InputError, Solver, State

MEAN, STD = 0.3, 0.4
SCHEDULE = Schedule.linear()
LOW, TOP = SCHEDULE.sigma_min, SCHEDULE.sigma_max
FIELD = VectorField(Gaussian(MEAN, STD).network(SCHEDULE), SCHEDULE, name="gaussian")
IMAGES = torch.tensor([[-0.5, -0.2], [0.4, 0.3], [1.0, 0.8]], dtype=torch.float64)
ROWS = [solvers.get(name) for name in solvers.names()]
FIXED = [row for row in ROWS if not row.adaptive and not row.stochastic]
SMOOTH = [row for row in FIXED if row.order < 5]  # those of order 5 are better than any polynomial through few nodes
FEW = ("euler", "ab3", "unipc-2", "rk4", "belm", "mf-heun", "exact-euler")


def path_of(xbar: Tensor, here: float, there: float) -> Tensor:
    """The closed form of the Gaussian's ODE, written here."""
    return MEAN + (xbar - MEAN) * math.sqrt((STD**2 + there**2) / (STD**2 + here**2))


def within(nodes: list[float], each: int = 5) -> list[float]:
    """Noise levels in every interval of rising nodes, even in log σ, or in σ next to 0."""
    found = []
    for a, b in pairwise(nodes):
        parts = [k / each for k in range(1, each)]
        found += [a + part * (b - a) if a == 0 else a * (b / a) ** part for part in parts]
    return found


def start_of(plan: Plan, *, up: bool, dtype: torch.dtype = torch.float64) -> State:
    sigma = float(plan.nodes[0]) if up else plan.top
    return State((IMAGES if up else IMAGES * sigma).to(dtype), sigma)


def errors(path: odeddim.Trajectory, start: State) -> tuple[float, float]:
    """The largest error at the nodes and between them, over the width of the noised data."""

    def error(point: dense.PathPoint) -> float:
        off = (point.xbar - path_of(start.xbar, start.sigma, point.sigma)).abs().max()
        return float(off) / math.hypot(STD, point.sigma)

    return max(map(error, path)), max(error(path.at(sigma)) for sigma in within(sorted(path.sigmas.tolist())))


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("row", SMOOTH, ids=lambda row: row.name)
def test_between_the_nodes_a_path_is_as_good_as_the_run(row: Solver, end: str) -> None:
    plan = odeddim.plan(FIELD, row, steps=20, end=end)
    for up in (True, False)[int(row.encodes_whole) :]:
        start = start_of(plan, up=up)
        at_nodes, off = errors(odeddim.trajectory(start, model=FIELD, plan=plan), start)
        assert off <= max(1.2 * at_nodes, 1e-5), (up, at_nodes, off)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [10, 50, 100])
@pytest.mark.parametrize("row", SMOOTH, ids=lambda row: row.name)
def test_so_it_is_with_other_numbers_of_steps(row: Solver, steps: int) -> None:
    for end in ("zero", "sigma_min"):
        plan = odeddim.plan(FIELD, row, steps=steps, end=end)
        for up in (True, False)[int(row.encodes_whole) :]:
            start = start_of(plan, up=up)
            at_nodes, off = errors(odeddim.trajectory(start, model=FIELD, plan=plan), start)
            assert off <= 1.2 * at_nodes or at_nodes > 0.1, (up, at_nodes, off)  # above that the row is of no use


def mixture(low: float, high: float) -> tuple[Field, list[Any]]:
    """A mixture of three points' Gaussians, and its paths through IMAGES at `low`, by SciPy at its tightest."""
    means, std = np.array([[-0.6, -0.3], [0.6, 0.0], [0.1, 0.7]]), 0.15

    def slope(lam: float, y: np.ndarray) -> np.ndarray:
        variance = std**2 + math.exp(2 * lam)
        logits = -((y - means) ** 2).sum(1) / (2 * variance)
        share = np.exp(logits - logits.max())
        return math.exp(2 * lam) / variance * (y - share @ means / share.sum())

    span, how = (math.log(low), math.log(high)), {"method": "DOP853", "rtol": 1e-12, "atol": 1e-14}
    paths = [solve_ivp(slope, span, y, dense_output=True, **how).sol for y in IMAGES.numpy()]
    return GaussianMixture(torch.from_numpy(means), std), paths


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=[] if row.name in FEW else pytest.mark.slow) for row in SMOOTH],
    ids=lambda r: r.name,
)
def test_so_it_is_on_a_mixture(row: Solver) -> None:
    field, paths = mixture(LOW, TOP)
    plan = odeddim.plan(FIELD, row, steps=50, end="sigma_min")

    def true(sigma: float) -> Tensor:
        return torch.from_numpy(np.stack([path(math.log(sigma)) for path in paths]))

    for up in (True, False)[int(row.encodes_whole) :]:
        sigma = float(plan.nodes[0]) if up else plan.top
        points: list[dense.PathPoint] = []
        levels = dense.check_levels([*plan.nodes.tolist(), *within(plan.nodes.tolist(), 3)], plan)
        dense.record(field, State(true(sigma), sigma), plan, points.append, levels)
        off = {it.sigma: float((it.xbar - true(it.sigma)).abs().max()) / math.hypot(0.3, it.sigma) for it in points}
        assert max(off.values()) <= 1.2 * max(off[node] for node in plan.nodes.tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("row", [row for row in ROWS if row.observable], ids=lambda row: row.name)
def test_the_run_stays_as_it_is_and_its_points_are_whole(row: Solver, dtype: torch.dtype) -> None:
    """The end is that of the run alone, bit for bit; ε is the field at x̄; the predicted image is the closed form's."""
    plan = odeddim.plan(FIELD, row, **({"rtol": 1e-2, "atol": 1e-2} if row.adaptive else {"steps": 6}))
    close = 2e-5 if dtype == torch.float32 else 1e-8
    for up in (True, False)[int(row.stochastic or row.encodes_whole) :]:
        start = start_of(plan, up=up, dtype=dtype)
        path = odeddim.trajectory(start, model=FIELD, plan=plan)
        assert path.end == integrate(FIELD, start, plan)
        assert torch.equal(path.end.xbar, path.xbar[-1])
        assert torch.equal(path.xbar[0], start.xbar)
        assert path.sigmas.dtype == torch.float64
        assert path.xbar.dtype == path.eps.dtype == path.x0.dtype == dtype
        way = plan.nodes if up else plan.nodes.flip(0)
        assert row.adaptive or torch.equal(path.sigmas, way)
        for point in path:
            if point.sigma == 0:
                assert torch.equal(point.x0, point.xbar)
                continue
            eps = FIELD(torch.tensor(point.sigma, dtype=torch.float64), point.xbar)
            assert torch.allclose(point.eps, eps, rtol=close, atol=close)
            mean = MEAN + STD**2 / (STD**2 + point.sigma**2) * (point.xbar - MEAN)
            assert torch.allclose(point.x0, mean, rtol=close, atol=close * max(1, float(point.xbar.abs().max())))
            assert torch.allclose(point.x, point.xbar / math.sqrt(1 + point.sigma**2))


@pytest.mark.parametrize("name", FEW)
def test_levels_on_the_fly_are_those_of_the_whole_path(name: str) -> None:
    plan = odeddim.plan(FIELD, name, steps=9)
    levels = sorted([*within(plan.nodes.tolist(), 3), *plan.nodes.tolist()])
    for up in (True, False):
        start = start_of(plan, up=up)
        whole = odeddim.trajectory(start, model=FIELD, plan=plan)
        some = odeddim.trajectory(start, model=FIELD, plan=plan, at=levels[::-1], keep="cpu")
        assert some.sigmas.tolist() == (levels if up else levels[::-1])
        assert some.end == whole.end
        for point in some:
            again = whole.at(point.sigma)
            assert torch.equal(point.xbar, again.xbar)
            assert torch.equal(point.eps, again.eps)


def test_between_the_nodes_eps_is_the_slope() -> None:
    path = odeddim.trajectory(torch.randn(2, 1, 4, 4).double(), "ab3", model="exact-mixture", steps=30)
    for sigma in (0.004, 0.02, 0.5, 3.0, 40.0):
        d = 1e-5 * sigma
        slope = (path.at(sigma + d).xbar - path.at(sigma - d).xbar) / (2 * d)
        assert torch.allclose(path.at(sigma).eps, slope, rtol=1e-5, atol=1e-6)


def test_what_further_evaluations_a_path_takes() -> None:
    def taken(name: str, **more: Any) -> int:
        FIELD.reset()
        odeddim.trajectory(State(IMAGES * TOP, TOP), name, model=FIELD, steps=12, **more)
        return FIELD.nfe

    assert [taken(name) for name in ("euler", "ab2", "dpmpp-2m", "belm", "heun2")] == [12, 12, 12, 12, 23]
    assert taken("euler", end="sigma_min") == 13  # the last node
    assert taken("unipc-2") == 22  # the nodes that it corrects
    assert taken("unipc-2", at=[1.0]) <= 12 + 4
    assert taken("unipc-2", at=[0.0]) == 12


def test_adaptive_solvers_pass_their_own_points() -> None:
    for name, rtol, times in (("dopri5", 1e-6, 20), ("dopri8", 1e-6, 200), ("bosh3", 1e-4, 20)):
        start = State(IMAGES * TOP, TOP)
        plan = odeddim.plan(FIELD, name, rtol=rtol, atol=rtol, end="sigma_min")
        path = odeddim.trajectory(start, model=FIELD, plan=plan)
        assert len(path) > 8
        assert path.sigmas[0] == TOP
        at_nodes, off = errors(path, start)
        assert off <= times * rtol, (name, at_nodes, off)  # the steps of high orders are long
        some = odeddim.trajectory(start, model=FIELD, plan=plan, at=[0.1, 1.0], batch_size=2)
        assert some.xbar.shape == (2, 3, 2)


def test_memory_is_that_of_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0
    made = dense._Node.__init__

    def counted(node: dense._Node, *arguments: Any) -> None:
        nonlocal most
        made(node, *arguments)
        alive.add(node)
        most = max(most, len(alive))

    monkeypatch.setattr(dense._Node, "__init__", counted)
    path = odeddim.trajectory(torch.randn(2, 1, 4, 4), "ab2", model="exact-mixture", steps=200, at=[1.0, 10.0])
    assert path.xbar.shape[0] == 2
    assert most <= 6


def test_no_point_holds_a_graph() -> None:
    x_T = odeddim.noise(2, (1, 4, 4)).requires_grad_()
    for at in (None, [1.0, 157.40728]):
        path = odeddim.trajectory(x_T, "ab2", model="exact-mixture", steps=3, at=at)
        assert not path.xbar.requires_grad
        assert not path.eps.requires_grad
        assert path.end is not None
        assert not path.end.xbar.requires_grad


def test_batches_and_places_change_no_bit() -> None:
    x_T = odeddim.noise(5, (1, 4, 4)).double()
    whole = odeddim.trajectory(x_T, "ddim-eta", model="exact-mixture", steps=5, seed=3)
    parts = odeddim.trajectory(x_T, "ddim-eta", model="exact-mixture", steps=5, seed=3, batch_size=2, keep="cpu")
    assert torch.equal(whole.xbar, parts.xbar)
    assert torch.equal(whole.eps, parts.eps)
    assert whole.end == parts.end
    one = parts.of([3, -1])
    assert torch.equal(one.xbar, whole.xbar[:, [3, 4]])
    assert one.end is not None
    assert torch.equal(one.end.xbar, whole.xbar[-1, [3, 4]])


def test_a_run_begins_as_solve_encode_and_decode_begin() -> None:
    x_T = odeddim.noise(2, (1, 28, 28))
    down = odeddim.trajectory(x_T, steps=2)
    assert down.end is not None
    images = odeddim.solve(x_T, steps=2)
    assert torch.equal(down.end.xbar, images)
    state = odeddim.encode(images, steps=3)
    up = odeddim.trajectory(images.numpy(), direction="encode", steps=3)
    assert up.end == state
    assert up.end is not None
    assert up.end.plan == state.plan
    back = odeddim.trajectory(up.end)
    assert back.end is not None
    assert torch.equal(back.end.xbar, odeddim.decode(state))
    again = odeddim.trajectory(State(images, 0.0), steps=3)
    assert again.end == state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("name", "eta"), [("ddim-eta", 0.3), ("ddim-eta", 1.0), ("ddpm", None), ("ddpm-sigma-hat", None)]
)
def test_log_probabilities_are_those_of_equation_12(name: str, eta: float | None, dtype: torch.dtype) -> None:
    """In x and α, as the paper has them, with torch's normal distribution."""
    x_T = odeddim.noise(3, (1, 4, 4)).to(dtype)
    path = odeddim.trajectory(x_T, name, model="exact-mixture", steps=6, seed=1, **({"eta": eta} if eta else {}))
    found, wanted = path.log_prob(), []
    alpha = 1 / (1 + path.sigmas**2)
    for n in range(5):
        before, after = alpha[n], alpha[n + 1]  # of x_t and of x_{t-1}: time falls
        deviation = (eta or 1.0) * ((1 - after) / (1 - before)).sqrt() * (1 - before / after).sqrt()
        x, eps, y = (part.double() for part in (path.x[n], path.eps[n], path.x[n + 1]))
        mean = after.sqrt() * (x - (1 - before).sqrt() * eps) / before.sqrt()
        mean = mean + (1 - after - deviation**2).sqrt() * eps
        if name == "ddpm-sigma-hat":
            deviation = (1 - before / after).sqrt()
        assert float(path.deviations[n]) == pytest.approx(float(deviation), rel=1e-9)
        wanted.append(Normal(mean, deviation).log_prob(y).flatten(1).sum(1))
    assert torch.allclose(found[:5], torch.stack(wanted), rtol=1e-9 if dtype == torch.float64 else 1e-4)
    assert found.dtype == torch.float64
    assert torch.equal(found[5], torch.zeros(3, dtype=torch.float64))  # the step to σ = 0 adds no noise
    assert torch.equal(path.log_prob("exact-mixture", steps=slice(1, 3)), path.log_prob("exact-mixture")[1:3])


class Scaled(nn.Module):
    """ε = θ·x."""

    def __init__(self, theta: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.theta * x


def test_the_ratio_of_two_policies_has_its_gradient() -> None:
    """d/dθ log p = Σ (x' - mean)/s²·dmean/dθ, with the mean x̄ + w·θ·x of ε = θ·x."""
    old, new = (VectorField(Scaled(theta), SCHEDULE, name="scaled") for theta in (0.8, 0.9))
    path = odeddim.trajectory(odeddim.noise(4, (1, 3, 3)).double(), "ddim-eta", model=old, steps=5, eta=0.7)
    with torch.no_grad():
        assert torch.allclose(path.log_prob(old), path.log_prob(), rtol=1e-12)
    ratio = (path.log_prob(new) - path.log_prob()).sum(0).exp()
    ratio.sum().backward()
    (theta,) = new.eps.parameters()  # type: ignore[attr-defined]
    logs, slopes = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for n, deviation in enumerate(path.deviations[:4]):
        sigma, after = path.sigmas[n], path.sigmas[n + 1]
        s = deviation * (1 + after**2).sqrt()
        w = (after**2 - s**2).sqrt() - sigma
        off = {value: path.xbar[n + 1] - path.xbar[n] - w * value * path.x[n] for value in (0.8, 0.9)}
        logs += (off[0.8].square() - off[0.9].square()).flatten(1).sum(1) / (2 * s**2)
        slopes += (off[0.9] * w * path.x[n]).flatten(1).sum(1) / s**2
    assert torch.allclose(ratio.detach(), logs.exp(), rtol=1e-9)
    assert theta.grad is not None
    assert float(theta.grad) == pytest.approx(float((logs.exp() * slopes).sum()), rel=1e-9)


def test_a_path_comes_back_from_a_pickle() -> None:
    path = odeddim.trajectory(odeddim.noise(2, (1, 4, 4)), "belm", model="exact-mixture", steps=3)
    again = pickle.loads(pickle.dumps(path))
    assert torch.equal(again.x0, path.x0)
    assert torch.equal(again.at(0.7).eps, path.at(0.7).eps)


def test_refusals_say_what_to_do() -> None:
    x_T = odeddim.noise(2, (1, 4, 4))

    def refused(words: str, *arguments: Any, start: Any = x_T, **how: Any) -> None:
        with pytest.raises(InputError, match=words) as caught:
            odeddim.trajectory(start, *arguments, model="exact-mixture", **how)
        assert "\n" not in str(caught.value)

    refused("steps of its own", "tsit5-per-image")
    refused("steps of its own", "scipy-rk45")
    refused("as a whole", "exact-ab2", direction="encode", steps=3)
    refused("adds noise", "ddim-eta", direction="encode")
    refused("nodes of its own", "dopri5", batch_size=1)
    refused("nodes of its own", "dopri5", keep="t.h5")
    refused("give 'encode'", direction="up")
    refused(
        "leave out direction='encode'", start=odeddim.encode(x_T, model="exact-mixture", steps=2), direction="encode"
    )
    refused("not between 0 and 157", at=[200.0])
    refused("names no noise level", at=[])
    refused("noise levels", at=["high"])
    refused("is no node", "ddim-eta", at=[1.0], steps=3)
    refused("with at least one image", start=torch.zeros(2, 1, 0, 4))
    refused("floating point", start=torch.zeros(1, 1, 4, 4, dtype=torch.int64))
    path = odeddim.trajectory(x_T, model="exact-mixture", steps=3, at=[1.0])
    with pytest.raises(InputError, match="was not kept"):
        path.at(2.0)
    with pytest.raises(InputError, match="adds no noise"):
        path.log_prob()
    whole = odeddim.trajectory(x_T, model="exact-mixture", steps=3)
    with pytest.raises(InputError, match="not between"):
        whole.at(500.0)
    for solver in ("er-sde-2", "sa-solver"):
        with pytest.raises(InputError, match="depends on earlier points too"):
            odeddim.trajectory(x_T, solver, model="exact-mixture", steps=3).log_prob()
    noisy = odeddim.trajectory(x_T, "ddim-eta", model="exact-mixture", steps=3, eta=0.0)
    with pytest.raises(InputError, match="no step of"):
        noisy.log_prob()
    with pytest.raises(InputError, match="no path, because it adds noise"):
        noisy.at(1.2345)
    with pytest.raises(IndexError):
        whole.of(7)


def test_arguments_that_are_something_else_are_named(tmp_path: Path) -> None:
    path = odeddim.trajectory(odeddim.noise(2, (1, 4, 4)), "ddim-eta", model="exact-mixture", steps=3, eta=1.0)
    wrong: list[tuple[str, Callable[..., Any], Any]] = [
        ("images='0': give an index", path.of, "0"),
        ("images=1.5: give an index", path.of, 1.5),
        ("sigma='high' is no noise level", path.at, "high"),
        ("sigma=None is no noise level", path.at, None),
        ("steps=2: give a slice", lambda value: path.log_prob(steps=value), 2),
        ("images=9: the trajectory has 2", lambda value: path.save_strip(tmp_path / "s.png", images=value), 9),
        ("at=3.0: give a list", lambda value: path.save_strip(tmp_path / "s.png", at=value), 3.0),
        ("fps=x: give 1 to 50", lambda value: path.save_animation(tmp_path / "f.gif", fps=value), "x"),
    ]
    for words, call, value in wrong:
        with pytest.raises(InputError, match=words):
            call(value)
    assert path.at(path.sigmas[1]).sigma == path.sigmas[1]
