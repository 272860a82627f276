"""Training of ε_θ: L_simple, that is γ = 1 in eq. 5 of DDIM (arXiv 2010.02502), which is also DDPM's loss.

    L(θ) = E ‖ ε_θ(√α_t·x0 + √(1-α_t)·ε, t) - ε ‖² / dim        t uniform over the labels 0..T-1, ε ~ N(0, 1)

with α the cumulative product, as in DDIM. Or of the velocity of rectified flow (arXiv 2209.03003, eq. 1):

    L(θ) = E ‖ u_θ((1-t)·x0 + t·ε, 1000·t) - (ε - x0) ‖² / dim        t uniform in [0, 1)

A run is a folder:

    model.safetensors        averaged (EMA) weights, float32: what `odeddim.load` reads
    model.json               architecture, schedule, and how the weights came about
    checkpoint.safetensors   all that resuming needs: weights, average, optimiser state, step, settings
    log.csv                  step, loss, validation_loss, seconds
    samples-XXXXXX.png       what the averaged model draws at that step: DDIM, 50 steps, always from the same noise

Batches, labels and noise are functions of (seed, step) alone. So a run that was stopped and is continued goes on, on
the CPU with as many threads as before, bit for bit as if nothing had happened. The first checkpoint is that of step 0,
and of all files of a step the checkpoint is written last: whenever a run is killed, the same call continues it.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from odeddim.api import sample
from odeddim.models.formats import native
from odeddim.models.networks.unet import UNet
from odeddim.ode.devices import device_of
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.storage.atomic import replacing
from odeddim.storage.images import ImageSource, check_shape
from odeddim.storage.png import save_sheet
from odeddim.storage.workers import Claims
from odeddim.types import InputError, pick

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MOST_BATCH = 65_536  # images per step: more are not drawn, let alone held, in any sensible time
CHECKPOINT, LOG, LOCK = "checkpoint.safetensors", "log.csv", ".odeddim.lock"
LOGGED = ("step", "loss", "validation_loss", "seconds")
VALIDATION_IMAGES = 1024
SHEET_IMAGES = 36


@dataclass(frozen=True)
class Settings:
    """How to train; written into the run, and checked when it is resumed.

    predicts: "eps", DDPM's noise, or "flow", rectified flow's velocity. steps: in all. batch_size: images per step.
    learning_rate: of Adam, after a linear rise over `warmup` steps; over the last `decay` (share of the steps) it falls
    linearly to zero, which is worth much at the end. clip: largest norm of the gradient. ema: decay of the average of
    the weights. precision: of the network's arithmetic while training; weights, optimiser and loss are float32.
    *_every: steps between checkpoints, sample sheets and rows of the log.
    """

    predicts: str = "eps"
    steps: int = 20000
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup: int = 200
    decay: float = 0.3
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    precision: str = "float32"
    checkpoint_every: int = 1000
    samples_every: int = 5000
    log_every: int = 100

    def __post_init__(self) -> None:
        pick(self.predicts, OBJECTIVES, "prediction to train")
        pick(self.precision, PRECISIONS, "precision")
        for name in ("steps", "batch_size", "checkpoint_every", "samples_every", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.batch_size > MOST_BATCH:
            raise InputError(f"batch_size must be at most {MOST_BATCH:,} images per step, not {self.batch_size:,}")
        good = self.learning_rate > 0 and self.clip > 0 and self.warmup >= 0
        if not good or not 0 <= self.decay <= 1 or not 0 <= self.ema < 1:
            raise InputError(
                "training needs learning_rate > 0, clip > 0, warmup >= 0, decay in [0, 1] and ema in [0, 1), not "
                f"{self.learning_rate}, {self.clip}, {self.warmup}, {self.decay} and {self.ema}"
            )


CHANGEABLE = ("steps", "checkpoint_every", "samples_every", "log_every")
"""The settings that a continued run may change."""


@dataclass(frozen=True)
class Progress:
    """Where a run is. loss: mean since the last row of the log; rate: steps per second since the start or resumption;
    validation_loss: if it was just computed; logged: whether this is a row of the log."""

    step: int
    steps: int
    loss: float
    rate: float
    validation_loss: float | None
    logged: bool


def train(
    images: ImageSource,
    folder: str | Path,
    *,
    validation: ImageSource | None = None,
    architecture: Mapping[str, Any] | None = None,
    settings: Settings | None = None,
    device: str | torch.device | None = None,
    command: str = "",
    report: Callable[[Progress], None] | None = None,
) -> Path:
    """Train a U-Net on images (N, C, H, H) with DDPM's linear schedule; returns the folder, which `odeddim.load` reads.

    folder: of the run; made if need be. A run that it holds is continued, on the same images: architecture and settings
    may then be left out, those of CHANGEABLE may change, others must be what they were. A complete run is left alone.
    validation: held-out images for `validation_loss` at every checkpoint. architecture: settings of `UNet` besides
    in_channels and image_size, which the images decide. device: a GPU if there is one, unless given.
    command: written into model.json. report: called about once a second and at every row of the log.
    Ctrl-C, SIGTERM and SIGHUP (in the main thread) arrive when the step that is being made is saved.
    Errors: InputError for images that do not fit, a folder in use, settings that contradict the run, and for a
    loss that is no longer finite (the checkpoint then is the last one before).
    """
    folder = Path(folder)
    place = device_of(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    wanted = _architecture(architecture or {}, images)
    if validation is not None:
        check_shape(validation, images.shape, "the validation set")
    with _postponed() as interrupted, _alone(folder), torch.random.fork_rng([place] if place.type == "cuda" else []):
        if (folder / CHECKPOINT).exists():
            run = Run.load(folder, place)
            run.adapt(settings, architecture, images)
            _forget_after(folder / LOG, run.step)
        else:
            run = Run(wanted, settings or Settings(), len(images), place)
            _begin(folder)
            run.save_checkpoint(folder)
        if run.step < run.settings.steps:
            run.commands += [command] if command else []
            _loop(run, images, validation, folder, interrupted, report or (lambda progress: None))
    return folder


def saved_settings(folder: str | Path) -> Settings:
    """The settings of the run in a folder. InputError if there is none."""
    return Settings(**json.loads(_notes(Path(folder) / CHECKPOINT)["settings"]))


def saved_step(folder: str | Path) -> int:
    """How many steps the run in a folder has made. InputError if there is none."""
    return int(json.loads(_notes(Path(folder) / CHECKPOINT)["step"]))


class Run:
    """A run at a step: network, average, optimiser, and their files."""

    def __init__(self, architecture: Mapping[str, Any], settings: Settings, images: int, device: torch.device) -> None:
        torch.manual_seed(_seed(settings.seed, "weights"))
        self.settings = settings
        self.images = images  # how many there are: the order of the data depends on it
        self.step = 0
        self.seconds = 0.0
        self.commands: list[str] = []
        self.device = device
        self.objective = OBJECTIVES[settings.predicts]
        self.schedule = self.objective.schedule()
        self.network = UNet(**architecture).to(device)
        self.average = AveragedModel(self.network, multi_avg_fn=_ema(settings.ema))
        self.average.eval()
        self.optimizer = torch.optim.Adam(self.network.parameters(), settings.learning_rate, fused=True)

    def advance(self, images: ImageSource) -> Tensor:
        """One step of training; returns the loss () that it started from."""
        settings, device = self.settings, self.device
        torch.manual_seed(_seed(settings.seed, "step", self.step))  # dropout draws from it too
        rows = batch_rows(self.images, settings.batch_size, settings.seed, self.step)
        x0 = images.read(rows).to(device)
        times = stratified(torch.rand(len(x0), device=device))
        x, t, target = self.objective.pose(self.schedule, x0, torch.randn_like(x0), times)
        precision = PRECISIONS[settings.precision]
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            out = self.network(x, t)
        loss = F.mse_loss(out.float(), target)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, self.step)
        self.optimizer.step()
        self.average.update_parameters(self.network)
        self.step += 1
        return loss.detach()

    def field(self) -> VectorField:
        """The averaged network as the ODE's right-hand side."""
        size = self.network.config["image_size"]
        return VectorField(
            self.average.module,
            self.schedule,
            predicts=self.settings.predicts,
            time="index",
            shape=(self.network.config["in_channels"], size, size),
        )

    def save(self, folder: Path, losses: Mapping[str, float]) -> None:
        """Model and checkpoint, each replaced whole; the checkpoint last: a complete run has all its files."""
        with _replacing(folder / native.WEIGHTS) as path:
            path.write_bytes(save(_on_cpu(self.average.module.state_dict())))
        training = {
            "commands": self.commands,
            "step": self.step,
            "images": self.images,
            "seconds": round(self.seconds),
            **losses,
            **asdict(self.settings),
            "torch": torch.__version__,
        }
        description = {
            "format": native.FORMAT,
            "version": native.VERSION,
            "architecture": self.network.config,
            "schedule": self.schedule.to_dict(),
            "predicts": self.settings.predicts,
            "time": "index",
            "weights": "ema",
            "training": training,
        }
        with _replacing(folder / native.CONFIG) as path:
            path.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        self.save_checkpoint(folder)

    def save_checkpoint(self, folder: Path) -> None:
        """All that `load` needs."""
        state = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        state |= {f"average.{name}": value for name, value in self.average.module.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            state |= {f"optimizer.{name}.{key}": value for key, value in self.optimizer.state[parameter].items()}
        notes = {
            "step": self.step,
            "seconds": self.seconds,
            "images": self.images,
            "commands": self.commands,
            "settings": asdict(self.settings),
            "architecture": self.network.config,
        }
        with _replacing(folder / CHECKPOINT) as path:
            path.write_bytes(save(_on_cpu(state), {key: json.dumps(value) for key, value in notes.items()}))

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Run:
        """The run as its checkpoint has it."""
        path = folder / CHECKPOINT
        notes = {key: json.loads(value) for key, value in _notes(path).items()}
        run = cls(notes["architecture"], Settings(**notes["settings"]), notes["images"], device)
        run.step, run.seconds, run.commands = notes["step"], notes["seconds"], notes["commands"]
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping

        def part(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}

        run.network.load_state_dict(part("network."))
        run.average.module.load_state_dict(part("average."))
        run.average.n_averaged.fill_(run.step)
        moments = {i: part(f"optimizer.{name}.") for i, (name, _) in enumerate(run.network.named_parameters())}
        run.optimizer.load_state_dict({**run.optimizer.state_dict(), "state": moments})
        return run

    def adapt(self, settings: Settings | None, architecture: Mapping[str, Any] | None, images: ImageSource) -> None:
        """Take the settings that may change in a continued run; refuse the rest, and other images."""
        if settings is not None:
            before, after = asdict(self.settings), asdict(settings)
            for name in before:
                if before[name] != after[name] and name not in CHANGEABLE:
                    raise InputError(
                        f"the run has {name} {before[name]}, not {after[name]}: leave it, or train in another folder"
                    )
            self.settings = settings
        wanted = _architecture(architecture or {}, images)
        for name in {"in_channels", "image_size", *(architecture or {})}:
            if self.network.config.get(name) != wanted[name]:
                raise InputError(f"the run's network has {name} {self.network.config.get(name)}, not {wanted[name]}")
        if len(images) != self.images:
            raise InputError(f"the run was started with {self.images} images, not {len(images)}: give it the same")


def _loop(
    run: Run,
    images: ImageSource,
    validation: ImageSource | None,
    folder: Path,
    interrupted: Callable[[], bool],
    report: Callable[[Progress], None],
) -> None:
    settings = run.settings
    began, earlier, first = time.monotonic(), run.seconds, run.step
    told = began
    losses: list[Tensor] = []
    while run.step < settings.steps:
        losses.append(run.advance(images))
        stop = interrupted()
        last = stop or run.step == settings.steps
        saves = last or run.step % settings.checkpoint_every == 0
        logs = saves or run.step % settings.log_every == 0
        now = time.monotonic()
        if not logs and now - told < 1:
            continue
        told = now
        loss = float(torch.stack(losses).mean())
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} after step {run.step}: start again with a lower learning rate or in float32 "
                f"(the last checkpoint in {folder} is from before)"
            )
        run.seconds = earlier + now - began
        validated = validation_loss(run.field(), validation) if saves and validation is not None else None
        if logs:
            row = ["" if value is None else f"{value:.6f}" for value in (loss, validated)]
            _append(folder / LOG, [str(run.step), *row, f"{run.seconds:.0f}"])
            losses = []
        if run.step % settings.samples_every == 0 or run.step == settings.steps:
            sheet = sample(SHEET_IMAGES, "euler", grid="linear", steps=50, model=run.field())
            save_sheet(sheet, folder / f"samples-{run.step:06d}.png")
        if saves:
            run.save(folder, {"loss": loss} if validated is None else {"loss": loss, "validation_loss": validated})
        report(Progress(run.step, settings.steps, loss, (run.step - first) / (now - began), validated, logs))
        if stop:
            return


