"""Every solver and every command on a stand-in for a GPU (`device_double`): nothing here has seen a real one.

Tensors meet on one device, the bits are the CPU's, and the host waits no more often than it is known to.
"""

from __future__ import annotations

import pytest
import torch
from device_double import TORCH, Double, OnDevice
from torch import Tensor, nn

import odeddim
from odeddim import solvers
from odeddim.api import plan
from odeddim.field import VectorField
from odeddim.schedule import Schedule
from odeddim.types import State

pytestmark = pytest.mark.skipif(
    not torch.__version__.startswith(TORCH),
    reason=f"the stand-in for a GPU is made of private parts of torch {TORCH}*, and this is {torch.__version__}",
)

# How often the host may wait in an evaluation, by family: as often as it does, and no more.
WAITS = {
    "one-step": 1.3,
    "exponential": 1.3,
    "multistep": 1.4,
    "reversible": 13,
    "torchdiffeq": 8,
    "torchdiffeq adaptive": 25,
    "iterated": 30,
    "per image": 6,
    "scipy": 6,
    "stochastic": 2.5,
}
BESIDES = 12  # waits of a run
IMAGES = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Network(nn.Module):
    """steep: how much of it is not linear: steps then fail, and images differ in which."""

    def __init__(self, steep: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.steep = nn.Conv2d(1, 1, 3, padding=1), steep

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 0.7 * x + self.steep * torch.tanh(self.conv(x)) * torch.cos(t / 1000)[:, None, None, None]


def field(steep: float = 0.1) -> VectorField:
    return VectorField(Network(steep).requires_grad_(False), Schedule.linear(), shape=(1, 4, 4))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", solvers.names())
def test_every_row_runs_on_one_device_and_gives_the_same_bits(name: str) -> None:
    row = solvers.get(name)
    row = row.with_settings(rtol=0.1, atol=0.1) if row.adaptive else row
    row, nodes = plan(Schedule.linear(), row, None if row.adaptive else 8)
    grid = None if row.adaptive else nodes
    start = State(IMAGES * 157, float(nodes[-1])) if row.stochastic else None
    latent = start or odeddim.encode(IMAGES, row, model=field(), grid=grid)
    image = odeddim.decode(latent, row, model=field(), grid=grid)
    with Double() as double:
        model = field().to("cuda:0")
        double.waits.clear()
        there = start or odeddim.encode(IMAGES, row, model=model, grid=grid)
        back = odeddim.decode(there, row, model=model, grid=grid)
    assert isinstance(back, OnDevice)
    assert torch.equal(back.inner, image)
    if not row.stochastic:
        assert torch.equal(there.xbar.inner, latent.xbar)
        assert [part.inner.tolist() for part in there.aux] == [part.tolist() for part in latent.aux]
    assert double.waits.total() <= WAITS[row.family] * model.nfe + BESIDES, double.waits.most_common(5)
