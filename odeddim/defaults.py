"""The default solver of each job, the same in Python and on the command line, with the reason; limits of both.

The defaults follow from what `python benchmarks/defaults.py measure` found on 64 held-out images and 64 noises of the
built-in models (benchmarks/defaults.csv; errors are rms, medians with the 10-90% range). This module imports nothing,
because `odeddim --help` shows these names.
"""

ENCODE = "belm"
"""Encoding: the way back is exact, bit for bit. With 20 evaluations on `fashion-mnist`, its latents are 0.0095 (0.0066
to 0.012) off the ODE's, and those of the most accurate solver 0.0063. With 10 evaluations they are 0.043 off, the
smallest error of all rows measured."""

SOLVE = "unipc-2"
"""Decoding noise, in `solve` and `sample`. Of all rows measured, `unipc-2` has the smallest errors of latents and
images together: 0.0137, the geometric mean of the medians over both models with 10, 20 and 50 evaluations (the next,
`dpmpp-3m`, 0.0151). Of images alone `ipndm` has 0.0133 and `unipc-2` 0.0140. With 20 evaluations on `fashion-mnist`,
its images are 0.0093 (0.0041 to 0.024) off the ODE's, with 10 evaluations 0.056."""

SAMPLE = SOLVE

SAMPLE_WITH_ETA = "ddim-eta"
"""Sampling with DDIM's η above 0, a setting that only this family has."""

BRIDGE = SOLVE
"""Bridges: a state that changes models keeps nothing for an exact way back, so a reversible solver gains nothing."""

COMBINED = SOLVE
"""Decoding latents made of others (interpolation, shifts): what was kept for an exact way back belongs to those."""

TOLERANCE = SOLVE
"""Runs with a tolerance in place of steps: a reversible solver would keep any tolerance with any number of steps."""

SCORE, SCORE_GRID, SCORE_STEPS = "euler", "karras", 10
"""Scores from the path: DDIM's step, as in DiffPath (arXiv 2405.11881), on the grid on which it told other shifts apart
best than those that are reported (`python benchmarks/scores.py --choose`)."""

DENSITY = "ab3"
"""Measuring a density. With 24 steps on `fashion-mnist` it is as good as `unipc-2` (benchmarks/density.py)."""

DENSITY_STEPS, DENSITY_PROBES, DENSITY_DRAWS = 20, 2, 4
"""On `fashion-mnist` an error of 0.0084 bits per dimension (rms over 64 held-out images), of the solver and the probes
together, by 42 evaluations and 42 products for each draw of dequantisation noise (benchmarks/density.py)."""

DIAGNOSE_STEPS, DIAGNOSE_IMAGES = 20, 16
"""The steps of the round trip that `diagnose` looks at, and the images that it takes."""

GRID_IMAGES = 16
"""The number of images that a computed grid is measured on."""

FIT_STEPS, FIT_COUNT = 8, 128
"""The steps of a fitted solver, and the number of solutions that it is fitted to: with 32 the error on others is a
third larger than that on these."""

# Beyond these no run ends: they are a slip of the hand, and better reported at once than after hours.
MOST_STEPS = 1_000_000
NEW = 64  # images of `odeddim sample`
MOST_NEW = 10_000_000  # images or latents of a run


def for_sampling(eta: float | None) -> str:
    """The default solver for sampling.

    Args:
        eta: DDIM's η; None or 0 for the ODE.

    Returns:
        The name of the solver.
    """
    return SAMPLE_WITH_ETA if eta else SAMPLE


def for_decoding(kept: str, combined: bool) -> str:
    """The default solver for decoding a state: the solver that kept its way back, or SOLVE if none did.

    Args:
        kept: `State.kept`, which begins with the name of that solver.
        combined: Whether the state was made of other latents, to which the way back belongs.

    Returns:
        The name of the solver.
    """
    if combined:
        return COMBINED
    return kept.split()[0] if kept else SOLVE
