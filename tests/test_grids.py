"""Grids: exact numbers of steps, no duplicates, the paper's τ, both ends, files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odeddim import grids
from odeddim.schedule import Schedule
from odeddim.types import InputError

LINEAR = Schedule.linear()
OVER_LEVELS = ("linear", "quadratic", "trailing")


@pytest.mark.parametrize("end", grids.ENDS)
@pytest.mark.parametrize("name", [*grids.NAMES, "karras:5"])
def test_S_steps_are_S_steps_for_every_S(name: str, end: str) -> None:
    most = 1000 if end == "zero" or name not in OVER_LEVELS else 999
    for steps in range(1, most + 1):
        nodes = grids.grid(name, LINEAR, steps, end=end)
        assert nodes.shape == (steps + 1,)
        assert nodes.dtype == torch.float64
        assert bool((nodes.diff() > 0).all()), (name, steps)
        assert float(nodes[0]) == (0 if end == "zero" else LINEAR.sigma_min)
        assert float(nodes[-1]) == LINEAR.sigma_max
        if name in OVER_LEVELS:
            labels = LINEAR.t(nodes[1:])
            assert torch.equal(labels, labels.round()), (name, steps)


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
    import numpy as np

    for steps in (1, 3, 7, 10, 25, 30, 50):
        timesteps = np.round(np.arange(1000, 0, -1000 / steps)) - 1
        assert LINEAR.t(grids.grid("trailing", LINEAR, steps)[1:]).tolist() == sorted(timesteps.tolist())


def test_karras_and_log_are_even_in_their_variable() -> None:
    for name, rho in (("karras", 7), ("karras:5", 5)):
        nodes = grids.grid(name, LINEAR, 20, end="sigma_min")
        assert torch.allclose((nodes ** (1 / rho)).diff(), (nodes ** (1 / rho)).diff().mean(), rtol=1e-9)
    nodes = grids.grid("log", LINEAR, 20)[1:]
    assert torch.allclose(nodes.log().diff(), nodes.log().diff().mean(), rtol=1e-12)


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
        with pytest.raises(InputError, match="3 steps, but 50"):
            grids.grid(str(path), LINEAR, 50)


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
    ],
)
def test_bad_grid_files_are_refused(tmp_path: Path, content: str, word: str) -> None:
    path = tmp_path / "grid.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=word) as error:
        grids.grid(str(path), LINEAR)
    assert str(path) in str(error.value)
