"""Mean and covariance of images, by passes over blocks of them: memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from odeddim.types import InputError

WHOLE = 4096  # numbers of an image up to which its covariance is computed whole, 128 MiB in float64
_SPARE = 16  # directions that the randomised factorisation follows besides those that are kept
_POWERS = 2
_NUMBERS = 1 << 24  # of a block, in float64


class Images(Protocol):
    """Images (N, *): a tensor, or a sequence whose slices are tensors."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


def principal(images: Images, rank: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """The mean of images, and the directions of their largest variances.

    Args:
        images: The images, (N, *).
        rank: The number of directions; at most N - 1 and the numbers of an image are found.

    Returns:
        The mean (*), the directions (K, D) and their variances (K,), falling, all float64; and the mean variance in all
        other directions.

    Raises:
        InputError: If there are fewer than 2 images, or rank is not a positive whole number.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise InputError(f"rank must be a positive whole number, not {rank!r}")
    count = len(images)
    if count < 2:
        raise InputError(f"a covariance takes at least 2 images, not {count}: give more images")
    shape = images[0:1].shape[1:]
    mean = sum((block.sum(0) for block in _blocks(images)), torch.zeros((), dtype=torch.float64)) / count
    numbers = mean.numel()
    rank = min(rank, count - 1, numbers)
    factor = _whole if numbers <= WHOLE else _randomised
    values, vectors, total = factor(images, mean, rank)
    values = values.clamp(min=0)
    rest = max(0.0, total - float(values.sum())) / (numbers - rank) if numbers > rank else 0.0
    return mean.reshape(shape), vectors, values, rest


def _blocks(images: Images, mean: Tensor | float = 0.0) -> Iterator[Tensor]:
    """The images without their mean, (n, D) float64 each."""
    size = max(1, _NUMBERS // max(1, images[0:1][0].numel()))
    for start in range(0, len(images), size):
        block = images[start : min(start + size, len(images))].detach().double().cpu().flatten(1)
        if not bool(torch.isfinite(block).all()):
            raise InputError(f"images {start} to {start + len(block) - 1} hold NaN or infinite values: leave them out")
        yield block - mean


def _whole(images: Images, mean: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The largest eigenvalues of the covariance, its eigenvectors and its trace."""
    covariance = mean.new_zeros((len(mean), len(mean)))
    for block in _blocks(images, mean):
        covariance.addmm_(block.T, block)
    covariance /= len(images) - 1
    values, vectors = torch.linalg.eigh(covariance)
    return values[-rank:].flip(0), vectors[:, -rank:].flip(1).T.contiguous(), float(values.sum())


def _randomised(images: Images, mean: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The same by subspace iteration: a random subspace is multiplied by the covariance, again and again."""
    width = min(rank + _SPARE, len(images) - 1, len(mean))
    drawn = torch.randn((len(mean), width), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(drawn).Q
    for _ in range(_POWERS):
        moved = torch.zeros_like(basis)
        for block in _blocks(images, mean):
            moved.addmm_(block.T, block @ basis)
        basis = torch.linalg.qr(moved).Q
    inner, total = mean.new_zeros((width, width)), 0.0
    for block in _blocks(images, mean):
        along = block @ basis
        inner.addmm_(along.T, along)
        total += float(block.square().sum())
    values, vectors = torch.linalg.eigh(inner / (len(images) - 1))
    kept = (basis @ vectors[:, -rank:].flip(1)).T.contiguous()
    return values[-rank:].flip(0), kept, total / (len(images) - 1)
