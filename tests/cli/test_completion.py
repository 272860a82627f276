"""`odeddim completion` and what it completes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

from odeddim import solvers
from odeddim.cli import COMMANDS, group
from odeddim.cli.completion import PROGRAM, SHELLS, VARIABLE
from odeddim.cli.kinds import MODELS
from odeddim.models import BUILT_IN

Command = Callable[..., tuple[int, str, str]]


def completed(words: list[str], incomplete: str) -> list[CompletionItem]:
    return ShellComplete(group, {}, PROGRAM, VARIABLE).get_completions(words, incomplete)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_clicks_own(run: Command, shell: str) -> None:
    code, out, _ = run("completion", shell)
    kind = get_completion_class(shell)
    assert code == 0
    assert kind is not None
    assert out == kind(group, {}, PROGRAM, VARIABLE).source() + "\n"
    assert f"{VARIABLE}={shell}_complete" in out


def test_an_unknown_shell_is_one_sentence(run: Command) -> None:
    code, _, err = run("completion", "tcsh")
    assert code == 2
    assert "'tcsh' is not one of 'bash', 'zsh', 'fish'" in err


def test_names_of_solvers_models_and_commands() -> None:
    dpm = [name for name in solvers.names() if name.startswith("dpm")]
    assert [item.value for item in completed(["encode", "--solver"], "dpm")] == dpm
    assert [item.value for item in completed(["bench", "reconstruction", "--solvers"], "ab2,dpm")] == [
        f"ab2,{name}" for name in dpm
    ]
    assert tuple(BUILT_IN) == MODELS
    for words in (["encode", "--model"], ["interpolate", "z.h5", "--model"], ["bridge", "--to"], ["inspect"]):
        found = completed(words, "exact-m")
        assert [(item.value, item.type) for item in found] == [("exact-m", "file"), ("exact-mixture", "plain")]
    assert [item.value for item in completed([], "en")] == ["encode"]
    assert {item.value for item in completed([], "")} == set(COMMANDS)
    assert [item.type for item in completed(["decode"], "z")] == ["file"]
    assert [item.type for item in completed(["encode", "-o"], "z")] == ["file"]


def test_a_shell_gets_them_quickly() -> None:
    """As the script asks: in a process of its own, which loads nothing heavy."""
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('HEAVY' * ('torch' in sys.modules or 'rich' in sys.modules)))\n"
        "sys.argv = ['odeddim']\nfrom odeddim.cli import main\nmain()"
    )
    words = {VARIABLE: "bash_complete", "COMP_WORDS": "odeddim encode --solver dpmpp", "COMP_CWORD": "3"}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **words}, capture_output=True, text=True)
    assert done.stdout.split() == ["plain,dpmpp-2s", "plain,dpmpp-2m", "plain,dpmpp-3m"], done.stderr
