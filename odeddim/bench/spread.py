"""How a figure spreads over images: its median, and the values that one image in ten lies below and above.

A mean over images does not transfer. One image of eight often has half of it, and other images have another mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from odeddim.bench.tables import Column

Values = np.ndarray[Any, Any]


def quantile(values: Values, share: float) -> float:
    """The smallest of the values (N,) that at least this share of them do not exceed: 0.9 is what nine in ten keep."""
    return float(np.quantile(values.astype(np.float64), share, method="inverted_cdf"))


def spread(name: str, values: Values | None) -> dict[str, float | None]:
    """The cells of `spread_columns(name, ...)` for figures (N,), one for each image; None: there are none."""
    if values is None:
        return dict.fromkeys((name, f"{name}_10", f"{name}_90"))
    return {name: float(np.median(values)), f"{name}_10": quantile(values, 0.1), f"{name}_90": quantile(values, 0.9)}


def spread_columns(name: str, heading: str, meaning: str) -> tuple[Column, Column, Column]:
    """Three columns for a figure that each image has: its median, under `heading`, and the spread beside it."""
    return (
        Column(name, heading, f"{meaning}, median over the images", ".2e"),
        Column(f"{name}_10", "10 %", "one image in ten has no more than this", ".1e"),
        Column(f"{name}_90", "90 %", "nine images in ten have no more than this", ".1e"),
    )
