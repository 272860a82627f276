"""The library's messages in the words of the command line: `overwrite=True` becomes `--overwrite`.

The library names its arguments, for it does not know who calls it. This is the one place that knows which option
stands for which argument.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

ARGUMENTS = {
    "address", "against", "all", "allow_pickle", "along", "among", "atol", "attention", "background", "batch_size",
    "batches", "best", "bits", "blocks", "by", "calibrate", "certify", "channels", "channels_last", "checkpoint_every",
    "compile", "corners", "count", "crop", "csv", "cycle", "density", "dequantise", "device", "direction",
    "distilled_guidance", "draws", "dropout", "dtype", "ema", "end", "engine", "eta", "evaluations", "false_positives",
    "features", "figure", "figure_size", "find", "flips", "format", "fps", "frames", "from", "from_distilled_guidance",
    "from_each", "from_guidance", "grid", "guidance", "guidance_rescale", "guide", "images", "json", "label",
    "labels", "labels_from", "learning_rate", "levels", "log_json", "loop", "low_guidance", "max_nfe", "microbatches",
    "model", "multipliers",
    "negative_prompt", "network_batch", "of", "output", "overwrite", "pad", "pair", "pairs", "paper", "parallel",
    "plan", "points", "portable", "precision", "predicts", "probes", "prompt", "prompts_from", "quiet", "rank",
    "reference", "repeats", "resize", "resume", "round_trip", "rtol", "samples", "samples_every", "scale", "seed",
    "sensitivity", "set", "sheet", "side", "sigma", "size", "skip_bad", "solver", "solvers", "steps", "tensorboard",
    "threads", "tiles", "title", "to", "to_distilled_guidance", "to_each", "to_guidance", "to_guidance_rescale",
    "to_guide", "to_label", "to_low_guidance", "to_negative_prompt", "to_prompt", "tol", "tolerances", "top",
    "trajectory", "validation", "verbose", "wait", "workers", "worst",
}  # fmt: skip
"""Arguments of the library that are options of the same name."""
CALLED = {
    "animation": "animate", "at": "trajectory-at", "folder": "output", "interval": "guidance-interval",
    "to_interval": "to-guidance-interval",
    "shape": "size", "start": "from", "goal": "to", "keep": "direction",
}  # fmt: skip
"""Arguments of the library that are options of another name."""
QUOTED = {"start": "start"}
"""Arguments of two meanings: the option where the value is in quotes, start='forward:3'; else `CALLED` has it."""

_ARGUMENT = re.compile(
    r"""(?<![\w./\\='"-])  # not a part of a path, nor quoted: then it is a name that the user gave
    (?P<name>\w+)=(?P<value>\.\.\.|'[^']*'|[A-Za-z_]\w*|\d+(?:\.\d+)?(?:e[+-]?\d+)?)
    (?![\w/\\='"]|[.-]\w)""",
    re.VERBOSE,
)


def in_options(message: str, typed: Sequence[str] = ()) -> str:
    """A message of the library with options in place of its arguments.

    `overwrite=True` becomes --overwrite, `overwrite=False` becomes "no --overwrite", `model=...` becomes --model, and
    `steps=50` becomes --steps 50. Names that are no option stay as they are.

    Args:
        message: What an InputError or a warning says.
        typed: The words that the user typed. What stands in one of them, such as a file's name, stays as it is.

    Returns:
        The message for the terminal.
    """

    def option(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        if (name not in ARGUMENTS and name not in CALLED) or any(match[0] in word for word in typed):
            return match[0]
        named = QUOTED if value.startswith("'") and name in QUOTED else CALLED
        words = f"--{named.get(name, name.replace('_', '-'))}"
        if value in ("False", "None"):
            return f"no {words}"
        return words if value in ("True", "...") else f"{words} {value}"

    return _ARGUMENT.sub(option, message)
