"""Conditions in files and on the command line: kept with the latents, taken from there, never mixed up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from support import Told, save_told
from support import command as run

import odeddim
from odeddim import Schedule, VectorField
from odeddim.latents.latent_file import LatentFile
from odeddim.ode.conditions import Classes, Condition
from odeddim.types import InputError


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a class-conditional model, told.pt2, and four images."""
    folder = tmp_path_factory.mktemp("told")
    save_told(folder, Told(), null=3)
    (folder / "images").mkdir()
    for i in range(4):
        Image.new("L", (4, 4), 40 * i + 50).save(folder / "images" / f"{i}.png")
    return folder


def test_the_condition_is_kept_and_taken_from_the_file(here: Path, tmp_path: Path) -> None:
    z, model = tmp_path / "z.h5", here / "told.pt2"
    told = ("--label", "2", "--guidance", "1.5", "--guidance-interval", "0.1,20", "--guidance-rescale", "0.5")
    said = run("encode", here / "images", "-o", z, "--model", model, "--steps", "10", *told)
    assert "class 2, guidance 1.5 rescaled by 0.5 for σ in 0.1 to 20" in said
    with LatentFile(z) as file:
        kept = {"label": 2, "guidance": 1.5, "interval": [0.1, 20.0], "guidance_rescale": 0.5}
        assert file.provenance.condition == kept
        assert file.provenance.time == "index"
        latents = file.read(0, 4).xbar
    field = odeddim.load(model).conditioned(2, guidance=1.5, interval=(0.1, 20), guidance_rescale=0.5)
    field.network_batch = 8
    from odeddim.storage.images import open_images

    images = open_images(here / "images").read()
    assert torch.equal(odeddim.encode(images, "belm", model=field, steps=10).xbar, latents)
    run("decode", z, "-o", tmp_path / "back.h5")  # by belm, under the file's condition: the very images
    assert torch.equal(open_images(tmp_path / "back.h5").read(), images)
    said = run("decode", z, "-o", tmp_path / "plain.h5", "--guidance", "1")  # without what says how it was guided
    assert "under class 2, but the latents were made under class 2, guidance 1.5" in said


def test_another_condition_is_said(here: Path, tmp_path: Path) -> None:
    z = tmp_path / "z.h5"
    run("encode", here / "images", "-o", z, "--model", here / "told.pt2", "--steps", "5", "--label", "0")
    said = run("decode", z, "-o", tmp_path / "out", "--label", "2", "--solver", "ab2", "--steps", "20")
    assert "under class 2, but the latents were made under class 0: the images will differ from" in said
    first, other = (Image.open(folder / "0.png").getpixel((0, 0)) for folder in (here / "images", tmp_path / "out"))
    assert isinstance(first, int)
    assert isinstance(other, int)
    assert other > first + 60  # what was 0.6 from the one mean is as far from the other
    assert "condition" in run("inspect", z)
    y = tmp_path / "y.h5"
    run("encode", here / "images", "-o", y, "--model", here / "told.pt2", "--steps", "5", "--label", "1")
    assert "another condition" in run("neighbours", z, "--among", y, code=2)


def test_without_a_label_it_is_the_one_for_none(here: Path) -> None:
    field, x_T = odeddim.load(here / "told.pt2"), odeddim.noise(2, (1, 4, 4))
    images = odeddim.solve(x_T, model=field, steps=20)
    assert torch.equal(images, odeddim.solve(x_T, model=field.conditioned(3), steps=20))
    assert not torch.equal(images, odeddim.solve(x_T, model=field.conditioned(0), steps=20))


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (["--label", "7"], "classes 0 to 2, not 7"),
        (["--prompt", "a cat"], "no prompts"),
        (["--guidance", "inf"], "finite"),
        (["--guidance-interval", "1"], "LOW,HIGH"),
        (["--guidance-interval", "5,1"], "below the second"),
        (["--guidance-interval", "nan,1"], "below the second"),
        (["--guidance-interval", "1,2"], "guidance other than 1"),
        (["--guidance-rescale", "0.7"], "guidance other than 1"),
        (["--guidance", "2", "--guidance-rescale", "1.5"], "0<=x<=1"),
        (["--guidance", "2", "--guidance-rescale", "nan"], "a number from 0 to 1"),
    ],
)
def test_bad_conditions_are_one_sentence(here: Path, tmp_path: Path, told: list[str], words: str) -> None:
    said = run("sample", "-n", "1", "-o", tmp_path / "x.png", "--model", here / "told.pt2", *told, code=2)
    assert words in said
    assert "Traceback" not in said


