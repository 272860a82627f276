"""A file of options, `--config run.toml`: what is not typed is taken from it.

model = "MODEL"             # for every command that has this option
device = "cuda"

[encode]
solver = "ab3"
steps = 20
set = { gamma = 0.9 }       # --set gamma=0.9

[bench]                     # for every bench
solvers = ["euler", "ab3"]  # --solvers euler,ab3

[bench.quality]
count = 1000
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from odeddim.types import InputError, pick

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAME = "config"


def add_config(command: click.Command) -> None:
    """Give a command the option --config, unless it has one, or has nothing to set."""
    if len(command.params) > 1 and not any(parameter.name == NAME for parameter in command.params):
        command.params.append(
            click.Option(
                [f"--{NAME}"],
                type=click.Path(path_type=Path),
                is_eager=True,
                expose_value=False,
                callback=_apply,
                metavar="FILE.toml",
                help="Take options that are not typed from a file: lines as steps = 20, for all commands at the top, "
                "and for one command below its name, [encode] or [bench.quality].",
            )
        )


def _apply(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Make the options of a file the defaults of a command."""
    if path is None:
        return
    content = _read(path)
    root = ctx.find_root().command
    assert isinstance(root, click.Group)
    _check(path, content, root, "odeddim")
    words, above = [], ctx
    while above.parent is not None:
        words.append(above.info_name or "")
        above = above.parent
    said = _said(content, words[::-1])
    ctx.default_map = {
        parameter.name: _converted(path, name, said[name], parameter, ctx)
        for name, parameter in _options(ctx.command)
        if name in said and parameter.name
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise InputError(
            f"the options {path} cannot be read ({error.strerror}): check the path and its rights"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not a TOML file of options ({error}): see `odeddim encode --help`") from error


def _options(command: click.Command) -> Iterator[tuple[str, click.Option]]:
    """The options of a command, or of all commands of a group, by their long names."""
    if isinstance(command, click.Group):
        for _, below in _commands(command):
            yield from _options(below)
        return
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name != NAME:
            yield from ((word[2:], parameter) for word in parameter.opts if word.startswith("--"))


def _commands(group: click.Group) -> Iterator[tuple[str, click.Command]]:
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        yield name, command


def _check(path: Path, content: Mapping[str, Any], command: click.Command, words: str) -> None:
    """Raise an InputError if a table has a key that is no option, and no command, of where it stands."""
    below = dict(_commands(command)) if isinstance(command, click.Group) else {}
    known = dict.fromkeys(name for name, _ in _options(command))
    for key, value in content.items():
        if key in below and isinstance(value, dict):
            _check(path, value, below[key], f"{words} {key}")
            continue
        try:
            pick(_dashed(key), [*known, *(below if isinstance(value, dict) else ())], f"option of `{words}`")
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def _said(content: Mapping[str, Any], words: list[str]) -> dict[str, Any]:
    """The options of the command of these words: those for all commands, and above them those of its own tables."""
    own = content.get(words[0], {}) if words else {}
    said = {_dashed(key): value for key, value in content.items() if not words or key != words[0]}
    return {**said, **_said(own, words[1:])} if isinstance(own, dict) and words else said


def _dashed(key: str) -> str:
    return key.replace("_", "-")


def _converted(path: Path, name: str, value: Any, option: click.Option, ctx: click.Context) -> Any:
    """A value as the option takes it: as it would be typed, so that it is checked in the same way."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise InputError(f"{path}: {name} = {value!r}: give true or false")
        return value
    if option.multiple and isinstance(value, dict):
        value = [f"{key}={item}" for key, item in value.items()]
    if isinstance(value, dict):
        raise InputError(f"{path}: {name} is a table: give a value")
    listed = [str(item) for item in value] if isinstance(value, list) else [str(value)]
    typed: Any = listed if option.multiple or option.nargs != 1 else ",".join(listed)
    try:
        option.type_cast_value(ctx, typed)
    except click.BadParameter as error:
        raise InputError(f"{path}: {name}: {error.message}") from error
    return typed
