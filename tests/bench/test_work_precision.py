"""Work and precision against solutions that are known, the cheapest run, and presets."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import odeddim
from odeddim.bench import cheapest as search
from odeddim.bench import work_precision as bench
from odeddim.bench.harness import Entry, Harness
from odeddim.bench.measures import mean_square
from odeddim.latents.latent_file import LatentFile
from odeddim.plans import Plan
from odeddim.types import InputError

SHAPE = (1, 4, 4)


def harness(folder: Path, model: str = "exact-gaussian", **more: Any) -> Harness:
    return Harness(odeddim.load(model), folder, dtype=torch.float64, **more)


def test_the_solutions_are_the_closed_form_of_a_gaussian(tmp_path: Path) -> None:
    """x̄ of data N(0, s²) moves as √(s² + σ²): decoded from σ_T to σ_1, and encoded back again."""
    place = harness(tmp_path)
    exact = bench.truth(place, 3, SHAPE, seed=5, end="sigma_min", steps=100)
    low, high = place.model.schedule.sigma_min, place.model.schedule.sigma_max
    x_T = odeddim.noise(3, SHAPE, seed=5).double() * math.sqrt(1 + high**2)
    shrink = math.sqrt((0.25 + low**2) / (0.25 + high**2))
    error = mean_square(exact.images - shrink * x_T).mean().sqrt()
    assert error < 1e-5
    assert error < exact.decode < 1e-4  # what it says of itself
    back = mean_square(exact.latents - exact.images / shrink).mean().sqrt() / high
    assert back < exact.encode < 1e-4


def measured(place: Harness, solvers: str, steps: tuple[int, ...], **more: Any) -> list[Any]:
    exact = bench.truth(place, 3, SHAPE, end="sigma_min", steps=400)
    entries = [Entry.parse(name) for name in solvers.split(",")]
    runs = bench.runs_of(place.model, entries, steps, more.pop("tolerances", (1e-3,)), "sigma_min", more)
    return list(bench.work_precision(place, runs, exact).rows)


@pytest.mark.parametrize(("solver", "order"), [("euler@log", 1), ("ab2@log", 2), ("ab3@log", 3), ("heun@log", 2)])
def test_observed_orders(tmp_path: Path, solver: str, order: int) -> None:
    rows = measured(harness(tmp_path, "exact-mixture"), solver, (40, 80, 160))
    assert rows[0]["decode_order"] is None  # of one row there is none
    for row in rows[2:]:
        assert row["decode_order"] == pytest.approx(order, abs=0.5)
        assert row["encode_order"] == pytest.approx(order, abs=0.5)


def test_errors_evaluations_and_what_has_no_order(tmp_path: Path) -> None:
    place = harness(tmp_path)
    rows = measured(place, "euler@log,belm,dopri5", (10, 20), tolerances=(1e-2, 1e-6))
    assert [(row["solver"], row["steps"], row["tolerance"]) for row in rows] == [
        ("euler", 10, None), ("euler", 20, None), ("belm", 10, None), ("belm", 20, None),
        ("dopri5", None, 1e-2), ("dopri5", None, 1e-6),
    ]  # fmt: skip
    low, high = place.model.schedule.sigma_min, place.model.schedule.sigma_max
    x_T = odeddim.noise(3, SHAPE).double()
    exact = x_T * math.sqrt(1 + high**2) * math.sqrt((0.25 + low**2) / (0.25 + high**2))
    image = odeddim.solve(x_T, "euler", model=place.model, steps=20, grid="log", end="sigma_min")
    low, middle, high = sorted((image - exact).square().mean(dim=(1, 2, 3)).sqrt().tolist())  # of three images
    found = [rows[1][name] for name in ("decode_error_10", "decode_error", "decode_error_90")]
    assert found == pytest.approx([low, middle, high], rel=1e-3)
    assert [row["decode_evaluations"] for row in rows[:2]] == [10, 20]
    assert rows[5]["decode_error"] < rows[4]["decode_error"] / 10
    assert all(row["decode_seconds"] > 0 for row in rows)
    # Below what the solution is known to, an error says nothing.
    exact_rows = measured(place, "ab4@log", (200, 400))
    assert [row["encode_order"] for row in exact_rows] == [None, None]


def nine_in_ten(place: Harness, entry: Entry, steps: int, solutions: bench.Truth) -> float:
    """The error that nine in ten images of a set keep both ways, by runs of odeddim's functions alone."""
    model, end = place.model, solutions.end
    how = {"model": model, "steps": steps, "grid": entry.grid, "end": end}
    x_T = odeddim.noise(len(solutions.images), SHAPE, seed=solutions.seed).double()
    decoded = odeddim.solve(x_T, entry.solver, **how) - solutions.images
    state = odeddim.encode(solutions.images, entry.solver, **how)
    encoded = (state.xbar - solutions.latents) / model.schedule.sigma_max
    each = sorted(
        max(a, b)
        for a, b in zip(*(d.square().mean(dim=(1, 2, 3)).sqrt().tolist() for d in (decoded, encoded)), strict=True)
    )
    return each[math.ceil(0.9 * len(each)) - 1]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    """A harness for several tests: what one has measured, the others read."""
    return harness(tmp_path_factory.mktemp("bench"), "exact-mixture")


