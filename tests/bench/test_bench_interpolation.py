"""`odeddim bench interpolation`: the figures of smoothness, which points are decoded, from which noise, going on."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import odeddim
from odeddim.bench import drawing, figures, interpolation
from odeddim.bench.harness import Entry, Harness, expected, planned
from odeddim.bench.interpolation import smoothness
from odeddim.bench.tables import Table, load
from odeddim.ode.analytic import GaussianMixture
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.plans import Plan

SHAPE = (1, 4, 4)


class Forgetful(Harness):
    """A harness that keeps nothing on the disk, but for what it was asked for."""

    asked: list[dict[str, Any]]

    def measure(self, settings: Any, rows: int, function: Any, **more: Any) -> Any:
        self.asked = [*getattr(self, "asked", []), settings]
        middle = rows // 2  # in two batches, as any cell may be
        parts = [function(0, middle), function(middle, rows)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def mixture(shape: tuple[int, ...] = SHAPE) -> VectorField:
    """A mixture of two modes in each pixel: an exact field that is not linear."""
    schedule = Schedule.linear()
    network = GaussianMixture(torch.tensor([-0.6, 0.6]), std=0.15).network(schedule)
    return VectorField(network, schedule, shape=shape, name="mixture", sha256="1")


def runs_of(model: VectorField, solvers: str = "euler@linear,ab3,ddpm", steps: tuple[int, ...] = (6,)) -> list[Plan]:
    return planned(model, [Entry.parse(name) for name in solvers.split(",")], steps, "zero", {})


def bench(
    model: VectorField, folder: Path | None = None, solvers: str = "euler@linear,ab3,ddpm", **options: Any
) -> Table:
    """The table of a model; without a folder nothing is kept."""
    runs = runs_of(model, solvers, options.pop("steps", (6,)))
    harness = Forgetful(model, Path()) if folder is None else Harness(model, folder)
    shape = model.shape or SHAPE
    return interpolation.interpolation(harness, runs, shape, **{"pairs": 2, "points": 5, "side": 3, **options})


def images_of(*vectors: tuple[float, ...]) -> np.ndarray[Any, Any]:
    """One path of images with two pixels."""
    return np.array(vectors)[None, :, None, None, :]


def test_a_straight_even_path() -> None:
    found = smoothness(images_of((0, 0), (3, 4), (6, 8), (9, 12)))
    step = 5 / math.sqrt(2)  # rms over two pixels
    assert (found.step, found.ends) == pytest.approx((step, 3 * step))
    assert (found.largest, found.length) == pytest.approx((1, 1))
    assert found.turn == pytest.approx(0, abs=1e-5)
    assert found.steps == pytest.approx([step] * 3)
    assert found.distances == pytest.approx([0, step, 2 * step, 3 * step])


def test_a_path_round_a_corner() -> None:
    found = smoothness(images_of((0, 0), (3, 0), (3, 1)))  # steps of 3 and 1, at a right angle
    root = math.sqrt(2)
    assert found.steps == pytest.approx([3 / root, 1 / root])
    assert found.step == pytest.approx(2 / root)
    assert found.ends == pytest.approx(math.sqrt(10) / root)
    assert found.largest == pytest.approx(3 / 2)
    assert found.length == pytest.approx(4 / math.sqrt(10))
    assert found.turn == pytest.approx(90)


def test_the_figures_are_means_over_the_paths() -> None:
    straight, bent = images_of((0, 0), (1, 0), (2, 0)), images_of((0, 0), (3, 0), (3, 1))
    both = smoothness(np.concatenate([straight, bent]))
    for name in ("ends", "step", "largest", "length", "turn"):
        alone = [getattr(smoothness(path), name) for path in (straight, bent)]
        assert getattr(both, name) == pytest.approx(sum(alone) / 2), name


def test_a_path_that_comes_back_or_stays_has_no_quotients() -> None:
    back = smoothness(images_of((0, 0), (1, 0), (0, 0)))
    assert (back.ends, back.turn) == pytest.approx((0, 180))
    assert math.isnan(back.length)
    still = smoothness(images_of((1, 1), (1, 1), (1, 1)))
    assert still.step == 0
    assert all(math.isnan(value) for value in (still.largest, still.length, still.turn))
    straight = images_of((0, 0), (1, 0), (2, 0))
    assert smoothness(np.concatenate([straight, images_of((0, 0), (1, 0), (0, 0))])).length == pytest.approx(1)


def test_unrelated_images_turn_by_120_degrees() -> None:
    noise = np.random.default_rng(0).standard_normal((2, 40, 1, 50, 50))
    found = smoothness(noise)
    assert found.turn == pytest.approx(120, abs=1)
    assert found.step == pytest.approx(math.sqrt(2), rel=0.02)
    assert found.length == pytest.approx(39, rel=0.05)


def decoded(model: VectorField, run: Plan, x_T: Tensor) -> np.ndarray[Any, Any]:
    return odeddim.solve(x_T, model=model, plan=run).numpy()


def test_lines_and_grid_end_in_the_corners_digit_for_digit(tmp_path: Path) -> None:
    model = mixture()
    model.network_batch = 1  # then an image is the same in whatever company
    euler, other = runs_of(model, "euler@linear,ab3")
    corners = odeddim.noise(4, SHAPE, seed=3)
    harness = Harness(model, tmp_path, batch_size=4)
    ends = [interpolation._latent(i, SHAPE, 3) for i in range(4)]
    lines = [interpolation.LatentPath.line(ends[0], ends[1], 5), interpolation.LatentPath.line(ends[2], ends[3], 5)]
    for run in (euler, other):
        images = interpolation._decoded(harness, run, lines, 3)[0]["image"]
        assert (images[[0, 4, 5, 9]] == decoded(model, run, corners)).all()
        between = torch.cat([path.read(i, i + 1).xbar for path in lines for i in range(5)])
        assert (images == decoded(model, run, between)).all()
        assert not any((images[2] == images[i]).all() for i in (0, 1, 3, 4))
    square = interpolation._decoded(harness, euler, [interpolation.LatentPath.grid(ends, 3)], 3)[0]["image"]
    assert (square[[0, 2, 6, 8]] == decoded(model, euler, corners)).all()


def test_the_table_has_these_lines_figures() -> None:
    model = mixture()
    model.network_batch = 1
    table = bench(model, solvers="ab3,euler@linear", pairs=2, points=4, side=0, seed=5)
    for row, run in zip(table.rows, runs_of(model, "ab3,euler@linear"), strict=False):
        lines = [
            interpolation.LatentPath.line(*(interpolation._latent(i, SHAPE, 5) for i in pair), 4).read(0, 4).xbar
            for pair in ((0, 1), (2, 3))
        ]
        found = smoothness(np.stack([decoded(model, run, line) for line in lines]))
        assert [row[name] for name in ("solver", "step", "largest", "length", "turn", "ends")] == [
            run.solver.name, found.step, found.largest, found.length, found.turn, found.ends,
        ]  # fmt: skip
        assert row["evaluations"] == expected(run)


def test_a_grid_is_not_taken_for_a_line_of_as_many_points(tmp_path: Path) -> None:
    table = bench(mixture(), tmp_path, solvers="euler", pairs=1, points=9, side=3)
    line, square = (sheet.images.reshape(9, -1) for sheet in table.sheets)
    assert (line[0] == square[0]).all()
    assert not any((line[i] == square[i]).all() for i in range(1, 9))


def test_the_cross_fade_is_straight_between_the_first_solvers_ends() -> None:
    table = bench(mixture())
    first, fade = table.rows[0], table.rows[-1]
    assert (fade["solver"], fade["grid"], fade["steps"], fade["evaluations"]) == ("cross-fade", "-", None, None)
    assert fade["ends"] == pytest.approx(first["ends"])
    assert fade["step"] == pytest.approx(first["ends"] / 4)
    assert (fade["largest"], fade["length"]) == pytest.approx((1, 1))
    assert fade["turn"] == pytest.approx(0, abs=1e-3)
    assert all(row["length"] > 1 for row in table.rows[:-1])


def test_each_point_of_a_stochastic_line_has_its_own_noise() -> None:
    model = mixture()
    (run,) = runs_of(model, "ddpm")
    same = interpolation._latent(0, SHAPE, 2)
    # Ten times the same latent: what differs is the noise on the way.
    path = interpolation.LatentPath.line(same, same, 5)
    images = interpolation._decoded(Forgetful(model, Path()), run, [path, path], 2)[0]["image"]
    assert len({image.tobytes() for image in images}) == 10
    alone = odeddim.sample(1, "ddpm", model=model, seed=2, grid=run.nodes, shape=SHAPE)  # (seed, 0) is its latent too
    assert np.allclose(images[0], alone[0], atol=1e-6)


def test_the_seed_says_which_latents_and_noise(tmp_path: Path) -> None:
    model = mixture()
    tables = [bench(model, tmp_path / str(i), seed=seed) for i, seed in ((0, 0), (1, 0), (0, 1))]
    assert tables[0] == tables[1]
    for before, after in zip(tables[0].rows, tables[2].rows, strict=True):
        assert before["step"] != after["step"]


def test_ddpm_is_rough_where_the_ode_is_smooth() -> None:
    """The paper's finding (section 5.3), on the built-in model; measured: lengths 1.8 and 13 at 11 points, 50 steps."""
    model = odeddim.load()
    torch.set_num_threads(1)
    table = bench(model, solvers="euler@linear,ddpm", pairs=1, points=7, side=0, steps=(10,))
    euler, ddpm, _ = table.rows
    assert ddpm["step"] > 2 * euler["step"]
    assert ddpm["length"] > 2 * euler["length"]
    assert ddpm["turn"] > euler["turn"] + 30


