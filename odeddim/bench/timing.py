"""Time: the seconds of decoding over steps and batch sizes, a fitted line, and the solver's own share of the time.

This is DDIM's Figure 4, which shows that the time for a sample is linear in the number of steps. Each run is timed
several times, and the runs take turns. If the machine has other work, or lowers its clock as it gets warm, this slows
all runs and not only the last ones. A row has the median. The line is fitted by least squares to the medians of one
solver and batch size.

The solver's own share is the time outside the network: the arithmetic on the state, the labels and scales, the check
for NaN, and the noise of stochastic solvers. The timer measures each call of the network. On a GPU it waits for pending
work before and after the call, so a timed run takes slightly longer than others.

The network gets exactly the batches that the solver passes to it. While a run is timed, `network_batch` is None; at
other times it cuts batches into blocks of one size. `watch` is None too, and no progress bar is drawn.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter, time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from odeddim.api import noise, solve, with_noise
from odeddim.bench import defaults
from odeddim.bench.harness import Harness, error_words, expected, failure_column, first_cells
from odeddim.bench.memory import peak
from odeddim.bench.tables import Column, Table, telling
from odeddim.ode.field import VectorField
from odeddim.plans import Plan
from odeddim.storage.row_files import Columns
from odeddim.types import BudgetExceeded, InputError

QUIET = 1.5  # the slowest time of a run divided by its fastest; it is below this on an otherwise idle machine

_COLUMNS = (
    Column("solver", "solver", form="s"),
    Column("grid", "grid", form="s"),
    Column("batch", "batch", "number of images that are decoded together"),
    Column("steps", "steps"),
    Column("evaluations", "evals", "evaluations of the network per image", "g"),
    Column("seconds", "s", "seconds of the whole run, median", ".3f"),
    Column("fastest", "fastest", "seconds of the fastest repetition", ".3f"),
    Column("slowest", "slowest", "seconds of the slowest repetition", ".3f"),
    Column("images_per_second", "images/s", form=",.2f"),
    Column("per_evaluation", "ms/eval", "milliseconds per image and evaluation", ".3f"),
    Column("own_share", "own %", "share of the seconds that is spent outside the network, in percent", ".2f"),
    Column("own", "own µs", "microseconds outside the network, per call of the network", ".0f"),
    Column("memory", "MiB", "most that a run has allocated at once, network and all, beside the model and x_T", ".1f"),
    Column("per_step", "ms/step", "slope b of the line s = a + b·steps for this solver and batch", ".3f"),
    Column("intercept", "a, ms", "value a of the line at 0 steps, in milliseconds", ".1f"),
    Column("r2", "R²", "share of the variance of s that the line explains", ".5f"),
    Column("remark", "remark", form="s"),
)


class Line(NamedTuple):
    """A line y = intercept + slope·x, fitted by least squares.

    Attributes:
        slope: The slope.
        intercept: The value at x = 0.
        r2: The coefficient of determination 1 - Σ(y - line)²/Σ(y - mean)²; NaN if it is not meaningful.
    """

    slope: float
    intercept: float
    r2: float


class Turn(NamedTuple):
    """A run that is timed.

    Attributes:
        plan: The plan.
        batch: The number of images that are decoded together.
    """

    plan: Plan
    batch: int

    @property
    def label(self) -> dict[str, Any]:
        """The first cells of its row in the table."""
        return {**first_cells(self.plan), "batch": self.batch}


def timing(
    harness: Harness,
    runs: Sequence[Plan],
    shape: Sequence[int],
    *,
    batches: Sequence[int] = defaults.BATCHES,
    repeats: int = defaults.TIMING.count,
    seed: int = 0,
) -> Table:
    """Time the decoding of noise by every run with each batch size.

    Args:
        harness: The harness that measures the model.
        runs: The plans that decode.
        shape: The shape (C, H, W) of an x_T.
        batches: The numbers of images that are decoded together.
        repeats: The number of times that each run is timed.
        seed: The seed of the noise; image i is decoded from the noise of (seed, i).

    Returns:
        The table.
    """
    chosen = [
        Turn(run, batch)
        for pair in dict.fromkeys((run.solver.name, run.grid) for run in runs)
        for batch in dict.fromkeys(batches)
        for run in runs
        if (run.solver.name, run.grid) == pair
    ]
    cells = _in_turns(harness, chosen, tuple(shape), repeats, seed)
    rows = _rows(chosen, cells)
    columns, said = telling(_COLUMNS, rows, ("remark",))
    computer = {**described(harness.model), "threads": torch.get_num_threads()}
    return Table(
        bench="time",
        title=f"Time: {harness.model.title}, decoding noise on {_brief(computer)}",
        settings={
            **harness.subject(), "machine": computer, "seed": seed,
            "shape": list(shape), "dtype": str(harness.model.dtype or harness.dtype), "state": str(harness.dtype),
            "repeats": repeats, "network batch": "the batch that the solver passes to the network, without padding",
        },
        columns=columns,
        rows=said,
        notes=(
            f"each run was timed {repeats} times after a warm-up, and the runs took turns; {_when(cells)}",
            _words(computer),
            *_disturbed(rows),
        ),
        group=("solver", "grid", "batch"),
    )  # fmt: skip


def _in_turns(
    harness: Harness, chosen: Sequence[Turn], shape: tuple[int, ...], repeats: int, seed: int
) -> list[list[Columns]]:
    """Time the runs in turns, so that a change of the machine's speed affects all of them alike."""
    # Times from different turns are not comparable, so a table with one more run is timed again.
    turns = [list(turn.label.values()) for turn in chosen]
    computer = described(harness.model)
    warm: dict[tuple[Any, ...], float] = {}  # what a run of the group allocates, which does not depend on the steps
    cells: list[list[Columns]] = [[] for _ in chosen]
    for repetition in range(repeats):
        for turn, measured in zip(chosen, cells, strict=True):
            settings = harness.settings(
                "time", turn.plan, batch=turn.batch, repetition=repetition, seed=seed, size=list(shape),
                machine=computer, in_turns_with=turns,
            )  # fmt: skip
            # `timed` sets both, whatever the machine is set up for.
            settings["details"] = {**settings["details"], "network_batch": None, "batch_size": None}

            def measure(start: int, stop: int, turn: Turn = turn) -> Columns:
                x_T = noise(turn.batch, shape, seed=seed).to(harness.model.device or "cpu", harness.dtype)
                if _group(turn) not in warm:
                    alike = [other.plan for other in chosen if _group(other) == _group(turn)]
                    least = min(alike, key=expected)
                    most = peak(lambda: timed(harness.model, least, x_T, seed), harness.model.device)
                    warm[_group(turn)] = math.nan if most is None else most / 2**20
                return {**timed(harness.model, turn.plan, x_T, seed), "memory": np.array([warm[_group(turn)]])}

            measured.append(harness.measure(settings, 1, measure, evaluations=turn.batch * expected(turn.plan)))
    return cells