def two_sets(place: Harness) -> list[bench.Truth]:
    return [bench.truth(place, 12, SHAPE, seed=seed, end="sigma_min", steps=200) for seed in (0, 1)]


ENTRIES = [Entry("euler", "log"), Entry("ab2", "log"), Entry("heun", "log"), Entry("ab2", "quadratic")]


def test_the_fewest_steps_are_found(mixture: Harness) -> None:
    place, (exact, held) = mixture, two_sets(mixture)
    table, found = search.cheapest(place, 1e-2, ENTRIES, exact, held)
    best = table.rows[0]
    assert best["found"] == "yes"
    assert (found.solver.name, found.grid, found.steps) == (best["solver"], best["grid"], best["steps"])
    assert found.notes["evaluations"] == best["evaluations"]
    # What it says of both sets is so, and the error is kept on both.
    entry = Entry(found.solver.name, found.grid)
    first, second = (nine_in_ten(place, entry, found.steps, solutions) for solutions in (exact, held))
    assert (best["error"], best["second_error"]) == pytest.approx((first, second), rel=1e-6)
    assert max(first, second) <= 1e-2
    assert found.notes["error"] == best["second_error"]
    assert (
        f"12 images from seed 1, which the search did not use, both errors are at most {second:.2e}"
        in (found.notes["kept"])
    )
    assert f"the 12 from seed 0, which the search used, at most {first:.2e}; requested: 0.01" in found.notes["kept"]
    given_up = [row for row in table.rows if row["found"] == "more"]
    assert given_up
    assert all(row["error"] > 1e-2 for row in given_up)
    assert all(row["second_error"] is None for row in given_up)
    place.model.reset()
    assert search.cheapest(place, 1e-2, ENTRIES, exact, held)[1] == found
    assert place.model.nfe == 0


@pytest.mark.parametrize("entry", ENTRIES[:3], ids=str)
def test_four_percent_fewer_steps_do_not_keep_it(mixture: Harness, entry: Entry) -> None:
    place, (exact, _) = mixture, two_sets(mixture)
    kept = search.cheapest(place, 1e-2, [entry], exact, exact)[1]
    fewer = math.floor(kept.steps * (1 - search.CLOSE)) - 1
    assert nine_in_ten(place, entry, kept.steps, exact) <= 1e-2 < nine_in_ten(place, entry, fewer, exact)


