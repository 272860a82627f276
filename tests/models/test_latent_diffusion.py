"""Pipelines of latent models against diffusers itself: its networks, its samplers' whole runs, its autoencoders.

The pipelines are tiny, with random weights everywhere, and saved by diffusers. Their own __call__ is what whole
trajectories are compared with: the nodes are those of its scheduler, the x_T is the same.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from packaging.version import Version
from torch import Tensor

os.environ["HF_HUB_OFFLINE"] = "1"
diffusers = pytest.importorskip("diffusers", reason="diffusers is installed by the test extra")
transformers = pytest.importorskip("transformers", reason="transformers is installed by the test extra")
tokenizers = pytest.importorskip("tokenizers", reason="transformers brings it")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

from safetensors.torch import save_file  # noqa: E402
from support import in_memory, tiles  # noqa: E402

import odeddim  # noqa: E402
from odeddim import InputError, State, VectorField  # noqa: E402
from odeddim.api import to_data, to_images  # noqa: E402
from odeddim.checks.certificate import certify, rms  # noqa: E402
from odeddim.latents.latent_file import LatentFile  # noqa: E402
from odeddim.models import components  # noqa: E402
from odeddim.models.formats import latent_diffusion  # noqa: E402
from odeddim.models.networks import autoencoder  # noqa: E402
from odeddim.ode.guidance import rescaled  # noqa: E402
from odeddim.plans import Plan, integrate  # noqa: E402
from odeddim.solvers import get  # noqa: E402
from odeddim.storage.images import open_images  # noqa: E402
from odeddim.storage.png import to_bytes  # noqa: E402

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
AS_SD = {**SD, "set_alpha_to_one": False, "steps_offset": 1}
STEPS = 20
Run = Callable[..., tuple[int, str, str]]


def stirred(network: Any, seed: int) -> Any:
    """A network none of whose weights is what it was made with: some begin at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in network.parameters():
            part.add_(0.1 * torch.randn(part.shape, generator=generator))
    return network.eval()


def tokenizer(folder: Path) -> Any:
    """CLIP's, of 56 tokens: letters, and cat."""
    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    return transformers.CLIPTokenizer(*files, model_max_length=8)


def clip(seed: int, *, projects: bool = False) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=56, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=8, projection_dim=12, bos_token_id=54, eos_token_id=55, pad_token_id=55,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel
    return stirred(kind(config), seed)


SHAPE_OF_CODEC = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "block_out_channels": (8, 16), "norm_num_groups": 4,
}  # fmt: skip


def kl(seed: int = 2, **more: Any) -> Any:
    return stirred(diffusers.AutoencoderKL(**SHAPE_OF_CODEC, latent_channels=4, sample_size=16, **more), seed)


def text_unet(**more: Any) -> Any:
    config: dict[str, Any] = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16), "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "cross_attention_dim": 16, "norm_num_groups": 4,
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 2,
    }  # fmt: skip
    return stirred(diffusers.UNet2DConditionModel(**{**config, **more}), 3)


def saved(pipeline: Any, folder: Path) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder / "model")
    return pipeline


def stable_diffusion(folder: Path, scheduler: Any, **codec: Any) -> Any:
    return saved(
        diffusers.StableDiffusionPipeline(
            vae=kl(**codec), text_encoder=clip(1), tokenizer=tokenizer(folder / "tokens"), unet=text_unet(),
            scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        ),
        folder,
    )  # fmt: skip


def stable_diffusion_xl(folder: Path) -> Any:
    unet = text_unet(
        cross_attention_dim=32, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 12,
    )  # fmt: skip
    return saved(
        diffusers.StableDiffusionXLPipeline(
            vae=kl(scaling_factor=0.13025), text_encoder=clip(1), text_encoder_2=clip(4, projects=True),
            tokenizer=tokenizer(folder / "1"), tokenizer_2=tokenizer(folder / "2"), unet=unet,
            scheduler=diffusers.DDIMScheduler(**AS_SD), add_watermarker=False,
        ),
        folder,
    )  # fmt: skip


def t5(folder: Path) -> dict[str, Any]:
    """A T5 of 40 numbers a token, and its tokenizer."""
    config = transformers.T5Config(vocab_size=16, d_model=40, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    pieces = ["<pad>", "</s>", "<unk>", "▁cat", "▁", *"catdog"]
    vocab = [(piece, -float(i)) for i, piece in enumerate(pieces)]
    if int(transformers.__version__.split(".")[0]) >= 5:
        words = transformers.T5TokenizerFast(vocab=vocab, extra_ids=0)
    else:  # which makes one from a file of sentencepiece only
        made = tokenizers.Tokenizer(tokenizers.models.Unigram(vocab, unk_id=2))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
        made.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
        words = transformers.T5TokenizerFast(tokenizer_object=made, extra_ids=0)
    return {"text_encoder_3": stirred(transformers.T5EncoderModel(config), 8), "tokenizer_3": words}


def stable_diffusion_3(folder: Path, **third: Any) -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=40, caption_projection_dim=16, pooled_projection_dim=24, out_channels=4,
        pos_embed_max_size=8,
    )  # fmt: skip
    return saved(
        diffusers.StableDiffusion3Pipeline(
            vae=kl(scaling_factor=1.5305, shift_factor=0.0609), transformer=stirred(transformer, 3),
            text_encoder=clip(1, projects=True), text_encoder_2=clip(4, projects=True),
            tokenizer=tokenizer(folder / "1"), tokenizer_2=tokenizer(folder / "2"),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
            **third,
        ),
        folder,
    )  # fmt: skip


