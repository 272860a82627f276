"""Options from a file, `--config run.toml`: as if they were typed, and what is typed wins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from odeddim import jobs
from odeddim.cli import group
from odeddim.latents.latent_file import LatentFile

Command = Callable[..., tuple[int, str, str]]
FILE = """
model = "exact-mixture"   # for every command that has it
network_batch = 4
seed = 3

[encode]
solver = "bdia"
steps = 3
count = 2
set = { gamma = 0.9 }
output = "z.h5"

[bench]
solvers = ["euler", "ab3@karras"]

[bench.quality]
count = 5
"""


@pytest.fixture
def config(here: Path) -> Path:
    (here / "run.toml").write_text(FILE)
    return here / "run.toml"


def given(words: str, *arguments: str) -> dict[str, Any]:
    """The parameters that the command of these words gets, by click's own names."""
    ctx, command = click.Context(group, info_name="odeddim"), group
    for word in words.split():
        below = command.get_command(ctx, word)
        assert below is not None
        if not isinstance(below, click.Group):
            return below.make_context(word, [*arguments, "--config", "run.toml"], parent=ctx).params
        ctx, command = click.Context(below, parent=ctx, info_name=word), below
    raise AssertionError(words)


@pytest.mark.usefixtures("config")
def test_the_run_is_the_one_that_is_typed(run: Command, here: Path) -> None:
    code, out, err = run("encode", "--config", "run.toml")
    assert code == 0, err
    assert "2 latents" in out
    with LatentFile(here / "z.h5") as file:
        made = file.provenance
        assert (made.model, made.solver, made.steps, made.settings["gamma"]) == ("exact-mixture", "bdia", 3, 0.9)
        assert made.details["network_batch"] == 4
    typed = ("--model", "exact-mixture", "--network-batch", 4, "--solver", "bdia", "--steps", 3, "--set", "gamma=0.9")
    code, out, err = run("encode", *typed, "-n", 2, "-o", "z.h5")
    assert (code, err) == (0, "")
    assert "(0 now, the rest was there already)" in out  # the very same run


@pytest.mark.usefixtures("config")
def test_what_is_typed_wins(run: Command, here: Path) -> None:
    code, out, err = run(
        "encode", "--config", "run.toml", "--steps", 4, "-o", "y.h5", "-n", 1, "--model", "exact-gaussian"
    )
    assert code == 0, err
    with LatentFile(here / "y.h5") as file:
        made = file.provenance
        assert (len(file), made.model, made.solver, made.steps) == (1, "exact-gaussian", "bdia", 4)
    jobs.fit(None, here / "plan.json", "euler", 3, count=1, model="exact-mixture")
    code, out, err = run("encode", "--config", "run.toml", "--plan", "plan.json", "-o", "planned.h5")
    assert code == 0, err
    with LatentFile(here / "planned.h5") as file:
        assert (file.provenance.solver, file.provenance.steps) == ("euler", 3)
    (here / "planned.toml").write_text('model = "exact-mixture"\n[encode]\nplan = "plan.json"\ncount = 1\n')
    code, out, err = run("encode", "--config", "planned.toml", "--solver", "ab2", "-o", "typed.h5")
    assert code == 0, err
    with LatentFile(here / "typed.h5") as file:
        assert file.provenance.solver == "ab2"
    code, out, err = run("encode", "--config", "planned.toml", "--solver", "ab2", "--plan", "plan.json", "-o", "x.h5")
    assert code == 2
    assert "--plan says how to run: leave out --solver" in err


@pytest.mark.usefixtures("config")
def test_tables_by_command() -> None:
    assert given("sample", "-o", "x.png")["seed"] == 3
    bench = given("bench reconstruction")
    assert bench["solvers"] == ["euler", "ab3@karras"]
    assert bench["count"] is None
    assert given("bench quality")["count"] == 5
    assert given("bench quality", "--count", "7")["count"] == 7


@pytest.mark.parametrize(
    ("content", "option", "value"),
    [
        ("[bridge]\ncycle = false\n", "cycle", False),
        ("[encode]\noverwrite = true\n", "overwrite", True),
        ("[encode]\nset = ['gamma=0.5', 'p=2']\n", "assignments", (("gamma", 0.5), ("p", 2))),
        ("[encode]\nbatch-size = 3\n", "batch_size", 3),
        ("[encode]\ntol = 1e-3\n", "tol", 1e-3),
        ("[sample]\nsize = [3, 8, 8]\n", "size", (3, 8, 8)),
        ("[interpolate]\npair = [0, 2]\n", "pair", (0, 2)),
        ("[shift]\nby = [-1, 0.5]\n", "by", [-1.0, 0.5]),
        ("[train]\nmultipliers = [1, 2]\n", "multipliers", [1, 2]),
    ],
)
def test_values_of_every_kind(here: Path, content: str, option: str, value: object) -> None:
    (here / "run.toml").write_text(content)
    command = content.split("]")[0][1:]
    needed = {"bridge": ["--to", "m", "-o", "o"], "interpolate": ["z"], "shift": ["z"], "train": ["d", "-o", "m"]}
    assert given(command, *needed.get(command, ["-o", "z"]))[option] == value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[encode]\nstepps = 3\n", "run.toml: unknown option of `odeddim encode` 'stepps'; did you mean steps"),
        ("slver = 3\n", "unknown option of `odeddim` 'slver'; did you mean solver"),
        ("[bench.qualty]\ncount = 3\n", "unknown option of `odeddim bench` 'qualty'; did you mean quality"),
        ("[encode]\nsteps = 0\n", "run.toml: steps: 0 is not in the range"),
        (
            "[decode]\nsteps_ = 3\n",
            "unknown option of `odeddim decode` 'steps-'",
        ),  # another command's, which is told too
        ("[encode]\nsteps = 2.5\n", "run.toml: steps: '2.5' is not a valid integer"),
        ("[encode]\nsolver = 'heunn'\n", "run.toml: solver: unknown solver 'heunn'; did you mean heun"),
        ("[encode]\noverwrite = 1\n", "overwrite = 1: give true or false"),
        ("[encode.solver]\nname = 3\n", "solver is a table: give a value"),
        ("[encode\n", "run.toml is not a TOML file of options"),
        (None, "run.toml cannot be read (No such file or directory)"),
    ],
)
def test_what_is_wrong_is_one_sentence(run: Command, here: Path, content: str | None, words: str) -> None:
    if content is not None:
        (here / "run.toml").write_text(content)
    code, _, err = run("encode", "-o", "z.h5", "--config", "run.toml")
    assert code == 2
    assert words in err
    assert len(err.splitlines()) == 1
    assert not (here / "z.h5").exists()


def test_every_command_with_options_has_it() -> None:
    ctx = click.Context(group)
    without = {name for name in group.list_commands(ctx) if "config" not in _names(group.get_command(ctx, name))}
    assert without == {"bench", "solvers", "completion"}  # a group; nothing to set


def _names(command: click.Command | None) -> list[str | None]:
    assert command is not None
    return [parameter.name for parameter in command.params]
