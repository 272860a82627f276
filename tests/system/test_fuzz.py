"""Files from strangers, mutated at random: each is refused in one sentence or reads exactly what was written.

Never a traceback, never more than 200 MB, never a silent wrong answer. What is read, is read in a process of its own: a
crash or an endless loop of the HDF5 library must name the mutation, and not end pytest.

`pytest -s tests/system/test_fuzz.py` prints how many were refused and read, and what memory they took; FUZZ=10 tries
ten times as many.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import os
import pickle
import select
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from odeddim import solvers
from odeddim.latents.latent_file import LatentFile, LatentRun
from odeddim.latents.provenance import provenance_of
from odeddim.ode.analytic import Gaussian
from odeddim.ode.field import VectorField
from odeddim.ode.grids import grid
from odeddim.ode.schedule import Schedule
from odeddim.plans import Plan
from odeddim.storage.hdf5 import text
from odeddim.storage.resumable import finish
from odeddim.types import InputError, State

MOST = 200_000  # kB
PATIENCE = 20  # seconds for one file; one takes some 10 ms
TIMES = int(os.environ.get("FUZZ", "1"))

LINEAR = Schedule.linear()
NODES = grid("karras", LINEAR, 7)


# What is mutated: latents that can be made again, here and in the worker.


class Kind(NamedTuple):
    """Latents of a file: how many, and how much of everything."""

    count: int = 5
    aux: int = 0
    dtype: torch.dtype = torch.float32
    side: int = 4
    told: bool = False  # whether each has a report and a certificate
    solver: str = "ab2"

    def state(self, start: int, stop: int) -> State:
        """The latents start, ..., stop-1."""
        chance = torch.Generator().manual_seed(self.count + len(self.solver))
        shape = (self.count, 1, self.side, self.side)
        parts = [torch.randn(shape, generator=chance, dtype=self.dtype) * 157 for _ in range(1 + self.aux)]
        parts = [part[start:stop] for part in parts]
        report = {"evaluations": torch.arange(start, stop) * 3} if self.told else {}
        return State(parts[0], float(NODES[-1]), tuple(parts[1:]), "bdia on these" if self.aux else "", report)

    def run(self, path: Path, *, overwrite: bool = False) -> LatentRun:
        """The run that makes, or goes on making, their file."""
        field = VectorField(Gaussian().network(LINEAR), LINEAR, name="mine", sha256="ab12" * 16)
        plan = Plan(solvers.get(self.solver), NODES, "karras")
        made = provenance_of(field, plan, "encode", dtype="float32")
        names = [f"bild-{i}-ä" for i in range(self.count)]
        return LatentRun(path, names, made, NODES, overwrite=overwrite)

    def write(self, path: Path, batch: int = 2, stop_after: int | None = None) -> None:
        """Make the file, or the index and the parts of a run that was stopped after so many batches."""
        with contextlib.suppress(KeyboardInterrupt), self.run(path) as run:
            for number, (start, stop) in enumerate(run.batches(batch), 1):
                self.fill(run, start, stop)
                if number == stop_after:
                    raise KeyboardInterrupt

    def fill(self, run: LatentRun, start: int, stop: int) -> None:
        """Write the latents start, ..., stop-1."""
        certificate = {"error": torch.arange(start, stop, dtype=torch.float64) / 7}
        run.write(start, stop, self.state(start, stop), certificate if self.told else None)


KINDS = {
    "plain": Kind(),
    "whole": Kind(count=6, aux=2, dtype=torch.float64, side=2, told=True),
    "long": Kind(count=130, side=2, told=True),
    "unfinished": Kind(count=9, aux=1, side=2, told=True),
    "stopped": Kind(count=9, aux=1, side=2, told=True),
    "another": Kind(count=9, aux=1, side=2, told=True, solver="rk4"),
}


# The worker: reads files for us. It answers each line {"do": ..., "path": ...} with a line of JSON.


def latents(path: Path) -> dict[str, Any]:
    """Everything that a latent file says, each part of it by itself: None where it is refused."""
    said: dict[str, Any] = {}
    with LatentFile(path) as file:

        def ask(what: str, read: Callable[[], Any]) -> None:
            try:
                said[what] = read()
            except InputError as error:
                said[what] = None
                said.setdefault("refused", sentence(error))

        ask("sigma", lambda: file.sigma.hex())
        ask("kept", lambda: file.kept)
        ask("total", lambda: file.total)
        ask("shape", lambda: [len(file), *file.shape, file.dtype, file.aux_count])
        ask("nodes", lambda: [node.hex() for node in file.nodes.tolist()])
        ask("provenance", lambda: json.loads(json.dumps(dataclasses.asdict(file.provenance))))
        ask("fingerprint", lambda: file.fingerprint)
        ask("names", lambda: file.names[:])
        for kind in ("report", "certificate"):
            ask(kind, lambda kind=kind: {key: repr(list(map(float, v))) for key, v in file.figures(kind).items()})  # type: ignore
        ask("index", lambda: file.is_index)
        ask("picked", lambda: seen(file.pick(len(file) - 1)))
        ask("state", lambda: seen(file.read(0, len(file))))
        rows: list[str] = []
        for start in range(0, len(file), 64):
            ask(f"rows {start}", lambda start=start: each(file.rows(start, min(start + 64, len(file)))))  # type: ignore
            rows += said[f"rows {start}"] or []
        said["rows"] = rows
    return said


def seen(state: State) -> str:
    """A hash of everything in a State."""
    parts = [state.xbar, *state.aux, *(values for _, values in sorted(state.report.items()))]
    content = repr([(str(part.dtype), tuple(part.shape)) for part in parts]).encode()
    content += b"".join(part.numpy().tobytes() for part in parts) + repr((state.sigma, state.kept)).encode()
    return hashlib.sha256(content + repr(sorted(state.report)).encode()).hexdigest()[:16]


def each(rows: Any) -> list[str]:
    """A hash for each row of all columns, whatever the width of the names' column."""
    names = sorted(set(rows) - {"crc32"})
    digests = []
    for i in range(len(rows["xbar"])):
        values = [(name, str(rows[name].dtype)[:1], bytes(rows[name][i]).rstrip(b"\0")) for name in names]
        digests.append(hashlib.sha256(repr(values).encode()).hexdigest()[:16])
    return digests


