"""The README's examples run as they stand, and what it names exists."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import torch
from pages import run_in_order

from odeddim import jobs, solvers

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_read_in_five_minutes() -> None:
    assert len(README.splitlines()) <= 150


def test_the_examples_run_in_order(furnished: Callable[[str], Path], run: Run) -> None:
    names = {"images": torch.rand(2, 3, 32, 32) * 2 - 1}
    furnished(README)
    run_in_order(README, "README.md", run, names)


def test_the_figures_of_its_solvers_are_those_of_the_table() -> None:
    """Each "median (10% to 90%)" stands in benchmarks/defaults.csv, which a command measured, to two digits."""
    with open(ROOT / "benchmarks" / "defaults.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == "fashion-mnist"]
    known = {
        tuple(f"{float(row[f'{error}_{part}']):.2g}" for part in ("median", "p10", "p90"))
        for row in rows
        for error in ("latent", "round_trip", "decoded")
    }
    found = re.findall(r"([0-9.]+) \(([0-9.]+) to ([0-9.]+)\)", README.partition("## Which solver")[2])
    assert len(found) == 7
    for median, low, high in found:
        assert (median, low, high) in known


KINDS = {"float32": "f", "float64": "f", "uint32": "u", "number": "if", "bool": "b", "UTF-8": "S", "JSON": "S"}


@pytest.mark.parametrize("solver", ["belm", "tsit5-per-image", "exact-euler"])
def test_the_layout_of_a_latent_file_is_the_table(solver: str, tmp_path: Path) -> None:
    """Every dataset of a file is in the table, with its shape, dtype and attributes; h5py alone reads it."""
    how = {} if solver == "tsit5-per-image" else {"steps": 4}
    jobs.encode(None, tmp_path / "z.h5", model="exact-samples", count=3, solver=solver, certify=True, **how)
    table = README.partition("**A latent file**")[2].partition("\n## ")[0]
    rows = {}
    for line in re.findall(r"^\| (`.*) \|$", table, re.MULTILINE):
        names, shape, dtypes, content = line.split(" | ")
        found = (shape, "".join(KINDS[dtype] for dtype in dtypes.split(", ") if dtype in KINDS), content)
        rows[re.findall(r"`([a-z0-9]+)", names)[0]] = found
    with h5py.File(tmp_path / "z.h5") as file:
        shapes = {
            "(N, C, H, W)": (3, 1, 28, 28), "as `xbar`": (3, 1, 28, 28), "(N,)": (3,), "()": (),
            "(S+1,)": (3,) if solver == "tsit5-per-image" else (5,),
        }  # fmt: skip
        assert set(file) <= set(rows)
        assert set(file) >= {"xbar", "names", "nodes", "crc32", "provenance", "certificate"}
        for name, item in file.items():
            shape, kinds, content = rows[name]
            attributes = set(item.attrs)
            for each in item.values() if isinstance(item, h5py.Group) else [item]:
                assert each.shape == shapes[shape], name
                assert each.dtype.kind in (kinds or rows["xbar"][1]), name
            assert all(f"`{attribute}`" in content for attribute in attributes), (name, attributes)
        assert all(f"`{attribute}`" in table for attribute in file.attrs)


def test_the_solvers_it_names_exist() -> None:
    section = README.partition("## The solvers")[2].partition("## ")[0]
    named = set(re.findall(r"`([a-z][a-z0-9-]*)`", section)) - {"decode", "interpolate", "shift"}  # commands
    assert named <= set(solvers.names())
    assert {row.family for row in solvers.SOLVERS.values()} == {solvers.get(name).family for name in named}


def test_every_file_it_names_exists() -> None:
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)\)", README):
        assert (ROOT / target).exists(), target
