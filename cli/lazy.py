"""Groups of commands that import a command only to run it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import click

from odeddim.cli.config import add_config
from odeddim.types import InputError, pick


class LazyGroup(click.Group):
    """A group that lists its commands by name and help, and imports `PACKAGE.NAME` only to run NAME.

    default: what runs where no command is named, or where the first word is no command and the path of something.
    shared: options that its commands have besides their own, and lacking: the names of commands that do not have them.
    """

    def __init__(
        self, *arguments: Any, package: str, commands: Mapping[str, str], default: str | None = None,
        shared: Sequence[click.Option] = (), lacking: Sequence[str] = (), **more: Any,
    ) -> None:  # fmt: skip
        # Where the first word is an option it belongs to the default; --help is the group's.
        more.setdefault("no_args_is_help", default is None)
        super().__init__(*arguments, **more)
        self._package, self._listed, self._default = package, commands, default
        self._shared, self._lacking = shared, lacking

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._listed)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self._listed:
            return None
        command = import_module(f"{self._package}.{name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        if not isinstance(command, click.Group):
            if name not in self._lacking:
                command.params += [option for option in self._shared if option not in command.params]
            add_config(command)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if self._default and (not args or self._is_for_default(args[0], ctx)):
            args = [self._default, *args]
        return super().parse_args(ctx, args)

    def _is_for_default(self, word: str, ctx: click.Context) -> bool:
        if word.startswith("-"):
            return word not in ctx.help_option_names
        return word not in self._listed and os.path.exists(word)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self._listed and not args[0].startswith("-"):
            try:
                pick(args[0], self._listed, "command")
            except InputError as error:
                ctx.fail(str(error))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self._listed.items()))