def harder(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Make all errors on the set of seed 1 larger by a factor, as if its images were harder."""
    measured = bench.measured

    def inflated(place: Harness, run: Any, solutions: bench.Truth) -> Any:
        cell = measured(place, run, solutions)
        if solutions.seed == 1:
            cell |= {name: cell[name] * factor for name in ("decode_error", "encode_error")}
        return cell

    monkeypatch.setattr(search, "measured", inflated)


def test_what_fits_one_set_only_is_not_named(mixture: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fewest steps for one set err three times as much on a harder one: more steps are taken, or another run."""
    place, (exact, held) = mixture, two_sets(mixture)
    alone = search.cheapest(place, 1e-2, ENTRIES, exact, exact)[1]
    harder(monkeypatch, 3.0)
    table, found = search.cheapest(place, 1e-2, ENTRIES, exact, held)
    entry = Entry(found.solver.name, found.grid)
    assert 3 * nine_in_ten(place, entry, found.steps, held) == pytest.approx(found.notes["error"], rel=1e-6)
    assert found.notes["error"] <= 1e-2
    assert found.notes["evaluations"] > alone.notes["evaluations"]
    fits = [row for row in table.rows if row["found"] == "first" and row["second_error"] is not None]
    assert (alone.solver.name, alone.grid, alone.steps) in [(row["solver"], row["grid"], row["steps"]) for row in fits]
    assert all(row["error"] <= 1e-2 < row["second_error"] for row in fits)
    assert len(fits) < search.CHECKS


@pytest.mark.slow
def test_nothing_is_named_that_the_second_set_does_not_keep(
    run,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
) -> None:
    harder(monkeypatch, 1e6)
    size = ("-n", 2, "--model", "exact-mixture", "--size", "1,4,4")
    code, out, err = run("bench", "work-precision", *size, "--find", "3e-2", "--solvers", "euler@log,ab2@log")
    assert code == 2
    assert "no run keeps an error of 0.03 for nine images in ten of both sets" in err
    assert "the best, " in err
    assert not (here / "bench" / "plan.json").exists()
    assert not (here / "bench" / "cheapest.csv").exists()


def test_nothing_keeps_it_and_nothing_can_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = harness(tmp_path)
    monkeypatch.setattr(search, "LADDER", (5, 7))
    exact = bench.truth(place, 2, SHAPE, end="sigma_min", steps=100)
    with pytest.raises(InputError, match=r"none of these solvers keeps an error of 0\.0001 with up to 7 steps"):
        search.cheapest(place, 1e-4, [Entry("euler", "log")], exact, exact)
    monkeypatch.setattr(bench, "COARSEST", 20)
    monkeypatch.setattr(bench, "FINEST", 40)
    with pytest.raises(InputError, match="with 40 steps the solutions have errors up to"):
        bench.truth_for(place, 1e-9, 2, SHAPE, end="sigma_min")
    assert bench.truth_for(place, 1e-1, 2, SHAPE, end="sigma_min").run.steps == 20
    with pytest.raises(InputError, match="below the model's"):
        bench.runs_of(place.model, [Entry("ab2", "edm")], (5,), (), "zero", {})


def test_a_plan_is_found_and_encodes(run, here: Path) -> None:  # type: ignore[no-untyped-def]
    size = ("-n", 2, "--model", "exact-mixture", "--size", "1,4,4")
    code, out, err = run("bench", "work-precision", *size, "--find", "3e-2", "--solvers", "euler@log,ab2", "--seed", 3)
    assert code == 0, err
    found = Plan.load(here / "bench" / "plan.json")
    assert f"{found.solver.name} on {found.grid} with {found.steps} steps" in out
    kept = f"both errors are at most {found.notes['error']:.2e}"
    assert f"for nine in ten of 2 images from seed 4, which the search did not use, {kept}" in out
    assert "the 2 from seed 3, which the search used" in found.notes["kept"]
    assert found.notes["kept"] in out
    assert found.notes["model"] == "exact-mixture"
    command = ("-n", 2, "--model", "exact-mixture", "--plan", "bench/plan.json")
    assert run("encode", "-o", "z.h5", *command)[0] == 0
    with LatentFile(here / "z.h5") as file:
        made = file.provenance
        assert (made.solver, made.grid, made.steps, made.end) == (found.solver.name, found.grid, found.steps, "zero")
    code, out, err = run("decode", "z.h5", "-o", "x.h5", "--plan", "bench/plan.json")
    assert (code, err) == (0, "")
    assert f"{found.solver.name}, {found.steps} steps" in out
    code, out, err = run("sample", "-n", 2, "--size", "1,4,4", "-o", "s.h5", *command[2:])
    assert (code, err) == (0, "")
    for option in (("--steps", 9), ("--solver", "euler"), ("--grid", "log"), ("--tol", 1e-2), ("--end", "sigma_min")):
        code, out, err = run("encode", "-o", "y.h5", *command, *option)
        assert code == 2
        assert f"--plan says how to run: leave out {option[0]}" in err
    code, out, err = run("encode", "-n", 2, "-o", "y.h5", "--model", "exact-gaussian", "--plan", "bench/plan.json")
    assert code == 0
    assert "the plan was found for the model 'exact-mixture', not 'exact-gaussian'" in err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "something"}, "is no plan"),
        ({"version": 2}, "newer odeddim"),
        ({"version": True}, "newer odeddim"),
        ({"nodes": 5}, "nodes is missing or wrong"),
        ({"nodes": [1.0, 0.5]}, "must rise"),
        ({"nodes": ["a", "b"]}, "make the plan again"),
        ({"settings": {"self": 1}}, "no setting 'self'"),
        ({"settings": {"warmup": None}}, "no setting 'warmup'"),
        ({"settings": {"nosuch": 1}}, "no setting 'nosuch'"),
        ({"grid": ""}, "grid is missing or wrong"),
        ({"solver": None}, "solver is missing or wrong"),
        ({"solver": "nosuch"}, "unknown solver 'nosuch'"),
        ({"notes": 1}, "notes is missing or wrong"),
        ({"end": "nosuch"}, "unknown end"),
    ],
)
def test_a_plan_that_is_none(run, here: Path, change: dict[str, Any], words: str) -> None:  # type: ignore[no-untyped-def]
    odeddim.plan("exact-mixture", "ab2", steps=5).save(here / "p.json")
    content = {**json.loads((here / "p.json").read_text()), **change}
    (here / "p.json").write_text(json.dumps(content))
    code, out, err = run("encode", "-n", 1, "-o", "z.h5", "--model", "exact-mixture", "--plan", "p.json")
    assert code == 2
    assert words in err
    assert not (here / "z.h5").exists()
