"""The Gaussian of a model's data: where noise is high, its exact flow is nearly that of the model, and costs nothing.

At high noise the score of any data is nearly that of the Gaussian with their mean μ and covariance Σ. Its ODE has a
solution in closed form: in the basis of Σ's eigenvectors u_k, with eigenvalues λ_k, each component of x̄ moves alone,

    z_k = u_k·(x̄ - μ),    z_k(σ') = z_k(σ)·√((λ_k + σ'²)/(λ_k + σ²)),    ε_k = σ·z_k/(λ_k + σ²).

The covariance is held as K eigenvectors with their variances, and one variance for all directions besides (`rest`).
Arithmetic is float64, image by image, so that the result for an image has the same bits in any batch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odeddim.ode.covariance import Images, principal
from odeddim.storage.atomic import replacing
from odeddim.storage.errors import is_ours, short
from odeddim.types import InputError

FORMAT, VERSION = "odeddim moments", 1
FILE = "moments.safetensors"
"""The name of the file beside a model that holds its Gaussian."""
RANK = 64
_BLOCK = 1 << 22  # numbers of the basis that are float64 at once
_MOST = 1 << 34  # bytes of a file
_HINT = "make it again with `odeddim moments`"

Term = tuple[Tensor, Tensor, float]
"""A tensor (B, *) with its factors: (K,) along the eigenvectors, and one for all other directions."""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A Gaussian N(μ, Σ) with Σ as K eigenvectors and one variance for all other directions.

    Attributes:
        mean: μ, (*) float64; () for one number that holds for all pixels.
        basis: The eigenvectors, (K, D) of a floating dtype, D the numbers of an image; rounding is made up for.
        variances: Their eigenvalues λ_k >= 0, (K,) float64.
        rest: The variance in all other directions, >= 0.
        errors: What was measured of its flow on a model, by name (`odeddim.ode.tops.CURVES`); empty if nothing was.
        notes: What it was made of, values that JSON can hold.

    Example:
        >>> from odeddim.ode.gaussian import Gaussian
        >>> data = Gaussian.of(torch.randn(500, 1, 4, 4), rank=4)
        >>> up = data.carry(torch.zeros(2, 1, 4, 4), sigma=10.0, to=100.0)
        >>> up.shape, torch.allclose(data.carry(up, 100.0, 10.0), torch.zeros(2, 1, 4, 4), atol=1e-5)
        (torch.Size([2, 1, 4, 4]), True)
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor
    rest: float
    errors: Mapping[str, Tensor] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", self.mean.detach().double().cpu())
        object.__setattr__(self, "variances", self.variances.detach().double().cpu())
        object.__setattr__(self, "rest", float(self.rest))
        count = self.mean.numel() if self.mean.ndim else 0
        if self.basis.ndim != 2 or self.variances.shape != self.basis.shape[:1] or len(self.basis) > count:
            raise InputError(
                f"a Gaussian of data {tuple(self.mean.shape)} has K eigenvectors (K, {count}) with K variances, not "
                f"{tuple(self.basis.shape)} with {tuple(self.variances.shape)}"
            )
        if len(self.basis) and self.basis.shape[1] != count:
            raise InputError(f"the eigenvectors have {self.basis.shape[1]} numbers, but the mean has {count}")
        if not (bool((self.variances >= 0).all()) and math.isfinite(float(self.variances.sum())) and self.rest >= 0):
            raise InputError("the variances of a Gaussian must be finite numbers, at least 0")

    @classmethod
    def isotropic(cls, mean: float | Tensor, variance: float) -> Gaussian:
        """The Gaussian with one variance in all directions.

        Args:
            mean: μ, an image (*), or one number for images of any shape.
            variance: The variance λ of each number of an image.
        """
        mean = torch.as_tensor(mean, dtype=torch.float64)
        return cls(mean, mean.new_zeros((0, mean.numel() if mean.ndim else 0)), mean.new_zeros(0), variance)

    @classmethod
    def of(cls, images: Images, *, rank: int = RANK, **notes: Any) -> Gaussian:
        """The Gaussian with the mean and the covariance of images.

        Images are read in blocks. Up to 4,096 numbers an image, the covariance is computed whole and its eigenvectors
        exactly; above, those of the largest variances are found by a randomised factorisation in four passes, with
        memory for `rank` + 16 images.

        Args:
            images: The images or data, (N, *): a tensor, or anything with a length whose slices are such tensors.
            rank: The number of eigenvectors that are kept; at most N - 1 and the numbers of an image.
            **notes: Notes for the file, values that JSON can hold.

        Returns:
            The Gaussian.

        Raises:
            InputError: If there are fewer than 2 images, or rank is not a positive whole number.

        Source:
            Halko, Martinsson & Tropp 2011, arXiv 0909.4061, algorithm 4.4, for the randomised factorisation.
        """
        mean, basis, variances, rest = principal(images, rank)
        return cls(mean, basis.float(), variances, rest, notes={"images": len(images), **notes})

    def with_errors(self, errors: Mapping[str, Tensor], **notes: Any) -> Gaussian:
        """The Gaussian with what was measured of its flow on a model, and further notes."""
        return replace(self, errors=errors, notes={**self.notes, **notes})

    def carry(self, xbar: Tensor, sigma: float, to: float) -> Tensor:
        """Move x̄ along the exact flow of the Gaussian: z_k ∝ √(λ_k + σ²).

        Args:
            xbar: x̄ at `sigma`, (B, *) float32 or float64.
            sigma: The noise level σ where x̄ lies.
            to: The noise level where the result lies, above or below.

        Returns:
            x̄ at `to`, (B, *) in xbar's dtype on its device; the same bits of an image whatever the batch is.

        Raises:
            InputError: If x̄ has another shape than the mean, or a noise level is not positive.
        """
        if not (sigma > 0 and to > 0):
            raise InputError(f"a Gaussian carries between positive noise levels, not from σ = {sigma:g} to {to:g}")
        if sigma == to:
            return xbar.clone()
        centre = self.centre(xbar)
        ratios, rest = self.per_component(lambda variance: ((variance + to**2) / (variance + sigma**2)) ** 0.5)
        return (self.filtered([(xbar.to(centre) - centre, ratios, rest)]) + centre).to(xbar)

    def eps(self, sigma: float | Tensor, xbar: Tensor) -> Tensor:
        """The exact ε of the Gaussian, ε_k = σ·z_k/(λ_k + σ²).

        Args:
            sigma: The noise level of all images, ().
            xbar: x̄, (B, *).

        Returns:
            ε, (B, *) in xbar's dtype.
        """
        level, centre = float(sigma), self.centre(xbar)
        factors, rest = self.per_component(lambda variance: level / (variance + level**2))
        return self.filtered([(xbar.to(centre) - centre, factors, rest)]).to(xbar)

    def centre(self, xbar: Tensor) -> Tensor:
        """The mean in float64 on the device of x̄ (B, *), (*) or (); an InputError if x̄ is of another shape."""
        if self.mean.ndim and xbar.shape[1:] != self.mean.shape:
            has, wants = ("×".join(map(str, shape)) for shape in (xbar.shape[1:], self.mean.shape))
            raise InputError(
                f"the Gaussian of the model is that of data of {wants}, not of {has}: compute one for this size with "
                "`odeddim moments`, or leave out top='gaussian'"
            )
        place = xbar.device if xbar.device.type != "mps" else torch.device("cpu")  # which has no float64
        if place not in self._means:
            self._means[place] = self.mean.to(place, non_blocking=place.type != "cpu")
        return self._means[place]

    def per_component(self, factor: Any) -> tuple[Tensor, float]:
        """The values of a function of variances (K,) float64: those of the eigenvectors, and that of the rest."""
        every = factor(torch.cat([self.variances, self.variances.new_tensor([self.rest])]))
        return every[:-1], float(every[-1])

    def filtered(self, terms: Sequence[Term]) -> Tensor:
        """The sum of tensors, each with its components multiplied by factors of their own.

        Args:
            terms: The tensors, (B, *) each, with their factors.

        Returns:
            The sum, (B, *) float64, image by image.
        """
        first = terms[0][0]
        out = sum((tensor.double() * rest for tensor, _, rest in terms[1:]), first.double() * terms[0][2])
        if not len(self.basis):
            return out
        excess = [self._root @ (factors - rest).diag() @ self._root for _, factors, rest in terms]
        images = []
        for i in range(len(first)):
            along = self._along([tensor[i].double().reshape(-1).clone() for tensor, _, _ in terms], excess)
            images.append(out[i] + self._together(along, first.device).reshape(first.shape[1:]))
        return torch.stack(images) if images else out

    def _along(self, vectors: Sequence[Tensor], excess: Sequence[Tensor]) -> Tensor:
        """Σ_i excess_i·(basis·v_i), (K,), of the vectors v_i (D,) of an image."""
        device = vectors[0].device
        parts = [torch.cat([block @ vector for block in self._blocks(device)]) for vector in vectors]
        first, *others = [matrix.to(device) @ part for matrix, part in zip(excess, parts, strict=True)]
        return sum(others, first)

    def _together(self, along: Tensor, device: torch.device) -> Tensor:
        """basisᵀ·c, (D,), of c (K,)."""
        total, start = along.new_zeros(self.basis.shape[1]), 0
        for block in self._blocks(device):
            total = total + along[start : start + len(block)] @ block
            start += len(block)
        return total

    def _blocks(self, device: torch.device) -> Iterator[Tensor]:
        """The eigenvectors as float64 on a device, some rows at a time: all of them are held where they are few."""
        rows = max(1, _BLOCK // max(1, self.basis.shape[1]))
        if len(self.basis) <= rows:
            if device not in self._held:
                self._held[device] = self.basis.to(device, torch.float64)
            yield self._held[device]
            return
        for start in range(0, len(self.basis), rows):
            yield self.basis[start : start + rows].to(device, torch.float64)

    @cached_property
    def _means(self) -> dict[torch.device, Tensor]:
        return {}

    @cached_property
    def _held(self) -> dict[torch.device, Tensor]:
        return {}

    @cached_property
    def _root(self) -> Tensor:
        """G^(-1/2) of the Gram matrix G of the stored eigenvectors, (K, K): with it they are orthonormal."""
        cpu = torch.device("cpu")
        gram = torch.cat([torch.cat([a @ b.T for b in self._blocks(cpu)], 1) for a in self._blocks(cpu)])
        values, vectors = torch.linalg.eigh(gram)
        if not 0.5 < float(values.min()) <= float(values.max()) < 2:
            raise InputError(f"the eigenvectors of a Gaussian must be orthonormal: {_HINT}")
        root: Tensor = vectors @ (values**-0.5).diag() @ vectors.T
        return root

    def to_bytes(self) -> bytes:
        """The content of the file: the same Gaussian gives the same bytes."""
        from safetensors.torch import save

        # A single entry of metadata, because safetensors writes several in an arbitrary order.
        header = json.dumps({"format": FORMAT, "version": VERSION, "rest": self.rest, "notes": dict(self.notes)})
        tensors = {"mean": self.mean.float(), "basis": self.basis.cpu(), "variances": self.variances, **self.errors}
        return save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"description": header})

    @cached_property
    def sha256(self) -> str:
        """The hash of the Gaussian, by which a latent file names it."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the Gaussian to a file, for `Gaussian.load`; beside a model, as moments.safetensors, `load` finds it.

        Args:
            path: The file, such as moments.safetensors. The mean is stored as float32.

        Raises:
            InputError: If the file cannot be written.
        """
        with replacing(Path(path)) as temporary:
            temporary.write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> Gaussian:
        """Read a Gaussian from a file.

        Args:
            path: A file that `save` or `odeddim moments` has written.

        Returns:
            The Gaussian.

        Raises:
            InputError: If the file cannot be read, is no file of moments, or is damaged.
        """
        path = Path(path)
        try:
            if path.stat().st_size > _MOST:
                raise InputError(f"{path} is too large for a file of moments: {_HINT}")
            with open(path, "rb") as file:
                blob = file.read()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}): check its path and rights") from error
        try:
            return cls._from(blob)
        except InputError as error:
            raise InputError(f"{path} is damaged ({error}): {_HINT}") from error
        except Exception as error:  # a parser of foreign bytes may raise any type
            if is_ours(error):
                raise
            raise InputError(f"{path} cannot be read as moments ({short(error)}): {_HINT}") from error

    @classmethod
    def _from(cls, blob: bytes) -> Gaussian:
        from safetensors.torch import load

        tensors = load(blob)
        header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
        about = json.loads((header.get("__metadata__") or {}).get("description", "null"))
        if not isinstance(about, dict) or (about.get("format"), about.get("version")) != (FORMAT, VERSION):
            raise InputError("it is no file of moments, or was written by a newer odeddim")
        rest, notes = about.get("rest"), about.get("notes")
        if missing := {"mean", "basis", "variances"} - tensors.keys():
            raise InputError(f"{min(missing)} is missing")
        if not isinstance(rest, float) or not math.isfinite(rest) or not isinstance(notes, dict):
            raise InputError("rest or notes are missing or wrong")
        _check_finite(tensors.items())
        mean, basis, variances = (tensors.pop(name) for name in ("mean", "basis", "variances"))
        if any(curve.ndim != 1 for curve in tensors.values()):
            raise InputError("a curve is no row of numbers")
        return cls(
            mean, basis, variances, rest, errors={name: curve.double() for name, curve in tensors.items()}, notes=notes
        )

    def explained(self) -> str:
        """How much of the variance the eigenvectors explain, in words."""
        numbers = self.mean.numel() if self.mean.ndim else 1
        along = float(self.variances.sum())
        total = along + self.rest * (numbers - len(self.variances))
        share = f"{along / total:.1%}" if total > 0 else "all"
        return f"{len(self.variances)} principal components with {share} of the variance"

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.mean.shape)) or "any"
        return f"<Gaussian of data {shape}: {len(self.variances)} variances, rest {self.rest:.3g}>"


def _check_finite(tensors: Iterable[tuple[str, Tensor]]) -> None:
    for name, tensor in tensors:
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor.double()).all()):
            raise InputError(f"{name} does not hold finite floating-point numbers")
