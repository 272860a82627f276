"""`odeddim inspect`: what a latent file or a model holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from odeddim.cli import options


@click.command("inspect")
@click.argument("file", metavar="[FILE|MODEL]", default="fashion-mnist")
@options.allow_pickle
@options.as_json
def command(file: str, as_json: bool) -> None:
    """Show what a latent file (z.h5) or a model (a name or a path, as of --model) holds. The default is the built-in
    model.

    \b
    Examples:
      odeddim inspect z.h5
      odeddim inspect fashion-mnist
      odeddim inspect MODEL --json
    """
    from odeddim.latents.latent_file import LatentFile
    from odeddim.models import BUILT_IN, SUFFIXES, format_of, hub, load, summary
    from odeddim.types import pick

    path = Path(file)
    by_name = file in BUILT_IN or hub.is_named(file)
    if not by_name and not os.path.exists(path):
        pick(file, BUILT_IN, "model (and there is no such file)")
    is_model = by_name or os.path.isdir(path) or path.suffix.lower() in SUFFIXES or format_of(path) is not None
    if is_model:
        facts = summary(load(file, allow_pickle=options.of_model().get("allow_pickle", False)))
    else:
        with LatentFile(path) as latents:
            facts = latents.summary()
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
