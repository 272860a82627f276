"""Sizes other than a model's own: what a network takes, against diffusers' pipelines at that size, and in every job.

The pipelines are the tiny ones of `test_latent_diffusion`. Their autoencoders halve images once and their U-Nets halve
data once, so that sides are multiples of 4; their own size is 16×16, and 24×16 stands for all others.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

import odeddim
from odeddim import InputError, Schedule, State, VectorField
from odeddim.api import to_data, to_images
from odeddim.bench import consistency, quality
from odeddim.bridges import between
from odeddim.jobs.bench.workbench import Session
from odeddim.latents.latent_file import LatentFile
from odeddim.ode.sizes import Sizes, counterpart
from odeddim.storage.images import open_images
from odeddim.storage.png import to_bytes

diffusers = pytest.importorskip("diffusers", reason="diffusers is installed by the test extra")
pytest.importorskip("transformers", reason="transformers is installed by the test extra")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

from test_latent_diffusion import (  # noqa: E402
    AS_SD,
    at,
    dit,
    edited,
    ldm,
    nodes_of,
    noise,
    off,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
)

STEPS = 5
SIZE = (3, 24, 16)
OF_DATA = (4, 12, 8)
Run = Callable[..., tuple[int, str, str]]


def images(n: int = 2, shape: tuple[int, ...] = SIZE) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(6)) * 2 - 1


# What sizes are.


def test_multiples_up_to_a_bound_and_ones_own() -> None:
    sizes = Sizes((3, 18, 16), 4, 32)
    assert [shape for shape in ((3, 18, 16), (3, 4, 32), (3, 24, 16)) if shape not in sizes] == []
    wrong = ((3, 18, 20), (3, 36, 16), (1, 16, 16), (3, 16), (3, 0, 16), (3, 16, 16, 16), (3, -4, 4))
    assert [shape for shape in wrong if shape in sizes] == []
    assert str(sizes) == "multiples of 4 up to 32, its own 18×16"
    only = Sizes((3, 18, 16))
    assert ((3, 18, 16) in only, (3, 36, 32) in only, str(only)) == (True, False, "18×16 only")


@pytest.mark.parametrize(
    ("shape", "nearest"),
    [
        ((3, 30, 17), "28×16 and 32×20"),
        ((3, 30, 16), "28×16 and 32×16"),
        ((3, 1, 3), "4×4"),
        ((3, 40, 15), "32×12 and 32×16"),
        ((1, 16, 16), "16×16"),
    ],
)
def test_the_nearest_sizes_are_taken(shape: tuple[int, ...], nearest: str) -> None:
    sizes = Sizes((3, 16, 16), 4, 32)
    words = sizes.words(shape)
    assert words == f"3×H×W with H and W multiples of 4 up to 32, the nearest {nearest}"
    for named in nearest.split(" and "):
        assert (3, *map(int, named.split("×"))) in sizes
    assert Sizes((3, 16, 16)).words(shape) == "3×16×16"
    assert sizes.words((3,)).endswith("up to 32")


def test_sizes_of_two_models() -> None:
    small, large = Sizes((4, 8, 8), 2, 64), Sizes((4, 12, 12), 3, 48)
    assert small.common(large) == Sizes((4, 12, 12), 6, 48)  # the one that both take
    assert small.common(Sizes((4, 8, 8), 2)) == small
    assert small.common(Sizes((4, 10, 10))) == Sizes((4, 10, 10)).common(small) == Sizes((4, 10, 10))
    for other in (Sizes((4, 9, 9)), Sizes((3, 8, 8), 2), Sizes((4, 65, 65), 5)):
        assert small.common(other) is other.common(small) is None


def test_images_of_data() -> None:
    assert Sizes((4, 8, 12), 2, 64).of_images((3, 64, 96)) == Sizes((3, 64, 96), 16, 512)
    assert Sizes((4, 8, 12)).of_images((3, 64, 96)) == Sizes((3, 64, 96))
    assert counterpart((4, 6, 8), (4, 8, 12), (3, 64, 96)) == (3, 48, 64)
    assert counterpart((3, 48, 64), (3, 64, 96), (4, 8, 12)) == (4, 6, 8)


# Against diffusers.


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, VectorField]:
    """A folder with a Stable Diffusion, the pipeline that is in it, and what we make of it."""
    folder = tmp_path_factory.mktemp("sd")
    pipeline = stable_diffusion(folder, diffusers.DDIMScheduler(**AS_SD))
    return folder / "model", pipeline, odeddim.load(folder / "model")


def check_codec(field: VectorField, codec: Any, scale: float, shift: float = 0.0) -> None:
    """Images become the data, and the data images, that the pipeline's own autoencoder makes of them."""
    with torch.no_grad():
        found = codec.encode(images())
        z = found.latents if hasattr(found, "latents") else found.latent_dist.mean
        again = codec.decode(z).sample
    assert off(to_data(field, images()), (z - shift) * scale) < 1e-5
    assert off(to_images(field, (z - shift) * scale), again) < 1e-5
    assert again.shape == (2, *SIZE)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_sd_is_the_pipeline_at_another_size(sd: tuple[Path, Any, VectorField], guidance: float) -> None:
    _, pipeline, field = sd
    theirs = pipeline(
        prompt=["a cat"] * 2, guidance_scale=guidance, num_inference_steps=STEPS, latents=noise(OF_DATA),
        height=24, width=16, output_type="latent",
    ).images  # fmt: skip
    told = field.conditioned(prompt="a cat", guidance=guidance)
    nodes = nodes_of(field, pipeline, None)
    data = odeddim.solve(noise(OF_DATA), "euler", model=told.on_data(), grid=nodes, end="sigma_min")
    assert off(float(pipeline.scheduler.alphas_cumprod[0].sqrt()) * data, theirs) < 1e-5
    whole = odeddim.solve(noise(OF_DATA), "euler", model=told, grid=nodes, end="sigma_min")
    assert off(whole, pipeline.vae.decode(data / 0.18215).sample) < 1e-5
    check_codec(field, pipeline.vae, 0.18215)


