"""Latent files: HDF5 with the latents, their unit and noise level, and everything that decoding needs.

    /xbar          (N, C, H, W) float32 or float64; attributes `unit` and `sigma`. x̄ and not x: it is what the ODE
                   moves, so nothing is rounded on the way through the file. x_T = x̄/√(1+σ²) has unit variance.
    /aux/0, ...    like xbar: what a reversible solver keeps besides; the group's attribute `kept` says which solver's
    /report/...    (N,) each: evaluations per image and the like, of solvers that tell
    /crc32         (N,) uint32, of each latent's bytes in /xbar and /aux together: whether they still belong together
    /names         (N,) where each latent comes from
    /nodes         (S+1,) float64, the noise levels walked, rising; the first is where images lie
    /provenance    JSON: model and hash of its weights, schedule, prediction, solver and settings, grid, end, versions

Chunks of 64 images, no compression (noise does not compress), a checksum on every chunk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from odeddim.field import VectorField
from odeddim.files import check_place, plain_text
from odeddim.hdf5 import SUFFIXES, HDF5Writer, writing
from odeddim.schedule import Schedule
from odeddim.types import InputError, State

FORMAT, VERSION = "odeddim latents", 1
UNIT = "xbar = x/sqrt(alpha), alpha cumulative as in DDIM; x_T = xbar/sqrt(1+sigma^2) has unit variance"
CHUNK = 64
ENDS_BY_SIGMA = {0.0: "zero", 1.0: "sigma_min"}  # by σ over σ_1; "nodes": where a list of one's own begins
MOST_PROVENANCE = 4_000_000  # bytes; a schedule of 10,000 levels takes 0.2 MB


@dataclass(frozen=True)
class Provenance:
    """How latents came about, and so how to decode them. nodes: (S+1,) rising, as `odeddim.grid` makes them."""

    model: str
    sha256: str
    predicts: str
    schedule: dict[str, Any]
    solver: str
    grid: str
    end: str
    steps: int
    made_by: str  # "encode" or "interpolate"; of images "sample" or "decode"
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def check_model(self, model: VectorField, where: str) -> None:
        """Raise an InputError unless `model` is the one these latents belong to."""
        if model.sha256 != self.sha256 or (not self.sha256 and model.name != self.model):
            ours, theirs = _model_words(self.model, self.sha256), _model_words(model.name, model.sha256)
            raise InputError(f"{where} holds latents of the model {ours}, not of {theirs}: give that one with --model")
        if self.predicts != model.predicts or self.schedule != model.schedule.to_dict():
            raise InputError(f"{where} was made with another schedule or prediction type of the model {self.model!r}")


def provenance_of(
    model: VectorField, *, solver: str, grid: str, nodes: Tensor, made_by: str, settings: dict[str, Any], **details: Any
) -> Provenance:
    """The provenance of latents of this model that a run over these nodes makes."""
    import platform

    import odeddim

    versions = {"odeddim": odeddim.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return Provenance(
        model=model.name,
        sha256=model.sha256,
        predicts=model.predicts,
        schedule=model.schedule.to_dict(),
        solver=solver,
        grid=grid,
        end=ENDS_BY_SIGMA.get(float(nodes[0]) / model.schedule.sigma_min, "nodes"),
        steps=len(nodes) - 1,
        made_by=made_by,
        settings={key: value for key, value in settings.items() if value is not None},
        versions=versions,
        details=details,
    )


class LatentWriter:
    """Appends latents to a file under construction; see `write_latents`."""

    def __init__(self, file: HDF5Writer, count: int) -> None:
        self._file = file
        self._count = count
        self._next = 0

    def append(self, state: State, names: Sequence[str]) -> None:
        """Write the next latents: xbar (B, *) at the file's σ, and where each comes from."""
        if self._next == 0:
            self._create(state)
        stop = self._next + len(names)
        if state.xbar.shape[0] != len(names) or stop > self._count:
            raise ValueError(f"{state.xbar.shape[0]} latents with {len(names)} names do not fit the {self._count} rows")
        self._file["xbar"][self._next : stop] = state.xbar.cpu().numpy()
        for k, part in enumerate(state.aux):
            self._file[f"aux/{k}"][self._next : stop] = part.cpu().numpy()
        for key, values in state.report.items():
            self._file[f"report/{key}"][self._next : stop] = values.cpu().numpy()
        self._file["crc32"][self._next : stop] = _crc32([state.xbar, *state.aux])
        self._file["names"][self._next : stop] = [plain_text(name) for name in names]
        self._file.commit()
        self._next = stop

    def _create(self, state: State) -> None:
        shape, sigma = tuple(state.xbar.shape[1:]), state.sigma
        for name in ("xbar", *(f"aux/{k}" for k in range(len(state.aux)))):
            data = self._file.create_dataset(
                name,
                (self._count, *shape),
                dtype=str(state.xbar.dtype).removeprefix("torch."),
                chunks=(min(CHUNK, self._count), *shape),
                fletcher32=True,
                fillvalue=np.nan,  # a chunk that a damaged index no longer finds must not read as zeros
            )
            data.attrs["unit"], data.attrs["sigma"] = UNIT, sigma
        if state.aux:
            self._file["aux"].attrs["kept"] = state.kept
            self._file["aux"].attrs["sha256"] = _digest(state.kept)  # changed, it would only look like another method's
        for key, values in state.report.items():
            dtype = str(values.dtype).removeprefix("torch.")
            self._file.create_dataset(f"report/{key}", (self._count,), dtype=dtype, chunks=True, fletcher32=True)
        self._file.create_dataset("crc32", (self._count,), dtype=np.uint32)
        self._file.create_dataset("names", (self._count,), dtype=h5py.string_dtype())

    @property
    def complete(self) -> bool:
        """Whether every row has been written."""
        return self._next == self._count


