"""Work and precision against solutions that are known, the cheapest run, and presets."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import odeddim
from odeddim import preset
from odeddim.bench import work_precision as bench
from odeddim.bench.stand import Entry, Stand
from odeddim.latents.store import LatentFile
from odeddim.types import InputError

SHAPE = (1, 4, 4)


def stand(folder: Path, model: str = "exact-gaussian", **more: Any) -> Stand:
    return Stand(odeddim.load(model), folder, dtype=torch.float64, **more)


def test_the_solutions_are_the_closed_form_of_a_gaussian(tmp_path: Path) -> None:
    """x̄ of data N(0, s²) moves as √(s² + σ²): decoded from σ_T to σ_1, and encoded back again."""
    place = stand(tmp_path)
    exact = bench.truth(place, 3, SHAPE, seed=5, end="sigma_min", steps=100)
    low, high = place.model.schedule.sigma_min, place.model.schedule.sigma_max
    x_T = odeddim.noise(3, SHAPE, seed=5).double() * math.sqrt(1 + high**2)
    shrink = math.sqrt((0.25 + low**2) / (0.25 + high**2))
    error = bench.mean_square(exact.images - shrink * x_T).mean().sqrt()
    assert error < 1e-5
    assert error < exact.decode < 1e-4  # what it says of itself
    back = bench.mean_square(exact.latents - exact.images / shrink).mean().sqrt() / high
    assert back < exact.encode < 1e-4


def measured(place: Stand, solvers: str, steps: tuple[int, ...], **more: Any) -> list[Any]:
    exact = bench.truth(place, 3, SHAPE, end="sigma_min", steps=400)
    entries = [Entry.parse(name) for name in solvers.split(",")]
    runs = bench.runs_of(place.model, entries, steps, more.pop("tolerances", (1e-3,)), "sigma_min", more)
    return list(bench.work_precision(place, runs, exact).rows)


@pytest.mark.parametrize(("solver", "order"), [("euler@log", 1), ("ab2@log", 2), ("ab3@log", 3), ("heun@log", 2)])
def test_observed_orders(tmp_path: Path, solver: str, order: int) -> None:
    rows = measured(stand(tmp_path, "exact-mixture"), solver, (40, 80, 160))
    assert rows[0]["decode_order"] is None  # of one row there is none
    for row in rows[2:]:
        assert row["decode_order"] == pytest.approx(order, abs=0.5)
        assert row["encode_order"] == pytest.approx(order, abs=0.5)


def test_errors_evaluations_and_what_has_no_order(tmp_path: Path) -> None:
    place = stand(tmp_path)
    rows = measured(place, "euler@log,belm,dopri5", (10, 20), tolerances=(1e-2, 1e-6))
    assert [(row["solver"], row["steps"], row["tolerance"]) for row in rows] == [
        ("euler", 10, None), ("euler", 20, None), ("belm", 10, None), ("belm", 20, None),
        ("dopri5", None, 1e-2), ("dopri5", None, 1e-6),
    ]  # fmt: skip
    low, high = place.model.schedule.sigma_min, place.model.schedule.sigma_max
    x_T = odeddim.noise(3, SHAPE).double()
    exact = x_T * math.sqrt(1 + high**2) * math.sqrt((0.25 + low**2) / (0.25 + high**2))
    image = odeddim.solve(x_T, "euler", model=place.model, steps=20, grid="log", end="sigma_min")
    assert rows[1]["decode_error"] == pytest.approx(float((image - exact).square().mean().sqrt()), rel=1e-3)
    assert [row["decode_evaluations"] for row in rows[:2]] == [10, 20]
    assert rows[5]["decode_error"] < rows[4]["decode_error"] / 10
    assert all(row["decode_seconds"] > 0 for row in rows)
    # Below what the solution is known to, an error says nothing.
    exact_rows = measured(place, "ab4@log", (200, 400))
    assert [row["encode_order"] for row in exact_rows] == [None, None]


def test_the_fewest_steps_are_found(tmp_path: Path) -> None:
    place = stand(tmp_path, "exact-mixture")
    exact = bench.truth_for(place, 1e-2, 3, SHAPE, end="sigma_min")
    entries = [Entry("euler", "log"), Entry("ab2", "log"), Entry("heun", "log"), Entry("ab2", "quadratic")]
    table, found = bench.cheapest(place, 1e-2, entries, exact)
    kept = {(row["solver"], row["grid"]): row for row in table.rows if row["found"] == "yes"}
    best = table.rows[0]
    assert (found.solver, found.grid, found.steps) == (best["solver"], best["grid"], best["steps"])
    assert found.evaluations == best["evaluations"] == min(row["evaluations"] for row in kept.values())
    assert found.error == max(best["decode_error"], best["encode_error"]) <= 1e-2
    for (solver, grid), row in kept.items():  # 4% fewer steps do not do
        fewer = math.floor(row["steps"] * (1 - bench.CLOSE)) - 1
        runs = bench.runs_of(place.model, [Entry(solver, grid)], (fewer,), (), "sigma_min", {})
        other = bench.work_precision(place, runs, exact).rows[0]
        assert max(other["decode_error"], other["encode_error"]) > 1e-2
    given_up = [row for row in table.rows if row["found"] == "more"]
    assert given_up
    assert all(max(row["decode_error"], row["encode_error"]) > 1e-2 for row in given_up)
    place.model.reset()
    assert bench.cheapest(place, 1e-2, entries, exact)[1] == found
    assert place.model.nfe == 0


def test_nothing_keeps_it_and_nothing_can_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = stand(tmp_path)
    monkeypatch.setattr(bench, "LADDER", (5, 7))
    exact = bench.truth(place, 2, SHAPE, end="sigma_min", steps=100)
    with pytest.raises(InputError, match=r"none of these solvers keeps an error of 0\.0001 with up to 7 steps"):
        bench.cheapest(place, 1e-4, [Entry("euler", "log")], exact)
    monkeypatch.setattr(bench, "COARSEST", 20)
    monkeypatch.setattr(bench, "FINEST", 40)
    with pytest.raises(InputError, match="with 40 steps the solutions are known to"):
        bench.truth_for(place, 1e-9, 2, SHAPE, end="sigma_min")
    assert bench.truth_for(place, 1e-1, 2, SHAPE, end="sigma_min").run.steps == 20
    with pytest.raises(InputError, match="below the model's"):
        bench.runs_of(place.model, [Entry("ab2", "edm")], (5,), (), "zero", {})


def test_a_preset_is_found_and_encodes(run, here: Path) -> None:  # type: ignore[no-untyped-def]
    size = ("-n", 2, "--model", "exact-mixture", "--size", "1,4,4")
    code, out, err = run("bench", "work-precision", *size, "--find", "3e-2", "--solvers", "euler@log,ab2", "--seed", 3)
    assert code == 0, err
    found = preset.load(here / "bench" / "preset.json")
    assert f"{found.solver} on {found.grid} with {found.steps} steps" in out
    assert found.model == "exact-mixture"
    command = ("-n", 2, "--model", "exact-mixture", "--preset", "bench/preset.json")
    assert run("encode", "-o", "z.h5", *command)[0] == 0
    with LatentFile(here / "z.h5") as file:
        made = file.provenance
        assert (made.solver, made.grid, made.steps, made.end) == (found.solver, found.grid, found.steps, "zero")
    code, out, err = run("decode", "z.h5", "-o", "x.h5", "--preset", "bench/preset.json")
    assert (code, err) == (0, "")
    assert f"{found.solver}, {found.steps} steps" in out
    code, out, err = run("sample", "-n", 2, "--size", "1,4,4", "-o", "s.h5", *command[2:])
    assert (code, err) == (0, "")
    for option in (("--steps", 9), ("--solver", "euler"), ("--grid", "log"), ("--tol", 1e-2), ("--end", "sigma_min")):
        code, out, err = run("encode", "-o", "y.h5", *command, *option)
        assert code == 2
        assert f"--preset says how to run: leave out {option[0]}" in err
    code, out, err = run("encode", "-n", 2, "-o", "y.h5", "--model", "exact-gaussian", "--preset", "bench/preset.json")
    assert code == 0
    assert "the preset was found for the model 'exact-mixture', not 'exact-gaussian'" in err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "something"}, "is no preset"),
        ({"version": 2}, "newer odeddim's"),
        ({"steps": "many"}, "steps is missing or wrong"),
        ({"steps": 0}, "has no steps"),
        ({"settings": {"self": 1}}, "no setting 'self'"),
        ({"settings": {"warmup": None}}, "no setting 'warmup'"),
        ({"grid": ""}, "grid is missing or wrong"),
        ({"error": "small"}, "error is missing or wrong"),
        ({"version": True}, "newer odeddim's"),
        ({"solver": None}, "solver is missing or wrong"),
        ({"solver": "nosuch"}, "unknown solver 'nosuch'"),
        ({"settings": {"nosuch": 1}}, "no setting 'nosuch'"),
        ({"grid": "nosuch"}, "unknown grid"),
        ({"end": "nosuch"}, "unknown end"),
    ],
)
def test_a_preset_that_is_none(run, here: Path, change: dict[str, Any], words: str) -> None:  # type: ignore[no-untyped-def]
    (here / "p.json").write_text(preset.Preset("m", "", "ab2", "log", 5, "zero", {}, 0.1, 10).to_json())
    content = {**json.loads((here / "p.json").read_text()), **change}
    (here / "p.json").write_text(json.dumps(content))
    code, out, err = run("encode", "-n", 1, "-o", "z.h5", "--model", "exact-mixture", "--preset", "p.json")
    assert code == 2
    assert words in err
    assert not (here / "z.h5").exists()
