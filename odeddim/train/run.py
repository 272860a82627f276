"""A training run: a folder that the same call continues after any stop.

    model.safetensors, model.json, checkpoint.safetensors        see `odeddim.train.checkpoint`
    log.csv                  step, loss, validation_loss, seconds
    samples-XXXXXX.png       samples of the averaged model at that step: DDIM with 50 steps, always from the same noise

Batches, labels and noise depend on (seed, step) only. On the CPU with the same number of threads, a run that was
stopped and continued therefore gives the same bits as a run without a stop. The first checkpoint is written before the
first step. Of all files of a step, the checkpoint is written last, so a run can be killed at any time.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odeddim.api import sample
from odeddim.ode.devices import device_of
from odeddim.storage.images import ImageSource, check_shape
from odeddim.storage.png import MARK
from odeddim.storage.sheets import Captions, Layout, save_sheet
from odeddim.train.batches import batches
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
    """The progress of a run.

    Attributes:
        step: The number of steps made.
        steps: The number of steps of the whole run.
        loss: The mean loss since the last row of the log; NaN before the first step of this call.
        rate: The steps per second in this call; 0 before its first step.
        validation_loss: The validation loss, if it was computed at this step.
        logged: Whether the log has a row for this step.
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
    """Train a U-Net for one of `odeddim.train.loss.OBJECTIVES`.

    In the main thread, Ctrl-C, SIGTERM and SIGHUP take effect after the present step is saved.

    Args:
        images: The images (N, C, H, H).
        folder: The folder of the run, made if it does not exist. A run in the folder is continued on the same images.
            Architecture and settings may then be left out. The settings in `odeddim.train.settings.CHANGEABLE` may
            change; all others must stay the same. A complete run stays as it is.
        validation: Held-out images for a validation loss at each checkpoint.
        architecture: The settings of `UNet` except in_channels and image_size, which the images determine.
        settings: The settings of the training.
        device: The device; by default a GPU if there is one.
        command: The command line that started the run, for model.json.
        report: A function that is called before the first step, about once a second, and for each row of the log.

    Returns:
        The folder, which `odeddim.load` reads.

    Raises:
        InputError: If the images cannot be used, if another process uses the folder, if the folder holds files that are
            not the run's own, if settings contradict the run, or if the loss is not finite any more. In the last case,
            the checkpoint is an earlier one.
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
            every, pinned = slice(None), place.type == "cuda"
            with contextlib.closing(batches(images, trainer.settings, trainer.step, every, pinned=pinned)) as reading:
                _loop(trainer, reading, validation, folder, interrupted, report or (lambda progress: None))
    return folder


def _loop(
    trainer: Trainer,
    reading: Iterable[Tensor],
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
    for x0 in reading:
        losses.append(trainer.advance(x0))
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
            f"the loss is {loss} after step {step}: start again with a lower learning rate or in float32 (the "
            f"checkpoint in {folder} is of an earlier step)"
        )


@torch.no_grad()
def _draw(trainer: Trainer, folder: Path) -> None:
    """Draw and save the sample sheet of this step."""
    sheet = sample(SHEET_IMAGES, "euler", grid="linear", steps=50, model=trainer.field())
    place, captions = sheet_of(folder, trainer.step), Captions()
    layout = Layout.of(len(sheet), sheet.shape[1:], captions)
    save_sheet(((image, {}) for image in sheet), place, layout, captions, {MARK: mark_of_run(trainer)})


def _architecture(given: Mapping[str, Any], images: ImageSource) -> dict[str, Any]:
    """Return the settings of the U-Net for these images, with lists in place of tuples, as in `UNet.config`."""
    channels, height, width = images.shape
    if height != width:
        raise InputError(f"the images have {height}×{width} pixels, but training needs square images: give resize=SIZE")
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    return {**given, "in_channels": channels, "image_size": height}
