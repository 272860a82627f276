"""Trajectory files: HDF5 with the points of runs, a row for each image.

    /xbar          (N, M, C, H, W) float32 or float64: x̄ at M noise levels
    /eps           like xbar: ε there
    /names         (N,) where each image comes from
    /crc32         (N,) the checksum of each row's bytes in all of these columns together
    /nodes         (M,) float64, the noise levels σ, in the order of the run
    /provenance    JSON: as in a latent file, and in `details` the plan of the run and which levels were asked for

The file is made as latent files are: rows that are done are shown, and a run that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from odeddim.latents.latent_file import MOST_ROW
from odeddim.latents.provenance import Provenance
from odeddim.plans import Plan
from odeddim.storage.atomic import check_place
from odeddim.storage.hdf5 import SUFFIXES, dataset, opened, text, words
from odeddim.storage.resumable import Run
from odeddim.storage.row_files import (
    Column,
    check_parts,
    is_index,
    look_at,
    read_rows,
    settings_of,
    text_column,
    width_of,
)
from odeddim.types import InputError

FORMAT, VERSION = "odeddim trajectories", 1
_POINTS = "trajectory"  # what the details say of them


class TrajectoryRun(Run):
    """The run that makes a trajectory file: `write` each batch of `batches`. See `odeddim.storage.resumable.Run`.

    Args:
        path: The file, NAME.h5.
        names: Where each image comes from, N names.
        provenance: How the run's result comes about.
        plan: The plan of the run.
        levels: The noise levels that are kept, in the order of the run.
        every: Whether these are all nodes of the run.
        overwrite: Whether to begin anew, whatever is at `path`.
        of_first: The provenance of only the first n images. With it, the run continues a file of these.

    Raises:
        InputError: If the file cannot be written to this place, or another file is there.
    """

    def __init__(
        self,
        path: Path,
        names: Sequence[str],
        provenance: Provenance,
        plan: Plan,
        levels: Sequence[float],
        *,
        every: bool,
        overwrite: bool = False,
        of_first: Callable[[int], Provenance] | None = None,
    ) -> None:
        check_place(path, suffixes=SUFFIXES)
        self._names, self._width, self._levels = names, width_of(names), np.array(levels, np.float64)
        its = {"plan": plan.to_dict(), "every": every, "levels": list(levels)}

        def settings(made: Provenance) -> dict[str, Any]:
            return asdict(replace(made, details={**made.details, _POINTS: its}))

        super().__init__(
            path, len(names), settings(provenance), self._write_head, overwrite=overwrite,
            of_first=None if of_first is None else lambda count: settings(of_first(count)),
        )  # fmt: skip

    def _write_head(self, file: h5py.File, notes: Mapping[str, Any]) -> None:
        file.attrs["format"], file.attrs["version"] = text(FORMAT), VERSION
        file.create_dataset("nodes", data=self._levels, chunks=self._levels.shape, fletcher32=True)

    @property
    def points(self) -> int:
        """The number of points of an image, M."""
        return len(self._levels)

    def write(self, start: int, stop: int, xbar: Tensor, eps: Tensor) -> None:
        """Write the points of images start, ..., stop-1.

        Args:
            start: The index of the first image.
            stop: The index after the last one.
            xbar: x̄, (M, stop-start, *).
            eps: ε, (M, stop-start, *).
        """
        check_row(xbar.shape[:1] + xbar.shape[2:], xbar.element_size(), str(self.output))
        columns = {"xbar": xbar, "eps": eps}
        arrays = {name: np.ascontiguousarray(values.cpu().numpy().swapaxes(0, 1)) for name, values in columns.items()}
        self.commit(start, stop, {**arrays, "names": text_column(self._names[start:stop], self._width)})


class TrajectoryFile:
    """A trajectory file, whose rows are read when they are needed; between reads it is closed.

    Args:
        path: The file.

    Attributes:
        path: The file.
        total: The number of images that the file will hold when its run is complete.
        model: The name of the model.
        made_by: The command of the run: "encode" or "decode".
        plan: The plan of the run.
        every: Whether all nodes of the run were kept.
        levels: The noise levels, (M,) float64, in the order of the run.
        count: The number of images that it holds.
        shape: The shape of x̄ of an image.
        dtype: "float32" or "float64".

    Raises:
        InputError: If the file cannot be read, is no trajectory file, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        with self._opened() as file:
            if "format" not in file.attrs or words(file.attrs["format"]) != FORMAT:
                raise InputError(
                    f"{path} is an HDF5 file, but holds no trajectories of odeddim: make one with `odeddim encode "
                    "--trajectory`"
                )
            if int(file.attrs["version"]) > VERSION:
                raise InputError(f"{path} was written by a newer odeddim: upgrade")
            stated = settings_of(file, path)
            its = stated.get("details", {}).get(_POINTS, {})
            self.total, self.model, self.made_by = int(stated["total"]), str(stated["model"]), str(stated["made_by"])
            self.plan, self.every = Plan.from_dict(its["plan"], str(path)), bool(its["every"])
            columns = look_at(file, path)
            if is_index(file):
                check_parts(file, path, stated)
            levels = dataset(file, "nodes", path)
            self.levels = torch.from_numpy(np.asarray(levels[:], np.float64))
            self._check(columns, its["levels"])
            self._columns = list(columns)
            self.count = columns["xbar"].shape[0]
            self.shape, self.dtype = columns["xbar"].shape[2:], str(columns["xbar"].dtype)

    def _check(self, columns: Mapping[str, Column], stated: Any) -> None:
        if sorted(columns) != ["crc32", "eps", "names", "xbar"]:
            raise InputError(f"{self.path} has other datasets than a trajectory file: make the file again")
        xbar = columns["xbar"]
        if self.levels.tolist() != stated or xbar.shape[1:2] != self.levels.shape:
            raise InputError(f"{self.path}: its noise levels do not fit its points: make the file again")
        if xbar.dtype not in (np.float32, np.float64) or columns["eps"] != xbar or len(xbar.shape) < 3:
            raise InputError(f"{self.path}: 'xbar' and 'eps' must be alike, float32 or float64: make the file again")
        check_row(xbar.shape[1:], xbar.dtype.itemsize, str(self.path))

    @contextmanager
    def _opened(self) -> Iterator[h5py.File]:
        with opened(self.path, "a trajectory file, as `odeddim encode --trajectory` writes") as file:
            yield file

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """x̄ and ε of images start, ..., stop-1, each (M, stop-start, *), compared with their checksums.

        Raises:
            InputError: If a row is damaged.
        """
        with self._opened() as file:
            rows = read_rows(file, self._columns, start, stop, self.path)
        xbar, eps = (torch.from_numpy(np.ascontiguousarray(rows[name].swapaxes(0, 1))) for name in ("xbar", "eps"))
        return xbar, eps

    def summary(self) -> dict[str, Any]:
        """A description of the file to read: values that JSON can hold."""
        amount: int | str = self.count if self.count == self.total else f"{self.count} of {self.total} so far"
        return {
            "trajectories": amount,
            "points": len(self.levels),
            "levels": self.levels.tolist(),
            "kept": "all nodes" if self.every else "some noise levels",
            "shape": list(self.shape),
            "dtype": self.dtype,
            "model": self.model,
            "made by": self.made_by,
            "plan": str(self.plan),
            "first names": self.names(0, min(self.count, 5)),
        }

    def names(self, start: int, stop: int) -> list[str]:
        """Where images start, ..., stop-1 come from."""
        with self._opened() as file:
            return [name.decode("utf-8", "replace") for name in file["names"][start:stop].tolist()]


def check_row(shape: Sequence[int], size: int, where: str) -> None:
    """Raise an InputError if the points of an image are too many for a row: shape (M, *), size of a number in bytes."""
    if size * int(np.prod(shape, dtype=object)) > MOST_ROW:
        raise InputError(f"{where}: {shape[0]} points of an image are more than 1 GiB: keep fewer, at=...")