def dit(folder: Path) -> Any:
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=1000, norm_num_groups=4,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    pipeline = diffusers.DiTPipeline(transformer=stirred(transformer, 3), vae=kl(), scheduler=scheduler)
    return saved(pipeline, folder)


def plain_unet(**more: Any) -> Any:
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2, norm_num_groups=4, **more,
    )  # fmt: skip
    return stirred(unet, 3)


def ldm(folder: Path) -> Any:
    codec = diffusers.VQModel(**SHAPE_OF_CODEC, latent_channels=3, num_vq_embeddings=64, scaling_factor=0.7)
    scheduler = diffusers.DDIMScheduler(**SD)
    return saved(diffusers.LDMPipeline(vqvae=stirred(codec, 2), unet=plain_unet(), scheduler=scheduler), folder)


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, VectorField]:
    """A folder with a Stable Diffusion, the pipeline that is in it, and what we make of it."""
    folder = tmp_path_factory.mktemp("sd")
    pipeline = stable_diffusion(folder, diffusers.DDIMScheduler(**AS_SD))
    return folder / "model", pipeline, odeddim.load(folder / "model")


@pytest.fixture
def copy(sd: tuple[Path, Any, VectorField], tmp_path: Path) -> Path:
    """The folder again, to be spoilt."""
    return Path(shutil.copytree(sd[0], tmp_path / "copy"))


def edited(path: Path, **changes: Any) -> None:
    """A JSON file with other settings; None takes one out."""
    settings = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))


def at(field: VectorField, t: float) -> tuple[Tensor, float]:
    """σ of a label, and √(1+σ²)."""
    sigma = field.schedule.sigma(torch.tensor(t, dtype=torch.float64))
    return sigma, float((1 + sigma**2).sqrt())


def off(ours: Tensor, theirs: Tensor) -> float:
    """How far apart, over the size."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def noise(shape: tuple[int, ...] = (4, 8, 8), n: int = 2) -> Tensor:
    return odeddim.noise(n, shape, seed=5)


def images(n: int = 2, side: int = 16) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(6)) * 2 - 1


def nodes_of(field: VectorField, pipeline: Any, first: float | None) -> Tensor:
    """Rising nodes at the labels of the pipeline's scheduler, with one before them."""
    labels = pipeline.scheduler.timesteps.flip(0)
    begin = field.schedule.levels[:1] if first is None else torch.tensor([first], dtype=torch.float64)
    return torch.cat([begin, field.schedule.levels[labels]])


# The network.


@pytest.mark.parametrize("t", [0, 7, 999, 0.25, 500.5])
def test_sds_network_is_diffusers_with_prompts_and_guidance(sd: tuple[Path, Any, VectorField], t: float) -> None:
    _, pipeline, field = sd
    texts = pipeline.encode_prompt("a cat", "cpu", 1, True, "dog")
    sigma, scale = at(field, t)
    x = noise()
    with torch.no_grad():
        told, untold = (
            pipeline.unet(x, torch.tensor(t), encoder_hidden_states=each.expand(2, -1, -1)).sample for each in texts
        )
    assert off(field.conditioned(prompt="a cat")(sigma, scale * x), told) < 1e-5
    guided = field.conditioned(prompt="a cat", negative_prompt="dog", guidance=5)
    assert off(guided(sigma, scale * x), untold + 5 * (told - untold)) < 1e-5
    assert off(told, untold) > 0.01  # or prompts would prove nothing


