"""What is measured is kept and right: the harness, tables and files, reconstruction against a script of its own."""

from __future__ import annotations

import csv
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import odeddim
from odeddim.bench import figures, tables
from odeddim.bench import reconstruction as bench
from odeddim.bench.harness import Entry, Harness, expected, planned
from odeddim.bench.tables import Column, Sheet, Table
from odeddim.storage.hdf5 import text
from odeddim.storage.images import open_images
from odeddim.types import InputError

MIXTURE = ("--model", "exact-mixture")


def eps_of_mixture(x: np.ndarray[Any, Any], alpha: float) -> np.ndarray[Any, Any]:
    """E[noise | x] where every pixel of the data is N(±0.6, 0.15²), written out."""
    mean, spread = 0.6 * math.sqrt(alpha), alpha * 0.15**2 + 1 - alpha
    high = 1 / (1 + np.exp(-2 * x * mean / spread))
    return math.sqrt(1 - alpha) * (x - mean * (2 * high - 1)) / spread


def table_2(images: np.ndarray[Any, Any], steps: int, target: bool = False) -> list[float]:
    """DDIM there and back with eq. 12 (η = 0) and nothing of odeddim's; images in [-1, 1]; MSE of each on [0, 1]."""
    alphas = np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))])  # of t = 0, ..., 1000
    tau = [0, *(math.floor(1000 * i / steps) for i in range(1, steps + 1))]

    def step(x: np.ndarray[Any, Any], here: int, there: int, label: int) -> np.ndarray[Any, Any]:
        a, b, eps = alphas[here], alphas[there], eps_of_mixture(x, alphas[max(label, 1)])
        return math.sqrt(b) * (x - math.sqrt(1 - a) * eps) / math.sqrt(a) + math.sqrt(1 - b) * eps

    x = images.copy()
    for here, there in itertools.pairwise(tau):
        x = step(x, here, there, there if target else here)
    for here, there in itertools.pairwise(tau[::-1]):
        x = step(x, here, there, here)
    return [float(((a - b) ** 2).mean()) / 4 for a, b in zip(x, images, strict=True)]


def colour_images(count: int) -> np.ndarray[Any, Any]:
    """Images of CIFAR-10's shape, (N, 32, 32, 3) uint8, each of another contrast."""
    made = np.random.default_rng(0).integers(-127, 128, (count, 32, 32, 3))
    return (127 + made * np.linspace(0.2, 1, count).reshape(-1, 1, 1, 1)).astype(np.uint8)


