"""What a terminal is told: names as they can be shown, errors of any kind as one line, and only what is true."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image

from odeddim import cli, defaults
from odeddim.storage.atomic import printable

Command = Callable[..., tuple[int, str, str]]
MIXTURE = ("--model", "exact-mixture")
EVIL = "a\x1b[31m\x9b2J\nError: b\u202egnp"
ALONE = {"bench", "solvers", "explain", "inspect"}


def test_what_moves_a_cursor_is_escaped_and_letters_are_not() -> None:
    assert printable("é σ_T 猫 👩\u200d🚀\u202f.png") == "é σ_T 猫 👩\u200d🚀\u202f.png"
    assert printable("a\x1b[31m\n\x9b\u2028\u202e\udcff") == "a\\x1b[31m\\n\\x9b\\u2028\\u202e\\udcff"


def shown(text: str) -> bool:
    return not any(c in text for c in "\x1b\x9b\u202e") and "Error: b" not in text.splitlines()


def test_names_reach_the_terminal_as_they_can_be_shown(run: Command, here: Path) -> None:
    (here / EVIL).mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(here / EVIL / f"{i}{EVIL}.png")
    for arguments in (
        ("encode", EVIL, "-o", f"{EVIL}.h5", *MIXTURE, "--steps", 3),
        ("encode", EVIL, "-o", f"{EVIL}.h5", *MIXTURE, "--steps", 4),
        ("verify", f"{EVIL}.h5", "--worst", 2),
        ("verify", f"{EVIL}.h5", "--csv"),
        ("neighbours", f"{EVIL}.h5", "-k", 1),
        ("inspect", f"{EVIL}.h5"),
        ("interpolate", f"{EVIL}.h5", "--pair", 0, 1, "-n", 3, "-o", f"path{EVIL}.h5"),
        ("decode", f"{EVIL}.h5", "-o", f"out{EVIL}"),
        ("decode", f"{EVIL}.h5", "-o", f"none{EVIL}/x.h5"),
        ("decode", f"no{EVIL}.h5", "-o", "x.h5"),
        ("inspect", f"no{EVIL}"),
        (f"no{EVIL}",),
        ("sample", "-o", "x.png", "--model", EVIL),
        ("sample", "-o", "x.png", "--solver", EVIL),
        ("sample", "-o", "x.png", "--grid", EVIL),
    ):
        code, out, err = run(*arguments)
        assert shown(out), arguments
        assert shown(err), arguments
    for arguments in (("verify", f"{EVIL}.h5", "--json"), ("neighbours", f"{EVIL}.h5", "-k", 1, "--json")):
        code, out, err = run(*arguments)
        assert shown(out)
        assert f"0{EVIL}.png" in json.dumps(json.loads(out), ensure_ascii=False).replace("\\u001b", "\x1b").replace(
            "\\n", "\n"
        )


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_a_command_works_without_arguments_or_shows_an_example(run: Command, name: str) -> None:
    command = cli.group.get_command(click.Context(cli.group), name)
    assert command is not None
    try:
        command.make_context(name, [])
    except click.MissingParameter:
        assert name not in ALONE
        code, out, err = run(name)
        assert code == 2
        example = err.splitlines()[-1]
        assert example.startswith(f"For example: odeddim {name} ")
        words = example.removeprefix("For example: odeddim ").split()
        command.make_context(name, words[1:])  # and that can be said
    else:
        # The models of the package have their moments; those of a model of one's own need no more than --model.
        assert name in {*ALONE, "moments", "diagnose"}


def commands(name: str) -> list[click.Command]:
    """A command, and those below it."""
    command = cli.group.get_command(click.Context(cli.group), name)
    assert command is not None
    if not isinstance(command, click.Group):
        return [command]
    context = click.Context(command)
    below = [command.get_command(context, word) for word in command.list_commands(context)]
    return [command, *(each for each in below if each is not None)]


def say(group: click.Group, words: list[str], parent: click.Context | None = None) -> None:
    """Parse the words of a command line, without running it."""
    context = group.make_context(group.name, words, parent=parent)
    before = context._protected_args if hasattr(context, "_protected_args") else context.protected_args  # click 8.1
    name, command, rest = group.resolve_command(context, [*before, *context.args])
    assert command is not None
    if isinstance(command, click.Group):
        say(command, rest, context)
    else:
        command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_example_of_the_help_can_be_said(name: str, here: Path) -> None:
    """No option of an example is missing, unknown, or of the wrong kind."""
    (here / "photos").mkdir()  # which bench takes for images, because it is there
    for command in commands(name):
        examples = (command.help or "").partition("Examples:")[2]
        lines = re.findall(r"odeddim (.*?)(?: {2,}.*| > .*)?$", examples, re.MULTILINE)
        assert lines
        for line in lines:
            say(cli.group, shlex.split(line))
    with pytest.raises(click.NoSuchOption):
        say(cli.group, ["encode", "-o", "z.h5", "--preset", "plan.json"])


def test_the_documentation_names_the_commands_that_need_no_arguments() -> None:
    readme = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
    (sentence,) = (line for line in readme.splitlines() if "work without arguments." in line)
    for name in ALONE:
        assert f"`{name}`" in sentence
        assert name in (cli.group.epilog or "").partition(" work without arguments")[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("inspect", "z.h5"), "nothing was changed"),
        (("fit", "-o", "plan.json"), "the same command goes on"),
        (("bench", "report"), "nothing was changed"),
        (("bench",), "the same command goes on"),
        (("encode", "-o", "z.h5"), "the same command goes on"),
        (("train", "x", "-o", "m"), "the same command goes on"),
    ],
)
def test_ctrl_c_says_what_is_true(
    run: Command, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    def interrupted(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.group, "main", interrupted)
    code, out, err = run(*arguments)
    assert code == 130
    assert says in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is always full")
@pytest.mark.parametrize("arguments", [("solvers",), ("--help",), ("explain", "--model", "exact-mixture", "--json")])
def test_a_full_disk_behind_the_output_is_one_sentence(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "odeddim", *arguments]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=300)
    assert ended.returncode == 1
    assert ended.stderr == "Error: the system cannot read or write this (No space left on device)\n"


BIG = "99999999999999999999"


@pytest.mark.parametrize(
    "arguments",
    [
        ("sample", "-o", "x.h5", *MIXTURE, "--size", f"1,{BIG},1"),
        ("sample", "-o", "x.h5", *MIXTURE, "--size", f"1,{'9' * 5000},1"),
        ("sample", "-o", "x.h5", *MIXTURE, "--size", "1,100000,100000"),
        ("sample", "-o", "x.h5", "-n", 10**9),
        ("sample", "-o", "x.h5", "-n", BIG),
        ("sample", "-o", "x.h5", "--threads", 100_000),
        ("sample", "-o", "x.h5", "--batch-size", 10**8),
        ("sample", "-o", "x.h5", "--network-batch", 10**8),
        ("sample", "-o", "x.h5", "--steps", BIG),
        ("sample", "-o", "x.h5", "--seed", BIG),
        ("sample", "-o", "x.h5", "--plan", "/dev/zero"),
        ("decode", "z.h5", "-o", "x.h5", "--seed", BIG, "--solver", "ddpm"),
        ("interpolate", "z.h5", "--pair", 0, 1, "-n", 10**9, "-o", "p.h5"),
        ("interpolate", "z.h5", "--corners", 0, 1, 2, 3, "-n", 10**6, "-o", "p.h5"),
        ("interpolate", "z.h5", "--corners", 0, 1, 2, 3, "-n", 10**6, "--sheet", "p.png"),
        ("interpolate", "z.h5", "--loop", "0,1,2", "-n", defaults.MOST_NEW, "-o", "p.h5"),
        ("train", "images.npy", "-o", "m", "--batch-size", 10**8),
        ("train", "images.npy", "-o", "m", "--seed", BIG),
        ("bench", "interpolation", "--points", 10**9),
        ("bench", "consistency", "-n", 10**9),
    ],
)
def test_what_no_machine_can_do_is_refused_at_once(run: Command, here: Path, arguments: tuple[object, ...]) -> None:
    np.save("images.npy", np.zeros((4, 8, 8), np.uint8))
    assert run("encode", "images.npy", "-o", "z.h5", *MIXTURE, "--steps", 2)[0] == 0
    before = sorted(os.listdir(here))
    code, out, err = run(*arguments)
    assert code == 2
    assert err.splitlines()[-1].startswith("Error: ")
    assert len(err.splitlines()[-1]) < 300
    assert sorted(os.listdir(here)) == before


def test_what_no_disk_can_hold_is_refused_with_what_it_takes(
    run: Command, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("encode", "-n", 2, "-o", "z.h5", *MIXTURE, "--steps", 2)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 0, 10**6))
    for arguments, each in (
        (("sample", "-n", 1000, "-o", "x.h5", *MIXTURE, "--size", "1,28,28"), 784 * 4),
        (("interpolate", "z.h5", "--pair", 0, 1, "-n", 1000, "-o", "p.h5"), 784 * 4 * 6),  # x̄ and belm's five
    ):
        code, out, err = run(*arguments)
        assert code == 2
        assert f"take {1000 * each / 1e9:.3g} GB" in err
        assert "0.001 GB" in err
