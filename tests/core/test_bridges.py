"""Bridges: what one model encodes, another decodes; on exact fields against closed forms."""

from __future__ import annotations

import pytest
import torch

import odeddim
from odeddim import Schedule, VectorField
from odeddim.bridges import between, bridge
from odeddim.ode.analytic import Gaussian
from odeddim.types import InputError

F64 = torch.float64


def gaussian(mean: float, std: float, schedule: Schedule, predicts: str = "eps", name: str = "") -> VectorField:
    """The exact field of N(mean, std²), posed in another way."""
    exact = Gaussian(mean, std)

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sigma = schedule.sigma(t).reshape(-1, 1, 1, 1).to(x)
        xbar = x / schedule.scale(sigma)
        eps = exact(sigma.flatten(), xbar)
        x0 = xbar - sigma * eps
        return {"eps": eps, "flow": eps - x0, "x0": x0}[predicts]

    return VectorField(network, schedule, predicts=predicts, name=name or f"gaussian {mean}")


PAIRS = {
    "diffusion to diffusion": (Schedule.linear(), "eps", Schedule.cosine(), "eps"),
    "diffusion to flow": (Schedule.linear(), "eps", Schedule.rectified_flow(), "flow"),
    "flow to edm": (Schedule.rectified_flow(), "flow", Schedule.edm(), "x0"),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_a_bridge_between_gaussians_is_the_affine_map(pair: str) -> None:
    """Where they meet, x̄ is (x - m)·√((s² + σ²)/s²) + m: so the bridge is known in closed form."""
    one, its, other, theirs = PAIRS[pair]
    source, target = gaussian(-0.2, 0.3, one, its), gaussian(0.4, 0.5, other, theirs)
    x_0 = -0.2 + 0.3 * torch.randn(3, 1, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    found = bridge(x_0, source, target, "rk4", steps=200, grid="log", end="sigma_min")
    top = min(one.sigma_max, other.sigma_max)
    assert found.state.sigma == top
    met = Gaussian(-0.2, 0.3).flow(x_0, one.sigma_min, top)
    want = Gaussian(0.4, 0.5).flow(met, top, other.sigma_min)
    torch.testing.assert_close(found.state.xbar, met, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.images, want, rtol=1e-6, atol=1e-6)
    assert found.again is not None
    assert found.error is not None
    assert float(found.error.max()) < 1e-6


def test_the_cycle_error_is_the_rms_of_what_comes_back() -> None:
    source, target = gaussian(0, 0.3, Schedule.linear()), gaussian(0, 0.5, Schedule.rectified_flow(), "flow")
    x_0 = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = odeddim.bridge(x_0, source, target, steps=10)
    assert found.again is not None
    assert found.error is not None
    want = (found.again - x_0).double().square().mean(dim=(1, 2, 3)).sqrt()
    assert found.error.tolist() == pytest.approx(want.tolist(), rel=1e-6)
    assert float(found.error.min()) > 1e-4
    assert torch.equal(found.again, odeddim.bridge(found.images, target, source, steps=10, cycle=False).images)
    once = odeddim.bridge(x_0, source, target, steps=10, cycle=False)
    assert once.again is once.error is None
    assert torch.equal(once.images, found.images)


@pytest.mark.parametrize(
    ("solver", "grid"),
    [
        *((solver, None) for solver in ("dopri5", "tsit5-per-image")),
        *((s, g) for s in ("euler", "belm", "exact-euler", "unipc-2") for g in ("linear", "karras", "quadratic")),
    ],
)
def test_every_kind_of_row_meets_at_one_level(solver: str, grid: str | None) -> None:
    adaptive = odeddim.solvers.get(solver).adaptive
    source, target = gaussian(0, 0.3, Schedule.linear()), gaussian(0, 0.3, Schedule.rectified_flow(), "flow")
    over = between(source, target, solver, grid=grid, steps=None if adaptive else 7)
    assert over.sigma == Schedule.linear().sigma_max == over.target_plan.top
    if not adaptive:
        assert len(over.source_plan.nodes) == len(over.target_plan.nodes) == 8
    found = over.cross(torch.rand(2, 1, 4, 4))
    assert not found.state.aux  # what belongs to the way back of the source is none of the target's
    assert bool(torch.isfinite(found.images).all())


def test_a_rounded_top_is_one_for_both() -> None:
    """Of a list of nodes, the last is σ_T where it is that to rounding: of one of the models only."""
    flow = gaussian(0, 0.3, Schedule.rectified_flow(), "flow")
    over = between(gaussian(0, 0.3, Schedule.linear()), flow, grid=[0.0, 0.1, 3.0, 157.407])
    assert over.source_plan.top == over.target_plan.top == pytest.approx(157.407, rel=1e-5)


def test_what_does_not_meet_is_refused() -> None:
    linear = gaussian(0, 0.5, Schedule.linear())
    low = gaussian(0, 0.5, Schedule.exploding(sigma_max=3.0), name="low")
    with pytest.raises(InputError, match="would meet at σ = 3"):
        between(linear, low)
    with pytest.raises(InputError, match="would meet at σ = 2"):
        between(linear, linear, grid=[0.0, 1.0, 2.0])
    wide, small = (VectorField(lambda x, t: x, Schedule.linear(), shape=it) for it in ((3, 32, 32), (1, 28, 28)))
    with pytest.raises(InputError, match=r"3×32×32 .* 1×28×28"):
        between(wide, small)
    with pytest.raises(InputError, match="decode"):
        between(linear, linear, "ddpm")
    with pytest.raises(InputError, match="ends at σ = 200"):
        between(linear, gaussian(0, 0.5, Schedule.rectified_flow(), "flow"), grid=[0.0, 1.0, 200.0])

    class Autoencoder:
        image_shape = (3, 8, 8)
        sha256 = "another"

        def encode(self, images: torch.Tensor) -> torch.Tensor:
            return images

        def decode(self, data: torch.Tensor) -> torch.Tensor:
            return data

    latent = VectorField(lambda x, t: x, Schedule.linear(), name="latent", codec=Autoencoder())
    with pytest.raises(InputError, match="units"):
        between(linear, latent)
