"""odeddim beside diffusers, k-diffusion and torchdiffeq: the same network on the same nodes, in one run.

    python benchmarks/side_by_side.py measure            # a quarter of an hour on a quiet core; can be stopped
    python benchmarks/side_by_side.py measure speed      # one kind: speed, memory, reach, seconds or start-up
    python benchmarks/side_by_side.py measure --small    # two minutes, to see that all runs; kept in out/
    python benchmarks/side_by_side.py show               # the tables of what was measured
    python benchmarks/side_by_side.py page               # writes docs/side-by-side.md

k-diffusion is no dependency: `pip install k-diffusion` in an environment of its own, beside odeddim and diffusers. What
is not installed is left out, and a sentence says so. All run on one thread, and the clock is the CPU's: on a quiet core
these are the seconds that pass, and the page says how busy it was. Software takes turns within a row.
"""

from __future__ import annotations

import odeddim  # isort: skip  # before torch: its waiting threads then sleep

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from contenders import SAMPLERS, WAYS, Sampler, Subject, Trip, Way, nodes_of
from start_up import start_up
from torch import Tensor

from odeddim.bench.memory import peak
from odeddim.bench.solutions import encoded
from odeddim.storage.atomic import replacing

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "benchmarks" / "side_by_side.json"
TRIAL = ROOT / "out" / "side_by_side.json"
PAGE = ROOT / "docs" / "side-by-side.md"
IMAGES = ROOT / "odeddim" / "data" / "fashion-mnist-reference.npz"
METHODS = ("euler", "dpmpp-2m", "heun")
MODULES = {"odeddim": "odeddim", "diffusers": "diffusers", "k-diffusion": "k_diffusion", "torchdiffeq": "torchdiffeq"}
KINDS = ("speed", "memory", "reach", "seconds", "start-up")
"""The kinds of rows. Seconds are of the efforts that `reach` has found."""
TARGETS = (("trip", 1e-4), ("trip", 1e-6), ("latent", 1e-2))
USUAL = "odeddim `belm`, log"
"""The way by which odeddim encodes where none is named: what the others' seconds are divided by."""
EFFORTS = (5, 6, 8, 10, 12, 16, 20, 25, 32, 40, 50, 64, 80, 100, 125, 160, 200, 250)
TOLERANCES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)
Rows = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    batches: tuple[int, ...] = (1, 16)
    steps: int = 20
    rounds: int = 7
    memory_steps: tuple[int, ...] = (10, 1000)
    images: int = 8
    most: int = 250
    fine: int = 200
    trips: int = 3
    starts: int = 5


SMALL = Sizes(steps=4, rounds=2, memory_steps=(5, 20), images=2, most=16, fine=20, trips=1, starts=1)


def installed() -> list[str]:
    """The software that is here, odeddim first."""
    return [name for name, module in MODULES.items() if find_spec(module) is not None]


def surroundings() -> dict[str, Any]:
    """What figures depend on: the machine in general words, and the versions."""
    versions = {"odeddim": odeddim.__version__, "torch": torch.__version__}
    for name in MODULES:
        if name != "odeddim" and name in installed():
            versions[name] = version(name)
    cores = f"{os.cpu_count()} CPU cores, {'a' if torch.cuda.is_available() else 'no'} GPU"
    return {"machine": f"{cores}, {platform.system()} on {platform.machine()}", "threads": 1, "versions": versions}


class Kept:
    """The rows that were measured, in a file that grows row by row."""

    def __init__(self, path: Path, sizes: Sizes) -> None:
        self.path = path
        told = {**surroundings(), "sizes": json.loads(_json(vars(sizes)))}
        self.content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {**told, "rows": {}}
        differ = [name for name, value in told.items() if self.content[name] != value]
        if differ:
            name = differ[0]
            raise SystemExit(
                f"{path} was measured with other {name} ({self.content[name]}, now {told[name]}): remove the file, or "
                "give another one with -o"
            )

    def row(self, name: str, measured: Callable[[], Any]) -> None:
        """Measure the row of a name if it is not there yet."""
        rows = self.content["rows"]
        if name not in rows:
            rows[name] = json.loads(_json(measured()))
            self.content["date"] = date.today().isoformat()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as temporary:
                temporary.write_text(_json(self.content) + "\n", encoding="utf-8")
            print(name, flush=True)


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False)


