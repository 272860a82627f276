"""The solver of each job where none is named, the same in Python and on the command line, and why.

They were chosen by what `python benchmarks/defaults.py measure` found on 64 held-out images and 64 noises of the
built-in models (benchmarks/defaults.csv; errors are rms, medians with the 10-90% range). This module imports nothing,
for `odeddim --help` shows these names.
"""

ENCODE = "belm"
"""Encoding: the way back is exact, bit for bit. Its latents are 0.0095 (0.0066 to 0.012) off the ODE's with 20
evaluations on `fashion-mnist`, the most accurate solver's 0.0063; with 10 evaluations 0.043, which no other row has."""

SOLVE = "unipc-2"
"""Decoding noise: `solve` and `sample`. Its images are 0.0093 (0.0041 to 0.024) off the ODE's with 20 evaluations on
`fashion-mnist`, and 0.056 with 10: the smallest of all rows measured."""

SAMPLE = SOLVE

SAMPLE_WITH_ETA = "ddim-eta"
"""Sampling with DDIM's η above 0, which only this family has."""

BRIDGE = SOLVE
"""A state that changes models keeps nothing for the way back, so a solver that comes back exactly gains nothing."""

COMBINED = SOLVE
"""Latents made of others (interpolation, shifts): what was kept for an exact way back belongs to those others."""

TOLERANCE = SOLVE
"""Tolerances in place of steps, which say nothing about a solver that comes back exactly with any number of steps."""


def for_sampling(eta: float | None) -> str:
    """The solver that samples where none is named, with DDIM's η or without."""
    return SAMPLE_WITH_ETA if eta else SAMPLE


def for_decoding(kept: str, combined: bool) -> str:
    """The solver that decodes a state: the one that kept its way back (`State.kept` begins with its name), else SOLVE.

    combined: the state was made of others, to which the way back belongs. A latent file says what encoded it.
    """
    if combined:
        return COMBINED
    return kept.split()[0] if kept else SOLVE
