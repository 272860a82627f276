"""How a network is evaluated under a condition: with guidance, and in batches of a fixed size."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from odeddim.ode.conditions import Condition, Conditions, Given

Network = Callable[..., Tensor]
"""A network, eps(x (B, *), t (B,), *given) -> (B, *)."""


class Way(NamedTuple):
    """How an image is evaluated at its noise level.

    Attributes:
        weight: The weight of guidance; 1 is the condition alone.
        low: Whether by the network for low noise levels, of a model that has two.
    """

    weight: float
    low: bool

    @property
    def evaluations(self) -> int:
        """How many images the network sees for one."""
        return 1 if self.weight == 1 else 2


def ways_at(condition: Condition, sigma: Tensor, boundary: float | None) -> list[tuple[Way, list[int]]]:
    """The ways in which images are evaluated at their noise levels, those with guidance first.

    Args:
        condition: The condition, with its guidance and interval.
        sigma: The noise levels, () or (B,).
        boundary: The noise level below which the model has another network; None for one network.

    Returns:
        Each way, with the places of its images; the only one without, for it is that of all.
    """
    if condition.interval is None and boundary is None:
        return [(Way(condition.guidance, False), [])]
    found: dict[Way, list[int]] = {}
    for place, level in enumerate(sigma.reshape(-1).tolist() or [0.0]):  # of no image, any way
        found.setdefault(_way_at(condition, level, boundary), []).append(place)
    ways = sorted(found, key=lambda way: -way.evaluations)
    return [(way, found[way] if len(ways) > 1 else []) for way in ways]


def _way_at(condition: Condition, sigma: float, boundary: float | None) -> Way:
    low = boundary is not None and sigma < boundary
    within = condition.interval is None or condition.interval[0] <= sigma <= condition.interval[1]
    weight = condition.guidance if not low or condition.low_guidance is None else condition.low_guidance
    return Way(weight if within else 1.0, low)


def conditioned_answer(network: Network, x: Tensor, labels: Tensor, given: Given) -> Tensor:
    """The network's answer under a condition.

    Args:
        network: The network.
        x: Its input, (B, *).
        labels: The labels t, (B,).
        given: The tensors (1, *) for the condition.

    Returns:
        The answer, (B, *).
    """
    return network(x, labels, *(_repeated(part, x) for part in given))


def guided_answer(
    network: Network,
    x: Tensor,
    labels: Tensor,
    given: Given,
    null: Given,
    weight: float,
    rescale: float = 0.0,
    length: Callable[[Tensor], Tensor] | None = None,
    guide: Network | None = None,
) -> Tensor:
    """The guided answer ε(none) + w·(ε(condition) - ε(none)).

    Both terms come from one batch of twice the images, or each from its network on the same images.

    Args:
        network: The network.
        x: Its input, (B, *).
        labels: The labels t, (B,).
        given: The tensors (1, *) for the condition.
        null: The tensors (1, *) for no condition, or those that the guide takes.
        weight: The weight w.
        rescale: φ of `rescaled`.
        length: A length of answers that guidance keeps, as of `odeddim.ode.conditions.Prompts`; None for none.
        guide: The network whose answer stands for that under no condition; None for the network itself.

    Returns:
        The answer, (B, *), float32 at least.

    Source:
        Ho and Salimans 2022, arXiv 2207.12598, eq. 6; of a guide Karras et al. 2024, arXiv 2406.02507, eq. 3.
    """
    if guide is None:
        told, untold = _both(network, x, labels, given, null)
    else:
        told, untold = conditioned_answer(network, x, labels, given), conditioned_answer(guide, x, labels, null)
    # In the state's precision at least: the difference is small and the guidance may be large.
    exact = torch.promote_types(told.dtype, torch.float32)
    told, untold = told.to(exact), untold.to(exact)
    guided = untold + weight * (told - untold)
    guided = guided if length is None else guided * (length(told) / length(guided))
    return rescaled(guided, told, rescale) if rescale else guided


def _both(network: Network, x: Tensor, labels: Tensor, given: Given, null: Given) -> tuple[Tensor, Tensor]:
    """The answers under the condition and under none, of one batch."""
    both = [torch.cat([_repeated(part, x), _repeated(none, x)]) for part, none in zip(given, null, strict=True)]
    told, untold = network(torch.cat([x, x]), torch.cat([labels, labels]), *both).chunk(2)
    return told, untold


def rescaled(guided: Tensor, told: Tensor, rescale: float) -> Tensor:
    """A guided answer scaled so that its standard deviation is φ·std(told) + (1-φ)·std(guided), for each image.

    An answer whose values are all the same stays as it is.

    Args:
        guided: The guided answer, (B, *).
        told: The answer under the condition, (B, *).
        rescale: φ, 0 to 1.

    Returns:
        The scaled answer, (B, *). That of an image has the same bits in any batch.

    Source:
        Lin et al. 2024, arXiv 2305.08891, eq. 15 and 16.

    Example:
        >>> from odeddim.ode.guidance import rescaled
        >>> rescaled(torch.tensor([[-4.0, 0.0, 4.0]]), torch.tensor([[-1.0, 0.0, 1.0]]), 0.5)
        tensor([[-2.5000,  0.0000,  2.5000]])
    """
    own, wanted = _deviations(guided), _deviations(told)
    ratio = torch.where(own > 0, wanted / own, 1.0)
    return guided * (rescale * ratio + (1 - rescale)).reshape(-1, *[1] * (guided.ndim - 1))


def _deviations(answer: Tensor) -> Tensor:
    """The standard deviation of each image, (B, *) -> (B, 1)."""
    flat = answer.flatten(1)
    return _means((flat - _means(flat)).square()).sqrt()


def _means(rows: Tensor) -> Tensor:
    """The mean of each row, (B, N) -> (B, 1). The order of torch's own sums depends on the batch and the threads."""
    total = rows
    while (width := total.shape[1]) > 1:
        half = width // 2
        total = torch.cat([total[:, :half] + total[:, half : 2 * half], total[:, 2 * half :]], dim=1)
    return total / rows.shape[1]


