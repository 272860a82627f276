"""Work that others share: the bits, the order, the counts, the words and the errors of one process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from support import Told

import odeddim
from odeddim.jobs import Description, Machine
from odeddim.jobs.bench import Workbench, reconstruction
from odeddim.jobs.machine import Place
from odeddim.runs.engines import AHEAD, Gather, Member, Team, over
from odeddim.runs.processes import processes
from odeddim.runs.starting import begin
from odeddim.types import BudgetExceeded, InputError, State

MIXTURE: dict[str, Any] = {"model": "exact-mixture", "steps": 3}


class Rising:
    """Work whose result says which rows and pixels it got."""

    def __init__(self, wrong: int = -1, error: BaseException | None = None) -> None:
        self.model = odeddim.load("exact-mixture")
        self.wrong, self.error = wrong, error

    def __call__(self, start: int, stop: int, given: str) -> str:
        if start == self.wrong:
            if self.error is None:
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                raise self.error
        self.model.rows += stop - start
        if start == 4:
            warnings.warn("four is even", stacklevel=1)
        return f"{given} {start}:{stop}"


class Backwards:
    """A team in this process whose last result comes first."""

    def __init__(self, packed: bytes, size: int) -> None:
        self.size, self.members = size, [Member(packed, 1) for _ in range(size)]
        self.came: list[tuple[int, bytes]] = []
        self.most = 0

    def free(self) -> bool:
        return len(self.came) < self.size

    def send(self, number: int, packed: bytes) -> None:
        self.came.append((number, self.members[number % self.size](packed)))
        self.most = max(self.most, number)

    def take(self) -> tuple[int, bytes]:
        return self.came.pop()


def backwards(size: int) -> Gather:
    @contextlib.contextmanager
    def gather(packed: bytes, threads: int) -> Iterator[Team]:
        yield Backwards(packed, size)

    return gather


def batches(count: int) -> Iterator[tuple[tuple[int, int], str]]:
    for i in range(count):
        yield (2 * i, 2 * i + 2), f"pixels {i}"


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_team_is_as_one_process(size: int) -> None:
    """Whatever comes back first, results, counts and warnings are those of one process, in its order."""
    alone, shared = Rising(), Rising()
    with pytest.warns(UserWarning, match="four is even") as said:
        wanted = list(over(alone, batches(11)))
    with pytest.warns(UserWarning, match="four is even") as again:
        assert list(over(shared, batches(11), backwards(size))) == wanted
    assert len(said) == len(again) == 1
    assert shared.model.rows == alone.model.rows == 22


@pytest.mark.filterwarnings("ignore:four is even")
def test_little_is_handed_out_ahead() -> None:
    """Images that are read wait in memory: no more of them than keep all busy."""
    read = 0

    def reading() -> Iterator[tuple[tuple[int, int], str]]:
        nonlocal read
        for batch in batches(100):
            read += 1
            yield batch

    with contextlib.closing(over(Rising(), reading(), backwards(2))) as found:
        for i in range(20):
            next(found)
            assert read <= i + 1 + AHEAD * 2


STATE = State(torch.ones(1, 2), 3.0)


@pytest.mark.parametrize("error", [InputError("no σ"), BudgetExceeded("too many", STATE, 7), RuntimeError("memory")])
def test_an_error_of_a_member_is_raised_here_in_its_place(error: Exception) -> None:
    found = over(Rising(6, error), batches(9), backwards(2))
    with pytest.warns(UserWarning, match="four"):
        assert [span for span, _ in (next(found), next(found), next(found))] == [(0, 2), (2, 4), (4, 6)]
    with pytest.raises(type(error), match=str(error)) as caught:
        next(found)
    if isinstance(caught.value, BudgetExceeded):
        assert (caught.value.state, caught.value.nfe) == (STATE, 7)


def test_what_cannot_be_sent_is_one_sentence() -> None:
    work = Rising()
    work.model.eps = lambda x, t: x
    with pytest.raises(InputError, match="network of the model 'exact-mixture' cannot be pickled"):
        next(over(work, batches(1), backwards(2)))


def faults() -> int:
    """The page faults of this process while tensors come and go."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        parts = [torch.ones(2**20) for _ in range(4)]
        del parts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


