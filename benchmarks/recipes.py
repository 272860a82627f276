"""What the recipes of docs/recipes.md find on the built-in model: a watermark, generated or real, latents as features.

    python benchmarks/recipes.py watermark
    python benchmarks/recipes.py real
    python benchmarks/recipes.py features

Real images are the 2,048 test images of Fashion-MNIST in the package, on which `fashion-mnist` was not trained, with
their labels.
"""

from __future__ import annotations

import argparse
import io
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

import odeddim

MODEL = "fashion-mnist"
RINGS = range(1, 8)  # radii of the watermark's rings in Fourier space
BATCH = 64
SAMPLE = {"solver": "unipc-2", "steps": 20}


def clothes(count: int, first: int = 0) -> tuple[Tensor, NDArray[np.uint8]]:
    """(count, 1, 28, 28) in [-1, 1], and their classes."""
    with np.load(Path(odeddim.__file__).parent / "data" / "fashion-mnist-reference.npz") as file:
        rows = slice(first, first + count)
        return torch.from_numpy(file["images"][rows]).float()[:, None] / 127.5 - 1, file["labels"][rows]


def in_bytes(x: Tensor) -> Tensor:
    """Images as 8 bits keep them."""
    return (x.clamp(-1, 1) * 127.5).round() / 127.5


def area(low: Tensor, high: Tensor) -> float:
    """The area under the ROC curve: how often a value of `high` is above one of `low`."""
    ranks = rankdata(torch.cat([low, high]).numpy())[len(low) :]
    return float((ranks.sum() - len(high) * (len(high) + 1) / 2) / (len(low) * len(high)))


# A watermark in x_T (Wen et al. 2023, arXiv 2305.20030)


def rings(side: int) -> Tensor:
    """The radius of each frequency, rounded, (side, side), as torch.fft.fft2 orders them."""
    line = torch.fft.fftfreq(side) * side
    return (line[:, None] ** 2 + line[None] ** 2).sqrt().round().long()


def key(side: int, seed: int = 0) -> Tensor:
    """The value of each radius, 0 outside RINGS: real, so that the noise stays real, and of the size that noise has."""
    values = torch.zeros(2 * side)
    values[list(RINGS)] = side * torch.randn(len(RINGS), generator=torch.Generator().manual_seed(seed))
    return values[rings(side)]


def marked(x_T: Tensor, wanted: Tensor) -> Tensor:
    """Noise with the rings in it."""
    inside = torch.isin(rings(x_T.shape[-1]), torch.tensor(list(RINGS)))
    found = torch.fft.fft2(x_T.double())
    return torch.fft.ifft2(torch.where(inside, wanted.to(found), found)).real.to(x_T)


def distance(x_T: Tensor, wanted: Tensor) -> Tensor:
    """How far latents are from the rings, (B,): the mean over their frequencies."""
    inside = torch.isin(rings(x_T.shape[-1]), torch.tensor(list(RINGS)))
    return (torch.fft.fft2(x_T.double()) - wanted)[..., inside].abs().flatten(1).mean(1)


def jpeg(x: Tensor, quality: int = 20) -> Tensor:
    """Images after JPEG."""
    out = []
    for image in x:
        file = io.BytesIO()
        pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().byte()[0].numpy()
        PIL.Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        out.append(torch.from_numpy(np.asarray(PIL.Image.open(file)).copy()).float()[None] / 127.5 - 1)
    return torch.stack(out)


def noisy(x: Tensor, sigma: float = 0.5) -> Tensor:
    """Images with noise, in 8 bits."""
    return in_bytes(x + sigma * odeddim.noise(len(x), tuple(x.shape[1:]), seed=99))


ATTACKS = {"none": in_bytes, "JPEG 20": jpeg, "noise 0.5": noisy}


