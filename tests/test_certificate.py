"""Certificates against runs whose error is known; tolerances against every rung tried by hand, image by image."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import odeddim
from odeddim import solvers
from odeddim.analytic import GaussianMixture
from odeddim.api import decode, encode, integrate, plan
from odeddim.certificate import (
    BADNESS,
    CERTIFICATE,
    LADDER,
    Rung,
    certificate,
    certificate_of_rungs,
    certify,
    coarser,
    decode_as_encoded,
    decode_to,
    encode_to,
    evaluations,
    rms,
    worst,
)
from odeddim.field import VectorField
from odeddim.latents.quality import FIGURES, statistics
from odeddim.schedule import Schedule
from odeddim.types import BudgetExceeded, InputError, Solver, State

ENCODING = [name for name in solvers.names() if not solvers.get(name).stochastic]
ADAPTIVE = [name for name in ENCODING if solvers.get(name).adaptive]
FIXED = [name for name in ENCODING if not solvers.get(name).adaptive]
LOOSE = {"rtol": 1e-2, "atol": 1e-2}
SIGMA_1, SIGMA_T = Schedule.linear().sigma_min, Schedule.linear().sigma_max


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(block: int | None = None) -> VectorField:
    field = odeddim.load("exact-mixture")
    field.network_batch = block
    return field


def images(count: int, *shape: int, seed: int = 0) -> Tensor:
    """Of the model's own distribution: two modes at ±0.6, s = 0.15."""
    return noise(count, *shape, seed=seed).sign() * 0.6 + 0.15 * noise(count, *shape, seed=seed + 1)


def distance(a: Tensor, b: Tensor) -> list[float]:
    """rms of each image, written out."""
    rows = zip(a.double().flatten(1).tolist(), b.double().flatten(1).tolist(), strict=True)
    return [math.sqrt(math.fsum((u - v) ** 2 for u, v in zip(*row, strict=True)) / len(row[0])) for row in rows]


def equal(a: Tensor, b: Tensor) -> bool:
    """Bit for bit; NaN is NaN."""
    return a.dtype == b.dtype and torch.equal(a.nan_to_num(-9), b.nan_to_num(-9))


@functools.cache
def truth(shape: tuple[int, ...], seed: int, end: str) -> Tensor:
    """x_T of `images`: 800 steps of order 4, behind Euler's step to σ_1 if images lie at 0."""
    return encode(images(*shape, seed=seed), "rk4", model=mixture(), steps=800, grid="log", end=end).x


