"""`odeddim bench time`: the line, the medians, the solver's own share, what is timed and what is not, going on."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from odeddim.api import noise
from odeddim.bench import drawing, figures, timing
from odeddim.bench.harness import Entry, Harness, planned
from odeddim.bench.tables import Table, load
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.plans import Plan

SHAPE = (1, 4, 4)


class Clock:
    """Time that passes only when somebody lets it."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing, "perf_counter", made)
    return made


class Network:
    """ε = x/2; each call takes `each` seconds for each image, and the solver `own` seconds before it.

    It takes note of its batches, and stops with an error after `most` calls.
    """

    def __init__(self, clock: Clock, each: float = 0.01, own: float = 0.0, most: int = 10**9) -> None:
        self.clock, self.each, self.own, self.most = clock, each, own, most
        self.batches: list[int] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if len(self.batches) == self.most:
            raise RuntimeError("interrupted")
        self.batches.append(len(x))
        self.clock.seconds += self.each * len(x)
        return x / 2


def model_of(network: Callable[[Tensor, Tensor], Tensor]) -> VectorField:
    return VectorField(network, Schedule.linear(), shape=SHAPE, name="linear-time", sha256="1")


class Slow(VectorField):
    """A field whose own work takes 1 ms of a clock for each evaluation, before the network is called."""

    clock: Clock

    def __call__(self, sigma: Tensor, xbar: Tensor) -> Tensor:
        self.clock.seconds += 0.001
        return super().__call__(sigma, xbar)


def runs_of(model: VectorField, solvers: str = "euler", steps: tuple[int, ...] = (2, 3, 5)) -> list[Plan]:
    return planned(model, [Entry.parse(name) for name in solvers.split(",")], steps, "zero", {})


class Forgetful(Harness):
    """A harness that keeps nothing on the disk."""

    def measure(self, settings: Any, rows: int, function: Any, **more: Any) -> Any:
        return function(0, rows)


def bench(model: VectorField, folder: Path | None = None, solvers: str = "euler", **options: Any) -> Table:
    """The table of a model; without a folder nothing is kept."""
    steps = options.pop("steps", (2, 3, 5))
    harness = Forgetful(model, Path()) if folder is None else Harness(model, folder)
    return timing.timing(harness, runs_of(model, solvers, steps), SHAPE, **options)


def figures_of(table: Table) -> list[dict[str, Any]]:
    return [dict(row) for row in table.rows]


def test_the_line_is_numpys() -> None:
    generator = np.random.default_rng(0)
    for count in (3, 4, 9):
        x = sorted(generator.uniform(1, 1000, count).tolist())
        y = (0.3 + 0.02 * np.array(x) + generator.normal(0, 1, count)).tolist()
        line = timing.fitted(x, y)
        assert line is not None
        slope, intercept = np.polyfit(x, y, 1)
        left = np.array(y) - (intercept + slope * np.array(x))
        assert line.slope == pytest.approx(slope)
        assert line.intercept == pytest.approx(intercept)
        assert line.r2 == pytest.approx(1 - (left**2).sum() / ((y - np.mean(y)) ** 2).sum())
        assert line.r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)


def test_a_line_needs_two_places_and_its_r2_three_points() -> None:
    assert timing.fitted([], []) is None
    assert timing.fitted([5, 5], [1.0, 2.0]) is None
    two = timing.fitted([1, 3], [1.0, 2.0])
    assert two is not None
    assert (two.slope, two.intercept) == pytest.approx((0.5, 0.5))
    assert np.isnan(two.r2)


def test_a_linear_network_gives_its_line(clock: Clock) -> None:
    table = bench(model_of(Network(clock, each=0.01)), batches=(1, 4), repeats=2)
    assert [(row["batch"], row["steps"]) for row in table.rows] == [(1, 2), (1, 3), (1, 5), (4, 2), (4, 3), (4, 5)]
    for row in table.rows:
        assert row["seconds"] == pytest.approx(0.01 * row["batch"] * row["steps"])
        assert row["per_evaluation"] == pytest.approx(10)
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["seconds"])
        assert row["per_step"] == pytest.approx(10 * row["batch"])
        assert row["intercept"] == pytest.approx(0, abs=1e-9)
        assert row["r2"] > 0.99
        assert row["evaluations"] == row["steps"]
        assert (row["own_share"], row["own"]) == pytest.approx((0, 0), abs=1e-6)
    assert not any("times as long" in note for note in table.notes)


