"""Training beyond the defaults: each option against its formula, and stopped runs still go on to the same bits."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_train import SETTINGS, TINY, bars, invoke, same, source, state
from torch import Tensor

import odeddim.train.run
import odeddim.train.trainer
from odeddim.models.networks.unet import UNet
from odeddim.train.batches import batch_rows, batches, mirrored
from odeddim.train.gradients import TreeSum
from odeddim.train.run import train
from odeddim.train.settings import Settings, learning_rate
from odeddim.train.trainer import Trainer
from odeddim.types import InputError

CPU = torch.device("cpu")
EVERYTHING: dict[str, Any] = {
    "weight_decay": 0.1, "decay_shape": "cosine", "decay": 1.0, "ema_half_life": 20.0, "flips": True, "microbatches": 4,
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
