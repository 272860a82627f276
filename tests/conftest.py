"""One thread and passive waiting: with two spinning threads beside another job, small tests take 20 times as long."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from odeddim.cli import main

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What lies under tests/system is marked so: `pytest -m "not system"` is the quick part."""
    for item in items:
        if "system" in item.path.relative_to(Path(__file__).parent).parts:
            item.add_marker("system")


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

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["odeddim", *map(str, arguments)])
        monkeypatch.setattr("odeddim.runs.progress.FIRST", 600.0)  # what it says must not depend on how busy we are
        # A process of its own would say each warning, and not only the first of its words.
        with warnings.catch_warnings(), pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        assert "Traceback" not in err
        return stop.value.code, out, err

    return call
