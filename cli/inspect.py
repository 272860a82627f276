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
    """Show what a latent file (z.h5) or a model (a built-in name or a path) holds; without one, the built-in model.

    \b
    Examples:
      odeddim inspect z.h5
      odeddim inspect fashion-mnist
      odeddim inspect MODEL --json
    """
    from odeddim.models import BUILT_IN, SUFFIXES, format_of
    from odeddim.types import pick

    path = Path(file)
    if file not in BUILT_IN and not os.path.exists(path):
        pick(file, BUILT_IN, "model (and there is no such file)")
    is_model = file in BUILT_IN or os.path.isdir(path) or path.suffix.lower() in SUFFIXES or format_of(path) is not None
    facts = _model_facts(file) if is_model else _latent_facts(path)
    if as_json:
        import json

        options.echo_json(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        options.echo(f"{name.ljust(width)}  {_text(value)}")


def _latent_facts(path: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from odeddim.latents.latent_file import UNIT, LatentFile

    with LatentFile(path) as file:
        state = file.read(0, min(len(file), 256))
        x = state.x.double()
        made = asdict(file.provenance)
        schedule = made.pop("schedule")
        return {
            "latents": len(file) if len(file) == file.total else f"{len(file)} of {file.total} so far",
            "shape": list(file.shape),
            "dtype": file.dtype,
            "unit": UNIT,
            "sigma": file.sigma,
            "auxiliary states": f"{file.aux_count}, kept by {file.kept}" if file.kept else file.aux_count,
            **{
                f"{key} per image": f"{float(values.double().min()):g} to {float(values.double().max()):g}"
                for kind in ("report", "certificate")
                for key, values in file.figures(kind).items()
            },
            "mean of x_T": float(x.mean()),
            "variance of x_T": float(x.var()),
            **{key.replace("_", " "): value for key, value in made.items() if value not in ("", {})},
            "schedule": {
                key: value if not isinstance(value, list) else f"{len(value)} values" for key, value in schedule.items()
            },
            "nodes": file.nodes.tolist(),
            "first names": file.names[:5],
        }


def _model_facts(name: str) -> dict[str, Any]:
    from odeddim.models import load

    field = load(name, allow_pickle=options.of_model().get("allow_pickle", False))
    facts: dict[str, Any] = {
        "model": field.name,
        "hash": field.sha256 or "none: an exact field",
        "predicts": field.predicts,
        "time": field.time if isinstance(field.time, str) else "a function of its own",
        "shape": list(field.shape) if field.shape else "any",
        "schedule": repr(field.schedule),
        **({} if field.codec is None else {"shape of images": list(field.codec.image_shape)}),
        **({} if field.conditions is None else {"takes": field.conditions.words}),
    }
    parameters = getattr(field.eps, "parameters", None)
    if parameters is not None:
        facts["parameters"] = sum(parameter.numel() for parameter in parameters())
        facts["dtype"] = str(field.dtype).removeprefix("torch.")
    facts.update({key: value for key, value in field.details.items() if value})
    return facts


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        shown = value if len(value) <= 8 else [*value[:4], "...", *value[-3:]]
        return ", ".join(_text(item) for item in shown)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
