"""Encodings that begin with noise: what they begin at, that the solver goes on from there, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import odeddim
from odeddim import solvers
from odeddim.ode.starts import STEP, Start
from odeddim.types import InputError, State

MODEL = "exact-mixture"
FIELD = odeddim.load(MODEL)


def images(n: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype) * 2 - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("solver", ["euler", "unipc-2", "rk4"])
def test_the_first_steps_are_the_forward_process(solver: str, end: str, dtype: torch.dtype) -> None:
    """x_K = √α_K·(x_0 + ...) in DDPM's units, and then the solver's own run over the nodes from K on."""
    x_0, steps, k = images(dtype=dtype), 8, 3
    found = odeddim.encode(x_0, solver, model=MODEL, steps=steps, grid="log", end=end, start=f"forward:{k}:5")
    nodes = odeddim.grid("log", FIELD.schedule, steps, end=end)
    alpha = 1 / (1 + nodes**2)
    kept = float((alpha[k] / alpha[0]).sqrt())  # what a step of the forward process keeps of x
    z = torch.stack([odeddim.noise(1, (1, 4, 4), seed=5, start=i, step=STEP)[0] for i in range(3)])
    x = kept * x_0 * float(alpha[0].sqrt()) + math.sqrt(1 - kept**2) * z.to(dtype)
    begin = State(x / float(alpha[k].sqrt()), float(nodes[k]))
    wanted = odeddim.integrate(FIELD, begin, odeddim.Plan(solvers.get(solver), nodes[k:]))
    assert found.xbar.dtype == dtype
    assert torch.allclose(found.xbar, wanted.xbar, rtol=1e-12, atol=1e-3 if dtype == torch.float32 else 0)
    assert found.plan.evaluations == solvers.get(solver).evaluations(steps - k)
    down = odeddim.decode(found, model=MODEL)
    assert torch.equal(down, odeddim.decode(found, solver, model=MODEL, grid=nodes, end=None))


def test_an_image_gets_its_noise_by_its_index_in_any_batch() -> None:
    options = {"model": MODEL, "steps": 6, "start": "forward:2"}
    whole = odeddim.encode(images(5), "ab2", **options).xbar
    for size in (1, 2, 4):
        assert torch.equal(odeddim.encode(images(5), "ab2", batch_size=size, **options).xbar, whole)
    same = images(1).expand(3, 1, 4, 4)
    twins = odeddim.encode(same, "ab2", **options).xbar
    assert not torch.equal(twins[0], twins[1])
    other = odeddim.encode(images(5), "ab2", **{**options, "start": "forward:2:1"}).xbar
    assert bool((other != whole).all())
    assert torch.equal(odeddim.encode(images(5), "ab2", **{**options, "start": "forward:2:0"}).xbar, whole)


def test_the_noise_is_nobody_elses() -> None:
    """Images sampled from the seed's x_T are not encoded with x_T itself."""
    z = Start(1).begun(torch.zeros(2, 3), torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64), 0).xbar
    for step in range(50):
        assert not torch.equal(z, odeddim.noise(2, (3,), step=step))


def test_the_latent_of_a_gaussian_is_white() -> None:
    """Of data N(m, s²) the exact flow maps x̄_K of variance s² + σ_K² to σ_T's: the noise forgets a constant image."""
    model = odeddim.load("exact-gaussian")
    x_0 = torch.full((400, 1, 4, 4), 0.9, dtype=torch.float64)  # one and the same image: no variance at all
    found = odeddim.encode(x_0, "rk4", model=model, steps=40, grid="log", start="forward:30")
    nodes = odeddim.grid("log", model.schedule, 40)
    spread = float(nodes[30]) / math.sqrt(float(nodes[30]) ** 2 + 0.25)  # s = 0.5 of the built-in Gaussian
    lowest = odeddim.encode(x_0[:1], "rk4", model=model, steps=40, grid="log")
    assert float(found.x.var()) == pytest.approx(spread**2, rel=0.05)
    assert float(lowest.x.var()) < 1e-12


