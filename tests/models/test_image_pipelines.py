"""diffusers' pipelines of transformers for images against diffusers itself: their own runs, their autoencoders.

The pipelines are tiny, with random weights everywhere. Their own __call__ is what whole trajectories are compared with:
the nodes are those of its scheduler, shifted as it shifts them, and the x_T is the same.
"""

from __future__ import annotations

import copy
import functools
import math
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.version import Version
from torch import Tensor

os.environ["HF_HUB_OFFLINE"] = "1"
diffusers = pytest.importorskip("diffusers", reason="diffusers is installed by the test extra")
transformers = pytest.importorskip("transformers", reason="transformers is installed by the test extra")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

from safetensors.torch import save_file  # noqa: E402
from test_latent_diffusion import (  # noqa: E402
    clip,
    edited,
    kl,
    nodes_of,
    off,
    saved,
    stirred,
    t5,
    tokenizer,
)

import odeddim  # noqa: E402
from odeddim import InputError, State, VectorField  # noqa: E402
from odeddim.api import to_data, to_images  # noqa: E402
from odeddim.ode.conditions import Condition  # noqa: E402

STEPS = 20
FLOW = diffusers.FlowMatchEulerDiscreteScheduler
V = {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction", "clip_sample": False}


def t5_as(number: str, folder: Path) -> dict[str, Any]:
    """The T5 of `t5` and its tokenizer under other names."""
    return {part.replace("_3", number): made for part, made in t5(folder).items()}


def gemma() -> dict[str, Any]:
    """A Gemma of 16 numbers a token, and its tokenizer of letters."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    config = transformers.Gemma2Config(
        vocab_size=len(pieces), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8, max_position_embeddings=2048,
        layer_types=["full_attention"] * 2,
    )  # fmt: skip
    vocab = {piece: i for i, piece in enumerate(pieces)}
    words = transformers.GemmaTokenizer(vocab=vocab, merges=[], add_bos_token=True)
    return {"text_encoder": stirred(transformers.Gemma2Model(config), 1), "tokenizer": words}


def qwen() -> dict[str, Any]:
    """A Qwen2.5-VL of 16 numbers a token, and its tokenizer of bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    vocab = {chr(byte): i for i, byte in enumerate(shown)}
    vocab |= {chr(256 + i): len(vocab) + i for i in range(len(hidden))}
    vocab |= {word: 256 + i for i, word in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 259, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 256, "eos_token_id": 258,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
        },
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16},
    )  # fmt: skip
    encoder = stirred(transformers.Qwen2_5_VLForConditionalGeneration(config), 1)
    return {"text_encoder": encoder, "tokenizer": transformers.Qwen2Tokenizer(vocab=vocab, merges=[])}


def flux(folder: Path, *, guidance_embeds: bool = True, **scheduler: Any) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=40, pooled_projection_dim=16, guidance_embeds=guidance_embeds, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    shifted = scheduler or {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64}
    return diffusers.FluxPipeline(
        transformer=stirred(transformer, 3), vae=kl(scaling_factor=0.36, shift_factor=0.12), text_encoder=clip(1),
        tokenizer=tokenizer(folder / "1"), scheduler=FLOW(**shifted), **t5_as("_2", folder),
    )  # fmt: skip