def test_without_a_prompt_it_is_the_empty_one(sd: tuple[Path, Any, VectorField]) -> None:
    field, (sigma, scale), x = sd[2], at(sd[2], 300), noise()
    assert torch.equal(field(sigma, scale * x), field.conditioned(prompt="")(sigma, scale * x))


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ({"label": 3}, "prompts and no classes"),
        ({"prompt": "cat", "negative_prompt": "dog"}, "guidance other than 1"),
        ({"prompt": "a b c d e f g h"}, "10 tokens.*takes at most 8: shorten it"),
    ],
)
def test_conditions_that_make_no_sense(sd: tuple[Path, Any, VectorField], condition: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        sd[2].conditioned(**condition)


# Whole runs.


@pytest.mark.parametrize(("guidance", "rescale"), [(1.0, 0.0), (5.0, 0.0), (5.0, 0.7)])
def test_sds_trajectory_is_the_pipelines(sd: tuple[Path, Any, VectorField], guidance: float, rescale: float) -> None:
    _, pipeline, field = sd
    negative = {} if guidance == 1 else {"negative_prompt": "dog"}
    theirs = pipeline(
        prompt=["a cat"] * 2, guidance_scale=guidance, guidance_rescale=rescale, num_inference_steps=STEPS,
        latents=noise(), eta=0.0, output_type="latent", **{key: [value] * 2 for key, value in negative.items()},
    ).images  # fmt: skip
    field = field.conditioned(prompt="a cat", guidance=guidance, guidance_rescale=rescale, **negative)
    nodes = nodes_of(field, pipeline, None)
    assert len(nodes) == STEPS + 1
    ours = odeddim.solve(noise(), "euler", model=field.on_data(), grid=nodes, end="sigma_min")
    scale = float(pipeline.scheduler.alphas_cumprod[0].sqrt())  # where set_alpha_to_one=False ends
    assert off(scale * ours, theirs) < 1e-5
    whole = odeddim.solve(noise(), "euler", model=field, grid=nodes, end="sigma_min")
    assert off(whole, pipeline.vae.decode(ours / pipeline.vae.config.scaling_factor).sample) < 1e-5


@pytest.mark.parametrize("size", [(1, 3, 3), (4, 7, 5), (13,), (2, 3, 4, 5)])
def test_guidance_rescale_is_the_pipelines(size: tuple[int, ...]) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    random = torch.Generator().manual_seed(0)
    told, guided = torch.randn(4, *size, generator=random), 3 * torch.randn(4, *size, generator=random) + 0.5
    for phi in (0.3, 0.7, 1.0):
        theirs = rescale_noise_cfg(guided, told, guidance_rescale=phi)
        assert float((rescaled(guided, told, phi) - theirs).abs().max()) < 1e-6 * float(theirs.abs().max())
        guided64, told64 = guided.double(), told.double()
        theirs = rescale_noise_cfg(guided64, told64, guidance_rescale=phi)
        assert torch.allclose(rescaled(guided64, told64, phi), theirs, rtol=1e-13, atol=1e-13)


def test_v_prediction_to_the_end_of_noise(tmp_path: Path) -> None:
    """As Stable Diffusion 2 with zero terminal SNR: its first step leaves α = 0; from there on the runs are one."""
    scheduler = diffusers.DDIMScheduler(
        **AS_SD, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    pipeline = stable_diffusion(tmp_path, scheduler)
    field = odeddim.load(tmp_path / "model").conditioned(prompt="cat", guidance=3)
    assert field.predicts == "v"
    states: list[Tensor] = []

    def keep(pipe: Any, i: int, t: Any, state: dict[str, Any]) -> dict[str, Any]:
        states.append(state["latents"])
        return state

    pipeline(
        prompt=["cat"] * 2, guidance_scale=3.0, num_inference_steps=STEPS, latents=noise(), output_type="latent",
        callback_on_step_end=keep,
    )  # fmt: skip
    nodes = torch.cat([field.schedule.levels[:1], field.schedule.levels[pipeline.scheduler.timesteps[1:].flip(0)]])
    begin = states[0] * float((1 + nodes[-1] ** 2).sqrt())
    ours = integrate(field, State(begin, float(nodes[-1])), Plan(get("euler"), nodes))
    assert off(ours.x, states[-1]) < 1e-4
    assert bool(torch.isfinite(odeddim.sample(1, "ab3", model=field, steps=5)).all())  # from our own top too


def test_sdxl(tmp_path: Path) -> None:
    pipeline = stable_diffusion_xl(tmp_path)
    field = odeddim.load(tmp_path / "model")
    assert any("of the size of the run, not cropped" in words for words in field.details["assumed"])
    for negative in (None, "dog"):
        theirs = pipeline(
            prompt=["cat"] * 2, negative_prompt=None if negative is None else [negative] * 2, guidance_scale=4.0,
            num_inference_steps=STEPS, latents=noise(), output_type="latent",
        ).images  # fmt: skip
        told = field.conditioned(prompt="cat", negative_prompt=negative, guidance=4).on_data()
        ours = odeddim.solve(noise(), "euler", model=told, grid=nodes_of(field, pipeline, None), end="sigma_min")
        assert off(ours * float(pipeline.scheduler.alphas_cumprod[0].sqrt()), theirs) < 1e-5
    sigma, scale = at(field, 300)
    x = noise()
    nothing, empty = (it(sigma, scale * x) for it in (field, field.conditioned(prompt="")))
    assert off(nothing, empty) > 1e-3  # zeros, as its pipeline says, and not the empty prompt
    edited(tmp_path / "model" / "model_index.json", force_zeros_for_empty_prompt=False)
    other = odeddim.load(tmp_path / "model")
    assert torch.equal(other(sigma, scale * x), empty)


@pytest.mark.parametrize("third", [lambda folder: {"text_encoder_3": None, "tokenizer_3": None}, t5])
def test_sd3_with_and_without_its_third_encoder(tmp_path: Path, third: Callable[[Path], dict[str, Any]]) -> None:
    parts = third(tmp_path)
    if not parts["text_encoder_3"] and Version(diffusers.__version__) < Version("0.36"):
        pytest.skip("before 0.36 the missing encoder gives as many zeros as CLIP has tokens, since then 256")
    pipeline = stable_diffusion_3(tmp_path, **parts)
    field = odeddim.load(tmp_path / "model").conditioned(prompt="cat", negative_prompt="dog", guidance=4)
    assert (field.predicts, field.time, field.schedule.kind) == ("flow", "index", "flow")
    times = torch.linspace(0.99, 0.05, STEPS).tolist()
    theirs = pipeline(
        prompt=["cat"] * 2, negative_prompt=["dog"] * 2, guidance_scale=4.0, sigmas=times, latents=noise(),
        output_type="latent",
    ).images  # fmt: skip
    t = pipeline.scheduler.sigmas.double()
    nodes = (t / (1 - t)).flip(0)
    begin = noise() / float(1 - t[0])
    ours = odeddim.decode(State(begin, float(nodes[-1])), "euler", model=field.on_data(), grid=nodes)
    assert off(ours, theirs) < 1e-5
    z = pipeline.vae.encode(images()).latent_dist.mean
    assert off(to_data(field, images()), (z - 0.0609) * 1.5305) < 1e-5
    edited(tmp_path / "model" / "transformer" / "config.json", joint_attention_dim=24)
    damaged(tmp_path / "model", "takes texts of width 24, but the text encoders return 32")


def test_dit_with_classes_none_and_learned_variances(tmp_path: Path) -> None:
    pipeline = dit(tmp_path)
    field = odeddim.load(tmp_path / "model")
    for guidance in (1.0, 4.0):
        theirs = pipeline(
            class_labels=[207, 207], guidance_scale=guidance, num_inference_steps=STEPS, output_type="pt",
            generator=torch.Generator().manual_seed(7),
        ).images  # fmt: skip
        x_T = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))
        told = field.conditioned(207, guidance=guidance)
        ours = odeddim.solve(x_T, "euler", model=told, grid=nodes_of(field, pipeline, 0.0))
        theirs = torch.as_tensor(theirs)
        theirs = theirs if theirs.shape == ours.shape else theirs.movedim(-1, 1)  # as old versions have it
        assert off((ours / 2 + 0.5).clamp(0, 1), theirs) < 1e-5
    with pytest.raises(InputError, match="takes classes 0 to 999, not 1001"):
        field.conditioned(1001)
    # As its published files have it: another name, and settings that its class does not know.
    where = tmp_path / "model"
    edited(where / "transformer" / "config.json", _class_name="Transformer2DModel", attention_type="default")
    edited(where / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    sigma, scale = at(field, 500.5)
    again = odeddim.load(where)
    assert torch.equal(again(sigma, noise() * scale), field(sigma, noise() * scale))


def test_latent_diffusion_without_condition_on_a_vq_model(tmp_path: Path) -> None:
    pipeline = ldm(tmp_path)
    field = odeddim.load(tmp_path / "model")
    theirs = pipeline(
        batch_size=2, num_inference_steps=STEPS, output_type="np", generator=torch.Generator().manual_seed(7)
    ).images
    x_T = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(7))
    ours = odeddim.solve(x_T, "euler", model=field, grid=nodes_of(field, pipeline, 0.0))
    assert off((ours / 2 + 0.5).clamp(0, 1), torch.from_numpy(theirs).movedim(-1, 1)) < 1e-5
    assert off(to_data(field, images()), 0.7 * pipeline.vqvae.encode(images()).latents) < 1e-5
    assert field.conditions is None


