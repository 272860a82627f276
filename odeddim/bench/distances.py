"""Distances between two sets of images, from their features (N, d): Fréchet distance, KID, precision and recall."""

from __future__ import annotations

import importlib.util
import warnings

import torch
from torch import Tensor, nn

from odeddim.types import InputError

SUBSET = 1000
"""The size of a subset of KID, as in the paper; a smaller set of features is one subset."""

_SLICE = 4096  # rows that are passed to torchmetrics at once
_PAIRS = 1 << 22  # distances that are held in memory at once


def frechet(real: Tensor, fake: Tensor) -> float:
    """Compute the Fréchet distance ‖μ₁ - μ₂‖² + tr(Σ₁ + Σ₂ - 2(Σ₁Σ₂)^½) of two sets of features.

    With features from Inception, this distance is the FID. torchmetrics computes it in float64 from unbiased
    covariances. The distance is biased: it is larger for fewer images of the same distribution. Compare only distances
    of equally many images.

    Args:
        real: The features (N, d) of the real images.
        fake: The features (M, d) of the generated images.

    Returns:
        The distance, at least 0.

    Raises:
        InputError: If a set has fewer than 2 rows, if d differs, if a value is not finite, or if torchmetrics is
            missing.

    Source:
        Heusel et al., arXiv 1706.08500.
    """
    real, fake = _checked(real, fake)
    _need_torchmetrics()
    from torchmetrics.image.fid import FrechetInceptionDistance

    centre = real.mean(dim=0)  # does not change the distance, but keeps the digits of the covariances
    with torch.device("cpu"):
        metric = FrechetInceptionDistance(feature=_Identity(real.shape[1]), sync_on_compute=False)
        for features, is_real in ((real, True), (fake, False)):
            for part in torch.split(features, _SLICE):
                metric.update(part - centre, real=is_real)
        return max(0.0, float(metric.compute()))  # only rounding makes it negative


def kid(
    real: Tensor, fake: Tensor, *, subsets: int = 100, subset_size: int | None = None, seed: int = 0
) -> tuple[float, float]:
    """Compute the kernel distance (KID) of two sets of features over random subsets.

    KID is the unbiased estimate of MMD² with the kernel (xᵀy/d + 1)³, so it may be negative. torchmetrics computes it
    in float64. The subsets depend on `seed`, N and M only. The state of the global random generator does not change.

    Args:
        real: The features (N, d) of the real images.
        fake: The features (M, d) of the generated images.
        subsets: The number of random subsets.
        subset_size: The number of rows from each set in a subset; if not given, all rows, or 1000 if there are more.
        seed: The seed of the subsets.

    Returns:
        The mean and the standard deviation over the subsets.

    Raises:
        InputError: If a set has fewer than 2 rows, if d differs, if a value is not finite, if the number or the size
            of the subsets is not possible, or if torchmetrics is missing.

    Source:
        Bińkowski et al., arXiv 1801.01401.
    """
    real, fake = _checked(real, fake)
    least = min(len(real), len(fake))
    size = min(SUBSET, least) if subset_size is None else subset_size
    if subsets < 1 or not 2 <= size <= least:
        raise InputError(
            f"KID takes at least 1 subset of 2 to {least} features of each set, not {subsets} of {size}: change "
            "subsets=... or subset_size=..."
        )
    _need_torchmetrics()
    from torchmetrics.image.kid import KernelInceptionDistance

    with torch.device("cpu"), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about memory for all features, which we hold anyway
        metric = KernelInceptionDistance(
            feature=_Identity(real.shape[1]), subsets=subsets, subset_size=size, sync_on_compute=False
        )
        metric.update(real, real=True)
        metric.update(fake, real=False)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs
        mean, std = metric.compute()
    return float(mean), float(std)


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Compute precision and recall of generated images from two sets of features.

    Precision is the share of generated images that are among the real ones; recall is the share of real images that
    are among the generated ones. A feature is among a set if, for some member of the set, it is no further from this
    member than the member's k-th nearest neighbour in the set. Distances are float64. Memory is bounded; time grows
    with (N + M)²·d.

    Args:
        real: The features (N, d) of the real images.
        fake: The features (M, d) of the generated images.
        k: The number of the neighbour that sets the radius of a member; at least 1.

    Returns:
        Precision and recall, each from 0 to 1.

    Raises:
        InputError: If k is below 1, if a set has k rows or fewer, if d differs, or if a value is not finite.

    Source:
        Kynkäänniemi et al., arXiv 1904.06991, eq. 1-3.
    """
    real, fake = _checked(real, fake)
    if not 1 <= k < min(len(real), len(fake)):
        raise InputError(
            f"precision and recall by {k} neighbours are not possible: k=... must be at least 1 and less than the "
            f"number of features in either set ({len(real)} and {len(fake)})"
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
    """A network that returns its input: torchmetrics asks for a network, and the features are computed already."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_features = size

    def forward(self, features: Tensor) -> Tensor:
        return features


def _reach(features: Tensor, k: int) -> Tensor:
    """The distances (N,) of the rows of `features` (N, d) from their k-th nearest neighbours."""
    reach = []
    for start in range(0, len(features), rows := max(1, _PAIRS // len(features))):
        distances = _distances(features[start : start + rows], features)
        distances.diagonal(start).fill_(float("inf"))  # a row is not its own neighbour
        reach.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(reach)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # Computed from differences: equal rows have distance exactly 0. The faster matrix product would not give 0.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _checked(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Check both sets, and return them as float64 on the CPU."""
    for what, features in (("real", real), ("generated", fake)):
        if features.ndim != 2 or len(features) < 2 or not features.shape[1]:
            shape = tuple(features.shape)
            raise InputError(
                f"a distance needs features (N, d) of at least 2 images: the {what} ones have shape {shape}; give "
                "one row per image"
            )
        if not bool(torch.isfinite(features).all()):
            raise InputError(f"the features of the {what} images hold NaN or infinite values: leave those images out")
    if real.shape[1] != fake.shape[1]:
        raise InputError(
            f"the features of the real images have {real.shape[1]} values and those of the generated ones "
            f"{fake.shape[1]}: compute both with the same network"
        )
    return real.detach().to("cpu", torch.float64), fake.detach().to("cpu", torch.float64)


def _need_torchmetrics() -> None:
    if importlib.util.find_spec("torchmetrics") is None:
        raise InputError("the distance between two sets of images needs torchmetrics: pip install 'odeddim[metrics]'")
