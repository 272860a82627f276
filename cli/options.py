"""The options that several commands share, each written once."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from odeddim import solvers
from odeddim.storage.atomic import is_hidden, printable
from odeddim.types import InputError

F = TypeVar("F", bound=Callable[..., Any])


# Beyond these no run ends: they are a slip of the hand, and better told at once than after hours.
MOST_STEPS = 1_000_000
MOST_AT_ONCE = 65_536  # images
MOST_THREADS = 1024
MOST_NEW = 10_000_000  # images or latents
MOST_SEED = 2**63 - 1


class SolverName(click.ParamType[str]):
    """A name of the solver table, with its neighbours when it is not one."""

    name = "solver"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return solvers.get(str(value)).name
        except InputError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        return [click.shell_completion.CompletionItem(n) for n in solvers.names() if n.startswith(incomplete)]


class Items(click.ParamType[list[Any]]):
    """A comma-separated list, each item of another type."""

    name = "list"

    def __init__(self, item: click.ParamType[Any]) -> None:
        self.item = item

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        if isinstance(value, list):
            return value
        words = [word.strip() for word in str(value).split(",") if word.strip()]
        if not words:
            self.fail("an empty list", param, ctx)
        return [self.item.convert(word, param, ctx) for word in words]


class Tolerance(click.FloatRange):
    """A positive number, and no other float."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is no tolerance", param, ctx)
        return number


def echo(line: str = "", *, err: bool = False) -> None:
    """Print one line. Names of files in it must not move the cursor, nor pretend to be a line of ours."""
    click.echo(printable(line), err=err)


def echo_json(text: str) -> None:
    """Print JSON, with escapes of its own for what a terminal would not show as it is."""
    click.echo("".join(f"\\u{ord(c):04x}" if c != "\n" and is_hidden(c) else c for c in text))