def test_latent_diffusion_with_classes_on_the_mean_of_a_kl_model(tmp_path: Path) -> None:
    ldm(tmp_path)
    where = tmp_path / "model"
    network = plain_unet(num_class_embeds=7)
    codec = stirred(diffusers.AutoencoderKL(**SHAPE_OF_CODEC, latent_channels=3), 2)
    network.save_pretrained(where / "unet")
    codec.save_pretrained(where / "vae")
    shutil.rmtree(where / "vqvae")
    edited(where / "model_index.json", vqvae=None, vae=["diffusers", "AutoencoderKL"])
    field = odeddim.load(where)
    sigma, scale = at(field, 500.5)
    x = noise((3, 8, 8))
    for label in (0, 6):
        theirs = network(x, torch.tensor(500.5), class_labels=torch.tensor([label] * 2)).sample
        assert off(field.conditioned(label)(sigma, scale * x), theirs.detach()) < 1e-5
    assert off(to_data(field, images()), codec.encode(images()).latent_dist.mean.detach() * 0.18215) < 1e-5
    with pytest.raises(InputError, match=r"needs a class: give label=... from 0 to 6"):
        field(sigma, scale * x)
    with pytest.raises(InputError, match="has no unconditional mode"):
        field.conditioned(3, guidance=2)


# The autoencoder.


def test_images_become_the_mean_and_never_a_sample(sd: tuple[Path, Any, VectorField]) -> None:
    _, pipeline, field = sd
    assert (field.shape, field.image_shape) == ((4, 8, 8), (3, 16, 16))
    with torch.no_grad():
        data = pipeline.vae.encode(images()).latent_dist.mean * 0.18215
        back = pipeline.vae.decode(data / 0.18215).sample
    assert off(to_data(field, images()), data) < 1e-5
    assert off(to_images(field, data), back) < 1e-5


def test_shift_scale_and_means_of_each_channel(tmp_path: Path) -> None:
    network = kl()
    network.save_pretrained(tmp_path)
    z = network.encode(images()).latent_dist.mean.detach()
    mean, spread = torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor([1.0, 2.0, 0.5, 3.0])
    each = {"latents_mean": mean.tolist(), "latents_std": spread.tolist(), "scaling_factor": 0.5}
    for changes, data in (
        ({"scaling_factor": 0.36, "shift_factor": 0.1}, (z - 0.1) * 0.36),
        (each, (z - mean[:, None, None]) / spread[:, None, None] * 0.5),
    ):
        edited(tmp_path / "config.json", **{"shift_factor": None, **changes})
        codec, _, assumed = autoencoder.read(tmp_path, (4, 8, 8))
        assert off(codec.encode(images()), data) < 1e-5
        with torch.no_grad():
            assert off(codec.decode(data), network.decode(z).sample) < 1e-5
        assert assumed == []
    before = codec.sha256
    edited(tmp_path / "config.json", scaling_factor=None, latents_mean=None, latents_std=None)
    codec, _, assumed = autoencoder.read(tmp_path, (4, 8, 8))
    assert off(codec.encode(images()), z * 0.18215) < 1e-5
    assert assumed == ["the autoencoder's scaling factor 0.18215, which its config does not give"]
    assert codec.sha256 != before  # other units are another codec


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scaling_factor": 0}, "not 0"),
        ({"scaling_factor": float("nan")}, "NaN is not a valid setting"),
        ({"scaling_factor": "0.18215"}, "not '0.18215'"),
        ({"shift_factor": [0.1, 0.2]}, r"1 or 4 numbers"),
        ({"latents_mean": [0.0] * 4}, "or neither of the two"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "shift_factor": 1.0}, "or neither of the two"),
        (
            {"_class_name": "AutoencoderTiny"},
            "describes a AutoencoderTiny, but odeddim supports only AutoencoderKL, VQModel, ",
        ),
        ({"block_out_channels": "many"}, "no network can be built"),
    ],
)
def test_autoencoders_that_contradict_themselves(copy: Path, changes: dict[str, Any], says: str) -> None:
    edited(copy / "vae" / "config.json", **changes)
    with pytest.raises(InputError, match=says) as error:
        odeddim.load(copy)
    assert str(copy / "vae") in str(error.value)


