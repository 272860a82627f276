"""`odeddim.edit`, `odeddim.jobs.edit` and `odeddim edit`: encoded under one condition, decoded under another."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import torch
from PIL import Image
from support import Told, command, save_told, tiles
from torch import Tensor

import odeddim
from odeddim.bridges import editing
from odeddim.jobs import Description
from odeddim.ode.analytic import Gaussian
from odeddim.types import InputError

LEVELS = odeddim.Schedule.linear()
MEANS, STD = (-0.5, 0.3, 0.1), 0.2
NETS = [Gaussian(mean, STD).network(LEVELS) for mean in MEANS]


def told(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """The exact ε of a Gaussian of each class; label 2 is no class."""
    return torch.cat([NETS[k](x[i : i + 1], t[i : i + 1]) for i, k in enumerate(label.tolist())])


@pytest.fixture
def exact() -> odeddim.VectorField:
    return odeddim.VectorField.from_network(told, LEVELS, classes=3, null=2, name="told", shape=(1, 4, 4))


def expected(x_0: Tensor, sigma: float) -> Tensor:
    """The exact edit from class 0 to class 1 at a noise level: each flow scales x̄ minus its mean by √(s²+σ²)."""
    share = STD / math.sqrt(STD**2 + sigma**2)
    return MEANS[1] + (MEANS[0] - MEANS[1]) * share + (x_0 - MEANS[0])


@pytest.mark.parametrize("sigma", [0.3, 5.0, None])
def test_an_edit_is_the_exact_one(sigma: float | None, exact: odeddim.VectorField) -> None:
    x_0 = MEANS[0] + STD * odeddim.noise(3, (1, 4, 4), seed=1).double()
    before, after = exact.conditioned(0), exact.conditioned(1)
    found = odeddim.edit(x_0, before, after, "unipc-2", sigma=sigma, steps=200)
    top = sigma or LEVELS.sigma_max
    assert found.state.sigma == pytest.approx(top)
    assert (found.images - expected(x_0, top)).abs().max() < 2e-3
    assert found.error.max() < 2e-3
    assert found.change == pytest.approx((found.images - x_0).square().flatten(1).mean(1).sqrt(), rel=1e-6)


def test_a_reversible_solver_reconstructs_exactly_and_the_edit_starts_from_the_state(
    exact: odeddim.VectorField,
) -> None:
    x_0 = MEANS[0] + STD * odeddim.noise(2, (1, 4, 4), seed=1)
    before, after = exact.conditioned(0), exact.conditioned(1)
    found = odeddim.edit(x_0, before, after, steps=20, sigma=3.0)
    assert torch.equal(found.again, x_0)
    over = editing(before, after, steps=20, sigma=3.0)
    assert (over.plan.solver.name, over.down.solver.name) == ("belm", "unipc-2")
    assert torch.equal(over.plan.nodes, over.down.nodes)
    alone = odeddim.State(found.state.xbar, found.state.sigma)
    assert torch.equal(found.images, odeddim.integrate(after, alone, over.down).xbar)


def test_what_is_no_edit_is_refused(exact: odeddim.VectorField) -> None:
    x_0, before = torch.zeros(1, 1, 4, 4), exact.conditioned(0)
    other = odeddim.load("exact-gaussian")
    for arguments, words in (
        ({"after": other}, "one model under two conditions"),
        ({"sigma": 1e4}, "between the lowest and the highest"),
        ({"sigma": 0.001}, "between the lowest and the highest"),
        ({"sigma": 5.0, "grid": [0.0, 0.1, 1.0]}, "an end of its own"),
        ({"solver": "ddpm"}, "ddpm"),
    ):
        given = {"after": exact.conditioned(1), **arguments}
        with pytest.raises(InputError, match=words):
            odeddim.edit(x_0, before, **given)


@pytest.mark.parametrize(
    ("shows", "words"),
    [("a cat", "takes 3 classes"), (Description(0, negative_prompt="x"), "no prompts"), (7, "classes 0 to 2, not 7")],
)
def test_what_a_model_does_not_take_is_said(
    shows: str | int | Description, words: str, exact: odeddim.VectorField
) -> None:
    with pytest.raises(InputError, match=words):
        (shows if isinstance(shows, Description) else Description(shows)).of(exact)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of classes, told.pt2, and four images."""
    folder = tmp_path_factory.mktemp("told")
    save_told(folder, Told(MEANS), null=2)
    (folder / "images").mkdir()
    for i in range(4):
        Image.new("L", (4, 4), 30 * i + 20).save(folder / "images" / f"{i}.png")
    return folder