def length_of(conditions: Conditions | None) -> Callable[[Tensor], Tensor] | None:
    """The length of answers that guidance keeps under such conditions; None for none, as under those of one's own."""
    return getattr(conditions, "length", None)


def in_ways(
    evaluate: Callable[..., Tensor], ways: list[tuple[Way, list[int]]], x: Tensor, labels: Tensor, each: Given
) -> Tensor:
    """The answers to images in the way of each.

    An image outside the interval must not share a batch with those inside: its last digits would depend on them.

    Args:
        evaluate: The network in a way, (x (n, *), labels (n,), way, its part of `each`) -> (n, *).
        ways: What `ways_at` returns.
        x: Its input, (B, *).
        labels: The labels t, (B,).
        each: What else each image has, (B, *) each.

    Returns:
        The answers, (B, *).
    """
    if len(ways) == 1:
        return evaluate(x, labels, ways[0][0], each)
    order = torch.tensor([place for _, places in ways for place in places])
    answers = []
    for way, places in ways:
        rows = torch.tensor(places).to(x.device, non_blocking=True)
        answers.append(evaluate(x[rows], labels[rows], way, tuple(part[rows] for part in each)))
    back = torch.argsort(order).to(x.device, non_blocking=True)
    return torch.cat([answer.to(answers[0].dtype) for answer in answers])[back]


def in_blocks(network: Network, x: Tensor, labels: Tensor, size: int, each: Given = ()) -> tuple[Tensor, int]:
    """The answers of a network that is always evaluated on blocks of `size` images; the last block is filled up.

    Args:
        network: The network, (x (size, *), labels (size,), *each (size, *)) -> (size, *).
        x: Its input, (B, *).
        labels: The labels t, (B,).
        size: The number of images in a block.
        each: What else each image has, (B, *) each.

    Returns:
        The answers (B, *), and the number of images that only filled up a block.
    """
    blocks, filled = [], 0
    for start in range(0, x.shape[0], size):
        cut = [part[start : start + size] for part in (x, labels, *each)]
        cut[0] = cut[0].clone()
        count = cut[0].shape[0]
        if count < size:  # any image serves to fill it up
            cut = [torch.cat([part, part[:1].expand(size - count, *part.shape[1:])]) for part in cut]
            filled += size - count
        blocks.append(network(*cut)[:count])
    return torch.cat(blocks), filled


def _repeated(part: Tensor, x: Tensor) -> Tensor:
    """A tensor (1, *) repeated for each image of x."""
    return part.expand(x.shape[0], *part.shape[1:])
