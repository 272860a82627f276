"""The options that several commands share, each written once; those that belong together reach it as one object."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from odeddim import defaults
from odeddim.cli import condition, forms
from odeddim.cli.condition import allow_pickle as allow_pickle
from odeddim.cli.condition import of_model as of_model
from odeddim.cli.kinds import Assignment, ModelName, Shape, SolverName, Tolerance
from odeddim.cli.parallel import beside
from odeddim.cli.telling import telling
from odeddim.storage.atomic import is_hidden, printable

if TYPE_CHECKING:
    from odeddim.jobs import Machine, Outcome, Subject

F = TypeVar("F", bound=Callable[..., Any])

# Beyond these no run ends: they are a slip of the hand, and better told at once than after hours.
MOST_AT_ONCE = 65_536  # images
MOST_THREADS = 1024
MOST_SEED = 2**63 - 1


def echo(line: str = "", *, err: bool = False) -> None:
    """Print one line. Names of files in it must not move the cursor, nor pretend to be a line of ours.

    err: a remark, which goes where remarks go (`odeddim.cli.telling`).
    """
    if err:
        telling.say(line)
    else:
        click.echo(printable(line))


def tell(made: Outcome, *, err: bool = False) -> None:
    """Print the outcome of a job, and keep its figures for the last of the JSON lines. err: as a remark."""
    for line in made.words.splitlines():
        echo(line, err=err)
    telling.figures = {"path": str(made.path), "done": made.done, "total": made.total, "words": made.words}


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


def gathered(name: str, options: Callable[[F], F], make: Callable[[dict[str, Any]], Any]) -> Callable[[F], F]:
    """Options that a command gets as one argument. make: what of their values, by name."""
    taken = {parameter.name for parameter in getattr(options(lambda: None), "__click_params__", [])}  # type: ignore[arg-type]

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def command(*args: Any, **given: Any) -> Any:
            own = {key: given.pop(key) for key in [*given] if key in taken}
            return function(*args, **given, **{name: make(own)})

        return options(command)  # type: ignore[arg-type]

    return decorate


def is_given(name: str) -> bool:
    """Whether a parameter was said, on the command line or in the file of --config, and not left at its default."""
    from click.core import ParameterSource

    source = click.get_current_context().get_parameter_source(name)
    return source not in (None, ParameterSource.DEFAULT)


def is_typed(name: str) -> bool:
    """Whether a parameter was said on the command line, which wins over the file of --config."""
    from click.core import ParameterSource

    source = click.get_current_context().get_parameter_source(name)
    return is_given(name) and source is not ParameterSource.DEFAULT_MAP


told = together(*condition.OPTIONS, allow_pickle)


def subject(own: Mapping[str, Any]) -> Subject:
    """The model as the command line says it."""
    from odeddim.jobs import Subject

    said = of_model()
    allow_pickle = said.pop("allow_pickle", False)
    return Subject(own["model"], said, allow_pickle)


def _model(default: str | None, words: str) -> Callable[[F], F]:
    shown = default is not None
    option = click.option(
        "--model", type=ModelName(), default=default, show_default=shown, metavar="NAME|PATH", help=words
    )
    return gathered("model", together(option, told), subject)


model = _model(
    "fashion-mnist",
    "The name of a built-in model, the path of a model, or hf:ORG/NAME[@REVISION] of Hugging Face's hub.",
)
its_model = _model(
    None, "The model that encoded the latents.  [default: the model and the condition that the file names]"
)


def solver(default: str) -> Callable[[F], F]:
    """--solver NAME. default: what a command takes without it, in words."""
    return click.option(
        "--solver",
        type=SolverName(),
        default=None,
        help=f"A solver that `odeddim solvers` lists.  [default: {default}]",
    )


def steps_by(default: str) -> Callable[[F], F]:
    """--steps N. default: what a command takes without it, in words."""
    return click.option(
        "--steps",
        type=click.IntRange(1, defaults.MOST_STEPS),
        default=None,
        help=f"The number of steps. Adaptive solvers take none.  [default: {default}]",
    )


steps = steps_by("50; to decode, as encoded")


def grid_by(default: str) -> Callable[[F], F]:
    """--grid NAME. default: what a command takes without it, in words."""
    return click.option(
        "--grid",
        default=None,
        metavar="NAME|FILE",
        help="The noise levels: linear, quadratic, trailing, leading, linspace, log, karras, karras:RHO, edm, ays, "
        "ays:LIST, xue, xue:P, flow, flow:SHIFT (of flow models), or a file: a list of σ, or a plan (plan.json), whose "
        "nodes are taken.  "
        f"[default: {default}]",
    )


grid = grid_by("the grid that the solver recommends; to decode, as encoded")
end = click.option(
    "--end",
    type=click.Choice(["zero", "sigma_min"]),
    default="zero",
    show_default=True,
    help="Where images lie: at σ = 0, one Euler step below the other nodes, as in the paper; or at the model's lowest "
    "noise level σ_1.",
)


def _settings(*, tolerances: bool = True) -> Callable[[F], F]:
    """--set and the settings that have options of their own. tolerances: with --rtol and --atol."""
    both = (
        click.option(
            "--rtol", type=Tolerance(0, min_open=True), default=None, help="Relative tolerance of an adaptive solver."
        ),
        click.option(
            "--atol", type=Tolerance(0, min_open=True), default=None, help="Absolute tolerance of an adaptive solver."
        ),
    )
    return together(
        click.option(
            "--set",
            "assignments",
            type=Assignment(),
            multiple=True,
            metavar="NAME=VALUE",
            help="A setting of the solver, such as gamma=0.9 of bdia; `odeddim explain` lists them. Can be repeated.",
        ),
        *(both if tolerances else ()),
        click.option(
            "--max-nfe",
            type=click.IntRange(1),
            default=None,
            help="The most evaluations that an adaptive solver may take in a run.",
        ),
    )


def settings_of(own: dict[str, Any]) -> dict[str, Any]:
    """The solver's settings among these values, those of --set among them; they are taken out."""
    found = {name: own.pop(name, None) for name in ("rtol", "atol", "max_nfe")}
    for name, value in own.pop("assignments", ()):
        if name in found or name in own or any(name == it.name for it in click.get_current_context().command.params):
            raise click.UsageError(f"--set {name}={value}: {name} is an option of its own, --{name.replace('_', '-')}")
        found[name] = value
    return {name: value for name, value in found.items() if value is not None}


