"""The classes of networks in diffusers' pipelines that odeddim takes."""

from __future__ import annotations

from collections.abc import Callable

from odeddim.models.pipelines import flux, hunyuan, lumina, pixart, qwen_image, sana, transformers, unets, videos
from odeddim.models.pipelines.told import Pipeline, Told


def _transformer(of: Pipeline) -> Told:
    return pixart.pixart(of) if of.config.get("norm_type") == pixart.NORM else transformers.dit(of)


NETWORKS: dict[str, Callable[[Pipeline], Told]] = {
    "UNet2DConditionModel": unets.with_text,
    "UNet2DModel": unets.plain,
    "DiTTransformer2DModel": transformers.dit,
    "Transformer2DModel": _transformer,  # as files of DiT and of PixArt-α call it
    "SD3Transformer2DModel": transformers.sd3,
    "FluxTransformer2DModel": flux.flux,
    "PixArtTransformer2DModel": pixart.pixart,
    "SanaTransformer2DModel": sana.sana,
    "Lumina2Transformer2DModel": lumina.lumina2,
    "QwenImageTransformer2DModel": qwen_image.qwen_image,
    "HunyuanDiT2DModel": hunyuan.hunyuan_dit,
    "WanTransformer3DModel": videos.wan,
    "CogVideoXTransformer3DModel": videos.cogvideox,
}
"""The supported classes of networks, each with the function that returns how its network is called."""
