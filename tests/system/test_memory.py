"""Memory does not grow with the number of images: 20,000 take as much as 1,000, in every command that reads them.

`pytest -s tests/system/test_memory.py -m slow` prints the figures; without it 4,000 images are encoded.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FEW, MORE, MANY = 1_000, 4_000, 20_000
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
    for count in (FEW, MORE, MANY):
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


@pytest.mark.parametrize(("commands", "most"), [(1, MORE), pytest.param(len(COMMANDS), MANY, marks=pytest.mark.slow)])
def test_memory_is_flat(folder: Path, commands: int, most: int) -> None:
    worst = 0.0
    for name, command in list(COMMANDS.items())[:commands]:
        few, many = (peak(*(str(word).format(n=count) for word in command), cwd=folder) for count in (FEW, most))
        print(f"{name}: {few:.0f} MiB for {FEW} images, {many:.0f} MiB for {most}")
        worst = max(worst, many / few)
        assert many < MOST * few, (name, few, many)
    print(f"at most {worst:.3f} times")
