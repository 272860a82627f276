"""DDIM's Tables 1 and 3: the quality of samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from odeddim.bench import defaults
from odeddim.bench import quality as bench
from odeddim.bench.features import Features
from odeddim.bench.harness import Pictures, expected
from odeddim.bench.tables import Table
from odeddim.defaults import SAMPLE_WITH_ETA
from odeddim.jobs.bench.helping import helped
from odeddim.jobs.bench.workbench import Session, Workbench, with_skipped
from odeddim.jobs.subject import images_for
from odeddim.models.networks.classifier import REFERENCE
from odeddim.storage.images import ImageSource, check_shape, open_images
from odeddim.storage.preparation import Preparation
from odeddim.storage.sources import Images, place_of
from odeddim.types import InputError


@helped
@torch.no_grad()
def quality(
    workbench: Workbench,
    *,
    count: int = defaults.QUALITY.count,
    eta: Sequence[float | str] | None = None,
    solvers: Sequence[str] = defaults.QUALITY.solvers,
    grid: str = defaults.GRID,
    steps: Sequence[int] = defaults.QUALITY.steps,
    reference: Images = None,
    features: str | Path | Features | None = None,
    paper: str | None = None,
    prepare: Preparation | None = None,
    **how: Any,
) -> Table:
    """Sample by DDIM's family and by any solver, and compare the samples with real images: DDIM's Tables 1 and 3.

    The table has the Fréchet distance, KID, precision and recall of the features of `count` samples. Sample i depends
    on the seed and i only. This needs torchmetrics: pip install 'odeddim[metrics]'.

    Args:
        workbench: The model, the machine, and the folder.
        count: The number of samples for each row.
        eta: DDIM's η, from 0 (the ODE) to 1 (DDPM), and "hat" for DDPM with the larger variance σ̂. By default
            0, 0.2, 0.5, 1 and hat without `solvers`, and none with `solvers`.
        solvers: Each is SOLVER, SOLVER@GRID, or the file of a plan; a plan and a grid file have their own steps.
        grid: The grid of the rows with η.
        steps: The numbers of steps.
        reference: The real images to compare with. By default, for built-in models only, 2,048 test images of
            Fashion-MNIST.
        features: The network whose features are compared, see `odeddim.bench.features.load_features`. By default, for
            built-in models only, the built-in network.
        paper: "cifar10", "celeba", "bedroom" or "church" if the model and the reference are the paper's for this data
            set. A column then has the paper's FIDs.
        prepare: What is done to the images of `reference`, as of `odeddim.Preparation`.
        **how: `seed`, `size`, `end` and the settings of the solvers, as in the other benches.

    Returns:
        The table. The folder also holds it, with its figures and a sheet of the first samples.

    Raises:
        InputError: If an argument cannot be used, or if the folder holds foreign files. Nothing is measured then.

    Source:
        Song et al., Denoising Diffusion Implicit Models, arXiv 2010.02502, Tables 1 and 3.

    Example:
        >>> import odeddim, tempfile
        >>> bench = odeddim.jobs.bench.Workbench("exact-mixture", folder=tempfile.mkdtemp())
        >>> table = odeddim.jobs.bench.quality(bench, count=4, eta=[0, 1], steps=[3], size=(1, 28, 28))
        >>> [row["eta"] for row in table.rows]
        ['0', '1']
    """
    seed, size, end = how.pop("seed", 0), how.pop("size", None), how.pop("end", "zero")
    etas = [_eta(value) for value in eta or (() if solvers else defaults.ETA)]
    session = Session.of(workbench, "quality")
    shape = session.shape(size)
    image_shape = session.field.shape_of_images(shape)
    network, real, others = _compared_with(session, reference, features, image_shape, prepare)
    named = str(place_of(reference) or "2,048 test images of Fashion-MNIST")
    if real.prepared:
        named += f" ({', '.join(f'{key} {value}' for key, value in real.prepared.items())})"
    lines = []
    for each in etas:
        name, its_own = _sampler(each)
        lines += [bench.Sampled(plan, each) for plan in session.plans([f"{name}@{grid}"], steps, end, its_own)]
    lines += [bench.Sampled(plan) for plan in session.plans(solvers, steps, end, how)]
    total = (count + min(bench.SHOWN, count)) * sum(expected(line.run) for line in lines)
    with session.harness(total, count) as harness:
        table = bench.quality(
            harness, lines, count, shape, network, _pictures(real, named), seed=seed, end=end, paper=paper,
            others=None if others is None else _pictures(others),
        )  # fmt: skip
    return session.deliver(with_skipped(table, real))


def _eta(value: float | str) -> str:
    """An η as the table has it: "hat", or a number."""
    text = str(value).strip()
    if text in (bench.HAT, "σ̂", "sigma-hat"):
        return bench.HAT
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 100:
        raise InputError(f"{text!r} is no η: give numbers from 0 (the ODE) to 1 (DDPM), or hat for σ̂")
    return f"{number:g}"


def _sampler(eta: str) -> tuple[str, dict[str, float]]:
    """The solver that samples with an η, and its settings."""
    if eta == bench.HAT:
        return "ddpm-sigma-hat", {}
    return (SAMPLE_WITH_ETA, {"eta": float(eta)}) if float(eta) else ("euler", {})


def _compared_with(
    session: Session,
    reference: Images,
    features: str | Path | Features | None,
    shape: tuple[int, ...],
    prepare: Preparation | None,
) -> tuple[Features, ImageSource, ImageSource | None]:
    """The feature network, the reference, and more real images where the reference is the package's own."""
    name = session.field.name
    if reference is None and not session.built_in:
        raise InputError(f"what are the samples of {name!r} to be compared with? Give reference=...")
    network = session.features(features, shape)
    if network is None:
        raise InputError(f"which features of the images of {name!r} are to be compared? Give features=...")
    real = images_for(session.field, REFERENCE if reference is None else reference, prepare)
    check_shape(real, shape, place_of(reference) or "the package")
    return network, real, open_images() if reference is None else None


def _pictures(source: ImageSource, name: str = "") -> Pictures:
    return Pictures(lambda start, stop: source[start:stop], len(source), name)
