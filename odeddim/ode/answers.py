"""What a network must answer, as many numbers as it was given, and finite ones; and numbers of each image beside it."""

from __future__ import annotations

import torch
from torch import Tensor

from odeddim.types import InputError


def check_answer(name: str, out: Tensor, xbar: Tensor) -> None:
    """Raise an InputError unless the answer of a model, by its name, has the shape of its input x̄, (B, *)."""
    if out.shape != xbar.shape:
        raise InputError(
            f"the model {name!r} returned shape {tuple(out.shape)} for an input of {tuple(xbar.shape)}: "
            "if the network also predicts variances, make it with from_network(..., variances=True)"
        )


def not_finite(name: str, sigma: float, t: float, evaluation: int, xbar: Tensor) -> InputError:
    """The error of a model that answers NaN or infinite values.

    Args:
        name: The name of the model.
        sigma: The noise level.
        t: The label.
        evaluation: The number of the evaluation, from 1.
        xbar: The input, (B, *).
    """
    finite = bool(torch.isfinite(xbar).all())
    cause = "its input there was finite" if finite else "its input already held such values"
    return InputError(
        f"the model {name!r} returned NaN or infinite values at σ = {sigma:.6g} (t = {t:.6g}), evaluation "
        f"{evaluation}; {cause}: try more steps, another solver, or dtype='float32'"
    )


def like_images(per_image: Tensor, xbar: Tensor) -> Tensor:
    """() or (B,) as (B, 1, ...) on xbar's device and in its dtype."""
    shape = len(xbar), *[1] * (xbar.ndim - 1)
    if per_image.ndim == 0:
        return torch.full(shape, float(per_image), dtype=xbar.dtype, device=xbar.device)
    return per_image.to(xbar.device, xbar.dtype, non_blocking=True).reshape(shape)
