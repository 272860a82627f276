"""Fitted solvers: closed forms, gradients against autograd, a resumed fit, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import odeddim
from odeddim import jobs, solvers
from odeddim.fitting import descent
from odeddim.fitting.fit import Aim, Fit
from odeddim.fitting.pairs import Pairs, reference, solved
from odeddim.fitting.rules import Rule, Task, adams, least_squares, squares
from odeddim.ode.analytic import Gaussian, GaussianMixture
from odeddim.ode.gaussian import Gaussian as Moments
from odeddim.plans import Plan, integrate
from odeddim.types import InputError, State

MIXTURE = odeddim.load("exact-mixture")
TOP = MIXTURE.schedule.sigma_max
SHAPE = (1, 4, 4)
SPREAD = 0.5  # the standard deviation of Gaussian data around 0


def gaussian_field(sigma: Tensor, xbar: Tensor) -> Tensor:
    """ε of data N(0, SPREAD²): linear in x̄."""
    return xbar * (float(sigma) / (SPREAD**2 + float(sigma) ** 2))


def stretched(low: float, high: float) -> float:
    """x̄(high)/x̄(low) of the linear field, in closed form."""
    return math.sqrt((SPREAD**2 + high**2) / (SPREAD**2 + low**2))


def exact_pairs(count: int = 6, low: float = 0.0, top: float = 50.0) -> Pairs:
    """Solutions of the linear field in closed form, float64."""
    levels = torch.logspace(-2, math.log10(top), 60, dtype=torch.float64)
    start = torch.randn(count, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    path = torch.stack([start * stretched(low, float(level)) for level in levels], dim=1)
    return Pairs(start, start * stretched(low, top), levels, path)


def mixture_pairs(count: int, seed: int = 0) -> Pairs:
    """Fine solutions of the mixture, float64."""
    plan = reference(MIXTURE, "zero")
    start = odeddim.noise(count, SHAPE, seed=seed).double() * math.hypot(1, TOP)
    return solved(MIXTURE, start, plan, "decode", count, lambda steps: None)


def task(direction: str, pairs: Pairs, field: Callable[[Tensor, Tensor], Tensor] = MIXTURE, top: float = TOP) -> Task:
    return Task(direction, field, pairs, top, None, 4)


def corrected_task(direction: str, pairs: Pairs) -> Task:
    """One whose slopes a Gaussian corrects, which is not that of the data."""
    basis = torch.linalg.qr(torch.randn(16, 3, generator=torch.Generator().manual_seed(5)))[0].T
    moments = Moments(torch.full(SHAPE, 0.1), basis, torch.tensor([0.9, 0.3, 0.1]), 0.02)
    return replace(task(direction, pairs), moments=moments)


def covariance_of(moments: Moments) -> Tensor:
    """Σ as a matrix, (D, D)."""
    basis = moments.basis.double()
    excess = basis.T @ (moments.variances - moments.rest).diag() @ basis
    return moments.rest * torch.eye(basis.shape[1]).double() + excess


def even(low: float, top: float, steps: int) -> tuple[float, ...]:
    return (0.0, *torch.logspace(math.log10(low), math.log10(top), steps, dtype=torch.float64).tolist())


# The row.


@pytest.mark.parametrize("way", ["encode", "decode"])
def test_without_weights_the_row_is_ab2(way: str) -> None:
    nodes = odeddim.grid("log", MIXTURE.schedule, 9)
    plans = [Plan.of(MIXTURE.schedule, row, grid=nodes) for row in (solvers.get("fitted"), solvers.get("ab2"))]
    start = State(torch.randn(2, *SHAPE, dtype=torch.float64), float(nodes[0 if way == "encode" else -1]))
    ours, theirs = (integrate(MIXTURE, start, plan).xbar for plan in plans)
    assert torch.allclose(ours, theirs, rtol=1e-13)


def test_a_run_is_the_sum_that_the_table_says() -> None:
    """Against a loop written here, in both directions, over σ = 0."""
    nodes = [0.0, 0.5, 2.0, 9.0]
    up = [[0.0, 1.1, 0.4], [0.5, 0.9, 1.2, 0.3], [2.0, 1.0, 7.5, -0.5, 0.25]]
    down = [[9.0, 0.7, -3.0], [2.0, 1.2, -1.0, -0.4], [0.5, 1.0, -0.6, 0.2, -0.1]]
    row = solvers.get("fitted", weights=[up, down])
    start = torch.randn(3, *SHAPE, dtype=torch.float64)
    for walked, table in ((nodes, up), (nodes[::-1], down)):
        x, slopes = start, list[Tensor]()
        for sigma, (_, state, *weights) in zip(walked, table, strict=False):
            slopes.insert(0, MIXTURE(torch.tensor(sigma), x))
            x = state * x + sum(w * eps for w, eps in zip(weights, slopes, strict=False))
        found = row.run(MIXTURE, State(start, walked[0]), torch.tensor(walked, dtype=torch.float64))
        assert torch.allclose(found.xbar, x, rtol=1e-12)
        assert found.sigma == walked[-1]


@pytest.mark.parametrize(
    ("weights", "nodes", "words"),
    [
        ([[], [[2.0, 1.0, -1.0]]], [1.0, 2.0], "no weights to encode"),
        ([[[1.0, 1.0, 1.0]], []], [2.0, 1.0], "no weights to decode"),
        ([[[1.0, 1.0, 1.0]], []], [1.0, 2.0, 3.0], "1 steps, and the run has 2"),
        ([[[1.0, 1.0, 1.0]], []], [1.1, 2.0], "starts at 1.1"),
        ([[[1.0, 1.0, 1.0, 2.0]], []], [1.0, 2.0], "2 slopes in step 1"),
        ([[[1.0, 1.0, 1.0]]], [1.0, 2.0], "two tables"),
        ([1.0, 2.0], [1.0, 2.0], "two tables"),
        ([[[1.0, 1.0]], []], [1.0, 2.0], "two tables"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights: Any, nodes: list[float], words: str) -> None:
    row = solvers.get("fitted", weights=weights)
    with pytest.raises(InputError, match=words):
        row.run(MIXTURE, State(torch.zeros(1, *SHAPE), nodes[0]), torch.tensor(nodes, dtype=torch.float64))


@pytest.mark.parametrize("weights", ["ab", 3, [[math.nan]], [["a"]], [[True]], {"a": 1}])
def test_a_table_holds_numbers_only(weights: Any) -> None:
    with pytest.raises(InputError, match="weights of solver 'fitted' must be a table"):
        solvers.get("fitted", weights=weights)


# Slopes that a Gaussian corrects.

CORRECTED = {
    "weights": (((1.0, 1.0, 1.0), (2.0, 1.0, 1.5, -0.5)), ((4.0, 0.9, -1.0), (2.0, 1.1, -1.5, 0.5))),
    "corrections": (((1.0, 0.2, -0.3), (2.0, 0.1, 0.4)), ((4.0, -0.2, 0.5), (2.0, 0.3, -0.1))),
}


class Known:
    """A field with the Gaussian of its data."""

    moments = corrected_task("decode", exact_pairs()).moments

    def __call__(self, sigma: Tensor, xbar: Tensor) -> Tensor:
        return MIXTURE(sigma, xbar)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("place", [0, 1], ids=["encode", "decode"])
def test_a_run_with_corrections_is_what_its_formula_says(place: int, dtype: torch.dtype) -> None:
    """The formula of the row with Σ as a matrix."""
    weights, corrections = (CORRECTED[name][place] for name in ("weights", "corrections"))
    nodes = [1.0, 2.0, 4.0][:: 1 - 2 * place]
    start = torch.randn(3, *SHAPE, dtype=dtype, generator=torch.Generator().manual_seed(1))
    row = solvers.get("fitted", **CORRECTED)
    found = row.walk(Known(), State(start, nodes[0]), torch.tensor(nodes, dtype=torch.float64)).xbar

    assert Known.moments is not None
    covariance, mean = covariance_of(Known.moments), Known.moments.mean.flatten()
    x, slopes = start.double().flatten(1), list[Tensor]()
    for (sigma, state, *own), (_, alpha, beta) in zip(weights, corrections, strict=True):
        eps = MIXTURE(torch.tensor(sigma).double(), x.view(-1, *SHAPE).to(dtype)).double().flatten(1)
        inverse = torch.linalg.inv(covariance + sigma**2 * torch.eye(16).double())
        slopes.insert(0, eps + alpha * sigma * (x - mean) @ inverse + beta * eps @ covariance @ inverse)
        x = state * x + sum((w * slope for w, slope in zip(own, slopes, strict=True)), torch.zeros_like(x))
    assert torch.allclose(found.double().flatten(1), x, atol=1e-11 if dtype == torch.float64 else 1e-5)
    alone = row.walk(Known(), State(start[1:2], nodes[0]), torch.tensor(nodes, dtype=torch.float64)).xbar
    assert torch.equal(alone, found[1:2])


def test_a_run_with_corrections_in_parallel_is_the_run() -> None:
    usual = replace(odeddim.plan(MIXTURE, "ab2", steps=2), nodes=torch.tensor([1.0, 2.0, 4.0]).double())
    plan = usual.with_solver(solvers.get("fitted", **CORRECTED))
    start = State(torch.randn(2, *SHAPE, dtype=torch.float64), 4.0)
    found = integrate(Known(), start, odeddim.Parallel(2, tolerance=1e-9).on(plan)).xbar
    assert torch.allclose(found, integrate(Known(), start, plan).xbar, atol=1e-8)


@pytest.mark.parametrize(
    ("corrections", "words"),
    [
        ([[[1.0, 0.1, 0.1]], []], "corrections to encode for 1 steps, and the run has 2"),
        ([[[1.5, 0.1, 0.1], [2.0, 0.1, 0.1]], []], "starts at 1.5|from σ = 1.5"),
        ([[[1.0, 0.1, 0.1, 0.1], [2.0, 0.1, 0.1]], []], "three numbers"),
        ([[1.0]], "two tables"),
    ],
)
def test_corrections_that_do_not_fit_are_refused(corrections: Any, words: str) -> None:
    row = solvers.get("fitted", weights=CORRECTED["weights"], corrections=corrections)
    nodes = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    with pytest.raises(InputError, match=words):
        row.walk(Known(), State(torch.zeros(1, *SHAPE), 1.0), nodes)


def test_corrections_need_the_gaussian_of_the_data() -> None:
    row, nodes = solvers.get("fitted", **CORRECTED), torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    with pytest.raises(InputError, match="odeddim moments"):
        row.walk(gaussian_field, State(torch.zeros(1, *SHAPE), 1.0), nodes)


# Solutions.


def test_solutions_between_the_levels() -> None:
    pairs = exact_pairs()
    for sigma in (0.02, 0.3, 7.0, 49.0, float(pairs.levels[3])):
        assert torch.allclose(pairs.at(sigma), pairs.low * stretched(0.0, sigma), rtol=1e-4)
    assert torch.equal(pairs.at(0.0), pairs.low)


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_solutions_of_the_model_are_those_of_a_closed_form(direction: str) -> None:
    field = odeddim.load("exact-gaussian")
    data = field.eps.field if hasattr(field.eps, "field") else Gaussian(0.0, 0.5)
    plan = reference(field, "sigma_min")
    start = torch.ones(1, *SHAPE, dtype=torch.float64)
    pairs = solved(field, start, plan, direction, 1, lambda steps: None)
    low, high = float(plan.nodes[0]), plan.top
    assert torch.allclose(data.flow(pairs.low, low, high), pairs.high, rtol=1e-4)
    assert torch.allclose(data.flow(pairs.low, low, 3.0), pairs.at(3.0), rtol=1e-4)


# Least squares.


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_least_squares_solve_a_linear_field_exactly(direction: str) -> None:
    """There ε is a multiple of x̄, so a step is a number times x̄: its closed form is the ratio of the exact solution."""
    pairs, nodes = exact_pairs(), even(0.1, 50.0, 4)
    rule, means = least_squares(task(direction, pairs, gaussian_field, 50.0), nodes)
    assert float(means.sqrt().max()) < 1e-3
    walked = nodes if direction == "encode" else nodes[::-1]
    factors, scale = [], 1.0  # of the slopes so far, in units of the x̄ at the start; and x̄'s own
    for (here, there), (state, *slopes) in zip(pairwise(walked), rule.weights[direction], strict=True):
        factors.insert(0, scale * here / (SPREAD**2 + here**2))
        grown = state * scale + sum(w * factor for w, factor in zip(slopes, factors, strict=False))
        assert grown / scale == pytest.approx(stretched(here, there), rel=1e-3)
        scale = grown


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_least_squares_are_no_worse_than_adams_on_the_same_nodes(direction: str) -> None:
    one = task(direction, mixture_pairs(12))
    nodes = even(0.1, TOP, 6)
    own = float(least_squares(one, nodes)[1].mean())
    usual = squares(one, Rule(nodes, {direction: adams(nodes, direction)}))
    assert own < float(usual.mean()) / 4


# The descent.


@pytest.mark.parametrize("made", [task, corrected_task])
def test_the_effects_of_weights_and_corrections_are_those_of_autograd(
    made: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """∂/∂parameter of the mean logarithm, by backpropagation through a run that is written here."""
    monkeypatch.setattr(descent, "CHANGE", 1e-6)  # the larger one of float32 sees how the effect bends
    pairs, nodes = mixture_pairs(6), even(0.2, TOP, 3)
    one = made("decode", pairs)
    rule, _ = least_squares(one, nodes)
    point = descent.measured([one], rule)
    system = descent._System(one, point, lambda images: None)
    _, pull = system.normal_equations([1, 2])

    walked = torch.tensor(nodes[::-1], dtype=torch.float64)
    table = [torch.tensor(row, dtype=torch.float64, requires_grad=True) for row in rule.weights["decode"]]
    numbers = rule.corrections.get("decode", ())
    corrections = [torch.tensor(it, dtype=torch.float64, requires_grad=True) for it in numbers]
    x, slopes = pairs.high, list[Tensor]()
    mixture = MIXTURE.eps.field if hasattr(MIXTURE.eps, "field") else None
    assert isinstance(mixture, GaussianMixture)
    for step, sigma in enumerate(walked[:-1]):
        eps = mixture(sigma, x)
        if one.moments is not None:
            (alpha, beta), covariance = corrections[step], covariance_of(one.moments)
            inverse = torch.linalg.inv(covariance + sigma**2 * torch.eye(16).double())
            own = sigma * (x - one.moments.mean).flatten(1) @ inverse
            eps = eps + (alpha * own + beta * eps.flatten(1) @ inverse @ covariance).view_as(x)
        slopes.insert(0, eps)
        x = sum((w * term for w, term in zip(table[step], (x, *slopes), strict=False)), torch.zeros_like(x))
    error = (x - pairs.low).square().flatten(1).mean(1)
    error.log().mean().backward()
    found, offset = [], 0
    for step, (row, combinations) in enumerate(zip(table, system.combinations, strict=True)):
        gradient = [row.grad, *(corrections[step].grad / row[1].item() for _ in corrections[:1])]
        found.append(combinations @ torch.cat(gradient))
        offset += len(found[-1])
    assert all(alpha and beta for alpha, beta in numbers)
    theirs = torch.cat(found)
    assert torch.allclose(2 * pull[:offset] / len(pairs), theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()))


def test_a_round_makes_less_of_a_step_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where effects bend, no damping makes the whole step good, and a part of it is."""
    one, norms = task("decode", mixture_pairs(4)), list[float]()
    point = descent.measured([one], least_squares(one, even(0.2, TOP, 3))[0])
    better = replace(point, squares={"decode": point.squares["decode"] / 2})

    def stepped(tasks: Any, systems: Any, point: Any, free: Any, step: Tensor) -> descent.Point | None:
        norms.append(float(step.norm()))
        return better if norms[-1] < 0.9 * norms[0] else None

    monkeypatch.setattr(descent, "DAMPINGS", (1.0,))
    monkeypatch.setattr(descent, "_stepped", stepped)
    assert descent.round_of([one], point, lambda images: None) is better
    assert norms == pytest.approx([norms[0], 0.3 * norms[0]])


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_node_that_moves_takes_the_state_with_it(place: int, direction: str) -> None:
    """Along a constant slope a run passes the moved node on the same line, and ends where it did."""
    slope, nodes = torch.randn(1, *SHAPE, dtype=torch.float64), (0.0, 1.0, 2.0, 3.5, 4.0)
    seen: dict[float, Tensor] = {}

    def field(sigma: Tensor, xbar: Tensor) -> Tensor:
        seen[float(sigma)] = xbar
        return slope.expand_as(xbar)

    def end(rule: Rule) -> Tensor:
        walked = rule.walked(direction)
        row = solvers.get("fitted", **rule.settings())
        start = slope * walked[0]
        return row.run(field, State(start, walked[0]), torch.tensor(walked, dtype=torch.float64)).xbar

    rule = Rule(nodes, {direction: adams(nodes, direction)})
    moved = descent.with_node(rule, place, nodes[place] + 0.2)
    assert moved.nodes[place] == nodes[place] + 0.2
    assert torch.allclose(end(moved), end(rule), rtol=1e-12)
    assert torch.allclose(seen[moved.nodes[place]], slope * moved.nodes[place], rtol=1e-12)


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_a_fit_beats_every_plain_row_on_solutions_that_it_has_not_seen(direction: str) -> None:
    found = odeddim.fit(MIXTURE, 5, direction, count=16, shape=SHAPE)
    (own,), (plain,) = found.errors, found.plain
    assert own.median < plain.median / 3
    assert own.low <= own.median <= own.high
    assert (own.direction, own.solver) == (direction, "fitted")


