"""Quality and consistency: exactly these samples, measured as documented, and what the paper found on a real model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import odeddim
from odeddim.bench import consistency, quality
from odeddim.bench.distances import frechet, kid, precision_recall
from odeddim.bench.features import Features, load_features
from odeddim.bench.harness import Entry, Harness, Pictures, planned
from odeddim.bench.tables import Table
from odeddim.bench.work_precision import references
from odeddim.storage.png import to_bytes
from odeddim.types import InputError

SHAPE = (1, 4, 4)


def sixteen(images: torch.Tensor) -> torch.Tensor:
    """Features that are the pixels themselves."""
    return images.flatten(1)


FEATURES = Features(sixteen, "pixels", sha256="1", block=4)


def harness(folder: Path, **more: Any) -> Harness:
    return Harness(odeddim.load("exact-mixture"), folder, **more)


def real(start: int, stop: int) -> torch.Tensor:
    return odeddim.sample(stop - start, "ab3", seed=9, start=start, model="exact-mixture", steps=50, shape=SHAPE)


def measured(place: Harness, etas: Sequence[str], count: int, steps: Sequence[int] = (4,), **more: Any) -> Table:
    names = {"0": "euler", "hat": "ddpm-sigma-hat"}
    lines = []
    for eta in etas:
        name = names.get(eta, "ddim-eta")
        own = {"eta": float(eta)} if name == "ddim-eta" else {}
        runs = planned(place.model, [Entry(name, "linear")], steps, "zero", own)
        lines += [quality.Sampled(run, eta) for run in runs]
    return quality.quality(place, lines, count, SHAPE, FEATURES, Pictures(real, 24), **more)


@pytest.mark.parametrize("batch_size", [3, 32])
def test_exactly_these_samples_are_measured(tmp_path: Path, batch_size: int) -> None:
    table = measured(harness(tmp_path, batch_size=batch_size), ("0", "0.5"), 13, seed=4)
    reference = real(0, 24).flatten(1)
    for row, eta in zip(table.rows, (0.0, 0.5), strict=True):
        images = odeddim.sample(
            13, "euler", seed=4, eta=eta, model="exact-mixture", steps=4, grid="linear", shape=SHAPE
        )
        fake = (to_bytes(images).float() / 127.5 - 1).flatten(1)
        assert row["frechet"] == pytest.approx(frechet(reference, fake), rel=1e-9)
        assert (row["kid"], row["kid_std"]) == pytest.approx(kid(reference, fake, seed=4), rel=1e-9)
        assert (row["precision"], row["recall"]) == precision_recall(reference, fake)
        assert row["evaluations"] == 4
    assert table.settings["samples"] == 13
    assert table.sheets[0].images.shape == (2, 8, 4, 4, 1)
    assert list(table.sheets[0].rows) == ["η = 0, S = 4", "η = 0.5, S = 4"]


def test_more_samples_and_other_seeds_are_other_figures(tmp_path: Path) -> None:
    place = harness(tmp_path)
    first = measured(place, ("1", "hat"), 8)
    assert measured(place, ("1", "hat"), 8).rows == first.rows
    assert measured(place, ("1",), 8, seed=1).rows[0]["frechet"] != first.rows[0]["frechet"]
    again = measured(harness(tmp_path / "other"), ("1", "hat"), 8)
    assert [row["frechet"] for row in again.rows] == [row["frechet"] for row in first.rows]


def test_as_many_other_real_images_are_the_floor(tmp_path: Path) -> None:
    table = measured(harness(tmp_path), ("hat",), 8, others=Pictures(lambda a, b: real(100 + a, 100 + b), 50))
    assert table.settings["real images"] == 8
    held = frechet(real(0, 24).flatten(1), real(100, 108).flatten(1))
    assert table.settings["frechet of real images"] == pytest.approx(held, rel=1e-9)
    assert "8 other real images in place of samples have Fréchet distance" in " ".join(table.notes)
    with pytest.raises(InputError, match="give at least 4 of each"):
        measured(harness(tmp_path), ("0",), 3)


def test_a_failing_line_does_not_cost_the_others(tmp_path: Path) -> None:
    place = harness(tmp_path, batch_size=4)
    network, calls = place.model.eps, []

    def eps(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return network(x, t) * (float("nan") if len(calls) == 7 else 1)  # in the second batch of the first line

    place.model.eps = eps
    table = measured(place, ("0", "1"), 8)
    assert table.rows[0]["frechet"] is None
    assert "NaN or infinite" in table.rows[0]["remark"]
    assert table.rows[1]["frechet"] > 0


def test_the_papers_fid_is_for_the_papers_setting(tmp_path: Path) -> None:
    """A column only where the user names the data set, of its shape, with the features of the FID."""
    place, shape = harness(tmp_path), (3, 32, 32)
    inception = Features(lambda images: images[:, :, 0, :2].flatten(1), "as if", sha256="2", measure="FID", block=4)
    lines = [
        quality.Sampled(run, "0" if run.solver.name == "euler" else "")
        for name in ("euler@linear", "euler@log", "ab3@log")
        for run in planned(place.model, [Entry.parse(name)], (10,), "zero", {})
    ]

    def pictures(start: int, stop: int) -> torch.Tensor:
        return odeddim.noise(stop - start, shape, seed=4, start=start).clamp(-1, 1)

    def table(shape: tuple[int, ...], features: Features, paper: str | None) -> Table:
        return quality.quality(place, lines, 5, shape, features, Pictures(pictures, 5), paper=paper)

    assert "paper" not in table(shape, inception, None).rows[0]
    assert [row["paper"] for row in table(shape, inception, "cifar10").rows] == [13.36, None, None]
    with pytest.raises(InputError, match="the images have the shape 3×32×32, not 3×64×64"):
        table(shape, inception, "celeba")
    with pytest.raises(InputError, match="FIDs, but these are distances between features of pixels"):
        table(shape, FEATURES, "cifar10")


def test_distances_of_consistency(tmp_path: Path) -> None:
    place = harness(tmp_path)
    runs = planned(place.model, [Entry("euler", "linear"), Entry("ab3")], (5, 10), "zero", {})
    table = consistency.consistency(place, runs, 3, SHAPE, seed=2, features=FEATURES)
    x_T = odeddim.noise(3, SHAPE, seed=2)
    goal = odeddim.solve(x_T, "ab4", model="exact-mixture", steps=800, grid="log")
    image = odeddim.solve(x_T, "euler", model="exact-mixture", steps=5, grid="linear")
    low, distance, high = sorted((image - goal).double().square().mean(dim=(1, 2, 3)).sqrt().tolist())
    assert table.rows[0]["pixels"] == pytest.approx(distance, rel=1e-5)  # the median of three
    assert table.rows[0]["pixels_10"] == pytest.approx(low, rel=1e-5)
    assert table.rows[0]["pixels_90"] == pytest.approx(high, rel=1e-5)
    pairs = [float((goal[i] - goal[j]).square().mean()) for i in range(3) for j in range(3) if i != j]
    assert table.rows[0]["pixel_share"] == pytest.approx(distance / np.sqrt(np.mean(pairs)), rel=1e-5)
    assert table.rows[0]["features"] == pytest.approx(table.rows[0]["pixels"], rel=1e-5)  # they are the pixels
    assert len(table.sheets) == 2
    assert table.sheets[0].columns == ("S = 5", "S = 10", "reference")
    assert np.array_equal(table.sheets[0].images[:, 0, :, :, 0], to_bytes(image)[:, 0].numpy())
    assert np.array_equal(table.sheets[1].images[:, 2, :, :, 0], to_bytes(goal)[:, 0].numpy())
    without = consistency.consistency(place, runs, 3, SHAPE, seed=2)
    assert "features" not in without.rows[0]
    with pytest.raises(InputError, match="2 or more"):
        consistency.consistency(place, runs, 1, SHAPE)


@pytest.mark.slow
def test_images_of_one_x_t_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 5.2, on the built-in model: 20 steps share with 1000 what other x_T do not, and more steps more."""
    monkeypatch.setattr(consistency, "references", lambda model, end: references(model, end, 80))
    place = Harness(odeddim.load(), tmp_path)
    runs = planned(place.model, [Entry("euler", "linear"), Entry("ab3")], (5, 10, 20), "zero", {})
    table = consistency.consistency(place, runs, 4, (1, 28, 28), features=load_features())
    for rows in table.lines().values():
        for name in ("pixel_share", "feature_share"):
            shares = [row[name] for row in rows]
            assert shares == sorted(shares, reverse=True)
            assert shares[0] < 0.7
            assert shares[-1] < 0.3


