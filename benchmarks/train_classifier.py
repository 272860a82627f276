"""Trains the classifier whose features `odeddim bench quality` compares sets of images by (see `networks.classifier`).

    python benchmarks/train_classifier.py train-images-idx3-ubyte.gz train-labels-idx1-ubyte.gz \
        t10k-images-idx3-ubyte.gz t10k-labels-idx1-ubyte.gz \
        -o odeddim/data/fashion-mnist-features.safetensors --reference odeddim/data/fashion-mnist-reference.npz

made the two files in the package: on the CPU, with as many threads and the same PyTorch, byte for byte.
"""

from __future__ import annotations

import gzip
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from odeddim.models.networks.classifier import CLASSES, FEATURES, SHAPE, Classifier, write
from odeddim.storage.atomic import check_place, replacing
from odeddim.storage.errors import read_errors
from odeddim.storage.images import ImageSource, open_images
from odeddim.storage.png import to_bytes
from odeddim.types import InputError

REFERENCE_ROWS = range(256, 256 + 2048)
"""Which test images the reference holds: those that follow the package's sample, which is the first 256."""

_MOST_LABELS = 1 << 28  # bytes: unpacked, a small file can claim any size
_EVALUATED = 500  # images at once


def read_labels(path: Path, count: int) -> Tensor:
    """The labels (count,) int64 in an IDX file of bytes with one axis, gzip or not. Errors: InputError naming it."""
    with read_errors(path, "labels"):
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else open(path, "rb") as content:
            head, values = content.read(8), content.read(_MOST_LABELS)
    if head[:4] != b"\0\0\x08\x01":
        raise InputError(f"{path} does not hold labels, IDX bytes with one axis: is it the file of images?")
    if not int.from_bytes(head[4:], "big") == len(values) == count:
        raise InputError(f"{path} holds {len(values)} labels for {count} images: give the file that belongs to them")
    labels = torch.frombuffer(bytearray(values), dtype=torch.uint8).long()
    if int(labels.max()) >= CLASSES:
        raise InputError(f"{path} holds the label {int(labels.max())}, where there are {CLASSES} classes from 0")
    return labels


def write_reference(path: Path, images: ImageSource, labels: Tensor) -> None:
    """The test images and labels at REFERENCE_ROWS as npz: images (2048, 28, 28) uint8, labels (2048,) uint8."""
    if len(images) < REFERENCE_ROWS.stop:
        raise InputError(
            f"the reference is rows up to {REFERENCE_ROWS.stop} of the test images: {len(images)} are given"
        )
    chosen = to_bytes(images.read(REFERENCE_ROWS))[:, 0].numpy()
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file, images=chosen, labels=labels[REFERENCE_ROWS.start : REFERENCE_ROWS.stop].byte().numpy()
        )


def train(
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int = 12,
    batch_size: int = 128,
    learning_rate: float = 4e-3,
    seed: int = 0,
    report: Callable[[int, int, float], Any] = lambda step, steps, loss: None,
) -> Classifier:
    """A classifier trained on images (N, 1, 28, 28) in [-1, 1] and labels (N,), in evaluation mode.

    AdamW under a one-cycle learning rate (`learning_rate` at its top); half of the images are mirrored. Weights, order
    and mirroring depend on the seed alone, and the global generator of random numbers stays as it was. report: told
    (step, steps, loss) after each step.
    """
    if images.shape[1:] != SHAPE or len(labels) != len(images) or len(images) < batch_size:
        raise InputError(
            f"training takes images (N, 1, 28, 28) and as many labels, at least {batch_size}, "
            f"not shapes {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would set the generators of GPUs, too
        network = Classifier().train()
    chance = torch.Generator().manual_seed(seed)
    steps = epochs * (len(images) // batch_size)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    step = 0
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=chance)
        for rows in torch.split(order[: len(order) // batch_size * batch_size], batch_size):
            x = images[rows]
            mirrored = torch.rand(len(x), generator=chance) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
            loss = F.cross_entropy(network(x), labels[rows])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            step += 1
            report(step, steps, float(loss.detach()))
    return network.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    """The share of images (N, 1, 28, 28) in [-1, 1] that the classifier gives their label."""
    guesses = torch.cat([network(block).argmax(dim=1) for block in torch.split(images, _EVALUATED)])
    return float((guesses == labels).double().mean())


@click.command("python benchmarks/train_classifier.py")
@click.argument("train_images", type=click.Path(path_type=Path))
@click.argument("train_labels", type=click.Path(path_type=Path))
@click.argument("test_images", type=click.Path(path_type=Path))
@click.argument("test_labels", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The weights, .safetensors.")
@click.option("--reference", default=None, type=click.Path(path_type=Path), help="Write 2,048 test images here, .npz.")
@click.option("--data", default="Fashion-MNIST", show_default=True, help="What the images are called.")
@click.option("--epochs", type=click.IntRange(1), default=12, show_default=True, help="Times that each image is seen.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of weights, order, mirroring.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="They change the last digits.")
def main(**options: Any) -> None:
    """Train a classifier of 28×28 gray images in 10 classes, and write its weights and its test accuracy.

    Images and labels are IDX files (MNIST's format), gzip or not. Takes minutes; progress goes to standard error.

    \b
    Example:
      python benchmarks/train_classifier.py {train,t10k}-{images-idx3,labels-idx1}-ubyte.gz -o features.safetensors
    """
    try:
        _train_file(**options)
    except InputError as error:
        raise click.ClickException(str(error)) from error


def _train_file(
    train_images: Path,
    train_labels: Path,
    test_images: Path,
    test_labels: Path,
    output: Path,
    reference: Path | None,
    data: str,
    epochs: int,
    seed: int,
    threads: int,
) -> None:
    inputs = (train_images, train_labels, test_images, test_labels)
    check_place(output, *inputs, suffixes=(".safetensors",))
    if reference is not None:
        check_place(reference, *inputs, suffixes=(".npz",))
    torch.set_num_threads(threads)
    (x, y), (test_x, test_y) = _pair(train_images, train_labels), _pair(test_images, test_labels)
    if reference is not None:
        write_reference(reference, test_x, test_y)
    began = time.perf_counter()

    def report(step: int, steps: int, loss: float) -> None:
        if step % 50 == 0 or step == steps:
            seconds = time.perf_counter() - began
            print(f"\rstep {step} of {steps}, loss {loss:.3f}, {seconds:.0f} s", end="", file=sys.stderr, flush=True)

    network = train(x.read(), y, epochs=epochs, seed=seed, report=report)
    right = accuracy(network, test_x.read(), test_y)
    description = {
        "data": data,
        "accuracy": right,
        "train_images": len(x),
        "test_images": len(test_x),
        "features": FEATURES,
        "epochs": epochs,
        "seed": seed,
        "threads": threads,
        "torch": torch.__version__,
    }
    write(output, network, description)
    print(f"\n{output}: test accuracy {right:.2%} on {len(test_x)} images", file=sys.stderr)


def _pair(images: Path, labels: Path) -> tuple[ImageSource, Tensor]:
    source = open_images(images)
    if source.shape != SHAPE:
        raise InputError(f"the images of {images} are {'×'.join(map(str, source.shape))}, where 1×28×28 is needed")
    return source, read_labels(labels, len(source))


if __name__ == "__main__":
    main()