def test_a_fit_without_the_gaussian_keeps_the_last_node() -> None:
    found = odeddim.fit(MIXTURE, 4, "both", count=16, shape=SHAPE, top="model", end="sigma_min")
    assert not found.plan.carried
    assert found.plan.top == TOP
    assert float(found.plan.nodes[0]) == MIXTURE.schedule.sigma_min
    assert [it.direction for it in found.errors] == ["encode", "decode"]
    assert all(own.median < plain.median / 2 for own, plain in zip(found.errors, found.plain, strict=True))


def test_the_errors_are_those_of_a_run_with_the_plan(tmp_path: Path) -> None:
    found = odeddim.fit(MIXTURE, 3, count=8, shape=SHAPE)
    found.plan.save(tmp_path / "plan.json")
    plan = Plan.load(tmp_path / "plan.json")
    assert plan == found.plan
    assert (plan.steps, plan.evaluations_down) == (3, 3)
    x_T = odeddim.noise(64, SHAPE, seed=0, start=1_000_000 + 8)
    truth = odeddim.solve(x_T, "ab4", model=MIXTURE, steps=400)
    errors = (odeddim.solve(x_T, model=MIXTURE, plan=plan) - truth).square().flatten(1).mean(1).sqrt()
    assert float(errors.median()) == pytest.approx(found.errors[0].median, rel=0.05)
    with pytest.raises(InputError, match="no weights to encode"):
        odeddim.encode(truth, model=MIXTURE, plan=plan)


