"""The league: its figures against an Euler of its own on a closed form, who takes part, places, and what it prints."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import odeddim
from odeddim import solvers
from odeddim.bench import league as bench
from odeddim.bench import solutions
from odeddim.bench.entrants import draw, longest, needed
from odeddim.bench.harness import Entry, Harness
from odeddim.bench.standings import give_places, reversals, standings
from odeddim.bench.tables import Table
from odeddim.checks.whiteness import statistics
from odeddim.plans import Plan
from odeddim.types import InputError, Solver, State

SHAPE = (1, 4, 4)
VARIANCE = 0.25  # of the data of exact-gaussian


@pytest.fixture(autouse=True)
def coarser(monkeypatch: pytest.MonkeyPatch) -> None:
    """The references of exact fields need no 200 steps."""
    monkeypatch.setattr(bench, "REFERENCE_STEPS", 60)


def harness(folder: Path, model: str = "exact-gaussian") -> Harness:
    return Harness(odeddim.load(model), folder, dtype=torch.float64)


def images(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).uniform(-1, 1, (count, *SHAPE)))


def played(place: Harness, names: str, evaluations: tuple[int, ...] = (5,), **more: Any) -> Table:
    x_0 = images(3)
    drawn = draw(place.model, evaluations, [Entry.parse(name) for name in names.split(",")], end="sigma_min", **more)
    return bench.league(place, lambda start, stop: x_0[start:stop], 3, drawn, statistics, seed=4, end="sigma_min")


def exact(xbar: np.ndarray[Any, Any], here: float, there: float) -> np.ndarray[Any, Any]:
    """x̄ of data N(0, s²) moves as √(s² + σ²)."""
    return xbar * math.sqrt((VARIANCE + there**2) / (VARIANCE + here**2))


def euler(xbar: np.ndarray[Any, Any], sigmas: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    for here, there in itertools.pairwise(sigmas):
        xbar = xbar + (there - here) * here * xbar / (VARIANCE + here**2)
    return xbar


def rms(difference: np.ndarray[Any, Any]) -> list[float]:
    return sorted(np.sqrt((difference**2).mean(axis=(1, 2, 3))).tolist())


def test_the_figures_are_those_of_a_script_of_its_own(tmp_path: Path) -> None:
    """Euler over 5 even steps in log σ and the closed form, both written here: all figures of three images."""
    place = harness(tmp_path)
    low, high = place.model.schedule.sigma_min, place.model.schedule.sigma_max
    (row,) = played(place, "euler@log").rows
    sigmas = np.exp(np.linspace(math.log(low), math.log(high), 6))
    x_0, x_T = images(3).numpy(), odeddim.noise(3, SHAPE, seed=4).double().numpy()
    scale = math.sqrt(1 + high**2)
    latents, truth = euler(x_0, sigmas) / scale, exact(x_0, low, high) / scale
    expected = {
        "latent": rms(latents - truth),
        "round_trip": rms(euler(latents * scale, sigmas[::-1]) - x_0),
        "decoded": rms(euler(x_T * scale, sigmas[::-1]) - exact(x_T * scale, high, low)),
        "norm": rms(latents),
    }
    for name, each in expected.items():
        assert [row[f"{name}_10"], row[name], row[f"{name}_90"]] == pytest.approx(each, rel=1e-4), name
    moved = latents - latents.mean(axis=(1, 2, 3), keepdims=True)
    across, down = moved[..., 1:] * moved[..., :-1], moved[..., 1:, :] * moved[..., :-1, :]
    pairs = (across.sum(axis=(1, 2, 3)) + down.sum(axis=(1, 2, 3))) / (across[0].size + down[0].size)
    assert row["autocorrelation"] == pytest.approx(float(np.median(pairs / (moved**2).mean(axis=(1, 2, 3)))), rel=1e-9)
    assert (row["budget"], row["steps"], row["encode_evaluations"], row["decode_evaluations"]) == (5, 5, 5, 5)
    assert row["signs"] == 1  # of a Gaussian around 0 every method keeps the signs
    assert row["encode_seconds"] > 0
    assert row["decode_seconds"] > 0


def test_signs_that_are_known() -> None:
    truth = torch.tensor([[1.0, -1.0, 2.0, -0.5], [1.0, 1.0, 1.0, 1.0]])
    found = bench.same_signs(torch.tensor([[0.01, -9.0, -2.0, 0.5], [1.0, 2.0, 3.0, -1e-9]]), truth)
    assert found.tolist() == [0.5, 0.75]


def test_signs_are_those_of_the_latents_of_the_run(tmp_path: Path) -> None:
    """Counted from `encode` and from a fine run, on a field on which Euler with few steps gets some of them wrong."""
    place = harness(tmp_path, "exact-mixture")
    (row,) = played(place, "euler@linear", (6,)).rows
    how: dict[str, Any] = {"model": place.model, "end": "sigma_min"}
    truth = odeddim.encode(images(3), "rk4", steps=200, grid="log", **how).x
    found = odeddim.encode(images(3), "euler", steps=6, grid="linear", **how).x
    shares = sorted(sum((found[i] > 0).flatten() == (truth[i] > 0).flatten()).item() / 16 for i in range(3))
    assert shares[0] < 1
    assert [row["signs_10"], row["signs"], row["signs_90"]] == shares


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
def test_the_reference_is_the_closed_form(end: str) -> None:
    """Of order 4, in both directions, from images at either end."""
    model = odeddim.load("exact-gaussian")
    low, high = model.schedule.sigma_min, model.schedule.sigma_max
    x, scale = images(2), math.sqrt(1 + high**2)
    # Below σ_1 the network has the label of σ_1: at σ = 0 it takes the image for an x = x̄/√(1+σ_1²) there.
    slope = low * x.numpy() * math.sqrt(1 + low**2) / (VARIANCE + low**2)
    first = x.numpy() + low * slope * (end == "zero")
    up, last = exact(first, low, high) / scale, exact(x.numpy() * scale, high, low)
    down = last - low * low * last / (VARIANCE + low**2) * (end == "zero")
    errors = []
    for steps in (20, 40):
        found = solutions.encoded(model, x, steps, end), solutions.decoded(model, x, steps, end)
        errors.append(
            [float(np.abs(f.numpy() - e).max() / np.abs(e).max()) for f, e in zip(found, (up, down), strict=True)]
        )
    for coarse, fine in zip(*errors, strict=True):
        assert fine < 2e-4
        assert math.log2(coarse / fine) == pytest.approx(4, abs=0.5)


def test_a_row_that_adds_noise_is_measured_by_what_it_decodes(tmp_path: Path) -> None:
    place = harness(tmp_path)
    table = played(place, "euler@log,ddpm")
    first, second = table.rows
    assert (first["solver"], second["solver"]) == ("euler", "ddpm")
    assert {name for name, value in second.items() if value is None} == {
        "encode_evaluations", "encode_seconds", "round_trip_place", "latent_place",
        *(f"{name}{part}" for name in ("round_trip", "latent", "signs", *bench.WHITE) for part in ("", "_10", "_90")),
    }  # fmt: skip
    assert second["decode_evaluations"] == 5
    sample = odeddim.sample(3, "ddpm", model=place.model, seed=4, steps=5, shape=SHAPE, end="sigma_min").numpy()
    low, high = place.model.schedule.sigma_min, place.model.schedule.sigma_max
    x_T = odeddim.noise(3, SHAPE, seed=4).double().numpy() * math.sqrt(1 + high**2)
    each = rms(sample - exact(x_T, high, low))
    assert [second["decoded_10"], second["decoded"], second["decoded_90"]] == pytest.approx(each, rel=1e-4)
    assert "remark" not in second  # it did not fail: it cannot


def test_what_is_measured_is_not_measured_again(tmp_path: Path) -> None:
    place = harness(tmp_path)
    network, calls = place.model.eps, itertools.count(1)
    stop = 1000  # in the second run

    def eps(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if next(calls) == stop:
            raise KeyboardInterrupt
        return network(x, t)

    def counted(names: str, evaluations: tuple[int, ...]) -> tuple[Table, int]:
        before = next(calls)
        table = played(place, names, evaluations)
        return table, next(calls) - before - 1

    place.model.eps = eps
    with pytest.raises(KeyboardInterrupt):
        played(place, "euler@log,belm", (60,))
    assert len(list((tmp_path / "cells").glob("*.h5"))) == 2  # the reference, and the first of two runs
    first, count = counted("euler@log,belm", (60,))
    assert count == 3 * 60
    assert counted("euler@log,belm", (60,)) == (first, 0)
    more, count = counted("euler@log,belm,ddpm", (5, 60))
    assert count == 2 * 3 * 5 + 5 + 60
    places = ("round_trip_place", "latent_place", "decoded_place")
    for row in first.rows:
        (again,) = (r for r in more.rows if (r["budget"], r["solver"]) == (row["budget"], row["solver"]))
        assert {k: v for k, v in again.items() if k not in places} == {k: v for k, v in row.items() if k not in places}


@pytest.mark.parametrize("budget", [1, 5, 8])
def test_every_row_takes_the_most_steps_that_keep_the_budget(budget: int) -> None:
    """Counted in runs, of which none of the table is forgotten."""
    model = odeddim.load("exact-gaussian")
    found = {entrant.plan.solver.name: entrant.plan for entrant in draw(model, [budget]).entrants}
    for name, row in solvers.SOLVERS.items():
        if row.nfe is None:
            assert name not in found
            continue
        if name not in found:
            assert needed(Plan.of(model.schedule, row, 1)) > budget
            continue
        steps = found[name].steps
        assert steps is not None
        assert found[name].grid == row.grid
        for more, keeps in ((0, True), (1, False)):
            plan, calls = Plan.of(model.schedule, row, steps + more), []
            ends = [plan.top] if row.stochastic else [plan.top, float(plan.nodes[0])]
            for sigma in ends:
                seen: list[float] = []

                def field(sigma: torch.Tensor, xbar: torch.Tensor, seen: list[float] = seen) -> torch.Tensor:
                    seen.append(float(sigma))
                    return xbar * 0

                field.moments = model.moments  # type: ignore[attr-defined]
                odeddim.integrate(field, State(torch.zeros(1, 1, dtype=torch.float64), sigma), plan)
                calls.append(len(seen))
            assert (max(calls) <= budget) is keeps, (name, steps + more, calls)


def test_one_method_under_two_names_is_measured_once(tmp_path: Path) -> None:
    place = harness(tmp_path)
    table = played(place, "euler@linear,euler@log,dpm-solver-1@log,dpm-solver-1@linear,ab2@log")
    said = {(row["solver"], row["grid"]): row["same_as"] for row in table.rows}
    assert said == {
        ("euler", "linear"): "", ("euler", "log"): "", ("ab2", "log"): "",
        ("dpm-solver-1", "log"): "euler@log", ("dpm-solver-1", "linear"): "euler@linear",
    }  # fmt: skip
    figures = {key: row["latent"] for row in table.rows for key in [(row["solver"], row["grid"])]}
    assert figures["dpm-solver-1", "log"] == figures["euler", "log"] != figures["euler", "linear"]
    assert figures["dpm-solver-1", "linear"] == figures["euler", "linear"]
    assert sorted(row["latent_place"] for row in table.rows if not row["same_as"]) == [1, 2, 3]
    assert {row["latent_place"] for row in table.rows if row["same_as"]} == {None}
    assert len(list((tmp_path / "cells").glob("league-*.h5"))) == 3


def broken(row: Solver, ways: tuple[str, ...], single: bool) -> Solver:
    """The row, refusing to run in these directions: always, or only in float32."""

    def run(field: Any, state: State, sigmas: torch.Tensor) -> State:
        way = "up" if sigmas[-1] > sigmas[0] else "down"
        if way in ways and (state.xbar.dtype == torch.float32 or not single):
            raise InputError(f"{way} is broken")
        return row.run(field, state, sigmas)

    return replace(row, name="broken", run=run, instructions=None, observable=False)


def test_a_row_that_cannot_run_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all rows with the reason; one that is named is refused, one that has one direction keeps that one."""
    model = odeddim.load("exact-gaussian")
    monkeypatch.setitem(solvers.SOLVERS, "broken", broken(solvers.get("ab2"), ("up", "down"), single=False))
    drawn = draw(model, [5, 8])
    assert drawn.left_out == {"broken": "down is broken"}
    assert "broken" not in {entrant.plan.solver.name for entrant in drawn.entrants}
    with pytest.raises(InputError, match="down is broken"):
        draw(model, [5], [Entry("broken")])
    monkeypatch.setitem(solvers.SOLVERS, "broken", broken(solvers.get("ab2"), ("up",), single=False))
    place = Harness(model, tmp_path, dtype=torch.float32)
    (row,) = played(place, "broken").rows
    assert row["remark"] == "up is broken"
    assert row["latent"] is row["round_trip"] is row["latent_place"] is None
    assert row["decoded"] > 0
    assert row["decoded_place"] == 1