tolerances = gathered("settings", _settings(), settings_of)
settings_but_tolerances = gathered("settings", _settings(tolerances=False), settings_of)
plan = click.option(
    "--plan",
    type=click.Path(path_type=Path),
    default=None,
    help="Run the plan of this file: its solver, settings, nodes and end. `odeddim fit` and `odeddim bench "
    "work-precision --find` write plans. It excludes the options that say the same.",
)


def _how(own: dict[str, Any]) -> dict[str, Any]:
    """What jobs take as `**how`: what was said of the run, or `plan=` alone."""
    more = beside(own)
    more |= {"portable": made} if (made := own.pop("portable", None)) is not None else {}
    path, others = own.pop("plan", None), [name for name in (*own, "tol") if is_given(name)]
    typed = [name for name in others if is_typed(name)]
    if path is None or (typed and not is_typed("plan")):
        settings = settings_of(own)
        said = {name: value for name, value in own.items() if value is not None and (name != "end" or is_given("end"))}
        return {**said, **settings, **more}
    from odeddim.plans import Plan

    for name in typed if is_typed("plan") else others:
        raise click.UsageError(f"--plan says how to run: leave out --{name.replace('_', '-')}")
    return {"plan": Plan.load(path), **more}


def run(
    default: str, *more: Callable[[F], F], steps: Callable[[F], F] = steps, grid: Callable[[F], F] = grid
) -> Callable[[F], F]:
    """The options that say how a model is run.

    default: as of `solver`; more: options besides; steps, grid: these two options.
    """
    return gathered("how", together(solver(default), steps, grid, *more, _settings()), _how)