def test_it_runs_in_float32_image_by_image_on_the_models_device(
    sd: tuple[Path, Any, VectorField], monkeypatch: pytest.MonkeyPatch
) -> None:
    field = odeddim.load(sd[0], dtype=torch.float64)
    codec: Any = field.codec
    assert field.dtype == torch.float64
    assert next(codec.network.parameters()).dtype == torch.float32
    low, exact = odeddim.load(sd[0], dtype=torch.bfloat16), at(sd[2], 500)
    assert off(low(exact[0], exact[1] * noise()), field(exact[0], exact[1] * noise())) < 0.05
    data = codec.encode(images(3).double())
    assert data.dtype == torch.float64
    assert torch.equal(data.float(), sd[2].codec.encode(images(3)))  # type: ignore[union-attr]
    for i in range(3):
        assert torch.equal(codec.encode(images(3)[i : i + 1])[0].double(), data[i])
        assert torch.equal(codec.decode(data[i : i + 1])[0], codec.decode(data)[i])
    twin = field.conditioned(prompt="cat").on_data()
    assert twin.codec is None
    assert field.codec is codec
    monkeypatch.setattr("odeddim.ode.field.device_of", torch.device)  # which would try it out: "meta" holds no numbers
    field.to("meta")
    assert {part.device.type for part in (*codec.network.parameters(), codec._shift, codec._scale)} == {"meta"}


# Images go in and come out, in Python.


def test_encode_takes_images_and_decode_gives_them(sd: tuple[Path, Any, VectorField]) -> None:
    _, pipeline, field = sd
    seen: list[int] = []
    kept = field.codec
    assert kept is not None

    class Watched:
        image_shape = kept.image_shape

        def encode(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return kept.encode(x)

        def decode(self, x: Tensor) -> Tensor:
            return kept.decode(x)

    watched = field.on_data()
    watched.codec = Watched()  # type: ignore[assignment]
    data = kept.encode(images())
    state = odeddim.encode(images(), "belm", model=watched, steps=10)
    assert seen == [2]  # once
    bare = field.on_data()
    assert torch.equal(state.xbar, odeddim.encode(data, "belm", model=bare, steps=10).xbar)
    assert torch.equal(odeddim.decode(state, "belm", model=watched, steps=10), kept.decode(data))
    again, figures = certify(images(), "belm", model=watched, steps=10)
    assert seen == [2, 2]
    assert torch.equal(again.xbar, state.xbar)
    assert float(figures["round_trip"].max()) < 1e-6
    x_T = odeddim.noise(2, (4, 8, 8), seed=1)
    sampled = odeddim.sample(2, "ab3", seed=1, model=field, steps=5)
    assert torch.equal(sampled, odeddim.solve(x_T, "ab3", model=field, steps=5))
    assert torch.equal(sampled, kept.decode(odeddim.solve(x_T, "ab3", model=bare, steps=5)))
    assert len(odeddim.computed_grid(images(), "euler", 3, model=watched)) == 4
    assert seen == [2, 2, 2]


def test_images_and_latents_of_sizes_that_it_does_not_take(sd: tuple[Path, Any, VectorField]) -> None:
    with pytest.raises(InputError, match=r"takes images of 3×H×W with H and W multiples of 4, .*not 3×10×10"):
        odeddim.encode(images(side=10), model=sd[2])
    with pytest.raises(InputError, match=r"takes latents of 4×H×W with H and W multiples of 2, .*not 3×8×8"):
        odeddim.solve(noise((3, 8, 8)), model=sd[2])
    with pytest.raises(InputError, match="image 1 of the batch holds NaN"):
        odeddim.encode(torch.stack([images()[0], images()[0] * torch.nan]), model=sd[2])


# What is in the folder.


def test_what_was_found_is_said(sd: tuple[Path, Any, VectorField]) -> None:
    folder, pipeline, field = sd
    count = sum(part.numel() for part in pipeline.unet.parameters())
    assert field.name == str(folder.resolve())
    assert len(field.sha256) == 64
    assert field.details["found"].startswith(
        f"StableDiffusionPipeline, UNet2DConditionModel of {count} parameters, AutoencoderKL with data 0.18215·z, "
        "DDIMScheduler"
    )
    assert (field.details["weights"], field.details["assumed"]) == ("as saved", [])
    assert field.details["architecture"]["cross_attention_dim"] == 16
    json.dumps(field.details)
    assert odeddim.load(folder / "model_index.json").sha256 == field.sha256


def test_it_takes_no_other_formats_files(sd: tuple[Path, Any, VectorField], tmp_path: Path) -> None:
    assert latent_diffusion.matches(sd[0])
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}')
    for path in (tmp_path, sd[0] / "unet", sd[0] / "vae", tmp_path / "nothing", Path("fashion-mnist")):
        assert not latent_diffusion.matches(path)
    (tmp_path / "model_index.json").write_bytes(b"\xff\xfe\x00")
    assert not latent_diffusion.matches(tmp_path)


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
def test_the_hash_is_of_every_parts_weights(copy: Path, sd: tuple[Path, Any, VectorField], part: str) -> None:
    path = components.files_of(copy / part)[0]
    state = in_memory(path)
    name = sorted(name for name in state if state[name].is_floating_point())[0]
    save_file({**state, name: state[name] + 1e-3}, path)
    assert odeddim.load(copy).sha256 != sd[2].sha256