def test_plans_take_part_with_the_smallest_number_that_they_keep(tmp_path: Path) -> None:
    place = harness(tmp_path)
    plan = Plan.of(place.model.schedule, "ab2", 6, "karras", "sigma_min")
    table = played(place, "ab2@log", (5, 8), plans={"mine.json": plan})
    assert sorted((row["budget"], row["grid"], row["steps"]) for row in table.rows) == [
        (5, "log", 5), (8, "log", 8), (8, "mine.json", 6),
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"mine.json takes 6 evaluations, more than 5: add 6 to evaluations=..."):
        played(place, "ab2@log", (5,), plans={"mine.json": plan})
    with pytest.raises(InputError, match=r"on mine.json goes from the end 'zero'"):
        played(place, "ab2@log", (8,), plans={"mine.json": Plan.of(place.model.schedule, "ab2", 6)})
    low = Plan.of(place.model.schedule, "ab2", 6, end="sigma_min", top=20.0)
    with pytest.raises(InputError, match=r"to σ = 20, the league from 'sigma_min' to the model's σ_T = 157"):
        played(place, "ab2@log", (8,), plans={"mine.json": low})
    plan.save(tmp_path / "nodes.json")
    assert played(place, f"ab3@{tmp_path / 'nodes.json'}", (8,)).rows[0]["steps"] == 6
    (row,) = played(place, str(tmp_path / "nodes.json"), (8,)).rows
    assert (row["solver"], row["grid"], row["steps"]) == (plan.solver.name, str(tmp_path / "nodes.json"), 6)
    with pytest.raises(InputError, match="'dopri5' has no fixed number of evaluations"):
        played(place, "dopri5")