def samplers(subject: Subject, method: str, nodes: Tensor, names: Sequence[str]) -> dict[str, Sampler]:
    """The samplers of this software that has the method, by what they are called in the tables."""
    made = {what: make(subject, method, nodes) for what, make in SAMPLERS.items() if what.split(",")[0] in names}
    return {what: run for what, run in made.items() if run is not None}


def measure(
    subject: Subject, images: Tensor, sizes: Sizes, kept: Kept, names: Sequence[str], kinds: Sequence[str] = KINDS
) -> None:
    """Measure the rows of these kinds that are not measured yet, of the software of these names.

    For "seconds" those of "reach" are measured too.
    """
    for method in METHODS:
        for batch in sizes.batches if "speed" in kinds else ():
            kept.row(f"speed {method} {batch}", lambda m=method, b=batch: speed(subject, m, b, sizes, names))
        for steps in sizes.memory_steps if "memory" in kinds else ():
            kept.row(f"memory {method} {steps}", lambda m=method, s=steps: memory(m, s, names))
    ways = {way.name: way for way in WAYS if way.software in names}
    if {"reach", "seconds"} & {*kinds}:
        truth: dict[str, Tensor] = {}
        for name, way in ways.items():
            kept.row(f"reach {name}", lambda w=way: reach(subject, w, images, truth, sizes))
    if "seconds" in kinds:
        for error, target in TARGETS:
            trips = {}
            for name, tried in reached_by(kept.content["rows"]):
                if found := reached(tried, error, target):
                    trips[name] = ways[name].make(subject, found["effort"])
            row = f"seconds {error} {target:g}"
            kept.row(row, lambda e=error, t=trips: trip_seconds(t, images, sizes.trips, back=e == "trip"))
    if "start-up" in kinds:
        kept.row("start-up", lambda: start_up(names, sizes.starts))


def speed(subject: Subject, method: str, batch: int, sizes: Sizes, names: Sequence[str]) -> Rows:
    """Seconds of a run and of the network within it, in rounds of all software after one that does not count.

    `apart` is the largest difference of a pixel to odeddim's images, clipped to [-1, 1] as diffusers' pipeline does.
    """
    nodes, x_T = nodes_of(subject, method, sizes.steps), subject.noise(batch)
    runs = samplers(subject, method, nodes, names)
    images = {name: run(x_T).clamp(-1, 1) for name, run in runs.items()}
    rows: Rows = {name: {"seconds": [], "wall": [], "network": [], "evaluations": 0} for name in runs}
    for turn in range(sizes.rounds):
        for name in rotated(list(runs), turn):
            subject.network.reset()
            wall, began = perf_counter(), process_time()
            runs[name](x_T)
            rows[name]["seconds"].append(process_time() - began)
            rows[name]["wall"].append(perf_counter() - wall)
            rows[name]["network"].append(subject.network.seconds)
            rows[name]["evaluations"] = subject.network.rows // batch
    for name in runs:
        rows[name]["apart"] = float((images[name] - images["odeddim"]).abs().max())
    return rows


def rotated(names: list[str], turn: int) -> list[str]:
    """The names, another one first in each turn."""
    first = turn % max(1, len(names))
    return names[first:] + names[:first]


def memory(method: str, steps: int, names: Sequence[str], batch: int = 16) -> dict[str, float | None]:
    """The most that a run has allocated, in states of 16×3×32×32 float32; the network keeps nothing but its answer."""
    field = odeddim.VectorField(lambda x, t: x / 2, odeddim.Schedule.linear(), name="half")
    subject = Subject(field, (3, 32, 32))
    nodes = nodes_of(subject, method, steps)
    state = subject.noise(batch).nbytes
    rows: dict[str, float | None] = {}
    for name, run in samplers(subject, method, nodes, names).items():
        run(subject.noise(batch))
        most = peak(lambda run=run: run(subject.noise(batch)))
        rows[name] = None if most is None else most / state
    return rows