def test_plans_say_it_and_keep_it(tmp_path: Path) -> None:
    plan = odeddim.plan(MODEL, "ab3", steps=9, start="forward:4")
    assert str(plan) == "ab3, log grid, 9 steps, end zero, start forward:4"
    assert (plan.evaluations, plan.evaluations_down) == (6, 10)  # one more in the first step of ab3
    plan.save(tmp_path / "plan.json")
    assert odeddim.Plan.load(tmp_path / "plan.json") == plan != odeddim.plan(MODEL, "ab3", steps=9)
    by_plan = odeddim.encode(images(), model=MODEL, plan=odeddim.Plan.load(tmp_path / "plan.json"))
    assert by_plan == odeddim.encode(images(), "ab3", model=MODEL, steps=9, start="forward:4")
    assert by_plan.plan.start == "forward:4"
    with pytest.raises(InputError, match="leave out start="):
        odeddim.encode(images(), model=MODEL, plan=plan, start="forward:4")
    plain = odeddim.plan(MODEL, "ab3", steps=9)
    assert "start" not in plain.to_dict()
    for wrong in ({"start": 3}, {"start": "forward:9"}, {"start": "backward:1"}):
        with pytest.raises(InputError):
            odeddim.Plan.from_dict({**plain.to_dict(), **wrong}, tmp_path / "plan.json")


def test_files_say_it_and_go_on(tmp_path: Path) -> None:
    """Image i of a file gets the noise of its index, whatever was there before."""
    run = {"model": MODEL, "solver": "euler", "steps": 5, "start": "forward:2"}
    pictures = images(6, torch.float32).numpy()
    np.save(tmp_path / "x.npy", pictures)
    odeddim.jobs.encode(tmp_path / "x.npy", tmp_path / "z.h5", count=2, **run)
    odeddim.jobs.encode(tmp_path / "x.npy", tmp_path / "z.h5", **run)
    state = odeddim.encode(torch.from_numpy(pictures), "euler", model=MODEL, steps=5, start="forward:2")
    with odeddim.open(tmp_path / "z.h5") as file:
        assert file.plan.start == file.provenance.details["start"] == "forward:2"
        assert torch.equal(file[:].xbar, state.xbar)
        assert file[:].plan.start == "forward:2"
        assert torch.equal(file.decode(), odeddim.decode(state, model=MODEL))
    with pytest.raises(InputError, match="overwrite"):
        odeddim.jobs.encode(tmp_path / "x.npy", tmp_path / "z.h5", **{**run, "start": "forward:3"})
    for more in ({"certify": True}, {"density": True}, {"trajectory": tmp_path / "t.h5"}):
        with pytest.raises(InputError, match="begins with noise"):
            odeddim.jobs.encode(tmp_path / "x.npy", tmp_path / "y.h5", **run, **more)
    with pytest.raises(InputError, match="begins with noise"):
        odeddim.jobs.encode(tmp_path / "x.npy", tmp_path / "y.h5", model=MODEL, tol=0.1, start="forward:2")
    assert not (tmp_path / "y.h5").exists()


def test_refusals() -> None:
    def refused(match: str, solver: str = "euler", start: object = "forward:2", steps: int | None = 6) -> None:
        with pytest.raises(InputError, match=match):
            odeddim.encode(images(), solver, model=MODEL, steps=steps, start=start)

    for words in ("forward", "forward:", "forward:-1", "forward:1:2:3", "forward:x", "backward:2", "forward:²", 3):
        refused("start must be 'forward:K'", start=words)
    for k in (0, 6, 7):
        refused("at least 1 and less than the steps", start=f"forward:{k}")
    for solver in ("belm", "edict", "mf-euler", "exact-euler"):
        refused("does not come back", solver)
    refused("chooses its own steps", "dopri5", steps=None)
    refused("only decode", "ddpm")
    plan = odeddim.plan(MODEL, "euler", steps=6, start="forward:2")
    with pytest.raises(InputError, match=r"only `odeddim.encode` makes it"):
        odeddim.integrate(FIELD, State(images(), 0.0), plan)
    assert odeddim.integrate(FIELD, State(images(), plan.top), plan).sigma == 0  # down all nodes
    with pytest.raises(InputError, match="no setting 'start'"):
        odeddim.solve(images(), "euler", model=MODEL, steps=3, start="forward:2")