def test_a_model_without_none_needs_a_label() -> None:
    field = VectorField(lambda x, t, y: x * 0, Schedule.linear(), name="strict", conditions=Classes(4))
    with pytest.raises(InputError, match=r"needs a class: give label=... from 0 to 3"):
        field(torch.tensor(1.0), torch.zeros(2, 1, 4, 4))
    with pytest.raises(InputError, match="guidance"):
        field.conditioned(2, guidance=3)
    told = field.conditioned(2)
    assert told.title == "strict (class 2)"
    assert "under class 2" in repr(told)


def test_a_condition_written_and_read_is_the_same() -> None:
    for condition in (
        Condition(),
        Condition(3),
        Condition(prompt='a "cat"\n', negative_prompt="dogs", guidance=7.5, interval=(0.25, 4)),
        Condition(label=0, guidance=0.0),
        Condition(1, guidance=3.0, guidance_rescale=0.7),
    ):
        assert Condition(**json.loads(json.dumps(condition.to_dict()))) == condition
        assert Condition(**replace(condition, guidance=2.0).to_dict()) != condition


def test_a_bench_says_the_condition_and_does_not_mix_them(here: Path, tmp_path: Path) -> None:
    bench = ("bench", "reconstruction", here / "images", "--model", here / "told.pt2", "-o", tmp_path / "b")
    small = ("--solvers", "euler@linear", "--steps", "5", "-n", "2")
    assert "told.pt2 (class 1)" in run(*bench, *small, "--label", "1")
    assert "under class 1" in run(*bench, *small, "--label", "2", code=2)


