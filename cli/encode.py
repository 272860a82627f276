"""`odeddim encode`: images to a latent file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odeddim import defaults
from odeddim.cli import condition, options, parallel, portable, preparation, recording, sharing, tops

if TYPE_CHECKING:
    from odeddim.jobs import Machine, Subject
    from odeddim.storage.preparation import Preparation


found = options.gathered(
    "found",
    options.together(
        click.option(
            "--certify", is_flag=True, help="Store a certificate of each latent. This takes 4 times the evaluations."
        ),
        click.option(
            "--density",
            is_flag=True,
            help="Store the log density of each image, as continuous data, in bits per dimension: twice the "
            "evaluations, and two products with the Jacobian at each node.",
        ),
        recording.options,
        *condition.each(
            ", or 'folder': the names of the images' folders",
            ", which are numbers or are numbered in the order of the alphabet",
        ),
    ),
    lambda own: {
        "certify": own["certify"],
        "density": own["density"],
        "trajectory": recording.recording(own),
        "labels_from": own["labels_from"],
        "prompts_from": own["prompts_from"],
    },
)
"""What each image is told, and what else is found out of it."""
start = click.option(
    "--start",
    default=None,
    metavar="forward:K[:SEED]",
    help="Make the first K steps by adding noise to the image, and not by the solver. The latents are whiter, and "
    "their images do not come back.  [default: the solver makes all steps]",
)


@click.command("encode")
@click.argument("images", required=False, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The latent file to write, z.h5.")
@options.count
@options.model
@preparation.prepare
@options.run(
    f"{defaults.ENCODE}; with --tol {defaults.TOLERANCE}",
    options.end,
    tops.top,
    start,
    options.plan,
    parallel.option,
    portable.option,
)
@sharing.machine
@options.tol
@found
@options.overwrite
def command(
    images: Path | None,
    output: Path,
    count: int | None,
    model: Subject,
    how: dict[str, Any],
    prepare: Preparation | None,
    machine: Machine,
    tol: float | None,
    found: dict[str, Any],
    overwrite: bool,
) -> None:
    """Encode IMAGES to latents by integrating the ODE from the image up to σ_T.

    IMAGES is a folder, an image file, .npz, .npy, IDX (MNIST's format, gzip or not), HDF5, hf:PATH of a dataset of
    Hugging Face that save_to_disk wrote, or - for a list of image files on standard input. The default is the 256
    sample images of the package. The latent file holds all that decoding needs, but the model.

    --solver, --grid, --steps, --end and settings choose the run. --plan takes all of them from a plan file.

    --certify decodes each image again, and encodes it by a more accurate run. It stores the round trip, the distance
    to the ODE's latent, and statistics of the latent; `odeddim verify` shows them. --tol finds the steps that each
    image needs. With --tol, the default of --end is sigma_min, because the Euler step at σ = 0 has an error that no
    steps reduce.

    --trajectory keeps the points of each image's run, at the nodes or at noise levels between them, for `odeddim
    trajectory` and `odeddim.Trajectory.load`. The latents have the same bits with and without it.

    --labels-from and --prompts-from give each image a class or a text of its own. A column of the CSV that is called
    file, name, filename, image or path names the images; without one, the rows have their order. The latent file keeps
    the condition of each latent, and `odeddim decode` takes it.

    --portable makes latents that are the same bits on any machine, and says of which images that is certified: the
    margin of each latent is stored as report/margin, and is at least 1 then. Reversible solvers come back bit for bit.

    --density measures along the same run how probable the model makes each image, as continuous data
    (report/bits_per_dim, and its standard error). The default of --end is then sigma_min. `odeddim density` measures
    images of whole numbers too.

    A latent model encodes images by its autoencoder first. The error of the autoencoder alone is stored as report/floor
    (rms over pixels). All other errors are those of the autoencoder's data, in their units.

    A run that was stopped, for whatever reason, goes on with the same command, as long as the names and the bytes of
    the images are the same. A larger -n extends a finished file: what is there is not computed again, and stays as it
    is until the longer file is whole. Several processes share the work: give --workers, start the command under
    torchrun, or start it several times.

    Most latent models take images of many sizes, multiples that `odeddim inspect MODEL` names, and images that all have
    one of these are taken as they are. Models of pixels take their own size.

    Photographs of any size: --resize S makes them S×S pixels, --resize 768,512 makes them 768 pixels high and 512 wide,
    and --resize model, --crop center or --pad alone the model's own size. Each is turned as its EXIF orientation says,
    laid on --background where it is transparent, converted to the model's channels, resized by Pillow's Lanczos filter,
    and cropped or padded. By default both ends of the longer side are cut off, as by torchvision's Resize and
    CenterCrop; --crop none stretches, as diffusers does. Gray images of 16 bits or floats keep their precision; of
    colour, 8 bits are read. Arrays are resized likewise. The latent file says what was done, `odeddim inspect` shows
    it, and `odeddim verify` does it again.

    Transparent parts of an image become white. Of a file with several pictures, such as an animation, the first is
    taken. A model of gray images makes colour gray. A warning says how many images are concerned. Hidden files (.NAME)
    are left alone. A file that cannot be read ends the command before it writes anything, or is left out with
    --skip-bad.

    A model of videos takes clips: a folder of MP4, WebM, GIF and the like (pip install 'odeddim[video]'), of folders
    with the frames of one video each, or arrays (N, C, F, H, W). --frames N takes the first N frames of each.

    \b
    Examples:
      odeddim encode -o z.h5                              the sample images, the built-in model
      odeddim encode photos/ -o z.h5 --model MODEL
      odeddim encode photos/ -o z.h5 --model MODEL --resize model --skip-bad
      odeddim encode -o z.h5 --solver euler --grid linear --steps 100     DDIM, as in the paper
      odeddim encode -o z.h5 --solver dpmpp-2m --steps 5 --top gaussian
      odeddim encode -o z.h5 --solver dopri5 --rtol 1e-5
      odeddim encode -o z.h5 -n 8 --portable
      odeddim encode photos/ -o z.h5 --model MODEL --certify
      odeddim encode photos/ -o z.h5 --model MODEL --solver euler --parallel 50
      odeddim encode photos/ -o z.h5 --model MODEL --tol 1e-3
      odeddim encode photos/ -o z.h5 --model MODEL --plan bench/plan.json
      odeddim encode photos/ -o z.h5 --model M --labels-from labels.csv:class
      odeddim encode -o z.h5 -n 8 --trajectory t.h5 --trajectory-at 0.1,1,10
      odeddim encode -o z.h5 -n 8 --solver unipc-2 --steps 20 --start forward:3
      odeddim encode photos/ -o z.h5 --model MODEL --workers 2
      find photos -name '*.png' | odeddim encode - -o z.h5 --model MODEL
      torchrun --nproc-per-node 4 -m odeddim encode photos/ -o z.h5 --model MODEL
    """
    from odeddim import jobs
    from odeddim.cli.progress import bar

    made = jobs.encode(
        images, output, model=model, count=count, tol=tol, prepare=prepare, machine=machine,
        overwrite=overwrite, progress=bar, **found, **how,
    )  # fmt: skip
    options.tell(made)
