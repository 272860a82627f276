"""Pipelines of video models: Wan (arXiv 2503.20314) and CogVideoX (2408.06072), from text to video.

Data are (c, f, h, w): the first of the f frames stands for the first frame of the video, each other one for 4.

    Wan         a rectified flow. UMT5's last hidden states, zeros beyond the text. Its config names no size: taken is
                what its pipeline makes unless it is told otherwise. Wan 2.2's largest has a second network for its
                lower noise levels.
    CogVideoX   v on a schedule of Stable Diffusion's kind, shifted to more noise. T5's last hidden states. Its network
                has the frames before the channels.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from odeddim.models.components import CONFIG, config_of, library
from odeddim.models.networks.text_encoders import UMT5, TextEncoder, has
from odeddim.models.networks.video_autoencoders import factor_of
from odeddim.models.pipelines.told import Pipeline, Told
from odeddim.ode.conditions import Given, Prompts
from odeddim.ode.sizes import Sizes
from odeddim.types import InputError

WAN_TOKENS = 512  # tokens of a text, as in Wan's training and in its pipeline
_WAN_MAKES = (81, 480, 832)  # frames, height and width of the videos of its pipeline by default
_RATIO = 4  # frames of a video for each frame of data after the first


def _wan_sides(config: Mapping[str, Any], vae: Path) -> list[Any]:
    frames, *sides = _WAN_MAKES
    factor = factor_of(config_of(vae) if (vae / CONFIG).is_file() else {})
    return [1 + (frames - 1) // _RATIO, *(side // factor for side in sides)]


def _cogvideox_sides(config: Mapping[str, Any], vae: Path) -> list[Any]:
    frames, ratio, patch = (config.get(key) for key in ("sample_frames", "temporal_compression_ratio", "patch_size_t"))
    if type(frames) is int and type(ratio) is int and ratio > 0:
        frames = 1 + (frames - 1) // ratio
        frames = frames if type(patch) is not int or patch < 1 else -(-frames // patch) * patch
    return [frames, config.get("sample_height"), config.get("sample_width")]


SIDES: dict[str, Callable[[Mapping[str, Any], Path], list[Any]]] = {
    "WanTransformer3DModel": _wan_sides,
    "CogVideoXTransformer3DModel": _cogvideox_sides,
}
"""The classes of networks of videos, each with the function (config, folder of the autoencoder) -> f, h, w of data."""


def wan(of: Pipeline) -> Told:
    """Return how Wan's network is called."""
    if of.config.get("image_dim") is not None:
        raise of.refuse("the network takes an image too, which odeddim does not support")
    boundary = _boundary(of)
    encoder = TextEncoder(of.folder, of.index, kinds=UMT5, longest=WAN_TOKENS, masked=True)
    of.check_width("text_dim", encoder.width)
    patch = of.config.get("patch_size", (1, 2, 2))
    if not isinstance(patch, (list, tuple)) or len(patch) != 3 or patch[0] != 1 or patch[1] != patch[2]:
        raise of.refuse(f"patch_size must be 1 frame and a square, such as [1, 2, 2], not {patch!r:.50}")
    positions = of.config.get("rope_max_seq_len", 1024)
    sizes = Sizes(of.shape, patch[1], patch[1] * positions, frames=1)
    made = "×".join(map(str, of.image_shape[1:]))
    assumed = [f"videos of {made} (frames×height×width), which the config does not give"]
    predicts = None if boundary is None else "flow"  # the boundary is a time of flow paths
    return Told(_wan, sizes, Prompts(WanTexts(encoder)), [encoder], assumed, boundary=boundary, predicts=predicts)


def _boundary(of: Pipeline) -> float | None:
    """The time t below which Wan 2.2's second network takes over; None for one network."""
    index, boundary = of.folder / "model_index.json", of.index.get("boundary_ratio")
    if not has(of.index, of.second.name):
        if boundary is not None:
            raise InputError(f"{index} has a boundary_ratio but no {of.second.name}, the network below it: copy both")
        return None
    if type(boundary) is not float or not 0 < boundary < 1:
        raise InputError(
            f"{index}: boundary_ratio, the time from 0 to 1 below which {of.second.name} is the network, must be a "
            f"number between them, not {boundary!r:.50}"
        )
    other = config_of(of.second)
    for key in (
        "_class_name",
        "in_channels",
        "out_channels",
        "text_dim",
        "image_dim",
        "patch_size",
        "rope_max_seq_len",
    ):
        if other.get(key) != of.config.get(key):
            raise of.refuse(
                f"{key} is {of.config.get(key)!r:.50}, but that of {of.second.name} is {other.get(key)!r:.50}: copy "
                "both networks from one pipeline"
            )
    return boundary


