"""Grids: exact numbers of steps, no duplicates, the paper's τ, both ends, files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odeddim import solvers
from odeddim.ode import grids
from odeddim.ode.schedule import Schedule
from odeddim.plans import Plan
from odeddim.types import InputError

LINEAR, FLOW = Schedule.linear(), Schedule.rectified_flow()
OVER_LEVELS = ("linear", "quadratic", "trailing", "leading", "linspace")


@pytest.mark.parametrize("end", grids.ENDS)
@pytest.mark.parametrize("name", [*grids.NAMES, "karras:5", "ays:sdxl", "ays:deepfloyd-if", "flow:3"])
def test_S_steps_are_S_steps_for_every_S(name: str, end: str) -> None:
    schedule = FLOW if name.startswith("flow") else LINEAR
    most = {"flow": 999, "flow:3": 333}.get(name, 1000 if end == "zero" or name not in OVER_LEVELS else 999)
    few = (1, 2, 3, 7, 12, 30, most)  # an optimisation for each number
    for steps in few if name == "xue" else (*range(1, 41), *range(41, most, 29), most):
        nodes = grids.grid(name, schedule, steps, end=end)
        assert nodes.shape == (steps + 1,)
        assert nodes.dtype == torch.float64
        assert bool((nodes.diff() > 0).all()), (name, steps)
        assert float(nodes[0]) == (0 if end == "zero" else schedule.sigma_min)
        assert float(nodes[-1]) == (FLOW.sigma_max if schedule is FLOW else top_of(name, steps, end))
        if name in OVER_LEVELS:
            labels = LINEAR.t(nodes[1:])
            assert torch.equal(labels, labels.round()), (name, steps)


def top_of(name: str, steps: int, end: str) -> float:
    """Where a grid ends on the linear schedule: at σ_T, but for EDM's and for two of diffusers'."""
    if name == "leading":
        return float(LINEAR.levels[(steps - 1) * (1000 // steps) + (end == "sigma_min")])
    if (name, steps, end) == ("linspace", 1, "zero"):
        return LINEAR.sigma_min
    return 80 if name == "edm" else LINEAR.sigma_max


@given(st.integers(2, 300), st.data())
def test_grids_over_any_number_of_levels(T: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, T))
    name = data.draw(st.sampled_from(OVER_LEVELS))
    nodes = grids.grid(name, Schedule.linear(T=T), steps)
    assert nodes.shape == (steps + 1,)
    assert bool((nodes.diff() > 0).all())


@pytest.mark.parametrize("steps", [1, 3, 7, 10, 30, 50, 100, 300, 999, 1000])
def test_linear_and_quadratic_are_the_papers_tau(steps: int) -> None:
    levels = [0.0, *LINEAR.levels.tolist()]  # α_0 := 1 is σ = 0
    linear = [levels[math.floor(1000 * i / steps)] for i in range(steps + 1)]
    assert grids.grid("linear", LINEAR, steps).tolist() == linear
    quadratic = grids.grid("quadratic", LINEAR, steps).tolist()
    for i in range(1, steps + 1):
        tau = (1000 * i * i) // (steps * steps)
        if tau >= i:  # below, the paper's floor repeats levels: here every step moves by one
            assert quadratic[i] == levels[tau]
        else:
            assert quadratic[i] == levels[i]


def test_trailing_is_diffusers_rounding() -> None:
    for steps in (1, 3, 7, 10, 25, 30, 50):
        timesteps = np.round(np.arange(1000, 0, -1000 / steps)) - 1
        assert LINEAR.t(grids.grid("trailing", LINEAR, steps)[1:]).tolist() == sorted(timesteps.tolist())


def test_karras_and_log_are_even_in_their_variable() -> None:
    for name, rho in (("karras", 7), ("karras:5", 5)):
        nodes = grids.grid(name, LINEAR, 20, end="sigma_min")
        assert torch.allclose((nodes ** (1 / rho)).diff(), (nodes ** (1 / rho)).diff().mean(), rtol=1e-9)
    nodes = grids.grid("log", LINEAR, 20)[1:]
    assert torch.allclose(nodes.log().diff(), nodes.log().diff().mean(), rtol=1e-12)


@given(st.integers(1, 300), st.floats(1e-4, 0.5), st.floats(0.6, 1e3), st.data())
def test_published_grids_on_any_range_of_levels(steps: int, low: float, high: float, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["edm", "ays", "ays:sdxl", "ays:deepfloyd-if"]))
    end = data.draw(st.sampled_from(grids.ENDS))
    nodes = grids.grid(name, Schedule.exploding(T=10, sigma_min=low, sigma_max=high), steps, end=end)
    assert nodes.shape == (steps + 1,)
    assert bool((nodes.diff() > 0).all())
    narrow = (max(low, 0.002), min(high, 80)) if name == "edm" else (low, high)
    assert float(nodes[-1]) == narrow[1]
    if end == "sigma_min" or steps > 1:
        assert float(nodes[0 if end == "sigma_min" else 1]) == narrow[0]


def test_edm_is_karras_on_edms_own_levels() -> None:
    for end in grids.ENDS:
        edm, karras = (grids.grid(name, Schedule.edm(), 18, end=end) for name in ("edm", "karras"))
        assert torch.equal(edm, karras)
    # Karras et al., eq. 5: the first five of 18 levels
    published = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(5)]
    assert grids.grid("edm", Schedule.edm(), 17, end="sigma_min").flip(0)[:5].tolist() == pytest.approx(published)
    assert float(grids.grid("edm", LINEAR, 10)[-1]) == 80 < LINEAR.sigma_max
    with pytest.raises(InputError, match="try grid='karras'"):
        grids.grid("edm", Schedule.exploding(sigma_min=100.0, sigma_max=200.0), 10)


@pytest.mark.parametrize("end", grids.ENDS)
def test_edm_keeps_to_the_levels_of_a_network_that_knows_no_others(end: str) -> None:
    """The nearest ones, as EDM's round_sigma gives; moved apart where several nodes are nearest to one."""
    levels = torch.tensor([0.01, 0.02, 0.5, 1, 2, 4, 8, 16, 32, 60, 80.25, 110, 900], dtype=torch.float64)
    schedule = Schedule.from_sigmas(levels)
    assert (schedule.discrete, LINEAR.discrete) == (True, False)
    low, high, most = 0.01, 80.0, 11
    for steps in range(1, most + (end == "zero")):
        count = steps + (end == "sigma_min")
        nodes = grids.grid("edm", schedule, steps, end=end)[-count:]
        assert set(nodes.tolist()) <= set(levels.tolist())
        assert bool((nodes.diff() > 0).all())
        assert float(nodes[-1]) == 80.25
        assert count == 1 or float(nodes[0]) == low
        u = np.linspace(0, 1, count)
        even = (low ** (1 / 7) + u * (high ** (1 / 7) - low ** (1 / 7))) ** 7
        nearest = [min(levels.tolist(), key=lambda level, node=node: abs(level - node)) for node in even]
        if count > 1 and len(set(nearest)) == count:
            assert nodes.tolist() == nearest
    assert grids.grid("edm", schedule, 11)[1:].tolist() == levels[:11].tolist()
    with pytest.raises(InputError, match="'edm' has only 11 noise levels"):
        grids.grid("edm", schedule, 12 if end == "zero" else 11, end=end)
    assert float(grids.grid("karras", schedule, 5, end=end)[-1]) == 900


