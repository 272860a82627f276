"""A lost exactness is said, whatever it is lost by: what differs, and how far off the images will be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import odeddim
from odeddim.jobs.machine import Place
from odeddim.storage.images import open_images

MIXTURE = ("--model", "exact-mixture")
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def test_what_makes_the_network_answer_otherwise_is_said(
    run: Command, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("encode", "-n", 2, "-o", "z.h5", *MIXTURE, "--steps", 4)
    details = Place.details

    def elsewhere(*arguments: Any) -> dict[str, Any]:
        return {**details(*arguments), "device": "cuda"}

    with monkeypatch.context() as patched:
        patched.setattr(Place, "details", elsewhere)
        run("encode", "-n", 2, "-o", "device.h5", *MIXTURE, "--steps", 4)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "__version__", "1.0.0")
        run("encode", "-n", 2, "-o", "torch.h5", *MIXTURE, "--steps", 4)
    assert run("decode", "z.h5", "-o", "as-encoded.h5")[::2] == (0, "")
    for file, options, difference in (
        ("z.h5", ("--dtype", "bfloat16"), "dtype bfloat16 where it was float32"),
        ("z.h5", ("--dtype", "float64"), "dtype float64 where it was float32"),
        ("z.h5", ("--network-batch", 4), "network batch 4 where it was 8"),
        ("z.h5", ("--threads", 2), "threads 2 where it was 1"),
        ("z.h5", ("--threads", 2, "--network-batch", 4), "network batch 4 where it was 8, threads 2 where it was 1"),
        ("device.h5", (), "device cpu where it was cuda"),
        ("torch.h5", (), f"PyTorch {torch.__version__} where it was 1.0.0"),
    ):
        code, out, err = run("decode", file, "-o", "x.h5", "--overwrite", *options)
        assert code == 0, options
        (line,) = err.splitlines()
        assert line.startswith(f"warning: {file} does not come back exactly by belm"), options
        assert f"({difference})" in line, options
        assert "expect images to be" in line, options
    # A sheet and a certificate are decoded too.
    for command in (("interpolate", "z.h5", "--loop", "0,1", "-n", 1, "--sheet", "loop.png"), ("verify", "z.h5")):
        assert ("network batch 4" in run(*command, "--network-batch", 4)[2]) == (command[0] == "verify"), command


def test_nothing_is_said_where_nothing_is_lost(run: Command, here: Path) -> None:
    run("encode", "-n", 2, "-o", "z.h5", *MIXTURE, "--steps", 4, "--solver", "ab3")
    assert run("decode", "z.h5", "-o", "x.h5", "--network-batch", 4)[::2] == (0, "")
    assert run("decode", "z.h5", "-o", "y.h5", "--solver", "euler")[::2] == (0, "")
    # Combined latents were never encoded: what was kept is their ends' way back.
    run("encode", "-n", 2, "-o", "ends.h5", *MIXTURE, "--steps", 4)
    run("interpolate", "ends.h5", "--pair", 0, 1, "-n", 3, "-o", "path.h5")
    assert run("decode", "path.h5", "-o", "path")[::2] == (0, "")


def test_another_run_is_said(run: Command, here: Path) -> None:
    run("encode", "-n", 2, "-o", "z.h5", *MIXTURE, "--steps", 4)
    run("encode", "-n", 2, "-o", "y.h5", *MIXTURE, "--steps", 5)  # a process says the same words once
    for arguments, says in (
        (("z.h5", "--solver", "ab2"), "kept by 'belm' for its way back, and 'ab2' starts from x̄ alone"),
        (("z.h5", "--steps", 7), "starts from x̄ alone"),
        (("y.h5", "--grid", "karras"), "starts from x̄ alone"),
    ):
        code, out, err = run("decode", *arguments, "-o", "x.h5", "--overwrite")
        assert code == 0, arguments
        assert [line.startswith("warning: ") for line in err.splitlines()] == [True], arguments
        assert says in err, arguments


def test_python_says_it_too() -> None:
    images = open_images()[0:1]
    state = odeddim.encode(images, "belm", model="exact-mixture", steps=4)
    with pytest.warns(UserWarning, match="kept by 'belm'"):
        odeddim.decode(state, "ab3", model="exact-mixture", steps=4)
    with pytest.warns(UserWarning, match="starts from x̄ alone"):
        odeddim.decode(state, "belm", model="exact-mixture", steps=5)
    state = odeddim.encode(images, "exact-euler", model="exact-mixture", steps=4)
    with pytest.warns(UserWarning, match="does not come back exactly"):
        odeddim.decode(state, "exact-euler", model="exact-mixture", steps=5)


def test_the_figure_is_about_right(run: Command, here: Path) -> None:
    """Of the built-in network: what decoding in bfloat16, and with another batch, is off by."""
    run("encode", "-n", 2, "-o", "z.h5", "--steps", 10)
    for options in (("--dtype", "bfloat16"), ("--network-batch", 3)):
        code, out, err = run("decode", "z.h5", "-o", "x.h5", "--overwrite", *options)
        found = re.search(r"expect images to be (\S+) off", err)
        assert found, err
        with h5py.File("x.h5") as file:
            off = np.sqrt(np.mean((file["images"][:].astype(float) - open_images()[0:2].numpy()) ** 2))
        assert off / 10 < float(found[1]) < off * 10, options
