"""Memory: of a run, in states; of commands, which does not grow with the number of images that they read.

`pytest -s tests/system/test_memory.py -m slow` prints the figures; without it 4,000 images are encoded.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import odeddim
from odeddim import solvers
from odeddim.bench.memory import peak as peak_of
from odeddim.types import Solver, State

BALLAST = 500  # states that the network takes while it is evaluated: what a run holds meanwhile adds to them


class Heavy(nn.Module):
    """A network in float32 that needs much more memory than the run."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        taken = torch.empty(BALLAST * x.numel())
        del taken
        return torch.tanh(x)


# States beside the network, its input among them. A multistep row holds as many slopes as its order, and two points; in
# the data chart each slope comes with its point. The two registers of a reversible row are float64, as is what it asks.
STATES = {
    "euler": 2, "heun": 3, "ab2": 3, "ab3": 4, "ab4": 5, "ipndm": 5, "dpmpp-2m": 4, "dpmpp-3m": 6, "unipc-2": 6,
    "belm": 8, "edict": 8, "mf-euler": 8, "mf-heun": 12, "fitted": 3,
}  # fmt: skip
FAMILIES: dict[str, Callable[[Solver], int]] = {
    "one-step": lambda row: row.order + 1,
    "exponential": lambda row: row.order + 1,
    "multistep": lambda row: row.order + 3,
    "fitted": lambda row: 3,
    "reversible": lambda row: 8,
}
MORE = {  # of four slopes; of three slopes, for order 2; of a step that keeps stages in float64
    "unipc-3": 8, "unipc-3-bh1": 8, "pndm": 7, "stork-2": 6,
    "mf-heun": 12, "mf-dpm-solver-2": 12, "mf-dpm-solver-3": 12, "mf-dpmpp-2s": 12, "mf-midpoint": 16, "mf-heun3": 18,
    "mf-rk4": 20, "mf-tsit5": 18, "mf-dopri5": 18, "mf-data-midpoint": 10, "mf-data-rk4": 16, "mf-data-tsit5": 24,
    "mf-data-dopri5": 22,
}  # fmt: skip
COUNTED = [row.name for row in solvers.SOLVERS.values() if row.family in FAMILIES]
HEAVY = odeddim.VectorField(Heavy(), odeddim.Schedule.linear(), name="heavy")


def held(name: str, steps: int) -> float:
    """The most states that encoding with a row, or decoding, holds."""
    x = torch.zeros(1, 1, 64, 64) + 0.5
    plan = odeddim.plan(HEAVY, name, steps=steps)
    most = 0.0
    with torch.no_grad():
        for start in (State(x, 0.0), odeddim.integrate(HEAVY, State(x, 0.0), plan)):
            taken = peak_of(lambda start=start: odeddim.integrate(HEAVY, start, plan))
            assert taken is not None
            most = max(most, taken / (4 * x.numel()) - BALLAST)
    return most


@pytest.mark.parametrize("name", COUNTED)
def test_a_run_holds_few_states(name: str) -> None:
    """A step of unipc-3 and of pndm takes longest to settle: 4."""
    row = solvers.get(name)
    assert 1 < held(name, 5) < MORE.get(name, FAMILIES[row.family](row)) + 0.2


@pytest.mark.parametrize("name", STATES)
def test_a_run_holds_no_more_however_many_steps_it_makes(name: str) -> None:
    assert STATES[name] - 0.2 < held(name, 24) < STATES[name] + 0.2


FAULTS = """
import resource, sys, torch
from odeddim.runs.memory import keep_memory
if sys.argv[1] == "kept":
    keep_memory()
def faults():
    for _ in range(20):
        parts = [torch.ones(2**20) for _ in range(4)]
        del parts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
print(faults() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only the C library of Linux is told")
def test_memory_that_is_given_back_is_kept_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    found = []
    for how in ("as it is", "kept"):
        result = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, timeout=100)
        assert result.returncode == 0, result.stderr
        found.append(int(result.stdout))
    print(found)
    assert found[1] < 100 < found[0]


FEW, SOME, MANY = 1_000, 4_000, 20_000
MOST = 1.05  # times the peak of few

CODE = """
import resource, sys
from odeddim.cli import main
sys.argv = ["odeddim", *sys.argv[1:]]
try:
    main()
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peak(*arguments: object, cwd: Path) -> float:
    """The most memory that a command has held, in MiB."""
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return float(result.stdout.split()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    chance = np.random.default_rng(0)
    for count in (FEW, SOME, MANY):
        images = chance.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        np.savez_compressed(folder / f"{count}.npz", images=images)
    return folder


MODEL = ("--model", "exact-mixture")
COMMANDS = {
    "encode": ("encode", "{n}.npz", "-o", "z-{n}.h5", *MODEL, "--solver", "bdia", "--steps", 2),
    "decode": ("decode", "z-{n}.h5", "-o", "x-{n}.h5"),
    "encode HDF5": ("encode", "x-{n}.h5", "-o", "w-{n}.h5", *MODEL, "--solver", "euler", "--steps", 1),
    "sample": ("sample", "-n", "{n}", "-o", "s-{n}.h5", *MODEL, "--size", "1,8,8", "--solver", "euler", "--steps", 1),
    "interpolate": ("interpolate", "z-{n}.h5", "--pair", 0, 1, "-n", "{n}", "-o", "p-{n}.h5"),
    "neighbours": ("neighbours", "z-{n}.h5", "--of", "0", "-k", 2, "--json"),
    "verify": ("verify", "w-{n}.h5"),
}


@pytest.mark.parametrize(("commands", "most"), [(1, SOME), pytest.param(len(COMMANDS), MANY, marks=pytest.mark.slow)])
def test_memory_is_flat(folder: Path, commands: int, most: int) -> None:
    worst = 0.0
    for name, command in list(COMMANDS.items())[:commands]:
        few, many = (peak(*(str(word).format(n=count) for word in command), cwd=folder) for count in (FEW, most))
        print(f"{name}: {few:.0f} MiB for {FEW} images, {many:.0f} MiB for {most}")
        worst = max(worst, many / few)
        assert many < MOST * few, (name, few, many)
    print(f"at most {worst:.3f} times")