def resumed(path: Path) -> dict[str, Any]:
    """The unfinished run, taken up and finished: what its file then says."""
    with KINDS["unfinished"].run(path) as run:
        for start, stop in run.batches(2):
            KINDS["unfinished"].fill(run, start, stop)
    return latents(path)


def glanced(path: Path) -> dict[str, Any]:
    """The unfinished run, taken up and left again: what its index then says."""
    with KINDS["unfinished"].run(path):
        pass
    return latents(path)


def merged(path: Path) -> dict[str, Any]:
    """What is there of a run, made one file."""
    finish(path)
    return latents(path)


def pictures(path: Path) -> dict[str, Any]:
    """Images, as `encode` reads them."""
    from odeddim.storage.images import open_images

    source = open_images(path)
    names, x = list(source.names), source.read()
    assert x.dtype == torch.float32
    assert x.shape == (len(names), *source.shape)
    assert bool(((x >= -1) & (x <= 1)).all()), "images beyond [-1, 1]"
    source.fingerprint()
    return {"images": list(x.shape)}


def checkpoint(path: Path) -> dict[str, Any]:
    """A model, as every command loads it."""
    from odeddim.models import load

    field = load(path)
    return {"shape": field.shape, "sha256": field.sha256}


def sentence(error: InputError) -> str:
    """What an InputError says, which must be one line."""
    words = str(error)
    assert words.strip(), "nothing is said"
    assert len(words.splitlines()) == 1, f"more than one line: {words!r}"
    return words


def peak() -> int:
    """The most memory that this process has held, in kB.

    On Linux not by getrusage: there a child begins with what its parent held.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, ValueError, IndexError):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most // 1024 if sys.platform == "darwin" else most


def work() -> None:
    """Answer until nothing more is asked."""
    import resource
    import traceback

    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr
    began = 0
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if asked["do"] == "begin":
                began = peak()
                # Another process must not suffer for what is found here.
                held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (held + (6 << 30), resource.RLIM_INFINITY))
            else:
                answer["said"] = globals()[asked["do"]](Path(asked["path"]))
        except InputError as error:
            try:
                answer["refused"] = sentence(error)
            except AssertionError as problem:
                answer["broken"] = str(problem)
        except BaseException:
            answer["broken"] = traceback.format_exc()
        print(json.dumps({**answer, "grown": peak() - began}), file=answers, flush=True)


class Worker:
    """The process that reads, begun anew when it has died or grown. Keeps count of what became of the files."""

    def __init__(self, log: Path) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._log = log
        self.refused = self.read = self.grown = 0

    def ask(self, do: str, path: Path) -> dict[str, Any] | None:
        """What is said of a file, None if it is refused; an AssertionError for anything that must not happen."""
        answer = self._ask(do, path)
        if "broken" in answer or answer["grown"] > MOST:
            self.close()  # the next file is not to suffer for it
        assert "broken" not in answer, answer["broken"]
        assert answer["grown"] <= MOST, f"{answer['grown']} kB of memory"
        self.grown = max(self.grown, answer["grown"])
        refused = "refused" in answer or "refused" in answer["said"]
        self.refused, self.read = self.refused + refused, self.read + (not refused)
        return answer.get("said")

    def _ask(self, do: str, path: Path) -> dict[str, Any]:
        if self._process is None:
            root = Path(__file__).resolve().parent.parent.parent
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=open(self._log, "ab"),  # noqa: SIM115 - it is the child's
                cwd=root,
                env={**os.environ, "PYTHONPATH": str(root), "OMP_WAIT_POLICY": "PASSIVE"},
            )
            self._send("begin", path, 120)
        return self._send(do, path, PATIENCE)

    def _send(self, do: str, path: Path, patience: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with_patience = time.monotonic() + patience
        try:
            self._process.stdin.write(json.dumps({"do": do, "path": str(path)}).encode() + b"\n")
            self._process.stdin.flush()
            line = b""
            while not line.endswith(b"\n"):
                left = with_patience - time.monotonic()
                ready, _, _ = select.select([self._process.stdout], [], [], max(left, 0))
                assert ready, f"no answer within {patience} s"
                piece = os.read(self._process.stdout.fileno(), 1 << 20)
                assert piece, f"it died with {self._process.wait()} ({self._log})"
                line += piece
        except BaseException:
            self.close()
            raise
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


if __name__ == "__main__":
    work()
    sys.exit()


from hypothesis import HealthCheck, Phase, example, given, settings  # noqa: E402 - the worker needs none of it
from hypothesis import strategies as st  # noqa: E402


def fuzz(count: int) -> settings:
    """So many files, the same in every run."""
    return settings(
        max_examples=count * TIMES,
        derandomize=True,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )


# Mutations of bytes.


class Bytes(NamedTuple):
    """One change of a file's bytes: places and lengths are taken modulo what there is."""

    what: str
    at: int
    to: int
    length: int
    content: bytes

    def __call__(self, data: bytearray, other: bytes) -> None:
        at, to = self.at % (len(data) + 1), self.to % (len(data) + 1)
        stop = min(at + self.length, len(data))
        if self.what == "flip" and at < len(data):
            data[at] ^= 1 << self.length % 8
        elif self.what == "write":
            data[at : at + len(self.content)] = self.content
        elif self.what == "zeros":
            data[at:stop] = bytes(stop - at)
        elif self.what == "ones":
            data[at:stop] = b"\xff" * (stop - at)
        elif self.what == "truncate":
            del data[at:]
        elif self.what == "insert":
            data[at:at] = self.content
        elif self.what == "delete":
            del data[at:stop]
        elif self.what == "swap":
            length = min(self.length, abs(to - at), len(data) - max(at, to))
            data[at : at + length], data[to : to + length] = data[to : to + length], data[at : at + length]
        elif self.what == "double":
            data[to : to + stop - at] = data[at:stop]
        elif self.what == "splice":
            data[at:stop] = other[at:stop]
        elif self.what == "tail":
            data[at:] = other[at:]


