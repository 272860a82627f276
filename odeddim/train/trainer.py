"""The state of a training run: the network, the average of its weights, the optimiser; and one training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from odeddim.models.networks.unet import UNet
from odeddim.ode.field import VectorField
from odeddim.storage.images import ImageSource
from odeddim.train.batches import batch_rows, seed_of
from odeddim.train.loss import OBJECTIVES, stratified
from odeddim.train.settings import PRECISIONS, Settings, learning_rate
from odeddim.types import InputError


class Trainer:
    """A run at one of its steps.

    Args:
        architecture: The arguments of `UNet`.
        settings: The settings of the run.
        images: The number of images, on which their order depends.
        device: The device.
    """

    def __init__(self, architecture: Mapping[str, Any], settings: Settings, images: int, device: torch.device) -> None:
        torch.manual_seed(seed_of(settings.seed, "weights"))
        self.settings = settings
        self.images = images
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
        """Make one training step, and return the loss () before it."""
        settings, device = self.settings, self.device
        torch.manual_seed(seed_of(settings.seed, "step", self.step))  # dropout uses this seed too
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
        """Return the averaged network as a VectorField."""
        size = self.network.config["image_size"]
        return VectorField(
            self.average.module,
            self.schedule,
            predicts=self.settings.predicts,
            time="index",
            shape=(self.network.config["in_channels"], size, size),
        )

    def adapt(self, settings: Settings | None, architecture: Mapping[str, Any], images: int) -> None:
        """Take the settings of a call that continues this run.

        Args:
            settings: The settings; None for those of the run.
            architecture: The arguments of `UNet`.
            images: The number of images.

        Raises:
            InputError: If the network, the number of images, or a setting that must stay the same differs.
        """
        if settings is not None:
            before, after = self.settings.fixed(), settings.fixed()
            for name in {**before, **after}:
                has, wants = before.get(name), after.get(name)
                if has != wants:
                    raise InputError(
                        f"the run has {name} {has}, not {wants}: keep this value, or train in another folder"
                    )
            self.settings = settings
        for name, wanted in architecture.items():
            if self.network.config.get(name) != wanted:
                raise InputError(
                    f"the network of the run has {name} {self.network.config.get(name)}, not {wanted}: keep this "
                    "value, or train in another folder"
                )
        if images != self.images:
            raise InputError(
                f"the run was started with {self.images} images, not {images}: give the same images, or train in "
                "another folder"
            )


def _ema(decay: float) -> Callable[[Any, Any, Any], None]:
    """θ̄ ← d·θ̄ + (1-d)·θ with d = min(decay, (1+n)/(10+n)) after n updates, which forgets the first weights sooner."""

    def update(averaged: Any, current: Any, count: Any) -> None:
        n = float(count)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, count)  # type: ignore[no-untyped-call]

    return update
