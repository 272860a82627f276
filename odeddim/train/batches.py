"""The images of each training step. Batches, labels and noise depend on (seed, step) only."""

from __future__ import annotations

import functools
import hashlib

import torch
from torch import Tensor


def batch_rows(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Return the indices of a step's images. Each epoch shuffles all images, and a batch may span two epochs.

    Args:
        count: The number of images.
        batch_size: The number of images in a step.
        seed: The seed of the order.
        step: The step, from 0.

    Returns:
        `batch_size` indices from 0 to count-1.
    """
    rows: list[int] = []
    while len(rows) < batch_size:
        epoch, offset = divmod(step * batch_size + len(rows), count)
        rows += _shuffled(count, seed, epoch)[offset : offset + batch_size - len(rows)].tolist()
    return rows


@functools.lru_cache(maxsize=2)
def _shuffled(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(seed, "epoch", epoch)))


def seed_of(*key: object) -> int:
    """Return a seed that depends on every part of the key."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=7).digest(), "big")
