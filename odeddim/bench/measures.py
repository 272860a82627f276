"""Measures of the distance between images, and the spread of a value over images.

A value that each image has is reported as its median, together with the values that one and nine images in ten do not
exceed. A mean over images does not transfer to other images: one image of eight often contributes half of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from odeddim.bench.tables import Column

Values = np.ndarray[Any, Any]


def mean_square(difference: Tensor) -> Tensor:
    """Return the mean square of each image, (B, *) -> (B,) float64."""
    return difference.double().square().flatten(1).mean(dim=1)


def rms_per_image(difference: Tensor) -> Values:
    """Return the root mean square of each image, (B, *) -> (B,) float64 in numpy."""
    return mean_square(difference).sqrt().cpu().numpy()


def rms_per_row(rows: Values) -> Values:
    """Return the root mean square over the last axis, (*, D) -> (*)."""
    return np.asarray(np.sqrt((rows**2).mean(axis=-1)))


def quantile(values: Values, share: float) -> float:
    """Return the smallest of the values (N,) that at least a share of them do not exceed, such as nine in ten (0.9)."""
    return float(np.quantile(values.astype(np.float64), share, method="inverted_cdf"))


def spread(name: str, values: Values | None) -> dict[str, float | None]:
    """Return the cells of `spread_columns(name, ...)`.

    Args:
        name: The name of the value.
        values: The value of each image, (N,); None for empty cells.

    Returns:
        The median under `name`, and the values that one and nine images in ten do not exceed, under `name_10` and
        `name_90`.
    """
    if values is None:
        return dict.fromkeys((name, f"{name}_10", f"{name}_90"))
    return {name: float(np.median(values)), f"{name}_10": quantile(values, 0.1), f"{name}_90": quantile(values, 0.9)}


def spread_columns(name: str, heading: str, meaning: str) -> tuple[Column, Column, Column]:
    """Return the columns of a value that each image has: the median, under `heading`, and the spread."""
    return (
        Column(name, heading, f"{meaning}, median over the images", ".2e"),
        Column(f"{name}_10", "10 %", "the value that one image in ten does not exceed", ".1e"),
        Column(f"{name}_90", "90 %", "the value that nine images in ten do not exceed", ".1e"),
    )
