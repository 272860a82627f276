"""The gradient of a step whose batch is cut into pieces, added up in an order that does not depend on who has which.

Rounding makes a sum of floating-point numbers depend on its order. The gradients of the pieces are therefore added up
as a binary tree: neighbours first, ((g₀ + g₁) + (g₂ + g₃)) + ... If the number of pieces is a power of two, a process
with an equal share of them adds up a branch of this tree, so the sum is the same, bit for bit, for any number of
processes that divides it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TreeSum:
    """A sum of tensors of one shape that are given one after another, as a binary tree.

    It holds as many tensors as the tree is high.

    Example:
        >>> import torch
        >>> from odeddim.train.gradients import TreeSum
        >>> tree = TreeSum()
        >>> for value in (1.0, 1e8, -1e8, 2.0):  # (1 + 1e8) + (-1e8 + 2), in float32
        ...     tree.add(torch.tensor(value))
        >>> float(tree.total())
        0.0
    """

    def __init__(self) -> None:
        self._branches: list[Tensor] = []
        self._count = 0

    def add(self, value: Tensor) -> None:
        """Add a tensor."""
        self._count += 1
        whole = self._count
        while whole % 2 == 0:
            value = self._branches.pop() + value
            whole //= 2
        self._branches.append(value)

    def total(self) -> Tensor:
        """Return the sum of all tensors. There must be at least one."""
        total = self._branches[-1]
        for branch in reversed(self._branches[:-1]):
            total = branch + total
        return total


def gradient_of(network: nn.Module, loss: Tensor) -> Tensor:
    """Return the gradients of the network's parameters and the loss () as one vector, and free the gradients."""
    parts = [parameter.grad for parameter in network.parameters()]
    vector = torch.cat([part.flatten() for part in parts if part is not None] + [loss.detach().reshape(1)])
    network.zero_grad()
    return vector


def set_gradient(network: nn.Module, vector: Tensor) -> Tensor:
    """Set the gradients of the network's parameters from a vector of `gradient_of`, and return the loss ()."""
    at = 0
    for parameter in network.parameters():
        parameter.grad = vector[at : at + parameter.numel()].view_as(parameter)
        at += parameter.numel()
    return vector[at]
