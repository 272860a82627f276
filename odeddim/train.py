"""Training of ε_θ: L_simple, that is γ = 1 in eq. 5 of DDIM (arXiv 2010.02502), which is also DDPM's loss.

    L(θ) = E ‖ ε_θ(√α_t·x0 + √(1-α_t)·ε, t) - ε ‖²        t uniform over the labels 0..T-1, ε ~ N(0, 1)

with α the cumulative product, as in DDIM. The model folder:

    model.safetensors        averaged (EMA) weights, float32: what `odeddim.load` reads
    model.json               architecture, schedule, and how the weights came about
    checkpoint.safetensors   everything that resuming needs: weights, average, optimiser state, step
    log.csv                  step, loss, validation loss, seconds
    samples-XXXXXX.png       what the averaged model draws at that step

Every batch, label and noise is a function of (seed, step) alone. So a run that is interrupted and resumed continues, on
the CPU, bit for bit as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from odeddim.images import ImageSource, save_sheet
from odeddim.models.unet import UNet
from odeddim.types import InputError, pick

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
VALIDATION_IMAGES = 1024
SHEET = 36
"""Samples on a sheet."""


@dataclass(frozen=True)
class Settings:
    """How to train. steps: in all; the learning rate falls linearly to zero over the last `decay` share of them, after
    a linear rise over `warmup` steps. ema: decay of the average of the weights. precision: of the network's arithmetic
    (weights, optimiser and loss stay float32)."""

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


@dataclass(frozen=True)
class Progress:
    """Where a run is: loss is the mean since the last report, rate in steps per second of this session."""

    step: int
    steps: int
    loss: float
    rate: float
    validation: float | None = None


Report = Callable[[Progress], None]


def stream(*key: object) -> int:
    """A seed that depends on every part of the key and on nothing else."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=7).digest(), "big")


@functools.lru_cache(maxsize=2)
def _shuffled(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(stream(seed, "order", epoch)))


def batch_rows(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """The images of this step: every epoch is a shuffle of all `count` of them, and batches run across its end."""
    rows: list[int] = []
    position = step * batch_size
    while len(rows) < batch_size:
        epoch, offset = divmod(position + len(rows), count)
        rows += _shuffled(count, seed, epoch)[offset : offset + batch_size - len(rows)].tolist()
    return rows


def stratified_labels(count: int, T: int, jitter: Tensor) -> Tensor:
    """Labels (count,) int64 in 0..T-1, one from each of `count` equal parts of the range: each is uniform over the
    labels given uniform jitter (count,) in [0, 1) and random order of the images, with less noise in the mean loss."""
    return ((torch.arange(count, device=jitter.device) + jitter) * (T / count)).long().clamp_(max=T - 1)


def noised(x0: Tensor, t: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """x_t = √α_t·x0 + √(1-α_t)·ε, (B, C, H, W); alphas (T,) are the cumulative products."""
    alpha = alphas[t][:, None, None, None]
    return alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise


def learning_rate(settings: Settings, step: int) -> float:
    """Linear rise, plateau, linear fall to zero: the plateau lets `steps` be changed when a run is resumed."""
    rise = (step + 1) / settings.warmup if settings.warmup else 1.0
    fall = (settings.steps - step) / (settings.decay * settings.steps) if settings.decay else 1.0
    return settings.learning_rate * min(1.0, rise, fall)


def ema_update(decay: float) -> Callable[[Any, Any, Tensor | int], None]:
    """Average θ̄ ← d·θ̄ + (1-d)·θ with d = min(decay, (1+n)/(10+n)): young averages forget the start quickly."""

    def update(averaged: Any, current: Any, count: Tensor | int) -> None:
        n = float(count)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, count)

    return update


@torch.no_grad()
def validation_loss(network: nn.Module, source: ImageSource, alphas: Tensor, count: int = VALIDATION_IMAGES) -> float:
    """L_simple per pixel on the first `count` images: image i of n has the label ⌊(i + ½)·T/n⌋ and noise seeded by i,
    both always the same; float32, in batches of 64. Comparable between models of one schedule and data set."""
    device = alphas.device
    n = min(count, len(source))
    labels = stratified_labels(n, len(alphas), torch.full((n,), 0.5))
    total = 0.0
    for i in range(0, n, 64):
        x0 = source[i : min(i + 64, n)]
        noise = torch.stack([torch.randn(source.shape, generator=torch.Generator().manual_seed(i + j)) for j in range(len(x0))])
        x0, noise, t = x0.to(device), noise.to(device), labels[i : i + 64].to(device)
        error = (network(noised(x0, t, noise, alphas), t.float()) - noise).square().mean(dim=(1, 2, 3))
        total += float(error.double().sum())
    return total / n


@torch.no_grad()
def draw(network: nn.Module, shape: tuple[int, int, int], alphas: Tensor, count: int = SHEET, steps: int = 50) -> Tensor:
    """(count, C, H, W): DDIM samples on evenly spaced labels, from a fixed seed."""
    sigmas = ((1 - alphas.double()) / alphas.double()).sqrt()
    labels = torch.linspace(0, len(alphas) - 1, steps).round().long().flip(0)
    noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0)).to(alphas.device)
    xbar = noise * float((1 + sigmas[-1] ** 2).sqrt())
    for i, t in enumerate(labels):
        s = float(sigmas[t])
        s_next = float(sigmas[labels[i + 1]]) if i + 1 < steps else 0.0
        xbar = xbar + (s_next - s) * network(xbar / math.sqrt(1 + s * s), torch.full((count,), float(t), device=alphas.device))
    return xbar


