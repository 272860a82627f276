"""A training run: a folder that the same call continues, whenever it was stopped.

    model.safetensors, model.json, checkpoint.safetensors        see `odeddim.train.checkpoint`
    log.csv                  step, loss, validation_loss, seconds
    samples-XXXXXX.png       what the averaged model draws at that step: DDIM, 50 steps, always from the same noise

Batches, labels and noise are functions of (seed, step) alone. So a run that was stopped and is continued goes on, on
the CPU with as many threads as before, bit for bit as if nothing had happened. The first checkpoint is that of step 0,
and of all files of a step the checkpoint is written last: whenever a run is killed, the same call continues it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odeddim.api import sample
from odeddim.ode.devices import device_of
from odeddim.storage.images import ImageSource, check_shape
from odeddim.storage.png import MARK, save_sheet
from odeddim.train.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint, save_model
from odeddim.train.folder import alone, check_continued, check_new, mark_of_run, sheet_of
from odeddim.train.interrupts import postponed
from odeddim.train.log import Log
from odeddim.train.loss import validation_loss
from odeddim.train.settings import Settings
from odeddim.train.trainer import Trainer
from odeddim.types import InputError

SHEET_IMAGES = 36


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Args:
        step: steps made.
        steps: steps to make in all.
        loss: mean since the last row of the log; NaN before the first step of this call.
        rate: steps per second since the start or resumption; 0 before the first step of this call.
        validation_loss: if it was just computed.
        logged: whether this is a row of the log.
    """

    step: int
    steps: int
    loss: float = math.nan
    rate: float = 0.0
    validation_loss: float | None = None
    logged: bool = False


Report = Callable[[Progress], Any]


def train(
    images: ImageSource,
    folder: str | Path,
    *,
    validation: ImageSource | None = None,
    architecture: Mapping[str, Any] | None = None,
    settings: Settings | None = None,
    device: str | torch.device | None = None,
    command: str = "",
    report: Report | None = None,
) -> Path:
    """Train a U-Net with DDPM's linear schedule, or as a rectified flow.

    Ctrl-C, SIGTERM and SIGHUP (in the main thread) arrive when the step that is being made is saved.

    Args:
        images: (N, C, H, H).
        folder: of the run; made if need be. A run that it holds is continued, on the same images: architecture and
            settings may then be left out, those of `odeddim.train.settings.CHANGEABLE` may change, others must be what
            they were. A complete run is left alone.
        validation: held-out images, for `validation_loss` at every checkpoint.
        architecture: settings of `UNet` besides in_channels and image_size, which the images decide.
        settings: how to train.
        device: where to train. Default: a GPU if there is one.
        command: written into model.json.
        report: called before the first step, about once a second, and at every row of the log.

    Returns:
        The folder, which `odeddim.load` reads.

    Raises:
        InputError: for images that cannot be used, a folder in use or with files of others, settings that contradict
            the run, and for a loss that is no longer finite (the checkpoint then is the last one before).
    """
    folder = Path(folder)
    place = device_of(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    wanted = _architecture(architecture or {}, images)
    if validation is not None:
        check_shape(validation, images.shape, "the validation set")
    with postponed() as interrupted, alone(folder), torch.random.fork_rng([place] if place.type == "cuda" else []):
        log = Log(folder)
        if (folder / CHECKPOINT).exists():
            trainer = load_checkpoint(folder, place)
            trainer.adapt(settings, wanted, len(images))
            check_continued(folder, trainer)
            log.forget_after(trainer.step)
        else:
            trainer = Trainer(wanted, settings or Settings(), len(images), place)
            check_new(folder, trainer)
            log.begin()
            save_checkpoint(trainer, folder)
        if trainer.step < trainer.settings.steps:
            trainer.commands += [command] if command else []
            _loop(trainer, images, validation, folder, interrupted, report or (lambda progress: None))
    return folder


def _loop(
    trainer: Trainer,
    images: ImageSource,
    validation: ImageSource | None,
    folder: Path,
    interrupted: Callable[[], bool],
    report: Report,
) -> None:
    settings, log = trainer.settings, Log(folder)
    report(Progress(trainer.step, settings.steps))
    began, earlier, first = time.monotonic(), trainer.seconds, trainer.step
    told = began
    losses: list[Tensor] = []
    while trainer.step < settings.steps:
        losses.append(trainer.advance(images))
        stop = interrupted()
        last = stop or trainer.step == settings.steps
        saves = last or trainer.step % settings.checkpoint_every == 0
        logs = saves or trainer.step % settings.log_every == 0
        now = time.monotonic()
        if not logs and now - told < 1:
            continue
        told = now
        loss = float(torch.stack(losses).mean())
        _check_finite(loss, trainer.step, folder)
        trainer.seconds = earlier + now - began
        validated = validation_loss(trainer.field(), validation) if saves and validation is not None else None
        if logs:
            log.append(trainer.step, loss, validated, trainer.seconds)
            losses = []
        if trainer.step % settings.samples_every == 0 or trainer.step == settings.steps:
            _draw(trainer, folder)
        if saves:
            said = {"loss": loss} if validated is None else {"loss": loss, "validation_loss": validated}
            save_model(trainer, folder, said)
            save_checkpoint(trainer, folder)
        report(Progress(trainer.step, settings.steps, loss, (trainer.step - first) / (now - began), validated, logs))
        if stop:
            return


def _check_finite(loss: float, step: int, folder: Path) -> None:
    if not math.isfinite(loss):
        raise InputError(
            f"the loss is {loss} after step {step}: start again with a lower learning rate or in float32 "
            f"(the last checkpoint in {folder} is from before)"
        )


def _draw(trainer: Trainer, folder: Path) -> None:
    """The sample sheet of this step."""
    sheet = sample(SHEET_IMAGES, "euler", grid="linear", steps=50, model=trainer.field())
    save_sheet(sheet, sheet_of(folder, trainer.step), notes={MARK: mark_of_run(trainer)})


def _architecture(given: Mapping[str, Any], images: ImageSource) -> dict[str, Any]:
    """The settings of the U-Net for these images; lists where tuples are given, as its own config has them."""
    channels, height, width = images.shape
    if height != width:
        raise InputError(f"the images are {height}×{width} pixels, and the U-Net is made for squares: give resize=SIZE")
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    return {**given, "in_channels": channels, "image_size": height}
