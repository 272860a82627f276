"""Training: the loss is the paper's, resuming is exact, a run's folder is always whole, and something is learnt."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor

import odeddim.storage.resumable
import odeddim.train.run
import odeddim.train.trainer
from odeddim import jobs
from odeddim.jobs.train import Trained
from odeddim.models import load
from odeddim.models.networks.unet import UNet
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.storage.images import ImageSource
from odeddim.train.batches import batch_rows
from odeddim.train.checkpoint import saved_step
from odeddim.train.loss import OBJECTIVES, stratified, validation_loss
from odeddim.train.run import Progress, train
from odeddim.train.settings import Settings, learning_rate
from odeddim.train.trainer import Trainer
from odeddim.types import InputError

TINY: dict[str, Any] = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4], "dropout": 0.1}
SETTINGS = Settings(steps=6, batch_size=4, warmup=2, checkpoint_every=4, samples_every=100, log_every=2)
ALPHAS = (1 / (1 + Schedule.linear().levels ** 2)).float()


def source(images: Tensor) -> ImageSource:
    n, c, h, w = images.shape
    return ImageSource((c, h, w), [str(i) for i in range(n)], lambda rows: images[torch.as_tensor(list(rows))])


def bars(count: int = 10) -> ImageSource:
    """Images that are black with one white column: easily learnt."""
    images = torch.full((count, 1, 8, 8), -1.0)
    images[torch.arange(count), :, :, torch.arange(count) % 8] = 1
    return source(images)


@pytest.fixture(autouse=True)
def no_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sheets of two images: 36 with 50 steps each would be most of the time."""
    monkeypatch.setattr(odeddim.train.run, "SHEET_IMAGES", 2)


