"""Latent files: HDF5 with the latents, their unit and noise level, and everything that decoding needs.

    /xbar          (N, C, H, W) float32 or float64; attributes `unit` and `sigma`. It holds x̄ and not x, because the ODE
                   moves x̄, so that nothing is rounded in the file. x_T = x̄/√(1+σ²) has unit variance.
    /aux/0, ...    like xbar: the auxiliary states of a reversible solver, which the group's attribute `kept` names
    /report/...    (N,) each: figures that the solver reports of each image, such as evaluations
    /certificate/  (N,) each: how good each latent is, see `odeddim.checks.certificate`
    /names         (N,) where each latent comes from
    /crc32         (N,) the checksum of each row's bytes in all of these columns together
    /nodes         (S+1,) float64, the noise levels walked, rising; images lie at the first
    /provenance    JSON: model and hash of its weights, schedule, prediction, solver and settings, grid, end, versions

Datasets have chunks of 64 images, a checksum on every chunk, and no compression (noise does not compress). A file whose
rows are still being computed shows those that are done (see `odeddim.storage.resumable`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import h5py
import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from odeddim import solvers
from odeddim.latents.provenance import CONDITIONS, MADE_OF_OTHERS, WHICH, Provenance, digest, sha256_of
from odeddim.ode.conditions import Condition
from odeddim.ode.portable import MARGIN, uncertain
from odeddim.ode.schedule import Schedule
from odeddim.ode.tops import GAUSSIAN
from odeddim.plans import Plan
from odeddim.storage.atomic import check_place
from odeddim.storage.errors import short
from odeddim.storage.hdf5 import CHUNK, SUFFIXES, dataset, opened, text, words
from odeddim.storage.resumable import Run
from odeddim.storage.row_files import (
    OF_CERTIFICATES,
    Columns,
    check_parts,
    checksums,
    is_index,
    look_at,
    read_rows,
    settings_of,
    text_column,
    width_of,
)
from odeddim.storage.workers import cut
from odeddim.types import InputError, State

FORMAT, VERSION = "odeddim latents", 1
UNIT = "xbar = x/sqrt(alpha), alpha cumulative as in DDIM; x_T = xbar/sqrt(1+sigma^2) has unit variance"
MOST_ROW = 1 << 30  # the most bytes of one latent
NAMES = 4096  # names that are read together


class LatentRun(Run):
    """The run that makes a latent file: `write` each batch of `batches`. See `odeddim.storage.resumable.Run`.

    Args:
        path: The file, NAME.h5.
        names: Where each latent comes from, N names.
        provenance: How the latents came about.
        nodes: The nodes, (S+1,) float64, rising.
        overwrite: Whether to begin anew, whatever is at `path`.
        replace: Whether `path` is a latent file that stays as it is until the run is complete.
        of_first: The provenance of only the first n latents. With it, the run continues a file of these.

    Raises:
        InputError: If the file cannot be written to this place, or another file is there.
    """

    def __init__(
        self,
        path: Path,
        names: Sequence[str],
        provenance: Provenance,
        nodes: Tensor,
        *,
        overwrite: bool = False,
        replace: bool = False,
        of_first: Callable[[int], Provenance] | None = None,
    ) -> None:
        check_place(path, suffixes=SUFFIXES)
        self._names, self._width, self._nodes = names, width_of(names), nodes
        super().__init__(
            path, len(names), asdict(provenance), self._write_head, overwrite=overwrite, index=not replace,
            of_first=None if of_first is None else lambda count: asdict(of_first(count)),
        )  # fmt: skip

    def _write_head(self, file: h5py.File, notes: Mapping[str, Any]) -> None:
        file.attrs["format"], file.attrs["version"] = text(FORMAT), VERSION
        file.create_dataset("nodes", data=self._nodes.numpy(), chunks=self._nodes.shape, fletcher32=True)
        for name in ("xbar", *(f"aux/{k}" for k in range(len(file.get("aux", ()))))):
            file[name].attrs["unit"], file[name].attrs["sigma"] = text(UNIT), notes["sigma"]
        if "aux" in file:
            file["aux"].attrs["kept"] = text(notes["kept"])
            # Without this hash a changed attribute would go unnoticed: it would look like that of another solver.
            file["aux"].attrs["sha256"] = text(sha256_of(notes["kept"]))

    def write(self, start: int, stop: int, state: State, certificate: Mapping[str, Tensor] | None = None) -> None:
        """Write latents start, ..., stop-1.

        Args:
            start: The index of the first latent.
            stop: The index after the last one.
            state: The latents, xbar (stop-start, *), with their aux and report.
            certificate: Their certificate, (stop-start,) by name.
        """
        columns = {"xbar": state.xbar, **{f"aux/{k}": part for k, part in enumerate(state.aux)}}
        columns |= {f"report/{key}": values for key, values in state.report.items()}
        columns |= {f"certificate/{key}": values for key, values in (certificate or {}).items()}
        arrays = {name: values.cpu().numpy() for name, values in columns.items()}
        arrays["names"] = text_column(self._names[start:stop], self._width)
        notes = {"sigma": state.sigma, "kept": state.kept}
        self.commit(start, stop, arrays, **notes)


class Names(Sequence[str]):
    """The names in a file, read when they are needed."""

    def __init__(self, read: Callable[[int, int], np.ndarray[Any, Any]], count: int, path: Path) -> None:
        self._read, self._count, self._path = read, count, path

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"[{shown}, ...]" if len(self) > 3 else f"[{shown}]"

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), NAMES):
            yield from self[start : start + NAMES]

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, int):
            row = range(self._count)[i]
            return self[row : row + 1][0]
        start, stop, _ = i.indices(self._count)
        try:  # errors are not ignored: HDF5's checksum takes two bytes 0xff for two zeros
            return [name.decode() for name in self._read(start, max(start, stop)).tolist()]
        except UnicodeDecodeError as error:
            raise InputError(f"{self._path}: its names are damaged: make the file again") from error


class LatentFile:
    """An open latent file. It is checked when it is opened, and rows are read when they are needed.

    Use it as a context manager.

    Args:
        path: The file.

    Attributes:
        path: The file.
        total: The number of latents that the file will hold when its run is complete.
        provenance: How the latents came about.
        sigma: The noise level of the latents.
        kept: Which solver kept the auxiliary states, and on which nodes; "" without any.
        nodes: The nodes, (S+1,) float64, rising.

    Raises:
        InputError: If the file cannot be read, is no latent file, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._closing = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(opened(self.path, "a latent file, as `odeddim encode` writes"))
            self._check()
            self._closing = stack.pop_all()

    def _check(self) -> None:
        path, file = self.path, self._file
        if "format" not in file.attrs or words(file.attrs["format"]) != FORMAT:
            raise InputError(f"{path} is an HDF5 file, but holds no latents of odeddim: make one with `odeddim encode`")
        if int(file.attrs["version"]) > VERSION:
            raise InputError(f"{path} was written by a newer odeddim (file version {file.attrs['version']}): upgrade")
        stated = settings_of(file, path)
        self.total = int(stated["total"])
        details = stated.get("details", {})
        if not isinstance(details, dict):
            raise InputError(
                f"{path} is damaged: its details are {details!r:.50}, not settings by name: make the file again"
            )
        self._fingerprint = str(details.get("fingerprint", ""))
        # A certificate does not change the latents, nor what is made of them.
        details = {key: value for key, value in details.items() if key not in OF_CERTIFICATES}
        known = {item.name for item in fields(Provenance)}
        its_own = {key: value for key, value in stated.items() if key in known}
        try:
            self.provenance = Provenance(**{**its_own, "details": details})
        except TypeError as error:
            raise InputError(f"{path} is damaged ({short(error)}): make the file again") from error
        Schedule.from_dict(self.provenance.schedule)
        self._columns = look_at(file, path)
        if is_index(file):
            check_parts(file, path, stated)
        self._check_rows()
        self._check_nodes()

    def _check_rows(self) -> None:
        path, columns = self.path, self._columns
        for name in ("xbar", "names", "crc32"):
            if name not in columns:
                raise InputError(
                    f"{path} has no dataset '{name}', so it is damaged or no latent file: make the file again"
                )
        xbar = columns["xbar"]
        if len(xbar.shape) < 2 or xbar.dtype not in (np.float32, np.float64) or 0 in xbar.shape:
            raise InputError(f"{path}: 'xbar' must be float32 or float64 (N, *), not {xbar.dtype} {xbar.shape}")
        if xbar.dtype.itemsize * math.prod(xbar.shape[1:]) > MOST_ROW:
            raise InputError(
                f"{path}: a latent of shape {xbar.shape[1:]} is larger than odeddim can process: make the file again"
            )
        self.sigma = float(self._file["xbar"].attrs["sigma"])
        self._aux = [f"aux/{k}" for k in range(sum(name.startswith("aux/") for name in columns))]
        for name, column in columns.items():
            per_image = name in ("names", "crc32") or name.startswith(("report/", "certificate/"))
            fits = column.shape == xbar.shape[:1] and column.dtype.kind == {"names": "S", "crc32": "u"}.get(name, "")
            if per_image and name not in ("names", "crc32"):
                known = column.dtype.kind in "ifb" and column.dtype.itemsize <= 8 and column.dtype.isnative  # to torch
                fits = column.shape == xbar.shape[:1] and known
            if not per_image:
                fits = name in ("xbar", *self._aux) and (column.shape, column.dtype) == (xbar.shape, xbar.dtype)
            if not fits:
                raise InputError(
                    f"{path}: '{name}' of {column.dtype} {column.shape} does not belong to {len(self)} latents: "
                    "make the file again"
                )
        self.kept = words(self._file["aux"].attrs["kept"]) if self._aux else ""
        if self._aux and words(self._file["aux"].attrs["sha256"]) != sha256_of(self.kept):
            raise InputError(
                f"{path}: the checksum of 'kept', which says what its auxiliary states belong to, does not match: "
                "make the file again"
            )

    def _check_nodes(self) -> None:
        path = self.path
        nodes = dataset(self._file, "nodes", path)
        if nodes.ndim != 1 or not 2 <= nodes.shape[0] <= 1_000_001 or nodes.dtype != np.float64:
            raise InputError(f"{path}: 'nodes' must be a row of 2 to 1,000,001 noise levels, not {nodes.shape}")
        from odeddim.ode.grids import check_nodes

        self.nodes = check_nodes(torch.from_numpy(np.asarray(nodes[:])), where=str(path))
        if digest(self.nodes) != self.provenance.nodes:
            raise InputError(f"{path}: the checksum of its nodes does not match: make the file again")
        if not math.isclose(self.sigma, float(self.nodes[-1]), rel_tol=1e-12):
            raise InputError(
                f"{path}: its latents lie at σ = {self.sigma}, but its nodes end at {float(self.nodes[-1])}: "
                "make the file again"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. What was read stays valid."""
        self._closing.close()

    def __len__(self) -> int:
        return int(self._columns["xbar"].shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (C, H, W) of one latent."""
        return tuple(int(size) for size in self._columns["xbar"].shape[1:])

    @property
    def dtype(self) -> str:
        """The dtype of the latents: "float32" or "float64"."""
        return str(self._columns["xbar"].dtype)

    @cached_property
    def plan(self) -> Plan:
        """The plan that encoded the latents and decodes them."""
        made = self.provenance
        row, told = solvers.get(made.solver).with_settings(**made.settings), made.details
        return Plan(
            row, self.nodes, made.grid, made.end, carried=told.get("top") == GAUSSIAN, start=told.get("start", ""),
            portable=told.get("portable") is True,
        )  # fmt: skip

    @cached_property
    def noted(self) -> Plan | None:
        """The plan with the model in its notes, as a State has it; None if this version knows no such plan."""
        made = self.provenance
        try:
            beside = {key: made.details[key] for key in ("network_batch", "parallel") if made.details.get(key)}
            return self.plan.noted_of(made.model, made.sha256, Condition(**made.condition).words, **beside)
        except (InputError, AttributeError, TypeError, ValueError):  # whoever runs it is told
            return None

    @property
    def aux_count(self) -> int:
        """The number of auxiliary states of each latent."""
        return len(self._aux)

    @property
    def is_index(self) -> bool:
        """Whether the file is an index of rows in parts beside it, as it is while it is being made."""
        return is_index(self._file)

    @property
    def fingerprint(self) -> str:
        """A hash of the checksums of all latents, as they were before `odeddim verify` added certificates."""
        return self._fingerprint or self.fingerprint_of(len(self))

    def fingerprint_of(self, count: int) -> str:
        """The fingerprint that a file of only the first `count` latents has.

        Raises:
            InputError: If a row is damaged.
        """
        sums = self._column("crc32", 0, count)
        if self._fingerprint:  # the checksums cover certificates that were added
            for start, stop in cut([(0, count)], CHUNK):
                rows = self.rows(start, stop)
                sums[start:stop] = checksums({name: rows[name] for name in rows if not name.startswith("certificate/")})
        return hashlib.sha256(np.ascontiguousarray(sums).tobytes()).hexdigest()

    def rows(self, start: int, stop: int) -> Columns:
        """Rows start, ..., stop-1 of all columns as they are in the file. Each is checked against its checksum."""
        return read_rows(self._file, self._columns, start, stop, self.path)

    def read(self, start: int, stop: int) -> State:
        """Latents start, ..., stop-1.

        Returns:
            A State with xbar (stop-start, *).

        Raises:
            InputError: If a row does not match its checksum, or holds NaN or infinite values.
        """
        rows = self.rows(start, stop)
        parts = [torch.from_numpy(rows[name]) for name in ("xbar", *self._aux)]
        for part in parts:
            if not bool(torch.isfinite(part).all()):
                raise InputError(
                    f"{self.path}: latents {start} to {stop - 1} hold NaN or infinite values: make the file again"
                )
        report = {
            name.removeprefix("report/"): torch.from_numpy(values)
            for name, values in rows.items()
            if name.startswith("report/")
        }
        combined = self.provenance.made_by in MADE_OF_OTHERS
        return State(parts[0], self.sigma, tuple(parts[1:]), self.kept, report, combined, self.noted)

    def figures(self, kind: str = "certificate") -> dict[str, Tensor]:
        """The figures of each latent.

        Args:
            kind: "certificate" or "report".

        Returns:
            The figures, (N,) by name; empty if the file has none of this kind.
        """
        prefix = f"{kind}/"
        names = [name for name in self._columns if name.startswith(prefix)]
        return {name.removeprefix(prefix): torch.from_numpy(self._column(name, 0, len(self))) for name in names}

    def summary(self) -> dict[str, Any]:
        """A description of the file to read: values that JSON can hold. Means are those of the first 256 latents."""
        x = self.read(0, min(len(self), 256)).x.double()
        made = asdict(self.provenance)
        schedule = made.pop("schedule")
        if isinstance(each := made["details"].get(CONDITIONS), list):
            made["details"].pop(WHICH, None)
            made["details"][CONDITIONS] = f"{len(each)}, one for each latent (report/condition)"
        return {
            "latents": len(self) if len(self) == self.total else f"{len(self)} of {self.total} so far",
            "shape": list(self.shape),
            "dtype": self.dtype,
            "unit": UNIT,
            "sigma": self.sigma,
            "auxiliary states": f"{self.aux_count}, kept by {self.kept}" if self.kept else self.aux_count,
            **{
                f"{key} per image": f"{float(values.double().min()):g} to {float(values.double().max()):g}"
                for kind in ("report", "certificate")
                for key, values in self.figures(kind).items()
            },
            **({"portable": self._certified()} if self.plan.portable else {}),
            "mean of x_T": float(x.mean()),
            "variance of x_T": float(x.var()),
            **{key.replace("_", " "): value for key, value in made.items() if value not in ("", {})},
            "schedule": {
                key: value if not isinstance(value, list) else f"{len(value)} values" for key, value in schedule.items()
            },
            "nodes": self.nodes.tolist(),
            "first names": self.names[:5],
        }

    def _certified(self) -> str:
        """Which latents are certified to be the same bits on any machine."""
        margins = self.figures("report").get(MARGIN)
        if margins is None:
            return "not certified"
        others = uncertain(margins)
        return "certified" + (f", but for {', '.join(self.names[i] for i in others)}" if others else "")

    def __repr__(self) -> str:
        return f"<{len(self)} latents of {self.provenance.model} in {self.path}: {self.plan}>"

    def __getitem__(self, rows: int | slice) -> State:
        """Some of the latents as a State: by an index, from the end if negative, or by a slice.

        Raises:
            IndexError: If there is no latent with this index.
            InputError: If a row is damaged.
        """
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            whole = self.read(start, stop) if start < stop and step > 0 else self.read(0, 1)[:0]
            return whole if step == 1 else whole[::step]
        if not -len(self) <= rows < len(self):
            raise IndexError(f"{self.path} holds latents 0 to {len(self) - 1}: there is no latent {rows}")
        return self.pick(rows % len(self))

    @property
    def certificate(self) -> dict[str, Tensor]:
        """The certificate, (N,) by name (`odeddim.checks.certificate.CERTIFICATE`); empty if the file has none."""
        return self.figures("certificate")

    def pick(self, index: int) -> State:
        """One latent by its index, xbar (1, *).

        Raises:
            InputError: If there is no latent with this index, or its row is damaged.
        """
        if not 0 <= index < len(self):
            raise InputError(f"{self.path} holds latents 0 to {len(self) - 1}: there is no latent {index}")
        return self.read(index, index + 1)

    @property
    def names(self) -> Names:
        """Where each latent comes from: a sequence of N names, read when they are needed."""
        return Names(functools.partial(self._column, "names"), len(self), self.path)

    def _column(self, name: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Rows of one column, which are not checked against their checksums."""
        blocks = []
        try:
            for first in range(start, stop, CHUNK):  # the dataset is opened anew each time, see `read_rows`
                blocks.append(np.asarray(self._file[name][first : min(first + CHUNK, stop)]))
        except (KeyError, OSError, ValueError, RuntimeError) as error:
            raise InputError(f"{self.path}: '{name}' cannot be read: {short(error)}") from error
        return np.concatenate(blocks) if blocks else np.empty(0, self._columns[name].dtype)