def test_it_is_of_the_scale_of_the_data_too(copy: Path, sd: tuple[Path, Any, VectorField]) -> None:
    edited(copy / "vae" / "config.json", scaling_factor=0.13)
    assert odeddim.load(copy).sha256 != sd[2].sha256


def test_weights_in_other_files(copy: Path, sd: tuple[Path, Any, VectorField]) -> None:
    """In pieces, as a pickle of tensors, in 16 bits, and under the names of older versions: it is the same model."""
    _, pipeline, field = sd
    sigma, scale = at(field, 321.5)
    expected, data = field(sigma, noise() * scale), to_data(field, images())

    def check(within: float) -> None:
        again = odeddim.load(copy)
        assert off(again(sigma, noise() * scale), expected) <= within
        assert off(to_data(again, images()), data) <= within

    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    pipeline.unet.save_pretrained(copy / "unet", max_shard_size="100KB")
    assert len(components.files_of(copy / "unet")) > 1
    check(0)
    for path in (copy / "unet").glob("*.safetensors*"):
        path.unlink()
    torch.save(pipeline.unet.state_dict(), copy / "unet" / "diffusion_pytorch_model.bin")

    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    olden = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = in_memory(path)
    for now, then in olden.items():
        state = {name.replace(f".{now}.", f".{then}."): part for name, part in state.items()}
    assert sum("proj_attn" in name for name in state) == 4
    save_file(state, path)

    path = copy / "text_encoder" / "model.safetensors"
    plain = {name.removeprefix("text_model."): part for name, part in in_memory(path).items()}
    ids = {"embeddings.position_ids": torch.arange(8)[None]}
    for prefix in ("", "text_model."):
        save_file({prefix + name: part for name, part in {**plain, **ids}.items()}, path)
        check(0)
    path.unlink()
    torch.save({name: part.half() for name, part in plain.items()}, path.with_name("pytorch_model.fp16.bin"))
    check(1e-2)
    with pytest.raises(AssertionError):  # that was from the file in 16 bits
        check(1e-6)


def damaged(copy: Path, says: str, *names: str) -> None:
    """Loading is one sentence that says this and names the file."""
    with pytest.raises(InputError, match=says) as error:
        odeddim.load(copy)
    text = str(error.value)
    assert "\n" not in text
    assert all(str(copy / name) in text for name in names), text


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("tokenizer", "has no tokenizer, which the network needs"),
        ("text_encoder", "has no text_encoder, which the network needs"),
        ("vae", "cannot be read .*copy the whole folder"),
        ("unet", "cannot be read .*copy the whole folder"),
        ("scheduler", r"scheduler_config.json cannot be read \(No such file or directory\): copy the whole folder"),
        ("unet/config.json", "config.json cannot be read"),
        ("unet/diffusion_pytorch_model.safetensors", "holds no weights"),
        ("vae/diffusion_pytorch_model.safetensors", "holds no weights"),
        ("tokenizer/tokenizer.json", "has no vocabulary"),
    ],
)
def test_missing_parts(copy: Path, part: str, says: str) -> None:
    if part == "tokenizer/tokenizer.json" and not (copy / part).exists():
        part = "tokenizer/vocab.json"  # as transformers wrote it before version 5
    if (copy / part).is_dir():
        shutil.rmtree(copy / part)
    else:
        (copy / part).unlink()
    damaged(copy, says)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_truncated_weights(copy: Path, part: str) -> None:
    path = components.files_of(copy / part)[0]
    content = path.read_bytes()
    for length in (0, 7, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        damaged(copy, "cannot be read as weights", str(path.relative_to(copy)))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_tensors_that_do_not_fit(copy: Path, part: str) -> None:
    path = components.files_of(copy / part)[0]
    state = in_memory(path)
    name = sorted(name for name in state if state[name].ndim == 2 or name.endswith("bias"))[0]
    without = {key: value for key, value in state.items() if key != name}
    for tensors, says in (
        (without, "missing"),
        ({**state, "surplus": torch.zeros(1)}, "unexpected surplus"),
        ({**without, name: torch.zeros(3, 5)}, r"the shape \(3, 5\)"),
        ({**without, name: state[name] * torch.nan}, "NaN"),
    ):
        save_file(tensors, path)
        damaged(copy, says, str(path.relative_to(copy)))


@pytest.mark.parametrize(
    "name", ["model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json"]
)
def test_json_that_is_none(copy: Path, name: str) -> None:
    for text in ("", "{", "[1]", '"vae"', '{"vae": ' * 2000, "\x00"):
        (copy / name).write_text(text)
        damaged(copy, "JSON|must hold settings", name)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("model_index.json", {"unet": ["diffusers", "KandinskyUNet"]}, "names a KandinskyUNet as its unet: give a pip"),
        ("model_index.json", {"unet": [None, None]}, "names no network"),
        ("model_index.json", {"unet": ["diffusers", "UNet2DModel"]}, "describes a UNet2DConditionModel, but"),
        ("model_index.json", {"tokenizer": [None, None]}, "has no tokenizer"),
        ("model_index.json", {"text_encoder": ["transformers", "BertModel"]}, "names a BertModel as its text_encoder"),
        ("tokenizer/tokenizer.json", {"model": 3}, "cannot be read as a tokenizer"),
        ("text_encoder/config.json", {"vocab_size": 55}, "does not match the expected network"),
        ("model_index.json", {"tokenizer": ["my", "Own"]}, "names a Own as its tokenizer"),
        ("unet/config.json", {"in_channels": 9}, "also needs an image or a mask"),
        ("unet/config.json", {"sample_size": None}, "must give in_channels and sample_size"),
        ("unet/config.json", {"sample_size": [8, "8"]}, "must give in_channels and sample_size"),
        ("unet/config.json", {"cross_attention_dim": 24}, "has cross_attention_dim 24, but.*width 16"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "more inputs than a prompt"),
        ("unet/config.json", {"addition_embed_type": "image"}, "more inputs than a prompt"),
        ("unet/config.json", {"block_out_channels": [7]}, "no network can be built"),
        ("unet/config.json", {"layers_per_block": 3000}, "asks for 3000 layers, but its weights have only"),
        ("unet/config.json", {"layers_per_block": [1, 10**9]}, "asks for 1000000000 layers"),
        ("unet/config.json", {"layers_per_block": 50, "transformer_layers_per_block": [[50]]}, "asks for 2500 layers"),
        ("unet/config.json", {"block_out_channels": [8] * 10**4}, "asks for 10000 layers"),
        ("vae/config.json", {"layers_per_block": 10**6}, "asks for 1000000 layers"),
        ("text_encoder/config.json", {"num_hidden_layers": 10**6}, "asks for 1000000 layers"),
        ("vae/config.json", {"latent_channels": 5}, "does not match the expected network"),
        ("text_encoder/config.json", {"hidden_size": "wide"}, "no network can be built"),
        ("scheduler/scheduler_config.json", {"prediction_type": "guess"}, "prediction_type"),
    ],
)
def test_settings_that_are_not_known_or_contradict(copy: Path, name: str, changes: dict[str, Any], says: str) -> None:
    if name == "tokenizer/tokenizer.json" and not (copy / name).exists():
        pytest.skip("transformers wrote vocab.json and merges.txt before version 5")
    edited(copy / name, **changes)
    damaged(copy, says)


