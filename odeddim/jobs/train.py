"""Train a model on images, or go on with a run that was stopped: `odeddim train` as a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from odeddim.bench.features import Features
from odeddim.jobs.distance import distance_to
from odeddim.jobs.subject import tell_skipped
from odeddim.ode.devices import place_of
from odeddim.storage.images import check_shape
from odeddim.storage.preparation import Preparation
from odeddim.storage.sources import Images, source_of
from odeddim.storage.sources import place_of as place_of_images
from odeddim.storage.workers import rank
from odeddim.train import run
from odeddim.train.checkpoint import CHECKPOINT, saved_settings, saved_step
from odeddim.train.processes import joined
from odeddim.train.run import Measure, Progress
from odeddim.train.settings import Settings
from odeddim.types import InputError, pick

ARCHITECTURE = ("channels", "multipliers", "blocks", "attention", "dropout")
"""The settings that are of the network and not of the training, see `odeddim.models.networks.unet.UNet`."""


@dataclass(frozen=True)
class Trained:
    """A finished training run.

    Args:
        folder: holds the model; `odeddim.load` reads it.
        steps: how many steps the run has made in all.
        was_complete: whether it had made them before, so that nothing was left to do.
        skipped: how many files were left out.
    """

    folder: Path
    steps: int
    was_complete: bool
    skipped: int = 0


def train(
    images: Images,
    output: str | Path,
    *,
    validation: Images = None,
    prepare: Preparation | None = None,
    device: str | None = None,
    command: str = "",
    progress: Callable[[Progress], Any] | None = None,
    reference: Images = None,
    features: str | Path | Features | None = None,
    **settings: Any,
) -> Trained:
    """Train a U-Net on images, by DDPM's loss and linear schedule or another objective; the weights are averaged.

    Under torchrun the processes share each batch, and the bits are those of one process with as many `microbatches`. A
    run that was stopped, by whatever, goes on with the same call; so does a complete one with more steps. Settings
    that are left out are those of the run; others than those it was begun with are refused.

    Args:
        images: as of `odeddim.jobs.encode`; all images of one square size, unless `prepare` makes them so.
        output: the folder of the run: the model, a checkpoint, log.csv and sample sheets.
        validation: held-out images, for their loss.
        prepare: what is done to the images of a path, as of `odeddim.Preparation`.
        device: where to train. Default: a GPU if there is one.
        command: what is written into model.json as the origin of the model.
        progress: called before the first step, about once a second, and at every row of the log.
        reference: held-out images, whose Fréchet distance from samples is logged at each sample sheet.
        features: what the distance is of, as of `odeddim.bench.features.load_features`. By default, for images of
            1×28×28 only, the built-in classifier.
        **settings: fields of `odeddim.train.settings.Settings`, and `ARCHITECTURE` of the network. Default of
            precision: bfloat16 on a GPU that has it, else float32.

    Returns:
        The folder, the steps made, and whether the run was complete already.

    Raises:
        InputError: for unknown or impossible settings, images that cannot be used, a folder with files of others, and
            under torchrun for a number of processes that cannot share a batch.

    Example:
        odeddim.jobs.train.train("photos32/", "model", multipliers=(1, 2, 2), attention=(16,), steps=100_000)
    """
    output, names = Path(output), {field.name for field in fields(Settings)} - {"prepared"}
    for name in settings:
        pick(name, (*sorted(names), *ARCHITECTURE), "setting of training")
    place = place_of(device)
    if Path("-") in (place_of_images(images), place_of_images(validation)) and rank()[1] > 1:
        raise InputError("several processes cannot share a list on standard input: give a folder or a file of images")
    with joined(place) as processes:
        base, made = processes.from_first(lambda: _begun(output, place))
        prepare = Preparation.of(base.prepared or {}) if prepare is None else prepare
        source = source_of(images, prepare=prepare)
        held_out = None if validation is None else source_of(validation, prepare=prepare)
        skipped = sum(len(each.skipped) for each in (source, held_out) if each is not None)
        prepared = (prepare.to_dict(skipped) if prepare else source.prepared) or None
        chosen = {name: value for name, value in settings.items() if name in names}
        if made is None and processes.count > 1:
            chosen.setdefault("microbatches", processes.count)
        wanted = replace(base, **chosen, prepared=prepared)
        measures: list[Measure] = []
        if reference is not None:
            others = source_of(reference, prepare=prepare)
            check_shape(others, source.shape, "the reference")
            processes.from_first(lambda: measures.append(distance_to(others, features, wanted.distance_images, place)))
        elif features is not None:
            raise InputError("features=... are of a distance from reference images: give reference=... too")
        run.train(
            source,
            output,
            validation=held_out,
            architecture={name: value for name, value in settings.items() if name not in names},
            settings=wanted,
            device=place,
            command=command,
            report=progress,
            measure=measures[0] if measures else None,
        )
    for each in (source, held_out):
        if each is not None:
            tell_skipped(each)
    return Trained(output, max(made or 0, wanted.steps), (made or 0) >= wanted.steps, skipped)


def _begun(output: Path, place: torch.device) -> tuple[Settings, int | None]:
    """The settings of the run in a folder and its steps; of a new run its defaults, and None."""
    if (output / CHECKPOINT).exists():
        return saved_settings(output), saved_step(output)
    return Settings(precision=_precision(place)), None


def _precision(place: torch.device) -> str:
    """The arithmetic of a new run on this device."""
    return "bfloat16" if place.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
