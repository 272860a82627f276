"""What a training run tells of itself: the log, TensorBoard, the distance of samples; and compiled steps."""

from __future__ import annotations

import csv
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import load_file
from test_train import SETTINGS, TINY, Stop, bars, invoke, same, source, state
from torch import Tensor

import odeddim
import odeddim.train.run
from odeddim import jobs
from odeddim.storage.png import to_bytes
from odeddim.train.run import Progress, train
from odeddim.train.settings import learning_rate
from odeddim.types import InputError

SMALL: dict[str, Any] = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "batch_size": 4}


@pytest.fixture(autouse=True)
def no_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(odeddim.train.run, "SHEET_IMAGES", 2)
    monkeypatch.setattr("odeddim.jobs.distance.STEPS", 5)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def corners(images: Tensor) -> Tensor:
    """Three features of an image."""
    return images[:, 0, :3, :3].diagonal(dim1=1, dim2=2)


def frechet(real: Tensor, fake: Tensor) -> float:
    """Heusel et al., eq. 6, in float64 by a matrix square root."""
    a, b = real.double().numpy(), fake.double().numpy()
    (m, c), (n, d) = ((x.mean(0), np.cov(x.T)) for x in (a, b))
    return float(((m - n) ** 2).sum() + np.trace(c + d - 2 * scipy.linalg.sqrtm(c @ d).real))


def test_the_distance_of_samples_is_logged_at_each_sheet(tmp_path: Path) -> None:
    reference = source(torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    seen: list[Progress] = []
    more: dict[str, Any] = {"device": "cpu", "samples_every": 3, "log_every": 2, "distance_images": 10}
    measured: dict[str, Any] = {"reference": reference, "features": corners, "progress": seen.append}
    jobs.train(bars(), tmp_path / "m", steps=2, **SMALL, **more)
    assert list(rows(tmp_path / "m")[0]) == ["step", "loss", "validation_loss", "seconds"]
    jobs.train(bars(), tmp_path / "m", steps=5, **measured)  # from now on with a column more
    made = odeddim.sample(10, "euler", model=tmp_path / "m", grid="linear", steps=5)
    want = frechet(corners(reference[:10]), corners(to_bytes(made).float() / 127.5 - 1))
    assert [(row["step"], bool(row["distance"])) for row in rows(tmp_path / "m")] == [
        ("2", False), ("3", True), ("4", False), ("5", True),
    ]  # fmt: skip
    assert float(rows(tmp_path / "m")[-1]["distance"]) == pytest.approx(want, rel=1e-3, abs=1e-3)
    assert [progress.step for progress in seen if progress.distance is not None] == [3, 5]
    assert odeddim.load(tmp_path / "m").details["training"]["distance"] == pytest.approx(want, rel=1e-3)
    jobs.train(bars(), tmp_path / "m", steps=6)  # without the reference: the column stays
    assert rows(tmp_path / "m")[-1]["distance"] == ""
    assert jobs.inspect(tmp_path / "m")["log"]["step"] == "6"

    jobs.train(bars(), tmp_path / "plain", steps=6, **SMALL, **more)
    assert same(state(tmp_path / "m"), state(tmp_path / "plain"))  # measuring changes no bit


def test_distances_that_cannot_be_measured(tmp_path: Path) -> None:
    def refused(says: str, **arguments: Any) -> None:
        with pytest.raises(InputError, match=says):
            jobs.train(bars(), tmp_path / "m", **SMALL, **arguments)
        assert not (tmp_path / "m").exists()

    refused("built-in features are of images of 1×28×28, not 1×8×8: give features", reference=bars())
    refused("give reference=... too", features=corners)
    refused("the reference", reference=source(torch.zeros(4, 1, 16, 16)), features=corners)
    refused("at least 2 images", reference=bars(1), features=corners)
    refused("distance_images must be at least 2", reference=bars(), features=corners, distance_images=1)


class Writer:
    """A stand-in for TensorBoard's SummaryWriter, which keeps what it is told."""

    made: list[Writer] = []  # noqa: RUF012

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge_step, self.open = folder, purge_step, True
        self.scalars: dict[tuple[str, int], float] = {}
        Writer.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars[name, step] = value

    def flush(self) -> None:
        assert self.open

    def close(self) -> None:
        self.open = False


def test_tensorboard_gets_what_the_log_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Writer, "made", [])
    settings = replace(SETTINGS, tensorboard=True)
    with pytest.raises(KeyboardInterrupt):
        train(bars(), tmp_path, validation=bars(), architecture=TINY, settings=settings, report=Stop(2))
    train(bars(), tmp_path, validation=bars())
    first, second = Writer.made
    assert first.folder == second.folder == str(tmp_path / "tensorboard")
    assert (first.purge_step, second.purge_step) == (1, 4)  # what it has of later steps is made again
    assert not first.open
    assert not second.open
    scalars = {**first.scalars, **second.scalars}
    for row in rows(tmp_path):
        step = int(row["step"])
        assert scalars["loss", step] == pytest.approx(float(row["loss"]), abs=1e-6)
        assert ("validation_loss", step) in scalars or not row["validation_loss"]
        assert scalars["learning_rate", step] == learning_rate(settings, step - 1)
    train(bars(), tmp_path, settings=replace(settings, tensorboard=False))  # a continued run may leave it out
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"pip install 'odeddim\[tensorboard\]'"):
        train(bars(), tmp_path / "new", architecture=TINY, settings=settings)


def test_the_command_measures_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 255, (6, 28, 28), np.uint8))
    data, small = tmp_path / "x.npy", ["--channels", 4, "--multipliers", 1, "--blocks", 1, "--batch-size", 2]
    result = invoke(data, "-o", tmp_path / "m", *small, "--steps", 1, "--reference", data, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert ", distance " in result.output
    assert float(rows(tmp_path / "m")[0]["distance"]) > 0


def test_compiled_steps_keep_the_names_of_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda network: (compiled.append(network), network)[1])
    train(bars(), tmp_path / "compiled", architecture=TINY, settings=replace(SETTINGS, compile=True, steps=2))
    train(bars(), tmp_path / "plain", architecture=TINY, settings=replace(SETTINGS, steps=2))
    assert len(compiled) == 1
    assert same(state(tmp_path / "compiled"), state(tmp_path / "plain"))


@pytest.mark.slow  # compiles a network
def test_compiled_training_is_the_same_to_rounding_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    settings = replace(SETTINGS, compile=True)
    train(bars(), tmp_path / "whole", architecture=TINY, settings=settings)
    with pytest.raises(KeyboardInterrupt):
        train(bars(), tmp_path / "parts", architecture=TINY, settings=settings, report=Stop(2))
    train(bars(), tmp_path / "parts")
    assert same(state(tmp_path / "whole"), state(tmp_path / "parts"))
    for name, each in (("compiled", settings), ("plain", SETTINGS)):
        train(bars(), tmp_path / name, architecture={**TINY, "dropout": 0.0}, settings=each)
    plain, compiled = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "compiled"))
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=2e-4)


def test_a_network_that_cannot_be_compiled_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(network: Any) -> Any:
        def fails(*_: Any) -> Any:
            raise torch._dynamo.exc.BackendCompilerFailed(compiled, RuntimeError("no C++ compiler"), None)

        return fails

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(InputError, match=r"cannot be compiled here \(.*no C\+\+ compiler.*\): train without compile"):
        train(bars(), tmp_path, architecture=TINY, settings=replace(SETTINGS, compile=True))