_CHANGES = (
    "flip",
    "flip",
    "write",
    "zeros",
    "ones",
    "truncate",
    "insert",
    "delete",
    "swap",
    "double",
    "splice",
    "tail",
)
_PLACES = st.one_of(st.integers(0, 2047), st.integers(0, 1 << 17), st.integers(0, 1 << 12).map(lambda i: i * 64))
CHANGES = st.builds(
    Bytes,
    st.sampled_from(_CHANGES),
    _PLACES,
    _PLACES,
    st.one_of(st.integers(1, 16), st.integers(1, 2048)),
    st.binary(min_size=1, max_size=16),
)


def changed(source: Path, changes: list[Bytes], target: Path, other: Path | None = None) -> None:
    data = bytearray(source.read_bytes())
    for change in changes:
        change(data, (other or source).read_bytes())
    target.write_bytes(data)


# Mutations of what the file holds, by somebody who has the HDF5 library, which puts its own checksums right.

VALUES = st.one_of(
    st.none(),  # deleted
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=20).filter(lambda words: "\0" not in words),
    st.binary(min_size=1, max_size=20).map(np.void),
    st.sampled_from(
        [
            h5py.Empty("f8"),
            np.zeros((0, 3)),
            np.array([float(NODES[-1])]),
            np.arange(7000.0),
            np.array(b"x" * 60000),
            np.bool_(True),
            np.complex128(1j),
            np.array([b"a", b"b"]),
            np.zeros((), [("a", "f8"), ("b", "S3")]),
            float(np.nextafter(float(NODES[-1]), 0)),
            text("odeddim latents"),
            "reference",
        ]
    ),
)


def set_attribute(file: h5py.File, path: str, name: str, value: Any) -> None:
    attributes = file[path].attrs
    if value is None:
        attributes.pop(name, None)
        return
    attributes.pop(name, None)
    attributes[name] = file.ref if isinstance(value, str) and value == "reference" else value


ATTRIBUTES = ("format", "version", "unit", "sigma", "sha256", "kept", "else")

Change = Callable[[h5py.File, str], None]


def held(file: h5py.File, name: str) -> Any:
    """The data, unless a change before this one has made them huge, or sent the library round in circles."""
    if file[name].nbytes > 1 << 20 or file[name].is_virtual:
        raise ValueError
    return file[name][()]


def no_more(file: h5py.File, name: str) -> None:
    del file[name]


def again(file: h5py.File, name: str, *shape_dtype: Any, **more: Any) -> h5py.Dataset:
    """The dataset made anew, with the attributes that it had."""
    attributes = dict(file[name].attrs)
    del file[name]
    data = file.create_dataset(name, *shape_dtype, **more)
    for key, value in attributes.items():
        data.attrs[key] = value
    return data


def virtual(source: str) -> Change:
    """Rows that lie in a file of somebody else's choice."""

    def change(file: h5py.File, name: str) -> None:
        shape, dtype, attributes = file[name].shape, file[name].dtype, dict(file[name].attrs)
        layout = h5py.VirtualLayout(shape or (1,), dtype)
        layout[...] = h5py.VirtualSource(source, name, shape or (1,), dtype)
        del file[name]
        file.create_virtual_dataset(name, layout).attrs.update(attributes)

    return change


