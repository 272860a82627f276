"""The built-in rectified flow: eq. 13-14 hold for it as for a diffusion model: the same solvers, the same encode."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import odeddim
from odeddim import VectorField
from odeddim.models import FLOW
from odeddim.models.formats import native
from odeddim.storage.images import open_images

GRIDS = {"euler": "linear", "ab2": "karras"}


@pytest.fixture(scope="module")
def x_0() -> Tensor:
    return open_images()[0:4]


def straight(field: VectorField, x: Tensor, times: list[float]) -> Tensor:
    """The flow's own Euler, dx = u·dt on x = (1-t)·x0 + t·ε: nothing of odeddim's but the network."""
    with torch.no_grad():
        for here, there in itertools.pairwise(times):
            x = x + (there - here) * field.eps(x.float(), torch.full((len(x),), 1000 * here)).double()
    return x


def test_our_euler_is_the_flows_own(x_0: Tensor) -> None:
    """A step of Euler in (x̄, σ) is a step of Euler in (x, t): the straight line is the same in both."""
    field = odeddim.load(FLOW)
    nodes = odeddim.grid("linear", field.schedule, 20, end="sigma_min")
    times = (nodes / (1 + nodes)).tolist()
    begin = x_0.double()
    up = straight(field, begin * (1 - times[0]), times)  # images lie at x̄ on σ_1, so x is less by 1-t
    state = odeddim.encode(begin, "euler", model=field, grid=nodes)
    assert float(((1 - times[-1]) * state.xbar - up).abs().max()) < 1e-4 * float(up.abs().max())
    down = straight(field, up, times[::-1]) / (1 - times[0])
    back = odeddim.decode(state, "euler", model=field, grid=nodes)
    assert float((back - down).abs().max()) < 1e-3


def test_second_order_multistep_is_far_below_euler_here_too(x_0: Tensor) -> None:
    errors: dict[str, list[float]] = {}
    for solver, grid in GRIDS.items():
        for steps in (10, 20, 40):
            state = odeddim.encode(x_0[:2], solver, model=FLOW, steps=steps, grid=grid)
            back = odeddim.decode(state, solver, model=FLOW, steps=steps, grid=grid)
            errors.setdefault(solver, []).append(float(((back - x_0[:2]).double() / 2).square().mean()))
    assert errors["euler"][0] > errors["euler"][1] > errors["euler"][2]
    for ours, its, factor in zip(errors["ab2"], errors["euler"], (2, 10, 100), strict=True):
        assert ours * factor < its


def test_the_reversible_row_comes_back_bit_for_bit(x_0: Tensor) -> None:
    state = odeddim.encode(x_0, "belm", model=FLOW, steps=20)
    assert torch.equal(odeddim.decode(state, "belm", model=FLOW, steps=20), x_0)


def test_latents_have_unit_variance(x_0: Tensor) -> None:
    state = odeddim.encode(x_0, "ab2", model=FLOW, steps=50)
    assert state.sigma == pytest.approx(999)
    assert float(state.x.std()) == pytest.approx(1, abs=0.15)


def test_samples_are_images() -> None:
    """Not noise, and near the data's mean and contrast."""
    data, drawn = open_images().read(), odeddim.sample(16, "ab2", model=FLOW, steps=20)
    assert float(drawn.abs().max()) < 2
    assert float(drawn.mean()) == pytest.approx(float(data.mean()), abs=0.2)
    rough = [float((images[..., 1:] - images[..., :-1]).square().mean()) for images in (drawn, data)]
    assert rough[0] < 2 * rough[1]


def test_its_file_says_what_it_is() -> None:
    description = native.describe(native.BUILT_IN / FLOW)
    assert (description["predicts"], description["time"], description["weights"]) == ("flow", "index", "ema")
    assert description["schedule"]["name"] == "rectified_flow"
    assert "--predicts flow" in description["training"]["commands"][0]
    field = odeddim.load(FLOW)
    assert (field.shape, field.predicts) == ((1, 28, 28), "flow")
    assert (native.BUILT_IN / FLOW / native.WEIGHTS).stat().st_size <= 8_000_000
    assert math.isclose(float(field.schedule.label(torch.tensor(1.0), field.time)), 500)


def test_diffusion_and_flow_meet(x_0: Tensor) -> None:
    """Two models of the same images: an image crosses to something like itself, and comes back."""
    found = odeddim.bridge(x_0[:4], odeddim.models.DEFAULT, FLOW, steps=50)
    assert found.error is not None
    assert float(found.error.median()) < 0.05
    apart = (found.images - x_0[:4]).square().flatten(1).mean(dim=1).sqrt()
    others = (found.images - x_0[[1, 2, 3, 0]]).square().flatten(1).mean(dim=1).sqrt()
    assert bool((apart < others).all())
