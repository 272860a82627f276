"""Video models against diffusers itself: the networks and whole runs of its pipelines, its autoencoders, and files.

The pipelines are tiny, with random weights everywhere, and saved by diffusers.
"""

from __future__ import annotations

import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

import odeddim
from odeddim import InputError, State, VectorField
from odeddim.api import to_data, to_images
from odeddim.latents.latent_file import LatentFile
from odeddim.models.formats import latent_diffusion
from odeddim.ode.conditions import Condition
from odeddim.ode.sizes import Sizes, counterpart
from odeddim.plans import Plan, integrate
from odeddim.solvers import get
from odeddim.storage.images import open_images
from odeddim.storage.png import to_bytes

diffusers = pytest.importorskip("diffusers", reason="diffusers is installed by the test extra")
transformers = pytest.importorskip("transformers", reason="transformers is installed by the test extra")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

import test_latent_diffusion as latents  # noqa: E402
from test_latent_diffusion import edited, off, saved, stirred  # noqa: E402

STEPS = 20
Run = Callable[..., tuple[int, str, str]]
DATA = (4, 3, 4, 8)  # frames and sides of the data of videos of 9 frames of 16×32


def texts(kind: str, folder: Path) -> dict[str, Any]:
    """A text encoder of 24 numbers a token, and T5's tokenizer."""
    config = {"vocab_size": 16, "d_model": 24, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    encoder = getattr(transformers, f"{kind}EncoderModel")(getattr(transformers, f"{kind}Config")(**config))
    return {"text_encoder": stirred(encoder, 8), "tokenizer": latents.t5(folder)["tokenizer_3"]}


def wan_codec(**more: Any) -> Any:
    config: dict[str, Any] = {
        "base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 2], "num_res_blocks": 1, "temperal_downsample": [True, True],
        "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.0, 2.0, 0.5, 3.0], "scale_factor_spatial": 4,
    }  # fmt: skip
    return stirred(diffusers.AutoencoderKLWan(**{**config, **more}), 2)


def wan_network(seed: int = 3, **more: Any) -> Any:
    config: dict[str, Any] = {
        "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 24,
        "freq_dim": 16, "ffn_dim": 24, "num_layers": 1,
    }  # fmt: skip
    return stirred(diffusers.WanTransformer3DModel(**{**config, **more}), seed)


def wan(folder: Path, scheduler: Any, *, vae: Any = None, **more: Any) -> Any:
    parts = {"vae": vae or wan_codec(), "transformer": wan_network(), "scheduler": scheduler}
    return saved(diffusers.WanPipeline(**parts, **texts("UMT5", folder), **more), folder)


def cogvideox_codec(**more: Any) -> Any:
    config: dict[str, Any] = {
        "down_block_types": ("CogVideoXDownBlock3D",) * 3, "up_block_types": ("CogVideoXUpBlock3D",) * 3,
        "block_out_channels": (4, 4, 8), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2,
        "scaling_factor": 0.7,
    }  # fmt: skip
    return stirred(diffusers.AutoencoderKLCogVideoX(**{**config, **more}), 2)


def cogvideox(folder: Path, scheduler: Any, **more: Any) -> Any:
    config: dict[str, Any] = {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8,
        "text_embed_dim": 24, "num_layers": 1, "sample_width": 8, "sample_height": 4, "sample_frames": 9,
        "max_text_seq_length": 16,
    }  # fmt: skip
    network = stirred(diffusers.CogVideoXTransformer3DModel(**{**config, **more}), 3)
    parts = {"vae": cogvideox_codec(), "transformer": network, "scheduler": scheduler, **texts("T5", folder)}
    return saved(diffusers.CogVideoXPipeline(**parts), folder)


V = {"prediction_type": "v_prediction", "clip_sample": False}
PUBLISHED = {**V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}  # as CogVideoX's files have it


def noise(shape: tuple[int, ...] = DATA, n: int = 2) -> Tensor:
    return odeddim.noise(n, shape, seed=5)


def videos(n: int = 2, frames: int = 9) -> Tensor:
    return torch.rand(n, 3, frames, 16, 32, generator=torch.Generator().manual_seed(6)) * 2 - 1


def told(field: VectorField, guidance: float, low: float | None = None) -> tuple[VectorField, dict[str, Any]]:
    """The field and the arguments of a pipeline for a guidance, of two videos of 9 frames."""
    negative = {} if guidance == 1 else {"negative_prompt": "dog"}
    theirs = {key: [value] * 2 for key, value in {"prompt": "a  cat", **negative}.items()}
    size = {"height": 16, "width": 32, "num_frames": 9}
    second = {} if low is None else {"guidance_scale_2": low}
    return field.conditioned(prompt="a  cat", guidance=guidance, low_guidance=low, **negative), {
        **theirs, **size, **second, "guidance_scale": guidance, "max_sequence_length": 512
    }  # fmt: skip


class Kept:
    """What a pipeline's callback keeps: the latents after each step."""

    def __init__(self) -> None:
        self.states: list[Tensor] = []

    def __call__(self, pipe: Any, i: int, t: Any, state: dict[str, Any]) -> dict[str, Any]:
        self.states.append(state["latents"])
        return state


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, VectorField]:
    """A folder with a Wan, the pipeline that is in it, and what we make of it."""
    folder = tmp_path_factory.mktemp("wan")
    pipeline = wan(folder, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    return folder / "model", pipeline, odeddim.load(folder / "model")


def run_of_wan(
    pipeline: Any, whole: VectorField, guidance: float, shape: tuple[int, ...] = DATA, low: float | None = None
) -> None:
    """From t = 1, where σ is infinite, their first step leads to the top of ours; from there on the runs are one."""
    field, arguments = told(whole, guidance, low)
    kept = Kept()
    theirs = pipeline(
        num_inference_steps=STEPS + 1, latents=noise(shape), output_type="pt", callback_on_step_end=kept, **arguments
    ).frames
    t = pipeline.scheduler.sigmas.double()[1:]
    nodes = (t / (1 - t)).flip(0)
    begin = State(kept.states[0] / float(1 - t[0]), float(nodes[-1]))
    assert len(nodes) == STEPS + 1
    ours = odeddim.decode(begin, "euler", model=field.on_data(), grid=nodes)
    assert off(ours, kept.states[-1]) < 1e-5
    images = odeddim.decode(begin, "euler", model=field, grid=nodes)
    assert off((images / 2 + 0.5).clamp(0, 1), theirs.movedim(2, 1)) < 1e-5


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_wans_run_is_the_pipelines(flow: tuple[Path, Any, VectorField], guidance: float) -> None:
    _, pipeline, field = flow
    assert (field.predicts, field.time, field.schedule.kind) == ("flow", "index", "flow")
    assert (field.shape, field.image_shape) == ((4, 21, 120, 208), (3, 81, 480, 832))
    run_of_wan(pipeline, field, guidance)


@pytest.mark.parametrize("guidance", [pytest.param(1.0, marks=pytest.mark.slow), 5.0])
def test_wans_run_by_unipc_is_the_pipelines(
    flow: tuple[Path, Any, VectorField], guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its published scheduler, which cuts labels to whole numbers; ours are real-valued unless they are told."""
    _, pipeline, whole = flow
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0
    )
    monkeypatch.setattr(pipeline, "scheduler", scheduler)
    assert odeddim.load(pipeline).schedule == whole.schedule
    field, arguments = told(whole, guidance)
    kept = Kept()
    theirs = pipeline(
        num_inference_steps=STEPS, latents=noise(), output_type="pt", callback_on_step_end=kept, **arguments
    ).frames
    t, labels = scheduler.sigmas.double(), scheduler.timesteps.double()
    assert 0.5 < float((1000 * t[:-1] - labels).max()) < 1
    nodes = (t / (1 - t)).flip(0)
    field = field.assuming(time=lambda sigma: labels.flip(0)[torch.searchsorted(nodes[1:], sigma * (1 - 1e-9))])
    begin = State(noise().double() / float(1 - t[0]), float(nodes[-1]))  # where σ is a million
    plan = Plan(get("unipc-2"), nodes)
    ours = integrate(field.on_data(), begin, plan).xbar
    assert off(ours, kept.states[-1]) < 1e-5
    assert off((to_images(field, ours) / 2 + 0.5).clamp(0, 1), theirs.movedim(2, 1)) < 1e-5


BOUNDARY = 0.875


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, VectorField]:
    """A folder with a Wan 2.2 of two networks, the pipeline that is in it, and what we make of it."""
    folder = tmp_path_factory.mktemp("wan22")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = wan(folder, scheduler, transformer_2=wan_network(4), boundary_ratio=BOUNDARY)
    return folder / "model", pipeline, odeddim.load(folder / "model")


@pytest.mark.parametrize(("guidance", "low"), [(1.0, None), (5.0, None), (5.0, 3.0)])
def test_wans_run_by_two_networks_is_the_pipelines(
    pair: tuple[Path, Any, VectorField], guidance: float, low: float | None
) -> None:
    _, pipeline, field = pair
    assert field.boundary == BOUNDARY / (1 - BOUNDARY) == 7
    networks, seen = (field.eps.high, field.eps.low), []
    hooks = [each.register_forward_hook(lambda module, *_: seen.append(module)) for each in networks]
    run_of_wan(pipeline, field, guidance, low=low)
    for hook in hooks:
        hook.remove()
    t = pipeline.scheduler.sigmas[1:-1]
    above = int((t >= BOUNDARY).sum())
    assert seen == [*[networks[0]] * above, *[networks[1]] * (STEPS - above)] * 2  # two runs
    assert 5 < above < 15


def test_the_network_is_chosen_for_each_image(pair: tuple[Path, Any, VectorField]) -> None:
    """By its noise level; the boundary itself belongs to the first. What guidance costs is counted."""
    whole, x = pair[2].on_data(), noise(n=5)
    levels = torch.tensor([20.0, 7.0, 6.999, 0.1, 8.0], dtype=torch.float64)
    for how, rows in (({}, 10), ({"low_guidance": 1.0}, 8), ({"interval": (0.2, 7.5)}, 7)):
        field = whole.conditioned(prompt="cat", negative_prompt="dog", guidance=4, **how)
        ours = field(levels, x)
        assert field.rows == rows
        for i, level in enumerate(levels):
            assert off(ours[i : i + 1], field(level, x[i : i + 1])) < 1e-5
    by = [field.eps.high, field.eps.low]
    for network, level in ((0, 7.0), (1, 6.999)):
        other = odeddim.VectorField(
            by[network], whole.schedule, predicts="flow", time="index", conditions=whole.conditions
        )
        at = torch.tensor(level, dtype=torch.float64)
        assert torch.equal(other.conditioned(prompt="cat")(at, x), whole.conditioned(prompt="cat")(at, x))


def test_a_second_weight_is_for_a_second_network(
    flow: tuple[Path, Any, VectorField], pair: tuple[Path, Any, VectorField]
) -> None:
    for field in (flow[2], odeddim.load("fashion-mnist-flow")):
        with pytest.raises(InputError, match=r"has one network for all noise levels: leave out low_guidance|no condi"):
            field.conditioned(guidance=5, low_guidance=3)
    with pytest.raises(InputError, match="has one network for all noise levels"):
        flow[2].conditioned_each([Condition(prompt="cat", guidance=5, low_guidance=3)])
    with pytest.raises(InputError, match="low_guidance is a second weight: give it with a guidance other than 1"):
        pair[2].conditioned(prompt="cat", low_guidance=3)
    told = pair[2].conditioned(prompt="cat", guidance=5, low_guidance=3)
    assert told.condition.words == "prompt 'cat', guidance 5 (3 of the network for low noise levels)"
    assert Condition(**told.condition.to_dict()) == told.condition


def test_the_second_network_is_a_part_of_the_model(pair: tuple[Path, Any, VectorField], tmp_path: Path) -> None:
    """Of its hash, of its size, and of what moves."""
    folder, pipeline, field = pair
    assert "a second one below t = 0.875" in field.describe()
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    edited(copy / "model_index.json", boundary_ratio=0.9)
    moved = odeddim.load(copy)
    edited(copy / "model_index.json", boundary_ratio=BOUNDARY)
    wan_network(5).save_pretrained(copy / "transformer_2")
    other = odeddim.load(copy)
    assert len({field.sha256, moved.sha256, other.sha256}) == 3
    double = odeddim.load(pipeline).to("cpu", "float64")
    assert {part.dtype for part in double.eps.parameters()} == {torch.float64}
    assert {*latent_diffusion.parts(folder)} == {"vae", "text_encoder", "tokenizer", "transformer", "transformer_2"}


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, VectorField]:
    """A folder with a CogVideoX, the pipeline that is in it, and what we make of it."""
    folder = tmp_path_factory.mktemp("cogvideox")
    pipeline = cogvideox(folder, diffusers.CogVideoXDDIMScheduler(**PUBLISHED))
    return folder / "model", pipeline, odeddim.load(folder / "model")


def run_of_cogvideox(pipeline: Any, whole: VectorField, guidance: float, shape: tuple[int, ...] = DATA) -> None:
    """The pipeline's run is ours: from α = 0, its first step leads to our top; from there on the runs are one."""
    field, arguments = told(whole, guidance)
    arguments["max_sequence_length"] = 16
    kept = Kept()
    x_T = noise(shape).movedim(2, 1)  # their frames come before the channels
    theirs = pipeline(
        num_inference_steps=25, latents=x_T, output_type="pt", callback_on_step_end=kept, **arguments
    ).frames
    labels = pipeline.scheduler.timesteps[1:].flip(0)
    nodes = torch.cat([torch.zeros(1, dtype=torch.float64), field.schedule.levels[labels]])
    begin = State(kept.states[0].movedim(2, 1) * float((1 + nodes[-1] ** 2).sqrt()), float(nodes[-1]))
    ours = odeddim.decode(begin, "euler", model=field.on_data(), grid=nodes)
    assert off(ours, kept.states[-1].movedim(2, 1)) < 1e-5
    images = to_images(field, ours)
    assert off((images / 2 + 0.5).clamp(0, 1), theirs.movedim(2, 1)) < 1e-5


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_cogvideoxs_run_is_the_pipelines(shifted: tuple[Path, Any, VectorField], guidance: float) -> None:
    _, pipeline, field = shifted
    assert (field.predicts, field.time, field.schedule.kind) == ("v", "index", "preserving")
    assert (field.shape, field.image_shape) == (DATA, (3, 9, 16, 32))
    run_of_cogvideox(pipeline, field, guidance)


ROTARY = {"use_rotary_positional_embeddings": True}
KINDS = {
    "5B": (ROTARY, (4, 3, 4, 8)),
    "5B of another size": ({**ROTARY, "sample_height": 10, "sample_width": 8, "sample_frames": 49}, (4, 13, 10, 8)),
    "1.5": ({**ROTARY, "patch_size_t": 2, "patch_bias": False}, (4, 4, 4, 8)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_cogvideoxs_other_networks(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """1.5 takes two frames in one patch, so that three are four: the first one twice, and left out of the video."""
    config, shape = KINDS[kind]
    pipeline = cogvideox(tmp_path, diffusers.CogVideoXDPMScheduler(**PUBLISHED, snr_shift_scale=1.0), **config)
    field = odeddim.load(tmp_path / "model")
    assert field.shape == shape
    monkeypatch.setattr(pipeline, "scheduler", diffusers.CogVideoXDDIMScheduler(**PUBLISHED, snr_shift_scale=1.0))
    assert odeddim.load(pipeline).schedule == field.schedule
    run_of_cogvideox(pipeline, field, 5.0, (4, 4, 4, 8) if kind == "1.5" else DATA)


def test_the_schedules_are_those_of_the_schedulers() -> None:
    for kind in ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"):
        for more in ({}, {"snr_shift_scale": 1.0}, {**PUBLISHED, "snr_shift_scale": 2.5}, {"beta_schedule": "linear"}):
            scheduler = getattr(diffusers, kind)(**more)
            made = odeddim.Schedule.from_diffusers(scheduler)
            assert (999 if "rescale_betas_zero_snr" in more else 1000) == made.T
            assert off(made.levels, (1 / scheduler.alphas_cumprod[: made.T].double() - 1).sqrt()) < 1e-5
    said = {"_class_name": "CogVideoXDDIMScheduler"}
    assert off(odeddim.Schedule.from_diffusers(said).levels, made.scaled_linear().levels * 3**0.5) < 1e-9
    for wrong in (0, -1.0, "3", True, float("inf")):
        with pytest.raises(InputError, match="snr_shift_scale must be a number above 0"):
            odeddim.Schedule.from_diffusers({**said, "snr_shift_scale": wrong})


def test_wans_autoencoder_is_diffusers(flow: tuple[Path, Any, VectorField]) -> None:
    _, pipeline, field = flow
    mean, spread = (
        torch.tensor(pipeline.vae.config[f"latents_{name}"])[:, None, None, None] for name in ("mean", "std")
    )
    with torch.no_grad():
        data = (pipeline.vae.encode(videos()).latent_dist.mean - mean) / spread
        back = pipeline.vae.decode(data * spread + mean).sample
    assert data.shape[1:] == DATA
    assert off(to_data(field, videos()), data) < 1e-5
    assert off(to_images(field, data), back) < 1e-5


def test_cogvideoxs_autoencoder_is_diffusers(shifted: tuple[Path, Any, VectorField]) -> None:
    _, pipeline, field = shifted
    with torch.no_grad():
        data = 0.7 * pipeline.vae.encode(videos()).latent_dist.mean
        back = pipeline.vae.decode(data / 0.7).sample
    assert off(to_data(field, videos()), data) < 1e-5
    assert off(to_images(field, data), back) < 1e-5


def test_a_network_of_two_frames_a_patch_gets_the_first_twice(tmp_path: Path) -> None:
    config, shape = KINDS["1.5"]
    pipeline = cogvideox(tmp_path, diffusers.CogVideoXDDIMScheduler(**PUBLISHED), **config)
    field = odeddim.load(pipeline)
    data = to_data(field, videos())
    assert data.shape[1:] == shape
    assert torch.equal(data[:, :, 0], data[:, :, 1])
    assert off(data[:, :, 1:], 0.7 * pipeline.vae.encode(videos()).latent_dist.mean.detach()) < 1e-5
    again = to_images(field, data)
    assert again.shape == videos().shape
    assert torch.equal(again, to_images(field, torch.cat([data[:, :, 1:2] * 0, data[:, :, 1:]], dim=2)))


def largest_seen(network: torch.nn.Module) -> tuple[list[int], list[Any]]:
    """The number of values of the largest tensor that an encoder or a decoder is given or gives; and its hooks."""
    seen = [0]

    def look(module: torch.nn.Module, given: Any, answer: Any) -> None:
        parts = (*given, *(answer if isinstance(answer, tuple) else (answer,)))
        seen[0] = max([seen[0], *(part.numel() for part in parts if isinstance(part, Tensor))])

    return seen, [
        part.register_forward_hook(look) for each in (network.encoder, network.decoder) for part in each.modules()
    ]


@pytest.mark.parametrize("kind", ["flow", "shifted"])
def test_the_autoencoder_works_on_a_few_frames_at_a_time(kind: str, request: pytest.FixtureRequest) -> None:
    """No tensor in it grows with the number of frames, and earlier frames do not depend on later ones."""
    codec: Any = request.getfixturevalue(kind)[2].codec
    long, peaks = videos(1, 33), []
    for frames in (17, 33):
        seen, hooks = largest_seen(codec.network)
        data = codec.encode(long[:, :, :frames])
        codec.decode(data)
        peaks.append(seen[0])
        for hook in hooks:
            hook.remove()
    assert peaks[0] == peaks[1] > 0
    assert off(codec.encode(long[:, :, :17]), data[:, :, :5]) < 1e-5
    assert off(codec.decode(data[:, :, :5]), codec.decode(data)[:, :, :17]) < 1e-5


@pytest.mark.parametrize("kind", ["flow", "shifted"])
def test_a_reversible_row_comes_back_exactly(kind: str, request: pytest.FixtureRequest) -> None:
    field = request.getfixturevalue(kind)[2].conditioned(prompt="cat")
    data = to_data(field, videos())
    state = odeddim.encode(videos(), "belm", model=field, steps=6)
    assert state.xbar.shape[1:] == DATA
    assert torch.equal(odeddim.decode(state, model=field.on_data()), data)
    assert torch.equal(odeddim.decode(state, model=field), to_images(field, data))


@pytest.mark.parametrize("kind", ["flow", "pair", "shifted"])
def test_the_object_is_the_folder(kind: str, request: pytest.FixtureRequest) -> None:
    _, pipeline, folder = request.getfixturevalue(kind)
    field = odeddim.load(pipeline)
    assert (field.sha256, field.shape, field.image_sizes) == (folder.sha256, folder.shape, folder.image_sizes)
    ours, theirs = (odeddim.solve(noise(), model=each.conditioned(prompt="cat"), steps=2) for each in (field, folder))
    assert torch.equal(ours, theirs)
    again = pickle.loads(pickle.dumps(field)).conditioned(prompt="cat")
    assert torch.equal(odeddim.solve(noise(), model=again, steps=2), ours)


def test_sizes_of_videos() -> None:
    data = Sizes((16, 13, 60, 90), 2, frames=2)
    images = data.of_images((3, 49, 480, 720))
    assert (images.multiple, images.frames) == (16, 8)
    for frames in (1, 9, 17, 49):
        assert (3, frames, 480, 720) in images
    for shape in ((3, 48, 480, 720), (3, 0, 480, 720), (3, 49, 488, 720), (1, 49, 480, 720), (3, 480, 720)):
        assert shape not in images
    assert images.words((3, 48, 480, 700)) == (
        "3×F×H×W with F 1 more than a multiple of 8, and H and W multiples of 16, the nearest 41×480×688 and 49×480×704"
    )
    assert str(images) == "frames 1 more than multiples of 8, multiples of 16, its own 49×480×720"
    fixed = Sizes((16, 22, 96, 170), 2).of_images((3, 81, 768, 1360))
    assert (3, 81, 768, 1008) in fixed
    assert (3, 89, 768, 1360) not in fixed
    assert fixed.words((3, 80, 768, 1360)).startswith("3×81×H×W with H and W multiples of 16, the nearest 81×768×1360")
    assert str(Sizes((4, 21, 60, 104), 2, 2048, frames=1)) == "multiples of 2 up to 2048, its own 21×60×104"
    assert counterpart((3, 17, 96, 64), (3, 49, 480, 720), (16, 13, 60, 90)) == (16, 5, 12, 8)
    assert counterpart((16, 5, 12, 8), (16, 13, 60, 90), (3, 49, 480, 720)) == (3, 17, 96, 64)


def test_what_is_refused(flow: tuple[Path, Any, VectorField], shifted: tuple[Path, Any, VectorField]) -> None:
    field = flow[2]
    with pytest.raises(InputError, match=r"F 1 more than a multiple of 4, .* not 3×8×16×32 \(channels×frames×height"):
        odeddim.encode(videos(frames=8), model=field)
    with pytest.raises(InputError, match=r"F 1 more than a multiple of 8, .* not 3×13×16×32 \(channels×frames×height"):
        odeddim.sample(1, model=shifted[2], shape=(3, 13, 16, 32))
    with pytest.raises(InputError, match="convolves videos, for which there is no such form"):
        odeddim.load(flow[1]).to("cpu", channels_last=True)
    with pytest.raises(InputError, match=r"takes videos of 3×F×H×W .* not 3×16×32 \(channels×height×width"):
        odeddim.encode(videos()[:, :, 0], model=field)


@pytest.mark.parametrize(
    ("kind", "part", "changes", "says"),
    [
        ("flow", "transformer/config.json", {"image_dim": 16}, "takes an image too"),
        ("flow", "model_index.json", {"_class_name": "WanImageToVideoPipeline"}, "Pipeline also takes an image, which"),
        ("shifted", "transformer/config.json", {"in_channels": 8}, "also needs an image or a mask"),
        ("flow", "transformer/config.json", {"in_channels": 9}, "also needs an image or a mask"),
        ("flow", "transformer/config.json", {"patch_size": [2, 2, 2]}, "patch_size must be 1 frame and a square"),
        ("flow", "transformer/config.json", {"text_dim": 25}, "has text_dim 25, but its text encoders return width 24"),
        ("flow", "model_index.json", {"boundary_ratio": 0.9}, "has a boundary_ratio but no transformer_2"),
        ("pair", "model_index.json", {"boundary_ratio": None}, "must be a number between them, not None"),
        ("pair", "model_index.json", {"boundary_ratio": 1.5}, "must be a number between them, not 1.5"),
        ("pair", "transformer_2/config.json", {"text_dim": 8}, "text_dim is 24, but that of transformer_2 is 8: copy"),
        ("pair", "transformer_2/config.json", {"num_layers": 2}, "does not match"),
        ("pair", "scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "the network predicts a flow"),
        ("flow", "vae/config.json", {"z_dim": 5}, "does not match the expected network"),
        ("flow", "vae/config.json", {"latents_std": [1.0, 2.0]}, "must be 1 or 4 numbers"),
        ("shifted", "transformer/config.json", {"ofs_embed_dim": 8}, "takes an image too"),
        ("shifted", "transformer/config.json", {"sample_frames": None}, "must give in_channels and sample_frames, sam"),
        (
            "shifted",
            "transformer/config.json",
            {"temporal_compression_ratio": 0},
            "no network can be built",
        ),
    ],
)
def test_pipelines_that_it_does_not_take(
    kind: str, part: str, changes: dict[str, Any], says: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(request.getfixturevalue(kind)[0], tmp_path / "copy"))
    edited(copy / part, **changes)
    with pytest.raises(InputError, match=says) as error:
        odeddim.load(copy)
    assert str(copy) in str(error.value)
    assert "\n" not in str(error.value)


def test_wan_with_patches_of_pixels_and_a_label_for_each_of_its_own(tmp_path: Path) -> None:
    """As Wan 2.2's 5B: its autoencoder takes squares of 2×2 pixels as channels, and from text all labels are one."""
    codec = wan_codec(
        is_residual=True, patch_size=2, in_channels=12, out_channels=12, scale_factor_spatial=8, dim_mult=[1, 1, 1]
    )
    pipeline = wan(tmp_path, diffusers.FlowMatchEulerDiscreteScheduler(), vae=codec, expand_timesteps=True)
    whole = odeddim.load(pipeline)
    assert (whole.shape, whole.image_shape) == ((4, 21, 60, 104), (3, 81, 480, 832))
    run_of_wan(pipeline, whole, 5.0, (4, 3, 2, 4))
    with torch.no_grad():
        z = codec.encode(videos()).latent_dist.mean
    mean, spread = (torch.tensor(codec.config[f"latents_{name}"])[:, None, None, None] for name in ("mean", "std"))
    assert off(to_data(whole, videos()), (z - mean) / spread) < 1e-5


# On the command line.


def test_both_guidances_on_the_command_line(pair: tuple[Path, Any, VectorField], here: Path, run: Run) -> None:
    folder, _, field = pair
    how = ("--model", folder, "--prompt", "cat", "--guidance", 4, "--low-guidance", 3)
    small = ("--size", "3,9,16,32", "--steps", 4, "--grid", "flow:3", "--solver", "euler")
    code, _, err = run("sample", "-n", 1, "-o", "s.npz", *how, *small)
    assert code == 0, err
    told = field.conditioned(prompt="cat", guidance=4, low_guidance=3)
    mine = odeddim.sample(1, "euler", model=told, shape=(3, 9, 16, 32), steps=4, grid="flow:3")
    assert off(open_images(Path("s.npz")).read(), mine) < 1e-5
    other = odeddim.sample(1, "euler", model=field.conditioned(prompt="cat", guidance=4), shape=(3, 9, 16, 32), steps=4)
    assert off(other, mine) > 1e-3


@pytest.mark.parametrize("kind", ["flow", "shifted"])
def test_clips_to_latents_and_back(kind: str, here: Path, run: Run, request: pytest.FixtureRequest) -> None:
    folder, _, field = request.getfixturevalue(kind)
    clips = here / "clips"
    for name, video in zip(("cat/walk", "dog"), to_bytes(videos()).permute(0, 2, 3, 4, 1), strict=True):
        (clips / name).mkdir(parents=True)
        for number, frame in enumerate(video.numpy()):
            PIL.Image.fromarray(np.ascontiguousarray(frame)).save(clips / name / f"{number}.png")
    how = ("--model", folder, "--prompt", "cat", "--steps", 4)
    code, out, err = run("encode", clips, "-o", "z.h5", *how)
    assert code == 0, err
    x_0 = open_images(clips, prepare=odeddim.Preparation(frames="video")).read()
    with LatentFile(Path("z.h5")) as file:
        assert (file.shape, list(file.names)) == (DATA, ["cat/walk", "dog"])
        assert file.provenance.details["network_batch"] == 1
        told = field.conditioned(prompt="cat")
        assert off(file.read(0, 2).xbar, odeddim.encode(x_0, "belm", model=told, steps=4).xbar) < 1e-4
    code, out, err = run("decode", "z.h5", "-o", "out", "--format", "png")
    assert code == 0, err
    assert "2 videos in out" in out
    again = open_images(Path("out"), prepare=odeddim.Preparation(frames="video"))
    assert list(again.names) == ["cat/walk", "dog"]
    assert torch.equal(to_bytes(again.read()), to_bytes(field.codec.decode(field.codec.encode(x_0))))
    assert re.search("a folder of videos\n *videos *2\n", run("inspect", "out")[1])
    code, out, err = run("decode", "z.h5", "-o", "out.h5")
    assert code == 0, err
    assert torch.equal(to_bytes(open_images(Path("out.h5")).read()), to_bytes(again.read()))
    if kind == "flow":
        assert run("verify", "z.h5")[0] == 0
        with LatentFile(Path("z.h5")) as file:  # certified in place
            assert float(file.figures()["round_trip"].max()) < 1e-4
    for arguments, says in (
        (
            ("encode", clips, "-o", "y.h5", *how, "--frames", 4),
            "are 3×4×16×32 .*: --frames N takes the first N",
        ),
        (("encode", clips, "-o", "y.h5", *how, "--frames", 10), "has 9 frames, fewer than --frames 10"),
        (("decode", "z.h5", "-o", "s.png"), r"s\.png would show images, and these are videos"),
        (("decode", "z.h5", "-o", "o", "--format", "jpeg"), "format of videos 'jpeg'"),
        (
            ("interpolate", "z.h5", "--pair", 0, 1, "-n", 3, "--sheet", "p.png"),
            "would show images, and these are videos",
        ),
        (("sample", "-n", 1, "-o", "s", *how, "--size", "3,10,16,32"), "makes videos of 3×F×H×W .*not 3×10×16×32"),
    ):
        code, out, err = run(*arguments)
        assert code == 2, out
        assert re.search(says, err), err
    code, out, err = run("sample", "-n", 1, "-o", "s", *how, "--size", "3,5,16,16" if kind == "flow" else "3,9,16,16")
    assert code == 0, err
    assert open_images(Path("s"), prepare=odeddim.Preparation(frames="video")).shape[2:] == (16, 16)
