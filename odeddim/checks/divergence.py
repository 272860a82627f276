"""The divergence of a field along a run: traces of its Jacobian at the nodes, and their integral over log σ.

The trace of J = ∂ε/∂x̄ is estimated by products with probes, tr J ≈ v·(Jᵀv) with signs v = ±1 (Hutchinson, Skilling).
An image's Jacobian is large near its diagonal, so the signs come in patterns that cancel the products of neighbours
exactly: of two probes one has the other's signs times those of a chessboard, of four in squares of 2×2 pixels. Their
mean has less variance than that of as many independent ones. This is known as hierarchical probing.

The noise of the estimate is measured and not assumed. A probe gives more than the trace: b = v∘(Jᵀv) is an estimate of
the diagonal of J, pixel by pixel. As σ changes the diagonal moves smoothly, and what is rough is noise (`noise_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from odeddim.ode.devices import products
from odeddim.ode.field import VectorField
from odeddim.types import InputError

COLOURS = 4
"""The digits of a pixel's colour: 2^4 = 16 colours, of which a probe pattern gives each a sign."""

_TAG = 0x70726F62  # keeps the streams of probes apart from those of `odeddim.noise`, whose keys are shorter


def signs(count: int, shape: Sequence[int], *, key: Sequence[int], start: int = 0) -> Tensor:
    """Independent random signs that depend, for image i, on (key, start + i) only.

    Args:
        count: The number of images.
        shape: The shape of an image.
        key: Whole numbers, not negative: the seed, the node, ...
        start: The index of the first image.

    Returns:
        ±1, (count, *shape) float32, on the CPU.
    """
    images = []
    for i in range(start, start + count):
        generator = stream(*key, i)
        images.append(torch.randint(0, 2, tuple(shape), generator=generator))
    return torch.stack(images).float() * 2 - 1


def stream(*key: int) -> torch.Generator:
    """A generator of random numbers of its own for each row of whole numbers."""
    words = np.random.SeedSequence([_TAG, *key]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))


