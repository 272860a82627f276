"""One thread and passive waiting: with two spinning threads beside another job, small tests take 20 times as long."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import math
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import hypothesis
import pytest
import torch

from odeddim.cli import main
from odeddim.models.programs import EXPORTS
from odeddim.types import Solver

torch.set_num_threads(1)
hypothesis.settings.register_profile("patient", deadline=None)  # how long an example takes says how busy the machine is
hypothesis.settings.load_profile("patient")

if not EXPORTS:

    def exported(*_: object, **__: object) -> NoReturn:
        pytest.skip("torch.export.save writes pickles before PyTorch 2.9, which are refused")

    torch.export.export = exported


SIBLINGS = {
    "dpm-solver-1", "deis-tab1", "deis-tab2", "deis-rhoab1", "deis-rhoab2", "plms", "unipc-1", "unipc-1-bh1",
    "unipc-2-bh1", "unipc-3-bh1", "midpoint", "heun2", "explicit-adams", "dopri8", "bosh3", "fehlberg2",
    "adaptive-heun", "mf-euler", "mf-dpm-solver-2", "mf-dpm-solver-3", "mf-dpmpp-2s", "mf-midpoint", "mf-heun3",
    "mf-rk4", "mf-tsit5", "mf-data-euler", "mf-data-rk4", "mf-data-tsit5", "mf-data-dopri5", "stork-4",
    "exact-heun", "exact-dpmpp-2m", "exact-ab2", "bosh3-per-image", "dopri5-per-image", "dpm-solver-23",
    "scipy-dop853", "scipy-lsoda", "scipy-bdf", "gauss-ab2", "unipc-3", "heun3", "er-sde-2", "res-2m",
}  # fmt: skip
"""Rows that run through the code of another row of the table, with other coefficients."""
ENOUGH = {
    ("test_order", "encode"), ("test_a_portable_run_is_the_run", None),
    ("test_every_row_runs_on_one_device_and_gives_the_same_bits", None),
}  # fmt: skip
"""Tests, and a direction, that siblings are left out of but for slow runs: the order of one direction shows that the
coefficients arrive."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what the inner loop leaves out: everything under tests/system, and the siblings of other rows.

    What is under tests/system comes first, and then the files with most tests: these take longest, and the last file
    leaves all workers but one idle.
    """
    tests = Counter(item.path for item in items)

    def folder_of(item: pytest.Item) -> str:
        return item.path.relative_to(Path(__file__).parent).parts[0]

    items.sort(key=lambda item: -math.inf if folder_of(item) == "system" else -tests[item.path])
    for item in items:
        folder = folder_of(item)
        if folder == "system":
            item.add_marker("system")
        given = getattr(item, "callspec", None)
        if folder in ("core", "solvers", "system") and given is not None:
            names = {
                getattr(value, "name", value) for value in given.params.values() if isinstance(value, (str, Solver))
            }
            if names & SIBLINGS:
                item.add_marker("sibling")
                if (getattr(item, "originalname", ""), given.params.get("direction")) in ENOUGH:
                    item.add_marker("slow")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command in this process (a second instead of three): (exit code, stdout, stderr)."""

    def call(*arguments: object, patience: float = 600.0) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["odeddim", *map(str, arguments)])
        # What it says must not depend on how busy we are.
        monkeypatch.setattr("odeddim.runs.progress.FIRST", 600.0)
        monkeypatch.setattr("odeddim.jobs.machine.PATIENCE", patience)
        # A process of its own would say each warning, and not only the first of its words.
        with warnings.catch_warnings(), pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        assert "Traceback" not in err
        return stop.value.code, out, err

    return call
