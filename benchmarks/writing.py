"""What writing costs beside a fast network: `encode` and `decode` of 1,000 images.

    python benchmarks/writing.py [ROUNDS]

The network sleeps 1 ms an evaluation, as a GPU would leave the CPU alone for so long. Two settings are measured: the
defaults of a user on a CPU, and a demanding one, whose network is done with 1,000 images in a third of a second.
Printed are medians over the rounds: the seconds of the job, the share of them in which no network was evaluated, and
the seconds of all its threads on a CPU. On a machine that other programs keep busy, the job's thread waits for a CPU;
Linux counts these waits, and they are taken out, within the network and outside it. Waits for the disk are not: files
are synced. What the rounds write is deleted at the end, for ext4 is slow to make files where some were just deleted.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import odeddim

COUNT = 1000
SETTINGS: dict[str, dict[str, Any]] = {
    "the defaults on a CPU": {"machine": odeddim.jobs.Machine("cpu")},
    "euler, 10 steps, batches of 32": {
        "solver": "euler",
        "steps": 10,
        "machine": odeddim.jobs.Machine("cpu", batch_size=32, network_batch=32),
    },
}
WAITS = None
with contextlib.suppress(OSError):
    WAITS = os.open("/proc/thread-self/schedstat", os.O_RDONLY)


def clock() -> float:
    """Seconds, without those in which the main thread has waited for a CPU."""
    waited = 0 if WAITS is None else int(os.pread(WAITS, 99, 0).split()[1])
    return time.perf_counter() - waited / 1e9


class Fast(torch.nn.Module):
    """A network of 1 ms. It counts its evaluations, and the seconds spent in it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.spent = 0, 0.0

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        began = clock()
        time.sleep(1e-3)
        self.calls += 1
        self.spent += clock() - began
        return x / 10


def measured(network: Fast, job: Callable[[], object]) -> tuple[float, ...]:
    """The seconds of a job, the share of them outside the network, those on a CPU, and the number of evaluations."""
    network.calls, network.spent, began, worked = 0, 0.0, clock(), time.process_time()
    job()
    seconds = clock() - began
    return seconds, 1 - network.spent / seconds, time.process_time() - worked, network.calls


def main(rounds: int) -> None:
    """Print the tables."""
    network = Fast()
    field = odeddim.VectorField(network, odeddim.Schedule.linear(), shape=(1, 28, 28), name="1 ms", sha256="0" * 64)
    images = torch.rand(COUNT, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    jobs = odeddim.jobs
    for setting, how in SETTINGS.items():
        place = {"model": field, "machine": how["machine"]}
        found: dict[str, list[tuple[float, ...]]] = {}
        with tempfile.TemporaryDirectory() as folder:
            for i in range(rounds):
                z, h5, pngs = (Path(folder, f"{i}-{name}") for name in ("z.h5", "images.h5", "pngs"))
                for name, job in (
                    ("encode", partial(jobs.encode, images, z, model=field, **how)),
                    ("decode to HDF5", partial(jobs.decode, z, h5, **place)),
                    ("decode to PNGs", partial(jobs.decode, z, pngs, **place)),
                ):
                    found.setdefault(name, []).append(measured(network, job))
        print(f"{COUNT} images, {setting}, medians of {rounds} rounds")
        for name, ways in found.items():
            seconds, share, worked, calls = (statistics.median(each) for each in zip(*ways, strict=True))
            print(
                f"{name:15s} {calls:.0f} evaluations: {seconds:.2f} s, {100 * share:.0f}% outside the network; "
                f"{worked:.2f} s on a CPU"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
