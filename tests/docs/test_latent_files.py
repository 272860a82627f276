"""The layout of a latent file is the table of docs/latent-files.md: h5py alone reads what stands there."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import pytest
from pages import ROOT

from odeddim import jobs

PAGE = (ROOT / "docs" / "latent-files.md").read_text(encoding="utf-8")
KINDS = {"float32": "f", "float64": "f", "uint32": "u", "number": "if", "bool": "b", "UTF-8": "S", "JSON": "S"}
REPORTED: dict[str, set[str]] = {
    "belm": set(),
    "tsit5-per-image": {"evaluations", "accepted", "rejected"},
    "exact-euler": {"evaluations", "residual", "converged"},
}
"""What these solvers report of each image; the table names all of it."""


def rows_of(section: str) -> dict[str, tuple[str, str, str]]:
    """The table: the name of a dataset or group -> its shape, the kinds of its dtypes, and its content in words."""
    rows = {}
    for line in re.findall(r"^\| (`.*) \|$", section, re.MULTILINE):
        names, shape, dtypes, content = line.split(" | ")
        kinds = "".join(KINDS[dtype] for dtype in dtypes.split(", ") if dtype in KINDS)
        rows[re.findall(r"`([a-z0-9]+)", names)[0]] = shape, kinds, content
    return rows


@pytest.mark.parametrize("solver", REPORTED)
def test_the_layout_of_a_latent_file_is_the_table(solver: str, tmp_path: Path) -> None:
    """Every dataset of a file is in the table, with its shape, dtype and attributes."""
    how = {} if solver == "tsit5-per-image" else {"steps": 4}
    jobs.encode(None, tmp_path / "z.h5", model="exact-samples", count=3, solver=solver, certify=True, **how)
    section = PAGE.partition("\n## Layout\n")[2].partition("\n## ")[0]
    rows = rows_of(section)
    with h5py.File(tmp_path / "z.h5") as file:
        shapes = {
            "(N, C, H, W)": (3, 1, 28, 28), "as `xbar`": (3, 1, 28, 28), "(N,)": (3,), "()": (),
            "(S+1,)": (3,) if solver == "tsit5-per-image" else (5,),
        }  # fmt: skip
        assert set(file) <= set(rows)
        assert set(file) >= {"xbar", "names", "nodes", "crc32", "provenance", "certificate"}
        for name, item in file.items():
            shape, kinds, content = rows[name]
            for each in item.values() if isinstance(item, h5py.Group) else [item]:
                assert each.shape == shapes[shape], name
                assert each.dtype.kind in (kinds or rows["xbar"][1]), name
            assert all(f"`{attribute}`" in content for attribute in item.attrs), (name, set(item.attrs))
        for part in file.get("aux", {}).values():
            assert dict(part.attrs) == dict(file["xbar"].attrs)
        assert all(f"`{attribute}`" in section for attribute in file.attrs)
        reported = set(file.get("report", ()))
        assert reported == REPORTED[solver]
        assert all(f"`{name}`" in rows["report"][2] for name in reported)
