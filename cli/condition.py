"""What the command line says about a model besides its name: its condition, and whether its file may run code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from odeddim.cli.kinds import Interval, ModelName

MODEL_OPTIONS = "odeddim.model"
F = TypeVar("F", bound=Callable[..., Any])


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


allow_pickle = click.option(
    "--allow-pickle",
    cls=Chosen,
    is_flag=True,
    help="Read models whose file holds code, and run it (EDM's .pkl): only if you trust where the file comes from.",
)

EACH = "FILE.csv:COLUMN|FILE.txt|folder"


def each(folders: str, numbers: str = "") -> tuple[Callable[[F], F], ...]:
    """The options of conditions that each image has of its own.

    Args:
        folders: What else than columns and lines the conditions may come from, in words; "" for nothing else.
        numbers: How labels are found there.
    """
    metavar = EACH if folders else EACH.removesuffix("|folder")
    whence = f"a column of a CSV, or the lines of a text{folders}"
    return (
        click.option(
            "--labels-from", metavar=metavar,
            help=f"A class for each image, in place of --label for all: {whence}{numbers}.",
        ),
        click.option(
            "--prompts-from", metavar=metavar,
            help=f"A text for each image, in place of --prompt for all: {whence}.",
        ),
    )  # fmt: skip


OPTIONS = (
    click.option("--label", cls=Chosen, type=click.IntRange(0), help="The class, for models of classes."),
    click.option(
        "--prompt", cls=Chosen, metavar="TEXT", help="The text, for models of texts.  [default: the empty text]"
    ),
    click.option(
        "--negative-prompt",
        cls=Chosen,
        metavar="TEXT",
        help="The text that guidance leads away from.  [default: the empty text]",
    ),
    click.option(
        "--guidance",
        cls=Chosen,
        type=float,
        metavar="W",
        help="Classifier-free guidance: ε = ε_none + W·(ε_condition - ε_none). Values other than 1 evaluate each image "
        "twice.  [default: 1]",
    ),
    click.option(
        "--guide",
        cls=Chosen,
        type=ModelName(),
        metavar="NAME|PATH",
        help="The model that --guidance leads away from, in place of --model under no condition: ε = ε_guide + "
        "W·(ε - ε_guide). One without conditions, or a smaller or less trained one (autoguidance).",
    ),
    click.option(
        "--guidance-interval",
        "interval",
        cls=Chosen,
        type=Interval(),
        metavar="LOW,HIGH",
        help="The noise levels σ between which --guidance is applied.  [default: all]",
    ),
    click.option(
        "--guidance-rescale",
        cls=Chosen,
        type=click.FloatRange(0, 1),
        metavar="PHI",
        help="How far the guided answer of the network is scaled to the standard deviation of its answer under the "
        "condition, 0 to 1.  [default: 0]",
    ),
    click.option(
        "--low-guidance",
        cls=Chosen,
        type=float,
        metavar="W",
        help="The guidance of the network for the lower noise levels, of a model with two (Wan 2.2).  "
        "[default: --guidance]",
    ),
    click.option(
        "--distilled-guidance",
        cls=Chosen,
        type=float,
        metavar="W",
        help="The guidance that a network distilled from it takes as an input (Flux.1 dev): no second evaluation.  "
        "[default: 1]",
    ),
)
"""The options of a condition, each an argument of `VectorField.conditioned`."""
