"""Guidance rescale: against eq. 15 and 16 of arXiv 2305.08891 in NumPy, and an image's own bits.

Against diffusers: tests/models/test_latent_diffusion.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from odeddim import Schedule, VectorField
from odeddim.ode.conditions import Condition
from odeddim.ode.guidance import rescaled


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """Answers whose mean and spread depend on image and class."""
    return torch.tanh(x * (1 + 2.0 * label[:, None, None, None])) + 0.3 * label[:, None, None, None]


def by_hand(told: Tensor, none: Tensor, weight: float, phi: float) -> Tensor:
    """Image by image: x_cfg, then x_rescaled = x_cfg·σ_pos/σ_cfg, then φ·x_rescaled + (1-φ)·x_cfg."""
    out = []
    for pos, neg in zip(told.double().numpy(), none.double().numpy(), strict=True):
        cfg = neg + weight * (pos - neg)
        out.append(phi * (cfg * np.std(pos) / np.std(cfg)) + (1 - phi) * cfg)
    return torch.from_numpy(np.stack(out))


@pytest.mark.parametrize("phi", [0.25, 0.7, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_papers_formula(phi: float, dtype: torch.dtype) -> None:
    field = VectorField.from_network(network, Schedule.edm(), classes=2, null=2, name="mine")
    xbar, sigma = draw(1, 5, 3, 8, 8).to(dtype), torch.tensor(1.3)
    told, none = (field.conditioned(label)(sigma, xbar) for label in (1, 2))
    for weight in (7.5, -1.0, 0.0):
        ours = field.conditioned(1, guidance=weight, guidance_rescale=phi)(sigma, xbar)
        assert ours.dtype == dtype
        assert float((ours - by_hand(told, none, weight, phi)).abs().max()) < (
            1e-6 if dtype == torch.float32 else 1e-14
        ) * max(1, abs(weight))
    plain = field.conditioned(1, guidance=7.5)(sigma, xbar)
    assert torch.equal(plain, field.conditioned(1, guidance=7.5, guidance_rescale=0)(sigma, xbar))
    assert not torch.allclose(plain, field.conditioned(1, guidance=7.5, guidance_rescale=phi)(sigma, xbar), rtol=1e-2)


@pytest.mark.parametrize("size", [(1, 3, 3), (4, 7, 5), (13,), (2, 3, 4, 5), (4, 96, 96)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_has_its_own_bits(size: tuple[int, ...], dtype: torch.dtype) -> None:
    """In any batch, at any place in it, with any number of threads, in any memory format."""
    told, guided = draw(4, 7, *size).to(dtype), 3 * draw(5, 7, *size).to(dtype)
    together = rescaled(guided, told, 0.7)
    for i in range(7):
        assert torch.equal(rescaled(guided[i : i + 1], told[i : i + 1], 0.7), together[i : i + 1])
    assert torch.equal(rescaled(guided.flip(0), told.flip(0), 0.7).flip(0), together)
    if len(size) == 3:
        last = [part.to(memory_format=torch.channels_last) for part in (guided, told)]
        assert torch.equal(rescaled(*last, 0.7), together)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(rescaled(guided[:1], told[:1], 0.7), together[:1])
    finally:
        torch.set_num_threads(threads)


def test_only_where_guidance_holds_and_in_half_precision() -> None:
    field = VectorField.from_network(network, Schedule.edm(), classes=2, null=2, name="mine")
    within = field.conditioned(1, guidance=4, guidance_rescale=1, interval=(0.5, 2.0))
    levels, xbar = torch.tensor([0.1, 1.0, 5.0]), draw(6, 3, 1, 8, 8)
    ours, alone = within(levels, xbar), field.conditioned(1)(levels, xbar)
    assert torch.equal(ours[0], alone[0])
    assert torch.equal(ours[2], alone[2])
    assert ours[1].std(correction=0) == pytest.approx(float(alone[1].std(correction=0)), rel=1e-6)  # φ = 1: as told
    assert not torch.allclose(ours[1], alone[1], rtol=1e-2)
    answers = (60000 * draw(part, 2, 1, 64, 64).sign().half() for part in (7, 8))
    assert bool(torch.isfinite(rescaled(*(part.float() for part in answers), 0.5)).all())


def test_a_constant_answer_stays() -> None:
    one = torch.full((2, 1, 1, 1), 3.0)
    assert torch.equal(rescaled(one, one / 2, 0.7), one)  # an image of one value has no deviation
    mixed = torch.stack([torch.ones(4), torch.arange(4.0)])
    assert torch.equal(rescaled(mixed, 2 * mixed, 1.0), torch.stack([torch.ones(4), 2 * torch.arange(4.0)]))


def test_in_words() -> None:
    assert Condition(3, guidance=7.5, guidance_rescale=0.7).words == "class 3, guidance 7.5 rescaled by 0.7"
    everything = Condition(3, guidance=7.5, interval=(0.3, 5), guidance_rescale=0.7)
    assert everything.words == "class 3, guidance 7.5 rescaled by 0.7 for σ in 0.3 to 5"
    assert "guidance_rescale" not in Condition(3, guidance=7.5).to_dict()
