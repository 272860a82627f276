"""Which images a step sees. Batches, labels and noise are functions of (seed, step) alone."""

from __future__ import annotations

import functools
import hashlib

import torch
from torch import Tensor


def batch_rows(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """The images of a step. Every epoch is a shuffle of all `count` of them; batches run on across its end."""
    rows: list[int] = []
    while len(rows) < batch_size:
        epoch, offset = divmod(step * batch_size + len(rows), count)
        rows += _shuffled(count, seed, epoch)[offset : offset + batch_size - len(rows)].tolist()
    return rows


@functools.lru_cache(maxsize=2)
def _shuffled(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(seed, "epoch", epoch)))


def seed_of(*key: object) -> int:
    """A seed that depends on every part of the key."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=7).digest(), "big")
