"""Measures: how far images are apart, and how a figure spreads over images.

A figure that each image has is given as its median, with the values that one image in ten and nine images in ten do
not exceed. A mean over images does not transfer: one image of eight often makes up half of it, and other images have
another mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from odeddim.bench.tables import Column

Values = np.ndarray[Any, Any]


def mean_square(difference: Tensor) -> Tensor:
    """The mean square of each image, (B, *) -> (B,) float64."""
    return difference.double().square().flatten(1).mean(dim=1)


def rms_per_image(difference: Tensor) -> Values:
    """The root mean square of each image, (B, *) -> (B,) float64 in numpy: the root of `mean_square`."""
    return mean_square(difference).sqrt().cpu().numpy()


def rms_per_row(rows: Values) -> Values:
    """The root mean square over the last axis, (*, D) -> (*)."""
    return np.asarray(np.sqrt((rows**2).mean(axis=-1)))


def quantile(values: Values, share: float) -> float:
    """The smallest of the values (N,) that at least this share of them do not exceed: 0.9 is what nine in ten keep."""
    return float(np.quantile(values.astype(np.float64), share, method="inverted_cdf"))


def spread(name: str, values: Values | None) -> dict[str, float | None]:
    """The cells of `spread_columns(name, ...)`.

    Args:
        name: The figure's name.
        values: The figure of each image, (N,); None where there is none.

    Returns:
        The median under `name`, and the values that one and nine images in ten do not exceed.
    """
    if values is None:
        return dict.fromkeys((name, f"{name}_10", f"{name}_90"))
    return {name: float(np.median(values)), f"{name}_10": quantile(values, 0.1), f"{name}_90": quantile(values, 0.9)}


def spread_columns(name: str, heading: str, meaning: str) -> tuple[Column, Column, Column]:
    """The columns of a figure that each image has: its median, under `heading`, and its spread beside it."""
    return (
        Column(name, heading, f"{meaning}, median over the images", ".2e"),
        Column(f"{name}_10", "10 %", "one image in ten has no more than this", ".1e"),
        Column(f"{name}_90", "90 %", "nine images in ten have no more than this", ".1e"),
    )
