"""The Gaussian of a model's data: its flow, its estimation, its file, and plans whose top it carries."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import load_file, save_file
from scipy.integrate import solve_ivp
from support import command
from torch import Tensor

import odeddim
from odeddim.checks import gaussian_errors
from odeddim.ode import covariance
from odeddim.ode.gaussian import FORMAT, Gaussian
from odeddim.ode.tops import CURVES, best
from odeddim.plans import Plan, integrate
from odeddim.types import InputError, State

LINEAR = odeddim.Schedule.linear()


def drawn(count: int = 400, *, seed: int = 0) -> Tensor:
    """Images (count, 1, 4, 5), correlated, float64."""
    made = torch.Generator().manual_seed(seed)
    mix = torch.randn(20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(9)) / 6
    return (torch.randn(count, 20, dtype=torch.float64, generator=made) @ mix + 0.2).reshape(count, 1, 4, 5)


def dense(gaussian: Gaussian) -> tuple[np.ndarray, np.ndarray]:
    """The mean (D,) and the covariance (D, D), by the definition: eigenvectors, and a variance for what is beside."""
    basis = scipy.linalg.orth(gaussian.basis.double().numpy().T) if len(gaussian.basis) else np.zeros((20, 0))
    rows = np.linalg.qr(gaussian.basis.double().numpy().T)[0].T
    beside = np.eye(rows.shape[1]) - basis @ basis.T
    return gaussian.mean.flatten().numpy(), rows.T @ np.diag(gaussian.variances) @ rows + gaussian.rest * beside


@pytest.mark.parametrize("rank", [3, 20])
@pytest.mark.parametrize(("sigma", "to"), [(20.0, 157.0), (157.0, 20.0), (0.01, 3.0)])
def test_the_flow_solves_the_ode_of_the_full_covariance(rank: int, sigma: float, to: float) -> None:
    """Against scipy on dx̄/dσ = σ·(Σ + σ²)⁻¹·(x̄ - μ) with the dense covariance."""
    gaussian = Gaussian.of(drawn(), rank=rank)
    mean, covariance_ = dense(gaussian)
    start = drawn(2, seed=1) * 10

    def slope(log_sigma: float, x: np.ndarray) -> np.ndarray:
        level = math.exp(log_sigma)
        return level**2 * np.linalg.solve(covariance_ + level**2 * np.eye(20), x - mean)

    span = math.log(sigma), math.log(to)
    for image in start:
        end = solve_ivp(slope, span, image.flatten().numpy(), method="DOP853", rtol=1e-11, atol=1e-12).y[:, -1]
        found = gaussian.carry(image[None], sigma, to).flatten().numpy()
        assert np.abs(found - end).max() <= 2e-7 * np.abs(end).max()  # the basis is stored as float32


def test_eps_is_the_slope_of_the_flow() -> None:
    gaussian, xbar = Gaussian.of(drawn(), rank=5), drawn(3, seed=2) * 4
    h = 1e-4
    slope = (gaussian.carry(xbar, 2.0, 2.0 + h) - gaussian.carry(xbar, 2.0, 2.0 - h)) / (2 * h)
    assert torch.allclose(gaussian.eps(2.0, xbar), slope, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_there_and_back(dtype: torch.dtype) -> None:
    gaussian, xbar = Gaussian.of(drawn(), rank=7), drawn(4, seed=3).to(dtype) * 20
    up = gaussian.carry(xbar, 20.0, 157.0)
    assert up.dtype == dtype
    scale = float(up.abs().max()) * torch.finfo(dtype).eps
    assert float((gaussian.carry(up, 157.0, 20.0) - xbar).abs().max()) <= 4 * scale


def test_an_image_has_the_same_bits_in_any_batch() -> None:
    gaussian, xbar = Gaussian.of(drawn(), rank=7), drawn(9, seed=4).float()
    whole = gaussian.carry(xbar, 20.0, 157.0)
    for some in ([3], [8, 1, 3], list(range(7))):
        assert torch.equal(gaussian.carry(xbar[some], 20.0, 157.0), whole[some])


def test_the_basis_is_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Gaussian.of(drawn(), rank=7)
    whole = one.carry(drawn(2), 20.0, 157.0)
    monkeypatch.setattr("odeddim.ode.gaussian._BLOCK", 45)
    apart = Gaussian(one.mean, one.basis, one.variances, one.rest).carry(drawn(2), 20.0, 157.0)
    assert torch.allclose(apart, whole, rtol=1e-13)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "randomised"])
def test_mean_and_covariance_are_those_of_numpy(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    images = drawn()
    monkeypatch.setattr(covariance, "WHOLE", 4096 if whole else 1)
    monkeypatch.setattr(covariance, "_NUMBERS", 300)  # blocks of 15 images
    found = Gaussian.of(images, rank=6)
    values, vectors = np.linalg.eigh(np.cov(images.flatten(1).numpy().T))
    assert np.allclose(found.mean.numpy(), images.mean(0).numpy())
    assert np.allclose(found.variances.numpy(), values[:-7:-1], rtol=1e-9)
    assert np.allclose(np.abs(found.basis.double().numpy() @ vectors[:, :-7:-1]), np.eye(6), atol=1e-6)
    assert found.rest == pytest.approx(values[:-6].mean())


def test_fewer_images_than_the_rank_give_fewer_components() -> None:
    found = Gaussian.of(drawn(5))
    assert found.basis.shape == (4, 20)
    assert found.rest == pytest.approx(0, abs=1e-12)
    with pytest.raises(InputError, match="at least 2 images"):
        Gaussian.of(drawn(1))


def test_a_file_holds_all(tmp_path: Path) -> None:
    errors = {"sigma": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    made = Gaussian.of(drawn().float(), rank=3).with_errors(errors, model="mine")
    made.save(tmp_path / "m.safetensors")
    again = Gaussian.load(tmp_path / "m.safetensors")
    assert again.notes == {"images": 400, "model": "mine"}
    assert torch.equal(again.errors["sigma"], errors["sigma"])
    assert torch.allclose(again.carry(drawn(2), 3.0, 30.0), made.carry(drawn(2), 3.0, 30.0), atol=1e-6)
    assert again.to_bytes() == made.to_bytes()


def _changed(change: Callable[[dict[str, Tensor], dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        about = {"format": FORMAT, "version": 1, "rest": 0.1, "notes": {}}
        change(tensors, about)
        save_file(tensors, path, {"description": json.dumps(about)})

    return damage


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "no header": lambda path: path.write_bytes(b"\xff" * 64),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "another kind": _changed(lambda tensors, about: about.update(format="odeddim plan")),
    "newer": _changed(lambda tensors, about: about.update(version=2)),
    "no mean": _changed(lambda tensors, about: (tensors.pop("mean"), None)[1]),
    "NaN": _changed(lambda tensors, about: (tensors["basis"].fill_(math.nan), None)[1]),
    "negative": _changed(lambda tensors, about: (tensors["variances"].neg_(), None)[1]),
    "whole numbers": _changed(lambda tensors, about: tensors.update(mean=torch.zeros(1, 4, 5, dtype=torch.int64))),
    "another shape": _changed(lambda tensors, about: tensors.update(mean=torch.zeros(1, 4, 4))),
    "a rest that is none": _changed(lambda tensors, about: about.update(rest="much")),
    "a negative rest": _changed(lambda tensors, about: about.update(rest=-1.0)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_sentence(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    Gaussian.of(drawn().float(), rank=3).save(path)
    DAMAGES[damage](path)
    with pytest.raises(InputError) as refused:
        Gaussian.load(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_eigenvectors_that_are_none_are_refused() -> None:
    one = Gaussian.of(drawn().float(), rank=3)
    for basis in (one.basis * 0, one.basis[[0, 0, 1]], one.basis * 3):
        with pytest.raises(InputError, match="orthonormal"):
            Gaussian(one.mean, basis, one.variances, one.rest).carry(drawn(1), 1.0, 2.0)


# Plans whose last interval is carried


def carried(solver: str, steps: int | None = 8, model: str = "exact-samples", top: str = "gaussian:20") -> Plan:
    field = odeddim.load(model)
    return odeddim.plan(field, solver, steps=steps, top=top)


def test_on_gaussian_data_the_carried_interval_is_exact() -> None:
    """The run errs as much as one that begins at σ_s, and not more."""
    field = odeddim.load("exact-gaussian")
    plan = carried("ab2", 40, "exact-gaussian")
    x_T = odeddim.noise(3, (1, 4, 4), seed=0).double() * 157.4
    start = State(x_T, plan.top)
    truth = field.moments.carry(x_T, plan.top, 20.0)  # type: ignore[union-attr]
    seen: dict[float, Tensor] = {}
    found = integrate(field, start, plan, callback=lambda step, sigma, xbar: seen.update({sigma: xbar}))
    assert torch.equal(seen[20.0], truth)
    assert torch.equal(found.xbar, integrate(field, State(truth, 20.0), plan.solved).xbar)


def test_steps_and_evaluations_are_the_solvers() -> None:
    plan = carried("ab2")
    assert plan.carried
    assert (plan.steps, plan.evaluations, plan.evaluations_down, len(plan.nodes)) == (8, 8, 8, 10)
    assert plan.nodes[-2:].tolist() == [20.0, LINEAR.sigma_max]
    assert str(plan) == "ab2, log grid, 8 steps, end zero, gaussian from σ = 20 to 157.407"
    field = odeddim.load("exact-samples")
    odeddim.encode(odeddim.open_images()[:2], model=field, plan=plan)
    assert field.nfe == 8


def test_a_plan_file_says_it(tmp_path: Path) -> None:
    plan = carried("belm")
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert again.carried
    content = plan.to_dict()
    assert content["version"] == 2  # who knows version 1 alone would solve the interval
    for change in ({"version": 1}, {"carried": False}, {"carried": "yes"}, {"nodes": [0.0, 5.0]}):
        with pytest.raises(InputError):
            Plan.from_dict({**content, **change}, "plan.json")
    assert "carried" not in Plan.of(LINEAR, "belm", 8).to_dict()


@pytest.mark.parametrize("solver", ["belm", "edict", "reversible-heun", "mf-euler"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reversible_rows_return_every_bit(solver: str, dtype: torch.dtype) -> None:
    images = odeddim.open_images()[:2][..., :8, :8].to(dtype)
    state = odeddim.encode(images, solver, model="exact-mixture", steps=12, top="gaussian:20")
    assert torch.equal(odeddim.decode(state, model="exact-mixture"), images)
    alone = State(state.xbar, state.sigma, plan=state.plan)
    assert not torch.equal(odeddim.decode(alone, model="exact-mixture"), images)


def test_changed_latents_do_not_come_back_by_what_was_kept() -> None:
    images = odeddim.open_images()[:2]
    state = odeddim.encode(images, "belm", model="exact-samples", steps=12, top="gaussian:20")
    moved = State(state.xbar.flip(0), state.sigma, state.aux, state.kept, plan=state.plan)
    with pytest.warns(UserWarning, match="starts from x̄ alone"):
        found = odeddim.decode(moved, model="exact-samples")
    assert (found.flip(0) - images).abs().max() < 1


@pytest.mark.parametrize("solver", ["dopri5-per-image", "scipy-rk45", "dopri5"])
def test_adaptive_rows_end_at_the_gaussian(solver: str) -> None:
    plan = carried(solver, None, "exact-gaussian")
    assert plan.steps is None
    assert plan.nodes.tolist() == [0.0, LINEAR.sigma_min, 20.0, LINEAR.sigma_max]
    state = odeddim.encode(torch.full((2, 1, 4, 4), 0.3, dtype=torch.float64), model="exact-gaussian", plan=plan)
    assert torch.allclose(state.xbar, torch.full_like(state.xbar, 0.3 * math.hypot(0.5, state.sigma) / 0.5), rtol=1e-3)


def test_rows_that_add_noise_begin_below_the_gaussian() -> None:
    found = odeddim.sample(2, "ddpm", model="exact-gaussian", steps=10, shape=(1, 4, 4), top="gaussian:20")
    assert torch.isfinite(found).all()


def test_what_is_not_given_is_as_encoded() -> None:
    field = odeddim.load("exact-samples")
    state = odeddim.encode(odeddim.open_images()[:2], "ab2", model=field, steps=8, top="gaussian:20")
    assert state.plan.carried
    calls = field.nfe
    odeddim.decode(state, model=field)
    assert field.nfe == calls + 8
    plain = odeddim.decode(state, "ab2", model=field, steps=8, top="model")
    again = State(state.xbar, state.sigma)
    assert torch.equal(plain, odeddim.decode(again, "ab2", model=field, steps=8))


def test_given_nodes_are_those_of_the_solver() -> None:
    field = odeddim.load("exact-samples")
    plan = odeddim.plan(field, "ab2", grid=[0.0, 0.01, 1.0, 20.0], top="gaussian")
    assert plan.nodes.tolist() == [0.0, 0.01, 1.0, 20.0, LINEAR.sigma_max]
    with pytest.raises(InputError, match="nothing to carry"):
        odeddim.plan(field, "ab2", grid=[0.0, 0.01, 1.0, LINEAR.sigma_max], top="gaussian")
    with pytest.raises(InputError, match="end at σ = 20"):
        odeddim.plan(field, "ab2", grid=[0.0, 0.01, 1.0, 20.0], top="gaussian:30")


@pytest.mark.parametrize("top", ["gauss", "gaussian:", "gaussian:x", "gaussian:-1", "gaussian:nan", "gaussian:1e9", 20])
def test_a_top_that_is_none_is_one_sentence(top: Any) -> None:
    with pytest.raises(InputError):
        odeddim.plan("exact-samples", "ab2", steps=5, top=top)


def test_a_model_without_moments_is_told() -> None:
    field = odeddim.VectorField(lambda x, t: x / 2, LINEAR, name="mine")
    with pytest.raises(InputError, match="odeddim moments"):
        odeddim.plan(field, "ab2", steps=5, top="gaussian:20")
    with pytest.raises(InputError, match=r"'mine'.*odeddim moments"):
        odeddim.encode(torch.zeros(1, 1, 28, 28), model=field, plan=carried("ab2"))
    with pytest.raises(InputError, match="odeddim moments"):
        odeddim.encode(torch.zeros(1, 1, 28, 28), "gauss-ab2", model=field, steps=5)


def test_moments_do_not_hold_under_another_condition() -> None:
    field = odeddim.VectorField.from_network(lambda x, t, c: x / 2, LINEAR, classes=3, null=0)
    field.moments = Gaussian.isotropic(0.0, 1.0)
    assert field.moments is not None
    assert field.conditioned(label=1).moments is None
    under = field.conditioned(label=1, guidance=3.0)
    under.moments = Gaussian.isotropic(0.0, 1.0)
    assert under.moments is None
    under.moments = Gaussian.isotropic(0.0, 1.0).with_errors({}, condition=under.condition.words)
    assert under.moments is not None


# The choice of σ_s


def curves(gaussian: float, solver: float) -> Gaussian:
    """Errors of a Gaussian that fall as 1/σ, and of solvers that fall as 1/N²."""
    sigma, count = torch.tensor([1.0, 5, 20, 60]).double(), torch.tensor([3.0, 6, 12, 24]).double()
    found = {"sigma": sigma, "evaluations": count}
    for way, harder in (("decode", 1.0), ("encode", 0.5)):  # the choice is that of the direction that gains less
        found |= {f"gaussian_{way}": gaussian * harder / sigma, f"solver_{way}": solver / count**2}
    assert found.keys() == set(CURVES)
    return Gaussian.isotropic(0.0, 1.0).with_errors(found)


def test_fewer_evaluations_leave_more_to_the_gaussian() -> None:
    chosen = [best(curves(0.4, 5.0), LINEAR, count) or math.inf for count in range(3, 51)]
    assert chosen == sorted(chosen)
    assert chosen[0] < 60
    assert chosen[-1] == math.inf
    assert best(curves(100.0, 1.0), LINEAR, 3) is None


def test_the_choice_is_the_smallest_predicted_error() -> None:
    """By the formula, computed anew."""
    gaussian, width = curves(0.4, 5.0), math.log(LINEAR.sigma_max / LINEAR.sigma_min)

    def predicted(sigma: float, count: int) -> float:
        return math.hypot(0.4 / sigma, 5.0 / (count * width / math.log(sigma / LINEAR.sigma_min)) ** 2)

    for count in (3, 5, 8, 12):
        expected = min((1.0, 5.0, 20.0, 60.0), key=lambda sigma, count=count: predicted(sigma, count))
        assert best(gaussian, LINEAR, count) == expected


def test_beyond_what_was_measured_none_carries() -> None:
    sharp = curves(1e-6, 5.0)  # a Gaussian that gains at any number
    assert best(sharp, LINEAR, 24) is not None
    assert best(sharp, LINEAR, 25) is None


def test_without_gain_the_plan_is_the_plain_one() -> None:
    plain = Plan.of(LINEAR, "ab2", 50)
    assert Plan.of(LINEAR, "ab2", 50, top="gaussian", moments=curves(0.4, 5.0)) == plain
    assert Plan.of(LINEAR, "ab2", 50, top="model") == plain
    with pytest.raises(InputError, match="not measured"):
        Plan.of(LINEAR, "ab2", 5, top="gaussian", moments=Gaussian.isotropic(0.0, 1.0))


# The models of the package, and the command


@pytest.mark.parametrize("model", ["fashion-mnist", "fashion-mnist-flow"])
def test_the_models_of_the_package_have_theirs(model: str) -> None:
    field = odeddim.load(model)
    assert field.moments is not None
    assert field.moments.notes["sha256"] == field.sha256
    assert odeddim.plan(field, "dpmpp-2m", steps=5, top="gaussian").carried
    assert odeddim.plan(field, "dpmpp-2m", steps=20, top="gaussian").carried == (model == "fashion-mnist-flow")
    assert not odeddim.plan(field, "dpmpp-2m", steps=50, top="gaussian").carried


def test_the_command_and_the_job_make_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("EVALUATIONS", (3, 4)), ("FINE_STEPS", 10), ("LEVELS", 2)):
        monkeypatch.setattr(gaussian_errors, name, value)
    command("moments", "-n", 24, "--rank", 4, "--model", "exact-samples", "-o", "a.safetensors")
    made = odeddim.jobs.moments(None, "b.safetensors", count=24, rank=4, model="exact-samples")
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    assert torch.allclose(made.moments.mean.float(), odeddim.open_images()[:18].mean(0), atol=1e-6)
    assert set(made.moments.errors) == set(CURVES)
    assert bool((made.moments.errors["gaussian_decode"] >= 0).all())
    command("moments", "--samples", 24, "--rank", 4, "--model", "exact-samples", "-o", "a.safetensors", code=2)
    command("moments", "--samples", 24, "--rank", 4, "--model", "exact-samples", "-o", "a.safetensors", "--overwrite")
    assert Gaussian.load("a.safetensors").notes["of"] == "24 samples of the model"
    assert "say where" in command("moments", "--model", "exact-samples", code=2)


def test_the_commands_say_that_it_was_carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    how = ("--model", "exact-samples", "--solver", "belm", "--steps", 6, "--top", "gaussian:20")
    assert "6 steps, 6 evaluations" in (said := command("explain", *how))
    assert "Between σ = 20 and 157.407 the Gaussian" in said
    command("encode", "-o", "z.h5", "-n", 2, *how)
    assert "top gaussian" in command("inspect", "z.h5")
    with odeddim.open("z.h5") as latents:
        assert latents.plan == odeddim.plan("exact-samples", "belm", steps=6, top="gaussian:20")
    command("decode", "z.h5", "-o", "out.npz")
    images = np.load("out.npz")["images"]
    assert np.abs(images - odeddim.open_images()[:2].numpy()).max() < 1e-6
    assert "leave out" in command("encode", "-o", "y.h5", "-n", 2, *how, "--tol", 0.1, code=2)


def test_beside_a_model_it_is_found(tmp_path: Path) -> None:
    import shutil

    built_in = Path(odeddim.__file__).parent / "data" / "fashion-mnist"
    for name in ("model.json", "model.safetensors"):
        shutil.copy(built_in / name, tmp_path / name)
    assert odeddim.load(tmp_path).moments is None
    odeddim.load("fashion-mnist").moments.save(tmp_path / "moments.safetensors")  # type: ignore[union-attr]
    assert odeddim.load(tmp_path).moments is not None
    Gaussian.isotropic(0.0, 1.0).with_errors({}, sha256="another", model="x").save(tmp_path / "moments.safetensors")
    with pytest.warns(UserWarning, match="other weights"):
        assert odeddim.load(tmp_path).moments is None