def test_the_sheets(tmp_path: Path) -> None:
    table = bench(mixture((3, 4, 6)), solvers="euler@linear,ddpm", steps=(3, 4))
    lines, square = table.sheets
    assert lines.images.shape == (2 * 4, 5, 4, 6, 3)
    assert lines.images.dtype == np.uint8
    assert lines.columns == ("0", "0.25", "0.5", "0.75", "1")
    assert lines.rows[:4] == (
        "euler, linear, 3 steps, pair 1", "euler, linear, 4 steps, pair 1",
        "ddpm, linear, 3 steps, pair 1", "ddpm, linear, 4 steps, pair 1",
    )  # fmt: skip
    assert square.images.shape == (3, 3, 4, 6, 3)
    assert square.rows == square.columns == ("0", "0.5", "1")
    assert "euler, linear, 3 steps" in square.title
    # Along its upper edge and its lower one the grid is the lines between its corners, at 0, 0.5 and 1.
    of_euler = lines.images[[0, 4]][:, [0, 2, 4]].astype(int)
    assert np.abs(square.images[[0, 2]].astype(int) - of_euler).max() <= 1
    table.save(tmp_path)
    assert load(tmp_path / "interpolation.h5") == table

    assert len(bench(mixture(), solvers="euler", side=0).sheets) == 1
    assert bench(mixture((2, 4, 4)), solvers="euler").sheets == ()  # no picture has two channels
    assert bench(mixture(), solvers="euler", steps=(3,)).sheets[0].rows == (
        "euler, linear, pair 1",
        "euler, linear, pair 2",
    )


