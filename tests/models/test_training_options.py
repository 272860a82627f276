"""Training beyond the defaults: each option against its formula, and stopped runs still go on to the same bits."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_train import ALPHAS, SETTINGS, TINY, bars, invoke, same, source, state
from torch import Tensor

import odeddim.train.run
import odeddim.train.trainer
from odeddim.models.networks.unet import UNet
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.train.batches import batch_rows, batches, mirrored
from odeddim.train.gradients import TreeSum
from odeddim.train.loss import OBJECTIVES, validation_loss
from odeddim.train.run import Progress, train
from odeddim.train.settings import Settings, learning_rate
from odeddim.train.trainer import Trainer
from odeddim.types import InputError

CPU = torch.device("cpu")
EVERYTHING: dict[str, Any] = {
    "weight_decay": 0.1, "decay_shape": "cosine", "decay": 1.0, "ema_half_life": 20.0, "flips": True, "microbatches": 4,
    "predicts": "edm",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(odeddim.train.run, "SHEET_IMAGES", 2)


def trainer(**settings: Any) -> Trainer:
    return Trainer({**TINY, "dropout": 0.0, "image_size": 8}, replace(SETTINGS, **settings), 10, CPU)


def weights(run: Trainer) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in run.network.parameters()]


def test_weight_decay_is_decoupled_from_the_gradient() -> None:
    """Without a gradient, AdamW's weights shrink by 1 - lr·λ a step; Adam with λ in the gradient would move by lr."""
    run = trainer(weight_decay=0.5, learning_rate=0.1, warmup=0, decay=0.0, clip=1e-14)
    before = weights(run)
    for _ in range(2):
        run.advance(bars()[:4])
    for old, new in zip(before, weights(run), strict=True):
        torch.testing.assert_close(new, old * (1 - 0.1 * 0.5) ** 2, rtol=1e-5, atol=1e-6)


def test_the_learning_rate_falls_as_a_cosine() -> None:
    whole = Settings(steps=1000, warmup=0, decay=1.0, learning_rate=3.0, decay_shape="cosine")
    for step in (0, 1, 250, 500, 999):
        want = 3 / 2 * (1 + math.cos(math.pi * step / 1000))
        assert learning_rate(whole, step) == pytest.approx(want, rel=1e-12)
    late = replace(whole, decay=0.2, warmup=100)
    assert learning_rate(late, 49) == pytest.approx(1.5)
    assert {learning_rate(late, step) for step in range(100, 801)} == {3.0}
    assert learning_rate(late, 900) == pytest.approx(1.5)


def test_the_average_has_its_half_life_in_images() -> None:
    """Weights that jump from 0 to 1: after h images the average is ½, after 2·h it is ¾, for any batch size."""
    for batch_size, half_life in ((4, 4000.0), (8, 1000.0)):
        decay = replace(SETTINGS, batch_size=batch_size, ema_half_life=half_life).average_decay
        update = odeddim.train.trainer._ema(decay)
        average = [torch.zeros((), dtype=torch.float64)]
        steps = int(half_life / batch_size)
        for step in range(2 * steps):
            update(average, [torch.ones((), dtype=torch.float64)], torch.tensor(10**6 + step))
            if step + 1 in (steps, 2 * steps):
                assert float(average[0]) == pytest.approx(1 - 0.5 ** ((step + 1) / steps), rel=1e-9)


def test_half_of_the_images_are_mirrored_left_to_right() -> None:
    images = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    settings = replace(SETTINGS, steps=200, batch_size=6, flips=True)
    flips = []
    for step, x0 in enumerate(batches(source(images), settings, 0, slice(None))):
        rows = batch_rows(6, 6, 0, step)
        for image, mirror, row in zip(x0, mirrored(settings, step).tolist(), rows, strict=True):
            assert torch.equal(image, images[row].flip(2) if mirror else images[row])
            flips.append(mirror)
    assert np.mean(flips) == pytest.approx(0.5, abs=0.06)  # four standard deviations
    assert not torch.equal(mirrored(settings, 0), mirrored(replace(settings, seed=1), 0))


