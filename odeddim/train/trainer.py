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
from odeddim.train.batches import seed_of
from odeddim.train.gradients import TreeSum, gradient_of, set_gradient
from odeddim.train.loss import OBJECTIVES, stratified
from odeddim.train.processes import ALONE, Processes
from odeddim.train.settings import PRECISIONS, Settings, learning_rate
from odeddim.types import InputError


class Trainer:
    """A run at one of its steps.

    Args:
        architecture: The arguments of `UNet`.
        settings: The settings of the run.
        images: The number of images, on which their order depends.
        device: The device.
        processes: The processes that share each batch.
    """

    def __init__(
        self,
        architecture: Mapping[str, Any],
        settings: Settings,
        images: int,
        device: torch.device,
        processes: Processes = ALONE,
    ) -> None:
        torch.manual_seed(seed_of(settings.seed, "weights"))
        self.settings = settings
        self.images = images
        self.step = 0
        self.seconds = 0.0
        self.commands: list[str] = []
        self.device = device
        self.processes = processes
        self.objective = OBJECTIVES[settings.predicts]
        self.schedule = self.objective.schedule()
        self.network = UNet(**architecture).to(device)
        self.average = AveragedModel(self.network, multi_avg_fn=_ema(settings.average_decay))
        self.average.eval()
        self.optimizer = _optimizer(self.network, settings)
        self._forward: Callable[..., Tensor] = self.network
        if settings.compile:
            self._forward = torch.compile(self.network)  # shares the weights; their names in files stay

    def advance(self, x0: Tensor) -> Tensor:
        """Make one training step.

        Args:
            x0: This process's share of the step's batch, (batch_size/processes, C, H, W), as of
                `odeddim.train.batches.batches`.

        Returns:
            The loss () of the whole batch before the step.
        """
        settings = self.settings
        torch.manual_seed(seed_of(settings.seed, "step", self.step))  # dropout uses this seed too
        self.optimizer.zero_grad()
        loss = self._gradient(x0.to(self.device, non_blocking=True))
        nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, self.step)
        self.optimizer.step()
        self.average.update_parameters(self.network)
        self.step += 1
        return loss

    def _gradient(self, x0: Tensor) -> Tensor:
        """Set the gradient of a step's loss, and return the loss ()."""
        settings, processes = self.settings, self.processes
        share, pieces = processes.share(settings.batch_size), processes.share(settings.microbatches)
        times = stratified(torch.rand(settings.batch_size, device=self.device))[share]
        posed = self.objective.pose(self.schedule, x0, _noise_for(x0, settings.batch_size)[share], times)
        if settings.microbatches == 1:
            return self._backward(*posed)
        sums = TreeSum()
        size = settings.batch_size // settings.microbatches
        for i, piece in enumerate(range(pieces.start, pieces.stop)):
            # Dropout of a piece must not depend on which pieces this process has computed before.
            torch.manual_seed(seed_of(settings.seed, "step", self.step, "piece", piece))
            x, t, target = (each[i * size : (i + 1) * size] for each in posed)
            sums.add(gradient_of(self.network, self._backward(x, t, target)))
        return set_gradient(self.network, processes.total(sums.total()) / settings.microbatches)

    def _backward(self, x: Tensor, t: Tensor, target: Tensor) -> Tensor:
        """Add the gradient of the loss of some images to the network's gradients, and return the loss ()."""
        precision = PRECISIONS[self.settings.precision]
        with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
            out = self._evaluated(x, t)
        loss = F.mse_loss(out.float(), target)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _evaluated(self, x: Tensor, t: Tensor) -> Tensor:
        try:
            return self._forward(x, t)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"the network cannot be compiled here ({reason}): train without compile") from error

    def field(self) -> VectorField:
        """Return the averaged network as a VectorField."""
        size = self.network.config["image_size"]
        return VectorField(
            self.objective.model(self.average.module),
            self.schedule,
            predicts=self.objective.predicts,
            time=self.objective.time,
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
            for name in {**self.settings.fixed(), **settings.fixed()}:
                has, wants = getattr(self.settings, name), getattr(settings, name)
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


def _noise_for(x0: Tensor, batch_size: int) -> Tensor:
    """Draw the noise of a whole batch, (batch_size, C, H, W), of which x0 (n, C, H, W) is a share.

    Where numbers that are drawn one after another lie depends on the memory layout, so that of x0 is taken.
    """
    batch = torch.empty_strided((batch_size, *x0.shape[1:]), x0.stride(), dtype=x0.dtype, device="meta")
    return torch.randn_like(batch, device=x0.device)


def _optimizer(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    if settings.weight_decay:
        return torch.optim.AdamW(
            network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
    return torch.optim.Adam(network.parameters(), settings.learning_rate, fused=True)


def _ema(decay: float) -> Callable[[Any, Any, Any], None]:
    """θ̄ ← d·θ̄ + (1-d)·θ with d = min(decay, (1+n)/(10+n)) after n updates, which forgets the first weights sooner."""

    def update(averaged: Any, current: Any, count: Any) -> None:
        n = float(count)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, count)  # type: ignore[no-untyped-call]

    return update
