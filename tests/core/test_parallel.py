"""parallel=: the same run, its nodes found together. The oracle is the sequential run, which the rows' tests prove."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support import command
from torch import Tensor, nn

import odeddim
from odeddim.ode.analytic import Gaussian, GaussianMixture
from odeddim.ode.gaussian import Gaussian as Moments
from odeddim.runs.parallel import TOLERANCE, Parallel, _Models
from odeddim.types import InputError, Point, State

LINEAR = odeddim.Schedule.linear()


def points_of(name: str) -> list[Point]:
    row = odeddim.solvers.get(name)
    made = [] if row.instructions is None else list(row.instructions([0.1, 1.0, 10.0]))
    return made if all(isinstance(point, Point) for point in made) else []  # type: ignore[return-value]


TAKES = [name for name in odeddim.solvers.names() if points_of(name)]
REFUSES = [name for name in odeddim.solvers.names() if name not in TAKES]


def mixture() -> odeddim.VectorField:
    return odeddim.VectorField(GaussianMixture(torch.tensor([-0.6, 0.6]), std=0.15).network(LINEAR), LINEAR)


def of_one_gaussian(std: float) -> odeddim.VectorField:
    return odeddim.VectorField(Gaussian(0.0, std).network(LINEAR), LINEAR)


def start(plan: odeddim.Plan, direction: str, count: int = 3, dtype: torch.dtype = torch.float64) -> State:
    x = odeddim.noise(count, (1, 4, 4), seed=5).to(dtype)
    if direction == "decode":
        return State(x * math.hypot(1, plan.top), plan.top)
    return State(x.clamp(-1, 1), float(plan.nodes[0]))


def off(found: State, right: State) -> float:
    """The largest rms of an image, in the units of the tolerance."""
    apart = (found.xbar - right.xbar).flatten(1).square().mean(1).sqrt()
    return float(apart.max()) / math.hypot(1, right.sigma)


def test_all_one_step_and_multistep_rows_of_ours_take_it() -> None:
    families = {odeddim.solvers.get(name).family for name in TAKES}
    assert families == {"one-step", "exponential", "multistep", "fitted"} & {
        odeddim.solvers.get(name).family for name in odeddim.solvers.names()
    }
    assert {"euler", "heun", "dpm-solver-3", "dpmpp-2s", "ab4", "dpmpp-2m", "unipc-3", "pndm"} <= set(TAKES)


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("name", TAKES)
def test_without_tolerance_it_is_the_sequential_run_bit_for_bit(name: str, direction: str) -> None:
    """And it takes no more rounds than that takes evaluations, whatever the window."""
    for end, steps, window, dtype in (
        ("zero", 9, 100, torch.float64),
        ("zero", 9, 3, torch.float64),
        ("sigma_min", 7, 4, torch.float32),
        ("zero", 2, 1, torch.float64),
        ("zero", 1, 5, torch.float64),
    ):
        field, plan = mixture(), odeddim.plan(mixture(), name, steps=steps, end=end)
        begin = start(plan, direction, dtype=dtype)
        right = odeddim.integrate(field, begin, plan)
        spent = field.nfe
        field.reset()
        found = odeddim.integrate(field, begin, Parallel(window, 0.0).on(plan))
        assert found == right, (end, steps, window)
        assert found.xbar.dtype == dtype
        assert found.report["residual"].tolist() == [0.0] * 3
        assert field.nfe == int(found.report["rounds"].max()) <= spent
        assert field.rows == int(found.report["evaluations"].sum())
        if window == 1:
            assert found.report["rounds"].tolist() == found.report["evaluations"].tolist() == [spent] * 3


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("name", ["euler", "heun", "ab3", "dpmpp-2m", "unipc-2"])
def test_with_a_tolerance_it_is_the_sequential_run_to_the_residual(name: str, direction: str) -> None:
    for window in (100, 8):
        for tolerance in (1e-2, 1e-5):
            plan = odeddim.plan(mixture(), name, steps=40)
            begin = start(plan, direction)
            right = odeddim.integrate(mixture(), begin, plan)
            field = mixture()
            found = odeddim.integrate(field, begin, Parallel(window, tolerance).on(plan))
            assert 0 < float(found.report["residual"].max()) <= tolerance
            assert 0 < off(found, right) <= float(found.report["residual"].max()), (window, tolerance)
            evaluations = plan.evaluations if direction == "encode" else plan.evaluations_down
            assert field.nfe < 0.6 * evaluations


def test_rounds_hardly_grow_with_the_steps() -> None:
    rounds = []
    for steps in (25, 100, 400):
        plan = odeddim.plan(mixture(), "euler", steps=steps)
        found = odeddim.integrate(mixture(), start(plan, "decode"), Parallel(steps, 1e-3).on(plan))
        rounds.append(int(found.report["rounds"].max()))
    assert rounds[2] <= rounds[0] + 2, rounds


def without_moments(std: float) -> odeddim.VectorField:
    field = of_one_gaussian(std)
    field.moments = None
    return field


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_the_first_guess_follows_a_gaussian(direction: str) -> None:
    """One round sees that it is exact: that of the data's own Gaussian, else that of data of unit variance."""
    for field, exact in ((of_one_gaussian(0.4), True), (without_moments(1.0), True), (without_moments(0.4), False)):
        plan = odeddim.plan(field, "dpmpp-2m", steps=60, end="sigma_min")  # at σ = 0 a network answers as at σ_1
        begin = start(plan, direction)
        found = odeddim.integrate(field, begin, Parallel(100, 1e-6).on(plan))
        assert (found.report["rounds"].tolist() == [1] * 3) == exact
        assert off(found, odeddim.integrate(field, begin, plan)) < 1e-9