@pytest.mark.parametrize("theme", drawing.THEMES, ids=lambda theme: theme.name)
def test_the_figure_has_a_line_for_each_solver(theme: drawing.Theme) -> None:
    table = bench(mixture(), steps=(3, 4), side=0)
    with figures._themed(theme):
        ((drawing, words),) = figures.interpolation(table, theme).values()
    left, right = drawing.axes
    assert left.get_legend_handles_labels()[1] == [
        *(f"{name}, {steps} steps" for name in ("euler, linear", "ab3, log", "ddpm, linear") for steps in (3, 4)),
        "cross-fade",
    ]
    assert [len(line.get_xdata()) for line in left.lines] == [4] * 7
    assert [line.get_ydata()[0] for line in right.lines] == [0] * 7
    drawn = left.lines[0].get_ydata()
    assert np.mean(drawn) == pytest.approx(table.rows[0]["step"])
    assert "Distances of neighbours" in words


def test_what_fails_leaves_a_remark_and_the_others_their_figures() -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.where((t < 400).reshape(-1, 1, 1, 1), torch.nan, x / 2)

    model = VectorField(network, Schedule.linear(), shape=SHAPE, name="broken below")
    table = bench(model, solvers="euler", steps=(4, 1))
    failed, done, fade = table.rows
    assert failed["step"] is None
    assert "NaN" in failed["remark"]
    assert done["step"] > 0
    assert fade["ends"] == pytest.approx(done["ends"])
    assert [row.partition(", pair")[0] for row in table.sheets[0].rows] == ["euler, linear, 1 steps"] * 2
    assert set(figures.interpolation(table, drawing.LIGHT)) == {"interpolation"}

    nothing = bench(model, solvers="euler", steps=(4,))
    assert (len(nothing.rows), nothing.sheets) == (1, ())
    assert set(figures.interpolation(nothing, drawing.LIGHT)) == {"interpolation"}