@pytest.mark.slow
def test_the_course_of_table_1(run, here: Path) -> None:  # type: ignore[no-untyped-def]
    """With few steps η = 0 is best and σ̂ worst, on the built-in model by the built-in classifier's features."""
    command = ("bench", "quality", "-n", 32, "--eta", "0,0.5,1,hat", "--steps", 6, "--json")
    code, out, err = run(*command)
    assert code == 0, err
    table = json.loads(out)
    assert [row["eta"] for row in table["rows"]] == ["0", "0.5", "1", "hat"]
    for name in ("frechet", "kid"):
        figures = [row[name] for row in table["rows"]]
        assert figures[0] == min(figures), name
        assert figures[3] == max(figures), name
    assert "a classifier of Fashion-MNIST" in table["settings"]["features"]
    assert "FID" not in table["settings"]["measure"]
    assert {path.name for path in (here / "bench").glob("quality*")} == {
        "quality.h5", "quality.json", "quality.csv", "quality.svg", "quality.png", "quality-sheet.svg",
        "quality-sheet.png",
    }  # fmt: skip


@pytest.mark.slow  # two processes; tests/system/test_crash.py has such of jobs
def test_several_processes_share_a_bench(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Started twice at once it makes the same table as once, and each cell is made by one of them or by both."""
    command = [
        sys.executable, "-m", "odeddim", "bench", "--model", "exact-mixture", "-n", "6", "--batch-size", "1",
        "--solvers", "euler,ab3", "--steps", "5,10", "--json",
    ]  # fmt: skip
    processes = [
        subprocess.Popen(
            [*command, "-o", "both"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    results = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    _, alone, _ = run(*command[3:], "-o", "one")
    tables = [json.loads(out)["rows"] for out in (*(out for out, _ in results), alone)]
    for table in tables:
        for row in table:
            del row["seconds"]
    assert tables[0] == tables[1] == tables[2]
    assert not list((tmp_path / "both" / "cells").glob("*.parts"))
