"""README's table of conventions, which of our grids is which of other code's: by running it, or by its formula."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from test_diffusers import InFloat64, make
from torch import Tensor

import odeddim
from odeddim.ode.analytic import GaussianMixture
from odeddim.ode.schedule import Schedule
from odeddim.types import State

diffusers = pytest.importorskip("diffusers", reason="diffusers is installed by the test extra")

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # torch's tensors in its numpy

LINEAR = Schedule.linear()
MODEL = odeddim.VectorField(GaussianMixture(torch.tensor([-0.6, 0.6]), std=0.15).network(LINEAR), LINEAR)
UNEVEN = [1, 2, 3, 7, 10, 30, 50, 300, 600, 999]


@pytest.fixture(autouse=True)
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """diffusers keeps its schedules in float32: its float32 is made float64, so that its own arithmetic is compared."""
    for name in ("DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"):
        module = sys.modules[getattr(diffusers, name).__module__]
        for library, float64 in (("torch", torch.float64), ("np", np.float64)):
            monkeypatch.setattr(module, library, InFloat64(getattr(module, library), float64))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def ddim(steps: int, spacing: str, **config: Any) -> Any:
    """diffusers' scheduler, set to so many steps; it clips samples unless told otherwise."""
    scheduler = make("DDIMScheduler", clip_sample=False, timestep_spacing=spacing, **config)
    scheduler.set_timesteps(steps)
    return scheduler


def noise() -> Tensor:
    """(2, 1, 4, 4), of unit variance."""
    return torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def run_of(scheduler: Any) -> Tensor:
    """What its loop makes of `noise`."""
    x = noise()
    for t in scheduler.timesteps:
        x = scheduler.step(MODEL.eps(x, torch.full((2,), float(t))), t, x).prev_sample
    return x


def ours(grid: str, steps: int, end: str) -> Tensor:
    """What `euler` makes of `noise` at the top of the grid, in x as diffusers has it: x̄ at σ_1 is √(1+σ_1²) of that."""
    top = float(odeddim.grid(grid, LINEAR, steps, end=end)[-1])
    state = State(noise() * math.hypot(1, top), top)
    found = odeddim.decode(state, "euler", model=MODEL, grid=grid, steps=steps, end=end)
    return found if end == "zero" else found / math.hypot(1, LINEAR.sigma_min)


@pytest.mark.parametrize("steps", [*UNEVEN, 1000])
def test_leading_is_ddims_default(steps: int) -> None:
    """timestep_spacing="leading", steps_offset=0 and set_alpha_to_one=True, whether or not S divides T."""
    assert (make("DDIMScheduler").config.timestep_spacing, make("DDIMScheduler").config.steps_offset) == ("leading", 0)
    assert torch.allclose(ours("leading", steps, "zero"), run_of(ddim(steps, "leading")), rtol=0, atol=1e-10)


@pytest.mark.parametrize("steps", UNEVEN)
def test_leading_to_sigma_min_is_stable_diffusions(steps: int) -> None:
    """Its labels are one higher, and it ends at the lowest one."""
    theirs = run_of(ddim(steps, "leading", steps_offset=1, set_alpha_to_one=False))
    assert torch.allclose(ours("leading", steps, "sigma_min"), theirs, rtol=0, atol=1e-10)


def test_labels_for_every_number_of_steps() -> None:
    for steps in range(1, 1001):
        for spacing in ("leading", "linspace"):
            labels = LINEAR.t(odeddim.grid(spacing, LINEAR, steps)[1:])
            assert labels.flip(0).tolist() == ddim(steps, spacing).timesteps.tolist(), (spacing, steps)


def test_ddims_linspace_agrees_with_itself_with_all_steps_only() -> None:
    """Its step is T//S labels long, its labels are (T-1)/(S-1) apart: 111 and 100 of them at S = 10."""
    for steps in (1, 1000):
        assert torch.allclose(ours("linspace", steps, "zero"), run_of(ddim(steps, "linspace")), rtol=0, atol=1e-10)
    assert ddim(10, "linspace").timesteps.diff().unique().tolist() == [-111]
    assert float((ours("linspace", 10, "zero") - run_of(ddim(10, "linspace"))).abs().max()) > 0.01


@pytest.mark.parametrize("steps", [1, 2, 10, 20, 50, 100, 1000])
def test_trailing_is_ddims_where_the_steps_divide_the_levels(steps: int) -> None:
    assert torch.allclose(ours("trailing", steps, "zero"), run_of(ddim(steps, "trailing")), rtol=0, atol=1e-10)
    assert torch.equal(odeddim.grid("trailing", LINEAR, steps), odeddim.grid("linear", LINEAR, steps))


@pytest.mark.parametrize("steps", [2, 7, 10, 20, 50])
def test_the_nodes_of_dpm_solver_and_of_karras(steps: int) -> None:
    theirs = make("DPMSolverMultistepScheduler", final_sigmas_type="sigma_min")
    theirs.set_timesteps(steps)
    nodes = odeddim.grid("linspace", LINEAR, steps, end="sigma_min").flip(0)
    assert torch.allclose(theirs.sigmas, nodes, rtol=1e-10, atol=0)
    for name in ("DPMSolverMultistepScheduler", "EulerDiscreteScheduler"):
        theirs = make(name, use_karras_sigmas=True)
        theirs.set_timesteps(steps)
        assert torch.allclose(theirs.sigmas, odeddim.grid("karras", LINEAR, steps).flip(0), rtol=1e-10, atol=0)


@pytest.mark.parametrize("steps", [2, 7, 20])
def test_k_diffusions_sigmas(steps: int) -> None:
    """get_sigmas_karras(n, σ_1, σ_T, ρ), and get_sigmas(n) of discrete models: even in t, log σ linear in t."""
    low, high = LINEAR.sigma_min, LINEAR.sigma_max
    for grid, rho in (("karras", 7.0), ("karras:5", 5.0)):
        ramp = np.linspace(0, 1, steps)
        karras = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        assert odeddim.grid(grid, LINEAR, steps).flip(0).tolist() == pytest.approx([*karras, 0.0], rel=1e-12)
    even = np.exp(np.interp(np.linspace(999, 0, steps), np.arange(1000), np.log(LINEAR.levels.numpy())))
    nodes = [0.0, *LINEAR.sigma(torch.linspace(0, 999, steps)).tolist()]
    assert nodes[::-1] == pytest.approx([*even, 0.0], rel=1e-12)


@pytest.mark.parametrize("steps", [1, 10, 20, 50, 100, 1000])
def test_ddims_own_uniform_list_is_leading_where_the_steps_divide_the_levels(steps: int) -> None:
    """range(0, T, T//S), and -1 for the image."""
    labels = list(range(0, 1000, 1000 // steps))
    assert odeddim.grid("leading", LINEAR, steps).tolist() == [0.0, *LINEAR.levels[labels].tolist()]
