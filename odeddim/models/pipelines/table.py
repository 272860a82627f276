"""The classes of networks in diffusers' pipelines that odeddim takes."""

from __future__ import annotations

from collections.abc import Callable

from odeddim.models.pipelines import transformers, unets, videos
from odeddim.models.pipelines.told import Pipeline, Told

NETWORKS: dict[str, Callable[[Pipeline], Told]] = {
    "UNet2DConditionModel": unets.with_text,
    "UNet2DModel": unets.plain,
    "DiTTransformer2DModel": transformers.dit,
    "Transformer2DModel": transformers.dit,  # as DiT's files call it
    "SD3Transformer2DModel": transformers.sd3,
    "WanTransformer3DModel": videos.wan,
    "CogVideoXTransformer3DModel": videos.cogvideox,
}
"""The supported classes of networks, each with the function that returns how its network is called."""
