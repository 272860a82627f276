"""Every bench as a function: the same table as the command's, bit for bit, and measurements that both share."""

from __future__ import annotations

import inspect
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import h5py
import pytest
import torch

import odeddim
from odeddim import jobs
from odeddim.bench import defaults, harness
from odeddim.bench.tables import Table, load
from odeddim.cli.bench import COMMANDS
from odeddim.cli.bench import command as group
from odeddim.cli.lazy import LazyGroup
from odeddim.jobs.bench import Workbench
from odeddim.plans import Plan
from odeddim.types import InputError

Command = Callable[..., tuple[int, str, str]]

SIZE = (1, 8, 8)
TIMES = {"seconds", "decode_seconds", "encode_seconds"}  # columns that no two measurements share

# By command: its words, its function, and the same as arguments.
BENCHES: dict[str, tuple[tuple[object, ...], Callable[..., Any], dict[str, Any]]] = {
    "reconstruction": (
        ("-n", 2, "--solvers", "euler@linear,dopri5", "--steps", "3,6", "--labels", "source,target", "--rtol", 1e-2),
        jobs.bench.reconstruction,
        {"count": 2, "solvers": ["euler@linear", "dopri5"], "steps": [3, 6], "labels": ["source", "target"],
         "rtol": 1e-2},
    ),
    "quality": (
        ("-n", 5, "--eta", "0,0.5,hat", "--solvers", "ab3", "--steps", 3, "--seed", 2, "--size", "1,28,28",
         "--grid", "quadratic"),
        jobs.bench.quality,
        {"count": 5, "eta": [0, 0.5, "hat"], "solvers": ["ab3"], "steps": [3], "seed": 2, "size": (1, 28, 28),
         "grid": "quadratic"},
    ),
    "consistency": (
        ("-n", 2, "--solvers", "euler,ddpm", "--steps", 3, "--end", "sigma_min", "--size", "1,8,8"),
        jobs.bench.consistency,
        {"count": 2, "solvers": ["euler", "ddpm"], "steps": [3], "end": "sigma_min", "size": SIZE},
    ),
    "interpolation": (
        ("--pairs", 1, "--points", 4, "--side", 2, "--solvers", "euler,ddpm", "--steps", 3, "--size", "1,8,8"),
        jobs.bench.interpolation,
        {"pairs": 1, "points": 4, "side": 2, "solvers": ["euler", "ddpm"], "steps": [3], "size": SIZE},
    ),
    "time": (
        ("--solvers", "euler,belm", "--steps", "2,4", "--batches", "1,2", "--repeats", 2, "--size", "1,8,8"),
        jobs.bench.timing,
        {"solvers": ["euler", "belm"], "steps": [2, 4], "batches": [1, 2], "repeats": 2, "size": SIZE},
    ),
    "work-precision": (
        ("-n", 2, "--solvers", "euler,dopri5", "--steps", "3,6", "--tolerances", "1e-2", "--size", "1,8,8"),
        jobs.bench.work_precision,
        {"count": 2, "solvers": ["euler", "dopri5"], "steps": [3, 6], "tolerances": [1e-2], "size": SIZE},
    ),
    "league": (
        ("-n", 2, "--solvers", "euler@log,dpm-solver-1,belm,ddpm", "--evaluations", "3,6", "--seed", 1),
        jobs.bench.league,
        {"count": 2, "solvers": ["euler@log", "dpm-solver-1", "belm", "ddpm"], "evaluations": [3, 6], "seed": 1},
    ),
    "cheapest": (
        ("-n", 2, "--find", 3e-2, "--solvers", "ab2@log,euler@log", "--size", "1,8,8"),
        lambda bench, **given: jobs.bench.find(bench, 3e-2, **given)[0],
        {"count": 2, "solvers": ["ab2@log", "euler@log"], "size": SIZE},
    ),
}  # fmt: skip