class Looking:
    """Work that says where it is done."""

    def __init__(self) -> None:
        self.model = odeddim.load("exact-mixture")

    def __call__(self, start: int, stop: int, given: str) -> tuple[str | None, str, bool, bool, bool]:
        time.sleep(0.2)  # so that none takes all of it
        faults()
        deaf = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])  # as what it is a copy of
        gpus, met = os.environ["CUDA_VISIBLE_DEVICES"], torch.cuda.is_initialized()
        return os.environ.get("SAID"), gpus, deaf, met, faults() < 100


@pytest.mark.skipif(torch.cuda.is_available(), reason="it claims two GPUs, which would be asked for")
def test_a_process_sees_what_the_job_sees_and_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although what it is a copy of was started before. None has met a GPU yet, for then no copy could.

    And on a CPU each keeps the memory of its tensors.
    """
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    begin()
    for said, gpus in (("first", "0,1"), ("then", "5,7")):
        monkeypatch.setenv("SAID", said)
        found = {made for _, made in over(Looking(), batches(4), processes(2))}
        assert found == {(said, gpu, True, False, True) for gpu in gpus.split(",")}
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_fork_starts_fresh_interpreters() -> None:
    """The server is its parent's."""
    begin()
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    process = fork.Process(target=lambda: there.send(begin().get_start_method()))
    process.start()
    assert here.poll(20)
    assert here.recv() == "spawn"
    process.join()


class Mortal(torch.nn.Module):
    """A network that kills one of the processes that evaluate it."""

    def __init__(self, mark: Path) -> None:
        super().__init__()
        self.mark = mark

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if multiprocessing.parent_process() is not None:
            with contextlib.suppress(FileExistsError):
                self.mark.touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        return torch.tanh(x) / 3


def test_processes_encode_the_same_bits(tmp_path: Path) -> None:
    """The same file, although one of them is killed at its work; the display sees all images; nothing else is left."""
    told: list[float] = []
    for workers in (1, 2):
        model = odeddim.VectorField(
            Mortal(tmp_path / "mark"), odeddim.Schedule.linear(), shape=(1, 28, 28), name="mortal", sha256="0" * 64
        )
        words = "one of the 2 processes that share the work was ended by SIGKILL: another one takes its place"
        with pytest.warns(UserWarning, match=words) if workers > 1 else contextlib.nullcontext():
            made = odeddim.jobs.encode(
                None, tmp_path / f"{workers}.h5", count=40, machine=Machine(workers=workers, batch_size=8), model=model,
                solver="belm", steps=3, progress=lambda done, total: told.append(done),
            )  # fmt: skip
    assert told == [8, 16, 24, 32, 40] * 2
    assert "3 evaluations per image" in made.words
    assert content(tmp_path / "1.h5") == content(tmp_path / "2.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.h5", "2.h5", "mark"]


class Signing(torch.nn.Module):
    """A network that takes its time, and writes down which process evaluates it."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self.log = log

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        time.sleep(0.001)
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()}\n")
        return torch.tanh(x) / 3


def test_processes_measure_different_cells(tmp_path: Path) -> None:
    """Where a cell is one batch, the other one does not wait for it. Nothing is measured twice."""
    calls: list[Counter[str]] = []
    for workers in (1, 2):
        log = tmp_path / f"{workers}.txt"
        model = odeddim.VectorField(
            Signing(log), odeddim.Schedule.linear(), shape=(1, 28, 28), name="signing", sha256="1" * 64
        )
        bench = Workbench(model, Machine(workers=workers), tmp_path / str(workers))
        reconstruction(bench, count=4, solvers=["euler", "ab2", "ab3", "ab4"], steps=[40])
        calls.append(Counter(log.read_text().split()))
    (alone,), two = calls[0].values(), calls[1].values()
    assert alone == sum(two)
    assert len(two) == 2
    assert min(two) > 60  # of 320 after those of the true latents, which one process takes


def told() -> odeddim.VectorField:
    """A model of three classes."""
    return odeddim.VectorField.from_network(
        Told(), odeddim.Schedule.linear(), classes=3, null=3, name="told", shape=(1, 28, 28)
    )


@pytest.mark.parametrize("kind", ["e.h5", "e.png"])
@pytest.mark.parametrize(
    "to", [{"after": Description(2, guidance=2.0)}, {"to_each": [1, 2] * 128}], ids=["one class", "classes"]
)
def test_a_team_edits_the_same_bits(
    kind: str, to: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file, the same errors and the same counts, of both ways, of one process and of a team."""
    found: list[Any] = []
    for way, gather in (("1", None), ("2", backwards(2))):
        monkeypatch.setattr(Place, "_gather", lambda self, gather=gather: gather)
        model, path = told(), tmp_path / way / kind
        made = odeddim.jobs.edit(
            None, path, 0, model=model, count=20, machine=Machine(batch_size=8), solver="belm", steps=3, sigma=1.0, **to
        )
        assert len(made.errors) == len(made.changes) == 20
        written = content(path) if kind == "e.h5" else path.read_bytes()
        found.append((made.errors, made.changes, made.words.split("per image")[0].replace(str(path), ""), written))
    # 3 up, 2 back to the image, which begin with the last one's aux, and 3 down, twice with guidance
    assert f"{11 if 'after' in to else 8} evaluations" in found[0][2]
    assert found[0] == found[1]


