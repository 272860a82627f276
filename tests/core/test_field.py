"""VectorField: labels, units and dtypes of what the network sees; one field in five predictions; guards."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from odeddim.ode.analytic import GaussianMixture
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.types import InputError

LINEAR = Schedule.linear()
MIXTURE = GaussianMixture(torch.tensor([-0.6, 0.6]), std=0.15)


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_network_sees_x_and_t_of_the_node() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def eps(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x, t))
        return x

    field = VectorField(eps, LINEAR)
    xbar = images()
    for label in (0, 500, 999):
        sigma = LINEAR.levels[label]
        out = field(sigma, xbar)
        x, t = seen[-1]
        assert t.tolist() == [label] * 3
        assert torch.allclose(x, xbar / math.sqrt(1 + float(sigma) ** 2), rtol=1e-15)
        assert torch.equal(out, x)
    field(torch.tensor(0.0, dtype=torch.float64), xbar)
    assert seen[-1][1].tolist() == [0] * 3
    assert torch.equal(seen[-1][0], xbar)
    assert (field.nfe, field.rows) == (4, 12)
    field.reset()
    assert (field.nfe, field.rows) == (0, 0)


def test_one_sigma_per_image_is_one_image_at_a_time() -> None:
    for predicts, scheduler in (("eps", LINEAR), ("x0", Schedule.edm()), ("flow", Schedule.rectified_flow())):
        field = VectorField(lambda x, t: x.sin() + t.reshape(-1, 1, 1, 1) / 7, scheduler, predicts=predicts)
        xbar = images()
        sigma = torch.tensor([0.5, 3.0, 20.0], dtype=torch.float64)
        batch = field(sigma, xbar)
        for i in range(3):
            assert torch.allclose(batch[i], field(sigma[i], xbar[i : i + 1])[0], rtol=1e-14)


class Network(torch.nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.5, dtype=dtype))
        self.seen: tuple[torch.dtype, torch.dtype] | None = None

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen = (x.dtype, t.dtype)
        return self.gain * x


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_network_keeps_its_dtype_and_the_state_its_own(dtype: torch.dtype) -> None:
    network = Network(dtype)
    field = VectorField(network, LINEAR)
    for state in (torch.float32, torch.float64):
        assert field(LINEAR.levels[999], images().to(state)).dtype == state
        assert network.seen is not None
        assert network.seen[0] == dtype
        assert network.seen[1] == torch.promote_types(dtype, torch.float32)  # bfloat16 has no 999


def predictions() -> dict[str, VectorField]:
    """The mixture's ε posed as each kind of network would predict it, written from the definitions of x and x0."""
    flow, edm = Schedule.rectified_flow(), Schedule.edm()

    def parts(schedule: Schedule, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sigma = schedule.sigma(t).reshape(-1, 1, 1, 1)
        xbar = x / schedule.scale(sigma)
        eps = MIXTURE(sigma.reshape(-1), xbar)
        return xbar - sigma * eps, eps, sigma

    def v(x: Tensor, t: Tensor) -> Tensor:
        x0, eps, sigma = parts(LINEAR, x, t)
        alpha = 1 / (1 + sigma**2)
        return alpha.sqrt() * eps - (1 - alpha).sqrt() * x0

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        x0, eps, _ = parts(flow, x, t)
        return eps - x0

    return {
        "eps": VectorField(MIXTURE.network(LINEAR), LINEAR),
        "x0": VectorField(lambda x, t: parts(LINEAR, x, t)[0], LINEAR, predicts="x0"),
        "v": VectorField(v, LINEAR, predicts="v"),
        "flow": VectorField(velocity, flow, predicts="flow"),
        "edm": VectorField(lambda x, t: parts(edm, x, t)[0], edm, predicts="x0"),
    }


def test_one_field_in_five_predictions_is_one_trajectory() -> None:
    from odeddim import solvers
    from odeddim.plans import Plan, integrate
    from odeddim.types import State

    nodes = torch.logspace(math.log10(0.02), math.log10(60), 30, dtype=torch.float64)
    for solver in ("euler", "ab2", "dpmpp-2m", "rk4"):
        plan = Plan(solvers.get(solver), nodes)
        for sigma in nodes[[0, -1]].tolist():
            start = images() * (1 + sigma)
            ends = {name: integrate(field, State(start, sigma), plan).xbar for name, field in predictions().items()}
            for name, end in ends.items():
                assert float((end - ends["eps"]).abs().max()) < 1e-10 * float(ends["eps"].abs().max()), (solver, name)


def test_every_prediction_is_finite_at_sigma_zero() -> None:
    for name, field in predictions().items():
        assert bool(torch.isfinite(field(torch.tensor(0.0, dtype=torch.float64), images())).all()), name


def test_non_finite_output_names_sigma() -> None:
    field = VectorField(lambda x, t: x / 0, LINEAR, name="broken")
    with pytest.raises(InputError, match=r"'broken' returned NaN or infinite values at σ = 1\.5"):
        field(torch.tensor(1.5, dtype=torch.float64), images())


def test_refusals() -> None:
    field = VectorField(lambda x, t: x[:, :1], LINEAR, shape=(2, 4, 4))
    with pytest.raises(InputError, match="variances=True"):
        field(torch.tensor(1.0), images())
    with pytest.raises(InputError, match=r"2×4×4.*not 1×4×4"):
        field.check(images()[:, :1])
    broken = images()
    broken[1, 0, 0, 0] = math.nan
    with pytest.raises(InputError, match="image 1 "):
        field.check(broken)
    with pytest.raises(InputError, match="'epsilon'; here it is 'eps'"):
        VectorField(lambda x, t: x, LINEAR, predicts="epsilon")