def test_numbers_of_layers_that_are_none_pass() -> None:
    config = {"num_layers": 28, "layers_per_block": -1, "depth": None, "blocks": True, "block_out_channels": [2048, 1]}
    assert components._layers(config) == 28
    assert components._layers({"layers_per_block": 2, "transformer_layers_per_block": [1, 2, 10]}) == 20
    assert components._layers({}) == 1


def test_a_dit_of_a_million_layers_or_of_endless_images(tmp_path: Path) -> None:
    dit(tmp_path)
    config = tmp_path / "model" / "transformer" / "config.json"
    whole = config.read_text()
    for changes, says in (
        ({"num_layers": 10**6}, "asks for 1000000 layers"),
        ({"sample_size": 20000}, "pos_embed.pos_embed would be larger than in any known network"),
    ):
        edited(config, **changes)
        damaged(tmp_path / "model", says, "transformer/config.json")
        config.write_text(whole)


def test_images_that_a_network_cannot_halve(tmp_path: Path) -> None:
    ldm(tmp_path)
    for widths in ([8, 16], [8] * 10**5):
        edited(tmp_path / "model" / "unet" / "config.json", sample_size=9, block_out_channels=widths)
        damaged(tmp_path / "model", f"images of 9×9 cannot be halved {len(widths) - 1} times", "unet/config.json")


def test_a_network_that_fails_names_its_folder(copy: Path) -> None:
    edited(copy / "unet" / "config.json", freq_shift="a")
    field = odeddim.load(copy)
    with pytest.raises(InputError, match=f"{copy} fails on 2×4×8×8"):
        field(torch.tensor(1.0), noise())


def test_an_autoencoder_of_another_network(copy: Path) -> None:
    stirred(diffusers.AutoencoderKL(**SHAPE_OF_CODEC, latent_channels=3), 2).save_pretrained(copy / "vae")
    damaged(copy, "has latents of 3 channels, but the network takes 4", "vae")


def test_a_tokenizer_in_its_older_files(copy: Path, sd: tuple[Path, Any, VectorField], tmp_path: Path) -> None:
    shutil.rmtree(copy / "tokenizer")
    tokenizer(copy / "tokenizer")
    sigma, scale = at(sd[2], 500)
    ours, theirs = (it.conditioned(prompt="a cat")(sigma, noise() * scale) for it in (odeddim.load(copy), sd[2]))
    assert torch.equal(ours, theirs)
    (copy / "tokenizer" / "merges.txt").unlink()
    damaged(copy, "has no vocabulary", "tokenizer")


def test_a_tokenizer_of_another_encoder(copy: Path) -> None:
    encoder = clip(1)
    encoder.resize_token_embeddings(40)
    encoder.save_pretrained(copy / "text_encoder")
    damaged(copy, "has 56 tokens, but .* has only 40: copy both", "tokenizer", "text_encoder")