def test_moments_of_another_size_are_left_alone() -> None:
    field = mixture()
    field.moments = Moments.of(torch.rand(9, 1, 5, 5))
    right = odeddim.solve(odeddim.noise(1, (1, 4, 4)), "euler", model=field, steps=9)
    found = odeddim.solve(odeddim.noise(1, (1, 4, 4)), "euler", model=field, steps=9, parallel=Parallel(9, 0))
    assert torch.equal(found, right)


def test_the_interval_that_is_carried_stays_so() -> None:
    x_T = odeddim.noise(2, (1, 4, 4)).double()
    how: dict[str, Any] = {"model": mixture(), "steps": 9, "top": "gaussian:20"}
    images = odeddim.solve(x_T, "dpmpp-2m", **how)
    assert torch.equal(odeddim.solve(x_T, "dpmpp-2m", **how, parallel=Parallel(4, 0)), images)
    assert odeddim.encode(images, "ab3", **how) == odeddim.encode(images, "ab3", **how, parallel=Parallel(4, 0))


def test_what_a_point_has_shown_of_its_slope_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """ε is linear, and all changes lie along x̄: two evaluations show everything."""
    plan = odeddim.plan(of_one_gaussian(0.2), "euler", steps=50)
    begin = start(plan, "decode")

    def rounds() -> int:
        found = odeddim.integrate(without_moments(0.2), begin, Parallel(50, 1e-9).on(plan))
        return int(found.report["rounds"].max())

    assert rounds() <= 4
    monkeypatch.setattr("odeddim.runs.parallel._Models.along", lambda self, row, change: change * 0)
    assert rounds() > 8


def test_a_point_keeps_what_it_has_shown_when_others_leave() -> None:
    """Fields that are linear, each point's by a matrix of its own: along its last two changes the model is that."""
    levels, draws = (0.1, 1.0, 10.0), torch.Generator().manual_seed(3)
    matrices = torch.randn(3, 6, 6, dtype=torch.float64, generator=draws)
    before, here, there = torch.randn(3, 3, 6, dtype=torch.float64, generator=draws)
    models = _Models(before[:1])
    models.shift(0, 3)
    for x in (before, here, there):
        models.learn(x, torch.einsum("nij,nj->ni", matrices, x), levels)
    models.shift(1, 2)
    for row, n in enumerate((1, 2)):
        for change in (there[n] - here[n], here[n] - before[n]):
            beyond = matrices[n] @ change - levels[n] / (1 + levels[n] ** 2) * change
            assert torch.allclose(models.along(row, change[None])[0], beyond, atol=1e-12)


def test_a_window_bounds_what_is_evaluated_at_once() -> None:
    field, seen = mixture(), list[int]()
    field.watch = seen.append
    plan = odeddim.plan(field, "unipc-2", steps=30)
    odeddim.integrate(field, start(plan, "decode", 2), Parallel(6, 1e-3).on(plan))
    assert max(seen) == 12
    assert len(seen) < 30


def test_nothing_is_kept_that_is_no_longer_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from odeddim.runs import parallel

    most = 0
    settle = parallel._Image._settle

    def watched(self: Any, *given: Any) -> None:
        nonlocal most
        settle(self, *given)
        most = max(most, len(self.xbars) + len(self.slopes))

    monkeypatch.setattr(parallel._Image, "_settle", watched)
    for name in ("euler", "ab4", "unipc-3", "dpm-solver-3"):
        plan = odeddim.plan(mixture(), name, steps=40)
        for direction in ("encode", "decode"):
            odeddim.integrate(mixture(), start(plan, direction, 1), Parallel(5).on(plan))
    assert most <= 8