# The parts of a step, each a function of its arguments.


def batch_rows(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """The images of a step. Every epoch is a shuffle of all `count` of them; batches run on across its end."""
    rows: list[int] = []
    while len(rows) < batch_size:
        epoch, offset = divmod(step * batch_size + len(rows), count)
        rows += _shuffled(count, seed, epoch)[offset : offset + batch_size - len(rows)].tolist()
    return rows


@functools.lru_cache(maxsize=2)
def _shuffled(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(_seed(seed, "epoch", epoch)))


def _seed(*key: object) -> int:
    """A seed that depends on every part of the key."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=7).digest(), "big")


@dataclass(frozen=True)
class Objective:
    """What a network is trained to predict. pose(schedule, x0 (B, C, H, W), noise like it, times (B,) in [0, 1)) gives
    the network's input x, its labels t (B,) and its target."""

    schedule: Callable[[], Schedule]
    pose: Callable[[Schedule, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def _pose_noise(schedule: Schedule, x0: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t = (times * schedule.T).long().clamp(max=schedule.T - 1)
    alpha = (1 / (1 + schedule.levels**2)).to(x0.device, torch.float32)[t][:, None, None, None]
    return alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise, t.float(), noise


def _pose_flow(schedule: Schedule, x0: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t = times[:, None, None, None]
    return (1 - t) * x0 + t * noise, times * schedule.T, noise - x0


OBJECTIVES = {
    "eps": Objective(Schedule.linear, _pose_noise),
    "flow": Objective(Schedule.rectified_flow, _pose_flow),
}


def stratified(jitter: Tensor) -> Tensor:
    """Times (B,) in [0, 1) from jitter (B,) in [0, 1): number i lies in the i-th of B equal parts of the range.

    Over the batch they are uniform, as L_simple wants, and the mean loss is less noisy than with independent ones.
    """
    return (torch.arange(len(jitter), device=jitter.device) + jitter) / len(jitter)


def learning_rate(settings: Settings, step: int) -> float:
    """Rise, plateau, fall to zero. The plateau is what lets a resumed run change its number of steps."""
    rise = (step + 1) / settings.warmup if settings.warmup else 1.0
    fall = (settings.steps - step) / (settings.decay * settings.steps) if settings.decay else 1.0
    return settings.learning_rate * min(1.0, rise, fall)


def _ema(decay: float) -> Callable[[Any, Any, Any], None]:
    """θ̄ ← d·θ̄ + (1-d)·θ with d = min(decay, (1+n)/(10+n)) after n updates: a young average forgets its start sooner."""

    def update(averaged: Any, current: Any, count: Any) -> None:
        n = float(count)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, count)  # type: ignore[no-untyped-call]

    return update


@torch.no_grad()
def validation_loss(field: VectorField, images: ImageSource, count: int = VALIDATION_IMAGES) -> float:
    """The loss of a model that `train` made on the first `count` held-out images, the same for the same weights.

    Image i of n has the time (i + ½)/n and noise from seed i; float32, batches of 64, mean over images and pixels.
    """
    n = min(count, len(images))
    pose = OBJECTIVES[pick(field.predicts, OBJECTIVES, "prediction to train")].pose
    times = stratified(torch.full((n,), 0.5))
    total = 0.0
    for start in range(0, n, 64):
        rows = range(start, min(start + 64, n))
        noise = torch.stack([torch.randn(images.shape, generator=torch.Generator().manual_seed(i)) for i in rows])
        x, t, target = pose(field.schedule, images.read(rows), noise, times[start : start + 64])
        out = field.eps(x.to(field.device), t.to(field.device)).cpu()
        total += float((out - target).square().mean(dim=(1, 2, 3)).double().sum())
    return total / n


# Files and signals.


def _architecture(given: Mapping[str, Any], images: ImageSource) -> dict[str, Any]:
    channels, height, width = images.shape
    if height != width:
        raise InputError(f"the images are {height}×{width} pixels, and the U-Net is made for squares: crop them")
    return {**given, "in_channels": channels, "image_size": height}


def _notes(path: Path) -> dict[str, str]:
    """What a checkpoint says besides its tensors; reading it also checks that the file is whole."""
    try:
        with safe_open(path, "pt") as file:
            notes: dict[str, str] = file.metadata() or {}
    except FileNotFoundError as error:
        raise InputError(f"there is no {path}: no run to continue in this folder") from error
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} cannot be read as a checkpoint ({error}): start a new run in another folder"
        ) from error
    if "settings" not in notes:
        raise InputError(f"{path} is no checkpoint of `odeddim train`: start a new run in another folder")
    return notes


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def _replacing(path: Path) -> contextlib.AbstractContextManager[Path]:
    """As `odeddim.storage.atomic.replacing`; what a kill leaves behind is replaced by the next."""
    return replacing(path, path.with_name(f".{path.name}.tmp"))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The run's folder, made if need be, for one process at a time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be made ({error.strerror})") from error
    with contextlib.closing(Claims(folder / LOCK)) as claims:
        if not claims.take(0, 1):
            raise InputError(f"another process is training in {folder}: wait for it, or train in another folder")
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def _begin(folder: Path) -> None:
    """The log of a new run. InputError where a folder holds something else of the same names."""
    if (folder / native.CONFIG).exists():
        raise InputError(f"{folder} holds a model already, and no run to continue: train in another folder")
    if (folder / LOG).exists() and _rows(folder / LOG) not in ([], [list(LOGGED)]):
        raise InputError(f"{folder / LOG} is there already, and belongs to no run: train in another folder")
    with _replacing(folder / LOG) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(LOGGED)


def _append(path: Path, row: list[str]) -> None:
    try:
        with path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(row)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); the last checkpoint is safe") from error


def _forget_after(path: Path, step: int) -> None:
    """Drop the log's rows of steps after the checkpoint: they are about to be made again."""
    rows = [row for row in _rows(path) if row and (not row[0].isdigit() or int(row[0]) <= step)]
    with _replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def _rows(path: Path) -> list[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.reader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}): it is not the log of this run") from error


@contextlib.contextmanager
def _postponed() -> Iterator[Callable[[], bool]]:
    """What asks a process to end only sets a flag in here, so that no step is torn, and arrives when the block ends.

    A second one arrives at once. Only the main thread can see to that.
    """
    asked: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) > 1:
            signal.signal(number, previous.get(number, signal.SIG_DFL))
            signal.raise_signal(number)

    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")):
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):  # as under nohup
                previous[number] = signal.signal(number, handler)
    try:
        yield lambda: bool(asked)
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
        if asked:
            signal.raise_signal(asked[0])