def state(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "checkpoint.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def log(folder: Path) -> list[list[str]]:
    with (folder / "log.csv").open(newline="") as file:
        return [row[:3] for row in csv.reader(file)]  # without the seconds


def test_n_steps_and_n_more_are_2n_steps(tmp_path: Path) -> None:
    settings = replace(SETTINGS, decay=0.0)  # a decay would depend on the number of steps
    train(bars(), tmp_path / "whole", validation=bars(), architecture=TINY, settings=settings)
    train(bars(), tmp_path / "parts", validation=bars(), architecture=TINY, settings=replace(settings, steps=3))
    assert not same(state(tmp_path / "whole"), state(tmp_path / "parts"))
    train(bars(), tmp_path / "parts", validation=bars(), settings=settings)
    assert same(state(tmp_path / "whole"), state(tmp_path / "parts"))
    assert same(load_file(tmp_path / "whole/model.safetensors"), load_file(tmp_path / "parts/model.safetensors"))


class Stop:
    """A report that sends what Ctrl-C sends, once, at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, progress: Progress) -> None:
        if progress.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_interrupted_and_resumed_is_as_if_nothing_had_happened(tmp_path: Path, precision: str) -> None:
    settings = replace(SETTINGS, precision=precision)
    train(bars(), tmp_path / "whole", validation=bars(), architecture=TINY, settings=settings)
    with pytest.raises(KeyboardInterrupt):
        train(bars(), tmp_path / "parts", validation=bars(), architecture=TINY, settings=settings, report=Stop(2))
    assert not same(state(tmp_path / "whole"), state(tmp_path / "parts"))
    train(bars(), tmp_path / "parts", validation=bars())
    assert same(state(tmp_path / "whole"), state(tmp_path / "parts"))
    validated = [(row[0], row[2]) for row in log(tmp_path / "parts") if row[0] != "3"]  # where it was interrupted
    assert validated == [(row[0], row[2]) for row in log(tmp_path / "whole")]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_killed_run_repeats_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    def die(progress: Progress) -> None:
        if progress.step == 6:
            raise RuntimeError("killed")

    settings = replace(SETTINGS, steps=8)
    with pytest.raises(RuntimeError, match="killed"):
        train(bars(), tmp_path / "parts", architecture=TINY, settings=settings, report=die)
    assert [row[0] for row in log(tmp_path / "parts")] == ["step", "2", "4", "6"]
    train(bars(), tmp_path / "parts")
    train(bars(), tmp_path / "whole", architecture=TINY, settings=settings)
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    assert same(state(tmp_path / "whole"), state(tmp_path / "parts"))


@pytest.mark.parametrize("at", range(9))
def test_killed_at_any_write_the_same_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Whatever is written when the process dies, all that is there is whole, and no step is lost that was saved."""
    settings = replace(SETTINGS, steps=2, log_every=1, checkpoint_every=1)
    train(bars(), tmp_path / "whole", architecture=TINY, settings=settings)
    writes = 0

    class Killed(BaseException):
        """What nothing in the project catches."""

    def dying(old: Path, new: Path) -> None:
        nonlocal writes
        writes += 1
        if writes > at:
            raise Killed
        os.rename(old, new)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", dying)
        with pytest.raises(Killed):
            train(bars(), tmp_path / "parts", architecture=TINY, settings=settings)
    train(bars(), tmp_path / "parts", architecture=TINY, settings=settings)
    assert same(state(tmp_path / "whole"), state(tmp_path / "parts"))
    assert log(tmp_path / "whole") == log(tmp_path / "parts")
    names = [sorted(os.listdir(tmp_path / folder)) for folder in ("whole", "parts")]
    assert (
        names[0]
        == names[1]
        == sorted(["checkpoint.safetensors", "log.csv", "model.json", "model.safetensors", "samples-000002.png"])
    )
    assert same(load_file(tmp_path / "whole/model.safetensors"), load_file(tmp_path / "parts/model.safetensors"))


def test_a_run_saves_a_checkpoint_before_its_first_step(tmp_path: Path) -> None:
    images, seen = bars(), []

    def read(rows: Any) -> Tensor:
        seen.append(saved_step(tmp_path))
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(ImageSource(images.shape, images.names, read), tmp_path, architecture=TINY, settings=SETTINGS)
    assert seen == [0]
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.safetensors", "log.csv"]


def test_a_complete_run_is_left_as_it_is_and_goes_on_with_more_steps(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=2, decay=0.0)
    train(bars(), tmp_path, architecture=TINY, settings=settings)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    train(bars(), tmp_path, architecture=TINY, settings=settings)
    train(bars(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    train(bars(), tmp_path, settings=replace(settings, steps=3))
    assert saved_step(tmp_path) == 3


@pytest.mark.parametrize(
    "name", ["SIGTERM", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGINT", "SIGHUP"))]
)
def test_a_signal_arrives_when_the_step_is_saved_and_nothing_else_is_left(tmp_path: Path, name: str) -> None:
    script = f"""
import os, signal, sys, torch
torch.set_num_threads(1)  # as this process
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_train import TINY, SETTINGS, bars, train
train(bars(), {str(tmp_path / "m")!r}, architecture=TINY, settings=SETTINGS,
      report=lambda progress: progress.step == 2 and os.kill(os.getpid(), signal.{name}))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    code = 1 if name == "SIGINT" and sys.version_info < (3, 11) else -getattr(signal, name)  # so old a Python's of -c
    assert ended.returncode == code, ended.stderr
    assert ("KeyboardInterrupt" in ended.stderr) == (name == "SIGINT")
    assert sorted(os.listdir(tmp_path / "m")) == [
        "checkpoint.safetensors",
        "log.csv",
        "model.json",
        "model.safetensors",
    ]
    assert saved_step(tmp_path / "m") == 3
    train(bars(), tmp_path / "m")
    train(bars(), tmp_path / "whole", architecture=TINY, settings=SETTINGS)
    assert same(state(tmp_path / "whole"), state(tmp_path / "m"))


def test_one_process_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    script = (
        "import sys; from pathlib import Path; from odeddim.storage.workers import Claims; "
        "c = Claims(Path(sys.argv[1])); "
        "print(c.take(0, 1), flush=True); input()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "m" / ".odeddim.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with pytest.raises(InputError, match="another process is training in"):
            train(bars(), tmp_path / "m", architecture=TINY, settings=SETTINGS)
        other.communicate("\n")
    train(bars(), tmp_path / "m", architecture=TINY, settings=replace(SETTINGS, steps=1))


def test_training_leaves_the_callers_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(bars(), tmp_path, architecture=TINY, settings=replace(SETTINGS, steps=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_seed_decides(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(bars(), tmp_path / name, architecture=TINY, settings=replace(SETTINGS, steps=2, seed=seed))
    assert same(state(tmp_path / "a"), state(tmp_path / "b"))
    assert not same(state(tmp_path / "a"), state(tmp_path / "c"))
    assert batch_rows(25, 25, 0, 0) != batch_rows(25, 25, 1, 0)
    first, second = (Trainer(TINY, replace(SETTINGS, seed=seed), 10, torch.device("cpu")).network for seed in (0, 1))
    assert not torch.equal(first.conv_in.weight, second.conv_in.weight)


def test_the_network_is_shown_x_t_and_its_t(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All images are 0.3, so the noise can be read off x_t if the label is the right one; it is never the same."""
    noises: list[Tensor] = []

    class Watched(UNet):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            if self.training:
                alpha = ALPHAS[t.long()][:, None, None, None]
                noises.append((x.detach() - alpha.sqrt() * 0.3) / (1 - alpha).sqrt())
            return super().forward(x, t)

    monkeypatch.setattr(odeddim.train.trainer, "UNet", Watched)
    settings = replace(SETTINGS, steps=3, batch_size=16)
    train(source(torch.full((16, 1, 8, 8), 0.3)), tmp_path, architecture=TINY, settings=settings)
    assert len(noises) == 3
    flat = torch.cat(noises).flatten(1)
    assert flat.square().mean(dim=1).tolist() == pytest.approx([1.0] * 48, abs=0.7)
    assert float(torch.corrcoef(flat).fill_diagonal_(0).abs().max()) < 0.6


def test_gradients_are_clipped(tmp_path: Path) -> None:
    settings = replace(SETTINGS, warmup=0, decay=0.0, learning_rate=0.1, clip=1e-12)
    run = Trainer({**TINY, "image_size": 8}, settings, 10, torch.device("cpu"))
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    run.advance(bars()[:4])
    # Adam divides by |gradient| + 1e-8, so only a gradient far below that leaves the weights where they are.
    assert all(torch.allclose(value, before[name], atol=1e-4) for name, value in run.network.state_dict().items())


def test_something_is_learnt_and_the_average_is_what_is_loaded(tmp_path: Path) -> None:
    settings = Settings(steps=60, batch_size=16, learning_rate=3e-3, warmup=5, ema=0.9, log_every=20)
    seen: list[Progress] = []
    train(
        bars(16),
        tmp_path,
        validation=bars(16),
        architecture=TINY,
        settings=settings,
        command="odeddim train somewhere",
        report=seen.append,
    )
    losses = [progress.loss for progress in seen if progress.logged]
    assert losses[0] > 0.5
    assert losses[-1] < 0.3
    field = load(tmp_path)
    assert field.shape == (1, 8, 8)
    assert seen[-1].validation_loss == pytest.approx(validation_loss(field, bars(16)), rel=1e-6)
    assert validation_loss(field, bars(16)) < 0.3
    about = json.loads((tmp_path / "model.json").read_text())
    assert about["training"]["commands"] == ["odeddim train somewhere"]
    assert (about["training"]["step"], about["training"]["images"]) == (60, 16)
    assert about["training"]["validation_loss"] == seen[-1].validation_loss
    assert (tmp_path / "samples-000060.png").exists()
    # The average is not the network itself, and both are in the checkpoint.
    saved = state(tmp_path)
    assert not torch.equal(saved["network.conv_in.weight"], saved["average.conv_in.weight"])
    assert torch.equal(saved["average.conv_in.weight"], load_file(tmp_path / "model.safetensors")["conv_in.weight"])


def test_validation_loss_of_the_exact_answer_is_zero() -> None:
    """All held-out images are 0.3, so ε = (x - √α·0.3)/√(1-α): right only if labels, noise and α agree."""

    def eps(x: Tensor, t: Tensor) -> Tensor:
        alpha = ALPHAS[t.long()][:, None, None, None]
        return (x - alpha.sqrt() * 0.3) / (1 - alpha).sqrt()

    images = source(torch.full((70, 1, 8, 8), 0.3))
    assert validation_loss(VectorField(eps, Schedule.linear()), images) < 1e-8


def test_validation_loss_of_no_answer_is_the_noise() -> None:
    seen: list[float] = []

    def eps(x: Tensor, t: Tensor) -> Tensor:
        seen.extend(t.tolist())
        return torch.zeros_like(x)

    field = VectorField(eps, Schedule.linear())
    loss = validation_loss(field, bars(100))
    noise = [torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(i)).double() for i in range(100)]
    assert loss == pytest.approx(float(torch.stack(noise).square().mean()), rel=1e-6)
    assert seen == [5 + 10 * i for i in range(100)]
    assert validation_loss(field, bars(100), count=50) != loss


def test_noise_is_posed_as_the_papers_x_t() -> None:
    betas = np.linspace(1e-4, 0.02, 1000)
    alphas = np.cumprod(1 - betas)
    x0, noise = torch.ones(3, 1, 2, 2), torch.full((3, 1, 2, 2), 2.0)
    labels = np.array([0, 500, 999])
    x, t, target = OBJECTIVES["eps"].pose(Schedule.linear(), x0, noise, torch.tensor([0.0, 0.5, 0.9995]))
    want = np.sqrt(alphas[labels]) + 2 * np.sqrt(1 - alphas[labels])
    assert t.tolist() == labels.tolist()
    assert x[:, 0, 0, 0].tolist() == pytest.approx(want.tolist(), rel=1e-5)
    assert torch.equal(target, noise)


def test_flow_is_posed_on_the_straight_line() -> None:
    schedule, x0, noise = Schedule.rectified_flow(), torch.ones(2, 1, 2, 2), torch.full((2, 1, 2, 2), 3.0)
    x, t, target = OBJECTIVES["flow"].pose(schedule, x0, noise, torch.tensor([0.25, 0.5]))
    assert x[:, 0, 0, 0].tolist() == [1.5, 2.0]
    assert t.tolist() == [250, 500]
    assert bool((target == 2).all())  # dx/dt on x = (1-t)·x0 + t·ε
    sigma = torch.tensor([1 / 3, 1.0], dtype=torch.float64)  # t/(1-t)
    assert schedule.label(sigma, "index").tolist() == pytest.approx(t.tolist())


def test_an_epoch_shows_every_image_once() -> None:
    rows = [row for step in range(30) for row in batch_rows(25, 10, 0, step)]
    epochs = [rows[i : i + 25] for i in range(0, 300, 25)]
    assert all(sorted(epoch) == list(range(25)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 12
    assert batch_rows(3, 10, 0, 0)[:3] != [0, 1, 2] or batch_rows(3, 10, 0, 0)[3:6] != [0, 1, 2]
    assert sorted(batch_rows(3, 9, 0, 7)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]  # fewer images than a batch


def test_labels_are_uniform() -> None:
    def labels(jitter: torch.Tensor, T: int) -> torch.Tensor:
        nothing = torch.zeros(len(jitter), 1, 1, 1)
        return OBJECTIVES["eps"].pose(Schedule.linear(T), nothing, nothing, stratified(jitter))[1]

    drawn = labels(torch.rand(64, generator=torch.Generator().manual_seed(0)), 1000)
    assert (drawn // 15.625).tolist() == pytest.approx(list(range(64)), abs=1)
    many = torch.cat([labels(torch.rand(7), 10) for _ in range(4000)])
    counts = torch.bincount(many.long(), minlength=10) / len(many)
    assert counts.tolist() == pytest.approx([0.1] * 10, abs=0.01)
    assert labels(torch.tensor([0.0, 1.0]), 1000).tolist() == [0, 999]


def test_learning_rate_rises_stays_and_falls() -> None:
    settings = Settings(steps=100, warmup=10, decay=0.2, learning_rate=2.0)
    rates = [learning_rate(settings, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9:81] == [2.0] * 72
    assert rates[80:] == pytest.approx([2.0 * (100 - step) / 20 for step in range(80, 100)])
    assert learning_rate(replace(settings, warmup=0, decay=0.0), 0) == 2.0


def test_the_average_follows_its_decay() -> None:
    update = odeddim.train.trainer._ema(0.9)
    average, current = [torch.tensor([1.0])], [torch.tensor([0.0])]
    update(average, current, torch.tensor(1))
    assert float(average[0]) == pytest.approx(2 / 11)  # young: d = (1+n)/(10+n)
    update(average, current, torch.tensor(1000))
    assert float(average[0]) == pytest.approx(0.9 * 2 / 11)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    images = bars()

    def read(rows: Any) -> Tensor:
        steps.append(1)
        return images.read(rows) * (math.nan if len(steps) > 3 else 1)

    steps: list[int] = []
    settings = replace(SETTINGS, checkpoint_every=3)
    with pytest.raises(InputError, match="the loss is nan after step 4"):
        train(ImageSource(images.shape, images.names, read), tmp_path, architecture=TINY, settings=settings)
    assert all(bool(value.isfinite().all()) for value in state(tmp_path).values())
    assert json.loads((tmp_path / "model.json").read_text())["training"]["step"] == 3


def test_refusals(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = replace(SETTINGS, steps=1)
    train(bars(), run, architecture=TINY, settings=settings)

    def refused(says: str, images: ImageSource | None = None, folder: Path = run, **arguments: Any) -> None:
        with pytest.raises(InputError, match=says):
            train(images or bars(), folder, **arguments)

    more = replace(settings, steps=5)
    refused("seed 0, not 1", settings=replace(more, seed=1))
    refused("batch_size 4, not 8", settings=replace(settings, batch_size=8))  # of a complete run too
    refused("channels 8, not 16", settings=more, architecture={"channels": 16})
    refused("with 10 images, not 11", bars(11), settings=more)
    refused("image_size 8, not 16", source(torch.zeros(10, 1, 16, 16)), settings=more)
    refused("needs square images", source(torch.zeros(10, 1, 8, 16)), tmp_path / "new")
    refused("halved 4 times", folder=tmp_path / "new", architecture={"multipliers": [1] * 5})
    refused(r"validation set are 1×16×16", folder=tmp_path / "new", validation=source(torch.zeros(2, 1, 16, 16)))
    (run / "checkpoint.safetensors").write_bytes((run / "checkpoint.safetensors").read_bytes()[:-100])
    refused("cannot be read as a checkpoint", settings=more)
    (run / "checkpoint.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    refused("not a checkpoint of `odeddim train`", settings=more)
    (run / "checkpoint.safetensors").unlink()
    refused("already holds a model, but no run to continue")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/log.csv").write_text("my,own\n")
    refused("log.csv already exists, but belongs to no run", folder=tmp_path / "theirs")
    assert os.listdir(tmp_path / "theirs") == ["log.csv"]


OTHERS = ("samples-000001.png", "samples-012345.png", "log.csv", "model.json", "model.safetensors")


@pytest.mark.parametrize("name", [*OTHERS, "checkpoint.safetensors"])
def test_no_file_of_others_is_replaced_by_a_new_run(run, here: Path, name: str) -> None:  # type: ignore[no-untyped-def]
    np.save("x.npy", np.zeros((4, 8, 8), np.uint8))
    Path("m").mkdir()
    Path("m", name).write_bytes(b"theirs")
    code, _, err = run("train", "x.npy", "-o", "m", "--steps", 1, "--channels", 8, "--device", "cpu")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert os.listdir("m") == [name]
    assert Path("m", name).read_bytes() == b"theirs"


@pytest.mark.parametrize("name", OTHERS[1:])
def test_nor_by_a_run_that_goes_on(tmp_path: Path, name: str) -> None:
    settings = replace(SETTINGS, steps=2, samples_every=1)
    train(bars(), tmp_path, architecture=TINY, settings=settings)
    (tmp_path / name).write_bytes(b"theirs")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=name) as caught:
        train(bars(), tmp_path, settings=replace(settings, steps=3))
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_model_of_another_run_is_not_this_ones(tmp_path: Path) -> None:
    """Two runs of one architecture: all that tells their files apart is how they were trained."""
    settings = replace(SETTINGS, steps=1)
    for seed in (0, 1):
        train(bars(), tmp_path / str(seed), architecture=TINY, settings=replace(settings, seed=seed))
    shutil.copy(tmp_path / "1/model.json", tmp_path / "0/model.json")
    with pytest.raises(InputError, match=r"model\.json does not describe the model of the run in this folder"):
        train(bars(), tmp_path / "0", settings=replace(settings, steps=2))
    shutil.copy(tmp_path / "1/samples-000001.png", tmp_path / "2.png")
    (tmp_path / "0/model.json").unlink()
    shutil.copy(tmp_path / "2.png", tmp_path / "0/samples-000002.png")
    with pytest.raises(InputError, match=r"samples-000002\.png already exists, but is not from this run"):
        train(bars(), tmp_path / "0", settings=replace(settings, steps=2))


def test_files_that_no_run_writes_are_left_alone(tmp_path: Path) -> None:
    names = ("odeddim.json", "samples-mine.png", "photo.png")
    for name in names:
        (tmp_path / name).write_bytes(b"theirs")
    for steps in (1, 2):
        train(bars(), tmp_path, architecture=TINY, settings=replace(SETTINGS, steps=steps))
    assert [(tmp_path / name).read_bytes() for name in names] == [b"theirs"] * 3
    assert saved_step(tmp_path) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"batch_size": 10**8},
        {"learning_rate": 0.0},
        {"ema": 1.0},
        {"decay": 1.5},
        {"precision": "float8"},
    ],
)
def test_impossible_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Settings(**wrong)


# The job.


def test_the_job_trains_and_goes_on(tmp_path: Path) -> None:
    small: dict[str, Any] = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "batch_size": 4}
    seen: list[Progress] = []
    done = jobs.train(bars(), tmp_path / "m", steps=2, progress=seen.append, device="cpu", **small)
    assert done == Trained(tmp_path / "m", 2, was_complete=False)
    assert (seen[0].step, seen[0].steps, seen[0].rate) == (0, 2, 0.0)
    assert math.isnan(seen[0].loss)
    assert seen[-1].step == 2
    seen.clear()
    assert jobs.train(bars(), tmp_path / "m", steps=2, progress=seen.append, **small).was_complete
    assert seen == []
    done = jobs.train(bars(), tmp_path / "m", steps=3, progress=seen.append)
    assert done == Trained(tmp_path / "m", 3, was_complete=False)
    assert [progress.step for progress in seen] == [2, 3]
    assert load(tmp_path / "m").details["training"]["batch_size"] == 4
    with pytest.raises(InputError, match="unknown setting of training 'learning_rates'; did you mean"):
        jobs.train(bars(), tmp_path / "new", learning_rates=1.0)
    assert not (tmp_path / "new").exists()


def test_the_command_is_the_job(tmp_path: Path) -> None:
    data = tmp_path / "x.npy"
    np.save(data, np.random.default_rng(0).integers(0, 255, (10, 8, 8), np.uint8))
    small = ["--channels", 8, "--multipliers", "1,2", "--blocks", 1, "--attention", "4", "--batch-size", 4]
    assert invoke(data, "-o", tmp_path / "a", *small, "--steps", 2, "--device", "cpu").exit_code == 0
    jobs.train(data, tmp_path / "b", steps=2, channels=8, multipliers=[1, 2], blocks=1, attention=[4], batch_size=4)
    assert same(state(tmp_path / "a"), state(tmp_path / "b"))
    a, b = ((tmp_path / name / "samples-000002.png").read_bytes() for name in "ab")
    assert a == b
    commands = [load(tmp_path / name).details["training"]["commands"] for name in "ab"]
    assert [len(each) for each in commands] == [1, 0]
    assert commands[0][0].startswith("odeddim")


# The command.


def invoke(*arguments: object) -> Any:
    from odeddim.cli.train import command

    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_the_command_trains_and_resumes(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 255, (10, 8, 8), np.uint8))
    data, model = tmp_path / "x.npy", tmp_path / "m"
    small = ["--channels", 8, "--multipliers", "1,2", "--blocks", 1, "--attention", "4", "--batch-size", 4]
    result = invoke(data, "-o", model, *small, "--steps", 2, "--validation", data, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "step 2: loss" in result.output
    assert "validation" in result.output
    assert str(model) in result.output.splitlines()[-1]
    assert load(model).details["training"]["batch_size"] == 4
    result = invoke(data, "-o", model, *small, "--steps", 2, "--validation", data, "--device", "cpu")
    assert (result.exit_code, result.output) == (0, f"{model} is complete, with 2 steps: a larger --steps goes on\n")
    result = invoke(data, "-o", model, "--steps", 3)  # what is left out is as it was
    assert result.exit_code == 0, result.output
    assert "going on from step 2" in result.output
    assert load(model).details["training"]["step"] == 3
    other = invoke(data, "-o", model, "--steps", 4, "--seed", 7).exception
    assert isinstance(other, InputError)
    assert "seed 0, not 7" in str(other)
    assert invoke(data, "-o", model, "--resume").exit_code == 0  # as it was once asked for
    assert "no run to continue" in str(invoke(data, "-o", tmp_path / "new", "--resume").exception)


def test_an_interrupted_command_says_how_to_go_on(run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    np.save("x.npy", np.zeros((4, 8, 8), np.uint8))

    def interrupted(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(odeddim.train.run, "train", interrupted)
    code, out, err = run("train", "x.npy", "-o", "m")
    assert code == 130
    assert "the same command goes on" in err


@pytest.mark.parametrize("there", [False, True])
def test_a_disk_that_takes_nothing_is_one_sentence(
    run, here: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:  # type: ignore[no-untyped-def]
    np.save("x.npy", np.zeros((4, 8, 8), np.uint8))
    if there:
        Path("m").mkdir()

    def refuse(*arguments: Any, **more: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(odeddim.storage.workers, "open", refuse, raising=False)
    if not there:
        monkeypatch.setattr(Path, "mkdir", refuse)
    code, out, err = run("train", "x.npy", "-o", "m", "--device", "cpu")
    assert code == 2
    assert "Read-only file system" in err
    assert len(err.splitlines()) == 1


def test_help_states_the_real_defaults() -> None:
    from odeddim.cli.train import command

    defaults = {**asdict(Settings()), **UNet().config}
    stated = {
        option.name: match.group(1)
        for option in command.params
        if (match := re.search(r"\[default: ([\d.,]+)\]", getattr(option, "help", None) or ""))
    }
    assert len(stated) >= 11
    for name, text in stated.items():
        value = defaults[name or ""]
        assert text == (",".join(map(str, value)) if isinstance(value, list) else f"{value:g}"), name
