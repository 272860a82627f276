"""Files from strangers, mutated at random: each is refused in one sentence or reads exactly what was written.

Never a traceback, never more than 200 MB, never a silent wrong answer. What is read, is read in a process of its own: a
crash or an endless loop of the HDF5 library must name the mutation, and not end pytest.

`pytest -s tests/test_fuzz.py` prints how many were refused and read, and what memory they took; FUZZ=10 tries ten times
as many.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import os
import pickle
import select
import shutil
import signal
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

from odeddim.analytic import Gaussian
from odeddim.field import VectorField
from odeddim.grids import grid
from odeddim.hdf5 import text
from odeddim.latents.store import LatentFile, LatentRun, provenance_of
from odeddim.parts import finish
from odeddim.rows import checksums, settings_of
from odeddim.schedule import Schedule
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
        made = provenance_of(
            field, solver=self.solver, grid="karras", nodes=NODES, made_by="encode", settings={}, dtype="float32"
        )
        names = [f"bild-{i}-ä" for i in range(self.count)]
        return LatentRun(path, names, made, NODES, overwrite=overwrite)

    def write(self, path: Path, batch: int = 2, most: int = 10**9) -> None:
        """Make the file, or as many batches of it as wanted."""
        with self.run(path) as run:
            for number, (start, stop) in enumerate(run.batches(batch)):
                if number == most:
                    break
                self.fill(run, start, stop)

    def fill(self, run: LatentRun, start: int, stop: int) -> None:
        """Write the latents start, ..., stop-1."""
        certificate = {"error": torch.arange(start, stop, dtype=torch.float64) / 7}
        run.write(start, stop, self.state(start, stop), certificate if self.told else None)


KINDS = {
    "plain": Kind(),
    "whole": Kind(count=6, aux=2, dtype=torch.float64, side=2, told=True),
    "long": Kind(count=130, side=2, told=True),
    "unfinished": Kind(count=9, aux=1, side=2, told=True),
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
    from odeddim.images import open_images

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
    """The most memory that this process has held, in kB. On Linux not by getrusage: there a child begins with what its
    parent held."""
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

    import odeddim.images
    import odeddim.models  # noqa: F401 - the baseline has everything loaded

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
            root = Path(__file__).resolve().parent.parent
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


from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402 - the worker needs none of it
from hypothesis import strategies as st  # noqa: E402


def fuzz(count: int) -> settings:
    """So many files, the same in every run."""
    return settings(
        max_examples=count * TIMES,
        derandomize=True,
        database=None,
        deadline=None,
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


_CHANGES = ("flip", "flip", "write", "zeros", "ones", "truncate", "insert", "delete", "swap", "double", "splice", "tail")
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
    """Rows that are right, in a chunk that is larger than all of them, packed."""
    content = file[name][()]
    if content.ndim:
        shape = (1 << 28 >> 3, *content.shape[1:])
        again(file, name, content.shape, content.dtype, maxshape=(None, *content.shape[1:]), chunks=shape[:1] + content.shape[1:] if content.ndim == 1 else (1 << 20, *content.shape[1:]), shuffle=True, compression="gzip")[...] = content


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
    again(file, name, data=file[name][()])


def retyped(dtype: Any) -> Change:
    def change(file: h5py.File, name: str) -> None:
        content = file[name][()]
        again(file, name, data=content.astype(dtype) if np.asarray(content).dtype.kind in "iuf" else np.zeros(3, dtype))

    return change


def nothing_left(file: h5py.File, name: str) -> None:
    again(file, name, (0, *file[name].shape[1:]), file[name].dtype)


def one_less(file: h5py.File, name: str) -> None:
    content = file[name][()]
    again(file, name, data=content[:-1] if content.ndim else content)


def backwards(file: h5py.File, name: str) -> None:
    content = file[name][()]
    again(file, name, data=content[::-1] if content.ndim else content)


def not_numbers(file: h5py.File, name: str) -> None:
    content = np.array(file[name][()])
    if content.dtype.kind == "f":
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
    content = file[name][()]
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
            try:
                edit(file)
            except (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError):
                pass  # of changes that cannot be made one after the other


# The originals, and how answers are compared.


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("worker") / "stderr.txt")
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of each kind; of `unfinished` and `another` an index with four of five parts."""
    folder = tmp_path_factory.mktemp("valid")
    for name, kind in KINDS.items():
        path = folder / name / "z.h5"
        path.parent.mkdir()
        if name in ("unfinished", "another"):
            kind.write(path, most=4)
        else:
            kind.write(path, batch=64)
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
        wrong -= {"rows", "shape", "fingerprint"} | ({"names"} if knowing else set())
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

    @fuzz(500)
    @given(st.sampled_from(["plain", "whole", "long"]), st.lists(CHANGES, min_size=1, max_size=3))
    def attempt(kind: str, changes: list[Bytes]) -> None:
        tally.count += 1
        path = tmp_path / f"{tally.count}.h5"
        changed(valid / kind / "z.h5", changes, path, valid / "another" / "z.h5")
        compare(worker.ask("latents", path), right[kind])
        path.unlink()

    attempt()
    assert tally.count >= 500
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
