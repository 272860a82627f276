"""Only what is really a damaged file is called one: mistakes of the program are told as they are."""

from __future__ import annotations

import types
from pathlib import Path

import h5py
import numpy as np
import pytest

from odeddim.storage import row_files as rows
from odeddim.storage.errors import read_errors
from odeddim.storage.hdf5 import opened
from odeddim.types import InputError


def planted(source: str, module: str = "odeddim.planted") -> types.FunctionType:
    """A function of one line that belongs to a module."""
    return types.FunctionType(compile(source, module, "exec"), {"__name__": module, "np": np})


def test_a_mistake_in_the_middle_of_reading_is_no_damage(
    run,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
) -> None:
    run("encode", "-n", 2, "-o", "z.h5", "--model", "exact-mixture", "--steps", 2)
    monkeypatch.setattr(rows, "CHUNK", None)  # range(0, count, None)
    with pytest.raises(TypeError):
        rows.make_real([here / "z.h5"], here / "y.h5", None)


@pytest.mark.parametrize("source", ["1 + None", "None.shape", "nobody", "assert False"])
def test_mistakes_of_ours_are_not_the_files(tmp_path: Path, source: str) -> None:
    h5py.File(tmp_path / "x.h5", "w").close()
    for reading in (opened, read_errors):
        with pytest.raises((TypeError, AttributeError, NameError, AssertionError)), reading(tmp_path / "x.h5", "it"):
            planted(source)()


@pytest.mark.parametrize("source", ["{}['x']", "int('x')", "np.dtype('nothing')", "raise OSError('gone')"])
def test_what_a_file_does_not_hold_is_the_files(tmp_path: Path, source: str) -> None:
    h5py.File(tmp_path / "x.h5", "w").close()
    for reading in (opened, read_errors):
        with pytest.raises(InputError, match=r"x\.h5"), reading(tmp_path / "x.h5", "it"):
            planted(source, "numpy.planted" if "dtype" in source else "odeddim.planted")()
