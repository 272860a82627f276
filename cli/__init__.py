"""The command line: one file per command, loaded only when that command runs.

`odeddim --help`, `odeddim solvers` and usage errors import click and nothing heavier.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import signal
import sys
import threading
import warnings
from typing import Any

if __name__ != "odeddim.cli":
    raise ImportError(f"import odeddim.cli, not {__name__!r}: a second copy would not be the same module")

import click

from odeddim import __version__
from odeddim.cli.lazy import LazyGroup
from odeddim.cli.telling import OPTIONS, Told, telling
from odeddim.cli.words import in_options
from odeddim.foreign_names import argument
from odeddim.storage.atomic import printable
from odeddim.types import BudgetExceeded, InputError, lacks_memory

_SHOWWARNING = warnings.showwarning

COMMANDS = {
    "encode": "Encode images to a file of latents, z.h5.",
    "decode": "Decode latents to images: PNGs, a sheet, or HDF5.",
    "sample": "Make new images from noise.",
    "bridge": "Encode images with one model, decode them with another.",
    "edit": "Encode images under one condition, decode them under another.",
    "interpolate": "Make lines, grids and loops between latents.",
    "shift": "Move latents from the mean of one group towards that of another.",
    "neighbours": "Find the nearest neighbours of latents.",
    "explore": "Make a page to explore the square between four latents.",
    "trajectory": "Draw the points that images pass on their way: a strip or an animation.",
    "density": "Measure how probable a model makes images, with an error bar.",
    "score": "Show how far images are from those of a reference, by the path of their encode.",
    "diagnose": "Find out why images do not come back, or latents do not look like noise.",
    "verify": "Show how good the latents of a file are, the worst first.",
    "merge": "Make one file of an index and its parts, or of several files.",
    "moments": "Compute the Gaussian of a model's data, for runs of few evaluations.",
    "fit": "Fit a solver to a model, or the noise levels of one: a plan file, plan.json.",
    "bench": "Compare solvers: the tables and figures of the paper, and more.",
    "solvers": "Print the table of solvers.",
    "explain": "Print what a run will do: nodes, labels, coefficients, evaluations.",
    "inspect": "Show what a model, or a file that odeddim wrote, holds.",
    "train": "Train a model on your own images.",
    "completion": "Print the script that completes commands in bash, zsh or fish.",
}


BRIEF = ("solvers", "explain", "inspect", "completion")
"""Commands that work for a moment only: they have no options about what they say meanwhile."""

# Commands that leave nothing when they are stopped; every other one goes on from what is finished.
WHOLE_OR_NOTHING = (
    "explore",
    "trajectory",
    "diagnose",
    "merge",
    "moments",
    "solvers",
    "explain",
    "inspect",
    "completion",
    "bench report",
)


@click.group(
    cls=LazyGroup,
    package=__name__,
    commands=COMMANDS,
    shared=OPTIONS,
    lacking=BRIEF,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="bench, solvers, explain and inspect work without arguments: try `odeddim bench`. Without --model and "
    "images, commands take the built-in model and the sample images. Options can stand in a file: --config.",
)
@click.version_option(__version__, prog_name="odeddim")
def group() -> None:
    """Diffusion models as ordinary differential equations, dx̄/dσ = ε(x̄, σ).

    Encode images to latents, decode them again, and compare DDIM with the other solvers of the same ODE.

    \b
    Examples:
      odeddim encode photos/ -o z.h5 --model MODEL
      odeddim decode z.h5 -o out/
      odeddim bench
    """


def main() -> None:
    """Run the command line; what the user got wrong is one sentence and exit code 2, never a traceback."""
    warnings.showwarning = _warn
    log = logging.getLogger("odeddim")
    log.handlers[:], log.propagate = [Told()], False
    log.setLevel(logging.INFO)
    telling.begin()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):  # a terminal without σ must not cost a run its last line
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = group.main(standalone_mode=False) or 0
        sys.stdout.flush()
        telling.end(code)
        sys.exit(code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        _show(error)
        sys.exit(error.exit_code)
    except InputError as error:
        _fail(in_options(str(error), sys.argv[1:]), 2)
    except BudgetExceeded as stop:
        _fail(in_options(str(stop), sys.argv[1:]), 1)
    except (click.Abort, KeyboardInterrupt):
        begun = {" ".join(sys.argv[1:2]), " ".join(sys.argv[1:3])}
        _fail(
            "interrupted; nothing was changed"
            if begun & {*WHOLE_OR_NOTHING}
            else "interrupted; what was finished is safe, and the same command goes on from there",
            130,
        )
    except OSError as error:
        try:
            sys.stdout.flush()
        except OSError:  # what is left of it would be tried again, and fail again, when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        where = "" if error.filename is None else f"{error.filename}: "
        _fail(f"{where}the system cannot read or write this ({error.strerror or error})", 1)
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            telling.end(1, f"{type(error).__name__}: {error}")
            raise
        _fail("out of memory: try a smaller --batch-size or --network-batch, smaller images or fewer steps", 1)


def _terminate(number: int, frame: Any) -> None:
    """SIGTERM is as Ctrl-C, whose handler knows where it is safe to stop: no temporary file stays behind."""
    handler = signal.getsignal(signal.SIGINT)
    (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)


def _warn(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """The package's own warnings as one line each; others as Python shows them."""
    if category is UserWarning:
        telling.warn(in_options(str(message), sys.argv[1:]))
    else:
        _SHOWWARNING(message, category, *place, **more)


def _fail(message: str, code: int) -> None:
    with contextlib.suppress(OSError):  # a full disk may take no words either
        telling.fail(message, code)
    sys.exit(code)


def _of_others(error: click.ClickException) -> str:
    """What we call an option of other software, as a sentence."""
    if not isinstance(error, click.NoSuchOption) or error.ctx is None:
        return ""
    option = in_options(f"{argument(error.option_name)[0]}=...")
    return f" Here it is {option}." if any(option in it.opts for it in error.ctx.command.params) else ""


def _show(error: click.ClickException) -> None:
    """What is wrong with the words of a command, and where something is missing, an example of what to give."""
    telling.end(error.exit_code, error.format_message())
    if telling.log_json == "-":
        return
    missing = isinstance(error, click.MissingParameter)
    if not missing:  # of choices that are missing, click makes a list
        error.message = printable(error.message) + _of_others(error)  # type: ignore[misc]  # what is shown is made of it
    error.show()
    if missing and isinstance(error, click.UsageError) and error.ctx is not None:
        example = re.search(r"^ *(odeddim .*?)( {2,}.*)?$", error.ctx.command.help or "", re.MULTILINE)
        if example:
            click.echo(f"For example: {example[1]}", err=True)