def test_images_are_fitted_to_and_others_are_held_out() -> None:
    images = odeddim.sample(40, model=MIXTURE, shape=SHAPE, steps=50, solver="ab4")
    fit = Fit(MIXTURE, Aim(3, "encode", count=100), images)
    assert (fit.held, fit.count) == (20, 20)
    fitted, held = fit._pairs("encode", "pairs", 0, fit.count), fit._pairs("encode", "held", fit.count, fit.held)
    assert torch.equal(torch.cat([held.low, fitted.low]).sort(0).values, images.sort(0).values)
    (own,), (plain,) = (found := fit.run()).errors, found.plain
    assert own.median < plain.median / 2


def test_the_solutions_of_encoding_begin_at_images() -> None:
    """The latent of a decoded noise is not that noise: the Euler steps at σ = 0 are not each other's inverse."""
    fit = Fit(MIXTURE, Aim(3, "both", count=8, shape=SHAPE))
    down, up = (fit._pairs(way, "pairs", 0, 8) for way in ("decode", "encode"))
    assert torch.equal(down.low, up.low)
    exact = odeddim.encode(up.low, "ab4", model=MIXTURE, steps=100).xbar
    assert torch.allclose(exact, up.high, rtol=1e-4, atol=1e-3)
    assert float((down.high - exact).abs().max()) > 3 * float((up.high - exact).abs().max())