def together(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in the order given."""

    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


MODEL_OPTIONS = "odeddim.model"


class Chosen(click.Option):
    """An option that says something about the model, whichever command it stands in: `of_model` collects them."""

    def __init__(self, names: Sequence[str], **about: Any) -> None:
        super().__init__(names, expose_value=False, callback=self._keep, **about)

    @staticmethod
    def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value is not None and value is not False:  # 0 is a label
            ctx.meta.setdefault(MODEL_OPTIONS, {})[param.name] = value


def of_model() -> dict[str, Any]:
    """What was said about the model on the command line, by the names of `load` and `VectorField.conditioned`."""
    return dict(click.get_current_context().meta.get(MODEL_OPTIONS, {}))


class Interval(click.ParamType[tuple[float, float]]):
    """LOW,HIGH: two noise levels."""

    name = "interval"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        if isinstance(value, tuple):
            return value
        try:
            low, high = (float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not LOW,HIGH: two noise levels σ, as in 0.3,5", param, ctx)
        if not 0 <= low < high:
            self.fail(f"{value!r}: the first noise level must be at least 0 and below the second", param, ctx)
        return low, high


allow_pickle = click.option(
    "--allow-pickle",
    cls=Chosen,
    is_flag=True,
    help="Read models that run the code in their file (EDM's .pkl): only if you trust where it comes from.",
)
told = together(
    click.option("--label", cls=Chosen, type=click.IntRange(0), help="A class, for models that know classes."),
    click.option("--prompt", cls=Chosen, metavar="TEXT", help="For models that know texts.  [default: the empty one]"),
    click.option("--negative-prompt", cls=Chosen, metavar="TEXT", help="What guidance leads away from."),
    click.option(
        "--guidance",
        cls=Chosen,
        type=float,
        metavar="W",
        help="Classifier-free guidance: none + W·(condition - none), two images in one batch.  [default: 1]",
    ),
    click.option(
        "--guidance-interval",
        "interval",
        cls=Chosen,
        type=Interval(),
        metavar="LOW,HIGH",
        help="Noise levels σ where --guidance holds.  [default: everywhere]",
    ),
    allow_pickle,
)
model = together(
    click.option(
        "--model", default="fashion-mnist", show_default=True, metavar="NAME|PATH", help="A built-in model or a path."
    ),
    told,
)


def solver(default: str) -> Callable[[F], F]:
    """--solver NAME. default: what a command takes without it, in words."""
    return click.option(
        "--solver", type=SolverName(), default=None, help=f"A row of `odeddim solvers`.  [default: {default}]"
    )


steps = click.option(
    "--steps", type=click.IntRange(1, MOST_STEPS), default=None, help="Steps of the solver.  [default: 50]"
)
grid = click.option(
    "--grid",
    default=None,
    metavar="NAME|FILE",
    help="linear, quadratic, trailing, leading, linspace, log, karras, karras:RHO, edm, ays, ays:LIST, or a file of "
    "noise levels (`odeddim grid` computes one).  [default: the solver's]",
)
end = click.option(
    "--end",
    type=click.Choice(["zero", "sigma_min"]),
    default="zero",
    show_default=True,
    help="Where images lie: at σ = 0 after one Euler step, as in the paper, or at the lowest level σ_1.",
)


def preset(function: F) -> F:
    """--preset FILE: solver, grid, steps, end and settings of a file, in place of the options."""

    @functools.wraps(function)
    def command(*args: Any, preset: Path | None, **given: Any) -> Any:
        if preset is None:
            return function(*args, **given, preset=None)
        from click.core import ParameterSource

        from odeddim.fitting.preset import load

        ctx, found = click.get_current_context(), load(preset)
        says = {"solver": found.solver, "grid": found.grid, "steps": found.steps, "tol": None}
        says |= {"end": found.end} if "end" in given else {}
        for name in (*says, *found.settings):
            source = ctx.get_parameter_source(name)
            if name in given and source not in (None, ParameterSource.DEFAULT):
                raise click.UsageError(f"--preset says how to run: leave out --{name}")
        row = solvers.get(found.solver)
        if unknown := [name for name, value in found.settings.items() if name not in row.settings or value is None]:
            raise InputError(f"{preset}: solver {row.name!r} has no setting {unknown[0]!r} of that value: find it anew")
        row.with_settings(**found.settings)
        given |= {name: value for name, value in says.items() if name in given}
        return function(*args, **{**given, **found.settings}, preset=found)

    return click.option(
        "--preset",
        type=click.Path(path_type=Path),
        default=None,
        help="Solver, grid, steps and end from a file that `odeddim bench work-precision --find` has written.",
    )(command)  # type: ignore[return-value]


class Assignment(click.ParamType[tuple[str, Any]]):
    """NAME=VALUE; the value is a number if it looks like one."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        name, equals, text = str(value).partition("=")
        name, text = name.strip().replace("-", "_"), text.strip()
        if not equals or not name.isidentifier() or not text:
            self.fail(f"{value!r} is no NAME=VALUE", param, ctx)
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                number = kind(text)
                if not math.isfinite(number):
                    self.fail(f"{value!r} is no finite number", param, ctx)
                return name, number
        return name, text


def assigned(function: F) -> F:
    """--set NAME=VALUE, any number of times: handed on among the settings."""

    @functools.wraps(function)
    def command(*args: Any, assignments: tuple[tuple[str, Any], ...], **given: Any) -> Any:
        for name, value in assignments:
            if name in given:
                raise click.UsageError(
                    f"--set {name}={value}: {name} is an option of its own, --{name.replace('_', '-')}"
                )
        return function(*args, **given, **dict(assignments))

    return click.option(
        "--set",
        "assignments",
        type=Assignment(),
        multiple=True,
        metavar="NAME=VALUE",
        help="A setting of the solver, as gamma of bdia.",
    )(command)  # type: ignore[return-value]


tolerances = together(
    assigned,
    click.option("--rtol", type=Tolerance(0, min_open=True), default=None, help="Adaptive: relative tolerance."),
    click.option("--atol", type=Tolerance(0, min_open=True), default=None, help="Adaptive: absolute tolerance."),
    click.option("--max-nfe", type=click.IntRange(1), default=None, help="Adaptive: most evaluations per run."),
)


def run(default: str) -> Callable[[F], F]:
    """The options that say how a model is run. default: as of `solver`."""
    return together(model, solver(default), steps, grid, end, tolerances)


place = together(
    click.option("--device", default=None, metavar="cpu|cuda|...", help="Where to run.  [default: a GPU if any]"),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "float64", "bfloat16", "tf32"]),
        default=None,
        help="Of the network; the state is float32, or float64 with it. bfloat16 is for previews, as is tf32: "
        "float32 whose products CUDA makes of numbers rounded to 10 bits.  "
        "[default: float32; to decode, as encoded]",
    ),
)
machine = together(
    place,
    click.option(
        "--batch-size",
        type=click.IntRange(1, MOST_AT_ONCE),
        default=None,
        help="Images in work at once: memory and speed, not the result.  [default: about 32, or as many as the network "
        "sees at once if that is more]",
    ),
)
network_batch = together(
    click.option(
        "--network-batch",
        type=click.IntRange(1, MOST_AT_ONCE),
        default=None,
        help="Images that the network always sees at once, filled up if need be; its last digits depend on it and on "
        "no neighbour.  [default: as encoded, else 8 on a CPU, 64 on a GPU]",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1, MOST_THREADS),
        default=None,
        help="Of a CPU; its last digits depend on them too. Several processes are faster, and change nothing: "
        "`torchrun --nproc-per-node 4 -m odeddim ...`.  [default: as encoded, else 1]",
    ),
)


tol = click.option(
    "--tol",
    type=Tolerance(0, min_open=True),
    default=None,
    help="In place of --steps: as few for each image as keep this error, rms over pixels in [-1, 1]; of a latent model "
    "over its data.",
)
overwrite = click.option("--overwrite", is_flag=True, help="Begin anew, whatever is there.  [default: go on]")
replace = click.option(
    "--overwrite", is_flag=True, help="Replace what is there under the output's name, whatever it is."
)
seed = click.option("--seed", type=click.IntRange(0, MOST_SEED), default=0, show_default=True, help="Of the noise.")
size = click.option("--size", default=None, metavar="C,H,W", help="Shape of the images, for models that take any.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
for_sheet = together(
    click.option(
        "--model", default=None, metavar="NAME|PATH", help="For --sheet.  [default: the one that the latents name]"
    ),
    told,
    machine,
    network_batch,
    overwrite,
)
its_model = together(
    click.option(
        "--model",
        default=None,
        metavar="NAME|PATH",
        help="The model the latents belong to.  [default: the one they name, under the condition they name]",
    ),
    told,
)
