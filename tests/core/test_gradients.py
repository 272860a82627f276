"""Gradients through runs, against plain autograd, finite differences, and maps whose Jacobian is known."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support import command
from torch import Tensor, nn

import odeddim
from odeddim import Schedule, Solver, State, VectorField, solvers
from odeddim.models.networks.autoencoder import Autoencoder, Units
from odeddim.ode.conditions import Condition, Given
from odeddim.types import InputError

REVERSIBLE = ("belm", "bdia", "edict", "leapfrog", "mf-heun", "reversible-heun")
OTHERS = ("euler", "ab3", "unipc-2", "heun")
NONE = ("rk4", "dopri5", "scipy-rk45", "exact-euler", "mf-rk4")
DOUBLE, SINGLE = torch.float64, torch.float32
CLOSE = {DOUBLE: 1e-12, SINGLE: 1e-6}
SHAPE = (1, 6, 6)


class Network(nn.Module):
    """It predicts ε from x (B, 1, 6, 6), the label t (B,) and an embedding (B, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, told: Tensor) -> Tensor:
        hidden = self.first(x) + told[:, :, None, None] * torch.exp(-t / 500)[:, None, None, None]
        out: Tensor = self.last(torch.tanh(hidden)) + x / 2
        return out


class Told:
    """An embedding as the condition, which is optimised; zeros stand for none."""

    words = "an embedding"

    def __init__(self, embedding: Tensor) -> None:
        self.embedding = embedding

    def given(self, condition: Condition) -> tuple[Given, Given | None]:
        return (self.embedding,), (torch.zeros_like(self.embedding),)


def model(dtype: torch.dtype = DOUBLE) -> tuple[VectorField, list[Tensor]]:
    """A guided model, and all that it learns: the embedding first."""
    torch.manual_seed(0)
    network = Network().to(dtype)
    with torch.no_grad():
        for part in network.parameters():
            part /= 2
    embedding = torch.randn(1, 8, dtype=dtype).mul_(0.3).requires_grad_()
    field = VectorField(network, Schedule.linear(), shape=SHAPE, conditions=Told(embedding))
    return field.conditioned(guidance=1.5, interval=(0.5, 20.0)), [embedding, *network.parameters()]


def images(dtype: torch.dtype = DOUBLE) -> Tensor:
    return (odeddim.noise(2, SHAPE, seed=5) * 0.5).to(dtype).requires_grad_()


def latents(dtype: torch.dtype = DOUBLE) -> Tensor:
    return odeddim.noise(2, SHAPE, seed=1).to(dtype).requires_grad_()


WEIGHTS = odeddim.noise(2, SHAPE, seed=9).abs().double()


def loss(out: Tensor | State) -> Tensor:
    """A number that depends on each value, of aux too."""
    if isinstance(out, Tensor):
        return (out.double() * WEIGHTS).sum() + out.double().square().sum() / 3
    return loss(out.x) + sum(loss(part) for part in out.aux)


def gradients(out: Tensor | State, wanted: list[Tensor]) -> tuple[Tensor, ...]:
    """The gradients of x, of the embedding, and of all weights in a row."""
    of_x, of_embedding, *others = torch.autograd.grad(loss(out), wanted)
    return of_x, of_embedding, torch.cat([part.flatten() for part in others])


