"""The README's examples run as they stand, and what it names exists."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import h5py
import pytest

from odeddim import jobs, solvers
from odeddim.cli import main

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


SMALL = ["--model", "exact-mixture", "--size", "1,8,8"]  # where the fine run that others are measured by takes long
BENCH = {  # in small: the commands are the same
    "reconstruction": ["-n", "2", "--steps", "5,10"],
    "quality": ["-n", "6", "--steps", "5"],
    "consistency": ["-n", "2", "--steps", "5,10", *SMALL],
    "time": ["--steps", "5,10", "--batches", "1", "--repeats", "1"],
    "interpolation": ["--pairs", "1", "--points", "5", "--side", "2", "--steps", "10"],
    "work-precision": ["-n", "2", *SMALL],
    "report": [],
}


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_examples_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every `odeddim` line of the console blocks, one after another in an empty folder; long runs in small."""
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks("console") for line in block.splitlines() if line.startswith("$ odeddim ")]
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words[1] == "bench":
            words += BENCH.get(words[2], BENCH["reconstruction"])
        elif words[1] in ("encode", "sample") and "-n" not in words:
            words += ["-n", "4"]  # fewer images: the command is the same
        if words[1] == "grid":
            words += ["-n", "2", "--steps", "4"]
        if words[1] == "train":
            continue  # tests/models/test_train.py trains
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 0, (line, capsys.readouterr().err)


def test_the_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks("python")
    assert found
    names: dict[str, object] = {}
    for block in found:
        exec(compile(block, "README.md", "exec"), names)


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
