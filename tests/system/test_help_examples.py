"""Every example of every `--help` runs as it stands, on models that are small: exact fields in place of networks."""

from __future__ import annotations

import copy
import gzip
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from PIL import Image
from support import command

from odeddim import models
from odeddim.cli import group as whole
from odeddim.latents.latent_file import LatentRun
from odeddim.ode.analytic import GaussianMixture
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.storage.resumable import Run
from odeddim.types import InputError

ROOT = Path(__file__).resolve().parent.parent.parent
INSTEAD = {
    "inception:WEIGHTS.pth": "network.pt2", "cuda": "cpu", "-n 10000": "-n 16", "-n 50000": "-n 16", "-n 1000": "-n 16",
    "10,20,50,100": "10,20", "-n 64": "-n 8", "1,64,512": "1,8", "--find 1e-3": "--find 1e-1",
    "density -o d.h5": "density -o d.h5 -n 4", "--steps 50 --probes 16": "--steps 6 --probes 2",
    "--resize 64": "--resize 16", " --paper": "",
}  # fmt: skip
"""What no test can have: Inception's weights, a GPU, an hour, the paper's data."""
TRAIN = ["--blocks", "1", "--channels", "8", "--batch-size", "2", "--steps", "2"]
SHAPE = (3, 16, 16)


def commands(group: click.Command = whole, name: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command by its whole name, "bench time"."""
    yield name, group
    if isinstance(group, click.Group):
        for word in group.list_commands(click.Context(group)):
            found = group.get_command(click.Context(group), word)
            assert found is not None
            yield from commands(found, f"{name} {word}".strip())


def examples() -> dict[str, str]:
    """The lines under "Examples:" of all commands, each with what is said beside it."""
    found: dict[str, str] = {}
    for _, one in commands():
        lines = iter((one.help or "").replace("\b", "").splitlines())
        for line in lines:
            if line.strip() in ("Examples:", "Example:"):
                break
        for line in lines:
            if not re.match(r"\s*(odeddim|find|torchrun|python) ", line):
                break
            example, *said = re.split(r"\s{3,}", line.strip())
            found.setdefault(example, " ".join(said))
    return found


class Unlabelled:
    """A network that is given labels and does not look at them. Other processes can be given it, as --workers does."""

    def __init__(self, network: Callable[..., torch.Tensor]) -> None:
        self.network = network

    def __call__(self, x: torch.Tensor, t: torch.Tensor, *label: torch.Tensor) -> torch.Tensor:
        return self.network(x, t)


def small(name: str, shape: tuple[int, ...] | None = None, classes: int | None = None) -> VectorField:
    """An exact field under the name of a model; where it takes classes, all of them are the same."""
    schedule = Schedule.linear()
    network = Unlabelled(GaussianMixture(torch.tensor([-0.6, 0.6]), 0.15).network(schedule))
    null = None if classes is None else 0
    return VectorField.from_network(network, schedule, shape=shape, name=name, classes=classes, null=null)


def photos(folder: Path, count: int) -> None:
    """Pictures of two blocks, each in its own place."""
    folder.mkdir()
    for i in range(count):
        pixels = np.full((16, 16, 3), 30 * (i % 7), np.uint8)
        pixels[: 3 + i % 12, (5 * i) % 14 :] = 220 - 9 * (i % 9)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")


class Features(torch.nn.Module):
    """Features of images: their means over blocks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)