def off(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
@pytest.mark.parametrize("name", [*REVERSIBLE, *OTHERS])
def test_they_equal_plain_autograd(name: str, dtype: torch.dtype) -> None:
    field, learnt = model(dtype)
    usual = solvers.get(name).gradients[0]
    assert usual == ("reversible" if name in REVERSIBLE else "checkpoint")
    how: dict[str, Any] = {"model": field, "grid": [0.0, *torch.logspace(-1, 1, 6).tolist()]}
    for start, verb in ((latents(dtype), odeddim.solve), (images(dtype), odeddim.encode)):
        made, direct = (verb(start, name, **how, gradients=way) for way in (None, "direct"))
        values = [((out if isinstance(out, Tensor) else out.x).double() * WEIGHTS).sum() for out in (made, direct)]
        found, truth = (torch.autograd.grad(value, [start, *learnt]) for value in values)
        for part in (slice(0, 1), slice(1, 2), slice(2, None)):  # of x, of the embedding, of all weights
            mine, true = (torch.cat([of.flatten() for of in parts[part]]) for parts in (found, truth))
            assert off(mine, true) < CLOSE[dtype], off(mine, true)


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("name", REVERSIBLE)
def test_there_and_back_is_the_identity(name: str, end: str) -> None:
    """Through aux: the images are those encoded, whatever the weights are. Neighbouring numbers cancel up to 1e-9."""
    field, learnt = model()
    x_0 = images()
    state = odeddim.encode(x_0, name, model=field, steps=6, end=end)
    again = odeddim.decode(state, model=field)
    assert torch.equal(again, x_0)
    of_x, of_embedding, of_weights = gradients(again, [x_0, *learnt])
    assert off(of_x, WEIGHTS + x_0.detach() * 2 / 3) < 1e-11
    assert max(float(part.abs().max()) for part in (of_embedding, of_weights)) < 1e-9


@pytest.mark.parametrize("name", ["belm", "mf-heun", "unipc-2", "heun", "ddim-eta"])
def test_they_equal_finite_differences(name: str) -> None:
    field, learnt = model()
    x_T = latents()
    wanted = [x_T, *learnt]
    plan = odeddim.plan(field, name, steps=5)
    found = torch.autograd.grad(loss(odeddim.solve(x_T, model=field, plan=plan)), wanted)
    torch.manual_seed(1)
    along = [torch.randn_like(part) for part in wanted]
    values = {}
    with torch.no_grad():
        for times in (-2, -1, 1, 2):
            for part, way in zip(wanted, along, strict=True):
                part += times * 1e-5 * way
            values[times] = float(loss(odeddim.solve(x_T, model=field, plan=plan)))
            for part, way in zip(wanted, along, strict=True):
                part -= times * 1e-5 * way
    slope = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / 12e-5
    assert sum(float((part * way).sum()) for part, way in zip(found, along, strict=True)) == pytest.approx(slope, 2e-6)


SPREADS = torch.tensor([0.1, 0.3, 0.5, 1.0], dtype=DOUBLE)


def linear(sigma: Tensor, xbar: Tensor) -> Tensor:
    """The exact ε of data N(0, SPREADS²): a run is a linear map of each number by itself."""
    return xbar * sigma.to(xbar).reshape(-1, 1) / (SPREADS.to(xbar) ** 2 + sigma.to(xbar).reshape(-1, 1) ** 2)


@pytest.mark.parametrize("name", [*REVERSIBLE, *OTHERS, "dpmpp-2m", "plms"])
def test_they_are_the_map_itself_where_it_is_linear(name: str) -> None:
    nodes = torch.cat([torch.zeros(1), torch.logspace(-1.5, 1, 9)])
    plan = odeddim.Plan(solvers.get(name), nodes)
    for sigma in (0.0, plan.top):
        xbar = torch.ones(1, 4, dtype=DOUBLE).requires_grad_()
        out = odeddim.integrate(linear, State(xbar, sigma), plan).xbar
        (found,) = torch.autograd.grad(out.sum(), xbar)
        assert torch.allclose(found, out.detach(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("way", ["checkpoint", "direct"])
@pytest.mark.parametrize("name", ["dopri5-per-image", "dpm-solver-23"])
def test_adaptive_rows_hold_their_steps(name: str, way: str) -> None:
    """Against the Jacobian of the exact flow: the steps count as given, as if the error did not choose them."""
    plan = odeddim.Plan(solvers.get(name, rtol=1e-4, atol=1e-4), torch.tensor([0.1, 10.0]))
    xbar = (torch.arange(1.0, 13.0, dtype=DOUBLE).reshape(3, 4)).requires_grad_()
    out = odeddim.integrate(linear, State(xbar, plan.top), plan, gradients=way).xbar  # type: ignore[arg-type]
    (found,) = torch.autograd.grad(out.sum(), xbar)
    truth = ((SPREADS**2 + 0.1**2) / (SPREADS**2 + 10.0**2)).sqrt()
    assert torch.allclose(found, truth.expand(3, 4), rtol=2e-3)


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
@pytest.mark.parametrize("name", [*REVERSIBLE, *OTHERS, "ddim-eta", "dpm-solver-12"])
def test_the_bits_are_those_of_a_run_without(name: str, dtype: torch.dtype) -> None:
    field, _ = model(dtype)
    row = solvers.get(name)
    row = solvers.get(name, rtol=0.03, atol=0.03, batch=2) if row.adaptive else row
    plan = odeddim.plan(field, row, steps=None if row.adaptive else 5)
    outs: list[Any] = []
    for on in (False, True):
        with torch.set_grad_enabled(on):
            x_0 = odeddim.solve(latents(dtype), model=field, plan=plan)
            outs.append([x_0])
            if not row.stochastic:
                state = odeddim.encode(images(dtype), model=field, plan=plan)
                outs[-1] += [state, odeddim.decode(state, model=field)]
            assert x_0.requires_grad == on
    assert torch.equal(outs[0][0], outs[1][0])
    if not row.stochastic:
        assert outs[0][1] == outs[1][1]
        assert torch.equal(outs[0][2], outs[1][2])


@pytest.mark.parametrize("name", ["belm", "unipc-2", "rk4"])
def test_nothing_is_kept_where_nothing_needs_a_gradient(name: str) -> None:
    field = odeddim.load("fashion-mnist")
    assert not any(part.requires_grad for part in field.eps.parameters())  # type: ignore[attr-defined]
    x_T = odeddim.noise(1, (1, 28, 28))
    assert not odeddim.solve(x_T, name, model=field, steps=2).requires_grad
    field.reset()
    with torch.no_grad():
        assert not odeddim.solve(x_T.clone().requires_grad_(), name, model=field, steps=2).requires_grad
    calls = field.nfe
    field.reset()
    odeddim.solve(x_T, name, model=field, steps=2)
    assert field.nfe == calls


@pytest.mark.parametrize("name", ["belm", "euler"])
def test_what_only_a_closure_holds_gets_its_gradient(name: str) -> None:
    """Of one noise level alone, too; and of what the tensor was computed from."""
    seed = torch.tensor([0.3], dtype=DOUBLE, requires_grad=True)
    held, late = seed * 2, torch.tensor([0.1], dtype=DOUBLE, requires_grad=True)

    def eps(sigma: Tensor, xbar: Tensor) -> Tensor:
        return xbar * held / (1 + float(sigma)) + (late if 1 < float(sigma) < 3 else 0)

    plan = odeddim.Plan(solvers.get(name), torch.tensor([0.0, 0.5, 2.0, 8.0]))
    start = State(torch.ones(2, 3, dtype=DOUBLE), 8.0)
    found, truth = (
        torch.autograd.grad(
            odeddim.integrate(eps, start, plan, gradients=way).xbar.sum(), [seed, late], retain_graph=True
        )
        for way in (None, "direct")
    )
    assert torch.allclose(torch.cat(found), torch.cat(truth), rtol=1e-12)


@pytest.mark.parametrize("name", ["belm", "unipc-2"])
def test_batches_carry_them(name: str) -> None:
    field, learnt = model()
    x_0 = torch.cat([images(), images() / 2, images() / 3]).detach().requires_grad_()
    found = []
    for size in (None, 2, 4):
        state = odeddim.encode(x_0, name, model=field, steps=4, batch_size=size)
        value = sum((part.square() * (n + 1)).sum() for n, part in enumerate((state.xbar, *state.aux)))
        found.append(torch.autograd.grad(value, [x_0, *learnt]))
    for batched in found[1:]:
        assert all(off(mine, whole) < 1e-12 for mine, whole in zip(batched, found[0], strict=True))


class Codec:
    """An autoencoder that triples and shears."""

    image_shape, sha256 = SHAPE, ""

    def encode(self, images: Tensor) -> Tensor:
        return images.sinh()

    def decode(self, data: Tensor) -> Tensor:
        return data.asinh()

    def to(self, device: object) -> Codec:
        return self


def test_a_latent_models_autoencoder_carries_them() -> None:
    field, _ = model()
    field.codec = Codec()
    x_0 = images()
    state = odeddim.encode(x_0, model=field, steps=4)
    (found,) = torch.autograd.grad(loss(odeddim.decode(state, model=field)), x_0)
    assert off(found, WEIGHTS + x_0.detach() * 2 / 3) < 1e-11


def test_the_autoencoders_of_diffusers_carry_them() -> None:
    class Tripled(nn.Module):
        """What diffusers' classes are asked for."""

        def encode(self, images: Tensor) -> tuple[Tensor]:
            return (3 * images,)

        def decode(self, z: Tensor) -> SimpleNamespace:
            return SimpleNamespace(sample=z**2)

    codec = Autoencoder(Tripled(), (1, 2, 2), Units(0.5, shift=(1.0,)))
    x_0 = torch.rand(2, 1, 2, 2, requires_grad=True)
    (found,) = torch.autograd.grad(codec.decode(codec.encode(x_0)).sum(), x_0)
    assert torch.allclose(found, 18 * x_0)
    assert not codec.encode(x_0.detach()).requires_grad


@pytest.mark.parametrize("name", NONE)
def test_rows_without_refuse(name: str) -> None:
    field, _ = model()
    plan = odeddim.plan(field, name, steps=None if solvers.get(name).adaptive else 2)
    still = VectorField(lambda x, t: x / 2, Schedule.linear())
    for one in (field, still):
        with pytest.raises(InputError, match=f"solver '{name}' gives no gradients.*'belm'.*no_grad"):
            odeddim.solve(latents(), model=one, plan=plan)
    with pytest.warns(UserWarning, match=f"'{name}' gives no gradients.*none of the network's") as told:
        warned = odeddim.solve(latents().detach(), model=field, plan=plan)  # whose weights need one
    assert len(told) == 1
    assert not warned.requires_grad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not odeddim.solve(latents().detach(), model=still, plan=plan).requires_grad
        with torch.no_grad():
            assert torch.equal(odeddim.solve(latents(), model=field, plan=plan), warned)
    with pytest.raises(InputError, match="gives no gradients"):
        odeddim.solve(latents().detach(), model=still, plan=plan, gradients="direct")


def test_what_cannot_be_used_is_said() -> None:
    field, _ = model()
    with pytest.raises(InputError, match="solver 'euler' has no gradients='reversible': take 'checkpoint' or 'direct'"):
        odeddim.solve(latents(), "euler", model=field, steps=2, gradients="reversible")
    with pytest.raises(InputError, match="unknown way to gradients 'adjoint'"):
        odeddim.solve(latents(), "euler", model=field, steps=2, gradients="adjoint")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown way to gradients True; known: reversible"):
        odeddim.solve(latents(), "euler", model=field, steps=2, gradients=True)  # type: ignore[arg-type]
    x_T = latents()
    out = odeddim.solve(x_T, "belm", model=field, steps=3)
    with pytest.raises(InputError, match=r"first derivatives only.*gradients='direct'"):
        torch.autograd.grad(loss(out), x_T, create_graph=True)


@pytest.mark.parametrize("name", ["belm", "ab3"])
def test_direct_ones_can_be_differentiated_twice(name: str) -> None:
    """A second derivative along a direction, against the change of the first one."""
    field, _ = model()
    x_T, along = latents(), odeddim.noise(2, SHAPE, seed=3).double()

    def first(x: Tensor) -> Tensor:
        out = odeddim.solve(x, name, model=field, steps=3, gradients="direct")
        (found,) = torch.autograd.grad(loss(out), x, create_graph=True)
        return found

    (twice,) = torch.autograd.grad((first(x_T) * along).sum(), x_T)
    near = [first((x_T + step * along).detach().requires_grad_()) for step in (1e-4, -1e-4)]
    assert off((near[0] - near[1]) / 2e-4, twice) < 1e-5


def test_weights_that_have_changed_are_noticed() -> None:
    field, learnt = model()
    out = odeddim.solve(latents(), "belm", model=field, steps=2)
    with torch.no_grad():
        learnt[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss(out).backward()


def test_a_row_that_works_in_place() -> None:
    """Checkpoints are copies."""

    def run(field: odeddim.Field, state: State, sigmas: Tensor) -> State:
        xbar = state.xbar.clone()
        for here, there in pairwise(sigmas):
            xbar += field(here, xbar).mul_(float(there - here))
        return State(xbar, float(sigmas[-1]))

    row = Solver("mine", run, family="mine", order=1, nfe=1, reference="this test", grid="linear")
    field, learnt = model()
    x_T = latents()
    outs = [odeddim.solve(x_T, solver, model=field, steps=4) for solver in (row, "euler")]
    for mine, theirs in zip(*(gradients(out, [x_T, *learnt]) for out in outs), strict=True):
        assert off(mine, theirs) < 1e-13
    with pytest.raises(InputError, match="gives no gradients"):
        odeddim.solve(x_T, replace(row, differentiable=False), model=field, steps=4)


@pytest.mark.parametrize("name", ["belm", "reversible-heun", "unipc-2"])
def test_the_evaluations_are_counted(name: str) -> None:
    """A step more in each direction: on the way back each point is evaluated once more."""
    field, _ = model()
    plan = odeddim.plan(field, name, steps=6)
    out = odeddim.solve(latents(), model=field, plan=plan)
    assert field.nfe == plan.evaluations_down
    loss(out).backward()
    assert field.nfe == 2 * plan.evaluations_down


@pytest.mark.parametrize("name", ["belm", "unipc-2"])
def test_a_callback_sees_each_step_without_a_gradient(name: str) -> None:
    seen = []

    def keep(step: int, sigma: float, xbar: Tensor) -> None:
        assert not xbar.requires_grad
        seen.append((step, xbar * 2))

    out = odeddim.solve(latents(), name, model=model()[0], steps=4, callback=keep)
    assert [step for step, _ in seen] == [1, 2, 3, 4]
    assert not seen[-1][1].requires_grad
    assert torch.equal(seen[-1][1], out * 2)


class Kept:
    """Counts the bytes that autograd keeps, at most at once."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def __enter__(self) -> Kept:
        self.hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Held(self, tensor), lambda it: it.tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)


class _Held:
    def __init__(self, kept: Kept, tensor: Tensor) -> None:
        self.kept, self.tensor = kept, tensor.detach()  # not itself: what keeps its own result would never be freed
        kept.now += tensor.nbytes
        kept.most = max(kept.most, kept.now)

    def __del__(self) -> None:
        self.kept.now -= self.tensor.nbytes


def most_kept(steps: int, way: str | None) -> int:
    field, _ = model()
    with Kept() as kept:
        loss(odeddim.solve(latents(), "belm", model=field, steps=steps, gradients=way)).backward()  # type: ignore[arg-type]
    return kept.most


def test_a_reversible_run_keeps_as_much_for_200_steps_as_for_10() -> None:
    assert most_kept(200, None) <= 1.01 * most_kept(10, None)
    assert most_kept(40, "direct") > 3 * most_kept(10, "direct")  # so bytes are counted


class Silent(nn.Module):
    """A network that must not be asked with gradients on. Its weight needs one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.99))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return x * self.weight


@pytest.fixture
def silent(here: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    field = VectorField.from_network(Silent(), Schedule.linear(), shape=(1, 4, 4), name="silent")
    return lambda **more: {"model": field, **more}


def test_jobs_and_checks_run_without_gradients(silent: Callable[..., dict[str, Any]]) -> None:
    jobs = odeddim.jobs
    np.savez("images.npz", images=np.random.default_rng(0).integers(0, 256, (4, 4, 4), dtype=np.uint8))
    jobs.encode("images.npz", "z.h5", **silent(steps=2, certify=True))
    jobs.encode("images.npz", "tol.h5", **silent(solver="unipc-2", tol=0.5))
    jobs.decode("z.h5", "out", **silent())
    jobs.verify("z.h5", **silent())
    jobs.interpolate("z.h5", [0, 1], 3, to=jobs.Drawing(sheet=Path("sheet.png"), **silent()))
    jobs.sample(2, "s.h5", **silent(steps=2))
    jobs.fit("images.npz", output="plan.json", **silent(solver="ab2", steps=4, count=2))
    jobs.bench.reconstruction(jobs.bench.Workbench(**silent()), "images.npz", solvers=("euler",), steps=(2,))
    with odeddim.open("z.h5") as file:
        state, back = file[:], file.decode(**silent())
    assert not back.requires_grad
    odeddim.certify(state.x.clone(), **silent(steps=2))


def test_a_state_with_a_gradient_can_be_saved(here: Path) -> None:
    x_0 = torch.zeros(2, 1, 4, 4, requires_grad=True)
    state = odeddim.encode(x_0, "belm", model="exact-mixture", steps=3)
    assert state.xbar.requires_grad
    odeddim.save(state, "z.h5")
    with odeddim.open("z.h5") as file:
        assert file[:] == state


def jacobian(decode: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Of one image, by central differences: (D, D)."""
    columns = []
    for unit in torch.eye(x.numel(), dtype=DOUBLE).reshape(-1, *x.shape):
        columns.append(((decode(x + 1e-5 * unit) - decode(x - 1e-5 * unit)) / 2e-5).flatten())
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("name", ["belm", "unipc-2"])
def test_the_sensitivity_is_the_largest_singular_value(name: str) -> None:
    field, _ = model()
    x_T = latents().detach()
    found = odeddim.sensitivity(x_T, name, model=field, steps=4, iterations=25)
    for i in range(2):
        with torch.no_grad():
            matrix = jacobian(lambda x: odeddim.solve(x, name, model=field, steps=4), x_T[i : i + 1])
        assert float(found.values[i]) == pytest.approx(float(torch.linalg.svdvals(matrix)[0]), rel=1e-5)
        stretched = matrix @ found.directions[i].flatten()
        assert float(stretched.norm()) == pytest.approx(float(found.values[i]), rel=1e-5)
    few = odeddim.sensitivity(x_T, name, model=field, steps=4, iterations=1)
    assert bool((few.values <= found.values * (1 + 1e-9)).all())
    assert bool((few.rise > found.rise).all())


def test_the_sensitivity_of_a_linear_map() -> None:
    """x_T to x_0 multiplies each number by √((s² + 0)/(s² + σ_T²))·√(1 + σ_T²), which is s but for the model's σ_1."""
    spreads = torch.tensor([0.2, 0.5, 0.9], dtype=DOUBLE).reshape(1, 1, 3)
    schedule = Schedule.linear()

    def eps(x: Tensor, t: Tensor) -> Tensor:
        sigma = schedule.sigma(t).to(x).reshape(-1, 1, 1, 1)
        return x * (1 + sigma**2).sqrt() * sigma / (spreads.to(x) ** 2 + sigma**2)

    mine = VectorField(eps, schedule, name="mine")
    found = odeddim.sensitivity(odeddim.noise(2, (1, 1, 3)).double(), "unipc-3", model=mine, steps=30)
    assert found.values.tolist() == pytest.approx([0.9 * math.sqrt(1 + 157.4**2) / math.hypot(0.9, 157.4)] * 2, 1e-3)


def test_the_sensitivity_without_a_forward_mode() -> None:
    """torch has none of the exact models' distances. Data N(0, 0.5²): x_T is multiplied by 0.5, nearly."""
    found = odeddim.sensitivity(odeddim.noise(2, (1, 2, 2)), "unipc-3", model="exact-gaussian", steps=30, iterations=2)
    assert found.values.tolist() == pytest.approx([0.5] * 2, 2e-3)


@pytest.mark.parametrize("rounds", [0, 1.5, "3"])
def test_the_sensitivity_says_what_it_cannot_do(rounds: Any) -> None:
    with pytest.raises(InputError, match="iterations must be a whole number, at least 1"):
        odeddim.sensitivity(odeddim.noise(1, (1, 28, 28)), iterations=rounds)


def test_the_sensitivity_is_the_same_within_inference_mode() -> None:
    field, _ = model()
    plain = odeddim.sensitivity(latents(), model=field, steps=2, iterations=1).values
    with torch.inference_mode():
        found = odeddim.sensitivity(latents().detach() * 1, model=field, steps=2, iterations=1).values
    assert torch.equal(found, plain)


def test_explain_says_it() -> None:
    """The command, the library and `sensitivity` itself say the same; without the option nothing is computed."""
    made = odeddim.explain("unipc-2", steps=1, sensitivity=1)
    found = odeddim.sensitivity(odeddim.noise(1, (1, 28, 28)), "unipc-2", steps=1).values
    assert list(made.sensitivity) == found.tolist()
    said = command("explain", "--solver", "unipc-2", "--steps", 1, "--sensitivity", 1)
    assert f"at most, at each noise: {float(found[0]):.3g}." in said
    assert "amplifies a small change" not in command("explain", "--solver", "unipc-2", "--steps", 1)
    assert "gives no gradients" in command("explain", "--solver", "rk4", "--steps", 1, "--sensitivity", code=2)
