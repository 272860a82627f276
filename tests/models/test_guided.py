"""guided-diffusion's and improved-diffusion's checkpoints: against the published equations written out over the state
dict, diffusers' U-Net with the same weights, the papers' sizes, and DDIM as guided-diffusion samples it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import refused
from torch import Tensor
from torch.nn import functional as F

import odeddim
from odeddim import solvers
from odeddim.models import weights
from odeddim.models.formats import guided
from odeddim.models.networks.adm import ADM
from odeddim.ode.schedule import Schedule
from odeddim.plans import Plan, integrate
from odeddim.types import InputError, State

# An image of 8×8 on three levels, attention on the two lower ones; GroupNorm's 32 groups make it as wide as that.
SMALL: dict[str, Any] = {"channels": 32, "widths": [32, 64, 64], "blocks": 1, "attention": [1, 2]}
KINDS: dict[str, dict[str, Any]] = {
    "guided": {
        "scale_shift": True,
        "resampling": "block",
        "heads_first": False,
        "head_channels": 16,
        "heads": 1,
        "up_heads": 1,
        "classes": 5,
    },
    "guided-legacy": {
        "scale_shift": True,
        "resampling": "block",
        "head_channels": 32,
        "heads": 1,
        "up_heads": 1,
        "blocks": 2,
        "attention": [2],
    },
    "improved": {"scale_shift": True, "resampling": "convolution", "heads": 4, "up_heads": 2, "channels": 64},
    "improved-lsun": {"scale_shift": False, "heads": 1, "up_heads": 1, "in_channels": 1, "out_channels": 2},
    "pooled": {"scale_shift": False, "resampling": "pooling", "heads": 2, "up_heads": 2, "out_channels": 3},
    "one-level": {
        "widths": [64],
        "attention": [],
        "resampling": "pooling",
        "heads_first": False,
        "heads": 2,
        "up_heads": 2,
        "channels": 32,
    },
}
FLAGS = {
    "image_size": 8,
    "noise_schedule": "linear",
    "diffusion_steps": 1000,
    "predict_xstart": False,
    "rescale_timesteps": False,
}


def network(kind: str, seed: int = 0) -> ADM:
    """A network of a kind, all of its weights drawn."""
    net = ADM(**{"out_channels": 6, **SMALL, **KINDS[kind]})
    chance = torch.Generator().manual_seed(seed)
    for name, parameter in net.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else 0.08, generator=chance)
        if name.endswith("0.weight") and parameter.ndim == 1:
            parameter.data += 1
    return net.eval().requires_grad_(False)


def flags_of(net: ADM, **more: Any) -> dict[str, Any]:
    """What the JSON file beside it must say."""
    c = net.config
    heads = {"num_head_channels": c["head_channels"]} if c["head_channels"] else {"num_heads": c["heads"]}
    return {
        **FLAGS,
        **heads,
        "num_heads_upsample": c["up_heads"],
        "use_new_attention_order": not c["heads_first"],
        **more,
    }


def saved(folder: Path, net: ADM, name: str = "ema_0.9999_000100.pt", **more: Any) -> Path:
    path = folder / name
    torch.save(net.state_dict(), path)
    path.with_suffix(".json").write_text(json.dumps(flags_of(net, **more)))
    return path


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# The network, over names: an interpreter of state dicts.


def reference(net: ADM, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    """What guided-diffusion computes, written from its architecture: float64, attention head by head."""
    w = {name: value.double() for name, value in net.named_parameters()}
    c = net.config

    def group_norm(h: Tensor, name: str) -> Tensor:
        parts = h.reshape(len(h), 32, -1)
        parts = (parts - parts.mean(2, keepdim=True)) / (parts.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
        side = (1, -1, *[1] * (h.ndim - 2))
        return parts.reshape(h.shape) * w[f"{name}.weight"].reshape(side) + w[f"{name}.bias"].reshape(side)

    def conv(h: Tensor, name: str, **how: Any) -> Tensor:
        return F.conv2d(h, w[f"{name}.weight"], w[f"{name}.bias"], **how)

    def linear(h: Tensor, name: str) -> Tensor:
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def silu(h: Tensor) -> Tensor:
        return h * torch.sigmoid(h)

    def doubled(h: Tensor) -> Tensor:
        return h.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def halved(h: Tensor) -> Tensor:
        return (h[..., ::2, ::2] + h[..., 1::2, ::2] + h[..., ::2, 1::2] + h[..., 1::2, 1::2]) / 4

    def residual(h: Tensor, name: str, resize: Any = lambda h: h) -> Tensor:
        inner = conv(resize(silu(group_norm(h, f"{name}.in_layers.0"))), f"{name}.in_layers.2", padding=1)
        told = linear(silu(features), f"{name}.emb_layers.1")[..., None, None]
        if c["scale_shift"]:
            half = told.shape[1] // 2
            inner = group_norm(inner, f"{name}.out_layers.0") * (1 + told[:, :half]) + told[:, half:]
        else:
            inner = group_norm(inner + told, f"{name}.out_layers.0")
        inner = conv(silu(inner), f"{name}.out_layers.3", padding=1)
        h = resize(h)
        return inner + (conv(h, f"{name}.skip_connection") if f"{name}.skip_connection.weight" in w else h)

    def attention(h: Tensor, name: str, heads: int) -> Tensor:
        batch, channels, height, width = h.shape
        flat = group_norm(h, f"{name}.norm").flatten(2)
        qkv = torch.einsum("oc,bcp->bop", w[f"{name}.qkv.weight"][..., 0], flat) + w[f"{name}.qkv.bias"][:, None]
        size = channels // heads
        out = []
        for head in range(heads):
            if c["heads_first"]:
                q, k, v = (qkv[:, (3 * head + part) * size :][:, :size] for part in range(3))
            else:
                q, k, v = (qkv[:, part * channels + head * size :][:, :size] for part in range(3))
            share = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / math.sqrt(size), dim=-1)
            out.append(torch.einsum("bij,bcj->bci", share, v))
        mixed = torch.einsum("oc,bcp->bop", w[f"{name}.proj_out.weight"][..., 0], torch.cat(out, 1))
        return h + (mixed + w[f"{name}.proj_out.bias"][:, None]).reshape(batch, channels, height, width)

    def heads_at(level: int, count: int) -> int:
        return c["widths"][level] // c["head_channels"] if c["head_channels"] else count

    half = c["channels"] // 2
    angles = t.double()[:, None] * c["time_scale"] * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    features = linear(silu(linear(torch.cat([angles.cos(), angles.sin()], 1), "time_embed.0")), "time_embed.2")
    if y is not None:
        features = features + w["label_emb.weight"][y]
    levels = len(c["widths"])
    h = conv(x.double(), "input_blocks.0.0", padding=1)
    skips, place = [h], 0
    for level in range(levels):
        for _ in range(c["blocks"]):
            place += 1
            h = residual(h, f"input_blocks.{place}.0")
            if level in c["attention"]:
                h = attention(h, f"input_blocks.{place}.1", heads_at(level, c["heads"]))
            skips.append(h)
        if level < levels - 1:
            place += 1
            if c["resampling"] == "block":
                h = residual(h, f"input_blocks.{place}.0", halved)
            elif c["resampling"] == "convolution":
                h = conv(h, f"input_blocks.{place}.0.op", stride=2, padding=1)
            else:
                h = halved(h)
            skips.append(h)
    h = residual(h, "middle_block.0")
    h = residual(attention(h, "middle_block.1", heads_at(levels - 1, c["heads"])), "middle_block.2")
    place = 0
    for level in reversed(range(levels)):
        for block in range(c["blocks"] + 1):
            h = residual(torch.cat([h, skips.pop()], 1), f"output_blocks.{place}.0")
            inside = 1
            if level in c["attention"]:
                h = attention(h, f"output_blocks.{place}.1", heads_at(level, c["up_heads"]))
                inside = 2
            if level and block == c["blocks"]:
                if c["resampling"] == "block":
                    h = residual(h, f"output_blocks.{place}.{inside}", doubled)
                elif c["resampling"] == "convolution":
                    h = conv(doubled(h), f"output_blocks.{place}.{inside}.conv", padding=1)
                else:
                    h = doubled(h)
            place += 1
    return conv(silu(group_norm(h, "out.0")), "out.2", padding=1)


def close(ours: Tensor, theirs: Tensor, to: float = 1e-5) -> None:
    error = float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())
    assert error < to, error


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_the_published_network(kind: str, tmp_path: Path) -> None:
    net = network(kind)
    field = odeddim.load(saved(tmp_path, net))
    assert field.details["architecture"] == net.config
    assert field.details["weights"] == "ema"
    assert not field.details["assumed"]
    c = net.config
    x = draw(4, c["in_channels"], 8, 8)
    y = torch.tensor([3, 0, 4, 2]) if c["classes"] else None
    given = () if y is None else (y,)
    for t in (torch.tensor([0.0, 1.0, 500.0, 999.0]), torch.tensor([0.25, 17.3, 501.5, 998.99])):
        ours = field.eps(x, t, *given)  # type: ignore[call-arg]
        theirs = reference(net, x, t, y)[:, : c["in_channels"]]
        assert ours.shape == x.shape
        close(ours, theirs)


def test_every_weight_counts() -> None:
    """What the reference does not read would prove nothing."""
    for kind in ("guided", "improved"):
        net = network(kind).requires_grad_(True)
        y = torch.tensor([0, 1, 2, 3, 4]) if net.config["classes"] else None
        reference(net, draw(5, 3, 8, 8), torch.linspace(0, 999, 5), y).square().sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.abs().sum() > 0), name


# diffusers.


def diffusers_state(net: ADM) -> dict[str, Tensor]:
    """The state dict under the names of diffusers' UNet2DModel; q, k, v apart, and in its order of heads."""
    c, out = net.config, {}
    per_level = c["blocks"] + 1
    parts = {
        "in_layers.0": "norm1",
        "in_layers.2": "conv1",
        "emb_layers.1": "time_emb_proj",
        "out_layers.0": "norm2",
        "out_layers.3": "conv2",
        "skip_connection": "conv_shortcut",
    }
    whole = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
    }
    for name, value in net.state_dict().items():
        head, kind = name.rsplit(".", 1)
        where = next((known for known in whole if name.startswith(known + ".")), None)
        if where is not None:
            home = whole[where]
        elif name.startswith("label_emb"):
            where, home = "label_emb", "class_embedding"
        else:
            side, number, inside, *_ = name.split(".")
            where = f"{side}.{number}.{inside}"
            down = side == "input_blocks"
            level, block = divmod(int(number) - down, per_level)
            resizes = (down and block == c["blocks"]) or "conv.weight" in name or name.endswith(f"{inside}.conv.bias")
            attends = ".qkv." in name or ".proj_out." in name or f"{where}.norm." in name
            if not down and inside != "0" and not attends:
                resizes = True
            group = (
                ("downsamplers.0" if down else "upsamplers.0")
                if resizes
                else (f"attentions.{block}" if attends else f"resnets.{block}")
            )
            home = f"{'down' if down else 'up'}_blocks.{level}.{group}"
        rest = head.removeprefix(where).removeprefix(".")
        if rest == "qkv":
            heads = value.shape[0] // 3 // c["head_channels"] if c["head_channels"] else c["heads"]
            shape = (heads, 3, -1) if c["heads_first"] else (3, heads, -1)
            pieces = value.unflatten(0, shape).unbind(1 if c["heads_first"] else 0)
            for letter, piece in zip("qkv", pieces, strict=True):
                out[f"{home}.to_{letter}.{kind}"] = piece.flatten(0, 1).squeeze(-1)
            continue
        if ".attentions." in home:
            rest, value = {"norm": "group_norm", "proj_out": "to_out.0"}[rest], value.squeeze(-1)
        rest = {"op": "conv"}.get(rest, parts.get(rest, rest))
        out[".".join(part for part in (home, rest, kind) if part)] = value
    return out


