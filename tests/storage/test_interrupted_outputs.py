"""Every kind of picture that is written: a kill or a full disk at any moment leaves a whole file or none."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import killed_at

from odeddim import jobs
from odeddim.types import InputError

HOW: dict[str, Any] = {"model": "exact-mixture", "solver": "bdia", "steps": 2}
ANIMATED = ("a.gif", "a.webp")


def make(name: str) -> None:
    """What a user asks for, in batches of two."""
    small = jobs.Machine(batch_size=2)
    if name in ANIMATED:
        drawing = jobs.Drawing(animation=jobs.Animation(Path(name)), machine=small)
        jobs.interpolate("z.h5", (0, 1), 4, to=drawing)
    elif name == "e.html":
        jobs.explore("z.h5", name, tiles=2, levels=2, machine=small)
    else:
        place, _, format = name.partition(":")
        jobs.decode("z.h5", jobs.Pictures(Path(place), format=format or "png"), machine=small)


def content(name: str) -> dict[str, bytes]:
    """The bytes of a file, or of the files of a folder, without the notes of its run."""
    place = Path(name.partition(":")[0])
    files = sorted(place.rglob("*")) if place.is_dir() else [place] * place.exists()
    return {path.name: path.read_bytes() for path in files if path.is_file() and not path.name.startswith(".")}


def leavings(here: Path) -> list[str]:
    return [path.name for path in here.rglob("*") if path.name.endswith((".tmp", ".parts", ".lock"))]


def full_at(step: int, patched: pytest.MonkeyPatch, make: Callable[[], Any]) -> str:
    """Make something on a disk that is full from a step on; what is said of it, "" if the disk sufficed."""
    left = [step]

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            left[0] -= 1
            if left[0] <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*arguments, **more)

        return call

    with patched.context() as now:
        for name in ("replace", "fsync", "mkdir"):
            now.setattr(os, name, failing(getattr(os, name)))
        try:
            make()
        except InputError as error:
            return str(error)
    return ""


@pytest.fixture
def latents(here: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    jobs.encode(pixels, "z.h5", **HOW)
    return here


OUTPUTS = ("sheet.png", "x.npz", "png", "jpeg:jpeg", "webp:webp", *ANIMATED, "e.html")
OTHERS = ("jpeg:jpeg", "webp:webp", *ANIMATED[1:])
"""Files that are written as one of the rest is: `pytest -m slow` kills them too."""
EACH = [pytest.param(name, marks=[pytest.mark.slow] if name in OTHERS else []) for name in OUTPUTS]


@pytest.mark.parametrize("name", EACH)
def test_a_kill_at_any_moment(latents: Path, name: str) -> None:
    make(name)
    whole, place = content(name), Path(name.partition(":")[0])
    assert whole
    kills = 0
    for step in range(1, 99):
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        if not killed_at(step, lambda: make(name)):
            break
        kills += 1
        there = content(name)
        assert there.items() <= whole.items(), step
        make(name)
        assert content(name) == whole, step
        assert not leavings(latents), step
    assert kills > 1


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_full_disk_at_any_moment(latents: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(name)
    whole, place = content(name), Path(name.partition(":")[0])
    refused = 0
    for step in range(1, 99):
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        said = full_at(step, monkeypatch, lambda: make(name))
        if not said:
            break
        refused += 1
        assert "No space left on device" in said, step
        assert content(name).items() <= whole.items(), step
        make(name)
        assert content(name) == whole, step
        assert not leavings(latents), step
    assert refused > 1
