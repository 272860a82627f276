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

    Save the script, and load it in the file that the shell reads when it starts: `source ~/.odeddim.bash` in ~/.bashrc,
    `source ~/.odeddim.zsh` in ~/.zshrc (after compinit). fish finds it in its folder of completions.

    \b
    Examples:
      odeddim completion bash                     print it
      odeddim completion bash > ~/.odeddim.bash
      odeddim completion zsh > ~/.odeddim.zsh
      odeddim completion fish > ~/.config/fish/completions/odeddim.fish
    """
    from odeddim.cli import group

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(group, {}, PROGRAM, VARIABLE).source())