# What is said of a latent.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["euler", "ab3", "heun", "belm", "exact-euler", "tsit5-per-image", "dopri5"])
def test_figures_are_what_they_say(name: str, dtype: torch.dtype) -> None:
    """The latent is that of `encode`; round trip, statistics and evaluations as computed by hand."""
    field, x_0 = mixture(), images(3, 1, 3, 5).to(dtype)
    adaptive = solvers.get(name).adaptive
    how = {**LOOSE, "model": field} if adaptive else {"steps": 8, "model": field}
    state, figures = certify(x_0, name, **how)
    plain = encode(x_0, name, **how)
    assert torch.equal(state.xbar, plain.xbar)
    assert state.xbar.dtype == dtype
    assert tuple(figures) == CERTIFICATE == ("round_trip", "latent_error", "evaluations", *FIGURES)
    for key, values in figures.items():
        assert (values.shape, values.dtype, values.device.type) == ((3,), torch.float64, "cpu"), key
    trip = distance(decode(plain, name, **how), x_0)
    close = 1e-6 if dtype == torch.float32 else 1e-9  # the difference is one of the state's numbers
    assert figures["round_trip"].tolist() == pytest.approx(trip, rel=close, abs=1e-300)
    if solvers.get(name).family == "reversible":
        assert trip == [0.0] * 3
    for key, values in statistics(plain.x).items():
        assert equal(figures[key], values), key
    counted = plain.report.get("evaluations")
    if counted is not None:
        assert torch.equal(figures["evaluations"], counted.double())
    elif adaptive:
        assert bool(figures["evaluations"].isnan().all())
    else:
        field.reset()
        encode(x_0, name, **how)
        assert figures["evaluations"].tolist() == [field.nfe] * 3 == [field.rows / 3] * 3


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("name", ENCODING)
def test_every_row_of_the_table(name: str, end: str) -> None:
    """Also with looser tolerances than its own, 64 times over: none refuses them."""
    small = name in ("scipy-radau", "scipy-bdf", "scipy-lsoda")
    x_0 = images(2, 1, 1, 2).float() if small else images(2, 1, 2, 3).float()
    how = LOOSE if solvers.get(name).adaptive else {"steps": 8}
    state, figures = certify(x_0, name, model=mixture(), end=end, **how)
    assert state.sigma == pytest.approx(SIGMA_T)
    counts = figures.pop("evaluations")
    for key, values in figures.items():
        assert bool(torch.isfinite(values).all()), key
    assert float(figures["latent_error"].min()) > 0
    row, nodes = plan(Schedule.linear(), name, how.get("steps"), None, end)
    assert math.isnan(evaluations(row, nodes)) == (row.nfe is None)
    if row.nfe is not None:
        field = mixture()
        encode(x_0, name, model=field, end=end, **how)
        assert counts.tolist() == [evaluations(row, nodes)] * 2 == [field.nfe] * 2
    if row.reversible and row.family != "iterated":
        assert figures["round_trip"].tolist() == [0.0, 0.0]


RUNS = [
    *(
        (name, {"steps": steps})
        for name in ("euler", "heun", "ab2", "ab3", "dpmpp-2m", "belm")
        for steps in (16, 32, 64)
    ),
    *((name, {"steps": steps}) for name in ("exact-euler", "exact-ab2", "rk4", "unipc-2") for steps in (32, 64)),
    *(
        (name, {"rtol": tol, "atol": tol})
        for name in ("tsit5-per-image", "dpm-solver-23", "bosh3-per-image", "dopri5", "bosh3", "scipy-rk45")
        for tol in (1e-3, 1e-4, 1e-5)
    ),
]


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
def test_latent_errors_of_every_family_against_the_truth(end: str) -> None:
    """`pytest -s` prints the quantiles of estimate over true error: an order of magnitude, rather high than low."""
    shape, seed = (8, 1, 2, 4), 3
    exact = truth(shape, seed, end)
    ratios: dict[str, list[Tensor]] = {}
    for name, how in RUNS:
        state, figures = certify(images(*shape, seed=seed), name, model=mixture(), end=end, **how)
        true = torch.tensor(distance(state.x, exact), dtype=torch.float64)
        assert float(true.min()) > 1e-8  # above the reference's own error
        ratios.setdefault(solvers.get(name).family, []).append(figures["latent_error"] / true)
    every = {family: torch.cat(parts) for family, parts in ratios.items()}
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    print(f"\nend {end}: estimate / true error, quantiles {levels.tolist()} and the share below 0.5")
    for family, values in (*every.items(), ("all", torch.cat(list(every.values())))):
        quantiles = values.quantile(levels)
        low = float((values < 0.5).double().mean())
        print(f"{family:20s} {'  '.join(f'{value:6.2f}' for value in quantiles.tolist())}   {low:.3f}")
        assert 0.6 < float(quantiles[2]) < 40, family
        assert float(quantiles[0]) > 0.3, family
        assert low < 0.12, family
    assert float(torch.cat(list(every.values())).median()) < 4


