"""The preconditioning of EDM (arXiv 2206.00364, table 1), around the inner networks of EDM2 and of k-diffusion."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Denoiser(nn.Module):
    """D(x, σ[, label]) = c_skip·x + c_out·F(c_in·x, ln(σ)/4[, one-hot label]), the denoised image.

    Attributes:
        sigma_data: The standard deviation of the data that the factors assume.
        classes: The number of classes; the label `classes` stands for none, a row of zeros.
    """

    def __init__(self, network: nn.Module, sigma_data: float, classes: int = 0) -> None:
        super().__init__()
        self.network, self.sigma_data, self.classes = network, sigma_data, classes

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Denoise images.

        Args:
            x: The noisy images x0 + σ·ε, (B, C, H, W).
            sigma: The noise levels, (B,), in float32 or better.
            label: The classes (B,) int64, if the network has classes.

        Returns:
            The denoised images, (B, C, H, W).
        """
        total = (sigma**2 + self.sigma_data**2)[:, None, None, None]
        inner = (x / total.sqrt()).to(x.dtype)
        row = None if label is None else F.one_hot(label, self.classes + 1)[:, : self.classes].to(x.dtype)
        given = () if row is None else (row,)
        out = self.network(inner, torch.log(sigma) / 4, *given)
        level = sigma[:, None, None, None]
        denoised: Tensor = self.sigma_data**2 / total * x + level * self.sigma_data / total.sqrt() * out
        return denoised