class Convolution(nn.Sequential):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize("network", ["exact", "network"])
def test_an_image_is_the_same_in_any_company(network: str) -> None:
    field = mixture()
    if network == "network":
        torch.manual_seed(0)
        layers = Convolution(nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1))
        field = odeddim.VectorField(layers, LINEAR)
        field.network_batch = 4
    x_T = odeddim.noise(5, (1, 4, 4), seed=1)
    with torch.no_grad():
        whole = odeddim.solve(x_T, "dpmpp-2m", model=field, steps=12, parallel=5)
        alone = torch.cat([odeddim.solve(x, "dpmpp-2m", model=field, steps=12, parallel=5) for x in x_T.split(1)])
        parts = odeddim.solve(x_T, "dpmpp-2m", model=field, steps=12, parallel=5, batch_size=2)
    assert torch.equal(whole, alone)
    assert torch.equal(whole, parts)


def test_the_four_functions_take_it() -> None:
    field, close = mixture(), 2e-3
    x_T = odeddim.noise(2, (1, 4, 4)).double()
    how: dict[str, Any] = {"model": field, "steps": 20}
    images = odeddim.solve(x_T, "euler", **how)
    found = odeddim.solve(x_T, "euler", **how, parallel=Parallel(20, 1e-3))
    assert 0 < float((found - images).abs().max()) < close
    state = odeddim.encode(images, "euler", **how)
    together = odeddim.encode(images, "euler", **how, parallel=20)
    assert 0 < float((together.x - state.x).abs().max()) < close
    assert together.plan.notes["parallel"] == {"window": 20, "tolerance": TOLERANCE}
    assert "network_batch" not in together.plan.notes
    back = odeddim.decode(together, model=field, parallel=20)
    assert 0 < float((back - odeddim.decode(together, model=field)).abs().max()) < close
    options: dict[str, Any] = {"model": field, "steps": 20, "shape": (1, 4, 4), "seed": 3}
    made = odeddim.sample(2, "euler", **options, parallel=20)
    assert 0 < float((made - odeddim.sample(2, "euler", **options)).abs().max()) < close


def test_callback_and_progress_see_the_end() -> None:
    seen, told = [], []
    odeddim.solve(
        odeddim.noise(2, (1, 4, 4)), "euler", model=mixture(), steps=8, parallel=8,
        callback=lambda step, sigma, xbar: seen.append((sigma, xbar.shape)),
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert seen == [(0.0, (2, 1, 4, 4))]
    assert told[-1] == (2, 2)


@pytest.mark.parametrize("name", REFUSES)
def test_other_rows_refuse(name: str) -> None:
    with pytest.raises(InputError, match="leave out parallel=") as caught:
        odeddim.solve(odeddim.noise(1, (1, 4, 4)), name, model=mixture(), parallel=4)
    assert repr(name) in str(caught.value)


def test_bad_input_is_one_sentence() -> None:
    x_T = odeddim.noise(1, (1, 4, 4))
    for given in (0, -3, True, 2.5, "50"):
        with pytest.raises(InputError, match="window of parallel="):
            odeddim.solve(x_T, "euler", model=mixture(), parallel=given)  # type: ignore[arg-type]
    for tolerance in (-1e-3, math.inf, math.nan, "small", True):
        with pytest.raises(InputError, match="tolerance of parallel="):
            Parallel(4, tolerance)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="without parallel="):
        odeddim.solve(x_T.requires_grad_(), "euler", model=mixture(), parallel=4)
    with pytest.raises(InputError, match="without parallel="):
        odeddim.solve(x_T.detach(), "euler", model=mixture(), parallel=4, gradients="checkpoint")