def huge(shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str) -> Change:
    return lambda file, name: again(file, name, shape, dtype, chunks=chunks) and None


def packed(filter_: dict[str, Any]) -> Change:
    """A bomb: 64 MB of zeros or more in a few kB."""

    def change(file: h5py.File, name: str) -> None:
        data = again(file, name, (1 << 23,), "f8", chunks=(1 << 23,), **filter_)
        data[:] = 0

    return change


def bomb(file: h5py.File, name: str) -> None:
    """Rows that are right, in a chunk of 512 MB that is larger than all of them, packed."""
    content = held(file, name)
    row = content.dtype.itemsize * int(np.prod(content.shape[1:]))
    chunks = ((1 << 29) // row, *content.shape[1:])
    again(file, name, content.shape, content.dtype, maxshape=(None, *chunks[1:]), chunks=chunks, compression="gzip")


def external(file: h5py.File, name: str) -> None:
    again(file, name, (5, 4), "f4", external=[("/etc/passwd", 0, 80)])


def as_group(file: h5py.File, name: str) -> None:
    del file[name]
    file.create_group(name)


def soft(file: h5py.File, name: str) -> None:
    file.move(name, "elsewhere")
    file[name] = h5py.SoftLink("/elsewhere")


def elsewhere(file: h5py.File, name: str) -> None:
    del file[name]
    file[name] = h5py.ExternalLink("another.h5", name)


def references(file: h5py.File, name: str) -> None:
    again(file, name, (file["crc32"].shape if "crc32" in file else (5,)), dtype=h5py.ref_dtype)[0] = file.ref


def variable(file: h5py.File, name: str) -> None:
    again(file, name, data=["a"] * 5, dtype=h5py.string_dtype())


def plain(file: h5py.File, name: str) -> None:
    """The same without chunks, and so without their checksums."""
    again(file, name, data=held(file, name))


def retyped(dtype: Any) -> Change:
    def change(file: h5py.File, name: str) -> None:
        content = held(file, name)
        again(file, name, data=np.zeros(np.shape(content), dtype))

    return change


def nothing_left(file: h5py.File, name: str) -> None:
    again(file, name, (0, *file[name].shape[1:]), file[name].dtype)


def one_less(file: h5py.File, name: str) -> None:
    content = held(file, name)
    again(file, name, data=content[:-1] if content.ndim else content)


def backwards(file: h5py.File, name: str) -> None:
    content = held(file, name)
    again(file, name, data=content[::-1] if content.ndim else content)


def not_numbers(file: h5py.File, name: str) -> None:
    content = np.array(held(file, name))
    if content.dtype.kind == "f" and content.size:
        content.flat[0] = np.nan
        again(file, name, data=content)


def column_more(file: h5py.File, name: str) -> None:
    file.create_dataset(f"report/{name.replace('/', '-')}", data=np.zeros(len(file["crc32"])))


def many_more(file: h5py.File, name: str) -> None:
    for i in range(300):
        file.create_dataset(f"aux/{i + 7}", data=np.zeros((5, 1, 4, 4), "f4"))


def deep(file: h5py.File, name: str) -> None:
    """Groups in groups: the library goes down by recursion, and its stack has an end."""
    group = file.id
    for _ in range(200):
        group = h5py.h5g.create(group, b"g")


def round_and_round(file: h5py.File, name: str) -> None:
    file["aux/again"] = file["/"]
    file["report/again"] = file["/"]


def twice(file: h5py.File, name: str) -> None:
    file[f"report/{name.replace('/', '-')}"] = file[name]


def strange_name(file: h5py.File, name: str) -> None:
    file.id.link(name.encode(), b"\xff\n\x1b[31m") if hasattr(file.id, "link") else None
    file["report/a\nb"] = file[name]


def named_type(file: h5py.File, name: str) -> None:
    del file[name]
    file[name] = np.dtype("f8")


def another_shape(file: h5py.File, name: str) -> None:
    content = held(file, name)
    again(file, name, data=content.reshape(-1))


STRUCTURES: dict[str, Change] = {
    "deleted": no_more,
    "10^12 rows": huge((10**12,), (1024,), "f8"),
    "4 GB each": huge((5, 1, 32768, 32768), (1, 1, 64, 64), "f4"),
    "10^12 names": huge((10**12,), (64,), "S16"),
    "names of 1 GB": huge((5,), (1,), "S1000000000"),
    "huge and not chunked": lambda file, name: again(file, name, (10**12,), "f8") and None,
    "gzip": packed({"compression": "gzip"}),
    "lzf": packed({"compression": "lzf"}),
    "shuffled gzip": packed({"compression": "gzip", "shuffle": True}),
    "scaled": packed({"scaleoffset": 2}),
    "chunk bomb": bomb,
    "external": external,
    "group": as_group,
    "soft link": soft,
    "external link": elsewhere,
    "virtual, itself": virtual("."),
    "virtual, another": virtual("../another.h5"),
    "virtual, up": virtual("z.h5.parts/../../another.h5"),
    "virtual, a pattern": virtual("z.h5.parts/%b.h5"),
    "virtual, a folder": virtual("z.h5.parts/.."),
    "references": references,
    "variable text": variable,
    "plain": plain,
    "float16": retyped("f2"),
    "float128": retyped(np.longdouble),
    "big-endian": retyped(">f8"),
    "int8": retyped("i1"),
    "complex": retyped("c16"),
    "compound": retyped([("a", "f8")]),
    "opaque": retyped("V8"),
    "no rows": nothing_left,
    "one less": one_less,
    "backwards": backwards,
    "NaN": not_numbers,
    "flat": another_shape,
    "a column more": column_more,
    "many more": many_more,
    "deep": deep,
    "in circles": round_and_round,
    "twice": twice,
    "strange name": strange_name,
    "a type": named_type,
}


class Structure(NamedTuple):
    """One change of what a file holds."""

    what: str
    name: int
    attribute: str
    value: Any

    def __call__(self, file: h5py.File) -> None:
        found: list[str] = []
        file.visititems(lambda name, item: found.append(name))
        if not found:
            return
        name = found[self.name % len(found)]
        if self.what == "attribute":
            set_attribute(file, ["/", *found][self.name % (len(found) + 1)], self.attribute, self.value)
        elif isinstance(file[name], h5py.Dataset) or self.what in ("deleted", "soft link", "external link"):
            STRUCTURES[self.what](file, name)


EDITS = st.one_of(
    st.builds(Structure, st.just("attribute"), st.integers(0, 20), st.sampled_from(ATTRIBUTES), VALUES),
    st.builds(Structure, st.sampled_from(sorted(STRUCTURES)), st.integers(0, 20), st.just(""), st.none()),
)


def edited(source: Path, edits: list[Structure], target: Path) -> None:
    shutil.copyfile(source, target)
    with h5py.File(target, "r+") as file:
        for edit in edits:
            # Some changes cannot be made one after the other.
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError):
                edit(file)