@pytest.fixture(scope="module")
def names() -> Iterator[None]:
    """The models that the examples name: exact fields."""
    fields = {name: small(name, SHAPE) for name in ("MODEL", "A", "B")} | {"M": small("M", SHAPE, classes=1000)}
    fields |= {name: small(name, shape=(1, 28, 28)) for name in (models.DEFAULT, models.FLOW)}
    with pytest.MonkeyPatch.context() as patched:
        for name, field in fields.items():
            patched.setitem(models.BUILT_IN, name, (lambda field=field: copy.copy(field), "small"))
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, names: None) -> Path:
    """A folder with every file that the examples read."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        photos(Path("photos"), 30)
        shutil.copytree("photos", "photos32")
        photos(Path("cifar10-test"), 4)
        Path("labels.csv").write_text("\n".join(["class", *map(str, range(30))]) + "\n")
        command("fit", "-n", 2, "--solver", "dpmpp-2m", "--steps", 20, "-o", "plan.json")
        for name in ("z", "other", "samples", "monday", "tuesday"):
            command("encode", "photos", "-o", f"{name}.h5", "--steps", 3, "--model", "MODEL")
        command("encode", "photos", "-n", 4, "-o", "y.h5", "--steps", 3, "--model", "MODEL", "--trajectory", "t.h5")
        written: list[int] = []
        write = LatentRun.write

        def once(run: LatentRun, start: int, *given: Any, **more: Any) -> None:
            if written:
                raise KeyboardInterrupt
            written.append(start)
            write(run, start, *given, **more)

        def full(run: Run) -> None:
            raise InputError("the disk is full")

        with patched.context() as stopped:
            stopped.setattr(Run, "make_one", full)
            command("encode", "photos", "-o", "index.h5", "--steps", 3, "--model", "MODEL", code=2)
        with patched.context() as stopped:
            stopped.setattr(LatentRun, "write", once)
            command("encode", "photos", "-o", "unfinished.h5", "--model", "MODEL", "--batch-size", 8, code=130)
        command("score", "photos", "--model", "MODEL", "--calibrate", "photos32", "--reference", "reference.json")
        command("shift", "z.h5", "--from", "0-9", "--to", "10-19", "--direction", "d.h5")
        command("bench", "-n", 2, "--steps", 2, "--solvers", "euler", "-o", "results")
        command("decode", "z.h5", "-o", "out")
        program = torch.export.export(Features(), (torch.zeros(2, *SHAPE),))
        torch.export.save(program, "network.pt2")
        for name in ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"):
            with gzip.open(name, "wb") as file:
                file.write(struct.pack(">IIII", 0x803, 16, 28, 28) + bytes(range(256)) * 49)
    return folder


def test_every_command_has_examples() -> None:
    named = " ".join(examples())
    for name, one in commands():
        if name and not isinstance(one, click.Group):
            assert f"odeddim {name}" in named, name
    assert len(examples()) > 60


def in_time() -> Iterator[Any]:
    """The examples. Of those of a command all but the first are slow: they run each week, and by `pytest -m slow`."""
    before: set[str] = set()
    for example in examples():
        name = re.findall(r"odeddim ((?:bench )?[\w-]+)", example)[0]
        yield pytest.param(example, marks=[pytest.mark.slow] if name in before else [])
        before.add(name)


@pytest.mark.parametrize("example", list(in_time()))
def test_an_example_runs(example: str, world: Path, here: Path) -> None:
    shutil.copytree(world, here, dirs_exist_ok=True)
    said, words = examples()[example], shlex.split(example.partition(" > ")[0])
    for option, name in pairwise(words):
        if option in ("-o", "--trajectory") and words.count(name) == 1:  # the others go on from a run that is there
            shutil.rmtree(here / name) if (here / name).is_dir() else (here / name).unlink(missing_ok=True)
    if "bench/plan.json" in words:
        (here / "bench").mkdir()
        shutil.copy("plan.json", "bench/plan.json")
    if words[1:3] == ["bench", "report"]:
        shutil.copytree("results", "bench")
    if words[1:] == ["merge", "z.h5"]:  # an index of parts, which could not be made one file
        shutil.copy("index.h5", "z.h5")
        shutil.move("index.h5.parts", "z.h5.parts")
    for word, other in INSTEAD.items():
        example = example.replace(word, other)
    if words[0] != "odeddim":  # a pipe, torchrun: a shell and processes of their own
        for word, other in {
            "torchrun": f"{sys.executable} -m torch.distributed.run",
            "per-node 4": "per-node 2",
            "| odeddim": f"| {sys.executable} -m odeddim",
            "MODEL": "exact-mixture",
        }.items():
            example = example.replace(word, other)
        example += f" {' '.join(TRAIN)}" if "odeddim train" in example else ""
        path = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(example, shell=True, check=True, capture_output=True, cwd=here, env=path)
        return
    words = shlex.split(example.partition(" > ")[0])[1:]
    if words[0] == "bench" and words[1:2] != ["report"]:  # one that is not told takes an hour
        league = "league" in words
        small = {"-n": "4", "--evaluations" if league else "--steps": "3,6"}
        small |= {"--solvers": "euler,belm"} if league else {}
        for option in {*(["-n"] if "time" in words else []), *(["--steps"] if "--find" in words else [])}:
            del small[option]
        words += [word for option in small.items() if option[0] not in words for word in option]
    if words[0] == "train":
        words = [*words, *TRAIN]
        if "more steps" in said:
            command(*words)
            words[-1] = "4"
    command(*words)