def test_the_order_of_the_images_does_not_know_of_pieces_and_shares() -> None:
    whole = [*batches(bars(), replace(SETTINGS, flips=True), 0, slice(None))]
    halves = [
        [*batches(bars(), replace(SETTINGS, flips=True, microbatches=2), 0, slice(2 * i, 2 * i + 2))] for i in (0, 1)
    ]
    assert all(torch.equal(a, torch.cat(b)) for a, b in zip(whole, zip(*halves, strict=True), strict=True))


def test_accumulated_gradients_are_those_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, list[Tensor]] = {}
    gradients, losses = {}, []
    for pieces in (1, 2, 4):
        run = trainer(microbatches=pieces, batch_size=8)
        forward = run.network.forward
        monkeypatch.setattr(
            run.network, "forward", lambda x, t, f=forward, n=pieces: (seen.setdefault(n, []).append(x), f(x, t))[1]
        )
        losses.append(float(run._gradient(bars()[:8])))
        gradients[pieces] = torch.cat([p.grad.flatten() for p in run.network.parameters() if p.grad is not None])
    for pieces in (2, 4):
        assert [len(x) for x in seen[pieces]] == [8 // pieces] * pieces
        assert torch.equal(torch.cat(seen[pieces]), seen[1][0])
        torch.testing.assert_close(gradients[pieces], gradients[1], rtol=1e-4, atol=1e-6)
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 13])
def test_a_tree_of_sums(count: int) -> None:
    values = torch.randn(count, 50, generator=torch.Generator().manual_seed(count))
    tree = TreeSum()
    for value in values:
        tree.add(value)
    torch.testing.assert_close(tree.total(), values.double().sum(0).float(), rtol=1e-5, atol=1e-5)
    if count == 8:  # two branches of four are the whole tree, bit for bit; adding one after another is not
        branches = [TreeSum(), TreeSum()]
        for i, value in enumerate(values):
            branches[i // 4].add(value)
        assert torch.equal(branches[0].total() + branches[1].total(), tree.total())
        assert not torch.equal(sum(values), tree.total())  # type: ignore[arg-type]


def test_stopped_within_a_batch_of_pieces_and_resumed_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C arrives at the second of four pieces of the third step: the step is finished, saved, and not repeated."""
    settings = replace(SETTINGS, **EVERYTHING)
    train(bars(), tmp_path / "whole", architecture=TINY, settings=settings)
    forward, calls = UNet.forward, 0

    def stopped(self: UNet, x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += self.training
        if calls == 10 and self.training:
            os.kill(os.getpid(), signal.SIGINT)
        return forward(self, x, t)

    monkeypatch.setattr(UNet, "forward", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(bars(), tmp_path / "parts", architecture=TINY, settings=settings)
    assert calls == 12
    monkeypatch.setattr(UNet, "forward", forward)
    train(bars(), tmp_path / "parts")
    assert same(state(tmp_path / "whole"), state(tmp_path / "parts"))
    assert same(*(load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")))


def test_options_are_settings_of_the_run(tmp_path: Path) -> None:
    """They are kept when they are left out, others are refused, and those of an older run have their defaults."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 255, (10, 8, 8), np.uint8))
    small = ["--channels", 8, "--multipliers", "1,2", "--blocks", 1, "--attention", "4", "--batch-size", 4]
    options = ["--flips", "--microbatches", 2, "--set", "weight_decay=0.01", "--set", "decay-shape=cosine"]
    arguments = [tmp_path / "x.npy", "-o", tmp_path / "m", "--device", "cpu"]
    assert invoke(*arguments, *small, *options, "--steps", 1).exit_code == 0
    assert invoke(*arguments, "--steps", 2).exit_code == 0
    saved = odeddim.train.checkpoint.saved_settings(tmp_path / "m")
    wanted = {"flips": True, "microbatches": 2, "weight_decay": 0.01, "decay_shape": "cosine"}
    assert {name: getattr(saved, name) for name in wanted} == wanted
    assert wanted.items() <= odeddim.load(tmp_path / "m").details["training"].items()
    assert wanted.keys().isdisjoint(Settings().to_dict())
    refused = invoke(*arguments, "--steps", 3, "--set", "weight_decay=0").exception
    assert isinstance(refused, InputError)
    assert "the run has weight_decay 0.01, not 0" in str(refused)
    twice = invoke(*arguments, "--set", "flips=1")
    assert (twice.exit_code, "flips is an option of its own, --flips" in twice.output) == (2, True)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"weight_decay": -0.1}, "weight_decay >= 0"),
        ({"weight_decay": "much"}, "weight_decay must be a finite number, not 'much'"),
        ({"flips": 1}, "flips must be True or False, not 1"),
        ({"warmup": 2.5}, "warmup must be a whole number"),
        ({"clip": math.inf}, "clip must be a finite number"),
        ({"decay_shape": "cosin"}, "did you mean cosine"),
        ({"microbatches": 3}, "batch of 64 images cannot be cut into 3 equal pieces"),
        ({"ema": 0.9, "ema_half_life": 100.0}, "give one"),
    ],
)
def test_impossible_options(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Settings(**wrong)


def posed(name: str, times: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Images, noise, and what the objective makes of them: x, t, target; one image for each time."""
    generator = torch.Generator().manual_seed(1)
    x0 = torch.rand(len(times), 3, 4, 4, generator=generator) * 2 - 1
    noise = torch.randn(len(times), 3, 4, 4, generator=generator)
    objective = OBJECTIVES[name]
    return x0, noise, *objective.pose(objective.schedule(), x0, noise, times)


def test_v_is_the_derivative_by_the_angle() -> None:
    """x = cos φ·x0 + sin φ·ε turns by dx/dφ = v (Salimans and Ho, appendix D), with DDPM's α as cos² φ."""
    x0, noise, x, t, v = posed("v", torch.tensor([0.0, 0.3, 0.9995]))
    assert t.tolist() == [0, 300, 999]
    alpha = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[[0, 300, 999]]
    phi = torch.from_numpy(np.arccos(np.sqrt(alpha)))[:, None, None, None].requires_grad_()
    want = torch.cos(phi) * x0.double() + torch.sin(phi) * noise.double()
    (slope,) = torch.autograd.grad(want.sum(), phi, retain_graph=True)
    torch.testing.assert_close(x.double(), want.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(v.double().sum((1, 2, 3)), slope.flatten(), rtol=1e-4, atol=1e-3)
    turned = -torch.sin(phi.detach()) * x0 + torch.cos(phi.detach()) * noise
    torch.testing.assert_close(v.double(), turned, rtol=1e-4, atol=1e-4)


def test_edms_loss_is_the_weighted_loss_of_its_denoiser() -> None:
    """Eq. 2, 7 and 8 of EDM in float64, around any F: the squared difference of F and the target, for each image."""
    times = torch.tensor([1e-6, 0.1, 0.5, 0.9, 1 - 1e-6])
    x0, noise, x, t, target = posed("edm", times)
    sigma = np.exp(-1.2 + 1.2 * np.array([NormalDist().inv_cdf(float(time)) for time in times]))
    np.testing.assert_allclose(np.exp(4 * t.numpy()), sigma, rtol=1e-3)  # c_noise = ln(σ)/4
    level = torch.from_numpy(np.exp(4 * t.double().numpy()))[:, None, None, None]
    noisy, s = x0.double() + level * noise.double(), 0.5
    c_skip, c_out = s**2 / (level**2 + s**2), level * s / (level**2 + s**2).sqrt()
    torch.testing.assert_close(x.double(), noisy / (level**2 + s**2).sqrt(), rtol=1e-5, atol=1e-6)  # c_in·x
    inner = torch.sin(3 * x.double()) + t.double()[:, None, None, None]
    denoised = c_skip * noisy + c_out * inner
    weighted = (level**2 + s**2) / (level * s) ** 2 * (denoised - x0.double()) ** 2
    torch.testing.assert_close((inner - target.double()) ** 2, weighted, rtol=1e-3, atol=1e-4)
    # F at its best has unit variance in and out for data of deviation σ_data.
    data = 0.5 * torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    each = torch.full((4000,), 0.3)
    x, _, target = OBJECTIVES["edm"].pose(Schedule.edm(), data, torch.randn_like(data), each)
    assert (float(x.std()), float(target.std())) == pytest.approx((1, 1), abs=0.05)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_exact_answer_makes_the_exact_field(name: str) -> None:
    """All images are 0.3. The network that gives the target of every x makes a model whose ε is exact."""

    def answer(x: Tensor, t: Tensor) -> Tensor:
        if name == "edm":
            sigma = torch.exp(4 * t)[:, None, None, None]
            root = (sigma**2 + 0.25).sqrt()
            noise = (x * root - 0.3) / sigma
            return (sigma / 0.5 * 0.3 - 0.5 * noise) / root
        if name == "flow":
            time = t[:, None, None, None] / 1000
            return (x - (1 - time) * 0.3) / time - 0.3
        alpha = ALPHAS[t.long()][:, None, None, None]
        noise = (x - alpha.sqrt() * 0.3) / (1 - alpha).sqrt()
        return noise if name == "eps" else alpha.sqrt() * noise - (1 - alpha).sqrt() * 0.3

    class Exact(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return answer(x, t)

    objective = OBJECTIVES[name]
    field = VectorField(
        objective.model(Exact()), objective.schedule(), predicts=objective.predicts, time=objective.time
    )
    assert validation_loss(field, source(torch.full((70, 1, 8, 8), 0.3))) < 1e-6
    sigma = field.schedule.levels[300]
    noise = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(field(sigma, 0.3 + float(sigma) * noise), noise, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["v", "edm"])
def test_a_model_of_each_objective_is_what_was_trained(tmp_path: Path, name: str) -> None:
    settings = Settings(steps=15, batch_size=16, learning_rate=5e-3, warmup=3, ema=0.9, log_every=5, predicts=name)
    seen: list[Progress] = []
    train(bars(16), tmp_path, validation=bars(16), architecture=TINY, settings=settings, report=seen.append)
    losses = [progress.loss for progress in seen if progress.logged]
    assert losses[-1] < losses[0]
    field = odeddim.load(tmp_path)
    assert field.predicts == OBJECTIVES[name].predicts
    assert seen[-1].validation_loss == pytest.approx(validation_loss(field, bars(16)), rel=1e-5)


def test_a_description_of_edms_denoiser(tmp_path: Path) -> None:
    """σ_data belongs to the model's hash; other files keep the version that earlier releases read."""
    train(bars(), tmp_path / "edm", architecture=TINY, settings=replace(SETTINGS, steps=1, predicts="edm"))
    train(bars(), tmp_path / "eps", architecture=TINY, settings=replace(SETTINGS, steps=1))
    about, plain = (json.loads((tmp_path / name / "model.json").read_text()) for name in ("edm", "eps"))
    assert (about["version"], about["sigma_data"], about["predicts"], about["time"]) == (2, 0.5, "x0", "sigma")
    assert (plain["version"], "sigma_data" in plain, plain["time"]) == (1, False, "index")
    first = odeddim.load(tmp_path / "edm")
    (tmp_path / "edm/model.json").write_text(json.dumps({**about, "sigma_data": 1.0}))
    assert odeddim.load(tmp_path / "edm").sha256 != first.sha256
    for wrong in (0, "half", True, math.inf):
        (tmp_path / "edm/model.json").write_text(json.dumps({**about, "sigma_data": wrong}))
        with pytest.raises(InputError, match="sigma_data must be a positive number"):
            odeddim.load(tmp_path / "edm")