# The originals, and how answers are compared.


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("worker") / "stderr.txt")
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of each kind; of `unfinished` and `another` an index with four of five parts,
    of `stopped` with all of them."""
    folder = tmp_path_factory.mktemp("valid")
    for name, kind in KINDS.items():
        path = folder / name / "z.h5"
        path.parent.mkdir()
        if name in ("plain", "whole", "long"):
            kind.write(path, batch=64)
        else:
            kind.write(path, stop_after=5 if name == "stopped" else 4)
    return folder


@pytest.fixture(scope="module")
def right(valid: Path, worker: Worker) -> dict[str, dict[str, Any]]:
    """What the files say, unharmed."""
    said = {}
    for name, kind in KINDS.items():
        path = valid / name / "z.h5"
        answer = worker.ask("latents", path)
        assert answer is not None
        assert "refused" not in answer, answer
        with LatentFile(path) as file:
            assert torch.equal(file.read(0, len(file)).xbar, kind.state(0, len(file)).xbar)
        said[name] = answer
    return said


def compare(said: dict[str, Any] | None, expected: dict[str, Any], knowing: bool = False) -> None:
    """Every part of an answer is refused, or is what it was. knowing: HDF5's own checksums were put right."""
    if said is None:
        return
    wrong = {what for what, answer in said.items() if what in expected and answer not in (None, expected[what])}
    if said["state"] is None:  # whoever reads the rows is told
        wrong -= {"rows", "shape", "fingerprint"} | ({"names", "report", "certificate", "kept"} if knowing else set())
    assert not wrong, {what: (said[what], expected[what]) for what in wrong}


