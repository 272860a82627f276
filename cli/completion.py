"""`odeddim completion`: what a shell needs to complete commands, options, files and names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")
PROGRAM, VARIABLE = "odeddim", "_ODEDDIM_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print the script with which a shell completes commands, options, files, and names of models and solvers.

    Load it in the file that the shell reads when it starts, or put it where the shell looks for completions (fish).

    \b
    Examples:
      odeddim completion bash >> ~/.bashrc
      odeddim completion zsh >> ~/.zshrc
      odeddim completion fish > ~/.config/fish/completions/odeddim.fish
    """
    from odeddim.cli import group

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(group, {}, PROGRAM, VARIABLE).source())
