"""How well scores tell shifted images from held-out ones, beside simpler figures: areas under the ROC curve.

    pip install scikit-learn                  # for its digits; nothing else here needs it
    python benchmarks/scores.py               # the table of `odeddim score`'s defaults
    python benchmarks/scores.py --choose      # the paths and rules that they were chosen from

The images are the 2,048 test images of Fashion-MNIST in the package, on which `fashion-mnist` was not trained. The
first 1,024 are the reference, the others are held out. The five shifts of the first 256 of these: turned upside down;
negated; cut into blocks of 7 × 7 pixels that change places, in each image otherwise; blurred (a Gaussian of one
pixel); and the digits of scikit-learn, enlarged from 8 × 8 in place of clothes.

--choose looks at none of those shifts and at none of the held-out images: reference and images are of the first 1,024,
and the shifts are eight others.

What has been measured of a set of images lies in out/scores/, so the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

import odeddim
from odeddim import defaults
from odeddim.checks.scores import Reference, asked_for, measured

MODEL = "fashion-mnist"
REFERENCE, HELD_OUT, SHIFTED = slice(0, 1024), slice(1024, 2048), slice(1024, 1280)
CHOOSE_REFERENCE, CHOOSE_IMAGES, CHOOSE_SHIFTED = slice(0, 512), slice(512, 768), slice(512, 640)
PATHS = (("euler", "linear"), ("euler", "karras"), ("belm", "log"))
BATCH = 64
OUT = Path("out/scores")
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
Features = Mapping[str, NDArray[np.float64]]
"""What is known of a set of images, (N, K) by name."""


def clothes() -> tuple[Tensor, NDArray[np.uint8]]:
    """(2048, 1, 28, 28) in [-1, 1], and their classes (2048,)."""
    with np.load(Path(odeddim.__file__).parent / "data" / "fashion-mnist-reference.npz") as file:
        return torch.from_numpy(file["images"]).float()[:, None] / 127.5 - 1, file["labels"]


def shuffled(x: Tensor) -> Tensor:
    """The 16 blocks of 7 × 7 pixels of each image in another order."""
    draw = torch.Generator().manual_seed(0)
    blocks = F.unfold(x, 7, stride=7)
    return F.fold(torch.stack([image[:, torch.randperm(16, generator=draw)] for image in blocks]), 28, 7, stride=7)


def blurred(x: Tensor) -> Tensor:
    weights = torch.exp(-(torch.arange(-4.0, 5.0) ** 2) / 2)
    weights /= weights.sum()
    return F.conv2d(F.pad(x, (4, 4, 4, 4), mode="replicate"), (weights[:, None] * weights)[None, None])


def digits(x: Tensor) -> Tensor:
    """As many digits of scikit-learn, 8 × 8 gray pixels from 0 to 16, as there are images."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SystemExit("the digits come with scikit-learn: pip install scikit-learn") from error
    small = torch.from_numpy(load_digits().images[: len(x), None]).float() / 8 - 1
    return F.interpolate(small, size=28, mode="bilinear", align_corners=False)


def noisy(x: Tensor) -> Tensor:
    return (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(-1, 1)


def occluded(x: Tensor) -> Tensor:
    x = x.clone()
    x[..., 7:21, 7:21] = -1
    return x


SHIFTS: dict[str, Callable[[Tensor], Tensor]] = {
    "flipped": lambda x: x.flip(-2),
    "negated": lambda x: -x,
    "shuffled": shuffled,
    "blurred": blurred,
    "digits": digits,
}
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "turned": lambda x: x.transpose(-1, -2),
    "noisy": noisy,
    "faint": lambda x: (x - 1) / 2,
    "occluded": occluded,
    "pixelated": lambda x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2),
    "mirrored": lambda x: torch.cat([x[..., :14, :], x[..., :14, :].flip(-2)], dim=-2),
    "two tones": lambda x: torch.where(x > -0.3, 1.0, -1.0),
    "four tones": lambda x: ((x + 1) * 2).round() / 2 - 1,
}


def features(name: str, x: Tensor, solver: str, grid: str, round_trip: bool) -> Features:
    """What is measured of a set of images, and kept under this name."""
    path = OUT / f"{solver}-{grid}-{name.replace(' ', '-')}.npz"
    if not path.exists():
        field = odeddim.load(MODEL)
        plan = odeddim.plan(field, solver, grid=grid, steps=defaults.SCORE_STEPS)
        statistics, profile = measured(field, x, plan, asked_for(round_trip, False), BATCH)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".tmp.npz")
        np.savez(partial, profile=profile, **statistics)
        partial.rename(path)
    with np.load(path) as file:
        known = {key: file[key].reshape(len(x), -1) for key in file.files}
    pixels = x.flatten(1).double().numpy()
    moments = np.stack([pixels.mean(1), pixels.var(1)], 1)
    sums = np.concatenate([known[key] for key in odeddim.checks.paths.SUMS], 1)
    return {**known, "sums": sums, "pixels": pixels, "moments": moments}