@pytest.mark.parametrize("negative", [None, "dog"])
def test_sdxls_size_conditions_are_those_of_the_run(tmp_path: Path, negative: str | None) -> None:
    pipeline = stable_diffusion_xl(tmp_path)
    field = odeddim.load(tmp_path / "model")
    told = field.conditioned(prompt="cat", negative_prompt=negative, guidance=4).on_data()
    for height, width in ((24, 16), (16, 24), (16, 16)):
        x_T = noise((4, height // 2, width // 2))

        def run(of: tuple[int, int], x_T: Tensor = x_T, size: tuple[int, int] = (height, width)) -> Tensor:
            found: Tensor = pipeline(
                prompt=["cat"] * 2, negative_prompt=None if negative is None else [negative] * 2, guidance_scale=4.0,
                num_inference_steps=STEPS, latents=x_T, height=size[0], width=size[1], output_type="latent",
                **({} if of == size else {"original_size": of, "target_size": of}),
            ).images  # fmt: skip
            return found

        theirs = run((height, width))
        nodes = nodes_of(field, pipeline, None)
        ours = odeddim.solve(x_T, "euler", model=told, grid=nodes, end="sigma_min")
        ours = ours * float(pipeline.scheduler.alphas_cumprod[0].sqrt())
        assert off(ours, theirs) < 1e-5
        assert off(run((20, 20)), theirs) > 1e-4  # or the conditions would prove nothing
    check_codec(field, pipeline.vae, 0.13025)
    again = pickle.loads(pickle.dumps(told))
    assert torch.equal(again(*leaf(told)), told(*leaf(told)))


def leaf(field: VectorField, shape: tuple[int, ...] = OF_DATA, t: float = 321.5) -> tuple[Tensor, Tensor]:
    """σ, and x̄ of another size."""
    sigma, scale = at(field, t)
    return sigma, scale * noise(shape)


def test_sd3_crops_its_table_of_positions(tmp_path: Path) -> None:
    pipeline = stable_diffusion_3(tmp_path, text_encoder_3=None, tokenizer_3=None)
    field = odeddim.load(tmp_path / "model").conditioned(prompt="cat")
    assert str(field.sizes) == "multiples of 2 up to 16, its own 8×8"
    assert str(field.image_sizes) == "multiples of 4 up to 32, its own 16×16"
    times = torch.linspace(0.99, 0.05, STEPS).tolist()
    theirs = pipeline(
        prompt=["cat"] * 2, guidance_scale=1.0, sigmas=times, latents=noise(OF_DATA), height=24, width=16,
        output_type="latent",
    ).images  # fmt: skip
    t = pipeline.scheduler.sigmas.double()
    nodes = (t / (1 - t)).flip(0)
    state = State(noise(OF_DATA) / float(1 - t[0]), float(nodes[-1]))
    assert off(odeddim.decode(state, "euler", model=field.on_data(), grid=nodes), theirs) < 1e-5
    check_codec(field, pipeline.vae, 1.5305, 0.0609)
    assert odeddim.sample(1, model=field, steps=2, shape=(3, 32, 32)).shape == (1, 3, 32, 32)
    with pytest.raises(InputError, match=r"multiples of 4 up to 32, the nearest 32×32, not 3×36×36"):
        odeddim.encode(images(shape=(3, 36, 36)), model=field)
    edited(tmp_path / "model" / "transformer" / "config.json", pos_embed_max_size=0.5)
    with pytest.raises(InputError):  # one sentence, whatever the file says
        odeddim.load(tmp_path / "model")


def test_ldms_unet_takes_them_too(tmp_path: Path) -> None:
    pipeline = ldm(tmp_path)
    field = odeddim.load(tmp_path / "model")
    (sigma, xbar), scale = leaf(field, (3, 12, 8)), at(field, 321.5)[1]
    with torch.no_grad():
        assert off(field(sigma, xbar), pipeline.unet(xbar / scale, torch.tensor(321.5)).sample) < 1e-5
    check_codec(field, pipeline.vqvae, 0.7)
    assert str(field.image_sizes) == "multiples of 4, its own 16×16"


def test_dit_takes_its_own_size_only(tmp_path: Path) -> None:
    field = odeddim.load(dit(tmp_path)).conditioned(3)
    assert field.sizes == Sizes((4, 8, 8))
    with pytest.raises(InputError, match=r"takes images of 3×16×16, not 3×24×16 \(channels"):
        odeddim.encode(images(), model=field)
    with pytest.raises(InputError, match=r"makes images of 3×16×16, not 3×24×16 .*: give another shape=\.\.\., or"):
        odeddim.sample(2, model=field, shape=SIZE)
    assert "sizes" not in odeddim.jobs.inspect(tmp_path / "model")
    assert odeddim.sample(1, model=field, steps=2).shape == (1, 3, 16, 16)


def test_a_unet_of_three_levels(tmp_path: Path, sd: tuple[Path, Any, VectorField]) -> None:
    parts = {**sd[1].components, "unet": None}
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 8, 8), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=4,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=2,
        cross_attention_dim=16,
    )  # fmt: skip
    field = odeddim.load(diffusers.StableDiffusionPipeline(**{**parts, "unet": unet}, requires_safety_checker=False))
    assert str(field.image_sizes) == "multiples of 8, its own 16×16"
    assert odeddim.sample(1, model=field, steps=2, shape=SIZE).shape == (1, *SIZE)