class Counted:
    """The field of the built-in mixture, and how often its network was called."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls, self.model = itertools.count(1), odeddim.load("exact-mixture", device="cpu", dtype="float32")
        network = self.model.eps

        def eps(x: torch.Tensor, t: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
            if next(self.calls) == stop_at:
                raise KeyboardInterrupt
            return network(x, t, *given)

        self.model.eps = eps

    @property
    def count(self) -> int:
        return next(self.calls) - 1


def without_times(table: Table) -> tuple[Any, ...]:
    rows = [{name: value for name, value in row.items() if name not in TIMES} for row in table.rows]
    return table.bench, table.title, table.settings, table.columns, rows, table.notes, table.group


@pytest.mark.parametrize("name", BENCHES)
def test_command_and_function_make_one_table(
    run: Command, here: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command goes on where the function was stopped; the function reads what the command has measured.

    And in another folder the function measures the same figures, bit for bit.
    """
    words, function, given = BENCHES[name]
    monkeypatch.setattr("odeddim.bench.league.REFERENCE_STEPS", 10)  # what it compares with takes longest
    alone = Counted()
    with monkeypatch.context() as patch:
        patch.setattr("odeddim.bench.figures.files", lambda *_: {})  # drawing takes longer than measuring
        again = function(Workbench(alone.model, folder="again"), **given)
    stopped = Counted(stop_at=alone.count - 2)
    with pytest.raises(KeyboardInterrupt):
        function(Workbench(stopped.model, folder="bench"), **given)
    kept = {path: path.read_bytes() for path in (here / "bench" / "cells").glob("*.h5")}
    assert kept
    command = ("bench", "work-precision" if name == "cheapest" else name)
    code, out, err = run(*command, *words, "--model", "exact-mixture", "--json")
    assert code == 0, err
    assert all(path.read_bytes() == content for path, content in kept.items())
    theirs = {path.name: path.read_bytes() for path in (here / "bench").iterdir() if path.suffix not in (".h5", "")}
    reading = Counted()
    table = function(Workbench(reading.model), **given)
    assert reading.count == 0
    assert table.to_json() == out.rstrip("\n")
    assert table == load(here / "bench" / f"{name}.h5")
    assert {path.name for path in table.files} == {f"{name}.h5", *theirs}
    assert all(path.suffix == ".h5" or path.read_bytes() == theirs[path.name] for path in table.files)
    if name != "time":
        assert without_times(again) == without_times(table)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_function_has_the_defaults_of_its_command(name: str) -> None:
    assert isinstance(group, LazyGroup)
    below = group.get_command(click.Context(group), name)
    assert below is not None
    function = jobs.bench.timing if name == "time" else getattr(jobs.bench, name.replace("-", "_"))
    ours = {key: value.default for key, value in inspect.signature(function).parameters.items()}
    theirs = below.make_context(name, []).params
    found = {key for key in ours if key in theirs}
    missing = set(ours) - found - {"workbench", "settings", "how", "prepare"}
    assert not missing
    for key in found - ({"solvers"} if name == "work-precision" else set()):  # whose default depends on --find
        value = theirs[key]
        value = tuple(value) if isinstance(value, list) else str(value) if isinstance(value, Path) else value
        assert ours[key] == (() if (key, value) == ("solvers", None) else value), key


def test_a_field_of_another_dtype_has_cells_of_its_own(here: Path) -> None:
    """A field is taken as it is. One without a dtype computes in that of its input, others round to theirs."""
    given: dict[str, Any] = {"count": 1, "solvers": ["euler@linear"], "steps": [3]}
    tables = [
        jobs.bench.reconstruction(Workbench(odeddim.load("exact-mixture", device="cpu", dtype=dtype)), **given)
        for dtype in ("float32", None, "bfloat16")
    ]
    assert len([*Path("bench/cells").glob("reconstruction-*.h5")]) == 3
    assert ["dtype" in table.title for table in tables] == [False, True, False]
    assert "bfloat16 on cpu" in tables[2].title


def test_the_plan_that_is_found_is_the_one_in_the_folder(here: Path) -> None:
    bench = Workbench("exact-mixture", folder="found")
    table, plan = jobs.bench.find(bench, 3e-2, count=2, solvers=["ab2@log"], size=SIZE)
    assert table.files[-1] == Path("found", defaults.PLAN)
    assert Plan.load("found/plan.json") == plan
    assert plan.notes["error"] <= 3e-2


def test_an_example_of_the_readmes_kind_runs(here: Path) -> None:
    model = odeddim.load("exact-mixture")
    bench = jobs.bench.Workbench(model, folder="bench-mine")
    table = jobs.bench.reconstruction(bench, count=2, solvers=["euler@linear", "ab3"], steps=[5, 10])
    assert len(table.to_csv().splitlines()) == 5
    assert jobs.bench.report("bench-mine", "report.html") == ["reconstruction"]
    Path("mine.html").write_text("mine")
    with pytest.raises(InputError, match=re.escape("mine.html is there already")):
        jobs.bench.report("bench-mine", "mine.html")