class Tally:
    """Says how a test went."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._refused, self._read = worker, worker.refused, worker.read
        self.count = 0

    def say(self, what: str) -> None:
        refused, read = self._worker.refused - self._refused, self._worker.read - self._read
        print(f"\n{what}: {self.count} mutations, {refused} refused, {read} read, {self._worker.grown / 1000:.0f} MB")


def test_mutated_bytes(tmp_path: Path, worker: Worker, valid: Path, right: dict[str, dict[str, Any]]) -> None:
    tally = Tally(worker)

    @fuzz(300)
    @given(st.sampled_from(["plain", "whole", "long"]), st.lists(CHANGES, min_size=1, max_size=3))
    def attempt(kind: str, changes: list[Bytes]) -> None:
        tally.count += 1
        path = tmp_path / f"{tally.count}.h5"
        changed(valid / kind / "z.h5", changes, path, valid / "another" / "z.h5")
        # Another file's bytes bring right checksums of their own, and that of a chunk of zeros is zero.
        right_sums = any(change.what in ("splice", "tail", "zeros") for change in changes)
        compare(worker.ask("latents", path), right[kind], knowing=right_sums)
        path.unlink()

    attempt()
    assert tally.count >= 300
    tally.say("bytes")


def test_mutated_structure(tmp_path: Path, worker: Worker, valid: Path, right: dict[str, dict[str, Any]]) -> None:
    tally = Tally(worker)

    @fuzz(300)
    @given(st.sampled_from(["plain", "whole"]), st.lists(EDITS, min_size=1, max_size=2))
    def attempt(kind: str, edits: list[Structure]) -> None:
        tally.count += 1
        path = tmp_path / f"{tally.count}.h5"
        edited(valid / kind / "z.h5", edits, path)
        compare(worker.ask("latents", path), right[kind], knowing=True)
        path.unlink()

    attempt()
    assert tally.count >= 300
    tally.say("structure")


PART_CHANGES = ("bytes", "gone", "swapped", "another's", "run.json", "another's run.json", "index", "structure")


@pytest.mark.parametrize("do", ["latents", "glanced", "resumed", "merged"])
def test_mutated_parts(tmp_path: Path, worker: Worker, valid: Path, right: dict[str, dict[str, Any]], do: str) -> None:
    """An unfinished run, of which anything was changed: read, taken up, finished and merged."""
    tally = Tally(worker)
    begun = "stopped" if do == "merged" else "unfinished"
    KINDS["unfinished"].write(tmp_path / "whole.h5")
    whole = worker.ask("latents", tmp_path / "whole.h5")
    assert whole is not None
    expected = {"latents": right["unfinished"], "glanced": {}, "resumed": whole, "merged": whole}[do]
    shutil.copytree(valid / begun, tmp_path / "unharmed")
    compare(worker.ask(do, tmp_path / "unharmed" / "z.h5"), expected)
    small = st.integers(0, 3)

    @fuzz(60)
    @given(st.sampled_from(PART_CHANGES), small, small, st.lists(CHANGES, min_size=1, max_size=2), EDITS)
    def attempt(what: str, one: int, other: int, changes: list[Bytes], edit: Structure) -> None:
        tally.count += 1
        folder = tmp_path / str(tally.count)
        shutil.copytree(valid / begun, folder)
        parts, theirs = folder / "z.h5.parts", valid / "another" / "z.h5.parts"
        found = sorted(parts.glob("*-*.h5"))
        if what == "bytes":
            changed(found[one], changes, found[one], found[other])
        elif what == "gone":
            found[one].unlink()
        elif what == "swapped":
            found[one].rename(folder / "aside")
            found[other if other != one else (one + 1) % 4].rename(found[one])
            (folder / "aside").rename(found[other if other != one else (one + 1) % 4])
        elif what == "another's":
            shutil.copyfile(theirs / found[one].name, found[one])
        elif what == "run.json":
            changed(parts / "run.json", changes, parts / "run.json")
        elif what == "another's run.json":
            shutil.copyfile(theirs / "run.json", parts / "run.json")
        elif what == "index":
            changed(folder / "z.h5", changes, folder / "z.h5", valid / "another" / "z.h5")
        else:
            shutil.copyfile(found[one], folder / "aside")
            edited(folder / "aside", [edit], found[one])
        said = worker.ask(do, folder / "z.h5")
        if do == "glanced" and said is not None:  # of parts that are gone the index says nothing: the rest is right
            order = [right["unfinished"]["rows"].index(row) for row in said["rows"]]
            assert order == sorted(order)
            kept = ("sigma", "kept", "total", "nodes", "provenance", "index")
            compare(said, {what: right["unfinished"][what] for what in kept}, knowing=True)
        else:
            compare(said, expected, knowing=True)
        shutil.rmtree(folder)

    attempt()
    tally.say(f"parts, {do}")


# Images.


def picture_files(folder: Path) -> dict[str, Path]:
    """One of each kind that `encode` reads."""
    x = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), np.uint8)
    floats = (x.astype("f4") / 127.5 - 1).astype("f4")
    np.savez(folder / "stored.npz", images=x)
    np.savez_compressed(folder / "packed.npz", images=floats)
    np.save(folder / "x.npy", floats)
    idx = b"\0\0\x08\x03" + struct.pack(">III", 6, 8, 8) + x.tobytes()
    (folder / "x-idx3-ubyte").write_bytes(idx)
    (folder / "x.idx.gz").write_bytes(gzip.compress(idx, mtime=0))
    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset("images", data=x, chunks=(2, 1, 8, 8), compression="gzip")
        file.create_dataset("names", data=np.array([b"a", b"b", b"c", b"d", b"e", b"f"]))
    Image.fromarray(x[0, 0]).save(folder / "x.png")
    Image.fromarray(np.repeat(x[0, 0][..., None], 3, 2)).save(folder / "x.jpg")
    return {path.name: path for path in sorted(folder.iterdir())}


def test_mutated_images(tmp_path: Path, worker: Worker) -> None:
    tally = Tally(worker)
    (tmp_path / "valid").mkdir()
    files = picture_files(tmp_path / "valid")
    for path in files.values():
        assert worker.ask("pictures", path) is not None, path
    begun = worker.refused + worker.read

    @fuzz(400)
    @given(st.sampled_from(sorted(files)), st.lists(CHANGES, min_size=1, max_size=2))
    def attempt(name: str, changes: list[Bytes]) -> None:
        tally.count += 1
        path = tmp_path / f"{tally.count}-{name}"
        changed(files[name], changes, path)
        worker.ask("pictures", path)
        path.unlink()

    attempt()
    assert worker.refused + worker.read - begun >= 400
    tally.say("images")


def lying_images(folder: Path) -> Iterator[Path]:
    """Files that declare more than they hold, or hold what could run code."""

    def made(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    def npy(header: str) -> bytes:
        line = header.encode().ljust(117) + b"\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(line)) + line

    for number, shape in enumerate(
        ["(1000000000000, 8, 8)", "(-1, 8, 8)", "(2, 100000, 100000, 3)", "(99,)", "(0, 8, 8)"]
    ):
        head = npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}")
        yield made(f"huge{number}.npy", head + bytes(64))
        with zipfile.ZipFile(folder / f"huge{number}.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("images.npy", head + bytes(64))
        yield folder / f"huge{number}.npz"
    objects = io.BytesIO()
    np.save(objects, np.array([[[Bomb(str(folder / "ran"))]]], dtype=object), allow_pickle=True)
    yield made("objects.npy", objects.getvalue())
    with zipfile.ZipFile(folder / "objects.npz", "w") as archive:
        archive.writestr("images.npy", objects.getvalue())
    yield folder / "objects.npz"
    yield made("huge.idx", b"\0\0\x08\x03" + struct.pack(">III", 2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(64))
    many = gzip.compress(b"\0\0\x08\x03" + struct.pack(">III", 2, 20000, 20000) + bytes(1 << 20))
    yield made("huge.idx.gz", many)
    with (
        zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("images.npy", "w", force_zip64=True) as file,
    ):
        file.write(npy("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 20000, 20000), }"))
        for _ in range(300):
            file.write(bytes(1 << 20))
    yield folder / "bomb.npz"
    for number, (shape, chunks) in enumerate([((10**12, 8, 8), (64, 8, 8)), ((5, 32768, 32768), (1, 64, 64))]):
        with h5py.File(folder / f"huge{number}.h5", "w") as file5:
            file5.create_dataset("images", shape, "u1", chunks=chunks)
        yield folder / f"huge{number}.h5"


def test_images_that_lie(tmp_path: Path, worker: Worker) -> None:
    for path in lying_images(tmp_path):
        assert worker.ask("pictures", path) is None, path
    assert not (tmp_path / "ran").exists()


# Models.


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return open, (self._path, "w")


ARCHITECTURE = {"in_channels": 1, "image_size": 8, "channels": 4, "multipliers": [1], "blocks": 1, "attention": [8]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, as `odeddim train` writes it."""
    from odeddim.models.formats import native
    from odeddim.models.networks.unet import UNet

    folder = tmp_path_factory.mktemp("model")
    save_file(UNet(**ARCHITECTURE).state_dict(), folder / native.WEIGHTS)  # type: ignore[arg-type]
    description = {"format": native.FORMAT, "version": native.VERSION, "architecture": ARCHITECTURE, "predicts": "eps"}
    (folder / native.CONFIG).write_text(json.dumps({**description, "schedule": LINEAR.to_dict()}))
    return folder


