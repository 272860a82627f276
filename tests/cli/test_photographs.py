"""Photographs through the commands: prepared as in Python, recorded, compared when a run goes on, bad files listed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import odeddim
from odeddim.jobs.subject import images_for
from odeddim.latents.latent_file import LatentFile
from odeddim.models.formats import native
from odeddim.train.checkpoint import saved_settings
from odeddim.types import InputError

Command = Callable[..., tuple[int, str, str]]
FAST = ("--model", "exact-samples", "--solver", "euler", "--steps", 2)
PREPARED = ("--resize", 28, "--background", "black", "--frames", "all", "--skip-bad")


@pytest.fixture
def photos(here: Path) -> Path:
    folder = here / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i, (width, height) in enumerate([(60, 40), (40, 60), (28, 28), (90, 30), (12, 14)]):
        PIL.Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
    PIL.Image.new("RGBA", (30, 20), (255, 0, 0, 99)).save(folder / "alpha.png")
    PIL.Image.fromarray((np.arange(900).reshape(30, 30) * 70).astype(np.uint16)).save(folder / "deep.png")
    frames = [PIL.Image.new("RGB", (30, 30), colour) for colour in ("red", "green", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    (folder / "bad.jpg").write_bytes((folder / "0.jpg").read_bytes()[:700])
    (folder / "._0.jpg").write_bytes(b"\0\5\x16\7")
    return folder


NAMES = [*(f"{i}.jpg" for i in range(5)), "alpha.png", "deep.png", *(f"moving#000{k}.gif" for k in range(3))]


def test_the_command_and_python_make_the_same_bits(run: Command, here: Path, photos: Path) -> None:
    code, out, err = run("encode", photos, "-o", "z.h5", *FAST, *PREPARED)
    assert code == 0, err
    assert out.splitlines()[-1].startswith("10 latents at σ = ")
    assert out.splitlines()[-1].endswith(", 1 file skipped")
    assert "warning: 1 of 8 images may be transparent in parts: they are laid on black\n" in err
    assert (
        "warning: 7 of 8 images are stored in colour and made gray, as the model 'exact-samples' takes them: --model "
        "names one of colour\n"
    ) in err
    last = err.splitlines()[-1]
    assert last.startswith("warning: skipped: bad.jpg cannot be read as an image (")
    assert "truncated" in last
    prepare = odeddim.Preparation(resize=28, background="black", frames="all", skip_bad=True)
    with pytest.warns(UserWarning, match="bad"):
        made = odeddim.jobs.encode(
            photos, here / "y.h5", model="exact-samples", solver="euler", steps=2, prepare=prepare
        )
    assert made.words.endswith(", 1 file skipped")
    with pytest.warns(UserWarning, match="laid on black"):
        images = odeddim.open_images(photos, channels=1, prepare=prepare).read()
    alone = odeddim.encode(images, "euler", model="exact-samples", steps=2)
    with LatentFile(here / "z.h5") as ours, LatentFile(here / "y.h5") as theirs:
        assert ours.names[:] == theirs.names[:] == NAMES
        assert torch.equal(ours[:].xbar, theirs[:].xbar)
        assert torch.allclose(ours[:].xbar, alone.xbar, atol=1e-4)


def test_what_was_done_is_shown_and_compared_and_done_again(run: Command, here: Path, photos: Path) -> None:
    assert run("encode", photos, "-o", "z.h5", *FAST, *PREPARED)[0] == 0
    shown = json.loads(run("inspect", "z.h5", "--json")[1])["details"]["prepared"]
    assert shown == {
        "resize": [28, 28], "crop": "center", "resampling": "lanczos", "background": "#000000", "frames": "all",
        "skipped": 1,
    }  # fmt: skip
    assert "resize 28, 28" in run("inspect", "z.h5")[1]
    before = (here / "z.h5").read_bytes()
    for other, says in (
        (("--pad",), "crop: center then, none now"),
        (("--crop", "none"), "crop: center then, none now"),
        (("--background", "white"), "background: #000000 then, none now"),
    ):
        code, _, err = run("encode", photos, "-o", "z.h5", *FAST, *PREPARED, *other)
        assert code == 2
        assert says in err
        assert "other images" not in err
    assert run("encode", photos, "-o", "z.h5", *FAST, *PREPARED)[0] == 0
    assert (here / "z.h5").read_bytes() == before
    code, out, err = run("verify", "z.h5")
    assert code == 0, err
    assert len(out.splitlines()) > 12


def test_the_size_of_the_model_is_the_default(run: Command, here: Path, photos: Path) -> None:
    (photos / "bad.jpg").unlink()
    for how in (("--resize", "model"), ("--crop", "center"), ("--resize", "28,28")):
        assert run("encode", photos, "-o", "z.h5", *FAST, *how)[0] == 0
    assert run("encode", photos, "-o", "padded.h5", *FAST, "--pad")[0] == 0
    with LatentFile(here / "z.h5") as cropped, LatentFile(here / "padded.h5") as padded:
        assert not torch.equal(cropped[:].xbar, padded[:].xbar)


def test_refusals_name_the_options(run: Command, photos: Path) -> None:
    for how, says in (
        ((), "1.jpg is 1×60×40 (channels×height×width), but 0.jpg is 1×40×60: --resize makes them one shape"),
        (("--resize", 16), "but the model takes 1×28×28: --resize scales and crops them as they are read"),
        (("--resize", "model"), "or leave out all such files with --skip-bad"),
        (("--resize", "wide"), "give a number of pixels"),
        (("--pad", "--crop", "center"), "--pad fills up where --crop center cuts off"),
        (("--background", "whitish"), "is no colour"),
    ):
        code, out, err = run("encode", photos, "-o", "z.h5", *FAST, *how)
        assert (code, out) == (2, "")
        assert says in err
        assert not Path("z.h5").exists()


def test_bridge_and_fit_and_bench_take_photographs(run: Command, here: Path, photos: Path) -> None:
    code, out, err = run("bridge", photos, "-o", "out", "--to", "exact-samples", *FAST, *PREPARED)
    assert code == 0, err
    assert ", 1 file skipped" in out
    assert sorted(path.name for path in (here / "out").glob("*.png"))[-1] == "moving#0002.png"
    assert json.loads((here / "out" / "odeddim.json").read_text())["details"]["prepared"]["frames"] == "all"
    code, out, err = run("bridge", photos, "-o", "out", "--to", "exact-samples", *FAST, *PREPARED, "--pad")
    assert code == 2
    assert "pad: none then, True now" in err
    model = ("--model", "exact-mixture")
    code, out, err = run("fit", photos, "-o", "plan.json", *model, "-n", 2, "--solver", "ab2", "--steps", 3, *PREPARED)
    assert code == 0, err
    assert "1 file skipped" in out
    assert json.loads((here / "plan.json").read_text())["notes"]["prepared"]["resize"] == [28, 28]
    few = ("-n", 2, "--solvers", "euler@linear", "--steps", 2)
    code, out, err = run("bench", "reconstruction", photos, *model, *few, *PREPARED, "-o", "bench")
    assert code == 0, err
    assert "1 file skipped" in out
    assert json.loads((here / "bench" / "reconstruction.json").read_text())["settings"]["prepared"]["crop"] == "center"


def test_a_training_run_keeps_its_preparation(run: Command, here: Path, photos: Path) -> None:
    tiny = ("--channels", 4, "--multipliers", 1, "--blocks", 1, "--attention", 4, "--batch-size", 2)
    code, _, err = run("train", photos, "-o", "model", *tiny, "--steps", 1, "--crop", "center")
    assert code == 2
    assert "give --resize SIZE" in err
    code, out, err = run("train", photos, "-o", "model", *tiny, "--steps", 1, "--resize", 8, "--skip-bad")
    assert code == 0, err
    assert "model holds the model (1 file skipped)" in out
    assert "warning: skipped: bad.jpg" in err
    assert odeddim.load(here / "model").shape == (3, 8, 8)
    assert native.describe(here / "model")["training"]["prepared"]["resize"] == [8, 8]
    code, _, err = run("train", photos, "-o", "model", "--steps", 2)  # as it was begun
    assert code == 0, err
    assert saved_settings(here / "model").prepared == {
        "resize": [8, 8], "crop": "center", "resampling": "lanczos", "skipped": 1,
    }  # fmt: skip
    code, _, err = run("train", photos, "-o", "model", "--steps", 3, "--resize", 8, "--pad", "--skip-bad")
    assert code == 2
    assert "the run has prepared" in err


def test_a_preparation_needs_a_size_where_the_model_has_none(run: Command, photos: Path) -> None:
    with pytest.raises(InputError, match="any size"):
        odeddim.jobs.encode(photos, "z.h5", model="exact-mixture", prepare=odeddim.Preparation(crop="center"))


COLOUR, GRAY = np.full((4, 28, 28, 3), 90, np.uint8), np.full((4, 28, 28), 90, np.uint8)


def pictures(here: Path, array: np.ndarray[Any, Any]) -> list[PIL.Image.Image]:
    return [PIL.Image.fromarray(each) for each in array]


def folder(here: Path, array: np.ndarray[Any, Any]) -> str:
    (here / "both").mkdir()
    for i, each in enumerate([*pictures(here, array), PIL.Image.new("L", (28, 28))]):
        each.save(here / "both" / f"{i}.png")
    return "both"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (folder, "4 of 5 images"),
        (lambda here, array: array, "4 of 4 images"),
        (lambda here, array: list(array), "4 of 4 images"),
        (pictures, "at least 1 of 4 images"),
    ],
)
def test_a_model_of_gray_images_says_that_it_makes_colour_gray(kind: Any, words: str, here: Path) -> None:
    field = odeddim.load("exact-samples")
    with pytest.warns(UserWarning, match=f"^{words} are stored in colour and made gray") as said:
        images_for(field, kind(here, COLOUR))
    assert len(said) == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [folder, lambda here, array: array, lambda here, array: list(array), pictures])
def test_nothing_is_said_of_gray_images_or_of_channels_that_were_asked_for(kind: Any, here: Path) -> None:
    field = odeddim.load("exact-samples")
    images_for(field, kind(here, GRAY))
    images_for(field, None)
    np.savez(here / "colour.npz", images=COLOUR)
    images_for(field, odeddim.open_images(here / "colour.npz", channels=1))
    images_for(odeddim.load("exact-gaussian"), COLOUR)
