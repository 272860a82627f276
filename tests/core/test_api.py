"""solve, encode, decode, sample: directions, ends, counts, dtypes, seeds, refusals."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import odeddim
from odeddim.ode.analytic import Gaussian, GaussianMixture
from odeddim.ode.grids import ENDS

LINEAR = odeddim.Schedule.linear()


def images(count: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(count, 1, 4, 4, dtype=dtype, generator=torch.Generator().manual_seed(5)) * 2 - 1


def mixture() -> odeddim.VectorField:
    return odeddim.VectorField(GaussianMixture(torch.tensor([-0.6, 0.6]), std=0.15).network(LINEAR), LINEAR)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("solver", ["euler", "ab2", "dpmpp-2m", "rk4", "dopri5"])
def test_decode_undoes_encode(solver: str, end: str) -> None:
    field, x_0 = mixture(), images()
    options = {"rtol": 1e-8, "atol": 1e-8} if solver == "dopri5" else {"grid": "karras", "steps": 300}
    state = odeddim.encode(x_0, solver, model=field, end=end, **options)
    assert state.sigma == LINEAR.sigma_max
    assert state.xbar.dtype == torch.float64
    assert 0.5 < float(state.x.std()) < 2
    back = odeddim.decode(state, solver, model=field, end=end, **options)
    assert float((back - x_0).abs().max()) < (0.1 if solver == "euler" else 3e-3)
    again = odeddim.solve(state.x, solver, model=field, end=end, **options)
    assert torch.allclose(again, back, atol=1e-8)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("grid", ["linear", "quadratic", "trailing", "log", "karras"])
def test_S_steps_are_S_evaluations(grid: str, end: str) -> None:
    for solver in ("euler", "ab2", "dpmpp-2m"):
        for steps in (*range(1, 11), 19, 40):
            field = mixture()
            state = odeddim.encode(images(1), solver, model=field, steps=steps, grid=grid, end=end)
            assert field.nfe == steps
            odeddim.decode(state, solver, model=field, steps=steps, grid=grid, end=end)
            assert field.nfe == 2 * steps


def test_encode_is_accurate_on_the_closed_form() -> None:
    """One Gaussian: the latent is known. From σ_1 exactly; from 0 up to the Euler step over [0, σ_1]."""
    gaussian = Gaussian(0.2, 0.5)
    field = odeddim.VectorField(gaussian.network(LINEAR), LINEAR)
    x_0 = images()
    state = odeddim.encode(x_0, "ab4", model=field, steps=400, end="sigma_min")
    truth = gaussian.flow(x_0, LINEAR.sigma_min, LINEAR.sigma_max)
    assert float((state.xbar - truth).abs().max()) / LINEAR.sigma_max < 1e-7
    state = odeddim.encode(x_0, "ab4", model=field, steps=400, end="zero")
    truth = gaussian.flow(x_0, 0.0, LINEAR.sigma_max)
    assert float((state.xbar - truth).abs().max()) / LINEAR.sigma_max < 1e-3


def test_state_dtype_follows_the_input() -> None:
    for dtype, kept in ((torch.float64, torch.float64), (torch.float32, torch.float32), (torch.float16, torch.float32)):
        state = odeddim.encode(images().to(dtype), model=mixture(), steps=3)
        assert state.xbar.dtype == kept
        assert odeddim.decode(state, model=mixture(), steps=3).dtype == kept


def test_inputs_are_left_alone() -> None:
    x_0 = images()
    before = x_0.clone()
    state = odeddim.encode(x_0, "euler", model=mixture(), steps=3)
    assert torch.equal(x_0, before)
    xbar = state.xbar.clone()
    odeddim.decode(state, "ab2", model=mixture(), steps=3)
    assert torch.equal(state.xbar, xbar)


def test_same_image_same_latent() -> None:
    x_0 = images(6)
    for solver in ("euler", "ab4", "dpmpp-2m", "heun2"):
        whole = odeddim.encode(x_0, solver, model=mixture(), steps=10).xbar
        for i in (0, 5):
            alone = odeddim.encode(x_0[i : i + 1], solver, model=mixture(), steps=10).xbar
            assert torch.allclose(alone[0], whole[i], rtol=1e-12, atol=1e-12)


def test_samples_depend_on_seed_and_index_only() -> None:
    options = {"model": mixture(), "shape": (1, 4, 4), "steps": 5}
    five = odeddim.sample(5, seed=3, **options)
    assert torch.equal(odeddim.sample(2, seed=3, **options), five[:2])
    assert torch.equal(odeddim.sample(2, seed=3, start=3, **options), five[3:])
    assert not torch.equal(odeddim.sample(5, seed=4, **options), five)
    noisy = odeddim.sample(5, seed=3, eta=1.0, **options)
    assert torch.equal(odeddim.sample(2, seed=3, start=3, eta=1.0, **options), noisy[3:])
    assert not torch.allclose(noisy, five)


def test_noise_is_standard_normal_and_fresh_in_every_step() -> None:
    noise = odeddim.noise(200, (1, 16, 16), seed=0)
    assert float(noise.mean()) == pytest.approx(0, abs=5 / math.sqrt(noise.numel()))
    assert float(noise.var()) == pytest.approx(1, abs=5 * math.sqrt(2 / noise.numel()))
    for other in (odeddim.noise(200, (1, 16, 16), seed=1), odeddim.noise(200, (1, 16, 16), seed=0, step=1)):
        correlation = float((noise * other).mean())
        assert abs(correlation) < 5 / math.sqrt(noise.numel())
    assert odeddim.noise(0, (1, 2, 2)).shape == (0, 1, 2, 2)


def test_samples_of_the_mixture_look_like_the_mixture() -> None:
    x_0 = odeddim.sample(64, "ab2", model=mixture(), shape=(1, 8, 8), steps=60, grid="karras")
    assert float((x_0.abs() - 0.6).std()) == pytest.approx(0.15, rel=0.1)
    # DDPM's own sampler (η = 1) reaches the same distribution.
    x_0 = odeddim.sample(64, model=mixture(), shape=(1, 8, 8), steps=200, eta=1.0)
    assert float((x_0.abs() - 0.6).std()) == pytest.approx(0.15, rel=0.1)


def test_grids_given_as_nodes() -> None:
    nodes = [0.0, 0.01, 1.0, 20.0]
    field = mixture()
    state = odeddim.encode(images(), model=field, grid=nodes)
    assert (state.sigma, field.nfe) == (20.0, 3)
    odeddim.decode(state, "ab2", model=field, grid=torch.tensor(nodes))
    assert field.nfe == 6
    with pytest.raises(odeddim.InputError, match=r"σ = 20, but the grid ends at σ = 157"):
        odeddim.decode(state, "ab2", model=field, grid="log")
    assert torch.allclose(odeddim.decode(state, model=field), images())  # on its own nodes
    with pytest.raises(odeddim.InputError, match="rise"):
        odeddim.encode(images(), model=field, grid=nodes[::-1])
    with pytest.raises(odeddim.InputError, match="3 steps, not 5"):
        odeddim.encode(images(), model=field, grid=nodes, steps=5)


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_ddims_own_quadratic_list(steps: int, tmp_path: Path) -> None:
    """--skip_type quad of DDIM's code ends at the label 0.8·T, σ = 25.7: unit noise is taken to lie there.

    With 50 steps it has a label twice; the step between the two has no length, so the list without it is the same run.
    """
    labels = [int(root**2) for root in np.linspace(0, np.sqrt(1000 * 0.8), steps)]
    assert max(labels) in (799, 800)
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    field, x_T = mixture(), odeddim.noise(3, (1, 4, 4), seed=1).double()
    x = x_T
    for label, before in zip(reversed(labels), reversed([-1, *labels[:-1]]), strict=True):
        now, then = bar[label], bar[before] if before >= 0 else 1.0
        eps = field.eps(x, torch.full((3,), float(label), dtype=torch.float64))
        x = math.sqrt(then) * (x - eps * math.sqrt(1 - now)) / math.sqrt(now) + math.sqrt(1 - then) * eps
    nodes = [0.0, *(math.sqrt((1 - bar[label]) / bar[label]) for label in sorted(set(labels)))]
    assert nodes[-1] == pytest.approx(25.7, rel=0.01)
    assert torch.allclose(odeddim.solve(x_T, "euler", model=field, grid=nodes), x, rtol=0, atol=1e-10)
    file = tmp_path / "quad.txt"
    file.write_text("\n".join(map(repr, map(float, nodes))))
    assert torch.allclose(odeddim.solve(x_T, "euler", model=field, grid=file), x, rtol=0, atol=1e-10)
    sampled = odeddim.sample(3, "euler", model=field, seed=1, grid=file, shape=(1, 4, 4))
    assert torch.allclose(sampled, x.float(), rtol=0, atol=1e-5)


def test_noise_is_not_taken_to_lie_where_images_show_through() -> None:
    x_T = odeddim.noise(2, (1, 4, 4))
    with pytest.raises(odeddim.InputError, match=r"ends at σ = 4\.9, where images still .* at σ = 5 at least .* 157"):
        odeddim.solve(x_T, model=mixture(), grid=[0.0, 1.0, 4.9])
    with pytest.raises(odeddim.InputError, match=r"ends at σ = 4\.9"):
        odeddim.sample(2, model=mixture(), grid=[0.0, 1.0, 4.9], shape=(1, 4, 4))
    odeddim.solve(x_T, model=mixture(), grid=[0.0, 1.0, 5.0])
    # A model that knows less noise than that begins at its top.
    schedule = odeddim.Schedule.exploding(sigma_min=0.1, sigma_max=2.0)
    model = odeddim.VectorField(Gaussian(0.0, 0.5).network(schedule), schedule)
    odeddim.solve(x_T, model=model, grid="log", steps=3)
    with pytest.raises(odeddim.InputError, match=r"ends at σ = 1\.9, where .* at σ = 2 at least"):
        odeddim.solve(x_T, model=model, grid=[0.0, 1.0, 1.9])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"solver": "eular"}, "did you mean euler"),
        ({"grid": "lineer"}, "did you mean linear"),
        ({"model": "fashion-mnst"}, "did you mean fashion-mnist"),
        ({"end": "zer"}, "did you mean zero"),
        ({"steps": 0}, "at least 1"),
        ({"steps": 1001, "grid": "linear"}, "at most 1000"),
        ({"rtol": 1e-3}, "no setting 'rtol'"),
        ({"steps": 2.5}, "whole number"),
        ({"steps": True}, "whole number"),
        ({"solver": None}, "a name or a row"),
        (
            {"model": torch.nn.Identity()},
            r"\(Identity\) does not say what it was trained on: .* odeddim.VectorField.from_",
        ),
        ({"grid": [0.0, 1.0, 157.0], "end": "sigma_min"}, "begin at σ = 0"),
        ({"grid": [0.5, 3.0, 1e4]}, "above the model's"),
        ({"grid": [0.5, 3.0], "end": "nonsense"}, "unknown end"),
    ],
)
def test_refusals_name_the_way_out(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(odeddim.InputError, match=words):
        odeddim.encode(images(), **{"solver": "euler", "model": mixture(), **arguments})  # type: ignore[arg-type]


def test_more_refusals() -> None:
    broken = images()
    broken[2, 0, 1, 1] = math.inf
    with pytest.raises(odeddim.InputError, match="image 2 "):
        odeddim.encode(broken, model=mixture())
    with pytest.raises(odeddim.InputError, match="at least one image"):
        odeddim.encode(images()[:0], model=mixture())
    with pytest.raises(odeddim.InputError, match="at least one image"):
        odeddim.encode(images()[0, 0, 0], model=mixture())
    with pytest.raises(odeddim.InputError, match="tensors or NumPy arrays"):
        odeddim.encode(images().tolist(), model=mixture())  # type: ignore[arg-type]
    with pytest.raises(odeddim.InputError, match="must not be negative"):
        odeddim.noise(2, (1, 2, 2), seed=-1)
    with pytest.raises(odeddim.InputError, match="floating point"):
        odeddim.solve(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), model=mixture())
    with pytest.raises(odeddim.InputError, match="any shape"):
        odeddim.sample(1, model=mixture())
    with pytest.raises(odeddim.InputError, match="needs solver 'euler'"):
        odeddim.sample(1, "heun2", model=mixture(), shape=(1, 2, 2), eta=0.5)


def test_adaptive_solvers_take_no_uncontrolled_step() -> None:
    """Of given nodes they keep the ends only: the Euler step from 0 is never longer than to σ_1."""
    x_0, options = images(), {"rtol": 1e-7, "atol": 1e-7}
    truth = odeddim.encode(x_0, "dopri5", model=mixture(), **options)
    for nodes in ([0.0, 50.0, LINEAR.sigma_max], [0.0, LINEAR.sigma_max]):
        state = odeddim.encode(x_0, "dopri5", model=mixture(), grid=nodes, **options)
        assert torch.equal(state.xbar, truth.xbar)
    for refused in ({"grid": "linear"}, {"steps": 5}):
        with pytest.raises(odeddim.InputError, match="chooses its own steps"):
            odeddim.encode(x_0, "dopri5", model=mixture(), **refused)  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", [LINEAR, odeddim.Schedule.edm(), odeddim.Schedule.rectified_flow()])
def test_x_T_is_one_thing_on_every_schedule(schedule: odeddim.Schedule) -> None:
    """`state.x`, `solve`'s x_T and `sample`'s noise: unit variance."""
    gaussian = Gaussian(0.1, 0.4)
    model = odeddim.VectorField(gaussian.network(schedule), schedule)
    state = odeddim.encode(images(), "ab2", model=model, steps=20)
    decoded = odeddim.decode(state, "ab2", model=model, steps=20)
    assert torch.allclose(odeddim.solve(state.x, "ab2", model=model, steps=20), decoded, atol=1e-12)
    sampled = odeddim.sample(3, "ab2", model=model, steps=20, shape=(1, 4, 4))
    assert torch.allclose(odeddim.solve(odeddim.noise(3, (1, 4, 4)), "ab2", model=model, steps=20), sampled, atol=1e-6)


def test_modules_are_evaluated_without_dropout() -> None:
    module = WithDropout()
    assert module.training
    model = odeddim.VectorField(module, LINEAR)
    a, b = (odeddim.encode(images(), model=model, steps=3).xbar for _ in range(2))
    assert torch.equal(a, b)


class WithDropout(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.dropout(x)


def test_interpolate_is_decodable() -> None:
    state = odeddim.encode(images(2), model=mixture(), steps=20)
    a, b = (odeddim.State(state.xbar[i : i + 1], state.sigma) for i in (0, 1))
    path = odeddim.interpolate(a, b, 5)
    decoded = odeddim.decode(path, "ab3", model=mixture(), steps=20)
    assert decoded.shape == (5, 1, 4, 4)
    both = odeddim.decode(state, "ab3", model=mixture(), steps=20)
    assert torch.allclose(decoded[[0, -1]], both, atol=1e-9)


def test_own_solver_rows_work_everywhere() -> None:
    def run(field: odeddim.Field, state: odeddim.State, sigmas: Tensor) -> odeddim.State:
        xbar = state.xbar
        for sigma, target in itertools.pairwise(sigmas):
            xbar = xbar + float(target - sigma) * field(sigma, xbar)
        return odeddim.State(xbar, float(sigmas[-1]))

    row = odeddim.Solver("mine", run, family="own", order=1, nfe=1, reference="here", grid="linear")
    ours = odeddim.encode(images(), row, model=mixture(), steps=7).xbar
    assert torch.allclose(ours, odeddim.encode(images(), "euler", model=mixture(), steps=7).xbar, rtol=1e-13)
