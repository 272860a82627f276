"""The scripts in examples/, run in a folder of their own as a user runs them: what they write is looked at."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import pytest
import torch
from pages import ROOT

import odeddim

FOLDER = ROOT / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
Example = Callable[..., str]


@pytest.fixture
def example(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Example:
    """Runs a script with its arguments in the current folder: what it prints."""
    monkeypatch.setenv("MPLBACKEND", "Agg")

    def call(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(FOLDER / name), run_name="__main__")
        plt.close("all")
        return capsys.readouterr().out

    return call


def picture(path: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The picture that a script drew, (H, W, 3)."""
    return np.asarray(PIL.Image.open(path).convert("RGB"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_it_is_short_and_says_what_it_shows_and_how_to_run_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    said = ast.get_docstring(ast.parse(text)) or ""
    assert f"    python examples/{path.name}" in said
    assert f"examples/{path.name}" in (ROOT / "docs" / "notebooks" / "index.md").read_text(encoding="utf-8")


def test_there_are_four() -> None:
    names = ["invert_and_edit.py", "latent_optimisation.py", "own_network.py", "toy_2d.py"]
    assert [path.name for path in SCRIPTS] == names


@pytest.mark.parametrize("rounds", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_latent_optimisation_changes_what_is_seen(example: Example, rounds: int) -> None:
    """After 50 rounds the class is the one asked for; after a few the image has begun to change."""
    before, after = example("latent_optimisation.py", "--to", "Bag", "--rounds", rounds).splitlines()
    assert re.match(r"before: (?!Bag)\w+ 9\d\.\d%|before: (?!Bag)\w+ 100\.0%", before)
    assert rounds < 50 or re.match(r"after:  Bag (9\d\.\d|100\.0)%", after)
    drawn = picture("latent_optimisation.png")
    assert drawn.shape == (285, 1350, 3)
    sixth = 1350 // 6
    first, last = (drawn[60:, k * sixth + 30 : (k + 1) * sixth - 30].astype(int) for k in (0, 5))
    assert np.abs(first - last).mean() > (20 if rounds == 50 else 0.5)


def test_toy_2d_draws_the_flow_in_many_colours(example: Example) -> None:
    assert example("toy_2d.py").startswith("toy_2d.png: 4000 points, 60 steps of unipc-2")
    drawn = picture("toy_2d.png")
    assert drawn.shape == (720, 1350, 3)
    assert (drawn[0, 0] == 255).all()  # legible on a dark page too
    colourful = np.ptp(drawn.astype(int), axis=2) > 60
    left, right = colourful[:, :675].mean(), colourful[:, 675:].mean()
    assert 0.02 < left < 0.3
    assert 0.02 < right < 0.5


def test_the_field_of_toy_2d_carries_points_onto_the_spiral() -> None:
    names = runpy.run_path(str(FOLDER / "toy_2d.py"))
    nodes = torch.cat([torch.zeros(1), torch.logspace(-2, 1.5, 60)])
    plan = odeddim.Plan(odeddim.solvers.get("unipc-2"), nodes)
    noise = odeddim.noise(200, (2,), seed=1) * (1 + plan.top**2) ** 0.5
    data = odeddim.integrate(names["eps"], odeddim.State(noise, plan.top), plan).xbar
    away = torch.cdist(data, names["CENTRES"]).min(dim=1).values
    assert float(away.quantile(0.9)) < 3 * names["SPREAD"]


def test_own_network_comes_back_exactly(example: Example) -> None:
    assert "their images came back exactly: True" in example("own_network.py")
    assert picture("own_network.png").shape == (480, 1200, 3)
    with odeddim.open("own_network.h5") as latents:
        assert len(latents) == 8
        assert latents.plan.solver.name == "belm"
        assert 0.5 < float(latents[:].x.square().mean().sqrt()) < 1.5  # a network that was not trained is far off


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_invert_and_edit_loses_what_the_autoencoder_loses(example: Example, furnished: Callable[[str], Path]) -> None:
    pytest.importorskip("diffusers", reason="diffusers is installed by the test extra")
    pytest.importorskip("transformers", reason="transformers is installed by the test extra")
    model, photo = "stable-diffusion-v1-5/stable-diffusion-v1-5", "photos/0.png"
    here = furnished(f'"{model}" photos/')
    said = example("invert_and_edit.py", model, photo, "a cat", "cat dog", "--steps", 10, "--guidance", 2)

    field = odeddim.load(here / model)
    assert field.codec is not None
    assert field.image_shape is not None
    taken = odeddim.open_images(photo, channels=3, prepare=odeddim.Preparation(resize=field.image_shape[1:]))[:]
    floor = float((field.codec.decode(field.codec.encode(taken)) - taken).square().mean().sqrt())
    assert floor > 0.01
    assert said.startswith(f"edit.png: {floor:.3f} is lost")

    drawn = picture("edit.png")
    assert drawn.shape == (480, 1350, 3)
    thirds = [drawn[60:420, 450 * i + 20 : 450 * i + 430].astype(int) for i in range(3)]
    assert all(np.abs(thirds[a] - thirds[b]).mean() > 1 for a, b in ((0, 1), (0, 2), (1, 2)))
