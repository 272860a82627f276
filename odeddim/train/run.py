"""A training run: a folder that the same call continues after any stop.

    model.safetensors, model.json, checkpoint.safetensors        see `odeddim.train.checkpoint`
    log.csv                  see `odeddim.train.log`
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
from odeddim.ode.field import VectorField
from odeddim.storage.images import ImageSource, check_shape
from odeddim.storage.png import MARK
from odeddim.storage.sheets import Captions, Layout, save_sheet
from odeddim.train.batches import batches
from odeddim.train.checkpoint import (
    CHECKPOINT,
    Content,
    content_of,
    load_checkpoint,
    save_checkpoint,
    save_model,
    trainer_of,
)
from odeddim.train.folder import alone, check_continued, check_new, mark_of_run, sheet_of
from odeddim.train.interrupts import postponed
from odeddim.train.log import Board, Log, Row, Sink
from odeddim.train.loss import validation_loss
from odeddim.train.processes import Processes, joined
from odeddim.train.settings import Settings, learning_rate
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
        distance: The Fréchet distance of samples, if it was measured at this step.
        logged: Whether the log has a row for this step.
    """

    step: int
    steps: int
    loss: float = math.nan
    rate: float = 0.0
    validation_loss: float | None = None
    logged: bool = False
    distance: float | None = None


