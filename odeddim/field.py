"""VectorField: a network as the right-hand side of dx̄/dσ = ε(x̄/√(1+σ²), t(σ))  (DDIM, eq. 14)."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odeddim.predictions import PREDICTIONS
from odeddim.schedule import Schedule
from odeddim.types import InputError, pick


class VectorField:
    """A network as a Field: called with (sigma () or (B,), xbar (B, *)), it returns ε (B, *) in xbar's dtype.

    eps: the network, eps(x (B, *), t (B,)) -> (B, *), with x in the units of its training and t the real-valued label.
    schedule: its noise levels, labels and units. predicts: "eps", "x0", "v" or "flow" (see `odeddim.predictions`).
    shape: (C, H, W) of one image if it is fixed. name, sha256: which model this is, as written into latent files;
    details: what else is known of it, for `odeddim inspect`.

    A module is set to evaluation mode. It runs in its own dtype and on its own device; the state keeps its own dtype.
    `nfe` counts calls, `rows` the images evaluated in them; `reset()` sets both to 0. `watch`, if set, is told of the
    images of each call, for a progress bar.

    network_batch: None, or how many images the network always sees at once, filled up if need be. The last digits of
    convolutions depend on the shape of their batch, so that with a number here an image's latent is the same, bit for
    bit, in whatever company it comes. (On a CPU, images whose size is no multiple of 16 numbers can also be rounded by
    their place among those: then 1 makes it so.)
    """

    def __init__(
        self,
        eps: Callable[[Tensor, Tensor], Tensor],
        schedule: Schedule,
        *,
        predicts: str = "eps",
        shape: tuple[int, ...] | None = None,
        name: str = "custom",
        sha256: str = "",
        details: dict[str, Any] | None = None,
    ) -> None:
        self.eps = eps
        self.schedule = schedule
        self.predicts = pick(predicts, PREDICTIONS, "prediction")
        self.shape = shape
        self.name = name
        self.sha256 = sha256
        self.details = details or {}
        self.network_batch: int | None = None
        self.watch: Callable[[int], Any] | None = None
        # Every node is met once for each batch and direction: what it costs to look it up is paid once.
        self._label_and_scale = functools.lru_cache(maxsize=4096)(functools.partial(_label_and_scale, schedule))
        if isinstance(eps, torch.nn.Module):
            eps.eval()  # dropout would make every run another one
        parameter = next(eps.parameters(), None) if isinstance(eps, torch.nn.Module) else None
        self.dtype: torch.dtype | None = None if parameter is None else parameter.dtype  # None: as the state
        self.device: torch.device | None = None if parameter is None else parameter.device
        self.reset()

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> VectorField:
        """This field with its network moved to a device and, if given, a dtype. Returns itself."""
        if isinstance(self.eps, torch.nn.Module):
            self.eps.to(device=device, dtype=dtype)
            dtype = dtype or self.dtype
        self.device, self.dtype = torch.device(device), dtype
        return self

    def reset(self) -> None:
        """Set the counters `nfe` and `rows` to 0."""
        self.nfe = 0
        self.rows = 0

    def relabelled(self, label_at: Callable[[float], float]) -> VectorField:
        """This field with the network's label taken at another noise level: t(label_at(σ)), where all share σ.

        With the next node of a grid that is how much code inverts DDIM: x at the source, the label of the target.
        """
        twin, own = copy.copy(self), self._label_and_scale
        twin._label_and_scale = lambda sigma: (own(label_at(sigma))[0], own(sigma)[1])  # type: ignore[assignment]
        return twin

    def check(self, x: Tensor) -> None:
        """Raise an InputError unless x is a finite batch (B, *), B >= 1, that this model takes."""
        if x.ndim < 2 or x.shape[0] == 0:
            raise InputError(f"a batch (B, *) of at least one image or latent is needed, not shape {tuple(x.shape)}")
        if self.shape is not None and tuple(x.shape[1:]) != self.shape:
            has, wants = "×".join(map(str, x.shape[1:])), "×".join(map(str, self.shape))
            raise InputError(f"the model {self.name!r} takes images of {wants} (channels×height×width), not {has}")
        finite = torch.isfinite(x).flatten(1).all(dim=1)
        if not bool(finite.all()):
            raise InputError(f"image {int((~finite).nonzero()[0])} of the batch holds NaN or infinite values")

    def __call__(self, sigma: Tensor, xbar: Tensor) -> Tensor:
        batch = xbar.shape[0]
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        # The label keeps float32 at least: bfloat16 would make 999 of it 1000.
        dtype = self.dtype or xbar.dtype
        t_dtype = torch.promote_types(dtype, torch.float32)
        if sigma.ndim == 0:  # Python numbers need no transfer to the device
            label, scale = self._label_and_scale(float(sigma))
            x = xbar * scale
            labels = torch.full((batch,), label, dtype=t_dtype, device=xbar.device)
        else:
            x = xbar * _like_images(self.schedule.scale(sigma), xbar)
            labels = self.schedule.t(sigma).to(xbar.device, t_dtype)
        out = self._evaluate(x.to(dtype), labels).to(xbar.dtype)
        self.nfe += 1
        self.rows += batch
        if self.watch is not None:
            self.watch(batch)
        if out.shape != xbar.shape:
            raise InputError(
                f"the model {self.name!r} returned shape {tuple(out.shape)} for an input of {tuple(xbar.shape)}: "
                "a network that also predicts variances must be given without them"
            )
        if self.predicts != "eps":
            # Below σ_1 the network is asked at σ_1, so its answer is read there: (x̄ - x0)/σ has no value at σ = 0.
            held = sigma.clamp(min=self.schedule.sigma_min) if self.predicts == "x0" else sigma
            out = PREDICTIONS[self.predicts](out, xbar, _like_images(held.expand(batch), xbar))
        if not bool(torch.isfinite(out.sum())) and not bool(torch.isfinite(out).all()):
            where = float(sigma.max())
            cause = "its input there was finite" if bool(torch.isfinite(xbar).all()) else "the state was so already"
            raise InputError(
                f"the model {self.name!r} gave NaN or infinite values at σ = {where:.6g} "
                f"(t = {float(labels.max()):.6g}), evaluation {self.nfe}; {cause}: "
                "try more steps, another solver, or --dtype float32"
            )
        return out

    def _evaluate(self, x: Tensor, labels: Tensor) -> Tensor:
        size = self.network_batch
        if size is None or size == x.shape[0]:
            return self.eps(x, labels)
        blocks = []
        for start in range(0, x.shape[0], size):
            block, its_labels = x[start : start + size].clone(), labels[start : start + size]
            count = block.shape[0]
            if count < size:  # any image will do
                filling = (size - count, *[-1] * (x.ndim - 1))
                block = torch.cat([block, block[:1].expand(filling)])
                its_labels = torch.cat([its_labels, its_labels[:1].expand(size - count)])
            blocks.append(self.eps(block, its_labels)[:count])
        return torch.cat(blocks)


def _label_and_scale(schedule: Schedule, sigma: float) -> tuple[float, float]:
    if not math.isfinite(sigma):
        raise InputError(f"the solver went to σ = {sigma}: give it tolerances that it can keep, or more steps")
    node = torch.tensor(sigma, dtype=torch.float64)
    return float(schedule.t(node)), float(schedule.scale(node))


def _like_images(per_image: Tensor, xbar: Tensor) -> Tensor:
    """(B,) as (B, 1, ...) on xbar's device and in its dtype."""
    return per_image.to(xbar.device, xbar.dtype).reshape(-1, *[1] * (xbar.ndim - 1))