def test_the_own_share_is_what_is_not_spent_in_the_network(clock: Clock) -> None:
    model = Slow(Network(clock, each=0.009), Schedule.linear(), shape=SHAPE)
    model.clock = clock
    table = bench(model, batches=(1, 11), repeats=1)
    for row in table.rows:
        whole = 0.001 + 0.009 * row["batch"]
        assert row["seconds"] == pytest.approx(whole * row["steps"])
        assert row["own_share"] == pytest.approx(100 * 0.001 / whole)
        assert row["own"] == pytest.approx(1000)


def test_the_median_of_repetitions_that_are_taken_in_turns(clock: Clock) -> None:
    network = Network(clock)
    seen: list[tuple[int, int]] = []  # (steps, batch) of each run
    # 3 repetitions of 4 runs; in the first, what makes warm, one for each batch.
    durations = iter([0.0, 3.0, 3.0, 0.0, 3.0, 3.0, *[1.0] * 4, *[8.0] * 4])

    def solve(x_T: Tensor, *, model: VectorField, plan: Plan) -> None:
        seen.append((plan.steps, len(x_T)))
        clock.seconds += next(durations)
        model.rows = len(x_T)
        model.eps(x_T, x_T)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "solve", solve)
        table = bench(model_of(network), batches=(2, 1), repeats=3, steps=(5, 4))
    assert seen == [(4, 2), (5, 2), (4, 2), (4, 1), (5, 1), (4, 1), *[(5, 2), (4, 2), (5, 1), (4, 1)] * 2]
    for row in table.rows:
        took = [row[name] - 0.01 * row["batch"] for name in ("fastest", "seconds", "slowest")]
        assert took == pytest.approx([1, 3, 8])
    assert "took 8.0 times as long" in table.notes[-1].replace("7.9", "8.0")


def test_a_timed_run_is_not_watched_nor_cut_into_blocks(clock: Clock) -> None:
    network, told = Network(clock), []
    model = model_of(network)
    model.watch, model.network_batch = told.append, 2
    (run,) = runs_of(model, steps=(3,))
    columns = timing.timed(model, run, noise(5, SHAPE))
    assert told == []
    assert network.batches == [5, 5, 5]
    assert columns["calls"].tolist() == [3]
    assert columns["evaluations"].tolist() == [3]
    assert columns["network"].tolist() == pytest.approx([0.15])
    assert model.eps is network
    assert (model.watch, model.network_batch) == (told.append, 2)


def test_the_network_comes_back_whatever_happens(clock: Clock) -> None:
    network = Network(clock, most=1)
    model = model_of(network)
    model.network_batch = 8
    (run,) = runs_of(model, steps=(3,))
    with pytest.raises(RuntimeError, match="interrupted"):
        timing.timed(model, run, noise(2, SHAPE))
    assert model.eps is network
    assert model.network_batch == 8


def test_the_provenance_does_not_tell_of_blocks(clock: Clock, tmp_path: Path) -> None:
    model = model_of(Network(clock))
    told: list[dict[str, Any]] = []

    class Told(Harness):
        def measure(self, settings: Any, *rest: Any, **more: Any) -> Any:
            told.append(settings)
            return super().measure(settings, *rest, **more)

    def fit(row: object) -> dict[str, Any]:
        model.network_batch = 8
        return {"network_batch": 8, "threads": 1}

    timing.timing(Told(model, tmp_path, fit=fit), runs_of(model), SHAPE, batches=(3,), repeats=1)
    assert {settings["details"]["network_batch"] for settings in told} == {None}
    assert {settings["details"]["threads"] for settings in told} == {1}
    assert all(settings["details"]["machine"]["torch"] == torch.__version__ for settings in told)