def stable_diffusion_3(folder: Path, **scheduler: Any) -> Any:
    """As version 3.5: normed queries and keys, and a second attention in the first layer."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=40, caption_projection_dim=16, pooled_projection_dim=24, out_channels=4,
        pos_embed_max_size=8, qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=stirred(transformer, 3), vae=kl(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clip(1, projects=True), text_encoder_2=clip(4, projects=True),
        tokenizer=tokenizer(folder / "1"), tokenizer_2=tokenizer(folder / "2"),
        scheduler=FLOW(**(scheduler or {"shift": 3.0})), **t5(folder),
    )  # fmt: skip


def pixart(folder: Path, *, sigma: bool = False, side: int = 8) -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=2, cross_attention_dim=24, sample_size=side,
        caption_channels=40, use_additional_conditions=None if side == 128 else False,
    )  # fmt: skip
    kind = diffusers.PixArtSigmaPipeline if sigma else diffusers.PixArtAlphaPipeline
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    return kind(transformer=stirred(transformer, 3), vae=kl(), scheduler=scheduler, **t5_as("", folder))


def sana(folder: Path) -> Any:
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16,
        sample_size=8, interpolation_scale=1.0, timestep_scale=0.5,
    )  # fmt: skip
    codec = diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()), scaling_factor=0.41407, downsample_block_type="Conv",
        upsample_block_type="interpolate", encoder_block_types="ResBlock", decoder_block_types="ResBlock",
    )  # fmt: skip
    return diffusers.SanaPipeline(
        transformer=stirred(transformer, 3), vae=stirred(codec, 2), scheduler=FLOW(shift=3.0), **gemma()
    )


def lumina2(folder: Path) -> Any:
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1,
        num_attention_heads=2, num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 4, 4), axes_lens=(300, 16, 16),
        cap_feat_dim=16,
    )  # fmt: skip
    codec = kl(scaling_factor=0.3611, shift_factor=0.1159)
    return diffusers.Lumina2Pipeline(
        transformer=stirred(transformer, 3), vae=codec, scheduler=FLOW(shift=6.0), **gemma()
    )


def qwen_image(folder: Path) -> Any:
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    codec = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[True],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 2.0, 0.5, 3.0],
    )  # fmt: skip
    scheduler = FLOW(use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=64, shift_terminal=0.02)
    return diffusers.QwenImagePipeline(
        transformer=stirred(transformer, 3), vae=stirred(codec, 2), scheduler=scheduler, **qwen()
    )


def hunyuan_dit(folder: Path) -> Any:
    transformer = diffusers.HunyuanDiT2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, patch_size=2, sample_size=8, hidden_size=16,
        num_layers=2, mlp_ratio=2.0, cross_attention_dim=16, cross_attention_dim_t5=40, pooled_projection_dim=16,
    )  # fmt: skip
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog", "a"]
    config = transformers.BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    codec = diffusers.AutoencoderKL(
        block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4,
    )  # fmt: skip
    return diffusers.HunyuanDiTPipeline(
        transformer=stirred(transformer, 3), vae=stirred(codec, 2),
        text_encoder=stirred(transformers.BertModel(config), 1),
        tokenizer=transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)}),
        scheduler=diffusers.DDIMScheduler(**V, set_alpha_to_one=False, steps_offset=1), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False, **t5_as("_2", folder),
    )  # fmt: skip


FAMILIES: dict[str, Callable[[Path], Any]] = {
    "flux": flux,
    "sd3": stable_diffusion_3,
    "pixart": pixart,
    "sana": sana,
    "lumina2": lumina2,
    "qwen": qwen_image,
    "hunyuan": hunyuan_dit,
}
OF_WORDS = {
    "sana": "SanaPipeline",
    "lumina2": "Lumina2Pipeline",
    "qwen": "QwenImagePipeline",
    "hunyuan": "HunyuanDiTPipeline",
}
"""Those whose tokenizers are made here of words in memory, or whose pipelines are younger than the oldest diffusers."""
PACKED = ("flux", "qwen")
ASKED: dict[str, dict[str, Any]] = {
    "pixart": {"use_resolution_binning": False, "clean_caption": False},
    "sana": {"use_resolution_binning": False, "height": 32, "width": 32},
    "lumina2": {"height": 32, "width": 32},
    "hunyuan": {"use_resolution_binning": False},
}
"""What makes a pipeline take the size of the latents, and texts as they are. Those of 32×32 check these sides only."""


class Case:
    """A pipeline, the folder that it was saved to, and what we make of it. Its images are not square."""

    def __init__(self, name: str, folder: Path, make: Callable[[Path], Any] | None = None) -> None:
        if name in OF_WORDS and Version(transformers.__version__) < Version("5"):
            pytest.skip("before 5.0 transformers makes these tokenizers from files of vocabularies only")
        if not hasattr(diffusers, OF_WORDS.get(name, "FluxPipeline")):
            pytest.skip(f"this diffusers has no {OF_WORDS[name]} yet")
        self.name, self.folder = name, folder / "model"
        self.pipeline = saved((make or FAMILIES[name])(folder), folder)
        self.field = odeddim.load(self.folder)
        self.sides = self.field.shape_of_images((4, 8, 12))[1:]

    def images(self) -> Tensor:
        return torch.rand(2, 3, *self.sides, generator=torch.Generator().manual_seed(6)) * 2 - 1

    def run(self, x: Tensor, guidance: float = 1.0, **more: Any) -> Tensor:
        """The data that the pipeline makes of x, (2, c, h, w), in 20 steps; Flux has the guidance as an input too."""
        told = {"true_cfg_scale" if self.name in PACKED else "guidance_scale": guidance}
        told |= {"guidance_scale": guidance} if self.name == "flux" else {}
        negative = {"negative_prompt": ["dog"] * 2} if guidance != 1 else {}
        height, width = self.sides
        told |= {"height": height, "width": width, **ASKED.get(self.name, {}), **more}
        packed = self.name in PACKED
        found: Tensor = self.pipeline(
            prompt=["a cat"] * 2, num_inference_steps=STEPS, output_type="latent", **negative, **told,
            latents=diffusers.FluxPipeline._pack_latents(x, *x.shape) if packed else x,
        ).images  # fmt: skip
        return diffusers.FluxPipeline._unpack_latents(found, *x.shape[2:], 1) if packed else found

    def told(self, guidance: float = 1.0) -> VectorField:
        more = {"distilled_guidance": guidance} if self.name == "flux" else {}
        negative = None if guidance == 1 else "dog"
        return self.field.conditioned(prompt="a cat", negative_prompt=negative, guidance=guidance, **more)

    def nodes(self) -> Tensor:
        """The noise levels of the pipeline's scheduler of flows, as its run left them."""
        t = self.pipeline.scheduler.sigmas.double()
        return (t / (1 - t)).flip(0)