@pytest.mark.parametrize("steps", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_table_2_as_a_script_of_its_own_computes_it(run, here: Path, steps: int) -> None:  # type: ignore[no-untyped-def]
    """The mean squared error of the paper, and from the same figures of each image the rms that the tool reports."""
    pixels = colour_images(11)
    np.save(here / "images.npy", pixels)
    images = pixels.transpose(0, 3, 1, 2) / 127.5 - 1
    code, out, err = run(
        "bench", "reconstruction", "images.npy", "-n", 11, "--solvers", "euler@linear", "--steps", steps, "--dtype",
        "float64", "--labels", "source,target", "--paper", "--json", *MIXTURE,
    )  # fmt: skip
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert [row["evaluations"] for row in rows] == [steps, steps]
    for row, target in zip(rows, (False, True), strict=True):
        each = table_2(images, steps, target)
        assert row["mean_square"] == pytest.approx(sum(each) / 11, rel=1e-6)
        rms = sorted(2 * math.sqrt(one) for one in each)  # on [0, 1] a difference is half of that on [-1, 1]
        found = [row["round_trip_10"], row["round_trip"], row["round_trip_90"]]
        assert found == pytest.approx([rms[1], rms[5], rms[9]], rel=1e-6)  # of 11: the 2nd, 6th and 10th


def test_the_papers_column_is_for_the_papers_setting(run, here: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Only where the user says so, where shape, schedule and end agree, and for the paper's method and grids."""
    command = ("bench", "-n", 2, "--steps", 10, "--json", "--solvers", "euler@linear,euler@quadratic,euler@log,ab3")
    np.save(here / "cifar.npy", colour_images(2))
    code, out, err = run(*command, *MIXTURE)
    assert code == 0, err
    assert not {"paper", "mean_square"} & set(json.loads(out)["rows"][0])
    code, out, err = run(*command, "cifar.npy", *MIXTURE)  # one's own photographs have that shape too
    assert code == 0, err
    assert not {"paper", "mean_square"} & set(json.loads(out)["rows"][0])
    code, out, err = run(*command, "cifar.npy", *MIXTURE, "--paper", "--labels", "source,target")
    assert code == 0, err
    assert [row["paper"] for row in json.loads(out)["rows"]] == [0.014, 0.014, None, None, None, None, None]
    code, out, err = run(*command, *MIXTURE, "--paper")
    assert code == 2
    assert (
        "results for cifar10 are not comparable: the images have the shape 1×28×28, not 3×32×32: leave out --paper"
        in err
    )
    code, out, err = run(*command, "cifar.npy", *MIXTURE, "--paper", "--end", "sigma_min")
    assert code == 2
    assert "the end is sigma_min, not zero" in err
    for schedule in (odeddim.Schedule.cosine(), odeddim.Schedule.linear(T=500)):
        place = Harness(odeddim.VectorField(lambda x, t: x * 0.5, schedule, name="mine"), tmp_path / "other")
        runs = planned(place.model, [Entry("euler", "linear")], (4,), "zero", {})
        with pytest.raises(InputError, match="schedule of 'mine' is not the linear one with T = 1000"):
            bench.reconstruction(place, lambda start, stop: torch.zeros(2, 3, 32, 32)[start:stop], 2, runs, paper=True)


def test_one_image_does_not_rule_a_row(tmp_path: Path) -> None:
    """A mean over ten images, one of them a hundred times as bright, is that image's; the median is not."""
    place = harness(tmp_path)
    runs = planned(place.model, [Entry("euler", "linear")], (10,), "zero", {})
    plain = open_images()[0:10].double()
    bright = plain.clone()
    bright[3] *= 100
    rows = [
        bench.reconstruction(place, lambda start, stop, x=x: x[start:stop], 10, runs).rows[0] for x in (plain, bright)
    ]
    for name in ("round_trip", "latent"):
        assert rows[1][name] == pytest.approx(rows[0][name], rel=0.5)
        assert rows[0][f"{name}_10"] < rows[0][name] < rows[0][f"{name}_90"]


def test_what_is_printed_names_its_figures(run) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run("bench", "-n", 3, "--solvers", "euler", "--steps", 3, *MIXTURE)
    assert code == 0, err
    told = " ".join(out.split())
    assert "round trip: rms over the pixels of an image in [-1, 1], median over the images" in told
    assert "over σ_T or the σ where the grid ends, median over the images" in told
    assert told.count("90 %: the value that nine images in ten do not exceed") == 1
    code, out, err = run("bench", "-n", 3, "--solvers", "euler", "--steps", 3, *MIXTURE, "--csv")
    assert "round_trip,round_trip_10,round_trip_90,latent,latent_10,latent_90" in out


def harness(folder: Path, model: str | odeddim.VectorField = "exact-mixture", **more: Any) -> Harness:
    return Harness(odeddim.load(model), folder, dtype=torch.float64, **more)


def reconstructed(place: Harness, solvers: str = "euler@linear,ab3", steps: tuple[int, ...] = (4, 8)) -> Table:
    images = open_images()[0:4].double()
    runs = planned(place.model, [Entry.parse(name) for name in solvers.split(",")], steps, "zero", {})
    return bench.reconstruction(place, lambda start, stop: images[start:stop], 4, runs)


def without_seconds(table: Table) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in table.rows]


def test_what_is_measured_is_not_measured_again(tmp_path: Path) -> None:
    place = harness(tmp_path)
    first = reconstructed(place)
    place.model.reset()
    assert reconstructed(place) == first
    assert place.model.nfe == 0
    more = reconstructed(place, "euler@linear,ab3,belm")
    assert without_seconds(more)[:4] == without_seconds(first)
    assert more.rows[0]["seconds"] == first.rows[0]["seconds"]  # as measured the first time
    files = {path.name for path in (tmp_path / "cells").iterdir()}
    assert len(files) == 1 + 6
    anew = harness(tmp_path, overwrite=True)
    again = reconstructed(anew)
    assert anew.model.nfe > 0
    assert without_seconds(again) == without_seconds(first)
    assert {path.name for path in (tmp_path / "cells").iterdir()} == files


def test_an_interrupted_bench_goes_on(tmp_path: Path) -> None:
    expected = without_seconds(reconstructed(harness(tmp_path / "whole")))
    for calls in (5, 400, 300, 40):  # of 704
        place = harness(tmp_path / "stopped", batch_size=2)
        network, left = place.model.eps, itertools.count(calls, -1)

        def eps(x: torch.Tensor, t: torch.Tensor, network: Any = network, left: Any = left) -> torch.Tensor:
            if next(left) <= 0:
                raise KeyboardInterrupt
            return network(x, t)

        place.model.eps = eps
        with pytest.raises(KeyboardInterrupt):
            reconstructed(place)
        assert place.model.watch is None
    place = harness(tmp_path / "stopped", batch_size=2)
    assert without_seconds(reconstructed(place)) == expected
    assert place.model.nfe <= 704 - 600 - 16
    assert not list((tmp_path / "stopped" / "cells").glob("*.parts"))


def test_another_model_image_or_dtype_is_another_cell(tmp_path: Path) -> None:
    place = harness(tmp_path)
    run = planned(place.model, [Entry("euler")], [3], "zero", {})[0]
    cells = set()
    for settings in (
        place.settings("reconstruction", run, images={"sha256": "a"}),
        place.settings("reconstruction", run, images={"sha256": "b"}),
        replace(place, dtype=torch.float32).settings("reconstruction", run, images={"sha256": "a"}),
        harness(tmp_path, "exact-gaussian").settings("reconstruction", run, images={"sha256": "a"}),
        place.settings("quality", run, images={"sha256": "a"}),
    ):
        place.measure(settings, 2, lambda start, stop: {"value": np.arange(start, stop) * 1.0})
        cells = {path.name for path in (tmp_path / "cells").iterdir()}
    assert len(cells) == 5


def test_a_damaged_cell_is_named(tmp_path: Path) -> None:
    reconstructed(harness(tmp_path))
    cell = sorted((tmp_path / "cells").glob("reconstruction-*.h5"))[0]
    content = bytearray(cell.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    cell.write_bytes(content)
    with pytest.raises(InputError, match=cell.name):
        reconstructed(harness(tmp_path))
    cell.unlink()
    reconstructed(harness(tmp_path))


def test_progress_ends_where_it_said(tmp_path: Path) -> None:
    for _ in range(2):  # measured, and read
        seen: list[int] = []
        place = harness(tmp_path, advance=seen.append)
        runs = planned(place.model, [Entry("euler", "linear"), Entry("ab3")], (4, 8), "zero", {})
        reconstructed(place)
        assert sum(seen) == 4 * (bench.reference_evaluations() + sum(2 * expected(run) for run in runs))
        assert min(seen) >= 0


def a_table() -> Table:
    columns = (Column("solver", "solver", form="s"), Column("steps", "steps"), Column("error", "error", "rms", ".2e"))
    rows = ({"solver": "euler", "steps": 3, "error": 0.5}, {"solver": "α<b>", "steps": None, "error": float("nan")})
    sheet = Sheet("two images", np.arange(8, dtype=np.uint8).reshape(1, 2, 2, 2, 1), ("row",), ("a", "b"))
    return Table("demo", "A title", {"model": "m"}, columns, rows, ("a note",), ("solver",), (sheet,))


def test_a_table_comes_back_from_its_files(tmp_path: Path) -> None:
    table = a_table()
    assert table.rows[1]["error"] is None  # JSON has no NaN
    paths = table.save(tmp_path)
    assert [path.name for path in paths] == ["demo.h5", "demo.json", "demo.csv"]
    back = tables.load(paths[0])
    assert back == table
    assert np.array_equal(back.sheets[0].images, table.sheets[0].images)
    assert (back.sheets[0].title, back.sheets[0].rows, back.sheets[0].columns) == ("two images", ("row",), ("a", "b"))
    content = json.loads(paths[1].read_text(encoding="utf-8"))
    assert content["rows"] == list(table.rows)
    assert content["columns"][2] == {"name": "error", "heading": "error", "meaning": "rms", "form": ".2e"}
    with open(paths[2], encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"solver": "euler", "steps": "3", "error": "0.5"}, {"solver": "α<b>", "steps": "", "error": ""},
        ]  # fmt: skip
    with h5py.File(paths[0]) as file:
        assert file["rows"]["solver"][1].decode() == "α<b>"
        assert math.isnan(file["rows"]["steps"][1])
        assert file["rows"]["error"][0] == 0.5


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(InputError, match="not a table"):
        tables.load(tmp_path / "other.h5")
    with pytest.raises(ValueError, match="columns"):
        Table("demo", "", {}, (Column("a", "a"),), ({"b": 1},))


def test_the_command_leaves_table_and_figures(run, here: Path) -> None:  # type: ignore[no-untyped-def]
    command = ("bench", "-n", 2, "--solvers", "euler,reversible-heun", "--steps", "3,6", *MIXTURE)
    code, out, err = run(*command)
    assert code == 0, err
    assert "in bench: reconstruction.h5 .json .csv .svg .png" in err
    assert "…" not in out  # figures are never cut short
    kinds = {path.suffix for path in (here / "bench").glob("reconstruction.*")}
    assert kinds == {".h5", ".json", ".csv", ".svg", ".png"}
    svg = (here / "bench" / "reconstruction.svg").read_bytes()
    code, printed, err = run(*command, "--csv")
    assert (code, printed) == (0, (here / "bench" / "reconstruction.csv").read_text())
    assert (here / "bench" / "reconstruction.svg").read_bytes() == svg
    code, out, err = run("bench", "-n", 2, "--solvers", "euler", "--steps", 3, "--model", "exact-gaussian")
    assert code == 2
    assert "is a table of the model 'exact-mixture': give another folder with --output, or --overwrite" in err
    code, out, err = run("bench", "reconstruction", "-n", 2, "-o", "bench/reconstruction.h5", *MIXTURE)
    assert code == 2
    assert "is a file: give a folder" in err
    code, out, err = run("bench", "recon")
    assert code == 2
    assert "unknown command 'recon'; did you mean" in err
    code, out, err = run("bench", "-n", 1, "--solvers", "ab3", "--labels", "target", "--steps", 3, "-o", "b", *MIXTURE)
    assert code == 2
    assert "add the solver 'euler'" in err


@pytest.mark.slow
def test_the_error_of_the_built_in_model_falls_with_steps(run) -> None:  # type: ignore[no-untyped-def]
    """The course of DDIM's Table 2, there and back, and of the latent's own error, which the paper does not have."""
    code, out, err = run(
        "bench", "-n", 1, "--solvers", "euler@linear,euler@quadratic", "--steps", "10,20", "--labels",
        "source,target", "--json",
    )  # fmt: skip
    assert code == 0, err
    table = json.loads(out)
    for key, rows in itertools.groupby(table["rows"], lambda row: (row["labels"], row["grid"])):
        errors = [(row["round_trip"], row["latent"]) for row in rows]
        assert errors == sorted(errors, reverse=True), key
        assert [e[1] for e in errors] == sorted((e[1] for e in errors), reverse=True), key
    # The other convention comes back from latents that are much further from the ODE's.
    source, target = ([row["latent"] for row in table["rows"] if row["labels"] == where] for where in bench.LABELS)
    assert all(b > 1.5 * a for a, b in zip(source, target, strict=True))


def test_edited_images_and_other_functions_are_measured_anew(tmp_path: Path) -> None:
    """Names and sizes say nothing of an image's content, nor a name of what a function does."""
    images = open_images()[0:6].double()

    def errors(place: Harness, x_0: torch.Tensor) -> list[float]:
        runs = planned(place.model, [Entry("euler", "linear")], (4,), "zero", {})
        table = bench.reconstruction(place, lambda start, stop: x_0[start:stop], 2, runs)
        return [row["round_trip"] for row in table.rows]

    place = harness(tmp_path)
    first = errors(place, images[:2])
    assert errors(place, images[2:4]) != first
    assert errors(place, images[:2]) == first
    schedule = odeddim.Schedule.linear()
    found = []
    for scale in (0.5, 0.1):
        model = odeddim.VectorField(lambda x, t, scale=scale: x * scale, schedule, name="mine")
        mine = Harness(model, tmp_path, dtype=torch.float64)
        found += [errors(mine, images[:2]), errors(mine, images[:2])]
    assert found[0] == found[1] != found[2] == found[3]


def test_a_cell_that_is_another_one_is_refused(tmp_path: Path) -> None:
    table = reconstructed(harness(tmp_path))
    first, second = sorted((tmp_path / "cells").glob("reconstruction-*.h5"))[:2]
    first.write_bytes(second.read_bytes())
    with pytest.raises(InputError, match=f"{first.name} holds another cell than its name says; delete it"):
        reconstructed(harness(tmp_path))
    first.unlink()
    assert without_seconds(reconstructed(harness(tmp_path))) == without_seconds(table)


def test_a_table_of_failures_is_drawn(tmp_path: Path) -> None:
    """When nothing came out, the table says why, and figures that there is nothing to draw."""
    columns = {
        "reconstruction": ("evaluations", "round_trip", "latent"),
        "consistency": ("evaluations", "pixels", "features"),
        "quality": ("evaluations", "frechet", "kid"),
        "work-precision": ("decode_error", "decode_evaluations", "decode_seconds", "encode_error", "encode_evaluations",
                           "encode_seconds"),
    }  # fmt: skip
    for name, figures_of in columns.items():
        words = ("eta", "solver", "grid") if name == "quality" else ("solver", "grid")
        row = {"steps": 3, **dict.fromkeys(words, "x"), **dict.fromkeys(figures_of), "evaluations": 4}
        table = Table(name, "nothing", {}, tuple(Column(key, key) for key in row), (row,), group=words)
        drawn = figures.draw(table)
        assert b"<svg" in drawn[name][0]


@pytest.mark.parametrize("damage", [{"settings": []}, {"settings": "x"}, {"title": 3}, {"rows": None}, {"notes": "no"}])
def test_a_table_of_other_kinds_is_damaged(tmp_path: Path, damage: dict[str, Any]) -> None:
    path = a_table().save(tmp_path)[0]
    with h5py.File(path, "a") as file:
        content = {**json.loads(file["table"][()]), **damage}
        del file["table"]
        file["table"] = text(json.dumps(content))
    with pytest.raises(InputError, match="is not what odeddim writes"):
        tables.load(path)


def test_a_run_that_gave_up_is_made_again_with_a_larger_budget(tmp_path: Path) -> None:
    images = open_images()[0:2].double()

    def table(most: int) -> Table:
        place = harness(tmp_path)
        runs = planned(place.model, [Entry("dopri5")], (4,), "zero", {"rtol": 1e-2, "atol": 1e-2, "max_nfe": most})
        return bench.reconstruction(place, lambda start, stop: images[start:stop], 2, runs)

    assert "max_nfe" in table(10).rows[0]["remark"]
    assert table(1000).rows[0]["round_trip"] > 0
