"""The recipes of docs/recipes.md: benchmarks/recipes.py on few images, and each part on what it must do."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import odeddim

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def recipes() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "recipes.py"))


@pytest.fixture(scope="module")
def model() -> odeddim.VectorField:
    return odeddim.load("exact-samples")


def test_rings_are_in_the_noise_and_nowhere_else(recipes: dict[str, Any]) -> None:
    noise, wanted = odeddim.noise(4, (1, 28, 28)), recipes["key"](28)
    marked = recipes["marked"](noise, wanted)
    assert recipes["distance"](marked, wanted).max() < 1e-3
    assert recipes["distance"](noise, wanted).min() > 15
    outside = ~torch.isin(recipes["rings"](28), torch.tensor(list(recipes["RINGS"])))
    before, after = (torch.fft.fft2(x)[..., outside] for x in (noise, marked))
    assert (before - after).abs().max() < 1e-2
    assert float(marked.var()) == pytest.approx(1, abs=0.25)  # still about noise


def test_a_watermark_is_read_again_and_others_are_not(recipes: dict[str, Any]) -> None:
    """A smooth distribution, whose ODE loses nothing of the noise."""
    rows = recipes["watermark"](odeddim.load("exact-gaussian"), 8, steps=(5, 20))
    found = {(row["attack"], row["evaluations"]): row["area"] for row in rows}
    assert len(found) == 6
    assert min(found.values()) > 0.8
    assert found["none", 20] == 1


def test_images_of_the_model_come_back_better(recipes: dict[str, Any], model: odeddim.VectorField) -> None:
    """The finite data set's own model makes its very images; others do not come back."""
    (row,) = recipes["real"](model, 8, steps=(6,))
    assert row["area"] > 0.9
    assert row["generated"] < row["real"]


def test_a_probe_finds_what_is_linear_and_not_what_is_noise(recipes: dict[str, Any]) -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 10, 400).astype(np.uint8)
    rows = torch.from_numpy(np.eye(10)[labels] + 0.3 * draw.standard_normal((400, 10))).float()
    probe = recipes["probe"]
    assert probe(rows[:300], labels[:300], rows[300:], labels[300:]) > 0.9
    assert probe(rows[:300], draw.permutation(labels[:300]), rows[300:], labels[300:]) < 0.35


def test_the_features_of_each_kind(recipes: dict[str, Any], model: odeddim.VectorField) -> None:
    rows = {row["features"]: row["accuracy"] for row in recipes["features"](model, 48, steps=4)}
    assert set(rows) == {
        "pixels", "x_T", "ε at σ = 0.3", "predicted image at σ = 0.3", "ε at σ = 2", "predicted image at σ = 2",
    }  # fmt: skip
    assert all(0 <= accuracy <= 1 for accuracy in rows.values())
    assert rows["pixels"] > 0.3


def test_the_area_under_the_curve(recipes: dict[str, Any]) -> None:
    area = recipes["area"]
    assert area(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0])) == 1
    assert area(torch.tensor([0.0, 1.0]), torch.tensor([0.5])) == 0.5