def test_an_interrupted_bench_goes_on(clock: Clock, tmp_path: Path) -> None:
    network = Network(clock)
    model = model_of(network)
    options: dict[str, Any] = {"batches": (1, 2), "repeats": 2}
    whole = bench(model, tmp_path / "whole", **options)
    all_calls = len(network.batches)
    assert all_calls == 2 * 2 * (2 + 3 + 5) + 2 * 2  # two batches, two repetitions, and what makes warm

    network.batches.clear()
    network.most = 17
    with pytest.raises(RuntimeError, match="interrupted"):
        bench(model, tmp_path / "cut", **options)
    kept = len(list((tmp_path / "cut" / "cells").glob("*.h5")))
    assert kept == 4  # 2 + (2 + 3 + 5), then 2 + 2 and in the midst of the next
    network.batches.clear()
    network.most = 10**9
    again = bench(model, tmp_path / "cut", **options)
    assert len(network.batches) == all_calls - 2 * 2 - (2 + 3 + 5 + 2) + 2 * 2  # it gets warm again
    # The clock's differences round as the hour is, and the notes tell it.
    assert [list(row) for row in again.rows] == [list(row) for row in whole.rows]
    for ours, theirs in zip(again.rows, whole.rows, strict=True):
        for name, value in theirs.items():
            assert ours[name] == (pytest.approx(value, abs=1e-6) if isinstance(value, float) else value)

    network.batches.clear()
    assert bench(model, tmp_path / "cut", **options) == again
    assert network.batches == []