# A fit that is stopped.


class Stopped(Exception):  # noqa: N818
    """In place of a kill."""


def test_a_fit_that_was_stopped_anywhere_ends_with_the_same_bits(tmp_path: Path) -> None:
    about: dict[str, Any] = {"steps": 3, "count": 8, "model": "exact-mixture", "shape": SHAPE, "direction": "both"}
    whole = jobs.fit(None, tmp_path / "whole.json", **about).plan

    path, done = tmp_path / "plan.json", 0.0
    for limit in (500, 8_000, 9_000, 10_500, math.inf):

        def progress(count: float, total: float, limit: float = limit) -> None:
            nonlocal done
            done = count
            if count > limit:
                raise Stopped

        try:
            jobs.fit(None, path, **about, progress=progress)
        except Stopped:
            assert not path.exists()
            assert (tmp_path / "plan.json.fit").is_dir()
    assert done > 0
    plan = Plan.load(path)
    assert plan == whole
    assert sorted(file.name for file in tmp_path.iterdir()) == ["plan.json", "whole.json"]

    before = path.stat().st_mtime_ns
    assert "already" in jobs.fit(None, path, **about).words
    assert path.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="overwrite=True"):
        jobs.fit(None, path, **{**about, "steps": 4})


@pytest.mark.parametrize("content", [b"{", b'"odeddim-other"'])
def test_a_folder_of_another_fit_is_left_alone(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "plan.json.fit"
    folder.mkdir()
    (folder / "fit.json").write_bytes(content)
    about: dict[str, Any] = {"steps": 2, "count": 8, "model": "exact-mixture", "shape": SHAPE}
    with pytest.raises(InputError, match=r"plan\.json\.fit.*overwrite=True"):
        jobs.fit(None, tmp_path / "plan.json", **about)
    assert (folder / "fit.json").read_bytes() == content
    jobs.fit(None, tmp_path / "plan.json", **about, overwrite=True)
    assert not folder.exists()


# What is refused.


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"steps": 0}, "steps of a fit must be a whole number from 1 to 20"),
        ({"steps": 21}, "as accurate"),
        ({"steps": 2.5}, "steps of a fit"),
        ({"direction": "up"}, "unknown direction"),
        ({"count": 4}, "count of a fit"),
        ({"end": "top"}, "unknown end"),
        ({"top": "gaussian:5"}, "unknown top of a fit"),
        ({"images": torch.zeros(10, *SHAPE)}, "too few"),
        ({"shape": None}, "takes any shape"),
    ],
)
def test_bad_input_is_one_sentence(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        odeddim.fit(MIXTURE, **{"steps": 3, "count": 8, "shape": SHAPE, **wrong})


def test_a_gaussian_that_is_asked_for_must_be_there() -> None:
    field = odeddim.VectorField(lambda x, t: x / 2, odeddim.Schedule.linear(), shape=SHAPE)
    with pytest.raises(InputError, match="no Gaussian of its data"):
        odeddim.fit(field, 3, count=8, top="gaussian")


def test_nodes_alone_take_no_direction(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"leave out direction=\.\.\."):
        jobs.fit(None, tmp_path / "plan.json", "ab2", 6, "encode", model="exact-mixture")


def test_the_notes_of_the_plan_hold_its_errors(tmp_path: Path) -> None:
    made = jobs.fit(None, tmp_path / "plan.json", steps=2, count=8, model="exact-mixture", shape=SHAPE)
    notes = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["notes"]
    assert notes["held out"][0]["median"] < notes["plain held out"][0]["median"]
    assert made.gains
    assert [row[1] for row in made.figures[1:]] == [notes["plain held out"][0]["solver"], "fitted"]
