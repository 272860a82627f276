"""--guide: kept with the latents by name and hash, found again by decode, and what does not fit is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from support import Told, save_told
from support import command as run

import odeddim
from odeddim.latents.latent_file import LatentFile
from odeddim.storage.images import open_images


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models of classes, good/told.pt2 and small/told.pt2, and three images."""
    folder = tmp_path_factory.mktemp("guided")
    for name, means in (("good", (-0.6, 0.0, 0.6, 0.1)), ("small", (-0.4, 0.1, 0.5, 0.0)), ("images", ())):
        (folder / name).mkdir()
        if means:
            save_told(folder / name, Told(means), null=3)
    for i in range(3):
        Image.new("L", (4, 4), 40 * i + 50).save(folder / "images" / f"{i}.png")
    return folder


def test_a_file_keeps_its_guide_and_decode_finds_it(here: Path, tmp_path: Path) -> None:
    z, model, guide = tmp_path / "z.h5", here / "good" / "told.pt2", here / "small" / "told.pt2"
    told = ("--label", "2", "--guidance", "1.5", "--guide", guide)
    said = run("encode", here / "images", "-o", z, "--model", model, "--steps", "10", *told)
    field, small = odeddim.load(model), odeddim.load(guide)
    words = f"class 2, guidance 1.5 by told.pt2 ({small.sha256[:12]})"
    assert words in said
    assert "20 evaluations per image" in said  # two for each of ten steps
    with LatentFile(z) as file:
        kept = {"model": str(guide.absolute()), "sha256": small.sha256}
        assert file.provenance.condition == {"label": 2, "guidance": 1.5, "guide": kept}
        latents = file.read(0, 3).xbar
    assert small.sha256 in run("inspect", z)
    images = open_images(here / "images").read()
    guided = field.conditioned(2, guidance=1.5, guide=small)
    guided.network_batch = 8
    assert torch.equal(odeddim.encode(images, "belm", model=guided, steps=10).xbar, latents)
    assert "warning" not in run("decode", z, "-o", tmp_path / "back.h5")
    assert torch.equal(open_images(tmp_path / "back.h5").read(), images)
    said = run("decode", z, "-o", tmp_path / "plain", "--guidance", "1", "--solver", "ab2")
    assert f"under class 2, but the latents were made under {words}" in said
    said = run("decode", z, "-o", tmp_path / "itself", "--guide", model, "--solver", "ab2")
    assert f"({field.sha256[:12]}), but the latents were made under {words}" in said
    assert f"under {words}" in run("explain", "--model", model, *told, "--steps", "10")


def test_a_guide_that_was_moved_or_changed(here: Path, tmp_path: Path) -> None:
    guide, z = tmp_path / "a" / "told.pt2", tmp_path / "z.h5"
    guide.parent.mkdir()
    save_told(guide.parent, Told((0.3, 0.2, 0.1, 0.0)), null=3)
    told = ("--label", "1", "--guidance", "2", "--guide", guide, "--steps", "5")
    run("encode", here / "images", "-o", z, "--model", here / "good" / "told.pt2", *told)
    moved = guide.parent.rename(tmp_path / "b") / "told.pt2"
    said = run("decode", z, "-o", tmp_path / "out", code=2)
    assert "guided by the model" in said
    assert "which was not found: give it with --guide" in " ".join(said.split())
    assert "warning" not in run("decode", z, "-o", tmp_path / "out", "--guide", moved)  # the same by its hash
    guide.parent.mkdir()
    save_told(guide.parent, Told((0.3, 0.2, 0.1, 0.5)), null=3)
    assert "have changed since" in run("decode", z, "-o", tmp_path / "out2", code=2)


def test_samples_of_classes_and_bridges_are_guided(here: Path, tmp_path: Path) -> None:
    model, guide = here / "good" / "told.pt2", here / "small" / "told.pt2"
    (tmp_path / "classes.txt").write_text("2\n0\n")
    how = ("--model", model, "--guidance", "2", "--guide", guide, "--steps", "5", "--solver", "euler")
    run("sample", "-o", tmp_path / "each.h5", "--labels-from", tmp_path / "classes.txt", *how)
    found = open_images(tmp_path / "each.h5").read()
    for i, label in enumerate((2, 0)):
        field = odeddim.load(model).conditioned(label, guidance=2, guide=odeddim.load(guide))
        alone = odeddim.sample(2, "euler", model=field, steps=5)[i]
        assert torch.allclose(alone, found[i], atol=1e-5)
    to = ("--to", model, "--to-label", "1", "--to-guidance", "2", "--to-guide", guide)
    bridge = ("bridge", here / "images", "--model", model, "--label", "1", "--steps", "5", "-o", tmp_path / "b", *to)
    assert "30 evaluations per image" in run(*bridge)  # there and back, the guided way twice


@pytest.mark.parametrize("each", [False, True])
def test_edits_are_guided_downwards(here: Path, tmp_path: Path, each: bool) -> None:
    model, guide = here / "good" / "told.pt2", here / "small" / "told.pt2"
    (tmp_path / "classes.txt").write_text("2\n2\n2\n")
    to = ("--to-each", tmp_path / "classes.txt") if each else ("--to", "2")
    how = ("--from", "0", *to, "--guidance", "1.5", "--guide", guide, "--steps", "8", "--sigma", "1")
    said = run("edit", here / "images", "-o", tmp_path / "e.h5", "--model", model, *how)
    small = odeddim.load(guide)
    assert ("" if each else "class 2, ") + f"guidance 1.5 by told.pt2 ({small.sha256[:12]})" in said
    field = odeddim.load(model)
    field.network_batch = small.network_batch = 8
    down = field.conditioned(2, guidance=1.5, guide=small)
    images = open_images(here / "images").read()
    edited = odeddim.edit(images, field.conditioned(0), down, sigma=1.0, steps=8)
    assert torch.equal(open_images(tmp_path / "e.h5").read(), edited.images)


def test_a_guided_object_keeps_its_guide(tmp_path: Path) -> None:
    both = [
        odeddim.VectorField.from_network(lambda x, t, w=w: w * x, odeddim.Schedule.linear(), name=f"mine-{w}")
        for w in (0.1, 0.05)
    ]
    subject = odeddim.jobs.Subject(both[0].conditioned(guidance=2, guide=both[1]), {"guidance": 3.0})
    made = odeddim.jobs.sample(2, tmp_path / "x.h5", model=subject, shape=(1, 4, 4), steps=4, solver="euler")
    assert "8 evaluations per image" in str(made)
    guided = both[0].conditioned(guidance=3, guide=both[1])
    alone = odeddim.sample(2, "euler", model=guided, shape=(1, 4, 4), steps=4)
    assert torch.allclose(open_images(tmp_path / "x.h5").read(), alone, atol=1e-4)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (["--guide", "GUIDE"], "give it with a guidance other than 1"),
        (["--guidance", "2", "--guide", "nowhere.pt"], "nowhere.pt"),
        (["--guidance", "2", "--guide", "fashion-mnist"], "works on data of 1×28×28"),
        (["--guidance", "2", "--guide", "exact-mixture", "--label", "1", "--negative-prompt", "a"], "leave out one"),
    ],
)
def test_bad_guides_are_one_sentence(here: Path, tmp_path: Path, told: list[str], words: str) -> None:
    given = [str(here / "small" / "told.pt2") if it == "GUIDE" else it for it in told]
    model = ("--model", here / "good" / "told.pt2")
    said = run("sample", "-n", "1", "-o", tmp_path / "x.png", *model, *given, code=2)
    assert words in " ".join(said.split())
    assert said.count("Error") == 1
