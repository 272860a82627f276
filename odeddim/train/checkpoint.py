"""The files of a trained model, and of a run that can be continued.

    model.safetensors        the averaged (EMA) weights, float32, which `odeddim.load` reads
    model.json               the architecture, the schedule, and how the weights were trained
    checkpoint.safetensors   everything that a run needs to continue: weights, average, optimiser state, step, settings

Each file is replaced as a whole, and the checkpoint last. A run can therefore be killed at any time, and the same call
continues it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from odeddim.models.formats import native
from odeddim.storage.atomic import replacing
from odeddim.train.processes import ALONE, Processes
from odeddim.train.settings import Settings
from odeddim.train.trainer import Trainer
from odeddim.types import InputError

CHECKPOINT = "checkpoint.safetensors"


def saved_settings(folder: str | Path) -> Settings:
    """Return the settings of the run in a folder. Raises InputError if the folder holds no run."""
    return Settings(**json.loads(_notes(Path(folder) / CHECKPOINT)["settings"]))


def saved_step(folder: str | Path) -> int:
    """Return the number of steps that the run in a folder has made. Raises InputError if the folder holds no run."""
    return int(json.loads(_notes(Path(folder) / CHECKPOINT)["step"]))


def save_model(trainer: Trainer, folder: Path, losses: Mapping[str, float]) -> None:
    """Write the present model to a folder, with its losses in model.json."""
    with replacing_in(folder, native.WEIGHTS) as path:
        path.write_bytes(save(_on_cpu(trainer.average.module.state_dict())))
    training = {
        "commands": trainer.commands,
        "step": trainer.step,
        "images": trainer.images,
        "seconds": round(trainer.seconds),
        **losses,
        **trainer.settings.to_dict(),
        "torch": torch.__version__,
    }
    sigma_data = trainer.objective.sigma_data
    description = {
        "format": native.FORMAT,
        "version": 1 if sigma_data is None else native.VERSION,  # earlier versions of odeddim read 1
        "architecture": trainer.network.config,
        "schedule": trainer.schedule.to_dict(),
        "predicts": trainer.objective.predicts,
        "time": trainer.objective.time,
        **({} if sigma_data is None else {"sigma_data": sigma_data}),
        "weights": "ema",
        "training": training,
    }
    with replacing_in(folder, native.CONFIG) as path:
        path.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


Content = tuple[dict[str, Tensor], dict[str, Any]]
"""Everything that a run needs to continue: tensors by name, and notes that JSON can hold."""


def content_of(trainer: Trainer) -> Content:
    """Return the content of a run's checkpoint, with tensors on the CPU."""
    state = {f"network.{name}": value for name, value in trainer.network.state_dict().items()}
    state |= {f"average.{name}": value for name, value in trainer.average.module.state_dict().items()}
    for name, parameter in trainer.network.named_parameters():
        state |= {f"optimizer.{name}.{key}": value for key, value in trainer.optimizer.state[parameter].items()}
    notes = {
        "step": trainer.step,
        "seconds": trainer.seconds,
        "images": trainer.images,
        "commands": trainer.commands,
        "settings": trainer.settings.to_dict(),
        "architecture": trainer.network.config,
    }
    return _on_cpu(state), notes


def trainer_of(content: Content, device: torch.device, processes: Processes = ALONE) -> Trainer:
    """Return the run with the content of a checkpoint, on a device."""
    state, notes = content
    trainer = Trainer(notes["architecture"], Settings(**notes["settings"]), notes["images"], device, processes)
    trainer.step, trainer.seconds, trainer.commands = notes["step"], notes["seconds"], notes["commands"]

    def part(prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}

    trainer.network.load_state_dict(part("network."))
    trainer.average.module.load_state_dict(part("average."))
    trainer.average.n_averaged.fill_(trainer.step)
    moments = {i: part(f"optimizer.{name}.") for i, (name, _) in enumerate(trainer.network.named_parameters())}
    trainer.optimizer.load_state_dict({**trainer.optimizer.state_dict(), "state": moments})
    return trainer


def save_checkpoint(trainer: Trainer, folder: Path) -> None:
    """Write everything that `load_checkpoint` needs."""
    state, notes = content_of(trainer)
    with replacing_in(folder, CHECKPOINT) as path:
        path.write_bytes(save(state, {key: json.dumps(value) for key, value in notes.items()}))


def load_checkpoint(folder: Path, device: torch.device, processes: Processes = ALONE) -> Trainer:
    """Return the run in a folder at the step of its checkpoint. Raises InputError if the file is not a checkpoint."""
    path = folder / CHECKPOINT
    notes = {key: json.loads(value) for key, value in _notes(path).items()}
    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - `file` is not a mapping
    return trainer_of((state, notes), device, processes)


def replacing_in(folder: Path, name: str) -> contextlib.AbstractContextManager[Path]:
    """Replace a file as `odeddim.storage.atomic.replacing` does. The next call replaces what a killed run left."""
    return replacing(folder / name, folder / f".{name}.tmp")


def _notes(path: Path) -> dict[str, str]:
    """Return a checkpoint's metadata. Reading it also checks that the file is complete."""
    try:
        with safe_open(path, "pt") as file:
            notes: dict[str, str] = file.metadata() or {}
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: this folder holds no run to continue") from error
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} cannot be read as a checkpoint ({error}): start a new run in another folder"
        ) from error
    if "settings" not in notes:
        raise InputError(f"{path} is not a checkpoint of `odeddim train`: start a new run in another folder")
    return notes


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}
