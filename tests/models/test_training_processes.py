"""Training by several processes: the bits are those of one process that takes the pieces one after another."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_train import SETTINGS as SMALL
from test_train import TINY, bars, log, same, state
from torch import Tensor

import odeddim.train.run
from odeddim.models.networks.unet import UNet
from odeddim.train import processes
from odeddim.train.checkpoint import saved_settings, saved_step
from odeddim.train.processes import Processes, joined
from odeddim.train.run import Progress, train
from odeddim.types import InputError

SETTINGS = replace(SMALL, batch_size=8, microbatches=4, flips=True, weight_decay=0.1, ema_half_life=30.0)
CPU = torch.device("cpu")


def in_both(here: Path, report: Callable[[Progress], None] | None = None) -> list[str]:
    """What each of two processes does: a run that is refused, a whole one, and one that the second alone is told to
    stop, in its first piece of the third step. Returns the refusals.
    """
    odeddim.train.run.SHEET_IMAGES, forward, calls = 2, UNet.forward, 0
    told = []

    def stopped(self: UNet, x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += self.training
        if os.environ["RANK"] == "1" and self.training and calls == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, x, t)

    with joined(CPU):
        for name in ("theirs", "two", "stopped"):
            if name == "stopped":
                UNet.forward = stopped  # type: ignore[method-assign]
            try:
                train(bars(), here / name, validation=bars(), architecture=TINY, settings=SETTINGS, report=report)
            except InputError as error:
                told.append(str(error))
            finally:
                UNet.forward = forward  # type: ignore[method-assign]
    return told


SECOND = f"""
import sys, torch
from pathlib import Path
torch.set_num_threads(1)  # as the test
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_training_processes import in_both
in_both(Path(sys.argv[1]), lambda progress: print("only the first process reports"))
"""


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts one of two processes as torchrun does, on this machine; this process is the first one meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started: list[subprocess.Popen[str]] = []

    def start(rank: int, *command: object) -> subprocess.Popen[str]:
        said = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        for name, value in said.items():
            monkeypatch.setenv(name, value)
        pipe, ranks = subprocess.PIPE, {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        words = [sys.executable, *map(str, command)]
        started.append(subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **ranks}))
        monkeypatch.setenv("RANK", "0")
        return started[-1]

    monkeypatch.setattr(processes, "_PATIENCE", timedelta(minutes=5))  # if the other one fails
    yield start
    for process in started:
        process.kill()


def test_two_processes_are_one(
    tmp_path: Path, torchrun: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit with the same pieces: weights, average, optimiser, log, samples. A stopped run goes on alone."""
    monkeypatch.setattr(odeddim.train.run, "SHEET_IMAGES", 2)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/log.csv").write_text("my,own\n")
    other = torchrun(1, "-c", SECOND, tmp_path)
    refused, told = in_both(tmp_path)
    out, err = other.communicate(timeout=300)
    assert (other.returncode, out) == (-signal.SIGTERM, ""), err
    assert "log.csv already exists, but belongs to no run" in refused
    assert "another process was told to stop: the run is saved" in told
    assert saved_step(tmp_path / "stopped") == 3

    monkeypatch.delenv("RANK")  # from here on without torchrun
    train(bars(), tmp_path / "one", validation=bars(), architecture=TINY, settings=SETTINGS)
    train(bars(), tmp_path / "stopped", validation=bars())
    for name in ("two", "stopped"):
        assert same(state(tmp_path / name), state(tmp_path / "one")), name
        assert same(*(load_file(tmp_path / folder / "model.safetensors") for folder in (name, "one")))
    assert log(tmp_path / "two") == log(tmp_path / "one")
    sheets = [(tmp_path / folder / "samples-000006.png").read_bytes() for folder in ("one", "two")]
    assert sheets[0] == sheets[1]


@pytest.mark.slow  # two whole processes of the command line
def test_the_command_under_torchrun(tmp_path: Path, torchrun: Callable[..., subprocess.Popen[str]]) -> None:
    """A new run has a piece for each process, and only the first process says anything."""
    small = ["--channels", 4, "--multipliers", 1, "--blocks", 1, "--batch-size", 4, "--steps", 2, "--device", "cpu"]
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 255, (10, 4, 4), np.uint8))
    run = ["-m", "odeddim", "train", tmp_path / "x.npy", "-o", tmp_path / "m", *small]
    both = [torchrun(rank, *run) for rank in (0, 1)]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert str(tmp_path / "m") in said[0][0]
    assert said[1] == ("", "")
    assert saved_settings(tmp_path / "m").microbatches == 2


def test_pieces_are_the_batch_to_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole runs without dropout. Adam magnifies rounding where a gradient is near zero, hence atol."""
    monkeypatch.setattr(odeddim.train.run, "SHEET_IMAGES", 2)
    for each in (1, 4):
        settings = replace(SETTINGS, microbatches=each, steps=3)
        train(bars(), tmp_path / f"{each}", architecture={**TINY, "dropout": 0.0}, settings=settings)
    whole, cut = state(tmp_path / "1"), state(tmp_path / "4")
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_shares_of_a_batch(count: int) -> None:
    whole = list(range(12))
    assert [each for rank in range(count) for each in whole[Processes(rank, count).share(12)]] == whole


def test_pieces_that_cannot_be_shared(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cuts a batch into 4 pieces, which 3 processes cannot share"):
        odeddim.train.run._begun(tmp_path, {**TINY, "image_size": 8}, SETTINGS, 10, CPU, Processes(0, 3))
    assert not list(tmp_path.iterdir())