def test_folders_and_arguments_are_checked_before_anything_is_measured(here: Path) -> None:
    Path("file").write_text("mine")
    counted = Counted()
    with pytest.raises(InputError, match=re.escape("file is a file: give a folder with folder=...")):
        jobs.bench.timing(Workbench(counted.model, folder="file"), size=SIZE)
    with pytest.raises(InputError, match="'much' is no η"):
        jobs.bench.quality(Workbench(counted.model), eta=["much"], size=SIZE)
    mine = odeddim.VectorField(lambda x, t: x * 0.5, odeddim.Schedule.linear(), name="mine")
    with pytest.raises(InputError, match=re.escape("compared with? Give reference=...")):
        jobs.bench.quality(Workbench(mine), size=SIZE)
    with pytest.raises(InputError, match=re.escape("Give features=...")):
        jobs.bench.quality(Workbench(mine), reference=Path("file"), size=SIZE)
    with (
        pytest.warns(UserWarning, match="holds 256 images"),
        pytest.raises(InputError, match="nonsense"),
    ):
        jobs.bench.reconstruction(Workbench(counted.model), count=257, solvers=["euler@nonsense"])
    assert counted.count == 0


def test_the_jobs_load_nothing_that_only_a_bench_needs() -> None:
    heavy = ("matplotlib", "torchmetrics", "rich", "click")
    code = f"import odeddim.jobs, sys; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_who_finishes_a_cell_may_have_deleted_its_parts(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process has opened the cell, which shows its parts, when another one has just put the whole cell there."""
    given: dict[str, Any] = {"count": 4, "solvers": ["euler@linear"], "steps": [3]}
    machine, alone = jobs.Machine(batch_size=2), Counted()
    whole = jobs.bench.reconstruction(Workbench(alone.model, machine, "whole"), **given)
    stopped = Counted(stop_at=alone.count - 2)
    with pytest.raises(KeyboardInterrupt):
        jobs.bench.reconstruction(Workbench(stopped.model, machine, "both"), **given)
    (cell,) = (path for path in (here / "both" / "cells").glob("*.h5") if Path(f"{path}.parts").exists())
    measured = here / "whole" / "cells" / cell.name
    settings_of = harness.settings_of

    def finished_by_another(file: h5py.File, path: Path) -> dict[str, Any]:
        if Path(f"{cell}.parts").exists() and Path(file.filename) == cell:
            shutil.rmtree(f"{cell}.parts")
            os.replace(measured, cell)  # the file stays open
        return settings_of(file, path)

    monkeypatch.setattr(harness, "settings_of", finished_by_another)
    again = jobs.bench.reconstruction(Workbench(Counted().model, machine, "both"), **given)
    assert without_times(again) == without_times(whole)


def test_benches_take_the_file_of_a_plan(here: Path) -> None:
    """It runs as it stands: with its steps, its end, its Gaussian, and for a fitted one with its weights."""
    field = odeddim.load("exact-mixture")
    Plan.of(field.schedule, "ab2", 4, "karras").save("named.json")
    odeddim.plan(field, "ab2", steps=4, grid="karras", top="gaussian:20").save("top.json")
    odeddim.fit(field, 3, count=8, shape=SIZE).plan.save("fitted.json")
    table = jobs.bench.reconstruction(Workbench(field, folder="a"), torch.zeros(2, *SIZE), steps=[9],
                                      solvers=["ab2@karras", "named.json"])  # fmt: skip
    named, filed = [row for row in table.rows if row["solver"] == "ab2"]
    assert (named["steps"], filed["steps"]) == (9, 4)
    again = jobs.bench.reconstruction(Workbench(field, folder="b"), torch.zeros(2, *SIZE), steps=[4],
                                      solvers=["ab2@karras"])  # fmt: skip
    assert {k: v for k, v in again.rows[0].items() if k not in TIMES} == {
        k: v for k, v in filed.items() if k not in TIMES
    }
    table = jobs.bench.consistency(Workbench(field, folder="c"), count=2, solvers=["top.json", "fitted.json"],
                                   steps=[9], size=SIZE)  # fmt: skip
    rows = {(row["solver"], row["grid"]): row for row in table.rows}
    assert rows["ab2", "karras +gaussian"]["steps"] == 4
    assert rows["fitted", "fitted +gaussian"]["steps"] == 3
    with pytest.raises(InputError, match=r"the plan of ab2 goes from the end 'zero' to σ = 157.407, and this table"):
        jobs.bench.consistency(Workbench(field, folder="d"), count=2, solvers=["top.json"], end="sigma_min", size=SIZE)
    with pytest.raises(InputError, match=r"gone.json cannot be read"):
        jobs.bench.consistency(Workbench(field, folder="d"), count=2, solvers=["gone.json"], size=SIZE)