class Told32(torch.nn.Module):
    """A convolution, whose last digits depend on the shape of its batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 32, 3, padding=1)
        self.out = torch.nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h: torch.Tensor = self.out(torch.tanh(self.conv(x) + y[:, None, None, None]))
        return h


def told(**condition: float | tuple[float, float]) -> VectorField:
    field = VectorField.from_network(Told32(), Schedule.linear(), classes=3, null=3).conditioned(1, **condition)  # type: ignore[arg-type]
    field.network_batch = 4
    return field


def test_an_image_outside_the_interval_does_not_see_that_others_are_within() -> None:
    field = told(guidance=7.3, interval=(0.5, 2.0))
    xbar = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1, 1.0, 3.0, 1.5, 0.2], dtype=torch.float64)
    together = field(sigma, xbar)
    assert field.rows == 7
    for i in range(5):
        assert torch.equal(field(sigma[i : i + 1], xbar[i : i + 1])[0], together[i])
        assert torch.equal(field(sigma[i], xbar[i : i + 1])[0], together[i])
    assert torch.equal(told()(sigma[0], xbar)[0], together[0])


def test_an_adaptive_row_under_an_interval_does_not_see_neighbours() -> None:
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    field = told(guidance=3.0, interval=(0.3, 5.0))
    together = odeddim.encode(images, "dpm-solver-23", model=field, rtol=1e-2, atol=1e-2)
    for i in range(4):
        alone = odeddim.encode(images[i : i + 1], "dpm-solver-23", model=field, rtol=1e-2, atol=1e-2)
        assert torch.equal(alone.xbar[0], together.xbar[i])


def test_guidance_keeps_its_digits_under_an_interval() -> None:
    xbar = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor(1.0)
    fields = [told(guidance=7.3, interval=(0, 1e9)), told(guidance=7.3), told(), told().conditioned(3)]
    within, everywhere, alone, none = (field.to("cpu", torch.float64)(sigma, xbar) for field in fields)
    assert torch.equal(within, everywhere)
    assert torch.allclose(within, none + 7.3 * (alone - none), rtol=1e-14, atol=1e-14)


def test_fields_of_one_network_move_together_and_count_apart() -> None:
    field = told()
    one, other = field.conditioned(1), field.conditioned(2)
    one.to("cpu", torch.float64)
    assert field.dtype == other.dtype == torch.float64
    other(torch.tensor(1.0), torch.zeros(2, 3, 8, 8))
    assert (other.nfe, other.rows, one.nfe, field.nfe) == (1, 2, 0, 0)
    assert other.conditioned(1).nfe == 0
    plain = VectorField(lambda x, t: x, Schedule.linear()).to("cpu", torch.float64)
    assert plain.to("cpu").dtype == torch.float64
    assert plain.conditioned() is not plain


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ({"label": "3"}, "whole number"),
        ({"label": True}, "whole number"),
        ({"label": 3.0}, "whole number"),
        ({"prompt": 3}, "a text"),
        ({"guidance": "2"}, "finite"),
        ({"guidance": float("nan")}, "finite"),
        ({"guidance": 2, "interval": (0, 1, 2)}, "two noise levels"),
        ({"guidance": 2, "interval": (2, 1)}, "two noise levels"),
        ({"guidance": 2, "interval": 3}, "two noise levels"),
        ({"interval": (1, 2)}, "guidance other than 1"),
        ({"guidance_rescale": 0.7}, "guidance other than 1"),
        ({"guidance": 2, "guidance_rescale": -0.1}, "from 0 to 1"),
        ({"guidance": 2, "guidance_rescale": True}, "from 0 to 1"),
        ({"guidance": 2, "guidance_rescale": "0.7"}, "from 0 to 1"),
    ],
)
def test_wrong_conditions_are_refused(condition: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Condition(**condition)  # type: ignore[arg-type]


def test_wrong_classes_are_refused() -> None:
    for count, null in ((0, None), (True, None), (3, -1), (3, 1.5)):
        with pytest.raises(InputError, match=r"classes must|label for no class"):
            Classes(count, null)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no classes: give classes="):
        VectorField.from_network(lambda x, t: x, Schedule.linear(), null=3)


def test_what_was_found_under_a_condition_says_so(here: Path, tmp_path: Path) -> None:
    model = ("--model", here / "told.pt2")
    grid, plan = tmp_path / "grid.json", tmp_path / "b" / "plan.json"
    run("fit", here / "images", *model, "--label", "1", "--solver", "ab2", "--steps", "4", "-n", "2", "-o", grid)
    encode = ("encode", here / "images", "-o", tmp_path / "z.h5", *model, "--overwrite")
    use = ("--solver", "ab2", "--grid", grid)
    assert "computed under class 1, not class 2" in run(*encode, *use, "--label", "2")
    assert "computed under class 1, not without condition" in run(*encode, *use)
    assert "warning" not in run(*encode, *use, "--label", "1")
    find = ("bench", "work-precision", *model, "--label", "1", "--find", "3e-1", "-n", "2", "--solvers", "euler")
    run(*find, "-o", tmp_path / "b")
    assert "found under class 1, not class 2" in run(*encode, "--plan", plan, "--label", "2")
    assert "warning" not in run(*encode, "--plan", plan, "--label", "1")


def test_guidance_can_be_taken_back(here: Path, tmp_path: Path) -> None:
    z = tmp_path / "z.h5"
    guided = ("--label", "1", "--guidance", "2", "--guidance-interval", "0.5,5")
    run("encode", here / "images", "-o", z, "--model", here / "told.pt2", "--steps", "5", *guided)
    said = run("decode", z, "-o", tmp_path / "out", "--guidance", "1", "--solver", "ab2")
    assert "under class 1, but the latents were made under class 1, guidance 2 for σ in 0.5 to 5" in said
    assert "3 classes, 3 stands for none" in run("inspect", here / "told.pt2")
