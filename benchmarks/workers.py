"""What a second process brings: 256 images (264 of a bench) with `--workers 1` and `--workers 2`, in turns.

    python benchmarks/workers.py [ROUNDS]

Printed are medians over the rounds: seconds of the command, seconds that the job tells (the command without its start),
and of both the ratio of one process to two. The last line is what two cores allow: one `encode` of 128 images against
two of them at once.
"""

from __future__ import annotations

import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COUNT = 256
COMMANDS = {
    "encode": ["encode", "-n", str(COUNT), "-o", "z.h5", "--overwrite"],
    "decode": ["decode", "z.h5", "-o", "images.h5", "--overwrite"],
    "sample": ["sample", "-n", str(COUNT), "-o", "samples.h5", "--overwrite"],
    "bench interpolation": ["bench", "interpolation", "--pairs", "24", "--side", "0", "--steps", "20", "-o"],
}
HALF = ["encode", "-n", str(COUNT // 2), "-o"]


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "odeddim", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def told(process: subprocess.Popen[str]) -> float:
    """The seconds of the job as it tells them; NaN if it does not."""
    said = process.communicate()[0]
    assert process.returncode == 0, said
    found = re.search(r", ([\d.]+) s$", said.strip().splitlines()[0])
    return float(found[1]) if found else float("nan")


def timed(folder: Path, *words: str) -> tuple[float, float]:
    """Seconds of a command, and of its job."""
    began = time.perf_counter()
    job = told(start(folder, *words))
    return time.perf_counter() - began, job


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    command: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    job: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    alone, beside = [], []
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for what, words in COMMANDS.items():
                more = [[f"bench-{workers}"] if words[-1] == "-o" else [] for workers in (1, 2)]
                (one, its), (two, their) = (
                    timed(folder, *words, *more[workers - 1], "--workers", str(workers)) for workers in (1, 2)
                )
                command[what].append((one, two))
                job[what].append((its, their))
            alone.append(timed(folder, *HALF, "alone.h5")[1])
            both = [start(folder, *HALF, f"{side}.h5") for side in ("left", "right")]
            beside.append(statistics.mean(told(process) for process in both))
        print(f"round {number + 1} of {rounds} is done", file=sys.stderr, flush=True)
    print(f"{COUNT} images, medians of {rounds} rounds; seconds with 1 and 2 workers, and their ratio")
    for what in COMMANDS:
        for kind, found in (("command", command[what]), ("job", job[what])):
            if not math.isnan(found[0][0]):
                one, two = (statistics.median(column) for column in zip(*found, strict=True))
                ratio = statistics.median(a / b for a, b in found)
                print(f"{what + ', ' + kind:30} {one:6.1f} {two:6.1f} {ratio:6.2f}")
    allowed = statistics.median(2 * a / b for a, b in zip(alone, beside, strict=True))
    print(f"two processes that share nothing: {allowed:.2f}")


if __name__ == "__main__":
    main()