def cogvideox(of: Pipeline) -> Told:
    """Return how CogVideoX's network is called. It takes sizes other than its own unless it has learned positions."""
    if of.config.get("ofs_embed_dim"):
        raise of.refuse("the network takes an image too, which odeddim does not support")
    tokens = of.config.get("max_text_seq_length", 226)
    encoder = TextEncoder(of.folder, of.index, longest=tokens)
    of.check_width("text_embed_dim", encoder.width)
    patch = of.config.get("patch_size", 2)
    if of.config.get("use_learned_positional_embeddings"):
        sizes = Sizes(of.shape)
    elif of.config.get("patch_size_t"):
        # Its positions end with its own height and width. Its number of frames is even, see the autoencoder.
        sizes = Sizes(of.shape, patch, min(of.shape[2:]))
    else:
        sizes = Sizes(of.shape, patch, frames=2 if of.shape[1] > 1 else None)
    return Told(_cogvideox, sizes, Prompts(CogVideoXTexts(encoder)), [encoder])


@dataclass(frozen=True)
class WanTexts:
    """Wan's text encoder: a text -> hidden states (1, n, width), zeros beyond the text."""

    encoder: TextEncoder

    def __call__(self, text: str) -> Given:
        text = " ".join(html.unescape(html.unescape(text)).split())
        found = self.encoder(text)
        return (found.last * found.mask[..., None].to(found.last),)


@dataclass(frozen=True)
class CogVideoXTexts:
    """CogVideoX's text encoder: a text -> hidden states (1, n, width)."""

    encoder: TextEncoder

    def __call__(self, text: str) -> Given:
        return (self.encoder(text).last,)


# Calls, by name: a field that holds one must be picklable.


def _wan(network: nn.Module, x: Tensor, t: Tensor, text: Tensor) -> Any:
    return network(x, timestep=t, encoder_hidden_states=text)


def _cogvideox(network: Any, x: Tensor, t: Tensor, text: Tensor) -> Any:
    x = x.movedim(2, 1)
    its, places = network.config, None
    if its.use_rotary_positional_embeddings:
        patch = its.patch_size
        grid, base = (tuple(side // patch for side in sides) for sides in (x.shape[3:], _base(its)))
        places = _rotary(its.attention_head_dim, x.shape[1], grid, base, its.patch_size_t, x.device)
    answer = network(x, timestep=t, encoder_hidden_states=text, image_rotary_emb=places)
    return SimpleNamespace(sample=answer.sample.movedim(2, 1))


def _base(config: Any) -> tuple[int, int]:
    """The height and width of the data that CogVideoX's network was trained on."""
    return config.sample_height, config.sample_width


@functools.lru_cache(4)
def _rotary(
    width: int, frames: int, grid: tuple[int, int], base: tuple[int, int], depth: int | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The rotary embedding of the places of CogVideoX's patches, (f·h·w, width) cosines and sines.

    Args:
        width: The channels of an attention head.
        frames: The number of frames of the data.
        grid: The patches of a frame, downwards and across.
        base: Those of a frame of the size of training. CogVideoX 1 puts the places of other sizes into the largest
            rectangle of their proportions in its middle; 1.5 counts from the corner.
        depth: The frames of a patch of CogVideoX 1.5; None for CogVideoX 1.
        device: Where the network runs.
    """
    make = library("diffusers.models.embeddings").get_3d_rotary_pos_embed
    if depth is not None:
        found = make(width, None, grid, -(-frames // depth), grid_type="slice", max_size=base, device=device)
    else:
        scale = min(there / here for here, there in zip(grid, base, strict=True))
        sides = [round(here * scale) for here in grid]
        begin = [round((there - side) / 2) for there, side in zip(base, sides, strict=True)]
        corners = tuple(begin), tuple(at + side for at, side in zip(begin, sides, strict=True))
        found = make(width, corners, grid, frames, device=device)
    cosines, sines = found
    return cosines, sines
