"""Stand-ins for what the pages name: tiny pipelines with drawn weights, in folders named as on the hub."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from odeddim.models.formats.native import BUILT_IN


def unet_pipeline(folder: Path) -> None:
    import diffusers
    from test_diffusers_models import network, saved

    saved(folder, network(), diffusers.DDPMScheduler())


def stable_diffusion(folder: Path) -> None:
    import diffusers
    from test_latent_diffusion import AS_SD, stable_diffusion

    stable_diffusion(folder.parent / "scratch", diffusers.DDIMScheduler(**AS_SD))
    (folder.parent / "scratch" / "model").rename(folder)


def photos(folder: Path, size: tuple[int, int] = (32, 32), count: int = 4) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        tone = Image.linear_gradient("L").rotate(90 * i).resize(size)
        Image.merge("RGB", (tone, tone.transpose(Image.Transpose.FLIP_TOP_BOTTOM), tone)).save(folder / f"{i}.png")


STAND_INS: dict[str, Callable[[Path], object]] = {
    "google/ddpm-cifar10-32": unet_pipeline,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": stable_diffusion,
    "photos": photos,
    "MODEL": lambda folder: shutil.copytree(BUILT_IN / "fashion-mnist", folder),
}
"""What a page may name, and what makes it: a page that says `photos/` finds a folder of photographs there."""


@pytest.fixture
def furnished(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes what a page's text names, in the current folder."""
    monkeypatch.setattr(logging, "raiseExceptions", False)  # diffusers logs to the stderr that was there at its import

    def furnish(text: str) -> Path:
        for name, make in STAND_INS.items():
            if f"{name}/" in text or f'"{name}"' in text or f" {name}\n" in text or f" {name} " in text:
                make(here / name)
        return here

    return furnish
