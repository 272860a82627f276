"""How far one set of images is from another, by their features (N, d): Fréchet distance, KID, precision and recall."""

from __future__ import annotations

import importlib.util
import warnings

import torch
from torch import Tensor, nn

from odeddim.types import InputError

SUBSET = 1000
"""Features in a subset of KID, unless there are fewer: as in the paper."""

_SLICE = 4096  # rows worked on at once
_PAIRS = 1 << 22  # distances held at once


def frechet(real: Tensor, fake: Tensor) -> float:
    """Fréchet distance ‖μ₁ - μ₂‖² + tr(Σ₁ + Σ₂ - 2(Σ₁Σ₂)^½) of two sets of features (N, d) and (M, d).

    By torchmetrics in float64, unbiased covariances. Of Inception's features it is the FID (Heusel et al., arXiv
    1706.08500). It is biased: the same distribution is further away by fewer images, so that only figures of as many
    images compare. Errors: InputError for fewer than 2 rows, different d, NaN, and without torchmetrics.
    """
    real, fake = _checked(real, fake)
    _need_torchmetrics()
    from torchmetrics.image.fid import FrechetInceptionDistance

    centre = real.mean(dim=0)  # the distance stays, and the covariances do not drown in the means' squares
    with torch.device("cpu"):
        metric = FrechetInceptionDistance(feature=_Identity(real.shape[1]), sync_on_compute=False)
        for features, is_real in ((real, True), (fake, False)):
            for part in torch.split(features, _SLICE):
                metric.update(part - centre, real=is_real)
        return max(0.0, float(metric.compute()))  # below 0 by rounding alone


def kid(
    real: Tensor, fake: Tensor, *, subsets: int = 100, subset_size: int | None = None, seed: int = 0
) -> tuple[float, float]:
    """Kernel distance of two sets of features (N, d) and (M, d): (mean, standard deviation) over random subsets.

    The unbiased estimate of MMD² with the kernel (xᵀy/d + 1)³ (Bińkowski et al., arXiv 1801.01401), so that it may be
    below 0, by torchmetrics in float64. subset_size: rows of each set in a subset, all or 1000 if not given. The
    subsets depend on seed, N and M alone, and the global generator of random numbers stays as it was.
    Errors: InputError for fewer than 2 rows, different d, NaN, subsets that cannot be, and without torchmetrics.
    """
    real, fake = _checked(real, fake)
    least = min(len(real), len(fake))
    size = min(SUBSET, least) if subset_size is None else subset_size
    if subsets < 1 or not 2 <= size <= least:
        raise InputError(f"KID takes at least 1 subset of 2 to {least} features of each set, not {subsets} of {size}")
    _need_torchmetrics()
    from torchmetrics.image.kid import KernelInceptionDistance

    with torch.device("cpu"), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it keeps all features, which we hold anyway
        metric = KernelInceptionDistance(
            feature=_Identity(real.shape[1]), subsets=subsets, subset_size=size, sync_on_compute=False
        )
        metric.update(real, real=True)
        metric.update(fake, real=False)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would set the generators of GPUs, too
        mean, std = metric.compute()
    return float(mean), float(std)


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """The share of fakes among the real, and of the real among the fakes, by features (N, d) and (M, d).

    A feature is among a set if it is no further from some member than that member's k-th nearest neighbour in the set
    is (Kynkäänniemi et al., arXiv 1904.06991, eq. 1-3). Float64, memory bounded, time in proportion to (N + M)²·d.
    Errors: InputError for k rows or fewer, different d, and NaN.
    """
    real, fake = _checked(real, fake)
    if not 1 <= k < min(len(real), len(fake)):
        raise InputError(
            f"precision and recall by {k} neighbours need 1 neighbour at least and more features than those in either "
            f"set, not {len(real)} and {len(fake)}"
        )
    reach_real, reach_fake = _reach(real, k), _reach(fake, k)
    precise, recalled = [], torch.zeros(len(real), dtype=torch.bool)
    rows = max(1, _PAIRS // len(real))
    for part, reach in zip(torch.split(fake, rows), torch.split(reach_fake, rows), strict=True):
        distances = _distances(part, real)
        precise.append((distances <= reach_real).any(dim=1))
        recalled |= (distances <= reach[:, None]).any(dim=0)
    return float(torch.cat(precise).double().mean()), float(recalled.double().mean())


class _Identity(nn.Module):
    """Features for features: torchmetrics wants a network."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_features = size

    def forward(self, features: Tensor) -> Tensor:
        return features


def _reach(features: Tensor, k: int) -> Tensor:
    """The distance of each row (N, d) from its k-th nearest neighbour, (N,)."""
    reach = []
    for start in range(0, len(features), rows := max(1, _PAIRS // len(features))):
        distances = _distances(features[start : start + rows], features)
        distances.diagonal(start).fill_(float("inf"))  # nobody is its own neighbour
        reach.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(reach)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # By differences: equal rows are at 0, which the faster product of matrices would miss.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _checked(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets as float64 on the CPU."""
    for what, features in (("real", real), ("generated", fake)):
        if features.ndim != 2 or len(features) < 2 or not features.shape[1]:
            shape = tuple(features.shape)
            raise InputError(
                f"a distance needs features (N, d) of 2 images at least: the {what} ones have shape {shape}"
            )
        if not bool(torch.isfinite(features).all()):
            raise InputError(f"the features of the {what} images hold NaN or infinite values: leave those images out")
    if real.shape[1] != fake.shape[1]:
        raise InputError(
            f"the features of the real images have {real.shape[1]} values and those of the generated ones "
            f"{fake.shape[1]}: compute both by one network"
        )
    return real.detach().to("cpu", torch.float64), fake.detach().to("cpu", torch.float64)


def _need_torchmetrics() -> None:
    if importlib.util.find_spec("torchmetrics") is None:
        raise InputError("the distance of two sets of images needs torchmetrics: pip install 'odeddim[metrics]'")
