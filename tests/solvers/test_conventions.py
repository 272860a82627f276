"""The manual's tables of conventions (docs/grids.md): which of our grids is which of theirs, and what else differs.

By running the other code, or by its formula.
"""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_diffusers import InFloat64, make
from torch import Tensor

import odeddim
from odeddim.ode import grids
from odeddim.ode.analytic import GaussianMixture
from odeddim.ode.schedule import Schedule
from odeddim.types import State

diffusers = pytest.importorskip("diffusers", reason="diffusers is installed by the test extra")

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # torch's tensors in its numpy

LINEAR, FLOW = Schedule.linear(), Schedule.rectified_flow()
MODEL = odeddim.VectorField(GaussianMixture(torch.tensor([-0.6, 0.6]), std=0.15).network(LINEAR), LINEAR)
UNEVEN = [1, 2, 3, 7, 10, 30, 50, 300, 600, 999]
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "grids.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """diffusers keeps its schedules in float32: its float32 is made float64, so that its own arithmetic is compared."""
    for name in ("DDIM", "DDIMInverse", "DPMSolverMultistep", "EulerDiscrete", "FlowMatchEulerDiscrete"):
        module = sys.modules[getattr(diffusers, f"{name}Scheduler").__module__]
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
def test_the_nodes_of_dpm_solver_of_karras_and_of_log(steps: int) -> None:
    theirs = make("DPMSolverMultistepScheduler", final_sigmas_type="sigma_min")
    theirs.set_timesteps(steps)
    nodes = odeddim.grid("linspace", LINEAR, steps, end="sigma_min").flip(0)
    assert torch.allclose(theirs.sigmas, nodes, rtol=1e-10, atol=0)
    for name, (setting, grid) in itertools.product(
        ("DPMSolverMultistepScheduler", "EulerDiscreteScheduler"),
        (("use_karras_sigmas", "karras"), ("use_exponential_sigmas", "log")),
    ):
        theirs = make(name, **{setting: True})
        theirs.set_timesteps(steps)
        assert torch.allclose(theirs.sigmas, odeddim.grid(grid, LINEAR, steps).flip(0), rtol=1e-10, atol=0)


@pytest.mark.parametrize("shift", [1, 3, 5.0, 12.0])
def test_flow_is_the_list_of_the_scheduler_of_flows(shift: float) -> None:
    for steps in (1, 2, 7, 20, 50):
        theirs = make("FlowMatchEulerDiscreteScheduler", shift=shift)
        theirs.set_timesteps(steps)
        t = theirs.sigmas
        nodes = odeddim.grid(f"flow:{shift:g}", FLOW, steps).flip(0)
        assert (float(t[0]), float(nodes[0])) == (1, FLOW.sigma_max)
        assert torch.allclose(nodes[1:], (t / (1 - t))[1:], rtol=1e-10, atol=0)


@pytest.mark.parametrize("steps", [2, 7, 20])
def test_k_diffusions_sigmas(steps: int) -> None:
    """get_sigmas_karras(n, σ_1, σ_T, ρ), get_sigmas_exponential(n, σ_1, σ_T): even in σ^(1/ρ) and in log σ.

    And get_sigmas(n) of discrete models: even in t, log σ linear in t.
    """
    low, high = LINEAR.sigma_min, LINEAR.sigma_max
    even = np.exp(np.linspace(np.log(high), np.log(low), steps))
    assert odeddim.grid("log", LINEAR, steps).flip(0).tolist() == pytest.approx([*even, 0.0], rel=1e-12)
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


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_ddims_own_quadratic_list_ends_below_ours(steps: int) -> None:
    """int(√(0.8·T)·i/(S-1))² and so on; tests/core/test_api.py runs it."""
    labels = {int(root**2) for root in np.linspace(0, np.sqrt(1000 * 0.8), steps)}
    assert max(labels) in (799, 800)
    assert len(labels) == (49 if steps == 50 else steps)  # one of them twice
    assert float(LINEAR.t(odeddim.grid("quadratic", LINEAR, steps)[-1])) == 999


@pytest.mark.parametrize("steps", [2, 18])
def test_edms_sampler(steps: int) -> None:
    """Algorithm 1 of its paper, from noise times its highest level; tests/models/test_edm.py runs it on networks."""
    schedule = Schedule.edm()
    model = odeddim.VectorField(GaussianMixture(torch.tensor([-0.6, 0.6]), std=0.15).network(schedule), schedule)
    u = np.arange(steps) / (steps - 1)
    levels = [*((80 ** (1 / 7) + u * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7).tolist(), 0.0]
    x = start = noise() * 80
    for here, there in itertools.pairwise(levels):
        slope = model(torch.tensor(here), x)
        ahead = x + (there - here) * slope
        if there:
            ahead = x + (there - here) * (slope + model(torch.tensor(there), ahead)) / 2
        x = ahead
    found = odeddim.decode(State(start, 80.0), "heun", model=model, grid="edm", steps=steps)
    assert torch.allclose(found, x, rtol=0, atol=1e-10)
    its_own = odeddim.solve(noise(), "heun", model=model, grid="edm", steps=steps)
    ours = odeddim.decode(State(noise() * math.hypot(1, 80), 80.0), "heun", model=model, grid="edm", steps=steps)
    assert torch.equal(its_own, ours)


# What else differs.


@pytest.mark.parametrize("steps", [10, 20, 50, 1000])
def test_ddims_inverse_takes_the_label_of_the_target(steps: int) -> None:
    theirs = make("DDIMInverseScheduler", clip_sample=False)
    theirs.set_timesteps(steps)
    x = image = noise().clamp(-1, 1)
    for t in theirs.timesteps:
        x = theirs.step(MODEL.eps(x, torch.full((2,), float(t))), t, x).prev_sample
    nodes = odeddim.grid("leading", LINEAR, steps).tolist()
    above = dict(itertools.pairwise(nodes))
    found = odeddim.encode(image, "euler", model=MODEL.relabelled(above.__getitem__), grid=nodes).x
    assert torch.allclose(found, x, rtol=0, atol=1e-10)
    assert float((found - odeddim.encode(image, "euler", model=MODEL, grid=nodes).x).abs().max()) > 1e-4


def test_what_the_settings_of_diffusers_are_by_default() -> None:
    assert make("DDIMScheduler").config.clip_sample is True
    assert make("DDIMScheduler").init_noise_sigma == 1
    for spacing in ("linspace", "trailing", "leading"):
        theirs = make("EulerDiscreteScheduler", timestep_spacing=spacing)
        theirs.set_timesteps(10)
        top = float(theirs.sigmas.max())
        assert float(theirs.init_noise_sigma) == pytest.approx(math.hypot(1, top) if spacing == "leading" else top)
        x = noise() * top
        scaled = theirs.scale_model_input(x, theirs.timesteps[0])
        assert torch.allclose(scaled, x / math.hypot(1, top))  # so what it moves is x̄


# The page.

TESTED: dict[str, Any] = {
    "`DDIMScheduler()` without": test_leading_is_ddims_default,
    "`steps_offset=1`": test_leading_to_sigma_min_is_stable_diffusions,
    '`DDIMScheduler(timestep_spacing="trailing")`': test_trailing_is_ddims_where_the_steps_divide_the_levels,
    '`DDIMScheduler(timestep_spacing="linspace")`': test_ddims_linspace_agrees_with_itself_with_all_steps_only,
    "`DDIMInverseScheduler()`": test_ddims_inverse_takes_the_label_of_the_target,
    "`DPMSolverMultistepScheduler(": test_the_nodes_of_dpm_solver_of_karras_and_of_log,
    "`use_karras_sigmas=True`": test_the_nodes_of_dpm_solver_of_karras_and_of_log,
    "`use_exponential_sigmas=True`": test_the_nodes_of_dpm_solver_of_karras_and_of_log,
    "`FlowMatchEulerDiscreteScheduler(": test_flow_is_the_list_of_the_scheduler_of_flows,
    "`get_sigmas(S)`": test_k_diffusions_sigmas,
    "`--skip_type uniform`": test_ddims_own_uniform_list_is_leading_where_the_steps_divide_the_levels,
    "`--skip_type quad`": test_ddims_own_quadratic_list_ends_below_ours,
    "`edm_sampler`": test_edms_sampler,
}
"""What a line of the table of lists is known by, and the test of that line."""


def lines_of(heading: str) -> list[list[str]]:
    """The cells of the lines of a section's table, without those of its head."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [line.strip("| ").split(" | ") for line in re.findall(r"^\|.*\|$", section, re.MULTILINE)[2:]]