def machine_of(own: Mapping[str, Any]) -> Machine:
    """Where to run."""
    if own.get("workers") not in (None, 1) and own.get("engine") != "ray":
        from odeddim.runs import starting

        starting.begin()  # while this process loads PyTorch, the one whose copies share the work does too
    from odeddim.jobs import Machine

    return Machine(**own)


place = together(
    click.option(
        "--device", default=None, metavar="cpu|cuda|...", help="Where to run.  [default: a GPU if there is one]"
    ),
    click.option(
        "--dtype",
        type=click.Choice(forms.DTYPES),
        default=None,
        help="The dtype of the network. The state is float64 with float64, else float32. bfloat16, float16 and tf32 "
        "are for previews; tf32 is float32 with products of numbers that CUDA rounds to 10 bits; autocast-... is "
        "float32 where torch takes that to be needed.  [default: float32; to decode, as encoded]",
    ),
    forms.compiled,
    forms.channels_last,
)
batch_size = click.option(
    "--batch-size",
    type=click.IntRange(1, MOST_AT_ONCE),
    default=None,
    help="Images in work at once. This changes memory and speed, not the result.  [default: about 32, or the network "
    "batch if that is larger]",
)
threads = click.option(
    "--threads",
    type=click.IntRange(1, MOST_THREADS),
    default=None,
    help="Threads of a CPU. The last digits of the result depend on them. Several processes are faster and do not "
    "change it (--workers, where there is that).  [default: as encoded, else 1]",
)
network_batch = click.option(
    "--network-batch",
    type=click.IntRange(1, MOST_AT_ONCE),
    default=None,
    help="Images that the network sees at once; a smaller batch is filled up. The last digits of the result depend on "
    "this number, and not on the other images.  [default: as encoded, else 8 on a CPU, 64 on a GPU]",
)
whole_machine = together(place, batch_size, network_batch, threads)
machine = gathered("machine", whole_machine, machine_of)


def machine_with_threads(default: int | None, *more: Callable[..., Any]) -> Callable[[F], F]:
    """Device, dtype, threads, and more. default: the threads; None for one on each core."""
    words = f"Threads of a CPU.  [default: {default or 'all cores'}]"
    its_threads = click.option("--threads", type=click.IntRange(1, MOST_THREADS), default=default, help=words)
    return gathered("machine", together(place, *more, its_threads), machine_of)


tol = click.option(
    "--tol",
    type=Tolerance(0, min_open=True),
    default=None,
    help="Find for each image, in place of --steps, the fewest steps whose error is below this: rms over pixels in "
    "[-1, 1], and over the autoencoder's data for latent models.",
)


overwrite = click.option(
    "--overwrite", is_flag=True, help="Begin anew and replace what is there.  [default: go on where a run stopped]"
)
replace = click.option("--overwrite", is_flag=True, help="Replace whatever is there under the name of the output.")
wait = click.option(
    "--wait", is_flag=True, help="Wait for latents that another process is still writing, until all of them are there."
)
count = click.option(
    "-n",
    "--count",
    type=click.IntRange(1),
    default=None,
    help="How many images to take, from the first.  [default: all]",
)
seed = click.option(
    "--seed", type=click.IntRange(0, MOST_SEED), default=0, show_default=True, help="The seed of the noise."
)
size = click.option(
    "--size",
    type=Shape(),
    default=None,
    metavar="C,[F,]H,W",
    help="The shape of the images, for models that take several sizes or any.  [default: the model's own]",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def _form(own: dict[str, bool]) -> str | None:
    """The form of the figures that is printed in place of a table."""
    if own["as_json"] and own["as_csv"]:
        raise click.UsageError("give --json or --csv, not both")
    return "json" if own["as_json"] else "csv" if own["as_csv"] else None


form = gathered(
    "form",
    together(
        click.option("--json", "as_json", is_flag=True, help="Print the figures of each image as JSON."),
        click.option("--csv", "as_csv", is_flag=True, help="Print the figures of each image as CSV."),
    ),
    _form,
)