# In Python.


def test_there_and_back_in_python(sd: tuple[Path, Any, VectorField]) -> None:
    _, pipeline, field = sd
    before = field.sha256
    state = odeddim.encode(images(), model=pipeline, steps=STEPS)
    assert state.xbar.shape == (2, *OF_DATA)
    again = odeddim.decode(state, model=pipeline)
    assert off(again, to_images(field, to_data(field, images()))) < 1e-4  # belm loses nothing
    assert odeddim.load(pipeline).sha256 == before
    # The same field, its own size, and back: nothing of a size stays behind.
    own = odeddim.encode(images(shape=(3, 16, 16)), model=field, steps=STEPS)
    assert torch.equal(odeddim.encode(images(), model=field, steps=STEPS).xbar, state.xbar)
    assert torch.equal(odeddim.encode(images(shape=(3, 16, 16)), model=field, steps=STEPS).xbar, own.xbar)
    assert torch.equal(odeddim.encode(images(), model=field, steps=STEPS, batch_size=2).xbar, state.xbar)


def test_samples_of_another_size_begin_with_noise_of_the_datas(sd: tuple[Path, Any, VectorField]) -> None:
    _, pipeline, field = sd
    made = odeddim.sample(2, seed=5, model=pipeline, steps=STEPS, shape=SIZE)
    assert torch.equal(made, odeddim.solve(odeddim.noise(2, OF_DATA, seed=5), model=field, steps=STEPS))
    assert made.shape == (2, *SIZE)
    own = odeddim.sample(2, model=field, steps=STEPS)
    assert torch.equal(odeddim.sample(2, model=field, steps=STEPS, shape=(3, 16, 16)), own)
    data = odeddim.sample(2, seed=5, model=field.on_data(), steps=STEPS, shape=OF_DATA)
    assert torch.equal(to_images(field, data), made)


