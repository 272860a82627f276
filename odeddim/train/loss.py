"""What a network is trained for: its input, its label and its target. The loss is their mean squared difference.

    name  input x                            label  target                 t
    eps   √α_t·x0 + √(1-α_t)·ε               t      ε                      uniform over the labels 0..T-1
    v     √α_t·x0 + √(1-α_t)·ε               t      √α_t·ε - √(1-α_t)·x0   uniform over the labels 0..T-1
    flow  (1-t)·x0 + t·ε                     1000·t ε - x0                 uniform in [0, 1)
    edm   (x0 + σ·ε)/√(σ²+s²)                ln σ/4 (σ/s·x0 - s·ε)/√(σ²+s²)  ln σ is normal, mean -1.2, deviation 1.2

α is the cumulative product, as in DDIM, and ε ~ N(0, 1). "eps" is L_simple of DDPM, eq. 5 of DDIM (arXiv 2010.02502)
with γ = 1. "v" is of Salimans and Ho (arXiv 2202.00512, appendix D), "flow" of rectified flow (arXiv 2209.03003,
eq. 1). "edm" is EDM's loss (arXiv 2206.00364, eq. 8 and table 1) with s = σ_data = ½: E λ(σ)·‖D(x0 + σ·ε; σ) - x0‖²,
where the denoiser D(x; σ) = c_skip·x + c_out·F(c_in·x, c_noise) has the network F inside, and λ = 1/c_out². Divided by
c_out, the difference D - x0 is F minus the target above.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from odeddim.models.networks.preconditioned import Denoiser
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.storage.images import ImageSource
from odeddim.types import pick

VALIDATION_IMAGES = 1024
SIGMA_DATA = 0.5
EDM_MEAN, EDM_DEVIATION = -1.2, 1.2
"""Of ln σ in EDM's training (table 1: P_mean and P_std)."""


@dataclass(frozen=True)
class Objective:
    """What a network is trained to predict.

    Attributes:
        schedule: The function that makes the schedule.
        predicts: What the trained model predicts, a name of `odeddim.ode.predictions.PREDICTIONS`.
        pose: The function (schedule, x0 (B, C, H, W), noise (B, C, H, W), times (B,) in [0, 1)) -> the network's input
            x (B, C, H, W), its labels t (B,), and its target (B, C, H, W).
        time: The labels of the trained model, a name of `odeddim.ode.schedule.TIMES`.
        sigma_data: σ_data, if the trained model is EDM's denoiser around the network; else None.
    """

    schedule: Callable[[], Schedule]
    predicts: str
    pose: Callable[[Schedule, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    time: str = "index"
    sigma_data: float | None = None

    def model(self, network: nn.Module) -> nn.Module:
        """Return the trained model: the network, or EDM's denoiser around it."""
        return network if self.sigma_data is None else Denoiser(network, self.sigma_data)


def _pose_noise(schedule: Schedule, x0: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t, image, rest = _preserving(schedule, times)
    return image * x0 + rest * noise, t, noise


def _pose_v(schedule: Schedule, x0: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t, image, rest = _preserving(schedule, times)
    return image * x0 + rest * noise, t, image * noise - rest * x0


def _preserving(schedule: Schedule, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the labels (B,) of times, and √α and √(1-α) (B, 1, 1, 1)."""
    t = (times * schedule.T).long().clamp(max=schedule.T - 1)
    alpha = (1 / (1 + schedule.levels**2)).to(times.device, torch.float32)[t][:, None, None, None]
    return t.float(), alpha.sqrt(), (1 - alpha).sqrt()


def _pose_flow(schedule: Schedule, x0: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t = times[:, None, None, None]
    return (1 - t) * x0 + t * noise, times * schedule.T, noise - x0


def _pose_edm(schedule: Schedule, x0: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # The quantile of a time is infinite at 0 and at 1, which rounding can reach.
    log = EDM_MEAN + EDM_DEVIATION * torch.special.ndtri(times.clamp(2**-24, 1 - 2**-24))
    sigma = log.exp()[:, None, None, None]
    root = (sigma**2 + SIGMA_DATA**2).sqrt()
    return (x0 + sigma * noise) / root, log / 4, (sigma / SIGMA_DATA * x0 - SIGMA_DATA * noise) / root


OBJECTIVES = {
    "eps": Objective(Schedule.linear, "eps", _pose_noise),
    "v": Objective(Schedule.linear, "v", _pose_v),
    "flow": Objective(Schedule.rectified_flow, "flow", _pose_flow),
    "edm": Objective(Schedule.edm, "x0", _pose_edm, time="sigma", sigma_data=SIGMA_DATA),
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
        InputError: If no objective of `train` makes a model with this prediction.

    Example:
        >>> import odeddim
        >>> from odeddim.train.loss import validation_loss
        >>> 0 < validation_loss(odeddim.load(), odeddim.open_images(), count=2) < 0.1
        True
    """
    n = min(count, len(images))
    inner = field.eps.network if isinstance(field.eps, Denoiser) else field.eps
    name = "edm" if inner is not field.eps else pick(field.predicts, OBJECTIVES, "prediction to train")
    pose = OBJECTIVES[name].pose
    times = stratified(torch.full((n,), 0.5))
    total = 0.0
    for start in range(0, n, 64):
        rows = range(start, min(start + 64, n))
        noise = torch.stack([torch.randn(images.shape, generator=torch.Generator().manual_seed(i)) for i in rows])
        x, t, target = pose(field.schedule, images.read(rows), noise, times[start : start + 64])
        out = inner(x.to(field.device), t.to(field.device)).cpu()
        total += float((out - target).square().mean(dim=(1, 2, 3)).double().sum())
    return total / n