JSON = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({}),
    st.sampled_from([-1, 0, 2, 5, 10**6, 10**9, 10**12, 10**30, [10**9], [1] * 40, ["a"], {"a": 1}, "a\nb", 1e300]),
)  # fmt: skip
KEYS = [
    *(("architecture", key) for key in (*ARCHITECTURE, "dropout", "out_channels", "else")),
    *(("schedule", key) for key in ("name", "T", "beta_1", "beta_T", "else")),
    *((key,) for key in ("format", "version", "architecture", "schedule", "predicts", "training", "weights")),
]


def test_mutated_models(tmp_path: Path, worker: Worker, model: Path) -> None:
    tally = Tally(worker)
    assert worker.ask("checkpoint", model) is not None
    good = (model / "model.safetensors").read_bytes()
    length = int.from_bytes(good[:8], "little")
    header, weights = json.loads(good[8 : 8 + length]), good[8 + length :]
    names = sorted(set(header) - {"__metadata__"})
    described = json.loads((model / "model.json").read_text())

    @fuzz(200)
    @given(
        st.sampled_from(["weights", "header", "description", "description's bytes"]),
        st.lists(CHANGES, min_size=1, max_size=2),
        st.sampled_from(names),
        st.sampled_from(["dtype", "shape", "data_offsets"]),
        st.sampled_from(KEYS),
        st.one_of(
            JSON, st.lists(st.integers(0, 2**64), max_size=4), st.sampled_from(["F64", "F16", "BF16", "F8_E5M2"])
        ),
    )
    def attempt(what: str, changes: list[Bytes], name: str, field: str, keys: tuple[str, ...], value: Any) -> None:
        tally.count += 1
        folder = tmp_path / str(tally.count)
        shutil.copytree(model, folder)
        if what == "weights":
            changed(model / "model.safetensors", changes, folder / "model.safetensors")
        elif what == "header":
            head = json.dumps({**header, name: {**header[name], field: value}}).encode()
            (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + weights)
        elif what == "description":
            said = json.loads(json.dumps(described))
            (said if len(keys) == 1 else said[keys[0]])[keys[-1]] = value
            (folder / "model.json").write_text(json.dumps(said))
        else:
            changed(model / "model.json", changes, folder / "model.json")
        worker.ask("checkpoint", folder)
        shutil.rmtree(folder)

    attempt()
    assert tally.count >= 200
    tally.say("models")


