"""The job that draws trajectories: a strip or an animation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from odeddim.api import Model
from odeddim.jobs.machine import Machine
from odeddim.jobs.subject import Subject, subject_on
from odeddim.jobs.work import Outcome
from odeddim.storage.animations import SUFFIXES, Animation
from odeddim.storage.atomic import check_place
from odeddim.trajectories import Trajectory


def trajectory(
    trajectories: str | Path,
    output: str | Path | Animation,
    *,
    images: Sequence[int] | None = None,
    at: Sequence[float] | None = None,
    model: Model | Subject | None = None,
    scale: int | None = None,
    machine: Machine | None = None,
    overwrite: bool = False,
) -> Outcome:
    """Draw trajectories of a file: x and the predicted images x̂₀ at noise levels of the run.

    Args:
        trajectories: The file, t.h5, of `odeddim.jobs.encode(trajectory=...)` or of `odeddim.trajectory(keep=...)`.
        output: The strip, NAME.png, or the animation, NAME.gif, NAME.webp or NAME.mp4; an Animation says how fast it
            runs, too.
        images: The images, by index; by default the first 4.
        at: The noise levels; by default 8 of the points for a strip, and all for an animation.
        model: A latent model, whose autoencoder makes images of the data.
        scale: How many times images are enlarged.
        machine: Where the autoencoder runs.
        overwrite: Whether to replace a file at `output` that this call has not written.

    Returns:
        The outcome; `print` it for one line.

    Raises:
        InputError: If an argument cannot be used. Nothing is written then.

    Example:
        >>> import odeddim, tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> images = odeddim.open_images()[:2]
        >>> path = odeddim.trajectory(images, "ab2", direction="encode", steps=4, keep=folder / "t.h5")
        >>> print(odeddim.jobs.trajectory(folder / "t.h5", folder / "strip.png").done)
        2
    """
    source = Path(trajectories)
    path = Trajectory.load(source)
    field = None
    if model is not None:
        field = subject_on((machine or Machine()).at(model=model), model)
    film = output if isinstance(output, Animation) else Animation(Path(output), scale=scale)
    check_place(film.path, source, suffixes=(".png", *SUFFIXES))
    chosen = list(range(path.count)[:4] if images is None else images)
    if film.path.suffix.lower() == ".png":
        path.save_strip(film.path, images=chosen, at=at, model=field, scale=scale, overwrite=overwrite)
    else:
        path.save_animation(
            film.path, images=chosen, at=at, model=field, fps=film.fps, scale=film.scale, overwrite=overwrite
        )
    return Outcome(film.path, len(chosen), len(chosen), f"{len(chosen)} trajectories of {source} in {film.path}")
