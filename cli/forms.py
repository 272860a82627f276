"""The options that say in what form a network is evaluated."""

from __future__ import annotations

import click

DTYPES = ("float32", "float64", "bfloat16", "float16", "tf32", "autocast-bfloat16", "autocast-float16")
"""The names that --dtype takes."""

compiled = click.option(
    "--compile/--no-compile",
    default=None,
    help="Let torch compile the network, as a graph on CUDA. The first evaluation takes up to minutes; a CPU needs a "
    "compiler of C++. It changes last digits.  [default: as encoded, else no]",
)
channels_last = click.option(
    "--channels-last/--no-channels-last",
    default=None,
    help="Keep the channels of a pixel side by side in memory, with which many convolutions are faster. It changes "
    "last digits.  [default: as encoded, else no]",
)