def test_each_job_counts_its_own_evaluations(tmp_path: Path) -> None:
    """A field, and a target, that have made evaluations before; both keep their count of them."""
    model, other, how = odeddim.load("exact-mixture"), odeddim.load("exact-gaussian"), {"steps": 5, "solver": "ab2"}
    said: list[str] = []
    for k in range(2):
        here, jobs, few = tmp_path / str(k), odeddim.jobs, {"model": model, **how}
        jobs.encode(None, here / "z.h5", count=8, **few)
        made = [
            jobs.encode(None, here / "y.h5", count=8, tol=0.5, model=model).words,
            jobs.decode(here / "z.h5", here / "i.h5", **few).words,
            jobs.sample(8, here / "s.h5", shape=(1, 4, 4), **few).words,
            jobs.bridge(None, here / "b.h5", other, count=16, machine=Machine(batch_size=8), **few).words,
            jobs.explore(here / "z.h5", here / "e.html", corners=[0, 1, 2, 3], tiles=2, levels=2, **few).words,
        ]
        found = [re.findall("[^,]* evaluations per image[^,]*(?:, [^,]* more to fill batches)?", it) for it in made]
        said.append(str(found))
        odeddim.solve(odeddim.noise(2, (1, 4, 4)), model=other, steps=3)
        spent = other.nfe
    assert said[0].count("evaluations") == 5
    assert said[0] == said[1]
    assert spent == 6


