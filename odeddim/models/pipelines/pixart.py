"""PixArt-α (arXiv 2310.00426) and PixArt-Σ (2403.04692): a transformer with T5's hidden states of a prompt."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from odeddim.models.networks.text_encoders import T5, Masked, TextEncoder
from odeddim.models.pipelines.told import Pipeline, Told
from odeddim.ode.conditions import Prompts

TOKENS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}
NORM = "ada_norm_single"  # of these networks, which were once of one class with DiT's


def pixart(of: Pipeline) -> Told:
    """Return how PixArt's network is called."""
    name = str(of.index.get("_class_name"))
    longest = TOKENS.get(name, TOKENS["PixArtSigmaPipeline"])
    encoder = TextEncoder(of.folder, of.index, kinds=T5, longest=longest, masked=True)
    of.check_width("caption_channels", encoder.width)
    assumed = ["texts in lower case, and not cleaned of anything"]
    assumed += [] if name in TOKENS else [f"texts of up to {longest} tokens"]
    call = partial(_pixart, factor=of.factor)
    conditions = Prompts(Masked(encoder, lower=True))
    return Told(call, of.patches(2), conditions, (encoder,), assumed, made_by="PixArtTransformer2DModel")


def _pixart(network: Any, x: Tensor, t: Tensor, text: Tensor, mask: Tensor, *, factor: int) -> Any:
    """Call PixArt's network. Some are told the size of the image in pixels, `factor` times the sides of the data."""
    height, width = (factor * side for side in x.shape[2:])
    told: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if network.use_additional_conditions:
        told = {
            "resolution": torch.tensor([[height, width]], device=x.device, dtype=x.dtype).expand(len(x), -1),
            "aspect_ratio": torch.tensor([[height / width]], device=x.device, dtype=x.dtype).expand(len(x), -1),
        }
    return network(x, encoder_hidden_states=text, encoder_attention_mask=mask, timestep=t, added_cond_kwargs=told)