@pytest.mark.parametrize("shape", [(3, 24, 18), (1, 24, 16), (4, 12, 8), (3, 0, 16)])
def test_sizes_that_it_does_not_take(sd: tuple[Path, Any, VectorField], shape: tuple[int, ...]) -> None:
    has, field = "×".join(map(str, shape)), sd[2]
    says = f"images of 3×H×W with H and W multiples of 4, the nearest .*, not {has} "
    with pytest.raises(InputError, match=f"makes {says}"):
        odeddim.sample(2, model=field, steps=2, shape=shape)
    for batch_size in (None, 1):
        with pytest.raises(InputError, match=f"takes {says}"):
            odeddim.encode(images(shape=shape), model=field, steps=2, batch_size=batch_size)
    with pytest.raises(InputError, match=r"takes latents of 4×H×W with H and W multiples of 2.*, not 4×9×8"):
        odeddim.solve(noise((4, 9, 8)), model=field, steps=2)


def test_pixel_models_keep_their_own() -> None:
    field = odeddim.load()
    assert field.sizes == field.image_sizes == Sizes((1, 28, 28))
    with pytest.raises(InputError, match=r"makes images of 1×28×28, not 1×32×32"):
        odeddim.sample(1, model=field, steps=2, shape=(1, 32, 32))
    mine = VectorField(lambda x, t: x, Schedule.linear(), shape=Sizes((1, 8, 8), 4), name="mine")
    assert (mine.shape, mine.image_shape) == ((1, 8, 8), (1, 8, 8))
    assert odeddim.sample(1, model=mine, steps=2, shape=(1, 12, 4)).shape == (1, 1, 12, 4)
    with pytest.raises(InputError, match="takes any shape: say which one"):
        odeddim.sample(1, model=VectorField(lambda x, t: x, Schedule.linear()), steps=2)


# Bridges between models of several own sizes.


def other_own(pipeline: Any, side: int) -> VectorField:
    """The same autoencoder with a U-Net of another own size."""
    unet = type(pipeline.unet).from_config({**pipeline.unet.config, "sample_size": side})
    unet.load_state_dict(pipeline.unet.state_dict())
    parts = {**pipeline.components, "unet": unet}
    return odeddim.load(diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False))