def test_an_index_that_points_out_of_its_folder(copy: Path) -> None:
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(copy / "unet.safetensors")
    for named in ("../unet.safetensors", "..", "", 3):
        text = json.dumps({"weight_map": {"conv_in.weight": named}})
        (copy / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
        damaged(copy, "does not list the files of the weights", "unet")


def test_without_the_extra_it_says_how_to_get_it(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("diffusers", "transformers"):
        with monkeypatch.context() as patch:
            patch.setitem(__import__("sys").modules, name, None)
            damaged(copy, rf"needs the package {name}: pip install 'odeddim\[diffusers\]'")


def test_a_refiners_sizes_are_refused(tmp_path: Path) -> None:
    stable_diffusion_xl(tmp_path)
    edited(tmp_path / "model" / "unet" / "config.json", projection_class_embeddings_input_dim=5 * 8 + 12)
    damaged(tmp_path / "model", "does not take a summary and six sizes")


# On the command line.


@pytest.fixture
def photos(here: Path) -> Path:
    folder = here / "photos"
    folder.mkdir()
    for i, image in enumerate(to_bytes(images(3)).movedim(1, -1).numpy()):
        PIL.Image.fromarray(np.ascontiguousarray(image)).save(folder / f"{i}.png")
    return folder


def test_pngs_to_latents_and_back(photos: Path, run: Run, sd: tuple[Path, Any, VectorField]) -> None:
    model = ("--model", sd[0])
    code, out, err = run("encode", photos, "-o", "z.h5", *model, "--prompt", "cat", "--steps", 10)
    assert code == 0, err
    codec = sd[2].codec
    assert codec is not None
    x_0 = open_images(photos).read()
    through = codec.decode(codec.encode(x_0))
    floor = rms(through - x_0)
    assert f"the autoencoder alone loses {float(floor.mean()):.3g} (rms)" in out
    with LatentFile(Path("z.h5")) as file:
        assert file.shape == (4, 8, 8)
        assert torch.allclose(file.figures("report")["floor"], floor, rtol=1e-6)
        xbar = file.read(0, 3).xbar
    told = sd[2].conditioned(prompt="cat")
    assert off(xbar, odeddim.encode(x_0, "belm", model=told, steps=10).xbar) < 1e-4
    code, out, err = run("decode", "z.h5", "-o", "out")
    assert code == 0, err
    again = open_images(Path("out")).read()
    assert again.shape == (3, 3, 16, 16)
    # belm comes back exactly: nothing is lost but what the autoencoder and 8 bits lose
    assert float((again - to_bytes(through).float() / 127.5 + 1).abs().max()) < 0.01
    assert "floor per image" in run("inspect", "z.h5")[1]

    code, _, err = run("encode", photos, "-o", "one.h5", *model, "--prompt", "cat", "--steps", 10, "--batch-size", 1)
    assert code == 0, err
    with LatentFile(Path("one.h5")) as file:
        assert torch.equal(file.read(0, 3).xbar, xbar)

    code, out, err = run("verify", "z.h5", "--sheet", "worst.png", "--scale", 1, "--no-labels")
    assert code == 0, err
    assert f"its autoencoder alone loses {float(floor.median()):.3g}" in out
    assert len(tiles("worst.png", 16, 16, 1, panes=3)) == 3
    with LatentFile(Path("z.h5")) as file:  # certified in place
        assert torch.allclose(file.figures("report")["floor"], floor, rtol=1e-6)
        assert float(file.figures()["round_trip"].max()) < 1e-5


def test_tolerances_are_of_the_data(photos: Path, run: Run, sd: tuple[Path, Any, VectorField]) -> None:
    code, _, err = run("encode", photos, "-o", "z.h5", "--model", sd[0], "--tol", 10, "--certify", "-n", 2)
    assert code == 0, err
    code, _, err = run("decode", "z.h5", "-o", "z.png", "--scale", 1, "--no-labels")
    assert code == 0, err
    assert len(tiles("z.png", 16, 16, 2)) == 1
    code, _, err = run("decode", "z.h5", "-o", "fine.h5", "--tol", 10)
    assert code == 0, err
    assert open_images(Path("fine.h5")).shape == (3, 16, 16)


def test_sheets_are_of_images(photos: Path, run: Run, sd: tuple[Path, Any, VectorField]) -> None:
    assert run("encode", photos, "-o", "z.h5", "--model", sd[0], "--steps", 5)[0] == 0
    for arguments, columns in (
        (("interpolate", "z.h5", "--pair", 0, 1, "-n", 3, "-o", "path.h5", "--sheet", "1.png"), 3),
        (("shift", "z.h5", "--from", 0, "--to", 1, "--by", "0,1", "-o", "to.h5", "--sheet", "1.png"), 2),
        (("neighbours", "z.h5", "-k", 1, "--sheet", "1.png"), 2),
        (("sample", "--model", sd[0], "-n", 4, "--steps", 5, "-o", "1.png"), 2),
    ):
        Path("1.png").unlink(missing_ok=True)
        code, _, err = run(*arguments, "--scale", 1, "--no-labels")
        assert code == 0, err
        assert tiles("1.png", 16, 16, columns)
    code, _, err = run("sample", "--model", sd[0], "--size", "3,30,32", "-o", "2.png")
    assert (code, "makes images of 3×H×W with H and W multiples of 4" in err) == (2, True)
    PIL.Image.new("RGB", (9, 9)).save("small.png")
    code, _, err = run("encode", "small.png", "-o", "s.h5", "--model", sd[0])
    assert (code, "the model takes 3×H×W with H and W multiples of 4" in err) == (2, True)


def test_benches_measure_data_or_images_and_say_so(photos: Path, run: Run, sd: tuple[Path, Any, VectorField]) -> None:
    few = ("--model", sd[0], "--solvers", "euler", "--steps", 3, "-o", "b")
    said = "measured on the latent model's data"
    for arguments, data in (
        (("reconstruction", photos, "-n", 1), True),
        (("time", "--batches", 1, "--repeats", 1), True),
        (("interpolation", "--pairs", 1, "--points", 3, "--side", 0), False),
    ):
        code, _, err = run("bench", *arguments, *few)
        assert code == 0, err
        notes = " ".join(json.loads(Path("b", f"{arguments[0]}.json").read_text())["notes"])
        assert (said in notes) == data
        assert ("alone loses" in notes) == (arguments[0] == "reconstruction")
