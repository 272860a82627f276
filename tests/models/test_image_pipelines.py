"""diffusers' pipelines of transformers for images against diffusers itself: their own runs, their autoencoders.

The pipelines are tiny, with random weights everywhere. Their own __call__ is what whole trajectories are compared with:
the nodes are those of its scheduler, shifted as it shifts them, and the x_T is the same.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

os.environ["HF_HUB_OFFLINE"] = "1"
diffusers = pytest.importorskip("diffusers", reason="diffusers is installed by the test extra")
transformers = pytest.importorskip("transformers", reason="transformers is installed by the test extra")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

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


def pixart(folder: Path, *, sigma: bool = False) -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, cross_attention_dim=16, sample_size=8,
        caption_channels=40, use_additional_conditions=False,
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


FAMILIES = {
    each.__name__: each for each in (flux, stable_diffusion_3, pixart, sana, lumina2, qwen_image, hunyuan_dit)
}
PACKED = ("flux", "qwen_image")
UNBINNED = {"use_resolution_binning": False}
ASKED: dict[str, dict[str, Any]] = {
    "pixart": {**UNBINNED, "clean_caption": False},
    "sana": {**UNBINNED, "height": 32, "width": 32},  # which the given latents decide: only multiples of 32 are taken
    "lumina2": {"height": 32, "width": 32},
    "hunyuan_dit": UNBINNED,
}
"""Arguments of pipelines that make them take the size that they are asked for, and texts as they are."""


class Case:
    """A pipeline, the folder that it was saved to, and what we make of it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.pipeline = saved(FAMILIES[name](folder), folder)
        self.folder = folder / "model"
        self.field = odeddim.load(self.folder)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of images whose data are 8×12 or, of those who take one size in their pipelines, 8×8."""
        factor = self.field.image_shape[1] // self.field.shape[1]  # type: ignore[index]
        return 8 * factor, 12 * factor

    def images(self) -> Tensor:
        return torch.rand(2, 3, *self.sides, generator=torch.Generator().manual_seed(6)) * 2 - 1

    def run(self, x: Tensor, guidance: float, **more: Any) -> Tensor:
        """The data that the pipeline makes of x, (B, c, h, w), in the state where it ends."""
        told: dict[str, Any] = {"guidance_scale": guidance, "negative_prompt": ["dog"] * 2}
        if self.name in PACKED:
            told = {"true_cfg_scale": guidance, "negative_prompt": ["dog"] * 2, "guidance_scale": 3.5}
            if self.name == "qwen_image":
                told.pop("guidance_scale")
        if guidance == 1:
            told.pop("negative_prompt")
        height, width = self.sides
        if self.field.schedule.kind == "flow":
            more = {"sigmas": torch.linspace(0.99, 0.05, STEPS).tolist(), **more}
        x = diffusers.FluxPipeline._pack_latents(x, *x.shape) if self.name in PACKED else x
        found = self.pipeline(
            prompt=["a cat"] * 2, num_inference_steps=STEPS, latents=x, output_type="latent",
            **{"height": height, "width": width, **told, **ASKED.get(self.name, {}), **more},
        ).images  # fmt: skip
        if self.name not in PACKED:
            return found
        factor = height // 8
        return diffusers.FluxPipeline._unpack_latents(found, height, width, factor)

    def told(self, guidance: float) -> VectorField:
        distilled = {"distilled_guidance": 3.5} if self.name == "flux" else {}
        negative = None if guidance == 1 else "dog"
        return self.field.conditioned(prompt="a cat", negative_prompt=negative, guidance=guidance, **distilled)

    def nodes(self) -> Tensor:
        """The noise levels of the pipeline's scheduler after a run."""
        t = self.pipeline.scheduler.sigmas.double()
        return (t / (1 - t)).flip(0)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_trajectory_is_the_pipelines(case: Case, guidance: float) -> None:
    x = odeddim.noise(2, (4, 8, 12), seed=5)
    theirs = case.run(x, guidance)
    field = case.told(guidance).on_data()
    if field.schedule.kind == "flow":
        nodes = case.nodes()
        begin = State(x * (1 + float(nodes[-1])), float(nodes[-1]))
        assert len(nodes) == STEPS + 1
        ours = odeddim.decode(begin, "euler", model=field, grid=nodes)
    else:
        last = case.pipeline.scheduler.final_alpha_cumprod
        first = 0.0 if last == 1 else None
        ours = odeddim.solve(x, "euler", model=field, grid=nodes_of(field, case.pipeline, first),
                             end="zero" if first == 0 else "sigma_min") * float(last.sqrt())
    assert off(ours, theirs) < 1e-5
    assert off(case.told(6 - guidance).on_data()(torch.tensor(1.0), x), field(torch.tensor(1.0), x)) > 1e-3
