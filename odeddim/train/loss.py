"""The loss L_simple of DDPM, which is eq. 5 of DDIM (arXiv 2010.02502) with γ = 1.

    L(θ) = E ‖ ε_θ(√α_t·x0 + √(1-α_t)·ε, t) - ε ‖² / dim        t uniform over the labels 0..T-1, ε ~ N(0, 1)

where α is the cumulative product, as in DDIM. For the velocity of rectified flow (arXiv 2209.03003, eq. 1), the loss is

    L(θ) = E ‖ u_θ((1-t)·x0 + t·ε, 1000·t) - (ε - x0) ‖² / dim        t uniform in [0, 1)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.storage.images import ImageSource
from odeddim.types import pick

VALIDATION_IMAGES = 1024


@dataclass(frozen=True)
class Objective:
    """What a network is trained to predict.

    Attributes:
        schedule: The function that makes the schedule.
        pose: The function (schedule, x0 (B, C, H, W), noise (B, C, H, W), times (B,) in [0, 1)) -> the network's input
            x (B, C, H, W), its labels t (B,), and its target (B, C, H, W).
    """

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
    """Make times (B,) in [0, 1) from jitter (B,) in [0, 1). Time i lies in the i-th of B equal parts of the range.

    Over the batch, the times are uniform, as L_simple requires. The mean loss is less noisy than for independent times.
    """
    return (torch.arange(len(jitter), device=jitter.device) + jitter) / len(jitter)


@torch.no_grad()
def validation_loss(field: VectorField, images: ImageSource, count: int = VALIDATION_IMAGES) -> float:
    """Compute the loss of a model from `train` on held-out images. It depends on the weights and the images only.

    Of n images, image i has the time (i + ½)/n and the noise of seed i. The network runs on batches of 64.

    Args:
        field: The model.
        images: The held-out images, (C, H, W) each.
        count: The number of images, taken from the beginning.

    Returns:
        The loss, the mean over images and pixels.

    Raises:
        InputError: If the model does not predict ε or a flow's velocity.

    Example:
        >>> import odeddim
        >>> from odeddim.train.loss import validation_loss
        >>> 0 < validation_loss(odeddim.load(), odeddim.open_images(), count=2) < 0.1
        True
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