def test_the_longest_run_of_a_row_that_needs_more_than_the_budget() -> None:
    schedule = odeddim.Schedule.linear()
    assert longest(schedule, solvers.get("mf-rk4"), 1) is None
    heun = longest(schedule, solvers.get("heun"), 6, "log")
    assert heun is not None
    assert (heun.steps, heun.evaluations) == (3, 5)  # the first step, from σ = 0, is Euler's


def ranked() -> list[dict[str, Any]]:
    """Five runs of 10 evaluations, the last of which is another name of the first, and one of 5."""
    made: list[dict[str, Any]] = []
    for name, trip, latent, decoded, same, budget in (
        ("a", 0.0, 0.5, 0.3, "", 10), ("b", 0.0, 0.1, 0.2, "", 10), ("c", 0.2, 0.3, None, "", 10),
        ("d", 0.1, 0.4, 0.1, "", 10), ("e", 0.0, 0.5, 0.3, "a@log", 10), ("a", 0.3, 0.2, 0.4, "", 5),
        ("noisy", None, None, 0.9, "", 10),
    ):  # fmt: skip
        figures = {"round_trip": trip, "latent": latent, "decoded": decoded, "signs": latent and 1 - latent}
        row: dict[str, Any] = {"budget": budget, "solver": name, "grid": "log", "same_as": same}
        row |= {f"{key}{part}": value for key, value in figures.items() for part in ("", "_10", "_90")}
        made.append(row | dict.fromkeys(("round_trip_place", "latent_place", "decoded_place")))
    give_places(made)
    return made