TIMES = torch.linspace(0.99, 0.05, STEPS).tolist()
X = odeddim.noise(2, (4, 8, 12), seed=5)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    return functools.cache(lambda name: Case(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(params=FAMILIES)
def case(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    return cases(request.param)


@pytest.fixture
def copied(cases: Callable[[str], Case], tmp_path: Path) -> Callable[[str], Path]:
    """The folder of a pipeline again, to be spoilt."""
    return lambda name: Path(shutil.copytree(cases(name).folder, tmp_path / "copy"))


def check_flow(case: Case, guidance: float = 1.0) -> None:
    """From the first of the pipeline's own times on, its run is ours."""
    theirs = case.run(X, guidance, sigmas=TIMES)
    nodes = case.nodes()
    assert (len(nodes), float(nodes[0])) == (STEPS + 1, 0)
    begin = State(X * (1 + float(nodes[-1])), float(nodes[-1]))
    told = case.told(guidance).on_data()
    assert off(odeddim.decode(begin, "euler", model=told, grid=nodes), theirs) < 1e-5


def check_levels(case: Case, guidance: float = 1.0) -> None:
    """The run of a pipeline of DDPM's levels is ours."""
    theirs = case.run(X, guidance)
    last = case.pipeline.scheduler.final_alpha_cumprod
    nodes = nodes_of(case.field, case.pipeline, 0.0 if last == 1 else None)
    end = "zero" if last == 1 else "sigma_min"
    ours = odeddim.solve(X, "euler", model=case.told(guidance).on_data(), grid=nodes, end=end)
    assert off(ours * float(last.sqrt()), theirs) < 1e-5


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_trajectory_is_the_pipelines(case: Case, guidance: float) -> None:
    (check_flow if case.field.schedule.kind == "flow" else check_levels)(case, guidance)


def test_prompts_and_guidance_tell(case: Case) -> None:
    """Or the runs would prove nothing of them."""
    one = torch.tensor(1.0)
    answers = [
        field(one, X) for field in (case.told(), case.told(5.0), case.field.conditioned(prompt="dog"), case.field)
    ]
    for i, answer in enumerate(answers):
        assert all(off(answer, other) > 1e-3 for other in answers[:i])


def test_images_come_back_exactly_from_the_folder_and_the_object(case: Case) -> None:
    x = case.images()
    codec: Any = case.field.codec
    told = {**case.told(2.0).condition.to_dict()}
    fields = [
        case.told(2.0),
        odeddim.load(case.pipeline).conditioned(**told),
        pickle.loads(pickle.dumps(case.told(2.0))),
    ]
    assert fields[0].details == fields[1].details
    assert fields[0].sha256 == fields[1].sha256
    state = odeddim.encode(x, "belm", model=fields[0], steps=3)
    assert all(odeddim.encode(x, "belm", model=field, steps=3) == state for field in fields[1:])
    again = odeddim.decode(state, "belm", model=fields[1], steps=3)
    assert torch.equal(again, codec.decode(codec.encode(x)))


def test_the_autoencoder_is_the_pipelines(case: Case) -> None:
    vae, x = case.pipeline.vae, case.images()
    of_frames = case.name == "qwen"
    with torch.no_grad():
        found = vae.encode(x[:, :, None] if of_frames else x)
        z = found.latent_dist.mean if hasattr(found, "latent_dist") else found.latent
        again = vae.decode(z).sample
        z, again = (part[:, :, 0] if of_frames else part for part in (z, again))
    its = vae.config
    if of_frames:
        mean, spread = (torch.tensor(each)[:, None, None] for each in (its.latents_mean, its.latents_std))
        data = (z - mean) / spread
    else:
        data = (z - (its.get("shift_factor") or 0)) * its.scaling_factor
    assert off(to_data(case.field, x), data) < 1e-5
    assert off(to_images(case.field, data), again) < 1e-5
    assert again.shape == x.shape


def test_images_of_a_batch_may_have_prompts_of_different_lengths(case: Case) -> None:
    conditions = [Condition(prompt="a cat", guidance=3.0), Condition(prompt="dog", guidance=3.0)]
    together, one = case.field.conditioned_each(conditions)(torch.tensor(1.0), X), torch.tensor(1.0)
    for i, condition in enumerate(conditions):
        alone = case.field.conditioned(prompt=condition.prompt, guidance=3.0)(one, X[i : i + 1])
        assert off(together[i : i + 1], alone) < 1e-5


# What each of them has of its own.


def started(case: Case) -> tuple[list[Tensor], Tensor]:
    """The states after each step of the pipeline with its own times, and its nodes without the first one."""
    states: list[Tensor] = []

    def keep(pipe: Any, i: int, t: Any, state: dict[str, Any]) -> dict[str, Any]:
        found = state["latents"]
        states.append(diffusers.FluxPipeline._unpack_latents(found, 8, 12, 1) if case.name in PACKED else found)
        return state

    case.run(X, callback_on_step_end=keep)
    return states, case.nodes()[:-1]


def test_flux_shifts_times_by_the_size_of_images(cases: Callable[[str], Case]) -> None:
    """Its own times begin at pure noise, where σ is infinite: from the second on the runs are one."""
    case = cases("flux")
    states, nodes = started(case)
    mu = 0.5 + (1.15 - 0.5) / (64 - 4) * (4 * 6 - 4)  # 24 tokens between 4 and 64, as its scheduler says
    even = torch.arange(STEPS, dtype=torch.float64) / STEPS
    assert torch.allclose(nodes, math.exp(mu) * even / (1 - even), rtol=1e-5)  # a shift multiplies σ
    begin = State(states[0] * (1 + float(nodes[-1])), float(nodes[-1]))
    assert off(odeddim.decode(begin, "euler", model=case.told().on_data(), grid=nodes), states[-1]) < 1e-5
    assert "without its shift by the size of images" in case.field.details["found"]


def test_guidance_as_an_input_is_no_other_guidance(cases: Callable[[str], Case]) -> None:
    field, one = cases("flux").field, torch.tensor(1.0)
    told = field.conditioned(prompt="a cat", distilled_guidance=5)
    assert told.condition.words == "prompt 'a cat', distilled guidance 5"
    assert told.condition.to_dict() == {"prompt": "a cat", "distilled_guidance": 5}
    plain, both = field.conditioned(prompt="a cat"), field.conditioned(prompt="a cat", distilled_guidance=5, guidance=2)
    answers = [each(one, X) for each in (told, plain, both)]
    assert all(off(answers[i], answers[j]) > 1e-3 for i, j in ((0, 1), (0, 2), (1, 2)))
    assert (told.rows, both.rows) == (2, 4)
    with pytest.raises(InputError, match="distilled_guidance must be a finite number"):
        field.conditioned(distilled_guidance=math.inf)
    for other in (cases("sd3").field, odeddim.load("fashion-mnist")):
        with pytest.raises(InputError, match=r"guidance as an input|has no conditions: leave out distilled guidance 2"):
            other.conditioned(distilled_guidance=2)


@pytest.mark.slow
def test_flux_schnell_was_not_distilled_from_guidance(tmp_path: Path) -> None:
    case = Case("flux", tmp_path, lambda folder: flux(folder, guidance_embeds=False, shift=1.0))
    with pytest.raises(InputError, match=r"does not take guidance as an input .* give guidance=\.\.\. instead"):
        case.told(2.0)
    check_flow(case)


def test_flux_cuts_prompts_for_its_summary_only(cases: Callable[[str], Case]) -> None:
    case = cases("flux")
    text = " ".join("abcdefghijkl")
    states, summary = case.field.conditions._embed(text)  # type: ignore[union-attr]
    wanted, its, _ = case.pipeline.encode_prompt(text)
    assert off(states, wanted.detach()) < 1e-5
    assert off(summary, its.detach()) < 1e-5
    with pytest.raises(InputError, match="takes at most 512: shorten it"):
        case.field.conditioned(prompt="a " * 520)


@pytest.mark.slow
def test_sd3_may_shift_times_by_the_size_of_images(tmp_path: Path) -> None:
    shift = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64}
    case = Case("sd3", tmp_path, lambda folder: stable_diffusion_3(folder, **shift))
    check_flow(case, 5.0)
    assert float(case.nodes()[-1]) == pytest.approx(99 * math.exp(0.5 + 0.65 / 60 * 20), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [False, True])
def test_pixart_sigma_and_alpha_with_the_size_of_images_as_an_input(tmp_path: Path, sigma: bool) -> None:
    """PixArt-α was told the size of images if its own size is 128; its files call its network by another name."""
    case = Case("pixart", tmp_path, lambda folder: pixart(folder, sigma=sigma, **({} if sigma else {"side": 128})))
    check_levels(case, 5.0)
    assert case.field.conditioned(prompt="cat")._given.given[0].shape[1] == (300 if sigma else 120)  # type: ignore[union-attr]
    one, told = torch.tensor(1.0), {"prompt": "  A Cat "}
    assert torch.equal(case.field.conditioned(**told)(one, X), case.told()(one, X))
    edited(case.folder / "transformer" / "config.json", _class_name="Transformer2DModel", num_vector_embeds=None)
    edited(case.folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    again = odeddim.load(case.folder)
    assert torch.equal(again.conditioned(**told)(one, X), case.told()(one, X))


def test_qwens_weights_under_their_older_names(cases: Callable[[str], Case], copied: Callable[[str], Path]) -> None:
    case, folder = cases("qwen"), copied("qwen")
    path = folder / "text_encoder" / "model.safetensors"
    names = {
        name: name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        for name in case.pipeline.text_encoder.state_dict()
    }
    save_file({names[name]: part.contiguous() for name, part in case.pipeline.text_encoder.state_dict().items()}, path)
    assert odeddim.load(folder).sha256 == case.field.sha256
    save_file({name: part.contiguous() for name, part in case.pipeline.text_encoder.state_dict().items()}, path)
    assert odeddim.load(folder).sha256 == case.field.sha256


def test_what_was_found_and_assumed_is_said(case: Case) -> None:
    said = case.field.describe()
    assert type(case.pipeline).__name__ in said
    assert type(case.pipeline.transformer).__name__ in said
    wanted = {
        "flux": "images of 256×256 as its own size",
        "sd3": "without its shift by 3",
        "pixart": "texts in lower case",
        "sana": "prompts under the instruction of its pipeline",
        "lumina2": "predicts flow-to-data, time reversed",
        "qwen": "prompts in the conversation of its pipeline",
        "hunyuan": "an original image of 1024×1024, not cropped, and of the size of the run",
    }
    assert wanted[case.name] in said


@pytest.mark.slow
def test_an_object_in_16_bits_and_a_folder_in_64(case: Case) -> None:
    half = odeddim.load(copy.deepcopy(case.pipeline).to(torch.bfloat16)).conditioned(**case.told().condition.to_dict())
    exact, one = case.told()(torch.tensor(1.0), X), torch.tensor(1.0)
    assert half.dtype == torch.bfloat16
    assert off(half(one, X), exact) < (0.5 if case.name == "flux" else 0.1)  # whose network rounds labels to 8 bits
    double = odeddim.load(case.folder, dtype="float64").conditioned(**case.told().condition.to_dict())
    assert off(double(one, X), exact) < 1e-5


@pytest.mark.slow
def test_sana_with_the_scheduler_of_its_published_folders(tmp_path: Path) -> None:
    """DPM-Solver++, of order 1 here, on flow paths. It rounds labels down to whole numbers."""

    def make(folder: Path) -> Any:
        pipeline = sana(folder)
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
        pipeline.scheduler = diffusers.DPMSolverMultistepScheduler(**flow, solver_order=1)
        return pipeline

    case = Case("sana", tmp_path, make)
    assert "without its shift by 3" in case.field.details["found"]
    assert (case.field.predicts, case.field.schedule) == ("flow", odeddim.Schedule.rectified_flow())
    states, nodes = started(case)
    labels = dict(zip(nodes[1:].flip(0).tolist(), case.pipeline.scheduler.timesteps[1:].tolist(), strict=True))
    told = case.told().on_data().assuming(time=lambda sigma: torch.tensor(float(labels[float(sigma)])))
    begin = State(states[0] * (1 + float(nodes[-1])), float(nodes[-1]))
    assert off(odeddim.decode(begin, "euler", model=told, grid=nodes), states[-1]) < 1e-5


# On the command line.


@pytest.mark.slow
def test_commands_take_and_keep_the_guidance_of_a_distilled_network(
    cases: Callable[[str], Case], here: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    case = cases("flux")
    shown = (case.images()[:1].movedim(1, -1).numpy() * 127.5 + 127.5).astype("uint8")
    np.savez(here / "x.npz", shown)
    told = ("--model", case.folder, "--prompt", "cat", "--distilled-guidance", 3.5)
    code, _, err = run("encode", "x.npz", "-o", "z.h5", *told, "--steps", 3)
    assert code == 0, err
    assert "distilled_guidance 3.5" in run("inspect", "z.h5")[1]
    code, _, err = run("decode", "z.h5", "-o", "out.npz")
    assert (code, "under prompt 'cat', distilled guidance 3.5;" in err) == (0, True), err
    x = torch.from_numpy(shown).movedim(-1, 1) / 127.5 - 1
    field = case.field.conditioned(prompt="cat", distilled_guidance=3.5)
    with odeddim.open("z.h5") as file:
        assert off(file[:].xbar, odeddim.encode(x, "belm", model=field, steps=3).xbar) < 1e-5
    code, _, err = run("decode", "z.h5", "-o", "other.npz", "--distilled-guidance", 1)
    assert (code, "under prompt 'cat';" in err) == (0, True), err
    told = ("--from", "a cat", "--from-distilled-guidance", 2, "--to", "dog", "--distilled-guidance", 5)
    code, out, err = run("edit", "x.npz", "-o", "edited.npz", "--model", case.folder, *told, "--steps", 3)
    assert (code, "reconstruction error" in out) == (0, True), err
    code, _, err = run("encode", "x.npz", "-o", "y.h5", "--model", cases("sd3").folder, "--distilled-guidance", 2)
    assert (code, "give --guidance instead of --distilled-guidance" in err) == (2, True)


# What is refused.


NETWORK = "transformer/config.json"


@pytest.mark.parametrize(
    ("of", "name", "changes", "says"),
    [
        ("flux", "model_index.json", {"_class_name": "FluxKontextPipeline"}, "FluxKontextPipeline also takes an image"),
        ("flux", "model_index.json", {"controlnet": ["diffusers", "Net"]}, "takes an image by its controlnet, which"),
        ("flux", "model_index.json", {"transformer": ["diffusers", "Flux2"]}, "names a Flux2 as its transformer: give"),
        ("flux", NETWORK, {"in_channels": 32, "out_channels": 16}, "also needs an image or a mask"),
        ("flux", NETWORK, {"in_channels": None}, "must give in_channels"),
        ("flux", NETWORK, {"in_channels": 18}, "must give in_channels"),
        ("flux", NETWORK, {"patch_size": "2"}, "must give in_channels|no network can be built"),
        ("flux", NETWORK, {"out_channels": "16"}, "also needs an image or a mask"),
        ("flux", NETWORK, {"joint_attention_dim": 24}, "has joint_attention_dim 24, but .* return width 40"),
        ("flux", NETWORK, {"pooled_projection_dim": 12}, "has pooled_projection_dim 12, but .* width 16"),
        ("flux", NETWORK, {"num_single_layers": 10**6}, "asks for 1000000 layers"),
        ("pixart", NETWORK, {"patch_size": 3}, "patch_size must be a whole number that divides sample_size, not 3"),
        ("pixart", NETWORK, {"caption_channels": None}, "has caption_channels None, but .* width 40"),
        ("sana", NETWORK, {"guidance_embeds": True}, "distilled to few steps"),
        ("sana", NETWORK, {"timestep_scale": "a"}, "timestep_scale must be a number"),
        ("lumina2", NETWORK, {"axes_lens": [256, 16, 16]}, "axes_lens must be three whole numbers, the first of them"),
        ("lumina2", NETWORK, {"axes_lens": [300, 10**9, 16]}, "would be larger than in any known network"),
        ("qwen", NETWORK, {"use_layer3d_rope": True}, r"more inputs than a prompt \(use_layer3d_rope\)"),
        ("lumina2", "scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "predicts a flow, but a DDIM"),
        ("qwen", "text_encoder/config.json", {"vision_config": {"depth": 10**6}}, "asks for 1000000 layers"),
        ("qwen", "model_index.json", {"text_encoder": ["transformers", "BertModel"]}, "names a BertModel as its text"),
        ("qwen", "vae/config.json", {"latents_std": None}, "must hold both latents_mean and latents_std"),
        ("hunyuan", NETWORK, {"text_len": "long"}, "text_len and text_len_t5 must be whole numbers"),
        ("hunyuan", "model_index.json", {"text_encoder_2": [None, None]}, "has no text_encoder_2"),
    ],
)
def test_networks_that_take_more_or_contradict_themselves(
    copied: Callable[[str], Path], of: str, name: str, changes: dict[str, Any], says: str
) -> None:
    folder = copied(of)
    edited(folder / name, **changes)
    with pytest.raises(InputError, match=says) as error:
        odeddim.load(folder)
    assert "\n" not in str(error.value)


def test_an_adapter_of_images_is_refused(cases: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = cases("flux").pipeline
    monkeypatch.setattr(pipeline.transformer, "encoder_hid_proj", torch.nn.Linear(2, 2), raising=False)
    with pytest.raises(InputError, match=r"unexpected encoder_hid_proj.*take out adapters such as LoRA or of images"):
        odeddim.load(pipeline)


def test_an_older_library_is_named(cases: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusers, "QwenImagePipeline", None)
    with pytest.raises(InputError, match="needs a newer diffusers, with QwenImagePipeline: pip install --upgrade"):
        odeddim.load(cases("qwen").folder)
