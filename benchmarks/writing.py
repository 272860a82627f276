"""What writing costs beside a fast network: `encode` and `decode` of 1,000 images, with and without write-behind.

    python benchmarks/writing.py [ROUNDS]

The network sleeps 1 ms an evaluation, as a GPU would leave the CPU alone for so long. Both ways alternate in one run,
and the medians over the rounds are compared: the seconds of the job, and the share of them in which no network was
evaluated. The other way writes one file of a folder after the other, too.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import odeddim
from odeddim.storage import outputs, write_behind

COUNT, STEPS, BATCH = 1000, 10, 32


class Fast(torch.nn.Module):
    """A network of 1 ms. It counts the seconds spent in it."""

    def __init__(self) -> None:
        super().__init__()
        self.spent = 0.0

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        began = time.perf_counter()
        time.sleep(1e-3)
        self.spent += time.perf_counter() - began
        return x / 10


def measured(network: Fast, job: Callable[[], object]) -> tuple[float, float]:
    """The seconds of a job, and the share of them outside the network."""
    network.spent, began = 0.0, time.perf_counter()
    job()
    seconds = time.perf_counter() - began
    return seconds, 1 - network.spent / seconds


def main(rounds: int) -> None:
    """Print the table."""
    network = Fast()
    field = odeddim.VectorField(network, odeddim.Schedule.linear(), shape=(1, 28, 28), name="1 ms", sha256="0" * 64)
    images = torch.rand(COUNT, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    machine = odeddim.jobs.Machine("cpu", batch_size=BATCH, network_batch=BATCH)
    how = {"model": field, "solver": "euler", "steps": STEPS, "machine": machine}
    usual, at_once = write_behind.DEPTH, outputs.AT_ONCE
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for depth in (0, usual):
            write_behind.DEPTH, outputs.AT_ONCE = depth, 1 if depth == 0 else at_once
            with tempfile.TemporaryDirectory() as folder:
                z, out, h5 = (Path(folder, name) for name in ("z.h5", "out", "images.h5"))
                for name, job in (
                    ("encode", lambda z=z: odeddim.jobs.encode(images, z, **how)),
                    ("decode to HDF5", lambda z=z, h5=h5: odeddim.jobs.decode(z, h5, model=field, machine=machine)),
                    ("decode to PNGs", lambda z=z, out=out: odeddim.jobs.decode(z, out, model=field, machine=machine)),
                ):
                    found.setdefault((name, depth), []).append(measured(network, job))
    print(f"{COUNT} images, {STEPS} steps, batches of {BATCH}, medians of {rounds} rounds")
    for name in dict.fromkeys(name for name, _ in found):
        alone, beside = (found[name, depth] for depth in (0, usual))
        seconds = [statistics.median(each) for each, _ in (zip(*way, strict=True) for way in (alone, beside))]
        shares = [statistics.median([share for _, share in way]) for way in (alone, beside)]
        ratio = statistics.median([a / b for (a, _), (b, _) in zip(alone, beside, strict=True)])
        print(
            f"{name:15s} {seconds[0]:.2f} s, {100 * shares[0]:.0f}% outside the network; with write-behind "
            f"{seconds[1]:.2f} s, {100 * shares[1]:.0f}%; ratio {ratio:.2f}"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
