"""Same image, same latent: whatever the batch size, the neighbours and their order, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import odeddim
from odeddim import solvers
from odeddim.api import decode, encode
from odeddim.models.networks.unet import UNet
from odeddim.ode.field import VectorField
from odeddim.ode.gaussian import Gaussian
from odeddim.ode.schedule import Schedule
from odeddim.types import State

Run = Callable[..., tuple[int, str, str]]
LOOSE = {"rtol": 0.1, "atol": 0.1}
ROWS = [name for name in solvers.names() if not solvers.get(name).stochastic]
IMPLICIT = ("scipy-lsoda", "scipy-radau", "scipy-bdf")  # as many evaluations as numbers for each Jacobian
ALONE = [name for name in ROWS if not solvers.get(name).shares_steps and name not in IMPLICIT]


COARSE = ("--rtol", 0.1, "--atol", 0.1)


class Rounded(torch.nn.Module):
    """A network of operations that IEEE 754 rounds correctly: on no machine can it depend on neighbours by itself."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.75, dtype=dtype))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        near = torch.roll(x, 1, dims=-1) * 0.25 - torch.roll(x, 1, dims=-2) * 0.125
        bent = (x + near) * self.weight
        return bent / (bent.abs() + 1) + bent * (t / 2000).to(x).reshape(-1, 1, 1, 1)


def fields(dtype: torch.dtype) -> dict[str, VectorField]:
    network = VectorField(Rounded(dtype), Schedule.linear())
    network.moments = Gaussian.isotropic(0.1, 0.5)
    return {"mixture": odeddim.load("exact-mixture"), "network": network}


def pictures(count: int, dtype: torch.dtype, *shape: int) -> Tensor:
    return (torch.rand(count, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1).to(
        dtype
    )


def columns(state: State) -> dict[str, Tensor]:
    return {"xbar": state.xbar, **{f"aux/{k}": part for k, part in enumerate(state.aux)}, **state.report}


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("network", torch.float32),
        ("mixture", torch.float64),
        pytest.param("network", torch.float64, marks=pytest.mark.slow),
        pytest.param("mixture", torch.float32, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", ALONE)
def test_no_row_of_the_table_mixes_images(name: str, kind: str, dtype: torch.dtype) -> None:
    """Alone, in threes, all together and in another order, by shapes whose ends are odd ends of vectors."""
    row = solvers.get(name)
    field = fields(dtype)[kind]
    x_0 = pictures(4 if row.one_by_one else 5, dtype, 3, 5, 7)
    field.network_batch = 4
    how: dict[str, Any] = dict(LOOSE) if row.adaptive else {"steps": 4}
    if row.family == "iterated":
        how["max_nfe"] = 40
    if row.queued:
        how["batch"] = 4
    whole = columns(encode(x_0, name, model=field, **how))
    for size in (1, 3):
        parts = [columns(encode(x_0[i : i + size], name, model=field, **how)) for i in range(0, len(x_0), size)]
        for key, values in whole.items():
            assert torch.equal(values, torch.cat([part[key] for part in parts])), (key, size)
    order = torch.randperm(len(x_0), generator=torch.Generator().manual_seed(2))
    turned = columns(encode(x_0[order], name, model=field, **how))
    for key, values in whole.items():
        assert torch.equal(values[order], turned[key]), (key, "in another order")


def unet() -> VectorField:
    torch.manual_seed(0)
    network = UNet(in_channels=3, image_size=8, channels=16, multipliers=(1, 2), blocks=1, attention=(4,))
    return VectorField(network.requires_grad_(False), Schedule.linear())


@settings(max_examples=10)
@given(
    cuts=st.lists(st.integers(1, 4), min_size=1, max_size=9),
    block=st.integers(1, 5),
    seed=st.integers(0, 100),
    name=st.sampled_from(["ab3", "belm", "dpmpp-2m", "implicit-adams"]),
)
def test_any_company_of_a_unet(cuts: list[int], block: int, seed: int, name: str) -> None:
    """A U-Net of one's own: images in any order, cut into any batches, by any block."""
    field = unet()
    field.network_batch = block
    x_0 = pictures(6, torch.float32, 3, 8, 8)
    whole = columns(encode(x_0, name, model=field, steps=3))
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    found, at = [], 0
    for size in (*cuts, 6):
        if at < 6:
            found.append(columns(encode(x_0[order[at : at + size]], name, model=field, steps=3)))
            at += size
    for key, values in whole.items():
        assert torch.equal(values[order], torch.cat([part[key] for part in found])), key


def test_one_at_a_time_no_network_depends_on_others() -> None:
    """Also one whose rows begin at odd places in memory, which matrix products see."""
    torch.manual_seed(0)

    class Dense(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(105, 105), torch.nn.SiLU(), torch.nn.Linear(105, 105))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            out: Tensor = self.layers(x.flatten(1)).reshape(x.shape)
            return out

    field = VectorField(Dense().requires_grad_(False), Schedule.linear())
    field.network_batch = 1
    x = pictures(13, torch.float32, 3, 5, 7)
    sigma = torch.tensor(1.5, dtype=torch.float64)
    whole = field(sigma, x)
    for i in range(13):
        assert torch.equal(field(sigma, x[i : i + 1]), whole[i : i + 1])


@pytest.mark.parametrize("block", [None, 1, 3, 4, 8, 50])
@pytest.mark.parametrize("count", [1, 3, 7, 8])
def test_filling_up_is_not_counted(count: int, block: int | None) -> None:
    """The network sees blocks of one size only; what comes back, and what is counted, are the images asked for."""
    seen: list[int] = []

    def eps(x: Tensor, t: Tensor) -> Tensor:
        assert len(x) == len(t)
        seen.append(len(x))
        return x * (1 + t.reshape(-1, 1, 1, 1) / 1000)

    field = VectorField(eps, Schedule.linear())
    x = pictures(count, torch.float64, 2, 3, 3)
    sigma = torch.linspace(0.1, 50, count, dtype=torch.float64)
    expected = field(sigma, x)
    field.reset()
    field.network_batch, seen[:] = block, []
    assert torch.equal(field(sigma, x), expected)
    assert (field.nfe, field.rows) == (1, count)
    assert seen == ([count] if block is None else [block] * -(-count // block))
    state = encode(x, "heun", model=field, steps=5)
    assert (field.nfe, field.rows) == (1 + 9, count * (1 + 9))
    assert state.xbar.shape == x.shape


def test_decoding_depends_on_no_neighbour() -> None:
    field = unet()
    field.network_batch = 4
    x_0 = pictures(6, torch.float32, 3, 8, 8)
    state = encode(x_0, "ab3", model=field, steps=4)
    whole = decode(state, "ab3", model=field, steps=4)
    for i in range(6):
        alone = State(state.xbar[i : i + 1], state.sigma)
        assert torch.equal(decode(alone, "ab3", model=field, steps=4), whole[i : i + 1])
