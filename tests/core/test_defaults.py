"""One default for each job, the same in Python and on the command line, and each is what was measured."""

from __future__ import annotations

import inspect
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import odeddim
from odeddim import defaults, solvers
from odeddim.latents.latent_file import LatentFile
from odeddim.models import load
from odeddim.types import InputError

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = "exact-mixture"


@pytest.fixture(scope="module")
def benchmark() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "defaults.py"))


@pytest.fixture(scope="module")
def table(benchmark: dict[str, Any]) -> list[dict[str, str]]:
    lines: list[dict[str, str]] = benchmark["read"](ROOT / "benchmarks" / "defaults.csv")
    return lines


def test_each_row_has_the_grid_that_was_measured_best(benchmark: dict[str, Any], table: list[dict[str, str]]) -> None:
    """But `euler`, which is DDIM as its paper has it, on linear τ."""
    measured = {name: benchmark["grids_of"](table, name) for name in {line["solver"] for line in table} - {"euler"}}
    assert {"unipc-2", "belm", "ab3", "dpmpp-2m"} <= set(measured)
    assert {name: grids[0][1] for name, grids in measured.items() if grids} == {
        name: solvers.get(name).grid for name, grids in measured.items() if grids
    }


def test_the_defaults_are_the_best_that_was_measured(benchmark: dict[str, Any], table: list[dict[str, str]]) -> None:
    """Of all rows for latents and images together, and of those that come back exactly for latents."""
    ((_, solver, grid), *_) = benchmark["overall"](table, ("latent", "decoded"))
    assert (solver, grid) == (defaults.SOLVE, solvers.get(defaults.SOLVE).grid)
    latents = benchmark["overall"](table, ("latent",))
    solver, grid = next((solver, grid) for _, solver, grid in latents if solvers.get(solver).reversible)
    assert (solver, grid) == (defaults.ENCODE, solvers.get(defaults.ENCODE).grid)


@pytest.mark.parametrize(
    ("function", "default"),
    [
        (odeddim.encode, defaults.ENCODE),
        (odeddim.certify, defaults.ENCODE),
        (odeddim.explain, defaults.ENCODE),
        (odeddim.solve, defaults.SOLVE),
        (odeddim.bridge, defaults.BRIDGE),
    ],
)
def test_the_signatures_have_the_defaults(function: Any, default: str) -> None:
    assert inspect.signature(function).parameters["solver"].default == default
    assert default in solvers.names()


@pytest.mark.parametrize(
    ("command", "default"),
    [
        ("encode", f"{defaults.ENCODE}; with --tol {defaults.TOLERANCE}"),
        ("sample", f"{defaults.SAMPLE}; with --eta {defaults.SAMPLE_WITH_ETA}"),
        ("explain", defaults.ENCODE),
        ("bridge", defaults.BRIDGE),
    ],
)
def test_help_says_the_defaults(run: Any, command: str, default: str) -> None:
    assert f"[default: {default}]" in " ".join(run(command, "--help")[1].split())