def watermark(model: odeddim.VectorField, count: int, steps: tuple[int, ...] = (5, 10, 30)) -> list[dict[str, object]]:
    """Images with and without the mark, after each attack, for each number of evaluations.

    Returns:
        The area under the ROC curve of the distances; the share that is found with one false positive; and how far the
        means are apart, in standard deviations.
    """
    shape = tuple(model.shape or (1, 28, 28))
    wanted = key(shape[-1])
    starts = odeddim.noise(count, shape, seed=1), marked(odeddim.noise(count, shape, seed=2), wanted)
    plain, with_rings = (odeddim.solve(x_T, model=model, batch_size=BATCH, **SAMPLE) for x_T in starts)
    rows: list[dict[str, object]] = []
    for name, attack in ATTACKS.items():
        for many in steps:
            latents = [
                odeddim.encode(attack(x), "euler", model=model, steps=many, grid="karras", batch_size=BATCH).x
                for x in (with_rings, plain)
            ]
            near, far = (distance(x, wanted) for x in latents)
            found = float((near < far.sort().values[1]).double().mean())  # one of the others lies below the threshold
            apart = float((far.mean() - near.mean()) / ((far.var() + near.var()) / 2).sqrt())
            rows.append({"attack": name, "evaluations": many, "area": area(near, far), "found": found, "apart": apart})
    return rows


# Generated or real, by the error of the reconstruction (Wang et al. 2023, arXiv 2303.09295)


def reconstruction_error(x: Tensor, model: odeddim.VectorField, steps: int) -> Tensor:
    """The error of each image's round trip by DDIM, rms over its pixels, (B,)."""
    how = {"model": model, "steps": steps, "grid": "log", "batch_size": BATCH}
    again = odeddim.decode(odeddim.encode(x, "euler", **how), "euler", **how)
    return (again - x).double().square().flatten(1).mean(1).sqrt()


def real(model: odeddim.VectorField, count: int, steps: tuple[int, ...] = (5, 10, 20)) -> list[dict[str, object]]:
    """For each number of steps: the medians of real and of generated images, and the area under the curve."""
    truly, _ = clothes(count)
    made = in_bytes(odeddim.sample(count, model=model, seed=3, batch_size=BATCH, **SAMPLE))
    rows: list[dict[str, object]] = []
    for many in steps:
        low, high = (reconstruction_error(x, model, many) for x in (made, truly))
        rows.append(
            {"steps": many, "generated": float(low.median()), "real": float(high.median()), "area": area(low, high)}
        )
    return rows


# Latents as features


def probe(
    train: Tensor, labels: NDArray[np.uint8], test: Tensor, truth: NDArray[np.uint8], ridge: float = 1.0
) -> float:
    """The share of test rows that a linear map, fitted to classes by ridge regression, puts into their class."""
    mean, std = train.mean(0), train.std(0) + 1e-6
    a, b = (torch.cat([(x - mean) / std, torch.ones(len(x), 1)], 1).double() for x in (train, test))
    classes = torch.eye(10, dtype=torch.float64)[torch.from_numpy(labels.astype(np.int64))]
    penalty = ridge * len(a) * torch.eye(a.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(a.T @ a + penalty, a.T @ classes)
    return float(((b @ weights).argmax(1).numpy() == truth).mean())


def features(model: odeddim.VectorField, count: int, steps: int = 10) -> list[dict[str, object]]:
    """The accuracy of a linear probe on pixels, x_T, and points of the path; `count` images to fit, 256 to test."""
    train, labels = clothes(count)
    test, truth = clothes(min(256, count), first=1792)
    known: dict[str, list[Tensor]] = {"pixels": [train.flatten(1), test.flatten(1)]}
    levels = [0.3, 2.0]
    for x in (train, test):
        path = odeddim.trajectory(
            x, "euler", direction="encode", model=model, steps=steps, grid="karras", at=levels, batch_size=BATCH
        )
        assert path.end is not None
        known.setdefault("x_T", []).append(path.end.x.flatten(1))
        for i, level in enumerate(levels):
            known.setdefault(f"ε at σ = {level:g}", []).append(path.eps[i].flatten(1))
            known.setdefault(f"predicted image at σ = {level:g}", []).append(path.x0[i].flatten(1))
    return [{"features": name, "accuracy": probe(a, labels, b, truth)} for name, (a, b) in known.items()]


RECIPES = {"watermark": (watermark, 24), "real": (real, 64), "features": (features, 512)}
"""Each recipe with the number of images that the manual's figures are from."""


def main() -> None:
    """Print the table of a recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--count", type=int, default=None, help="how many images")
    given = parser.parse_args()
    torch.set_num_threads(1)
    recipe, count = RECIPES[given.recipe]
    with torch.no_grad():
        rows = recipe(odeddim.load(MODEL), given.count or count)
    print("  ".join(f"{name:>12}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{value:12.3g}" if isinstance(value, float) else f"{value!s:>12}" for value in row.values()))


if __name__ == "__main__":
    main()