@contextlib.contextmanager
def _postponed_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C in here only sets a flag, so that a step is never torn; a second one interrupts at once."""
    asked = threading.Event()

    def handler(_signal: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():  # only the main thread may install handlers
        yield asked.is_set
        return
    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, previous)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write to a temporary name, then rename: a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Run:
    """One training run: network, average and optimiser at a step, and their files in a folder."""

    def __init__(self, architecture: Mapping[str, Any], settings: Settings, device: torch.device) -> None:
        torch.manual_seed(stream(settings.seed, "weights"))
        self.settings = settings
        self.step = 0
        self.network = UNet(**architecture).to(device)
        self.average = AveragedModel(self.network, multi_avg_fn=ema_update(settings.ema))
        self.optimizer = torch.optim.Adam(self.network.parameters(), settings.learning_rate, fused=True)
        self.names = [name for name, _ in self.network.named_parameters()]

    def tensors(self) -> dict[str, Tensor]:
        """All state as named tensors."""
        state = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        state |= {f"average.{k}": v for k, v in self.average.module.state_dict().items()}
        for name, parameter in zip(self.names, self.network.parameters(), strict=True):
            state |= {f"optimizer.{name}.{k}": v for k, v in self.optimizer.state[parameter].items()}
        return {k: v.detach().cpu().contiguous() for k, v in state.items()}

    def save(self, folder: Path) -> None:
        notes = {"step": str(self.step), "settings": json.dumps(asdict(self.settings)), "architecture": json.dumps(self.network.config)}
        _replace(folder / "checkpoint.safetensors", lambda path: save_file(self.tensors(), path, notes))

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Run:
        path = folder / "checkpoint.safetensors"
        try:
            with safe_open(path, "pt") as file:
                notes = file.metadata()
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} cannot be read as a checkpoint ({error}); start a new run in another folder") from error
        run = cls(json.loads(notes["architecture"]), Settings(**json.loads(notes["settings"])), device)
        run.step = int(notes["step"])

        def part(prefix: str) -> dict[str, Tensor]:
            return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}

        run.network.load_state_dict(part("network."))
        run.average.module.load_state_dict(part("average."))
        run.average.n_averaged.fill_(run.step)
        run.optimizer.load_state_dict({
            "state": {i: part(f"optimizer.{name}.") for i, name in enumerate(run.names)},
            "param_groups": run.optimizer.state_dict()["param_groups"],
        })
        return run

    def advance(self, images: ImageSource, alphas: Tensor) -> Tensor:
        """One step; returns the loss () before it."""
        settings, device = self.settings, alphas.device
        torch.manual_seed(stream(settings.seed, "step", self.step))  # covers dropout too
        x0 = images.read(batch_rows(len(images), settings.batch_size, settings.seed, self.step)).to(device)
        t = stratified_labels(len(x0), len(alphas), torch.rand(len(x0), device=device))
        noise = torch.randn_like(x0)
        dtype = PRECISIONS[settings.precision]
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            eps = self.network(noised(x0, t, noise, alphas), t.float())
        loss = F.mse_loss(eps.float(), noise)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, self.step)
        self.optimizer.step()
        self.average.update_parameters(self.network)
        self.step += 1
        return loss.detach()


def train(
    images: ImageSource,
    folder: str | Path,
    *,
    validation: ImageSource | None = None,
    architecture: Mapping[str, Any] | None = None,
    settings: Settings | None = None,
    device: str | torch.device | None = None,
    resume: bool = False,
    command: str = "",
    report: Report | None = None,
) -> Path:
    """Train; returns the folder."""
    folder = Path(folder)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    checkpoint = folder / "checkpoint.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    if resume:
        run = Run.load(folder, where)
        if settings is not None:
            run.settings = settings
    else:
        if checkpoint.exists():
            raise InputError(f"{folder} holds a run already; continue it with --resume or choose another folder")
        run = Run(architecture or {}, settings or Settings(), where)
    settings = run.settings
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alphas = (1 - betas).cumprod(0).float().to(where)

    def save(values: dict[str, Any]) -> None:
        run.save(folder)
        about = {
            "format": "odeddim unet",
            "version": 1,
            "architecture": run.network.config,
            "schedule": {"kind": "linear", "T": 1000, "beta_1": 1e-4, "beta_T": 0.02},
            "predicts": "eps",
            "weights": "ema",
            "training": {**asdict(settings), "command": command, "step": run.step, **values},
        }
        weights = {k: v.detach().float().cpu().contiguous() for k, v in run.average.module.state_dict().items()}
        _replace(folder / "model.safetensors", lambda path: save_file(weights, path))
        _replace(folder / "model.json", lambda path: path.write_text(json.dumps(about, indent=2) + "\n"))

    losses: list[Tensor] = []
    began, first = time.monotonic(), run.step
    values: dict[str, Any] = {}
    with _postponed_interrupt() as interrupted:
        while run.step < settings.steps:
            losses.append(run.advance(images, alphas))
            last = run.step == settings.steps or interrupted()
            if run.step % settings.log_every == 0 or last:
                progress = Progress(run.step, settings.steps, float(torch.stack(losses).mean()), (run.step - first) / (time.monotonic() - began))
                losses = []
                values["loss"] = progress.loss
                if run.step % settings.checkpoint_every == 0 or last:
                    if validation is not None:
                        network = run.average.module.eval()
                        progress = replace(progress, validation=validation_loss(network, validation, alphas))
                        values["validation_loss"] = progress.validation
                    save(values)
                if run.step % settings.samples_every == 0 or run.step == settings.steps:
                    sheet = draw(run.average.module.eval(), images.shape, alphas)
                    save_sheet(sheet, folder / f"samples-{run.step:06d}.png")
                with (folder / "log.csv").open("a", newline="") as file:
                    csv.writer(file).writerow([progress.step, f"{progress.loss:.6f}", "" if progress.validation is None else f"{progress.validation:.6f}", f"{time.monotonic() - began:.1f}"])
                if report:
                    report(progress)
            if interrupted():
                raise KeyboardInterrupt
    return folder