@pytest.fixture
def edit(world: Path, here: Path) -> Callable[..., str]:
    """`odeddim edit images --from 0 --to 1 --model told.pt2 ...` in a folder of its own."""
    given = (world / "images", "--from", 0, "--to", 1, "--model", world / "told.pt2", "--steps", 10, "--device", "cpu")
    return lambda *more, code=0: command("edit", *given, *more, code=code)


def test_the_command_is_the_function(edit: Callable[..., str], world: Path) -> None:
    said = edit(
        "-o", "out.h5", "--guidance", 2, "--guidance-interval", "0.1,20", "--guidance-rescale", 0.5, "--sigma", 4
    )
    assert (
        "class 0 to class 1, guidance 2 rescaled by 0.5 for σ in 0.1 to 20 at σ = 4, up by belm, down by unipc-2"
        in said
    )
    assert re.search(r"reconstruction error .*: median 0, worst 0", said)
    model = odeddim.load(world / "told.pt2")
    model.network_batch = 8
    after = model.conditioned(1, guidance=2, interval=(0.1, 20), guidance_rescale=0.5)
    over = editing(model.conditioned(0), after, sigma=4, steps=10)
    found = over.apply(odeddim.open_images(world / "images")[:4])
    with h5py.File("out.h5") as file:
        assert torch.equal(torch.from_numpy(file["images"][:]), found.images)
    assert torch.equal(odeddim.open_images("out.h5")[:4], found.images)


def test_a_sheet_shows_before_after_and_reconstruction(edit: Callable[..., str], world: Path) -> None:
    edit("-o", "sheet.png", "--scale", 1, "--no-labels", "-n", 2)
    edit("-o", "out", "-n", 2)
    (first,), (second,) = tiles("sheet.png", 4, 4, 1, panes=3)[:1], tiles("sheet.png", 4, 4, 1, panes=3)[1:]
    for i, (before, after, again) in enumerate((first, second)):
        with Image.open(world / "images" / f"{i}.png") as image, Image.open(f"out/{i}.png") as edited:
            assert (before == image).all()
            assert (after == edited).all()
            assert (again == before).all()
            assert not (after == before).all()


def test_a_stopped_edit_goes_on_and_another_is_refused(edit: Callable[..., str]) -> None:
    whole = edit("-o", "out").splitlines()[-1]
    Path("out/2.png").unlink()
    said = edit("-o", "out")
    assert "1 now" in said
    assert said.splitlines()[-1] == whole
    assert "guidance" in edit("-o", "out", "--guidance", 3, code=2)
    assert "give another folder" not in edit("-o", "out", "--overwrite")


def test_inspect_says_what_an_edit_was(edit: Callable[..., str]) -> None:
    edit("-o", "out.h5", "-n", 1)
    assert "edit" in command("inspect", "out.h5")
    edit("-o", "out", "-n", 1)
    assert "edit" in command("inspect", "out")


def test_bad_input_is_one_sentence(edit: Callable[..., str]) -> None:
    assert "number of a class" in edit("-o", "out", "--to", "a dog", code=2)
    assert "leave out --low-guidance" in edit("-o", "out", "--guidance", 2, "--low-guidance", 3, code=2)
    assert "--sigma" in edit("-o", "out", "--sigma", "1000", code=2)
    assert not Path("out").exists()