def test_no_pickle_is_loaded(tmp_path: Path, worker: Worker, model: Path) -> None:
    ran = tmp_path / "ran"
    bomb = pickle.dumps({"weight": Bomb(str(ran))})
    pickle.loads(bomb)["weight"].close()
    assert ran.exists()  # it does go off
    ran.unlink()
    torch.save({"weight": Bomb(str(ran))}, tmp_path / "archive.pt")
    for content in (bomb, (tmp_path / "archive.pt").read_bytes()):
        for name in ("model.pt", "model.pth", "model.ckpt", "model.bin", "model.pkl"):
            (tmp_path / name).write_bytes(content)
            assert worker.ask("checkpoint", tmp_path / name) is None
        folder = tmp_path / "folder"
        shutil.copytree(model, folder, dirs_exist_ok=True)
        (folder / "model.safetensors").write_bytes(content)
        assert worker.ask("checkpoint", folder) is None
        assert worker.ask("checkpoint", folder / "model.safetensors") is None
        assert worker.ask("pictures", tmp_path / "model.pt") is None
        assert worker.ask("latents", tmp_path / "model.pt") is None
    assert not ran.exists()


# By somebody who puts our checksums right, too: whatever it says then, in one sentence and in little memory.


def test_sealed_provenance(tmp_path: Path, worker: Worker, valid: Path) -> None:
    tally = Tally(worker)
    with h5py.File(valid / "whole" / "z.h5") as file:
        stated = json.loads(file["provenance"][()])
    keys = [*((key,) for key in stated), *(("schedule", key) for key in ("name", "T", "beta_1", "alphas_cumprod"))]

    @fuzz(100)
    @example(("schedule", "T"), 10**8)
    @given(st.sampled_from(keys), JSON)
    def attempt(keys: tuple[str, ...], value: Any) -> None:
        tally.count += 1
        path = tmp_path / f"{tally.count}.h5"
        said = json.loads(json.dumps(stated))
        (said if len(keys) == 1 else said[keys[0]])[keys[-1]] = value
        words = json.dumps(said)
        shutil.copyfile(valid / "whole" / "z.h5", path)
        with h5py.File(path, "r+") as file:
            del file["provenance"]
            sha256 = hashlib.sha256(text(words).tobytes()).hexdigest()
            file.create_dataset("provenance", data=text(words)).attrs["sha256"] = text(sha256)
        worker.ask("latents", path)
        path.unlink()

    attempt()
    tally.say("sealed provenance")


# Depths and sizes that only exist on purpose.


def test_groups_in_groups_do_not_overflow_the_stack(tmp_path: Path, worker: Worker, valid: Path) -> None:
    path = tmp_path / "z.h5"
    shutil.copyfile(valid / "plain" / "z.h5", path)
    with h5py.File(path, "r+", libver="v110") as file:
        group = file.id
        for _ in range(60_000):
            group = h5py.h5g.create(group, b"g")
    assert worker.ask("latents", path) is None


def test_rows_that_are_only_declared(tmp_path: Path, worker: Worker, valid: Path) -> None:
    """All columns agree on 200 million rows, and hold five."""
    path = tmp_path / "z.h5"
    shutil.copyfile(valid / "plain" / "z.h5", path)
    with h5py.File(path, "r+", libver="v110") as file:
        for name in ("xbar", "names", "crc32"):
            shape = (200_000_000, *file[name].shape[1:])
            again(file, name, shape, file[name].dtype, chunks=(64, *shape[1:]), fletcher32=True)
    assert worker.ask("latents", path) is None


# The commands.


@pytest.mark.parametrize(
    "arguments",
    [
        ("decode", "z.h5", "-o", "out"),
        ("inspect", "z.h5"),
        ("merge", "z.h5", "-o", "merged.h5"),
        ("interpolate", "z.h5", "--pair", "0", "1", "-o", "path.h5"),
    ],
)
@pytest.mark.parametrize("damage", ["cut", "flipped", "huge", "another"])
def test_commands_say_it_in_one_line(
    tmp_path: Path, valid: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, arguments: tuple[str, ...], damage: str
) -> None:
    from odeddim.cli import main

    path, good = tmp_path / "z.h5", valid / "plain" / "z.h5"
    data = bytearray(good.read_bytes())
    with h5py.File(good) as file:
        at = file["xbar"].id.get_chunk_info(0).byte_offset
    if damage == "cut":
        path.write_bytes(data[:-100])
    elif damage == "flipped":
        data[at + 3] ^= 1
        path.write_bytes(data)
    elif damage == "huge":
        edited(good, [Structure("10^12 rows", 0, "", None)], path)
    else:
        with h5py.File(path, "w") as file:
            file["xbar"] = np.zeros((2, 1, 4, 4))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["odeddim", *arguments, *(["--model", "exact-gaussian"] if arguments[0] == "decode" else [])]
    )
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert stop.value.code == 2, (out, err)
    assert len(err.splitlines()) == 1, err
    assert "Traceback" not in err
