"""The images of each training step. Batches, flips, labels and noise depend on (seed, step) only."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Generator

import torch
from torch import Tensor

from odeddim.storage.images import ImageSource
from odeddim.storage.prefetch import ahead
from odeddim.train.settings import Settings


def batches(
    images: ImageSource, settings: Settings, first: int, share: slice, *, pinned: bool = False
) -> Generator[Tensor, None, None]:
    """Read the images of each step of a run, the next steps' by a thread while the network works.

    Args:
        images: The images (N, C, H, W).
        settings: The settings of the run.
        first: The first step.
        share: The part of each batch that this process takes.
        pinned: Whether to put the images where a GPU can copy them without making the process wait.

    Yields:
        The images of a step, (share, C, H, W) float32.
    """

    def read(step: int, _: int) -> Tensor:
        x0 = images.read(batch_rows(len(images), settings.batch_size, settings.seed, step)[share])
        if settings.flips:
            x0 = torch.where(mirrored(settings, step)[share, None, None, None], x0.flip(-1), x0)
        return x0.pin_memory() if pinned else x0

    steps = ((step, step + 1) for step in range(first, settings.steps))
    reading = ahead(read, steps)
    try:
        for _, x0 in reading:
            yield x0
    finally:
        reading.close()


def mirrored(settings: Settings, step: int) -> Tensor:
    """Return which images of a step's batch are mirrored, (batch_size,) bool: each with probability ½."""
    generator = torch.Generator().manual_seed(seed_of(settings.seed, "flips", step))
    return torch.rand(settings.batch_size, generator=generator) < 0.5


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