def test_every_line_of_the_table_of_lists_is_tested() -> None:
    lines = [there for there, _ in lines_of("Which of their lists is which of ours")]
    for line in lines:
        assert sum(known in line for known in TESTED) == 1, line
    for known in TESTED:
        assert sum(known in line for line in lines) == 1, known


def test_the_page_names_every_grid_and_no_other() -> None:
    named = {name for line in lines_of("The grids") for name in re.findall(r"`([a-z0-9:-]+)`", line[0])}
    assert named == {*grids.NAMES, "karras:5", "ays:sdxl", "ays:deepfloyd-if", "xue:2", "flow:3"}
    assert all(odeddim.grid(name, FLOW if "flow" in name else LINEAR, 5).shape == (6,) for name in named)
    for _, here in lines_of("Which of their lists is which of ours"):
        assert all(grids.is_named(name) for name in re.findall(r"--grid ([a-z0-9:-]+)", here)), here


@pytest.mark.parametrize("steps", [2, 3, 7, 10, 50, 300])
def test_the_formulas_of_the_page(steps: int) -> None:
    """As they stand there, with both ends; where a level would come twice, the grid takes the next."""
    T, levels = LINEAR.T, LINEAR.levels
    low, high = LINEAR.sigma_min, LINEAR.sigma_max
    for j in range(1, steps + 1):
        at_zero: dict[str, Any] = {
            "linear": levels[max(j * T // steps, 1) - 1],
            "trailing": levels[round(j * T / steps) - 1],
            "leading": levels[(j - 1) * (T // steps)],
            "linspace": levels[round((j - 1) * (T - 1) / (steps - 1))],
            "log": low * (high / low) ** ((j - 1) / (steps - 1)),
            "karras": (low ** (1 / 7) + (j - 1) / (steps - 1) * (high ** (1 / 7) - low ** (1 / 7))) ** 7,
        }
        if (level := j**2 * T // steps**2) > j:
            at_zero["quadratic"] = levels[level - 1]
        above: dict[str, Any] = {
            "linear": levels[j * (T - 1) // steps],
            "leading": levels[1 + (j - 1) * (T // steps)],
            "linspace": levels[round(j * (T - 1) / steps)],
            "log": low * (high / low) ** (j / steps),
        }
        for end, nodes in (("zero", at_zero), ("sigma_min", above)):
            for name, node in nodes.items():
                found = float(odeddim.grid(name, LINEAR, steps, end=end)[j])
                assert found == pytest.approx(float(node), rel=1e-12), (name, end, j)