Report = Callable[[Progress], Any]
Measure = Callable[[VectorField], float]


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
    measure: Measure | None = None,
) -> Path:
    """Train a U-Net for one of `odeddim.train.loss.OBJECTIVES`.

    In the main thread, Ctrl-C, SIGTERM and SIGHUP take effect after the present step is saved. Under torchrun the
    processes share each batch, and the first one writes.

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
        measure: A function of the averaged model, for a distance in the log at each sample sheet. Only the first of
            several processes calls it.

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
    with contextlib.ExitStack() as stack:
        processes = stack.enter_context(joined(place))
        interrupted = stack.enter_context(postponed(impatient=processes.count == 1))
        stack.enter_context(torch.random.fork_rng([place] if place.type == "cuda" else []))

        def begin() -> Content | None:
            stack.enter_context(alone(folder))
            trainer = _begun(folder, wanted, settings, len(images), place, processes)
            log = Log(folder)
            if (folder / CHECKPOINT).exists():
                log.forget_after(trainer.step, measures=measure is not None)
            else:
                log.begin(measures=measure is not None)
                save_checkpoint(trainer, folder)
            trainer.commands += [command] if command and trainer.step < trainer.settings.steps else []
            ours.append(trainer)
            return None if processes.count == 1 else content_of(trainer)

        ours: list[Trainer] = []
        content = processes.from_first(begin)
        if content is not None and not ours:  # in every process but the first
            ours.append(trainer_of(content, place, processes))
            ours[0].adapt(None, wanted, len(images))
        (trainer,) = ours
        share, pinned = processes.share(trainer.settings.batch_size), place.type == "cuda"
        with contextlib.closing(batches(images, trainer.settings, trainer.step, share, pinned=pinned)) as reading:
            records = None
            if processes.rank == 0:
                records = stack.enter_context(
                    contextlib.closing(Records(trainer, folder, validation, measure, report or _silent))
                )
            _loop(trainer, reading, records, folder, interrupted)
    return folder


def _begun(
    folder: Path,
    architecture: Mapping[str, Any],
    settings: Settings | None,
    images: int,
    place: torch.device,
    processes: Processes,
) -> Trainer:
    """Return the run in a folder, or a new one. Nothing is written."""
    if (folder / CHECKPOINT).exists():
        trainer = load_checkpoint(folder, place, processes)
        trainer.adapt(settings, architecture, images)
        check_continued(folder, trainer)
    else:
        trainer = Trainer(architecture, settings or Settings(), images, place, processes)
        check_new(folder, trainer)
    if trainer.settings.microbatches % processes.count:
        raise InputError(
            f"the run cuts a batch into {trainer.settings.microbatches} pieces, which {processes.count} processes "
            "cannot share: begin a run with microbatches=... a multiple of their number, or start fewer processes"
        )
    return trainer


def _loop(
    trainer: Trainer,
    reading: Iterable[Tensor],
    records: Records | None,
    folder: Path,
    interrupted: Callable[[], bool],
) -> None:
    """Make the steps of a run. Only the first process keeps records."""
    settings, processes = trainer.settings, trainer.processes
    told = time.monotonic()
    losses: list[Tensor] = []
    for x0 in reading:
        losses.append(trainer.advance(x0))
        # All processes must do the same, so they ask each other, and the clock of the first decides.
        stop, tells = processes.any(interrupted(), records is not None and time.monotonic() - told >= 1)
        saves = stop or trainer.step == settings.steps or trainer.step % settings.checkpoint_every == 0
        logs = saves or trainer.step % settings.log_every == 0
        draws = trainer.step == settings.steps or trainer.step % settings.samples_every == 0
        if not (logs or draws or tells):
            continue
        told = time.monotonic()
        loss = float(torch.stack(losses).mean())
        _check_finite(loss, trainer.step, folder)
        if records is not None:
            logs = records.keep(loss, logs=logs, draws=draws, saves=saves)
        if logs:
            losses = []
        if stop:
            processes.any(False)  # the others wait until all is saved
            if not interrupted():
                raise InputError("another process was told to stop: the run is saved, and the same command goes on")
            return


class Records:
    """What the first process writes of a run, and reports.

    Args:
        trainer: The run.
        folder: Its folder.
        validation: Held-out images for a validation loss at each checkpoint.
        measure: A function of the averaged model, for a distance at each sample sheet.
        report: A function that is called with the progress.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: Path,
        validation: ImageSource | None,
        measure: Measure | None,
        report: Report,
    ) -> None:
        self._trainer, self._folder, self._validation, self._report = trainer, folder, validation, report
        self._measure = measure
        self._sinks: list[Sink] = [Log(folder)]
        if trainer.settings.tensorboard and trainer.step < trainer.settings.steps:
            self._sinks.append(Board(folder, trainer.step))
        self._began, self._earlier, self._first = time.monotonic(), trainer.seconds, trainer.step
        if trainer.step < trainer.settings.steps:
            report(Progress(trainer.step, trainer.settings.steps))

    def keep(self, loss: float, *, logs: bool, draws: bool, saves: bool) -> bool:
        """Write what is due at the present step, the checkpoint last, and report it.

        Args:
            loss: The mean loss since the last row of the log.
            logs: Whether the log gets a row.
            draws: Whether samples are drawn.
            saves: Whether the model and the checkpoint are saved.

        Returns:
            Whether the log got a row: a distance also makes one.
        """
        trainer, settings, step = self._trainer, self._trainer.settings, self._trainer.step
        passed = time.monotonic() - self._began
        trainer.seconds = self._earlier + passed
        validated = None
        if saves and self._validation is not None:
            validated = validation_loss(trainer.field(), self._validation)
        distance = self._measure(trainer.field()) if draws and self._measure is not None else None
        logs = logs or distance is not None
        row = Row(step, loss, trainer.seconds, learning_rate(settings, step - 1), validated, distance)
        for sink in self._sinks if logs else ():
            sink.append(row)
        if draws:
            _draw(trainer, self._folder)
        if saves:
            said = {"loss": loss, "validation_loss": validated, "distance": distance}
            save_model(trainer, self._folder, {name: value for name, value in said.items() if value is not None})
            save_checkpoint(trainer, self._folder)
        rate = (step - self._first) / passed
        self._report(Progress(step, settings.steps, loss, rate, validated, logs, distance))
        return logs

    def close(self) -> None:
        """End the logs."""
        for sink in self._sinks:
            sink.close()


def _silent(progress: Progress) -> None:
    pass


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
