"""The library's messages in the words of the command line."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from odeddim import cli
from odeddim.cli.words import ARGUMENTS, CALLED, QUOTED, in_options
from odeddim.types import InputError

Command = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("z.h5 is there: overwrite=True replaces it", "z.h5 is there: --overwrite replaces it"),
        ("the code runs: allow_pickle=True", "the code runs: --allow-pickle"),
        ("take overwrite=False.", "take no --overwrite."),
        ("give it as model=..., or with steps=50.", "give it as --model, or with --steps 50."),
        ("`tol=1e-2` (rtol=0.5), grid='karras:7'", "`--tol 1e-2` (--rtol 0.5), --grid 'karras:7'"),
        ("end=sigma_min; end=...", "--end sigma_min; --end"),
        ("start='forward:3'; give start=... and goal=...", "--start 'forward:3'; give --from and --to"),
        ("interval=... of network_batch=None", "--guidance-interval of no --network-batch"),
    ],
)
def test_arguments_become_options(message: str, shown: str) -> None:
    assert in_options(message) == shown


@pytest.mark.parametrize(
    "message",
    [
        "gamma=0.9 and nonsense=True",
        "steps=50.h5, runs/steps=50, 'steps=50' and steps=50/x.png",
        "steps=50-model=x and my-steps=50",
        "a == b, overwrite",
    ],
)
def test_what_is_no_option_and_names_of_files_stay(message: str) -> None:
    assert in_options(message) == message


def test_what_the_user_typed_stays() -> None:
    message = "the folder steps=50 holds no images: give steps=60"
    assert in_options(message, ["encode", "steps=50"]) == "the folder steps=50 holds no images: give --steps 60"


def options_of(command: click.Command) -> Iterator[str]:
    """Every long option of a command and the commands below it."""
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield from (word.removeprefix("--") for word in parameter.opts if word.startswith("--"))
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from options_of(below)


def test_every_option_has_its_argument() -> None:
    """An option that is added, or taken away, is so here too."""
    ours = {CALLED.get(name, name.replace("_", "-")) for name in (*ARGUMENTS, *CALLED)} | set(QUOTED.values())
    assert ours == set(options_of(cli.group)) - {"help", "version", "config"}  # of the command line alone


def test_errors_and_warnings_reach_the_terminal_in_options(
    run: Command, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        warnings.warn("steps=5 are few: give steps=... or tol=0.01", stacklevel=1)
        raise InputError("z.h5 is there: give overwrite=True")

    monkeypatch.setattr(cli.group, "main", refuse)
    code, out, err = run("encode", "-o", "z.h5")
    assert (code, out) == (2, "")
    assert err == "warning: --steps 5 are few: give --steps or --tol 0.01\nError: z.h5 is there: give --overwrite\n"