def nearest(reference: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The distance to the nearest of the reference, after it was made white: the rule of `odeddim.score`."""
    return odeddim.checks.scores._Nearest(reference).distances(x)


def gaussian(reference: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The distance to the mean of the reference, after it was made white."""
    white = odeddim.checks.scores._Nearest(reference)
    return np.sqrt(np.square(np.stack([*white._white(x)])).sum(1))


def apart(reference: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The distance to the nearest of the reference as it is."""
    squares = np.square(x).sum(1)[:, None] + np.square(reference).sum(1) - 2 * x @ reference.T
    return np.sqrt(np.maximum(squares, 0).min(1))


def larger(reference: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The figure itself: the larger the stranger."""
    return x[:, 0]


Rule = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
RULES: dict[str, tuple[str, Rule]] = {
    "score (profile, nearest)": ("profile", nearest),
    "profile, Gaussian": ("profile", gaussian),
    "DiffPath's six sums, nearest": ("sums", nearest),
    "DiffPath's six sums, Gaussian": ("sums", gaussian),
    "rate_2 alone (DiffPath-1D)": ("rate_2", nearest),
    "latent norm alone": ("norm", gaussian),
    "round trip alone": ("round_trip", larger),
    "mean and variance of pixels": ("moments", nearest),
    "pixels, nearest image": ("pixels", apart),
}


def auroc(normal: NDArray[np.float64], strange: NDArray[np.float64]) -> float:
    """The probability that a strange image has the larger score, ties counted half."""
    n, m = len(normal), len(strange)
    ranks = rankdata(np.concatenate([normal, strange]))[n:]
    return float((ranks.sum() - m * (m + 1) / 2) / (n * m))


def row(words: str, figures: list[float]) -> str:
    return f"{words:<31}" + "".join(f"{figure:>11.3f}" for figure in [*figures, float(np.mean(figures))])


def table() -> None:
    """The areas of each rule, and how many held-out images are called strange."""
    x, labels = clothes()
    of = {"reference": x[REFERENCE], "held out": x[HELD_OUT]} | {name: f(x[SHIFTED]) for name, f in SHIFTS.items()}
    known = {
        name: features(name, each, defaults.SCORE, defaults.SCORE_GRID, name != "reference")
        for name, each in of.items()
    }
    print(f"{'AUROC':<31}" + "".join(f"{name:>11}" for name in [*SHIFTS, "mean"]))
    for words, (what, rule) in RULES.items():
        base = known["reference"].get(what, np.empty((0, 1)))
        normal = rule(base, known["held out"][what])
        print(row(words, [auroc(normal, rule(base, known[name][what])) for name in SHIFTS]))
    plan = odeddim.plan(MODEL, defaults.SCORE, grid=defaults.SCORE_GRID, steps=defaults.SCORE_STEPS)
    whole = torch.from_numpy(known["reference"]["profile"])
    reference = Reference(whole, plan)

    def strange(name: str) -> float:
        return float((reference.score(torch.from_numpy(known[name]["profile"])) > reference.threshold).double().mean())

    print(row("called strange", [strange(name) for name in SHIFTS]))
    print(f"\nof {len(of['held out'])} held-out images, {strange('held out'):.1%} are called strange (wanted: 5%)")
    everything = torch.from_numpy(np.concatenate([known["reference"]["profile"], known["held out"]["profile"]]))
    draw, rates = torch.Generator().manual_seed(0), []
    for _ in range(20):
        order = torch.randperm(len(everything), generator=draw)
        one = Reference(everything[order[:1024]], plan)
        rates.append(float((one.score(everything[order[1024:]]) > one.threshold).double().mean()))
    print(f"over 20 random halves: {np.mean(rates):.1%} (from {min(rates):.1%} to {max(rates):.1%})")
    few = features("samples", odeddim.open_images()[:], defaults.SCORE, defaults.SCORE_GRID, False)["profile"]
    default = Reference(torch.from_numpy(few), plan)
    rate = float((default.score(everything) > default.threshold).double().mean())
    normal = nearest(few, known["held out"]["profile"])
    mean = np.mean([auroc(normal, nearest(few, known[name]["profile"])) for name in SHIFTS])
    words = f"of all {len(everything)} images {rate:.1%} are called strange, mean AUROC {mean:.3f}"
    print(f"with the {len(few)} sample images as the reference: {words}")
    base, kinds = known["reference"]["profile"], labels[SHIFTED]
    normal, flipped = (nearest(base, known[name]["profile"]) for name in ("held out", "flipped"))
    by_class = [f"{kind} {auroc(normal, flipped[kinds == i]):.2f}" for i, kind in enumerate(CLASSES)]
    print(f"flipped, by class: {', '.join(by_class)}")


def choose() -> None:
    """The paths and rules on other shifts."""
    x, _ = clothes()
    of = {"chosen on": x[CHOOSE_REFERENCE], "normal": x[CHOOSE_IMAGES]}
    of |= {name: f(x[CHOOSE_SHIFTED]) for name, f in OTHERS.items()}
    print(f"{'AUROC':<31}" + "".join(f"{name:>11}" for name in [*OTHERS, "mean"]))
    for solver, grid in PATHS:
        known = {name: features(name, each, solver, grid, False) for name, each in of.items()}
        for words in ("score (profile, nearest)", "profile, Gaussian", "DiffPath's six sums, nearest"):
            what, rule = RULES[words]
            base = known["chosen on"][what]
            normal = rule(base, known["normal"][what])
            figures = [auroc(normal, rule(base, known[name][what])) for name in OTHERS]
            print(row(f"{solver}@{grid}: {what}, {rule.__name__}", figures), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choose", action="store_true", help="the paths and rules on other shifts and images")
    torch.set_num_threads(1)
    choose() if parser.parse_args().choose else table()


if __name__ == "__main__":
    main()
