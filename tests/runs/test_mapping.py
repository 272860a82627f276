"""Encoder and Decoder: batches of whoever maps them, with the bits of the jobs."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import odeddim
from odeddim.types import InputError

HOW: dict[str, Any] = {"solver": "belm", "steps": 3}
MODEL = "fashion-mnist"


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return ((odeddim.open_images()[:8][:, 0] + 1) * 127.5).round().to(torch.uint8).numpy()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, images: np.ndarray) -> Path:
    """What the jobs make of them."""
    here = tmp_path_factory.mktemp("jobs")
    odeddim.jobs.encode(images, here / "z.h5", model=MODEL, **HOW)
    odeddim.jobs.decode(here / "z.h5", here / "i.h5")
    return here


@pytest.mark.parametrize("as_given", [np.asarray, lambda x: x[:, None], lambda x: x[..., None], torch.from_numpy])
def test_batches_have_the_bits_of_jobs(jobs: Path, images: np.ndarray, as_given: Any) -> None:
    """Whatever the cut: 5 and 3 images. Other columns pass."""
    encoder = pickle.loads(pickle.dumps(odeddim.Encoder(MODEL, **HOW)))
    decoder = odeddim.Decoder(MODEL, **HOW)
    with odeddim.open(jobs / "z.h5") as file:
        wanted = file[:]
    decoded = odeddim.open_images(jobs / "i.h5")[:]
    for start in range(0, len(images), 5):
        rows = slice(start, start + 5)
        given = as_given(images[rows])
        made = encoder({"image": given, "label": np.arange(len(given))})
        kept = [f"aux/{k}" for k in range(len(wanted.aux))]
        assert sorted(made) == [*kept, "kept", "label", "latent", "sigma"]
        assert made["latent"].tobytes() == wanted[rows].xbar.numpy().tobytes()
        assert [made[name].tobytes() for name in kept] == [part[rows].numpy().tobytes() for part in wanted.aux]
        again = decoder(made)
        assert sorted(again) == ["image", "label"]
        assert again["image"].tobytes() == decoded[rows].numpy().tobytes()


def test_floats_are_not_guessed() -> None:
    """Bright images are no images between 0 and 1."""
    floats = np.full((2, 1, 28, 28), 0.5, np.float32)
    encoder = odeddim.Encoder("exact-mixture", solver="euler", steps=3)
    wanted = odeddim.encode(floats, "euler", model="exact-mixture", steps=3)
    assert encoder(floats)["latent"].tobytes() == wanted.xbar.numpy().tobytes()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: odeddim.Encoder(MODEL, steps=3)({"pixels": 1}), r"no column 'image' \(it has pixels\)"),
        (lambda: odeddim.Encoder(MODEL, steps=3)([1]), "an array or a tensor, not list"),
        (lambda: odeddim.Encoder(MODEL, steps=3)(np.zeros((1, 28, 28), int)), "bytes or floats .*, not int64"),
        (lambda: odeddim.Encoder(MODEL, solver="ddpm"), "ddpm"),
        (lambda: odeddim.Decoder(MODEL, solver="ddpm"), "index of an image, which the noise of 'ddpm' follows"),
        (lambda: odeddim.Decoder(MODEL, steps=3)({"latent": np.zeros((2, 1, 28, 28))}), "column 'sigma' too"),
        (
            lambda: odeddim.Decoder(MODEL, steps=3)({"latent": np.zeros((2, 1, 28, 28)), "sigma": [1.0, 2.0]}),
            "at one noise level, not at 2",
        ),
    ],
)
def test_what_cannot_be_mapped(call: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        call()


def test_in_a_dataloader(jobs: Path, images: np.ndarray) -> None:
    loader = torch.utils.data.DataLoader(torch.from_numpy(images), batch_size=7)
    encoder = odeddim.Encoder(MODEL, **HOW)
    latents = np.concatenate([encoder(batch)["latent"] for batch in loader])
    with odeddim.open(jobs / "z.h5") as file:
        assert latents.tobytes() == file[:].xbar.numpy().tobytes()