def _group(turn: Turn) -> tuple[Any, ...]:
    return turn.plan.solver.name, turn.plan.grid, turn.batch


def timed(model: VectorField, run: Plan, x_T: Tensor, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Decode x_T once, and measure the time.

    Args:
        model: The model.
        run: The plan.
        x_T: The noise (B, C, H, W) on the model's device.
        seed: The seed of a stochastic solver's noise.

    Returns:
        The columns, (1,) each: the `seconds` of the whole run, the seconds inside the `network` and its guide, the
        `calls` of the network, the `evaluations` per image, `when` the run ended in seconds since 1970, and the reason
        of a `failure`.
    """
    both = [model] if model.guide is None else [model, model.guide]
    kept, networks = [it.eps for it in both], [Timed(it) for it in both]
    watch, network_batch = model.watch, model.network_batch
    for field, network in zip(both, networks, strict=True):
        field.eps = network
    model.watch, model.network_batch = None, None
    model.reset()
    noisy, failure = run.with_solver(with_noise(run.solver, seed=seed)), ""
    began = now(model.device)
    try:
        solve(x_T, model=model, plan=noisy)
    except (InputError, BudgetExceeded) as error:  # the other rows are still useful
        failure = str(error)
    finally:
        for field, its in zip(both, kept, strict=True):
            field.eps = its
        model.watch, model.network_batch = watch, network_batch
    seconds = now(model.device) - began
    figures = {
        "seconds": seconds, "network": sum(it.seconds for it in networks), "calls": networks[0].calls,
        "evaluations": model.rows / len(x_T), "when": time(),
    }  # fmt: skip
    columns: dict[str, np.ndarray[Any, Any]] = {name: np.array([float(value)]) for name, value in figures.items()}
    return {**columns, "failure": failure_column(failure, 1)}


class Timed:
    """The network of a model, with the sum of the seconds that its calls take."""

    def __init__(self, model: VectorField) -> None:
        self._eps, self._device = model.network, model.device
        self.seconds, self.calls = 0.0, 0

    def __call__(self, x: Tensor, t: Tensor, *given: Tensor, **which: bool) -> Tensor:
        began = now(self._device)
        out = self._eps(x, t, *given, **which)
        self.seconds += now(self._device) - began
        self.calls += 1
        return out


def now(device: torch.device | None) -> float:
    """Return the time in seconds, after all pending work of a GPU."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def fitted(x: Sequence[float], y: Sequence[float]) -> Line | None:
    """Fit a line to points (x, y).

    Args:
        x: The x of the points.
        y: The y of the points.

    Returns:
        The line; None if there are not two different x. Its r2 is NaN for two points, because they determine the line.
    """
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(set(x)) < 2:
        return None
    dx, dy = xs - xs.mean(), ys - ys.mean()
    slope = float((dx * dy).sum() / (dx**2).sum())
    left, whole = float(((dy - slope * dx) ** 2).sum()), float((dy**2).sum())
    r2 = 1 - left / whole if len(xs) > 2 and whole > 0 else float("nan")
    return Line(slope, float(ys.mean() - slope * xs.mean()), r2)


def _rows(runs: Sequence[Turn], cells: Sequence[Sequence[Columns]]) -> list[dict[str, Any]]:
    """Return the rows of the table: each run's medians, and the line fitted to its solver and batch size."""
    rows = [_row(turn, measured) for turn, measured in zip(runs, cells, strict=True)]
    for turn, row in zip(runs, rows, strict=True):
        points = [
            (other["steps"], other["seconds"])
            for it, other in zip(runs, rows, strict=True)
            if _group(it) == _group(turn) and None not in (other["steps"], other["seconds"])
        ]
        line = fitted([steps for steps, _ in points], [seconds for _, seconds in points])
        row["per_step"], row["intercept"], row["r2"] = (
            (1e3 * line.slope, 1e3 * line.intercept, line.r2) if line else (None, None, None)
        )
    return rows


def _row(turn: Turn, measured: Sequence[Columns]) -> dict[str, Any]:
    failure = error_words(np.concatenate([cell["failure"] for cell in measured]))
    names = ("seconds", "fastest", "slowest", "images_per_second", "per_evaluation", "own_share", "own", "memory")
    figures: dict[str, Any] = dict.fromkeys(names)
    seconds, network, calls, evaluations = (
        np.concatenate([cell[name] for cell in measured]) for name in ("seconds", "network", "calls", "evaluations")
    )
    if not failure:
        middle, own = float(np.median(seconds)), seconds - network
        figures |= {
            "seconds": middle,
            "fastest": float(seconds.min()),
            "slowest": float(seconds.max()),
            "images_per_second": turn.batch / middle,
            "per_evaluation": 1e3 * middle / (turn.batch * float(evaluations.mean())),
            "own_share": 100 * float(np.median(own / seconds)),
            "own": 1e6 * float(np.median(own / calls)),
            "memory": _known(float(np.concatenate([cell["memory"] for cell in measured]).max())),
        }
    return {**turn.label, "evaluations": float(evaluations.mean()), **figures, "remark": failure}


def _known(figure: float) -> float | None:
    return None if math.isnan(figure) else figure


def described(model: VectorField) -> dict[str, Any]:
    """Return a description of the machine that a model runs on, as far as seconds depend on it."""
    gpu = None
    if model.device is not None and model.device.type == "cuda":
        gpu = torch.cuda.get_device_name(model.device)
    return {
        "cpu": _cpu(), "cores": os.cpu_count(), "gpu": gpu, "torch": torch.__version__, "os": platform.platform(),
    }  # fmt: skip


def _cpu() -> str:
    """Return the CPU's name from Linux or, on other systems, from Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _brief(computer: Mapping[str, Any]) -> str:
    threads = computer["threads"]
    return str(computer["gpu"] or f"{computer['cpu']}, {threads} thread{'s' if threads > 1 else ''}")


def _words(computer: Mapping[str, Any]) -> str:
    parts = [computer["gpu"], computer["cpu"], f"{computer['cores']} cores", f"threads of torch: {computer['threads']}"]
    return ", ".join(str(part) for part in (*parts, f"torch {computer['torch']}", computer["os"]) if part)


def _when(cells: Sequence[Sequence[Columns]]) -> str:
    """Return when the measurements were made. A bench that was stopped may have continued on a busier machine."""
    times = [float(cell["when"][0]) for measured in cells for cell in measured]
    first, last = (datetime.fromtimestamp(edge, timezone.utc) for edge in (min(times), max(times)))
    until = f"{last:%H:%M}" if first.date() == last.date() else f"{last:%Y-%m-%d %H:%M}"
    return f"{first:%Y-%m-%d %H:%M} to {until} UTC"


def _disturbed(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a note if the times of one run differ much."""
    worst = max((row["slowest"] / row["fastest"] for row in rows if row["fastest"]), default=1.0)
    if worst > QUIET:
        yield f"the slowest repetition of a run took {worst:.1f} times as long as the fastest: the machine was busy"
