"""The README's examples run as they stand, and what it names exists."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from odeddim import solvers
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


def test_the_solvers_it_names_exist() -> None:
    section = README.partition("## The solvers")[2].partition("## ")[0]
    named = set(re.findall(r"`([a-z][a-z0-9-]*)`", section)) - {"decode", "interpolate", "shift"}  # commands
    assert named <= set(solvers.names())
    assert {row.family for row in solvers.SOLVERS.values()} == {solvers.get(name).family for name in named}


def test_every_file_it_names_exists() -> None:
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)\)", README):
        assert (ROOT / target).exists(), target