def test_both_doors_give_the_same_latents_and_images(run: Any, here: Path) -> None:
    """In float64 on an exact model, whose last digits do not depend on the batch."""
    images = torch.linspace(-1, 1, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    np.save(here / "images.npy", images.permute(0, 2, 3, 1).numpy())
    assert run("encode", "images.npy", "-o", "z.h5", "--model", MODEL, "--dtype", "float64", "--steps", 6)[0] == 0
    with LatentFile(here / "z.h5") as file:
        made, theirs = file.provenance, file.read(0, 2)
    assert (made.solver, made.grid) == (defaults.ENCODE, solvers.get(defaults.ENCODE).grid)
    given = images.double()
    ours = odeddim.encode(given, model=load(MODEL), steps=6)
    assert torch.equal(ours.xbar, theirs.xbar)
    assert torch.equal(odeddim.decode(ours, model=load(MODEL), steps=6), given)
    out = run("sample", "-n", 1, "--size", "1,4,4", "-o", "x.h5", "--model", MODEL, "--steps", 4)[1]
    assert f": {defaults.SAMPLE}, " in out
    assert (
        f": {defaults.SAMPLE_WITH_ETA}, "
        in run("sample", "-n", 1, "--size", "1,4,4", "-o", "y.h5", "--model", MODEL, "--steps", 4, "--eta", 0.5)[1]
    )


def test_sampling_with_eta_takes_the_stochastic_family() -> None:
    options: dict[str, Any] = {"model": load(MODEL), "shape": (1, 4, 4), "steps": 5, "seed": 3}
    assert torch.equal(odeddim.sample(2, eta=0.5, **options), odeddim.sample(2, "ddim-eta", eta=0.5, **options))
    assert torch.equal(odeddim.sample(2, **options), odeddim.sample(2, defaults.SAMPLE, **options))
    assert torch.equal(odeddim.sample(2, eta=0.0, **options), odeddim.sample(2, defaults.SAMPLE, **options))


def test_a_state_is_decoded_as_it_was_encoded() -> None:
    """As `odeddim decode` does with a file."""
    options: dict[str, Any] = {"model": load(MODEL), "steps": 6}
    images = torch.linspace(-1, 1, 2 * 16, dtype=torch.float64).reshape(2, 1, 4, 4)
    for solver in ("bdia", "belm", "exact-euler", "ab3"):
        state = odeddim.encode(images, solver, grid="karras", end="sigma_min", **options)
        like_this = odeddim.decode(state, solver, grid="karras", end="sigma_min", **options)
        assert torch.equal(odeddim.decode(state, model=options["model"]), like_this), solver
        assert torch.equal(odeddim.decode(state[1:], **options), like_this[1:]), solver
        with pytest.raises(InputError, match=r"lie at the end 'sigma_min': leave out end='zero'"):
            odeddim.decode(state, end="zero", **options)
    bare = odeddim.State(state.xbar, state.sigma)
    assert torch.equal(odeddim.decode(bare, **options), odeddim.decode(bare, defaults.SOLVE, **options))


@pytest.mark.parametrize("solver", ["belm", "ab3", "dopri5"])
def test_python_and_the_file_decode_alike(solver: str, tmp_path: Path) -> None:
    """A state, the same state from a file, and what is made of it: one plan decodes."""
    options: dict[str, Any] = {"rtol": 1e-3} if solver == "dopri5" else {"steps": 5, "grid": "karras"}
    field, images = load(MODEL, dtype="float32"), torch.linspace(-1, 1, 2 * 16).reshape(2, 1, 4, 4)
    field.network_batch = 8  # this and the dtype are what jobs take: the last digits depend on them
    state = odeddim.encode(images, solver, model=field, **options)
    path = odeddim.interpolate(state[0], state[1], 3)
    for name, made in (("z.h5", state), ("path.h5", path)):
        made.save(tmp_path / name)
        with odeddim.open(tmp_path / name) as file:
            assert file[:] == made
            assert file[:].plan == made.plan
            assert torch.equal(file.decode(), odeddim.decode(made, model=field))
            assert torch.equal(odeddim.decode(file[:], model=field), odeddim.decode(made, model=field))
    assert made.combined
    expected = odeddim.decode(path, defaults.COMBINED, model=field, **({} if solver == "dopri5" else options))
    assert (solver == "belm") == torch.equal(odeddim.decode(path, model=field), expected)


def test_another_model_is_no_plan_of_the_state(tmp_path: Path) -> None:
    state = odeddim.encode(torch.zeros(1, 1, 4, 4), model=MODEL, steps=4)
    with pytest.raises(InputError, match=r"for the model 'exact-mixture', not 'exact-gaussian'.*model=\.\.\."):
        state.save(tmp_path / "z.h5", model="exact-gaussian")
    mine = odeddim.VectorField(lambda x, t: x, odeddim.Schedule.linear(), name="mine")
    state = odeddim.encode(torch.zeros(1, 1, 4, 4), model=mine, steps=4)
    with pytest.raises(InputError, match=r"model 'mine', which was not found: give it with model=\.\.\."):
        state.save(tmp_path / "z.h5")
    state.save(tmp_path / "z.h5", model=mine)


def test_a_line_between_two_latents_is_decoded_by_the_default_of_combined_ones() -> None:
    """Its points carry what was kept for the way back of its ends."""
    options: dict[str, Any] = {"model": load(MODEL), "steps": 6}
    state = odeddim.encode(torch.linspace(-1, 1, 2 * 16, dtype=torch.float64).reshape(2, 1, 4, 4), **options)
    ends = [
        odeddim.State(state.xbar[i : i + 1], state.sigma, tuple(part[i : i + 1] for part in state.aux), state.kept)
        for i in (0, 1)
    ]
    path = odeddim.interpolate(*ends, 5)
    assert path.kept == state.kept
    assert torch.equal(odeddim.decode(path, **options), odeddim.decode(path, defaults.COMBINED, **options))
