"""The built-in model on real images: what the paper's Table 2 shows, and what other solvers and grids gain over it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import odeddim
from odeddim.models.formats import native
from odeddim.storage.images import open_images

STEPS = (10, 20, 50)


def round_trip(x_0: Tensor, solver: str, grid: str, steps: int) -> float:
    """Per-dimension mean squared error on the [0, 1] scale."""
    state = odeddim.encode(x_0, solver, steps=steps, grid=grid)
    back = odeddim.decode(state, solver, steps=steps, grid=grid)
    return float(((back - x_0).double() / 2).square().mean())


@pytest.fixture(scope="module")
def x_0() -> Tensor:
    return open_images()[0:4]


@pytest.fixture(scope="module")
def errors(x_0: Tensor) -> dict[tuple[str, str], list[float]]:
    runs = (("euler", "linear"), ("ab2", "karras"))
    return {run: [round_trip(x_0, *run, steps) for steps in STEPS] for run in runs}


def test_eulers_error_falls_with_the_steps(errors: dict[tuple[str, str], list[float]]) -> None:
    ten, twenty, fifty = errors["euler", "linear"]
    assert ten > 2 * twenty
    assert twenty > 2 * fifty


def test_second_order_multistep_is_far_below_euler(errors: dict[tuple[str, str], list[float]]) -> None:
    """At the same evaluations: at least 10, 30, 500 times lower at 10, 20, 50."""
    for ours, eulers, factor in zip(errors["ab2", "karras"], errors["euler", "linear"], (10, 30, 500), strict=True):
        assert ours * factor < eulers, (ours, eulers)


def test_same_image_same_latent(x_0: Tensor) -> None:
    """Alone or in a batch: to float32 rounding, which a network's convolutions round differently for other batches."""
    whole = odeddim.encode(x_0, "ab2", steps=20)
    for i in (0, 3):
        alone = odeddim.encode(x_0[i : i + 1], "ab2", steps=20)
        assert float((alone.x - whole.x[i]).abs().max()) < 1e-4


def test_latents_have_unit_variance(x_0: Tensor) -> None:
    x_T = odeddim.encode(x_0, "ab2", steps=50).x
    assert float(x_T.std()) == pytest.approx(1, abs=0.1)


def test_model_file_says_what_it_is() -> None:
    description = native.describe(native.BUILT_IN / "fashion-mnist")
    assert description["weights"] == "ema"
    assert description["predicts"] == "eps"
    training = description["training"]
    assert training["commands"][0].startswith("odeddim train ")
    field = odeddim.load()
    assert field.shape == (1, 28, 28)
    assert field.schedule == odeddim.Schedule.linear()
    assert len(field.sha256) == 64


def test_its_loss_is_what_the_file_says() -> None:
    """On the sample images, which it was not trained on: near the validation loss that model.json states."""
    description = native.describe(native.BUILT_IN / "fashion-mnist")
    field, images = odeddim.load(), open_images().read()
    generator = torch.Generator().manual_seed(0)
    t = torch.linspace(0, 999, len(images)).round()[torch.randperm(len(images), generator=generator)]
    alpha = (1 / (1 + field.schedule.levels[t.long()] ** 2)).float().reshape(-1, 1, 1, 1)
    eps = torch.randn(images.shape, generator=generator)
    with torch.no_grad():
        predicted = field.eps(alpha.sqrt() * images + (1 - alpha).sqrt() * eps, t)
    loss = float((predicted - eps).square().mean())
    assert loss == pytest.approx(description["training"]["validation_loss"], rel=0.25)