def test_bridges_take_the_sizes_of_both(sd: tuple[Path, Any, VectorField], tmp_path: Path) -> None:
    _, pipeline, field = sd
    large = other_own(pipeline, 12)
    over = between(field, large, "euler", steps=3)
    assert str(over.sizes) == "multiples of 4, its own 16×16"
    assert over.cross(images(), cycle=False).images.shape == (2, *SIZE)
    parts = {**dit(tmp_path).components, "vae": pipeline.vae, "scheduler": pipeline.scheduler}
    squares = odeddim.load(diffusers.DiTPipeline(**parts)).conditioned(3)
    over = between(large, squares, "euler", steps=3)
    assert over.sizes == Sizes((3, 16, 16))
    large.reset()
    with pytest.raises(InputError, match=r"takes images of 3×16×16, not 3×24×16"):
        over.cross(images())
    assert large.nfe == 0  # before any work
    with pytest.raises(InputError, match=r"takes 3×16×16: resize=\.\.\. scales"):
        odeddim.jobs.bridge(images(), tmp_path / "out", squares, model=large, steps=3)
    made = odeddim.jobs.bridge(
        images(), tmp_path / "out.h5", squares, model=large, steps=3, prepare=odeddim.Preparation(resize="model")
    )
    assert (made.done, open_images(tmp_path / "out.h5").shape) == (2, (3, 16, 16))


def test_an_own_size_that_is_no_multiple(sd: tuple[Path, Any, VectorField]) -> None:
    odd = other_own(sd[1], 9)
    assert str(odd.image_sizes) == "multiples of 4, its own 18×18"
    assert odeddim.sample(1, model=odd, steps=2).shape == (1, 3, 18, 18)
    assert odeddim.sample(1, model=odd, steps=2, shape=SIZE).shape == (1, *SIZE)


# From photographs to files and back.


@pytest.fixture
def photos(here: Path) -> Path:
    return folder_of(here / "photos", *images(3))


def folder_of(folder: Path, *pictures: Tensor) -> Path:
    folder.mkdir()
    for i, image in enumerate(pictures):
        pixels = np.ascontiguousarray(to_bytes(image[None])[0].movedim(0, -1).numpy())
        PIL.Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.mark.slow  # all jobs, one after another
def test_a_folder_of_one_other_size_goes_through_all_jobs(
    photos: Path, run: Run, sd: tuple[Path, Any, VectorField]
) -> None:
    def done(*arguments: object) -> str:
        code, out, err = run(*arguments)
        assert code == 0, err
        return out

    model = ("--model", sd[0], "--prompt", "cat")
    done("encode", photos, "-o", "z.h5", *model, "--steps", STEPS)
    with LatentFile(Path("z.h5")) as file:
        assert file.shape == OF_DATA
        xbar = file.read(0, 3).xbar
        assert "24" not in json.dumps(file.provenance.details)  # the size is the latents' shape, and nothing else
    told = sd[2].conditioned(prompt="cat")
    x_0 = open_images(photos).read()
    assert off(xbar, odeddim.encode(x_0, model=told, steps=STEPS).xbar) < 1e-5
    done("encode", photos, "-o", "one.h5", *model, "--steps", STEPS, "--batch-size", 1)
    with LatentFile(Path("one.h5")) as file:
        assert torch.equal(file.read(0, 3).xbar, xbar)

    command = [sys.executable, "-m", "odeddim", "decode", "z.h5", "-o", "out"]
    subprocess.run(command, check=True, capture_output=True)  # another process knows the size by the file alone
    again = open_images(Path("out")).read()
    assert again.shape == (3, *SIZE)
    codec: Any = sd[2].codec
    assert float((again - codec.decode(codec.encode(x_0))).abs().clamp(max=1).median()) < 0.01
    done("decode", "z.h5", "-o", "here")
    assert torch.equal(open_images(Path("here")).read(), again)
    with odeddim.open("z.h5") as opened:
        assert off(opened.decode(model=told).clamp(-1, 1), again) < 0.01

    done("verify", "z.h5", "--sheet", "worst.png", "--scale", 1, "--no-labels")
    with LatentFile(Path("z.h5")) as file:
        assert float(file.figures()["round_trip"].max()) < 1e-5
    done("interpolate", "z.h5", "--pair", 0, 1, "-n", 3, "-o", "path.h5")
    done("decode", "path.h5", "-o", "path")
    between_two = open_images(Path("path")).read()
    assert between_two.shape == (3, *SIZE)
    with odeddim.open("path.h5") as opened:
        assert off(opened.decode(model=told).clamp(-1, 1), between_two) < 0.01
    page = done("explore", "z.h5", "--corners", 0, 1, 2, 0, "--tiles", 2, "--levels", 2, "-o", "page.html")
    assert "2 × 2 images" in page
    done("bridge", photos, "-o", "over.h5", "--to", sd[0], "--to-prompt", "cat", *model, "--steps", STEPS)
    assert open_images(Path("over.h5")).shape == SIZE
    done("sample", *model, "--size", "3,24,16", "-n", 2, "--steps", STEPS, "-o", "new.h5")
    made = open_images(Path("new.h5")).read()
    assert off(made, odeddim.sample(2, model=told, steps=STEPS, shape=SIZE)) < 1e-4
    few = ("--size", "3,24,16", "--steps", 2, "--solvers", "euler", "-o", "b")
    done("bench", "interpolation", *model, *few, "--pairs", 1, "--points", 3, "--side", 0)