@pytest.mark.parametrize("kind", ["guided", "guided-legacy", "improved-lsun"])
def test_diffusers_gives_the_same(kind: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    net = network(kind)
    c = net.config
    attends = [level in c["attention"] for level in range(len(c["widths"]))]
    theirs = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=c["in_channels"],
        out_channels=c["out_channels"],
        block_out_channels=c["widths"],
        layers_per_block=c["blocks"],
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attends]
        if c["resampling"] != "block"
        else ["AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)]
        if c["resampling"] != "block"
        else ["AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends)],
        downsample_type="resnet" if c["resampling"] == "block" else "conv",
        upsample_type="resnet" if c["resampling"] == "block" else "conv",
        attention_head_dim=c["head_channels"],
        resnet_time_scale_shift="scale_shift" if c["scale_shift"] else "default",
        flip_sin_to_cos=True,
        freq_shift=0,
        norm_eps=1e-5,
        norm_num_groups=32,
        attn_norm_num_groups=32,
        num_class_embeds=c["classes"],
    )
    theirs.load_state_dict(diffusers_state(net))
    theirs.eval()
    y = torch.tensor([1, 4]) if c["classes"] else None
    x, t = draw(2, c["in_channels"], 8, 8), torch.tensor([3.0, 812.5])
    with torch.no_grad():
        close(net(x, t, y), theirs(x, t, class_labels=y).sample)


# The published files.

TIMES_64, TIMES_128, TIMES_256 = (1, 2, 3, 4), (1, 1, 2, 3, 4), (1, 1, 2, 2, 4, 4)
SIZES = {
    # name: channels, times, blocks, attention at, head_channels or heads, classes, millions of parameters, as the
    # papers and the files' names have them (2105.05233, table 11 and on; DDPM's LSUN network has 114 M)
    "64x64_diffusion.pt": (192, TIMES_64, 3, (32, 16, 8), 64, 1000, 296),
    "128x128_diffusion.pt": (256, TIMES_128, 2, (32, 16, 8), None, 1000, 422),
    "256x256_diffusion.pt": (256, TIMES_256, 2, (32, 16, 8), 64, 1000, 554),
    "256x256_diffusion_uncond.pt": (256, TIMES_256, 2, (32, 16, 8), 64, None, 553),
    "512x512_diffusion.pt": (256, (0.5, *TIMES_256), 2, (32, 16, 8), 64, 1000, 559),
    "lsun_bedroom.pt": (256, TIMES_256, 2, (32, 16, 8), 64, None, 553),
    "cifar10_uncond_50M_500K.pt": (128, (1, 2, 2, 2), 3, (16, 8), None, None, 53),
    "imagenet64_uncond_100M_1500K.pt": (128, TIMES_64, 3, (16, 8), None, None, 121),
    "imagenet64_cond_270M_250K.pt": (192, TIMES_64, 3, (16, 8), None, 1000, 273),
    "lsun_uncond_100M_1200K_bs128.pt": (128, TIMES_256, 2, (16,), None, None, 114),
}


@pytest.mark.parametrize("name", SIZES)
def test_published_checkpoints_by_their_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    channels, times, blocks, attention, head_channels, classes, millions = SIZES[name]
    flags = guided.PUBLISHED[name]
    size, improved = flags["image_size"], "M_" in name
    config: dict[str, Any] = {
        "out_channels": 6,
        "channels": channels,
        "widths": [int(channels * time) for time in times],
        "blocks": blocks,
        "attention": [level for level in range(len(times)) if size // 2**level in attention],
        "head_channels": head_channels,
        "scale_shift": "lsun_uncond" not in name,
        "resampling": "convolution" if improved else "block",
        "classes": classes,
        "heads_first": name != "64x64_diffusion.pt",
        "time_scale": 0.25 if flags["rescale_timesteps"] else 1.0,
    }
    config |= {"heads": 1, "up_heads": 1} if head_channels or "lsun" in name else {}
    with torch.device("meta"):
        net = ADM(**config)
    assert round(sum(parameter.numel() for parameter in net.parameters()) / 1e6) == millions
    monkeypatch.setattr(weights, "read", lambda path: net.state_dict())
    monkeypatch.setattr(weights, "fit", lambda network, state, path: network)
    monkeypatch.setattr(weights, "hash_of", lambda *paths, **settings: "hash")
    field = guided.read(tmp_path / name)
    assert field.details["architecture"] == net.config
    assert field.shape == (3, size, size)
    assert name in field.details["assumed"][0]
    assert field.predicts == "eps"
    assert field.time == "index"
    assert flags["rescale_timesteps"] == (improved and "cond_270M" not in name and "lsun" not in name)
    cosine = (improved and "lsun" not in name) or name == "64x64_diffusion.pt"
    steps = 4000 if improved and "lsun" not in name else 1000
    assert field.schedule == (Schedule.cosine(steps) if cosine else Schedule.linear())
    # Another network under this name is noticed.
    with torch.device("meta"):
        other = ADM(**{**config, "blocks": blocks + 1})
    monkeypatch.setattr(weights, "read", lambda path: other.state_dict())
    with pytest.raises(InputError, match=f"{name}, with the flags of the published.*num_res_blocks is {blocks}, but"):
        guided.read(tmp_path / name)


def test_settings_beside_a_published_name_come_first(tmp_path: Path) -> None:
    path = saved(tmp_path, network("improved"), "64x64_diffusion.pt")
    assert odeddim.load(path).shape == (3, 8, 8)


# Sampling.


def betas(name: str, steps: int) -> np.ndarray[Any, Any]:
    """guided-diffusion's two schedules."""
    if name == "linear":
        return np.linspace(0.1 / steps, 20 / steps, steps)
    bar = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
    return np.array([min(1 - bar[i + 1] / bar[i], 0.999) for i in range(steps)])


@pytest.mark.parametrize(
    ("kind", "schedule", "steps", "rescale", "start_x"),
    [
        ("guided", "cosine", 1000, False, False),
        ("improved", "cosine", 4000, True, False),
        ("guided-legacy", "linear", 1000, True, True),
        ("improved-lsun", "linear", 400, True, False),
    ],
)
def test_twenty_steps_of_ddim(
    kind: str, schedule: str, steps: int, rescale: bool, start_x: bool, tmp_path: Path
) -> None:
    """ddim_sample with η = 0 and respaced β, and ddim_reverse_sample's formula with the label of the source."""
    net = network(kind)
    said = {"noise_schedule": schedule, "diffusion_steps": steps, "rescale_timesteps": rescale}
    field = odeddim.load(saved(tmp_path, net, **said, predict_xstart=start_x))
    y = None
    if net.config["classes"]:
        field, y = field.conditioned(3), torch.tensor([3, 3])

    kept = list(range(0, steps, steps // 20))  # space_timesteps(steps, "ddim20")
    base = np.cumprod(1 - betas(schedule, steps))
    respaced = 1 - base[kept] / np.append(1.0, base[kept][:-1])
    bar = np.cumprod(1 - respaced)
    before = np.append(1.0, bar[:-1])

    def parts(x: Tensor, i: int) -> tuple[Tensor, Tensor]:
        label = torch.full((len(x),), kept[i] * (1000.0 / steps if rescale else 1.0))
        out = reference(net, x, label, y)[:, : x.shape[1]]
        if start_x:
            return out, (x / math.sqrt(bar[i]) - out) / math.sqrt(1 / bar[i] - 1)
        return math.sqrt(1 / bar[i]) * x - math.sqrt(1 / bar[i] - 1) * out, out

    c = net.config["in_channels"]
    noise = draw(2, c, 8, 8).double()
    x = noise
    for i in reversed(range(20)):
        x0, eps = parts(x, i)
        x = math.sqrt(before[i]) * x0 + math.sqrt(1 - before[i]) * eps
    nodes = torch.cat([torch.zeros(1), field.schedule.levels[kept]]).double()
    euler = solvers.get("euler")
    top = State(noise * float((1 + nodes[-1] ** 2) ** 0.5), float(nodes[-1]))
    close(integrate(field, top, Plan(euler, nodes)).xbar, x, 2e-5)
    assert field.nfe == 20
    # Up again, from σ_1: the first step from 0 has no label of its own in guided-diffusion.
    x = image = draw(2, c, 8, 8, seed=2).double()
    for i in range(19):
        x0, eps = parts(x, i)
        x = math.sqrt(bar[i + 1]) * x0 + math.sqrt(1 - bar[i + 1]) * eps
    start = image * float((1 + nodes[1] ** 2) ** 0.5)
    state = integrate(field, State(start, float(nodes[1])), Plan(euler, nodes[1:]))
    close(state.x, x, 2e-5)


def test_classes_are_needed_and_guidance_needs_null(tmp_path: Path) -> None:
    net = network("guided")
    path = saved(tmp_path, net)
    field = odeddim.load(path)
    x = draw(2, 3, 8, 8).double()
    with pytest.raises(InputError, match="needs a class"):
        field(torch.tensor(1.0), x)
    with pytest.raises(InputError, match="has no unconditional mode"):
        field.conditioned(1, guidance=2.0)
    path = saved(tmp_path, net, null=4)
    label, t = 1, torch.full((2,), 999.0)
    field = odeddim.load(path)
    sigma = field.schedule.levels[-1]
    guided_by_3 = field.conditioned(label, guidance=3.0)(sigma, x)
    inner = x / math.sqrt(1 + float(sigma) ** 2)
    told, none = (reference(net, inner, t, torch.tensor([k, k]))[:, :3] for k in (label, 4))
    close(guided_by_3, none + 3 * (told - none), 5e-5)  # what float32 loses in the difference, threefold


def test_half_precision_is_made_single(tmp_path: Path) -> None:
    net = network("improved")
    path = saved(tmp_path, net, "model000100.pt")
    torch.save({name: value.half() for name, value in net.state_dict().items()}, path)
    field = odeddim.load(path)
    assert field.dtype == torch.float32
    assert field.details["weights"] == "as saved"
    x, t = draw(1, 3, 8, 8), torch.tensor([12.5])
    close(field.eps(x, t), net.half().float()(x, t)[:, :3])


def test_the_hash_is_of_weights_and_of_what_says_how_to_read_them(tmp_path: Path) -> None:
    net = network("pooled")
    first = odeddim.load(saved(tmp_path, net)).sha256
    assert first == odeddim.load(saved(tmp_path, net)).sha256
    assert first != odeddim.load(saved(tmp_path, net, num_heads=1)).sha256
    assert first != odeddim.load(saved(tmp_path, network("pooled", seed=1))).sha256


def test_safetensors_and_old_files(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    net = network("one-level")
    path = saved(tmp_path, net)
    x, t = draw(1, 3, 8, 8), torch.tensor([12.5])
    expected = net(x, t)[:, :3]
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
    assert torch.equal(odeddim.load(path).eps(x, t), expected)
    for suffix in (".safetensors", ".SAFETENSORS"):
        save_file(net.state_dict(), path.with_suffix(suffix))
        assert torch.equal(odeddim.load(path.with_suffix(suffix)).eps(x, t), expected)
    path.rename(path.with_suffix(".PT"))
    assert torch.equal(odeddim.load(path.with_suffix(".PT")).eps(x, t), expected)


# What cannot be read.


def test_what_is_not_said_is_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path, network("improved"))
    path.with_suffix(".json").unlink()
    refused(path, *FLAGS, "num_heads", "use_new_attention_order", str(path.with_suffix(".json")), '{"image_size": 64,')
    said = flags_of(network("improved"))
    for key in (*FLAGS, "num_heads"):
        path.with_suffix(".json").write_text(json.dumps({name: said[name] for name in said if name != key}))
        refused(path, f"does not hold the settings {key} of its network", f'{{"{key}": ')
    # The very example makes it whole, if it is true.
    path.with_suffix(".json").write_text(json.dumps(said))
    odeddim.load(path)


def test_the_flags_of_improved_diffusion_suffice(tmp_path: Path) -> None:
    """All that its scripts have (script_util.py's defaults): its attention has one order, the old one, and no flag."""
    net = network("improved")
    path = saved(tmp_path, net)
    flags = {
        "image_size": 8,
        "num_channels": 64,
        "num_res_blocks": 1,
        "num_heads": 4,
        "num_heads_upsample": 2,
        "attention_resolutions": "4,2",
        "dropout": 0.0,
        "learn_sigma": True,
        "sigma_small": False,
        "class_cond": False,
        "diffusion_steps": 4000,
        "noise_schedule": "cosine",
        "timestep_respacing": "",
        "use_kl": False,
        "predict_xstart": False,
        "rescale_timesteps": True,
        "rescale_learned_sigmas": True,
        "use_checkpoint": False,
        "use_scale_shift_norm": True,
    }
    path.with_suffix(".json").write_text(json.dumps(flags))
    field = odeddim.load(path)
    assert field.schedule == Schedule.cosine(4000)
    assert field.details["assumed"] == ["use_new_attention_order false, as in improved-diffusion"]
    x, t = draw(2, 3, 8, 8), torch.tensor([12.0, 1234.0])
    close(field.eps(x, t).double(), reference(net, x.double(), t / 4)[:, :3])  # rescaled to 0...1000
    # guided-diffusion has two orders, so a network that is its own must say which one.
    for more in ({"resblock_updown": False}, {"channel_mult": ""}, {"num_head_channels": -1}):
        path.with_suffix(".json").write_text(json.dumps({**flags, **more}))
        refused(path, "does not hold the settings use_new_attention_order of its network")
    path = saved(tmp_path, network("guided"), num_heads=1)
    said = json.loads(path.with_suffix(".json").read_text())
    for name in ("num_head_channels", "use_new_attention_order"):
        del said[name]
    path.with_suffix(".json").write_text(json.dumps(said))
    refused(path, "does not hold the settings use_new_attention_order of its network")


def test_flags_against_the_weights(tmp_path: Path) -> None:
    net = network("guided")
    right = {
        "num_channels": 32,
        "num_res_blocks": 1,
        "channel_mult": "1,2,2",
        "attention_resolutions": "4,2",
        "class_cond": True,
        "classes": 5,
        "learn_sigma": True,
        "use_scale_shift_norm": True,
        "resblock_updown": True,
        "use_fp16": True,
        "dropout": 0.1,
        "timestep_respacing": "250",
    }
    path = saved(tmp_path, net, **right)
    odeddim.load(path)
    odeddim.load(saved(tmp_path, net, **{**right, "attention_resolutions": "32,4,2", "channel_mult": ""}))
    wrong = {
        "num_channels": 64,
        "num_res_blocks": 2,
        "channel_mult": "1,2,4",
        "attention_resolutions": "4",
        "class_cond": False,
        "classes": 4,
        "learn_sigma": False,
        "use_scale_shift_norm": False,
        "resblock_updown": False,
    }
    for key, value in wrong.items():
        refused(saved(tmp_path, net, **{**right, key: value}), f"{key} is ", "the weights show")
    others = {
        "num_head_channels": 24,
        "image_size": 10,
        "noise_schedule": "sqrt",
        "diffusion_steps": 1,
        "predict_xstart": "no",
        "null": 5,
        "channel_mult": "a",
    }
    for key, value in others.items():
        refused(saved(tmp_path, net, **{key: value}), {"image_size": "10×10"}.get(key, str(value)))
    for key, value in {"diffusion_steps": 10**12, "num_head_channels": 0, "num_heads_upsample": 0}.items():
        refused(saved(tmp_path, net, **{key: value}))
    for said in ({"image_sizes": 3}, {"shape": [3, 8, 8]}, {"predicts": "v"}, {"time": "unit"}, {"image_size": True}):
        refused(saved(tmp_path, net, **said))


def test_odeddims_own_words_do_as_well(tmp_path: Path) -> None:
    net = network("pooled")
    path = saved(tmp_path, net)
    own = {
        "schedule": {"name": "scaled_linear", "T": 500},
        "predicts": "v",
        "time": "unit",
        "shape": [3, 16, 8],
        "num_heads": 2,
        "use_new_attention_order": False,
    }
    path.with_suffix(".json").write_text(json.dumps(own))
    field = odeddim.load(path)
    assert (field.schedule, field.predicts, field.time) == (Schedule.scaled_linear(500), "v", "unit")
    assert field.shape == (3, 16, 8)
    path.with_suffix(".json").write_text(json.dumps({**own, "predicts": "noise"}))
    refused(path, "unknown prediction 'noise'")
    path.with_suffix(".json").write_text(json.dumps({**own, "time": "seconds"}))
    refused(path, "unknown time label")


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    net = network("one-level")
    path = saved(tmp_path, net)
    content = path.read_bytes()
    for size in (len(content) - 1, len(content) - 400, len(content) // 2, len(content) // 10):
        path.write_bytes(content[:size])
        refused(path)
    state = net.state_dict()
    for name in state:
        torch.save({key: value for key, value in state.items() if key != name}, path)
        if name not in ("time_embed.0.weight", "input_blocks.0.0.weight", "input_blocks.0.0.bias"):
            refused(path)
    changed = {
        "middle_block.1.qkv.weight": state["middle_block.1.qkv.weight"][:-3],
        "out.2.weight": torch.zeros(4, 64, 3, 3),
        "input_blocks.0.0.weight": torch.zeros(64, 6, 3, 3),
        "out.0.weight": torch.full((64,), math.nan),
        "input_blocks.99999999999.0.op.weight": torch.zeros(1),
        "input_blocks.x.0.op.weight": torch.zeros(1),
        "output_blocks.0.0.more": torch.zeros(1),
        "input_blocks.1.1.transformer_blocks.0.norm1.weight": torch.zeros(1),
        "time_embed.0.weight": torch.tensor(0.0),
        "epoch": 3,
    }
    for name, value in changed.items():
        torch.save({**state, name: value}, path)
        refused(path)
    torch.save({name: value for name, value in state.items() if "output_blocks" not in name}, path)
    refused(path, "is a classifier")
    torch.save({**state, "input_blocks.0.0.weight": torch.zeros(64, 6, 3, 3)}, path)
    refused(path, "is an upsampler")
    torch.save({**state, **{name: state[name][:48] for name in state if name.startswith("input_blocks.1.")}}, path)
    refused(path)
    torch.save({"model": state, "step": 3}, path)
    refused(path, "is not a state dict", "save the model's state_dict by itself")
    torch.save(state, path)
    for text in ("", "[]", "{", '{"image_size"}', "null"):
        path.with_suffix(".json").write_text(text)
        refused(path)


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    net = network("one-level")
    good = saved(tmp_path, net)
    assert guided.matches(good)
    others = {
        "latent.ckpt": {"state_dict": {f"model.diffusion_model.{k}": v for k, v in net.state_dict().items()}},
        "ddim.ckpt": {"temb.dense.0.weight": torch.zeros(1)},
    }
    for name, content in others.items():
        torch.save(content, tmp_path / name)
        assert not guided.matches(tmp_path / name)
    for name, blob in {"a.pt": b"", "b.pt": b"PK\x03\x04", "c.pkl": good.read_bytes()}.items():
        (tmp_path / name).write_bytes(blob)
        assert not guided.matches(tmp_path / name)
    (tmp_path / "folder.pt").mkdir()
    assert not guided.matches(tmp_path / "folder.pt")
    assert not guided.matches(tmp_path / "none.pt")
