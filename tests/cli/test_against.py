"""`odeddim verify --against`: how far two files of the same images are apart, and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import odeddim
from odeddim.latents.latent_file import LatentFile, LatentRun

Run = Callable[..., tuple[int, str, str]]
FAST = ("--model", "exact-mixture", "--batch-size", 2, "--steps", 4)


def photos(folder: Path, names: str) -> Path:
    """A small picture for each letter, the same wherever it lies."""
    folder.mkdir()
    for name in names:
        levels = np.random.default_rng(ord(name)).integers(0, 255, (4, 6), dtype=np.uint8)
        Image.fromarray(levels).save(folder / f"{name}.png")
    return folder


def test_what_differs_is_measured_and_named(run: Run, here: Path) -> None:
    """Against the latents themselves, of images matched by their names."""
    photos(here / "one", "abcd"), photos(here / "two", "bcde")
    assert run("encode", "one", "-o", "a.h5", "--solver", "leapfrog", *FAST)[0] == 0
    assert run("encode", "two", "-o", "b.h5", "--solver", "belm", "--network-batch", 3, *FAST)[0] == 0
    found = odeddim.jobs.verify("a.h5", against="b.h5")
    with LatentFile(Path("a.h5")) as one, LatentFile(Path("b.h5")) as two:
        change = one[1:].x.double() - two[:3].x.double()
    assert found.names == ("b.png", "c.png", "d.png")
    torch.testing.assert_close(found.figures["rms"], change.square().mean((1, 2, 3)).sqrt(), rtol=1e-14, atol=0)
    torch.testing.assert_close(found.figures["largest"], change.abs().amax((1, 2, 3)), rtol=1e-14, atol=0)
    assert found.order.tolist() == sorted(range(3), key=lambda i: -found.figures["rms"][i])
    assert found.against is not None
    assert (found.against.same, found.against.lacking) == (0, (1, 1))
    assert found.against.why["solver"] == ("leapfrog", "belm")
    assert found.against.why["network_batch"] == (8, 3)
    assert set(found.against.why) == {"solver", "network_batch", "images"}  # all else is the same, names of folders too
    code, out, err = run("verify", "a.h5", "--against", "b.h5", "--worst", 1)
    assert (code, err) == (0, "")
    assert "solver leapfrog against belm" in out
    assert "network batch 8 against 3" in out
    told = json.loads(run("verify", "a.h5", "--against", "b.h5", "--by", "largest", "--json")[1])
    assert [line["name"] for line in told["latents"]] == [
        found.names[i] for i in found.figures["largest"].argsort(descending=True)
    ]


def test_the_same_bits_are_counted(run: Run, here: Path) -> None:
    """Of x̄ and of what a reversible solver keeps, in files of other lengths and another order."""
    photos(here / "one", "abcd")
    assert run("encode", "one", "-o", "a.h5", "--solver", "belm", *FAST)[0] == 0
    with LatentFile(Path("a.h5")) as file:
        state, names, made, nodes = file.read(0, 4), file.names[:], file.provenance, file.nodes
    swapped = replace(state[[2, 0, 1]], plan=None)
    swapped.aux[0][1] += 1e-6  # of image a
    made = replace(made, versions={**made.versions, "torch": "1.0", "python": "2.7"})
    with LatentRun(Path("b.h5"), [names[i] for i in (2, 0, 1)], made, nodes) as file:
        for start, stop in file.batches(3):
            file.write(start, stop, swapped)
    found = odeddim.jobs.verify("a.h5", against="b.h5").against
    assert found is not None
    assert found.same == 2
    assert found.lacking == (1, 0)
    assert found.figures["largest"].tolist() == [0, 0, 0]
    assert dict(found.why) == {"torch": (torch.__version__, "1.0")}
    assert "2 of them with the same bits" in run("verify", "a.h5", "--against", "b.h5")[1]
    assert "what differs" not in run("verify", "a.h5", "--against", "a.h5")[1]


def test_what_cannot_be_compared_is_said(run: Run, here: Path) -> None:
    photos(here / "one", "ab"), photos(here / "two", "cd")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(here / "a.png")
    for images, output in (("one", "a.h5"), ("two", "b.h5"), ("a.png", "c.h5")):
        assert run("encode", images, "-o", output, *FAST)[0] == 0
    for arguments, words in (
        (("b.h5",), "no image in common"),
        (("c.h5",), "1×4×6, and c.h5 of 1×4×4"),
        (("d.h5",), "d.h5 does not exist"),
        (("b.h5", "--sheet", "s.png"), "leave out images and --sheet"),
        (("b.h5", "--by", "norm"), "unknown figure 'norm'"),
    ):
        code, _, err = run("verify", "a.h5", "--against", *arguments)
        assert (code, words in err) == (2, True), err


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_the_processor_is_told_and_compared(run: Run, here: Path) -> None:
    """A run does not go on where the network would round otherwise."""
    photos(here / "one", "ab")
    assert run("encode", "one", "-o", "a.h5", *FAST)[0] == 0
    with LatentFile(Path("a.h5")) as file:
        assert file.provenance.details["cpu"] == torch.backends.cpu.get_cpu_capability()
        assert file.provenance.details["onednn"] == torch.backends.mkldnn.is_available()
    with torch.backends.mkldnn.flags(enabled=False):
        code, _, err = run("encode", "one", "-o", "a.h5", *FAST)
    assert code == (2 if torch.backends.mkldnn.is_available() else 0), err
    assert "onednn: True then, False now" in err