def test_photographs_are_resized_to_other_sizes(here: Path, run: Run, sd: tuple[Path, Any, VectorField]) -> None:
    folder_of(here / "photos", images(1, (3, 41, 30))[0], images(1, (3, 20, 50))[0])
    for size, shape in (("24x16", OF_DATA), ("24×16", OF_DATA), ("32", (4, 16, 16)), ("model", (4, 8, 8))):
        code, _, err = run("encode", "photos", "-o", f"{size}.h5", "--model", sd[0], "--steps", 2, "--resize", size)
        assert code == 0, err
        with LatentFile(Path(f"{size}.h5")) as file:
            assert file.shape == shape
    code, _, err = run("verify", "24x16.h5")
    assert code == 0, err
    code, _, err = run("encode", "photos", "-o", "32.h5", "--model", sd[0], "--steps", 2, "--resize", "24x16")
    assert (code, "other images" in err or "resize" in err) == (2, True)  # nor does a run go on at another size
    for how, says in (
        (("--resize", "30x16"), "multiples of 4, the nearest 28×16 and 32×16: --resize scales and crops them as they"),
        ((), "--resize makes them one shape"),
    ):
        code, _, err = run("encode", "photos", "-o", "no.h5", "--model", sd[0], "--steps", 2, *how)
        assert code == 2
        assert says in err
        assert err.splitlines()[-1].startswith("Error: ")
        assert not Path("no.h5").exists()


def test_benches_sample_at_other_sizes(here: Path, sd: tuple[Path, Any, VectorField]) -> None:
    session = Session.of(odeddim.jobs.bench.Workbench(sd[2], folder=here / "b"), "quality")
    (plan,) = session.plans(["euler"], [2], "zero", {})
    with session.harness(8, 2) as harness:
        x_T = session.shape(SIZE)
        decoded = consistency.decoded(harness, plan, 2, x_T, 5)["images"]
        shown = quality.shown(harness, plan, 2, x_T, 5)
    assert x_T == OF_DATA
    made = odeddim.sample(2, "euler", seed=5, model=sd[2], steps=2, shape=SIZE)
    assert off(torch.from_numpy(decoded), made) < 1e-5
    assert off(shown, made.clamp(-1, 1)) < 0.01


def test_inspect_says_the_sizes(run: Run, sd: tuple[Path, Any, VectorField]) -> None:
    assert odeddim.jobs.inspect(sd[0])["sizes"] == "multiples of 4, its own 16×16"
    code, out, _ = run("inspect", sd[0])
    assert code == 0
    assert "multiples of 4, its own 16×16" in out
