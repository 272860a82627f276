"""What writing costs beside a fast network: `encode` and `decode` of 1,000 images.

    python benchmarks/writing.py [ROUNDS]

The network sleeps 1 ms an evaluation, as a GPU would leave the CPU alone for so long. Printed are medians over the
rounds: the seconds of the job, the share of them in which no network was evaluated, and the seconds of all its
threads on a CPU. On a machine that other programs keep busy, the job's thread waits for a CPU; Linux counts these
waits, and they are taken out, within the network and outside it.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import odeddim

COUNT, STEPS, BATCH = 1000, 10, 32


def clock() -> float:
    """Seconds, without those in which this thread has waited for a CPU."""
    waited = 0
    with contextlib.suppress(OSError):
        waited = int(Path("/proc/thread-self/schedstat").read_text().split()[1])
    return time.perf_counter() - waited / 1e9


class Fast(torch.nn.Module):
    """A network of 1 ms. It counts the seconds spent in it."""

    def __init__(self) -> None:
        super().__init__()
        self.spent = 0.0

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        began = clock()
        time.sleep(1e-3)
        self.spent += clock() - began
        return x / 10


def measured(network: Fast, job: Callable[[], object]) -> tuple[float, float, float]:
    """The seconds of a job, the share of them outside the network, and the seconds on a CPU."""
    network.spent, began, worked = 0.0, clock(), time.process_time()
    job()
    seconds = clock() - began
    return seconds, 1 - network.spent / seconds, time.process_time() - worked


def main(rounds: int) -> None:
    """Print the table."""
    network = Fast()
    field = odeddim.VectorField(network, odeddim.Schedule.linear(), shape=(1, 28, 28), name="1 ms", sha256="0" * 64)
    images = torch.rand(COUNT, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    machine = odeddim.jobs.Machine("cpu", batch_size=BATCH, network_batch=BATCH)
    how = {"model": field, "solver": "euler", "steps": STEPS, "machine": machine}
    found: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            z, out, h5 = (Path(folder, name) for name in ("z.h5", "out", "images.h5"))
            for name, job in (
                ("encode", lambda z=z: odeddim.jobs.encode(images, z, **how)),
                ("decode to HDF5", lambda z=z, h5=h5: odeddim.jobs.decode(z, h5, model=field, machine=machine)),
                ("decode to PNGs", lambda z=z, out=out: odeddim.jobs.decode(z, out, model=field, machine=machine)),
            ):
                found.setdefault(name, []).append(measured(network, job))
    print(f"{COUNT} images, {STEPS} steps, batches of {BATCH}, medians of {rounds} rounds")
    for name, ways in found.items():
        seconds, share, worked = (statistics.median(each) for each in zip(*ways, strict=True))
        print(f"{name:15s} {seconds:.2f} s, {100 * share:.0f}% outside the network; {worked:.2f} s on a CPU")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
