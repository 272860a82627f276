"""How a network is evaluated under a condition: guided where the condition says so, in batches of one size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from odeddim.ode.conditions import Condition, Given

Network = Callable[..., Tensor]
"""eps(x (B, *), t (B,), *given) -> (B, *)."""


def where_guided(condition: Condition, sigma: Tensor) -> Tensor | bool:
    """Which images are guided at their noise levels: one answer where it is the same for all of them.

    Args:
        condition: with its guidance and the interval where that holds.
        sigma: () or (B,), the noise levels.

    Returns:
        True or False for all images, or a mask (B,).
    """
    if condition.guidance == 1 or condition.interval is None:
        return condition.guidance != 1
    low, high = condition.interval
    within = (sigma >= low) & (sigma <= high)
    return within if within.ndim and bool(within.any() ^ within.all()) else bool(within.any())


def conditioned_answer(network: Network, x: Tensor, labels: Tensor, given: Given) -> Tensor:
    """What the network answers under a condition: x (B, *), labels (B,) -> (B, *)."""
    return network(x, labels, *(_repeated(part, x) for part in given))


def guided_answer(network: Network, x: Tensor, labels: Tensor, given: Given, null: Given, weight: float) -> Tensor:
    """ε(none) + w·(ε(condition) - ε(none)): x (B, *), labels (B,) -> (B, *). Both come from one doubled batch."""
    both = [torch.cat([_repeated(part, x), _repeated(none, x)]) for part, none in zip(given, null, strict=True)]
    told, untold = network(torch.cat([x, x]), torch.cat([labels, labels]), *both).chunk(2)
    # In the state's precision at least: the difference is small and the guidance may be large.
    exact = torch.promote_types(told.dtype, torch.float32)
    told, untold = told.to(exact), untold.to(exact)
    return untold + weight * (told - untold)


def in_blocks(network: Network, x: Tensor, labels: Tensor, size: int) -> tuple[Tensor, int]:
    """The answers of a network that always sees `size` images at once; the last block is filled up.

    Args:
        network: (x (size, *), labels (size,)) -> (size, *).
        x: (B, *).
        labels: (B,).
        size: images in a block.

    Returns:
        The answers (B, *), and how many images only filled up a block.
    """
    blocks, filled = [], 0
    for start in range(0, x.shape[0], size):
        block, its_labels = x[start : start + size].clone(), labels[start : start + size]
        count = block.shape[0]
        if count < size:  # any image will do
            filling = (size - count, *[-1] * (x.ndim - 1))
            block = torch.cat([block, block[:1].expand(filling)])
            its_labels = torch.cat([its_labels, its_labels[:1].expand(size - count)])
            filled += size - count
        blocks.append(network(block, its_labels)[:count])
    return torch.cat(blocks), filled


def _repeated(part: Tensor, x: Tensor) -> Tensor:
    """(1, *) for each image of x, on its device; in its dtype unless it is whole numbers."""
    part = part.to(x.device, x.dtype if part.is_floating_point() else None)
    return part.expand(x.shape[0], *part.shape[1:])