def test_latent_files_say_how_they_were_made(tmp_path: Path) -> None:
    made: dict[str, Any] = {"model": "exact-samples", "solver": "euler", "steps": 6, "count": 2}
    plain, found, again = tmp_path / "plain.h5", tmp_path / "found.h5", tmp_path / "again.h5"
    odeddim.jobs.encode(None, plain, **made)
    outcome = odeddim.jobs.encode(None, found, **made, parallel=Parallel(4, 1e-4))
    assert " rounds, residual up to " in str(outcome)
    with odeddim.open(plain) as file:
        assert "parallel" not in file.provenance.details
        right = file[:]
    with odeddim.open(found) as file:
        state = file[:]
        assert file.provenance.details["parallel"] == {"window": 4, "tolerance": 1e-4}
        assert float(state.report["residual"].max()) <= 1e-4
        assert 0 < off(state, right) < 1e-4
    odeddim.save(state, again)
    with odeddim.open(again) as file:
        assert file.provenance.details["parallel"] == {"window": 4, "tolerance": 1e-4}
    with pytest.raises(InputError):  # a file is of one kind
        odeddim.jobs.encode(None, found, **{**made, "count": 3})


def test_a_reversible_solver_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave out parallel="):
        odeddim.jobs.encode(None, tmp_path / "z.h5", model="exact-samples", count=1, parallel=4)
    assert not (tmp_path / "z.h5").exists()


@pytest.mark.parametrize("other", [{"tol": 1e-2}, {"certify": True}, {"density": True}, {"trajectory": "t.h5"}])
def test_what_takes_the_nodes_in_order_excludes_it(other: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=next(iter(other))):
        odeddim.jobs.encode(
            None, tmp_path / "z.h5", model="exact-samples", count=1, solver="euler", parallel=4, **other
        )


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    euler = ("--solver", "euler", "--steps", 6)
    command("encode", "-o", "z.h5", "-n", 2, "--model", "exact-samples", *euler, "--parallel", "6:1e-4")
    odeddim.jobs.encode(
        None, "same.h5", model="exact-samples", count=2, solver="euler", steps=6, parallel=Parallel(6, 1e-4)
    )
    with odeddim.open("z.h5") as one, odeddim.open("same.h5") as other:
        assert one[:] == other[:]
        assert one.provenance.details == other.provenance.details
    said = command("decode", "z.h5", "-o", "out.npz", "--parallel", 6)
    assert "evaluations per image" in said
    command("sample", "-n", 2, "-o", "s.npz", "--model", "exact-samples", *euler, "--parallel", 3)
    said = command("encode", "-o", "y.h5", "--solver", "belm", "--parallel", 6, code=2)
    assert "leave out --parallel" in said
    said = command("encode", "-o", "y.h5", *euler, "--certify", "--parallel", 6, code=2)
    assert "--parallel finds" in said
    for wrong in ("0", "x", "6:", "6:-1", "6:nan"):
        assert "--parallel" in command("encode", "-o", "y.h5", *euler, "--parallel", wrong, code=2)
    odeddim.plan("exact-samples", "euler", steps=6).save("plan.json")
    command("encode", "-o", "p.h5", "-n", 2, "--model", "exact-samples", "--plan", "plan.json", "--parallel", "6:1e-4")
    with odeddim.open("z.h5") as one, odeddim.open("p.h5") as other:
        assert one[:] == other[:]


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("grid", ["linear", "log"])
def test_ddim_50_is_found_in_few_rounds(grid: str, direction: str) -> None:
    field, plan = odeddim.load(), odeddim.plan(solver="euler", steps=50, grid=grid)
    field.network_batch = 32
    if direction == "decode":
        begin = State(odeddim.noise(16, (1, 28, 28), seed=11) * math.hypot(1, plan.top), plan.top)
    else:
        begin = State(torch.as_tensor(odeddim.open_images()[:16]), 0.0)
    with torch.no_grad():
        right = odeddim.integrate(field, begin, plan)
        for tolerance, rounds in ((1e-2, 10), (1e-3, 13)):
            found = odeddim.integrate(field, begin, Parallel(50, tolerance).on(plan))
            apart = (found.xbar - right.xbar).flatten(1).square().mean(1).sqrt() / math.hypot(1, right.sigma)
            assert float(apart.max()) <= tolerance
            assert int(found.report["rounds"].median()) <= rounds


def test_fitted_weights_of_the_step_at_zero_are_taken() -> None:
    found = odeddim.fit("exact-mixture", 4, "both", count=16, shape=(1, 4, 4)).plan
    x_T = odeddim.noise(3, (1, 4, 4), seed=4)
    image = odeddim.solve(x_T, model="exact-mixture", plan=found)
    exact = odeddim.Parallel(2, 0.0)
    assert torch.equal(odeddim.solve(x_T, model="exact-mixture", plan=found, parallel=exact), image)
    latent = odeddim.encode(image, model="exact-mixture", plan=found)
    assert torch.equal(odeddim.encode(image, model="exact-mixture", plan=found, parallel=exact).xbar, latent.xbar)