def reach(subject: Subject, way: Way, images: Tensor, truth: dict[str, Tensor], sizes: Sizes) -> list[Rows]:
    """What a way reaches with more and more effort: each third one, then those before one that meets a target."""
    if way.end not in truth:
        with torch.no_grad():
            truth[way.end] = encoded(subject.field, images, sizes.fine, way.end)
    efforts = efforts_of(way, len(subject.levels), sizes.most)
    tried: dict[int, Rows] = {}
    for place in (*range(0, len(efforts) - 1, 3), len(efforts) - 1):
        tried[place] = attempt(subject, way, efforts[place], images, truth[way.end])
        if tried[place]["up"] > sizes.most or all(reached([*tried.values()], *target) for target in TARGETS):
            break
    for error, target in TARGETS:
        met = [place for place in tried if reached([tried[place]], error, target)]
        for place in range(max(0, min(met, default=0) - 2), min(met, default=0)):
            if place not in tried:
                tried[place] = attempt(subject, way, efforts[place], images, truth[way.end])
            if reached([tried[place]], error, target):
                break
    return [tried[place] for place in sorted(tried)]


def efforts_of(way: Way, levels: int, most: int) -> list[float]:
    """Tolerances, or numbers of steps of at most so many evaluations; DDIM's must divide the number of levels."""
    if way.adaptive:
        return list(TOLERANCES)
    counts = [count for count in EFFORTS if count <= most and (way.end != "zero" or levels % count == 0)]
    return sorted({max(1, count // way.each) for count in counts})


def attempt(subject: Subject, way: Way, effort: float, images: Tensor, truth: Tensor) -> Rows:
    """The medians over images of both errors, rms, and the evaluations up, and up and down; or how it failed."""
    trip = way.make(subject, effort)
    subject.network.reset()
    try:
        latent = trip.encode(images)
        up = subject.network.rows / len(images)
        back = trip.decode(latent)
    except IndexError as error:  # diffusers' "exponential" spacing, where two of its steps have one label
        return {"effort": effort, "up": subject.network.rows / len(images), "failed": str(error)}
    both = subject.network.rows / len(images)
    errors = {"trip": _rms(back - images), "latent": _rms(trip.unit(latent) - truth)}
    return {"effort": effort, "up": up, "both": both, **errors}


def _rms(apart: Tensor) -> float:
    return float(apart.double().flatten(1).square().mean(1).sqrt().nan_to_num(1e9).median())


def reached(tried: Sequence[Rows], error: str, target: float) -> Rows | None:
    """Of what was tried, that with the fewest evaluations which keeps a target; None if nothing does."""
    met = [one for one in tried if one.get(error, math.inf) <= target]
    return min(met, key=lambda one: float(one["both" if error == "trip" else "up"]), default=None)


def trip_seconds(trips: dict[str, Trip], images: Tensor, rounds: int, *, back: bool) -> dict[str, list[float]]:
    """Seconds to encode the images, and to bring them back, in rounds of all ways."""
    rows: dict[str, list[float]] = {name: [] for name in trips}
    for turn in range(rounds):
        for name in rotated(list(trips), turn):
            began = process_time()
            latent = trips[name].encode(images)
            if back:
                trips[name].decode(latent)
            rows[name].append(process_time() - began)
    return rows


NOT_YET = (
    "Not measured yet: `python benchmarks/side_by_side.py measure` measures it, and `python "
    "benchmarks/side_by_side.py page` writes this page."
)


def tables(content: dict[str, Any]) -> Iterator[str]:
    """The lines of the tables, in Markdown, with what a reader must know of each."""
    rows, sizes = content["rows"], content["sizes"]
    versions = ", ".join(f"{name} {its}" for name, its in content["versions"].items())
    yield (
        f"{content['date']}, {content['machine']}, one thread, {versions}. Seconds are those of the CPU. Medians, and "
        "the smallest and the largest in brackets."
    )
    speeds = [its for name, row in rows.items() if name.startswith("speed") for its in row.values()]
    if speeds:
        slowed = median(w / s for its in speeds for w, s in zip(its["wall"], its["seconds"], strict=True))
        yield f"While a timed run took a second of the CPU, {slowed:.2f} passed on the clock, in the median."
    if missing := [name for name in MODULES if name not in content["versions"]]:
        yield f"{', '.join(missing)}: not installed where this was measured."
    if left := [kind for kind in KINDS if not any(name.startswith(kind) for name in rows)]:
        yield f"Not measured yet: {', '.join(left)} (`python benchmarks/side_by_side.py measure {' '.join(left)}`)."
    made = (
        ("speed", speed_table), ("memory", memory_table), ("reach", trip_table), ("reach", latent_table),
        ("start-up", start_table),
    )  # fmt: skip
    for kind, table in made:
        if any(name.startswith(kind) for name in rows):
            yield from table(rows, sizes)


def speed_table(rows: Rows, sizes: dict[str, Any]) -> Iterator[str]:
    yield f"""
## The same method on the same nodes

{sizes["steps"]} steps. The own share is what a run spends outside the network, and the own time that in microseconds
for each evaluation. `time` is the ratio to odeddim's in the same round, and `apart` the largest difference of a pixel
to odeddim's images, which range from -1 to 1. diffusers' `euler` is `DDIMPipeline`, which also draws x_T, and its
`dpmpp-2m` the loop over `DPMSolverMultistepScheduler`. torchdiffeq is given the ODE in σ, and its own time has that
function in it; it is asked for the end only, or for x̄ at each node. The nodes of `heun` lie between the training
levels, where k-diffusion finds the labels in float32.
"""
    yield from head("method", "images at once", "software", "images/s", "own share", "own µs", "time", "apart")
    for method in METHODS:
        for batch in sizes["batches"]:
            row = rows.get(f"speed {method} {batch}", {})
            seconds = {name: its["seconds"] for name, its in row.items()}
            for name, its in row.items():
                both = list(zip(its["seconds"], its["network"], strict=True))
                own = [100 * (1 - network / whole) for whole, network in both]
                each = [1e6 * (whole - network) / its["evaluations"] for whole, network in both]
                yield line(
                    f"`{method}`", str(batch), name, spread([batch / whole for whole, _ in both]),
                    spread(own) + " %", spread(each), ratios(seconds, name, "odeddim"), f"{its['apart']:.1e}",
                )  # fmt: skip


def memory_table(rows: Rows, sizes: dict[str, Any]) -> Iterator[str]:
    yield """
## Peak memory

The most that torch has allocated at once within a run, x_T among it, in states: tensors of the size of a batch of
images. The network returns x/2 and keeps nothing.
"""
    yield from head("method", "software", *(f"{steps} steps" for steps in sizes["memory_steps"]))
    for method in METHODS:
        found = [rows.get(f"memory {method} {steps}", {}) for steps in sizes["memory_steps"]]
        for name in found[0]:
            yield line(f"`{method}`", name, *(figure(its.get(name)) for its in found))


def trip_table(rows: Rows, sizes: dict[str, Any]) -> Iterator[str]:
    yield f"""
## To a round trip

Evaluations for the way up and down together, and seconds for {sizes["images"]} held-out images, until the median image
comes back to 1e-4 and 1e-6 (rms of pixels in [-1, 1], float32). More and more evaluations were tried, up to
{sizes["most"]} each way; where none sufficed, the smallest error of all is in brackets. `latent` is the error of the
latent there: an exactly reversible solver comes back from any number of steps, however far off its latent is. `time` is
the ratio to `belm`, which odeddim takes where none is named.
"""
    yield from head("way", "evaluations to 1e-4", "latent", "seconds", "time", "evaluations to 1e-6", "seconds")
    for name, tried in reached_by(rows):
        found = reached(tried, "trip", 1e-4)
        yield line(
            name,
            needed(tried, "trip", 1e-4, sizes),
            f"{found['latent']:.2g}" if found else "",
            *seconds_cells(rows, "trip 0.0001", name),
            needed(tried, "trip", 1e-6, sizes),
            seconds_cells(rows, "trip 1e-06", name)[0],
        )
    yield from failures(rows)


def failures(rows: Rows) -> Iterator[str]:
    """A sentence for each way that failed with an error."""
    for name, tried in reached_by(rows):
        if failed := [one for one in tried if "failed" in one]:
            counts = ", ".join(f"{one['effort']:g}" for one in failed)
            yield f"\n{name}, fails at {counts} steps: {failed[0]['failed']}."


def latent_table(rows: Rows, sizes: dict[str, Any]) -> Iterator[str]:
    yield """
## To a latent that is 1% off

Evaluations and seconds to encode the same images until the median latent, of unit variance, is within 0.01 (rms) of the
ODE's: a Runge-Kutta run in log σ that shares no code with any of these.
"""
    yield from head("way", "evaluations", "seconds", "time")
    for name, tried in reached_by(rows):
        yield line(name, needed(tried, "latent", 1e-2, sizes), *seconds_cells(rows, "latent 0.01", name))


def start_table(rows: Rows, sizes: dict[str, Any]) -> Iterator[str]:
    yield """
## Start-up

Seconds of the CPU of a new process, and the ratio to odeddim's. To the first image: ten of Euler's steps of one image
by the built-in network, which odeddim loads itself; the others are given it as a plain module.
"""
    yield from head("", "software", "seconds", "time")
    for kind, row in rows["start-up"].items():
        for name, spent in row.items():
            yield line(kind, name, spread(spent), ratios(row, name, "odeddim"))


def reached_by(rows: Rows) -> Iterator[tuple[str, list[Rows]]]:
    """What was tried, by the name of the way."""
    yield from ((way.name, rows[f"reach {way.name}"]) for way in WAYS if f"reach {way.name}" in rows)


def needed(tried: list[Rows], error: str, target: float, sizes: dict[str, Any]) -> str:
    """The evaluations to a target; or that they are more than were tried, with the smallest error."""
    found = reached(tried, error, target)
    if found is None:
        return (
            f"> {sizes['most'] * (2 if error == 'trip' else 1)} ({min(one.get(error, math.inf) for one in tried):.1e})"
        )
    return f"{found['both' if error == 'trip' else 'up']:g}"


def seconds_cells(rows: Rows, target: str, name: str) -> list[str]:
    """Seconds, and their ratio to those of `USUAL`; empty where either did not meet the target."""
    row = rows.get(f"seconds {target}", {})
    if name not in row:
        return ["", ""]
    return [spread(row[name]), ratios(row, name, USUAL)]


def ratios(row: dict[str, list[float]], name: str, usual: str) -> str:
    """The ratios of seconds in the same rounds; empty where there are none of the usual."""
    return spread([a / b for a, b in zip(row[name], row[usual], strict=True)]) if usual in row else ""


def spread(values: Sequence[float]) -> str:
    """The median, the smallest and the largest, in three digits."""
    return f"{figure(median(values))} ({figure(min(values))} to {figure(max(values))})"


def figure(value: float | None) -> str:
    """Three digits, without an exponent where there are no more than five before the point."""
    return "" if value is None else f"{value:.0f}" if 100 <= abs(value) < 1e5 else f"{value:.3g}"


def head(*cells: str) -> Iterator[str]:
    yield line(*cells)
    yield line(*("---" for _ in cells))


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def shown(path: Path) -> str:
    """The tables of a file, or that nothing was measured yet."""
    return "\n".join(tables(json.loads(path.read_text(encoding="utf-8")))) if path.exists() else NOT_YET


def page() -> str:
    """The manual's page."""
    return f"""# Side by side

<!-- Written by `python benchmarks/side_by_side.py page`. -->

odeddim beside diffusers, k-diffusion and torchdiffeq, all with the built-in network on the same nodes, in turns within
one process: `python benchmarks/side_by_side.py measure`. [How it compares](comparison.md) says what else they have.

{shown(KEPT)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("measure")
    verb.add_argument("kinds", nargs="*", choices=[*KINDS, []], metavar="KIND", default=[], help=", ".join(KINDS))
    verb.add_argument("--small", action="store_true", help="few steps, images and rounds, kept in out/")
    verb.add_argument("-o", "--output", type=Path, help="the file of what is measured")
    verbs.add_parser("show").add_argument("file", nargs="?", type=Path, default=KEPT)
    verbs.add_parser("page")
    given = parser.parse_args()
    if given.verb == "page":
        PAGE.write_text(page(), encoding="utf-8")
        return
    if given.verb == "show":
        print(shown(given.file))
        return
    torch.set_num_threads(1)
    sizes, path = (SMALL, given.output or TRIAL) if given.small else (Sizes(), given.output or KEPT)
    with np.load(IMAGES) as file:
        images = torch.from_numpy(file["images"][: sizes.images]).float()[:, None] / 127.5 - 1
    names = installed()
    for name in MODULES:
        if name not in names:
            print(f"{name} is not installed, and is left out: pip install {name}", file=sys.stderr)
    kept = Kept(path, sizes)
    measure(Subject(odeddim.load(), (1, 28, 28)), images, sizes, kept, names, given.kinds or KINDS)
    print(shown(path))


if __name__ == "__main__":
    main()
