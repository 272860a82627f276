"""Processes of torchrun share a run by their ranks, where locks hold nobody off."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from odeddim.storage import outputs, resumable, workers
from odeddim.storage.outputs import Folder
from odeddim.storage.resumable import Run
from odeddim.types import InputError

ROOT = Path(__file__).resolve().parent.parent.parent
TOTAL = 100


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Lets what follows be a process of torchrun that never waits. POSIX locks hold no other run of a process off."""

    def call(here: int, ranks: int) -> None:
        monkeypatch.setattr(workers, "rank", lambda: (here, ranks))
        for module in (workers, resumable, outputs):
            for name in ("begin_together", "end_together"):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, lambda action: action() if here == 0 else None)

    return call


def rows(start: int, stop: int) -> dict[str, np.ndarray]:
    return {"row": np.arange(start, stop)}


@pytest.mark.parametrize("done", [(), ((0, 10), (33, 37), (64, 100))])
def test_each_row_is_made_once(
    tmp_path: Path, as_rank: Callable[[int, int], None], done: tuple[tuple[int, int], ...]
) -> None:
    """Three ranks that begin at different times, one after another: the rows of each follow from its rank alone."""
    if done:
        with Run(tmp_path / "z.h5", TOTAL, {}) as run:
            for start, stop in done:
                run.commit(start, stop, rows(start, stop))
    runs, made = [], []
    for here in range(3):
        as_rank(here, 3)
        runs.append(Run(tmp_path / "z.h5", TOTAL, {}))
    for run in reversed(runs[1:]):
        with run:
            for start, stop in run.batches(8):
                made += range(start, stop)
                run.commit(start, stop, rows(start, stop))
        assert (tmp_path / "z.h5.parts").is_dir()
    as_rank(0, 3)
    with runs[0] as run:
        for start, stop in run.batches(8):
            made += range(start, stop)
            run.commit(start, stop, rows(start, stop))
    before = [row for start, stop in done for row in range(start, stop)]
    assert sorted(made + before) == list(range(TOTAL))
    with h5py.File(tmp_path / "z.h5") as file:
        assert not file["row"].is_virtual
        assert file["row"][:].tolist() == list(range(TOTAL))
    assert [path.name for path in tmp_path.iterdir()] == ["z.h5"]


def test_a_folder_by_rank(tmp_path: Path, as_rank: Callable[[int, int], None]) -> None:
    folders = []
    for here in range(2):
        as_rank(here, 2)
        folders.append(Folder(tmp_path / "out", [f"{i}.png" for i in range(9)], {}))
    made = []
    for here in (1, 0):
        as_rank(here, 2)
        with folders[here] as run:
            for start, stop in run.batches(2):
                made.append((start, stop))
                run.write(start, stop, torch.zeros(stop - start, 1, 4, 4))
    assert made == [(2, 4), (6, 8), (0, 2), (4, 6), (8, 9)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(f"{i}.png" for i in range(9)),
        "odeddim.json",
    ]


def test_rows_that_never_show(
    tmp_path: Path, as_rank: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "LISTED", 0.0)
    as_rank(0, 2)
    run = Run(tmp_path / "z.h5", TOTAL, {})
    for start, stop in run.batches(8):
        run.commit(start, stop, rows(start, stop))
    with pytest.raises(InputError, match="only 52 of 100 rows are on this machine's disk"):
        run.__exit__(None)
    assert (tmp_path / "z.h5.parts").is_dir()


WITHOUT_LOCKS = (
    "import sys, odeddim.storage.workers as workers; workers.fcntl = None\n"
    "from odeddim.cli import main; sys.argv[0] = 'odeddim'; main()\n"
)


@pytest.mark.slow  # two agents and their processes
def test_two_agents_on_the_loopback(tmp_path: Path) -> None:
    """As on two nodes, and without locks: one file, the bits of one process; then one of them dies."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "one.py").write_text(WITHOUT_LOCKS)
    encode = ("encode", "-o", "z.h5", "-n", "40", "--batch-size", "4", "--model", "exact-mixture", "--steps", "3")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def agents(*arguments: str) -> list[subprocess.Popen[str]]:
        return [
            subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(node),
                 "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port), *arguments],
                cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for node in range(2)
        ]  # fmt: skip

    told = [agent.communicate(timeout=300)[0] for agent in agents("one.py", *encode, "--engine", "torchrun")]
    assert "40 latents at σ" in told[0], told
    assert "20 now" in told[0]
    alone = [word if word != "z.h5" else "alone.h5" for word in encode]
    subprocess.run([sys.executable, "one.py", *alone], cwd=tmp_path, env=environment, check=True)
    with h5py.File(tmp_path / "z.h5") as file, h5py.File(tmp_path / "alone.h5") as other:
        for name in ("xbar", "names", "crc32"):
            assert file[name][:].tobytes() == other[name][:].tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.h5", "one.py", "z.h5"]
