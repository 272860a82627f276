"""`odeddim inspect`: what a model or a file that odeddim wrote holds."""

from __future__ import annotations

from typing import Any

import click

from odeddim.cli import options
from odeddim.cli.kinds import ModelName


@click.command("inspect")
@click.argument("file", type=ModelName(), metavar="[FILE|MODEL]", default="fashion-mnist")
@options.allow_pickle
@options.as_json
def command(file: str, as_json: bool) -> None:
    """Show what a model (a name or a path, as of --model), or a file that odeddim wrote, holds. The default is the
    built-in model.

    It knows latent files, images in HDF5, folders of images, sheets, plans, training runs, the tables, figures and
    measurements of benches, and the parts of runs that are not finished.

    \b
    Examples:
      odeddim inspect z.h5
      odeddim inspect out/
      odeddim inspect fashion-mnist
      odeddim inspect MODEL --json
    """
    from odeddim import jobs

    facts = jobs.inspect(file, allow_pickle=options.of_model().get("allow_pickle", False))
    if as_json:
        import json

        options.echo_json(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        options.echo(f"{name.ljust(width)}  {_text(value)}")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        shown = value if len(value) <= 8 else [*value[:4], "...", *value[-3:]]
        return ", ".join(_text(item) for item in shown)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