def test_another_solver_machine_or_seed_is_timed_anew(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(clock)
    model = model_of(network)
    bench(model, tmp_path, batches=(1,), repeats=1)

    def calls(solvers: str = "euler", **options: Any) -> int:
        network.batches.clear()
        bench(model, tmp_path, solvers, **{"batches": (1,), "repeats": 1, **options})
        return len(network.batches)

    assert calls() == 0
    assert calls(repeats=2) == 10 + 2  # those that were taken stay
    assert calls("euler,ab2") >= 2 * 10  # what is compared is taken in turns
    assert calls(seed=1) == 10 + 2
    monkeypatch.setattr(timing, "described", lambda model: {**machine, "cpu": "another"})
    machine = {"cores": 1, "gpu": None, "torch": "2", "os": "-"}
    assert calls() == 10 + 2


def test_the_progress_adds_up(clock: Clock, tmp_path: Path) -> None:
    model = model_of(Network(clock))
    told: list[int] = []
    runs = runs_of(model)
    for _ in range(2):  # measured, and then read
        told.clear()
        timing.timing(Harness(model, tmp_path, advance=told.append), runs, SHAPE, batches=(1, 3), repeats=2)
        assert sum(told) == 2 * (1 + 3) * (2 + 3 + 5)


def test_what_fails_leaves_a_remark_and_the_others_their_figures() -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.where((t < 400).reshape(-1, 1, 1, 1), torch.nan, x)

    table = bench(model_of(network), steps=(1, 4), batches=(1,), repeats=1)
    first, second = figures_of(table)
    assert first["seconds"] > 0
    assert first["remark"] == ""
    assert second["seconds"] is None
    assert "NaN" in second["remark"]
    assert first["per_step"] is None
    assert set(figures.timing(table, drawing.LIGHT)) == {"time"}  # it can be drawn all the same


def test_solvers_that_choose_their_steps_have_no_line(clock: Clock) -> None:
    model = model_of(Network(clock))
    table = bench(model, None, "euler,dopri5,ddpm", batches=(2,), repeats=1)
    (adaptive,) = (row for row in table.rows if row["solver"] == "dopri5")
    assert adaptive["steps"] is None
    assert adaptive["per_step"] is None
    assert adaptive["per_evaluation"] == pytest.approx(10)
    assert adaptive["evaluations"] > 5
    assert all(row["r2"] > 0.99 for row in table.rows if row["solver"] == "ddpm")


@pytest.mark.parametrize("theme", drawing.THEMES, ids=lambda theme: theme.name)
def test_the_figure_has_a_line_for_each_solver_and_batch(clock: Clock, theme: drawing.Theme) -> None:
    table = bench(model_of(Network(clock)), None, "euler,dopri5", batches=(1, 8), repeats=1)
    with figures._themed(theme):
        ((drawing, words),) = figures.timing(table, theme).values()
    left, right = drawing.axes
    labels = left.get_legend_handles_labels()[1]
    assert [label.split("\n")[0] for label in labels] == [
        f"{name}, batch {batch}" for name in ("euler, linear", "dopri5") for batch in (1, 8)
    ]
    assert "10 ms/step, R² 1.00000" in labels[0]
    assert left.get_xlabel() == "steps"
    assert right.get_ylabel() == "milliseconds per image and evaluation"
    assert "Seconds over steps" in words


def test_the_machine_is_named() -> None:
    about = timing.described(model_of(lambda x, t: x))
    assert about["cpu"]
    assert about["cores"] >= 1
    assert about["gpu"] is None
    assert about["torch"] == torch.__version__


Runner = Callable[..., tuple[int, str, str]]
MIXTURE = ("--model", "exact-mixture", "--size", "1,4,4")


@pytest.fixture
def interrupting(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets the exact mixture's network stop with Ctrl-C after so many evaluations."""
    from odeddim.ode.analytic import GaussianMixture

    own, left = GaussianMixture.__call__, [10**9]

    def call(self: GaussianMixture, sigma: Tensor, xbar: Tensor) -> Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return own(self, sigma, xbar)

    def after(count: int) -> None:
        left[0] = count

    monkeypatch.setattr(GaussianMixture, "__call__", call)
    return after


def test_the_command(run: Runner, here: Path, interrupting: Callable[[int], None]) -> None:
    arguments = ("bench", "time", *MIXTURE, "--steps", "2,4,6", "--batches", "1,3", "--repeats", 2, "--threads", 1)
    interrupting(20)
    code, _, err = run(*arguments)
    assert code != 0
    done = {path: path.stat().st_mtime_ns for path in Path("bench/cells").glob("time-*.h5")}
    assert 0 < len(done) < 12
    interrupting(10**9)
    code, out, err = run(*arguments, "--csv")
    assert (code, "in bench: time" in err) == (0, True)
    rows = list(csv.DictReader(out.splitlines()))
    assert [(row["batch"], row["steps"]) for row in rows] == [(b, s) for b in "13" for s in "246"]
    assert all(float(row["seconds"]) > 0 and 0 < float(row["own_share"]) < 100 for row in rows)
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())
    assert len(list(Path("bench/cells").glob("time-*.h5"))) == 12

    interrupting(0)  # nothing is evaluated any more
    code, out, _ = run(*arguments, "--json")
    assert code == 0
    table = json.loads(out)
    assert table["settings"]["machine"]["threads"] == 1
    assert [row["seconds"] for row in table["rows"]] == [float(row["seconds"]) for row in rows]
    assert load(Path("bench/time.h5")).to_json() == json.dumps(table, indent=1, ensure_ascii=False)
    code, out, _ = run(*arguments)
    assert (code, "Time: exact-mixture" in out) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--network-batch", 8), "No such option"),
        (("--batch-size", 8), "No such option"),
        (("--batches", "0"), "not in the range"),
        (("--repeats", "0"), "not in the range"),
    ],
)
def test_the_command_refuses(run: Runner, arguments: tuple[object, ...], words: str) -> None:
    code, _, err = run("bench", "time", *MIXTURE, *arguments)
    assert code == 2
    assert words in err


def test_several_processes_do_not_time_each_other(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    code, _, err = run("bench", "time", *MIXTURE)
    assert code == 2
    assert "without torchrun" in err


def test_the_command_asks_for_a_size(run: Runner) -> None:
    code, _, err = run("bench", "time", "--model", "exact-mixture")
    assert code == 2
    assert "--size" in err