def test_an_interrupted_bench_goes_on(tmp_path: Path) -> None:
    exact = mixture()
    calls, most = [0], [10**9]

    def network(x: Tensor, t: Tensor) -> Tensor:
        if calls[0] == most[0]:
            raise RuntimeError("interrupted")
        calls[0] += 1
        return exact.eps(x, t)

    model = VectorField(network, exact.schedule, shape=SHAPE, name="interrupted", sha256="1")
    whole = bench(model, tmp_path / "whole")
    all_calls = calls[0]
    assert all_calls == 6 + 7 + 6 + 6  # a batch each: euler's lines, ab3's and ddpm's, and euler's grid
    calls[0], most[0] = 0, 15
    with pytest.raises(RuntimeError, match="interrupted"):
        bench(model, tmp_path / "cut")
    calls[0], most[0] = 0, 10**9
    assert bench(model, tmp_path / "cut") == whole
    assert calls[0] == all_calls - 13
    calls[0] = 0
    assert bench(model, tmp_path / "cut") == whole
    assert calls[0] == 0
    bench(model, tmp_path / "cut", solvers="euler@linear,ab3,ddpm,dpmpp-2m")  # measures that one only
    assert calls[0] == 6


def test_the_progress_adds_up(tmp_path: Path) -> None:
    model = mixture()
    told: list[int] = []
    for _ in range(2):  # measured, and then read
        told.clear()
        harness = Harness(model, tmp_path, advance=told.append, batch_size=3)
        interpolation.interpolation(harness, runs_of(model, "euler,ddpm"), SHAPE, pairs=2, points=5, side=3)
        assert sum(told) == 2 * 10 * 6 + 9 * 6


@pytest.mark.parametrize(("options", "words"), [({"points": 2}, "points=3"), ({"side": 1}, "at least 2 points")])
def test_lines_without_bends_and_grids_of_a_point_are_refused(options: dict[str, int], words: str) -> None:
    with pytest.raises(odeddim.InputError, match=words):
        bench(mixture(), **options)


Runner = Callable[..., tuple[int, str, str]]
ARGUMENTS = (
    "bench",
    "interpolation",
    "--model",
    "exact-mixture",
    "--size",
    "1,4,4",
    "--pairs",
    2,
    "-n",
    4,
    "--steps",
    5,
)


def test_the_command(run: Runner, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, left = GaussianMixture.__call__, [22]

    def call(self: GaussianMixture, sigma: Tensor, xbar: Tensor) -> Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return own(self, sigma, xbar)

    monkeypatch.setattr(GaussianMixture, "__call__", call)
    code, _, _ = run(*ARGUMENTS, "--side", 3)
    assert code != 0
    done = {path: path.stat().st_mtime_ns for path in Path("bench/cells").glob("interpolation-*.h5")}
    assert done
    left[0] = 10**9
    code, out, err = run(*ARGUMENTS, "--side", 3, "--csv")
    assert (code, "in bench: interpolation" in err) == (0, True)
    rows = list(csv.DictReader(out.splitlines()))
    assert [row["solver"] for row in rows] == ["euler", "ab3", "ddpm", "cross-fade"]
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())
    assert Path("bench/interpolation-sheet1.png").stat().st_size > 0
    assert Path("bench/interpolation-sheet2.svg").read_text().count("<svg") == 1

    left[0] = 0  # nothing is evaluated any more
    code, out, _ = run(*ARGUMENTS, "--side", 3, "--json")
    assert code == 0
    assert [row["step"] for row in json.loads(out)["rows"]] == [float(row["step"]) for row in rows]
    code, out, _ = run(*ARGUMENTS, "--side", 3)
    assert (code, "2 lines of 4 images, 5 steps" in out) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("-n", 2), "not in the range"), (("--pairs", 0), "not in the range"), (("--solvers", "nope"), "nope")],
)
def test_the_command_refuses(run: Runner, arguments: tuple[object, ...], words: str) -> None:
    code, _, err = run(*ARGUMENTS, *arguments)
    assert code == 2
    assert words in err
