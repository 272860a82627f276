"""`odeddim explain`: what a run will do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from odeddim import defaults
from odeddim.cli import options, tops
from odeddim.types import told_briefly

NOISES = 4
"""Of --sensitivity, unless a number is given."""
LONG, ENDS = 24, 8
"""Lists above `LONG` lines show so many at either end, unless --all is given."""

if TYPE_CHECKING:
    from odeddim.checks.explanation import Explanation
    from odeddim.jobs import Subject


@click.command("explain")
@options.model
@options.run(defaults.ENCODE, options.end, tops.top, options.plan)
@click.option(
    "--direction",
    type=click.Choice(["encode", "decode"]),
    default="encode",
    show_default=True,
    help="Encoding walks the noise levels upwards, decoding downwards.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float64"]),
    default="float32",
    show_default=True,
    help="The dtype of the state, for the growth of rounding errors.",
)
@click.option(
    "--sensitivity",
    type=click.IntRange(1),
    is_flag=False,
    flag_value=NOISES,
    default=None,
    metavar="[N]",
    help="Find how much the decode amplifies a small change of the latent at most, at each of N noises: the largest "
    f"singular value of its Jacobian, by power iteration. This runs the network.  [N: {NOISES} if not given]",
)
@click.option("--all", "every", is_flag=True, help="Print all nodes and all coefficients of a long run.")
@options.as_json
def command(
    model: Subject, how: dict[str, Any], direction: str, dtype: str, sensitivity: int | None, every: bool, as_json: bool
) -> None:
    """Print what a run will do: nodes, labels, coefficients, evaluations, growth of rounding errors.

    The coefficients are those of the points x̄0, x̄1, ... and of the network's outputs ε0, ε1, ... at these points.
    For a reversible solver, the output is the list of operations on its two registers u and v; the inverse is the same
    list backwards. Of long lists both ends are printed, unless --all or --json is given. --plan explains the run of a
    plan file.

    \b
    Examples:
      odeddim explain --solver ab3 --grid karras --steps 10
      odeddim explain --solver bdia --grid linear --steps 100 --set gamma=0.5
      odeddim explain --solver dpmpp-2m --steps 20 --direction decode --json
      odeddim explain --solver dpmpp-2m --steps 5 --top gaussian:20
      odeddim explain --plan plan.json
      odeddim explain --solver unipc-2 --steps 5 --sensitivity 1
    """

    from odeddim.checks.explanation import explain
    from odeddim.jobs.machine import Machine
    from odeddim.jobs.subject import subject_on

    model_here = subject_on(Machine("cpu").at(), model)
    made = explain(model=model_here, direction=direction, dtype=dtype, sensitivity=sensitivity or 0, **how)
    if as_json:
        options.echo_json(made.to_json())
        return
    options.echo(f"{made.solver}: {made.family}, order {made.order}. {made.reference}")
    if made.settings:
        options.echo(f"Settings: {', '.join(_setting(name, made) for name in made.settings)}")
    steps = len(made.nodes) - 1 - (made.carried is not None)
    count = "evaluations as the data need them" if made.evaluations is None else f"{made.evaluations} evaluations"
    options.echo(f"{made.model}, end at {made.end}: {made.direction}s in {steps} steps, {count} per image")
    if made.carried is not None:
        low, high = made.carried
        options.echo(
            f"Between σ = {low:.6g} and {high:.6g} the Gaussian of the model's data carries x̄, without an evaluation."
        )
    options.echo()
    options.echo(f"{'node':>5}  {'σ':>14}  {'label t':>10}")
    points = enumerate(zip(made.nodes, made.labels, strict=True))
    for line in _ends([f"{n:>5}  {sigma:>14.9g}  {label:>10.3f}" for n, (sigma, label) in points], every):
        options.echo(line)
    options.echo()
    for line in _ends(made.instructions, every):
        options.echo(line)
    if len(made.nodes) == 2 and min(made.nodes) == 0:
        options.echo("The step at σ = 0 is Euler's for every solver.")
    elif not made.instructions:
        options.echo("No list of coefficients: they depend on the data or on noise, or another library holds them.")
    if made.instructions and made.reversible and made.direction == "decode":
        options.echo("(A run begun afresh. The way back of an encoding undoes that one's list instead.)")
    if made.growth is not None:
        grows = made.growth
        options.echo()
        options.echo(
            f"Rounding errors ({made.dtype}) grow by at most {grows.encode:.3g} on the way up and {grows.decode:.3g} "
            f"on the way down: {grows.latent:.1e} of the latents' scale, {grows.image:.1e} of the images'."
        )
    if made.gaussian is not None:
        options.echo(f"Begun afresh on Gaussian data (0 ± 0.5), such a run ends {made.gaussian:.2g} of its value off.")
    if made.sensitivity:
        shown = ", ".join(f"{value:.3g}" for value in made.sensitivity)
        options.echo(f"The decode amplifies a small change of the latent by at most, at each noise: {shown}.")
    if made.refused:
        options.echo(f"Such a run is refused: {made.refused}")


def _ends(lines: Sequence[str], every: bool) -> Sequence[str]:
    """The lines to print of a list."""
    if every or len(lines) <= LONG:
        return lines
    return [*lines[:ENDS], f"... {len(lines) - 2 * ENDS} more: --all prints them ...", *lines[-ENDS:]]


def _setting(name: str, made: Explanation) -> str:
    """A setting as text: its value and, if that was given, its default."""
    default = told_briefly(made.settings[name])
    chosen = made.chosen.get(name)
    return f"{name} = {default}" if chosen is None else f"{name} = {told_briefly(chosen)} (default {default})"