@pytest.mark.parametrize("grid", ["linear", "trailing", "quadratic", "karras"])
@pytest.mark.parametrize("name", ["euler", "heun", "belm", "rk4"])
def test_a_long_first_step_is_part_of_the_error(name: str, grid: str) -> None:
    """Grids of whole labels begin with a long step of Euler's: with all others right, the latent is still wrong."""
    shape, seed = (6, 1, 2, 4), 5
    for steps in (20, 50):
        state, figures = certify(images(*shape, seed=seed), name, model=mixture(), steps=steps, grid=grid)
        true = distance(state.x, truth(shape, seed, "zero"))
        for found, right in zip(figures["latent_error"].tolist(), true, strict=True):
            assert 0.4 * right < found < 60 * right, (steps, found, right)


# The coarser runs.


@settings(max_examples=100, deadline=None)
@given(count=st.integers(1, 90), grid=st.sampled_from(["log", "karras", "linear", "quadratic"]), zero=st.booleans())
def test_coarser_nodes(count: int, grid: str, zero: bool) -> None:
    """Half and a quarter of the steps, some of the nodes, with both ends, and σ_1 where it is behind 0."""
    schedule = Schedule.linear()
    row, nodes = plan(schedule, "euler", count, grid, "zero" if zero else "sigma_min")
    fixed = int(zero and float(nodes[1]) == schedule.sigma_min)
    found = coarser(row, nodes, schedule.sigma_min)
    if count - fixed < 4:
        assert found == []
        return
    for part, (its_row, its_nodes) in zip((2, 4), found, strict=True):
        assert its_row is row
        assert set(its_nodes.tolist()) <= set(nodes.tolist())
        assert its_nodes[[0, -1]].tolist() == nodes[[0, -1]].tolist()
        assert bool((its_nodes.diff() > 0).all())
        if fixed:
            assert float(its_nodes[1]) == schedule.sigma_min
        assert len(its_nodes) - 1 == fixed + (count - fixed) // part
        if (count - fixed) % part == 0:
            assert its_nodes[fixed:].tolist() == nodes[fixed::part].tolist()


