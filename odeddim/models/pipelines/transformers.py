"""Pipelines of the first transformers: DiT (arXiv 2212.09748), Stable Diffusion 3 (2403.03206)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from odeddim.models.networks import text_encoders
from odeddim.models.pipelines.told import Pipeline, Told
from odeddim.ode.conditions import Classes, Prompts
from odeddim.ode.sizes import Sizes


def dit(of: Pipeline) -> Told:
    """Return how DiT is called. The label after the last class means no class. Its answers are square."""
    count = of.config.get("num_embeds_ada_norm")
    if of.config.get("norm_type") != "ada_norm_zero" or type(count) is not int:
        raise of.refuse(
            "the transformer is not a DiT, which has norm_type 'ada_norm_zero' and num_embeds_ada_norm, and odeddim "
            "supports no others"
        )
    return Told(_dit, Sizes(of.shape), Classes(count, null=count), made_by="DiTTransformer2DModel")


def sd3(of: Pipeline) -> Told:
    """Return how the network of Stable Diffusion 3 is called. Its table of positions is cropped to smaller data."""
    embed, encoders = text_encoders.three(of.folder, of.index, of.config.get("joint_attention_dim", 0))
    of.check_width("pooled_projection_dim", embed("")[1].shape[1])
    patch, positions = of.config.get("patch_size", 2), of.config.get("pos_embed_max_size", 96)
    cropped = all(type(each) is int and each > 0 for each in (patch, positions))
    sizes = Sizes(of.shape, patch, patch * positions) if cropped else Sizes(of.shape)
    return Told(_sd3, sizes, Prompts(embed), encoders)


# Calls, by name: a field that holds one must be picklable.


def _dit(network: nn.Module, x: Tensor, t: Tensor, label: Tensor) -> Any:
    return network(x, timestep=t, class_labels=label)


def _sd3(network: nn.Module, x: Tensor, t: Tensor, text: Tensor, summary: Tensor) -> Any:
    return network(x, encoder_hidden_states=text, pooled_projections=summary, timestep=t)