def test_places_and_reversals_that_are_known() -> None:
    rows = ranked()
    places = [(row["solver"], row["round_trip_place"], row["latent_place"], row["decoded_place"]) for row in rows]
    assert places == [
        ("a", 1, 4, 3), ("b", 1, 1, 2), ("c", 4, 2, None), ("d", 3, 3, 1), ("e", None, None, None), ("a", 1, 1, 1),
        ("noisy", None, None, 4),
    ]  # fmt: skip
    # Of the pairs ab (equal trips), ac, ad, bc, bd, cd, the latent turns ac, ad and cd around: 3 of 5.
    assert reversals(rows) == [
        "10 evaluations, 4 runs: the latent orders 60% of the pairs of runs otherwise than the round trip does "
        "(100% among those that do not come back exactly); a@log has place 1 by the round trip (0) and place 4 by the "
        "latent (0.5); c@log has place 4 by the round trip (0.2) and place 2 by the latent (0.3)"
    ]


def test_the_standings_list_the_best_of_each() -> None:
    rows = [row for row in ranked() if row["budget"] == 10]
    columns = tuple(bench.Column(name, name) for name in rows[0])
    short = standings(Table("league", "The league", {}, columns, tuple(rows), ("kept", *reversals(rows))), 2)
    assert [(row["by"], row["place"], row["run"], row["median"]) for row in short.rows] == [
        ("round trip", 3, "d@log", 0.1), ("round trip", 4, "c@log", 0.2), ("latent", 1, "b@log", 0.1),
        ("latent", 2, "c@log", 0.3), ("decoded", 1, "d@log", 0.1), ("decoded", 2, "b@log", 0.2),
        ("signs", 1, "b@log", 0.9), ("signs", 2, "c@log", 0.7),
    ]  # fmt: skip
    assert short.notes == ("with a round trip of exactly 0, not listed by it: 2 of 10 evaluations", "kept")


def test_the_command_prints_the_standings_and_the_reversals(run, here: Path) -> None:  # type: ignore[no-untyped-def]
    words = (
        "bench",
        "league",
        "-n",
        2,
        "--solvers",
        "euler@log,ab2,belm",
        "--evaluations",
        "4,6",
        "--model",
        "exact-mixture",
    )
    code, out, err = run(*words, "--best", 1)
    assert code == 0, err
    assert "trip #" in out
    assert "belm@log" in out
    assert "4 evaluations, 3 runs: the latent orders" in out
    assert {path.name for path in Path("bench").glob("league.*")} == {
        f"league.{kind}" for kind in ("h5", "json", "csv", "svg", "png")
    }
    code, out, _ = run(*words, "--csv")
    assert len(out.splitlines()) == 7
    assert out.startswith("budget,solver,grid,steps,")