def test_coarser_nodes_of_one_s_own() -> None:
    own = torch.tensor([0.0, 0.05, 0.2, 0.9, 4.0, 30.0, SIGMA_T], dtype=torch.float64)
    row = solvers.get("euler")
    assert [nodes.tolist() for _, nodes in coarser(row, own, SIGMA_1)] == [own[::2].tolist(), [0.0, SIGMA_T]]
    assert [nodes[:2].tolist() for _, nodes in coarser(row, own, 0.05)] == [[0.0, 0.05]] * 2
    below = torch.tensor([SIGMA_1 / 2, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    assert [nodes.tolist() for _, nodes in coarser(row, below, SIGMA_1)] == [below[::2].tolist(), below[::4].tolist()]


@pytest.mark.parametrize("name", ["euler", "belm", "exact-euler", "ab3"])
@pytest.mark.parametrize(
    ("steps", "end", "known"), [(3, "sigma_min", False), (4, "sigma_min", True), (4, "zero", False), (5, "zero", True)]
)
def test_too_few_steps_for_an_error(name: str, steps: int, end: str, known: bool) -> None:
    _, figures = certify(images(2, 1, 2, 3), name, model=mixture(), steps=steps, grid="log", end=end)
    assert bool(figures["latent_error"].isfinite().all()) == known
    assert bool(figures["latent_error"].isnan().any()) != known
    assert bool(figures["round_trip"].isfinite().all())


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_rows_are_loosened_from_what_was_given(name: str) -> None:
    """And everything else that was given stays."""
    given = {"rtol": 3e-4, "max_nfe": 9000}
    row, nodes = plan(Schedule.linear(), name, settings=given)
    atol = inspect.signature(solvers.get(name).run).parameters["atol"].default
    for factor, (its_row, its_nodes) in zip((8, 64), coarser(row, nodes, SIGMA_1), strict=True):
        now = {key: value.default for key, value in inspect.signature(its_row.run).parameters.items()}
        assert (now["rtol"], now["atol"], now["max_nfe"]) == (3e-4 * factor, atol * factor, 9000)
        assert torch.equal(its_nodes, nodes)


def test_a_budget_that_is_used_up_is_told() -> None:
    with pytest.raises(BudgetExceeded, match="max_nfe = 40"):
        certify(images(2, 1, 2, 3), "tsit5-per-image", model=mixture(), max_nfe=40)


def test_certificates_need_an_encoding_solver() -> None:
    with pytest.raises(InputError, match="it can only decode"):
        certify(images(2, 1, 2, 3), "ddpm", model=mixture())


@pytest.mark.parametrize("name", ["ab3", "belm", "heun", "tsit5-per-image", "scipy-rk45"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_certificate_depends_on_no_neighbour(name: str, dtype: torch.dtype) -> None:
    field, x_0 = mixture(4), images(5, 3, 5, 7).to(dtype)
    how = LOOSE if solvers.get(name).adaptive else {"steps": 9}
    _, whole = certify(x_0, name, model=field, **how)
    for i in range(5):
        for key, value in certify(x_0[i : i + 1], name, model=field, **how)[1].items():
            assert equal(value, whole[key][i : i + 1]), key


def test_distances_do_not_depend_on_batch_or_threads() -> None:
    """torch's own sum of 3×128×128 squares differs in its last digits between one image and eight on two threads."""
    x = noise(8, 3, 128, 128).float()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = rms(x)
        alone = torch.cat([rms(x[i : i + 1]) for i in range(8)])
    finally:
        torch.set_num_threads(threads)
    assert together.tolist() == alone.tolist() == rms(x).tolist()
    assert together.tolist() == rms(x.to(memory_format=torch.channels_last)).tolist()
    assert together.tolist() == pytest.approx(distance(x, torch.zeros_like(x)), rel=1e-12)


def test_certificates_of_latents_that_are_there() -> None:
    """The same figures as when they were made; of latents that are not the images', bad ones."""
    field, x_0 = mixture(), images(3, 1, 3, 5)
    row, nodes = plan(field.schedule, "belm", 12)
    state, figures = certify(x_0, row, model=field, grid=nodes)
    again = certificate(x_0, state, row, nodes, field, figures["evaluations"])
    assert all(equal(again[key], figures[key]) for key in CERTIFICATE)
    noisy = dataclasses.replace(state, xbar=state.xbar + 0.5 * math.sqrt(1 + state.sigma**2) * noise(*state.xbar.shape))
    wrong = certificate(x_0, noisy, row, nodes, field, figures["evaluations"])
    assert bool((wrong["round_trip"] > 0.01).all())
    assert wrong["latent_error"].tolist() > [0.1] * 3


# Which are the worst.


def test_worst_first() -> None:
    given = torch.tensor([3.1, math.nan, 2.0, 5.0, 3.0, 2.0], dtype=torch.float64)
    expected = {
        "round_trip": [1, 3, 0, 4, 2, 5],
        "latent_error": [1, 3, 0, 4, 2, 5],
        "evaluations": [1, 3, 0, 4, 2, 5],
        "norm": [1, 3, 0, 4, 2, 5],
        "mean": [1, 3, 0, 4, 2, 5],
        "variance": [1, 3, 0, 4, 2, 5],
        "kurtosis": [1, 3, 2, 5, 0, 4],
        "autocorrelation": [1, 3, 0, 4, 2, 5],
        "normality": [1, 2, 5, 4, 0, 3],
    }
    assert set(expected) == set(CERTIFICATE) == set(BADNESS)
    for by, order in expected.items():
        assert worst({by: given}, by).tolist() == order, by
    assert worst({"mean": torch.tensor([0.1, -0.5, 0.3])}, "mean").tolist() == [1, 2, 0]
    assert worst({"norm": torch.tensor([1.1, 0.5, 1.3])}, "norm").tolist() == [1, 2, 0]
    with pytest.raises(InputError, match="did you mean round_trip"):
        worst({"round_trip": given}, "round-trip")


# As many steps as a tolerance asks for.


def rungs_of(name: str, counts: Sequence[int], end: str = "sigma_min") -> tuple[Solver, list[Rung]]:
    return solvers.get(name), [(count, plan(Schedule.linear(), name, count, None, end)[1]) for count in counts]


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["euler", "ab3", "heun", "dpmpp-2m"]),
    tolerance=st.floats(-4.0, 0.0).map(lambda power: 10.0**power),
    count=st.integers(1, 5),
    seed=st.integers(0, 50),
    end=st.sampled_from(["zero", "sigma_min"]),
)
def test_encoding_to_a_tolerance_takes_the_fewest_steps(
    name: str, tolerance: float, count: int, seed: int, end: str
) -> None:
    """Each image alone on each rung, by hand: the first that keeps it, or the last; everything spent is counted."""
    row, rungs = rungs_of(name, (3, 6, 12, 24), end)
    field, x_0 = mixture(4), images(count, 1, 2, 3, seed=seed)
    state, figures = encode_to(tolerance, x_0, row, rungs, field)
    assert state.sigma == pytest.approx(SIGMA_T)
    for i in range(count):
        image, spent = x_0[i : i + 1], 0
        for steps, nodes in rungs:  # noqa: B007 - the last one is compared
            field.reset()
            there = integrate(field, State(image, float(nodes[0])), nodes, row)
            (error,) = distance(integrate(field, there, nodes.flip(0), row).xbar, image)
            spent += field.rows
            if error <= tolerance:
                break
        assert int(state.report["steps"][i]) == steps
        assert int(state.report["evaluations"][i]) == spent
        assert float(figures["round_trip"][i]) == pytest.approx(error, rel=1e-9)
        assert torch.equal(state.xbar[i : i + 1], there.xbar)
        alone, its = encode_to(tolerance, image, row, rungs, field)
        assert torch.equal(alone.xbar, state.xbar[i : i + 1])
        assert float(its["round_trip"][0]) == float(figures["round_trip"][i])
        assert {key: value.tolist() for key, value in alone.report.items()} == {
            key: value[i : i + 1].tolist() for key, value in state.report.items()
        }


def test_a_tolerance_sorts_images_into_rungs() -> None:
    """The ladder itself; and latents with steps of their own decode to the round trip that was promised."""
    row, rungs = rungs_of("ab3", LADDER)
    field, x_0 = mixture(4), images(12, 1, 2, 2, seed=4).float()
    tolerance = 2e-3
    field.reset()
    state, figures = encode_to(tolerance, x_0, row, rungs, field)
    assert int(state.report["evaluations"].sum()) == field.rows
    assert len(set(state.report["steps"].tolist())) >= 2
    assert bool((figures["round_trip"] <= tolerance).all())
    nodes_of = dict(rungs).__getitem__
    again = decode_as_encoded(state, row, nodes_of, field)
    assert distance(again, x_0) == pytest.approx(figures["round_trip"].tolist(), rel=1e-6)
    whole = certificate_of_rungs(x_0, state, row, nodes_of, field)
    assert tuple(whole) == CERTIFICATE
    assert torch.equal(whole["round_trip"], figures["round_trip"])
    assert torch.equal(whole["evaluations"], state.report["evaluations"].double())
    for i, steps in enumerate(state.report["steps"].tolist()):
        alone = State(state.xbar[i : i + 1], state.sigma)
        spent = state.report["evaluations"][i : i + 1]
        for key, value in certificate(x_0[i : i + 1], alone, row, nodes_of(steps), field, spent).items():
            assert equal(value, whole[key][i : i + 1]), key


def test_what_no_rung_reaches_has_the_last() -> None:
    row, rungs = rungs_of("euler", (2, 4))
    x_0 = images(3, 1, 2, 2)
    state, figures = encode_to(1e-12, x_0, row, rungs, mixture())
    assert state.report["steps"].tolist() == [4] * 3
    assert state.report["evaluations"].tolist() == [2 * (2 + 4)] * 3
    assert bool((figures["round_trip"] > 1e-12).all())
    assert torch.equal(state.xbar, encode(x_0, "euler", model=mixture(), grid=rungs[-1][1]).xbar)


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("name", [name for name in FIXED if solvers.get(name).reversible])
def test_a_tolerance_says_nothing_of_rows_that_come_back_exactly(name: str, end: str) -> None:
    row, rungs = rungs_of(name, (4, 8), end)
    field = mixture()
    with pytest.raises(InputError, match="comes back exactly with any number of steps"):
        encode_to(1e-3, images(2, 1, 2, 2), row, rungs, field)
    assert field.nfe == 0


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(["euler", "ab3", "heun"]),
    tolerance=st.floats(-4.0, 0.0).map(lambda power: 10.0**power),
    seed=st.integers(0, 50),
)
def test_decoding_to_a_tolerance_doubles_until_little_changes(name: str, tolerance: float, seed: int) -> None:
    """By hand, image by image, as above: the first rung whose image is near that of the rung before, or the last."""
    row, rungs = rungs_of(name, (3, 6, 12, 24))
    field = mixture(4)
    state = encode(images(3, 1, 2, 3, seed=seed), "rk4", model=field, steps=40, end="sigma_min")
    found, steps, change = decode_to(tolerance, state, row, rungs, field)
    for i in range(3):
        before, apart = None, math.inf
        for count, nodes in rungs:  # noqa: B007 - the last one is compared
            now = integrate(field, State(state.xbar[i : i + 1], state.sigma), nodes.flip(0), row).xbar
            if before is not None:
                (apart,) = distance(now, before)
            before = now
            if apart <= tolerance:
                break
        assert int(steps[i]) == count
        assert float(change[i]) == pytest.approx(apart, rel=1e-9)
        assert torch.equal(found[i : i + 1], now)
    assert bool((change[steps < 24] <= tolerance).all())


def test_decoding_to_a_tolerance_starts_from_the_latent_alone() -> None:
    """What an exact way back keeps belongs to one list of nodes; one rung alone has nothing to be compared with."""
    field, x_0 = mixture(), images(2, 1, 2, 3)
    state = encode(x_0, "belm", model=field, steps=20)
    row, rungs = rungs_of("belm", (10, 20), "zero")
    found, steps, change = decode_to(1e-12, state, row, rungs, field)
    plain = State(state.xbar, state.sigma)
    assert torch.equal(found, decode(plain, "belm", model=field, steps=20))
    assert steps.tolist() == [20, 20]
    assert min(distance(found, x_0)) > 1e-9
    found, steps, change = decode_to(1e9, state, row, rungs[:1], field)
    assert (steps.tolist(), change.tolist()) == ([10, 10], [math.inf] * 2)


def test_another_model() -> None:
    """A mixture of whole images on the cosine schedule: estimates and tolerances hold there too."""
    means = (noise(8, 1, 6, 6, seed=1) * 0.6).clamp(-0.6, 0.6)
    schedule = Schedule.cosine()
    field = VectorField(GaussianMixture(means, 0.2).network(schedule), schedule)
    x_0 = means[:5] + 0.2 * noise(5, 1, 6, 6, seed=2)
    exact = encode(x_0, "rk4", model=field, steps=800, grid="log").x
    for name in ("ab2", "belm", "heun"):
        state, figures = certify(x_0, name, model=field, steps=32)
        ratios = figures["latent_error"] / torch.tensor(distance(state.x, exact), dtype=torch.float64)
        assert float(ratios.min()) > 0.5, name
        assert float(ratios.max()) < 60, name
    rungs = [(count, plan(schedule, "ab3", count, None, "sigma_min")[1]) for count in LADDER]
    state, figures = encode_to(1e-3, x_0, solvers.get("ab3"), rungs, field)
    assert bool((figures["round_trip"] <= 1e-3).all())