def content(path: Path) -> dict[str, bytes]:
    """Every dataset of a file."""
    found: dict[str, bytes] = {}

    def take(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and name != "provenance":
            found[name] = np.asarray(item[()]).tobytes()

    with h5py.File(path) as file:
        file.visititems(take)
        found["provenance"] = file["provenance"][()].replace(str(path.parent).encode(), b"")
    return found


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"workers": 0}, "workers=0: give a whole number"),
        ({"workers": "all"}, "workers='all': give a whole number"),
        ({"engine": "slurm"}, "unknown engine 'slurm'"),
        ({"address": "here:1"}, "give engine='ray' too"),
    ],
)
def test_machines_that_are_none(how: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Machine(**how)


def test_jobs_that_are_not_shared_say_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the work of this job is not shared: leave out workers"):
        odeddim.jobs.moments(count=2, model="exact-mixture", machine=Machine(workers=2))
    with pytest.raises(InputError, match="engine='torchrun' needs torchrun"):
        odeddim.jobs.sample(1, tmp_path / "x", machine=Machine(engine="torchrun"), shape=(1, 4, 4), **MIXTURE)
    with pytest.raises(InputError, match="overwrite=True cannot be used with several"):
        reconstruction(Workbench("exact-mixture", Machine(workers=2), tmp_path, overwrite=True))


@pytest.mark.slow  # ten processes, each of which loads torch
def test_every_job_gives_the_same_bits(tmp_path: Path) -> None:
    jobs = odeddim.jobs
    for workers in (1, 2):
        here, machine = tmp_path / str(workers), Machine(workers=workers, batch_size=8)
        jobs.encode(None, here / "z.h5", count=40, tol=1e-2, certify=True, machine=machine, model="exact-mixture")
        jobs.encode(None, here / "t.h5", count=20, trajectory=here / "p.h5", machine=machine, **MIXTURE)
        jobs.decode(here / "z.h5", here / "i.h5", machine=machine, solver="ddpm", steps=4)
        jobs.decode(here / "z.h5", here / "out", machine=machine)
        jobs.sample(20, here / "s.h5", shape=(1, 6, 6), density=True, machine=machine, **(MIXTURE | {"steps": 6}))
        jobs.density(None, here / "d.h5", count=20, draws=1, machine=machine, **(MIXTURE | {"steps": 6}))
        shutil.copy(here / "t.h5", here / "v.h5")
        assert len(jobs.verify(here / "v.h5", machine=machine).figures["round_trip"]) == 20
        crossed = jobs.bridge(
            None, here / "x.h5", "exact-gaussian", count=20, machine=machine, overwrite=True, **MIXTURE
        )
        assert "12 evaluations per image" in crossed.words
        jobs.bridge(None, here / "x.png", "exact-gaussian", count=20, machine=machine, **MIXTURE)
        both = {"before": 0, "to_each": [1, 2] * 128, "sigma": 1.0}
        jobs.edit(None, here / "e.h5", model=told(), count=20, machine=machine, steps=3, **both)
        jobs.score(
            None, here / "c.h5", machine=machine, reference=jobs.Calibration(odeddim.open_images()[:40]), **MIXTURE
        )
        table = reconstruction(Workbench("exact-mixture", machine, here / "b"), count=20, solvers=["euler"], steps=[3])
        assert table.rows[0]["evaluations"] == 3
        (cell,) = (here / "b" / "cells").glob("reconstruction-*.h5")
        cell.rename(here / "cell.h5")
    for name in ("z", "t", "v", "x", "p", "i", "s", "d", "e", "c", "cell"):
        alone, shared = (content(tmp_path / way / f"{name}.h5") for way in "12")
        for timed in ("seconds", "crc32") if name == "cell" else ():
            del alone[timed], shared[timed]
        assert alone == shared, name
    assert (tmp_path / "1" / "x.png").read_bytes() == (tmp_path / "2" / "x.png").read_bytes()
    pictures = [sorted((tmp_path / way / "out").rglob("*.png")) for way in "12"]
    assert len(pictures[0]) == 40
    assert [path.read_bytes() for path in pictures[0]] == [path.read_bytes() for path in pictures[1]]


@pytest.mark.slow  # processes that load torch
@pytest.mark.filterwarnings("ignore:four is even")
def test_work_that_ends_its_processes_is_one_sentence() -> None:
    """What comes before it is done; one of them is replaced in vain."""
    done = []

    def run() -> None:
        for span, _ in over(Rising(6), batches(9), processes(2)):
            done.append(span)

    with (
        pytest.raises(InputError, match="2 of the processes that share the work were ended at the same images"),
        pytest.warns(UserWarning, match="was ended by SIGKILL: another one takes its place"),
    ):
        run()
    assert done == [(0, 2), (2, 4), (4, 6)]


COMMAND = (
    "-m", "odeddim", "encode", "-o", "z.h5", "-n", "192", "--workers", "2", "--batch-size", "4", "--model",
    "exact-mixture", "--solver", "rk4", "--steps", "300",
)  # fmt: skip


def members_of(process: int) -> list[int]:
    """The processes that another one has started, and those that these have."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError, ValueError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == process:
                found += [int(entry.name), *members_of(int(entry.name))]
    return found


def gone(members: list[int], seconds: float = 20) -> bool:
    """Whether processes end within some time."""
    until = time.monotonic() + seconds
    while any(Path(f"/proc/{member}").exists() for member in members):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.slow  # runs of several processes that are stopped
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="it looks for processes in /proc")
def test_a_run_that_is_stopped_ends_all_and_goes_on(tmp_path: Path) -> None:
    """By Ctrl-C, as a terminal sends it to all, by SIGTERM and by SIGKILL."""
    parts, interrupted = tmp_path / "z.h5.parts", "what was finished is safe, and the same command goes on from there"
    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        before = set(parts.glob("*-*.h5"))
        process = subprocess.Popen(
            [sys.executable, *COMMAND], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        while set(parts.glob("*-*.h5")) <= before:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        members = members_of(process.pid)
        assert len(members) >= 3  # the server too
        (os.killpg if how == signal.SIGINT else os.kill)(process.pid, how)
        _, err = process.communicate(timeout=60)
        if how == signal.SIGKILL:
            assert process.returncode == -how
        else:
            assert process.returncode == 130
            assert err.splitlines()[-1:] == [f"Error: interrupted; {interrupted}"]
            assert "Traceback" not in err
        assert gone(members)
    again = subprocess.run([sys.executable, *COMMAND], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "the rest was there already" in again.stdout
    odeddim.jobs.encode(None, tmp_path / "alone.h5", count=192, model="exact-mixture", solver="rk4", steps=300)
    assert content(tmp_path / "z.h5") == content(tmp_path / "alone.h5")
