"""Arrays written to an NPZ file, uncompressed and block by block, so that memory does not grow with their size."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from odeddim.storage.atomic import replacing


class Blocks(NamedTuple):
    """An array as rows that come in blocks.

    Attributes:
        shape: The shape of the whole array.
        dtype: The type of its values.
        rows: The blocks, in order.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    rows: Iterable[np.ndarray[Any, Any]]

    @classmethod
    def whole(cls, array: np.ndarray[Any, Any]) -> Blocks:
        """An array in one block."""
        return cls(array.shape, array.dtype, [array])


def save_npz(path: Path, arrays: Mapping[str, Blocks], temporary: Path | None = None) -> None:
    """Write arrays to an NPZ file, in this order; the same arrays give the same bytes.

    Args:
        path: The file.
        arrays: The arrays by name.
        temporary: Where the file lies until it is whole; see `odeddim.storage.atomic.replacing`.

    Raises:
        InputError: The disk does not take the file.
    """
    with replacing(path, temporary) as place, zipfile.ZipFile(place, "w") as archive:
        for name, (shape, dtype, rows) in arrays.items():
            # A ZipInfo of a name alone has the same date always.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for block in rows:
                    file.write(np.ascontiguousarray(block, dtype).tobytes())