def test_ays_are_the_published_lists() -> None:
    """Table 3's levels are those of the labels in the authors' quick start for Stable Diffusion."""
    labels = [0, 24, 124, 233, 343, 455, 545, 645, 736, 850, 999]
    schedule = Schedule.scaled_linear()
    ten = grids.grid("ays", schedule, 10, end="sigma_min")
    assert ten.tolist() == pytest.approx(schedule.levels[labels].tolist(), rel=8e-3)
    assert torch.equal(ten, grids.grid("ays:sd15", schedule, 10, end="sigma_min"))
    assert not torch.allclose(ten, grids.grid("ays:sdxl", schedule, 10, end="sigma_min"))
    twenty = grids.grid("ays", schedule, 20, end="sigma_min")
    assert torch.allclose(twenty[::2], ten, rtol=1e-12)
    assert torch.allclose(twenty[1::2], (ten[1:] * ten[:-1]).sqrt(), rtol=1e-12)
    place = (ten.log() - ten[0].log()) / (ten[-1] / ten[0]).log()
    there = grids.grid("ays", LINEAR, 10, end="sigma_min")
    assert torch.allclose((there.log() - there[0].log()) / (there[-1] / there[0]).log(), place, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shift", ["1", "3", "12.5"])
def test_flow_is_a_shift_of_even_times(shift: str) -> None:
    """Written as the papers have it, in t: t' = s·t/(1 + (s-1)·t), from t = 1 to the shifted 1/T."""
    s, shifted = float(shift), lambda t: float(shift) * t / (1 + (float(shift) - 1) * t)
    for steps in (1, 2, 7, 50):
        t = shifted(np.linspace(1, shifted(1 / 1000), steps))[::-1]
        nodes = grids.grid(f"flow:{shift}", FLOW, steps)
        assert (nodes / (1 + nodes))[1:-1].tolist() == pytest.approx(t[:-1], rel=1e-12)
        assert nodes[[0, -1]].tolist() == [0, FLOW.sigma_max]
        to_lowest = grids.grid(f"flow:{shift}", FLOW, steps, end="sigma_min")
        assert float(to_lowest[0]) == FLOW.sigma_min < float(nodes[1])
        assert torch.equal(to_lowest[1:], nodes[1:])
        below = grids.grid(f"flow:{shift}", FLOW, steps, top=4.0)
        assert float(below[-1]) == 4
        if steps > 1:
            even = below[1:] / (s + below[1:])  # the times before the shift
            assert even.tolist() == pytest.approx(np.linspace(shifted(1 / 1000), 4 / (s + 4), steps), rel=1e-12)


def test_flow_with_its_shift_of_one() -> None:
    assert torch.equal(grids.grid("flow", FLOW, 9), grids.grid("flow:1", FLOW, 9))
    assert not torch.allclose(grids.grid("flow", FLOW, 9), grids.grid("flow:2", FLOW, 9))


def test_flow_is_refused_where_it_has_no_room() -> None:
    for shift, most in (("1", 999), ("3", 333), ("12", 84)):
        assert len(grids.grid(f"flow:{shift}", FLOW, most)) == most + 1
        with pytest.raises(InputError, match=rf"'flow:{shift}' of {most + 1} steps has nodes at or above σ = 999"):
            grids.grid(f"flow:{shift}", FLOW, most + 1)
    with pytest.raises(InputError, match=r"has nodes at or above σ = 0.01, where it must end: give fewer steps"):
        grids.grid("flow:12", FLOW, 20, top=0.01)
    with pytest.raises(InputError, match=r"and Schedule.linear\(.*\) has other paths: try grid='log'"):
        grids.grid("flow:3", LINEAR, 10)
    for wrong in ("", "x", "0.5", "inf", "nan"):
        with pytest.raises(InputError, match="needs a shift from 1 to 1000 after the colon, as in 'flow:3'"):
            grids.grid(f"flow:{wrong}", FLOW, 10)


def test_refusals() -> None:
    with pytest.raises(InputError, match="karras"):
        grids.grid("karas", LINEAR, 10)
    with pytest.raises(InputError, match="at most 1000"):
        grids.grid("linear", LINEAR, 1001)
    with pytest.raises(InputError, match="at most 999"):
        grids.grid("quadratic", LINEAR, 1000, end="sigma_min")
    with pytest.raises(InputError, match="at least 1"):
        grids.grid("log", LINEAR, 0)
    with pytest.raises(InputError, match="ρ"):
        grids.grid("karras:x", LINEAR, 10)
    with pytest.raises(InputError, match="ays:sdxl"):
        grids.grid("ays:sd", LINEAR, 1)
    with pytest.raises(InputError, match="unknown grid"):
        grids.grid("edm:3", LINEAR, 10)
    with pytest.raises(InputError, match="unknown grid"):
        grids.grid("log:3", LINEAR, 10)
    with pytest.raises(InputError, match="sigma_min"):
        grids.grid("log", LINEAR, 10, end="sigmamin")


def test_grid_files(tmp_path: Path) -> None:
    text, json = tmp_path / "grid.txt", tmp_path / "grid.json"
    text.write_text("# mine\n0, 0.01\n1.5 20 # top\n")
    json.write_text("[0, 0.01, 1.5, 20]")
    for path in (text, json):
        assert grids.grid(str(path), LINEAR).tolist() == [0, 0.01, 1.5, 20]
        assert grids.grid(str(path), LINEAR, 3).tolist() == [0, 0.01, 1.5, 20]
        with pytest.raises(InputError, match="3 steps, not 50"):
            grids.grid(str(path), LINEAR, 50)


def test_the_nodes_of_a_plan_file_are_a_grid(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    nodes = grids.grid("karras", LINEAR, 7)
    Plan(solvers.get("ab3"), nodes, "karras", notes={"model": "a: b\n1 2", "steps": 7}).save(path)
    assert torch.equal(grids.grid(str(path), LINEAR), nodes)  # to the last bit
    assert torch.equal(grids.grid(str(path), LINEAR, 7), nodes)
    with pytest.raises(InputError, match="7 steps, not 50"):
        grids.grid(str(path), LINEAR, 50)
    assert torch.equal(grids.grid(str(path), LINEAR, end="zero"), nodes)
    with pytest.raises(InputError, match="begin at σ = 0"):
        grids.grid(str(path), LINEAR, end="sigma_min")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("1 2 x", "cannot be read"),
        ("[1, 2", "cannot be read"),
        ("", "two"),
        ("2 1", "rise"),
        ("0 nan", "finite"),
        ("-1 2", "negative"),
        ("[[1]]", "cannot"),
        ("{}", "cannot be read"),
        ('{"nodes": 1}', "cannot be read"),
        (f"[0, 1{'0' * 400}]", "cannot be read"),
    ],
)
def test_bad_grid_files_are_refused(tmp_path: Path, content: str, word: str) -> None:
    path = tmp_path / "grid.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=word) as error:
        grids.grid(str(path), LINEAR)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["linear", "quadratic", "trailing", "linspace", "log", "karras", "ays"])
@pytest.mark.parametrize("end", grids.ENDS)
def test_a_grid_can_end_below_the_top(name: str, end: str) -> None:
    schedule = Schedule.linear(T=100)
    whole = grids.grid(name, schedule, 20, end=end)
    assert torch.equal(grids.grid(name, schedule, 20, end=end, top=schedule.sigma_max), whole)
    top = float(schedule.levels[-20:-18].mean())  # between two levels
    nodes = grids.grid(name, schedule, 20, end=end, top=top)
    assert len(nodes) == 21
    assert float(nodes[-1]) == top
    assert bool((nodes[1:] > nodes[:-1]).all())
    most = grids.grid("linear", schedule, 100, top=schedule.sigma_max)
    assert torch.equal(most[1:], schedule.levels)
    for wrong in (schedule.sigma_max * 1.01, schedule.sigma_min / 2, float("nan")):
        with pytest.raises(InputError, match="cannot end"):
            grids.grid(name, schedule, 20, end=end, top=wrong)
    with pytest.raises(InputError, match="give grid='trailing' or grid='linear'"):
        grids.grid("leading", schedule, 20, end=end, top=top)