def patterns(probes: int, shape: Sequence[int]) -> Tensor:
    """The patterns that probes share their signs in: over all of them, the products of different colours cancel.

    Args:
        probes: The number of probes, a power of two. From 16 on there are 16 patterns.
        shape: The shape of an image; the last two sizes are its rows and columns.

    Returns:
        ±1, (min(probes, 16), *shape) float32. The first is 1 everywhere.
    """
    *leading, height, width = (1, 1, *shape)
    row, column = torch.arange(height)[:, None], torch.arange(width)[None, :]
    channel = torch.arange(int(np.prod(leading)))[:, None, None]
    digits = [(row + column + channel) % 2, (row + channel // 2) % 2, (row // 2 + column // 2) % 2, (row // 2) % 2]
    digits = [(digit + 0 * channel + 0 * row + 0 * column).reshape(tuple(shape)) for digit in digits]
    found = []
    for number in range(min(probes, 2**COLOURS)):
        odd = sum((number >> place & 1) * digit for place, digit in enumerate(digits))
        found.append(1.0 - 2.0 * (torch.as_tensor(odd) % 2))
    return torch.stack(found).float()


class Products:
    """Products with the Jacobian of a field at a point: one evaluation that is kept, and a backward pass for each.

    Args:
        field: The model.
        sigma: The noise level.
        xbar: x̄, (B, *).

    Attributes:
        eps: ε there, (B, *).
        made: The number of products so far.

    Raises:
        InputError: If the network cannot be differentiated.
    """

    def __init__(self, field: VectorField, sigma: float, xbar: Tensor) -> None:
        self._field, self._point = field, xbar.detach().clone().requires_grad_()
        with torch.enable_grad():
            self._eps = field(torch.tensor(sigma, dtype=torch.float64), self._point)
        if not self._eps.requires_grad:
            raise InputError(
                f"the model {field.name!r} cannot be differentiated, which a density needs: give its network as a "
                "module of torch"
            )
        self.eps, self.made = self._eps.detach(), 0

    def __call__(self, v: Tensor) -> Tensor:
        """Jᵀv, (B, *), given v (B, *)."""
        self.made += 1
        with products(self._point.device, tf32=self._field.tf32):
            (product,) = torch.autograd.grad(self._eps, self._point, v, retain_graph=True)
        return product


Diagonal = Callable[[Products, Tensor, int], Tensor]
"""diagonal(products, xbar, node): an estimate of the diagonal of J, (B, *), whose sum is one of the trace."""


def probed(probes: int, *, seed: int, start: int, draw: int = 0) -> Diagonal:
    """Estimates by probes, fresh ones at each node.

    Args:
        probes: Their number at each node, a power of two.
        seed: The probes of an image depend on (seed, its index, the draw, the node) only.
        start: The index of the first image.
        draw: Which of several runs of the same images it is.
    """

    def diagonal(product: Products, xbar: Tensor, node: int) -> Tensor:
        shape = xbar.shape[1:]
        shared = patterns(probes, shape).to(xbar)
        total = torch.zeros_like(xbar, dtype=torch.float64 if xbar.dtype == torch.float64 else torch.float32)
        for group in range(max(1, probes // len(shared))):
            z = signs(len(xbar), shape, key=(seed, draw, node, group), start=start).to(xbar)
            for pattern in shared:
                v = z * pattern
                total += v * product(v)
        return total / max(probes, len(shared))

    return diagonal


def exact(product: Products, xbar: Tensor, node: int) -> Tensor:
    """The diagonal itself, by as many products as an image has numbers."""
    diagonal = torch.zeros_like(xbar).flatten(1)
    unit = torch.zeros_like(diagonal)
    for j in range(diagonal.shape[1]):
        unit[:, j] = 1
        diagonal[:, j] = product(unit.reshape(xbar.shape)).flatten(1)[:, j]
        unit[:, j] = 0
    return diagonal.reshape(xbar.shape)


def steps_of_spline(u: Tensor) -> Tensor:
    """What integrates a cubic spline between neighbouring nodes, given the values at all of them.

    Args:
        u: The nodes, (N+1,) float64, rising.

    Returns:
        Weights (N, N+1) float64: row n times the values is the integral from u_n to u_{n+1}.
    """
    from scipy.interpolate import CubicSpline  # a third of a second, which encoding without density need not wait for

    whole = CubicSpline(u.numpy(), np.eye(len(u))).antiderivative()(u.numpy())
    return torch.from_numpy(np.diff(whole, axis=0))


def noise_of(u: Tensor, diagonals: Sequence[Tensor]) -> Tensor:
    """The variance of the trace at each node, from how rough the estimates of the diagonal are from node to node.

    Of each pixel's estimate, the cubic through its four neighbours in log σ is subtracted, and of what is left its mean
    over the pixels, so that no smooth change counts. A product v·(Jᵀv) is the sum over pixels of their noise, and its
    variance twice the sum of theirs, since each pair of pixels is in two of them. (For a symmetric J, which that of a
    score is; otherwise it is no larger.)

    Args:
        u: The nodes in log σ, (N+1,), at least 5.
        diagonals: The estimates (B, *) at each node.

    Returns:
        The variances, (N+1, B) float64 on the CPU.
    """
    count, found = len(u), []
    for n in range(count):
        near = _nearest(n, count)
        weights = [_lagrange(u, near, m, n) for m in near]
        rough = diagonals[n].double()
        for m, weight in zip(near, weights, strict=True):
            rough = rough - weight * diagonals[m].double()
        size = rough[0].numel()
        if size == 1:  # v·(Jᵀv) is exact
            found.append(torch.zeros(len(rough), dtype=torch.float64))
            continue
        mean = (sums(rough) / size).to(rough.device).reshape(-1, *[1] * (rough.ndim - 1))
        left = sums((rough - mean).square()) * size / (size - 1)
        found.append(2 * left / (1 + sum(weight**2 for weight in weights)))
    return torch.stack(found)


def sums(images: Tensor) -> Tensor:
    """The sum of each image's numbers, given (B, *): (B,) float64 on the CPU.

    One by one: torch adds in an order that depends on how many images there are.
    """
    return torch.stack([image.double().contiguous().flatten().sum().cpu() for image in images])


def _nearest(n: int, count: int) -> list[int]:
    """The four nodes that lie around node n, on one side where there are none on the other."""
    first = min(max(n - 2, 0), count - 5)
    return [m for m in range(first, first + 5) if m != n]


def _lagrange(u: Tensor, near: Sequence[int], m: int, n: int) -> float:
    """The weight of node m in the polynomial through the nodes `near`, at node n."""
    weight = 1.0
    for k in near:
        if k != m:
            weight *= float((u[n] - u[k]) / (u[m] - u[k]))
    return weight


def halves(count: int) -> Iterator[int]:
    """Every second of so many nodes, and the last."""
    yield from range(0, count - 1, 2)
    yield count - 1