@contextlib.contextmanager
def write_latents(path: Path, provenance: Provenance, nodes: Tensor, count: int) -> Iterator[LatentWriter]:
    """A writer for `count` latents; the file, NAME.h5, appears when all are written, and not before."""
    check_place(path, suffixes=SUFFIXES)
    with writing(path) as file:
        file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
        data = file.create_dataset("nodes", data=nodes.numpy(), chunks=nodes.shape, fletcher32=True)
        data.attrs["sha256"] = _digest(str(nodes.tolist()))
        text = json.dumps(asdict(provenance), indent=1, ensure_ascii=False)
        file.create_dataset("provenance", data=text).attrs["sha256"] = _digest(text)
        writer = LatentWriter(file, count)
        yield writer
        if not writer.complete:
            raise InputError(f"{path} was not written: its images ended early")


class LatentFile:
    """An open latent file, checked: rows are read as they are asked for. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not os.path.isfile(self.path):
            raise InputError(f"{path} does not exist or is no file: give a latent file, as `odeddim encode` writes")
        try:
            self._file = h5py.File(self.path, "r")
        except OSError:
            raise InputError(
                f"{path} is not a readable HDF5 file: it is damaged, cut short or something else"
            ) from None
        try:
            self._check()
        except InputError:
            self._file.close()
            raise
        except (KeyError, ValueError, TypeError, OSError, AttributeError, RuntimeError) as error:
            self._file.close()
            raise InputError(f"{path} is damaged: {_words(error)}") from None

    def _check(self) -> None:
        path, file = self.path, self._file
        if file.attrs.get("format") != FORMAT:
            raise InputError(f"{path} is an HDF5 file, but holds no odeddim latents: make one with `odeddim encode`")
        if int(file.attrs["version"]) > VERSION:
            raise InputError(f"{path} was written by a newer odeddim (file version {file.attrs['version']}): upgrade")
        self._xbar = _dataset(file, "xbar", path)
        if self._xbar.ndim < 2 or self._xbar.dtype not in (np.float32, np.float64):
            raise InputError(
                f"{path}: 'xbar' must be float32 or float64 (N, *), not {self._xbar.dtype} {self._xbar.shape}"
            )
        self.sigma = float(self._xbar.attrs["sigma"])
        group = file.get("aux")
        self._aux = [_dataset(file, f"aux/{k}", path) for k in range(len(group) if group is not None else 0)]
        self.kept = str(group.attrs["kept"]) if self._aux else ""
        if self._aux and _digest(self.kept) != group.attrs["sha256"]:
            raise InputError(f"{path}: what its auxiliary states belong to is damaged: its checksum does not fit")
        report = file.get("report")
        self._report = {key: _dataset(file, f"report/{key}", path) for key in (report if report is not None else ())}
        for key, values in self._report.items():
            if values.shape != (len(self._xbar),) or values.dtype.kind not in "ifb":
                raise InputError(
                    f"{path}: 'report/{key}' {values.dtype} {values.shape} does not belong to {len(self)} latents"
                )
        self._crc32 = _dataset(file, "crc32", path)
        self._names = _dataset(file, "names", path)
        for data in (*self._aux, self._crc32, self._names):
            if data.shape[0] != len(self._xbar) or (data in self._aux and data.shape != self._xbar.shape):
                raise InputError(f"{path}: '{data.name}' of shape {data.shape} does not belong to {len(self)} latents")
        nodes = _dataset(file, "nodes", path)
        if nodes.ndim != 1 or not 2 <= nodes.shape[0] <= 1_000_001:
            raise InputError(f"{path}: 'nodes' must be a row of 2 to 1,000,001 noise levels, not {nodes.shape}")
        from odeddim.grids import check_nodes

        self.nodes = check_nodes(torch.from_numpy(np.asarray(nodes[:], np.float64)), where=str(path))
        if _digest(str(self.nodes.tolist())) != nodes.attrs["sha256"]:
            raise InputError(f"{path}: its nodes are damaged or were edited: their checksum does not fit")
        if not math.isclose(self.sigma, float(self.nodes[-1]), rel_tol=1e-12):
            raise InputError(
                f"{path}: its latents lie at σ = {self.sigma}, but its grid ends at {float(self.nodes[-1])}"
            )
        text = _dataset(file, "provenance", path)
        if text.shape != () or text.id.get_storage_size() > MOST_PROVENANCE:
            raise InputError(f"{path}: 'provenance' is no JSON text of a sensible size")
        words = text.asstr()[()]
        if _digest(words) != text.attrs["sha256"]:  # HDF5 has no checksum for text
            raise InputError(f"{path}: its provenance is damaged or was edited: its checksum does not fit")
        stated = json.loads(words)
        known = {item.name for item in fields(Provenance)}
        self.provenance = Provenance(**{key: value for key, value in stated.items() if key in known})
        Schedule.from_dict(self.provenance.schedule)

    def __enter__(self) -> LatentFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return int(self._xbar.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one latent."""
        return tuple(int(size) for size in self._xbar.shape[1:])

    @property
    def dtype(self) -> str:
        """ "float32" or "float64"."""
        return str(self._xbar.dtype)

    @property
    def aux_count(self) -> int:
        """How many auxiliary states each latent has."""
        return len(self._aux)

    def read(self, start: int, stop: int) -> State:
        """Latents start, ..., stop-1 as a State, xbar (stop-start, *)."""
        try:
            parts = [torch.from_numpy(np.ascontiguousarray(data[start:stop])) for data in (self._xbar, *self._aux)]
            report = {key: torch.from_numpy(values[start:stop]) for key, values in self._report.items()}
            kept_together = np.array_equal(self._crc32[start:stop], _crc32(parts))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}: latents {start} to {stop - 1} cannot be read: {_words(error)}") from None
        for part in parts:
            if not bool(torch.isfinite(part).all()):
                raise InputError(f"{self.path}: latents {start} to {stop - 1} hold NaN or infinite values")
        if not kept_together:
            raise InputError(
                f"{self.path}: latents {start} to {stop - 1} were changed, or have lost what was kept with them"
            )
        return State(parts[0], self.sigma, tuple(parts[1:]), self.kept, report)

    def pick(self, index: int) -> State:
        """One latent, xbar (1, *)."""
        if not 0 <= index < len(self):
            raise InputError(f"{self.path} holds latents 0 to {len(self) - 1}: there is no {index}")
        return self.read(index, index + 1)

    def names(self, start: int, stop: int) -> list[str]:
        """Where latents start, ..., stop-1 come from."""
        try:
            return [str(name) for name in self._names.asstr()[start:stop]]
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}: names {start} to {stop - 1} cannot be read: {_words(error)}") from None


def _crc32(parts: Sequence[Tensor]) -> list[int]:
    """The checksum of each latent over all its parts, (B, *) each."""
    rows = zip(*(part.cpu().numpy() for part in parts), strict=True)
    return [zlib.crc32(b"".join(np.ascontiguousarray(part).tobytes() for part in row)) for row in rows]


def _dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    data = file.get(name)
    if not isinstance(data, h5py.Dataset):
        raise InputError(f"{path}: the dataset '{name}' is missing: it is damaged or was written by something else")
    return data


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _model_words(name: str, sha256: str) -> str:
    return f"{name!r} (weights {sha256[:12]})" if sha256 else repr(name)


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
