"""k-diffusion's checkpoints: its U-Net written out over the state dict, its own sampler, and what is not read."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import refused
from torch import Tensor
from torch.nn import functional as F

import odeddim
from odeddim import solvers
from odeddim.models import weights
from odeddim.models.formats import k_diffusion
from odeddim.plans import Plan, integrate
from odeddim.types import State


def config(**more: Any) -> dict[str, Any]:
    """A configuration as train.py takes it."""
    model = {
        "type": "image_v1",
        "input_channels": 3,
        "input_size": [8, 8],
        "patch_size": 1,
        "mapping_out": 16,
        "depths": [1, 2],
        "channels": [32, 64],
        "self_attn_depths": [False, True],
        "has_variance": False,
        "loss_config": "karras",
        "loss_weighting": "soft-min-snr",
        "dropout_rate": 0.05,
        "augment_wrapper": True,
        "augment_prob": 0.12,
        "sigma_data": 0.6162,
        "sigma_min": 1e-2,
        "sigma_max": 80,
        "sigma_sample_density": {"type": "cosine-interpolated"},
        **more,
    }
    return {"model": model, "dataset": {"type": "cifar10", "location": "data"}, "optimizer": {"type": "adamw"}}


def layout(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the state dict of `ImageDenoiserModelV1`, in its wrapper for augmentations or not."""
    m = c["model"]
    feats, widths, last = m["mapping_out"], m["channels"], len(m["channels"]) - 1
    squared, shapes = m["patch_size"] ** 2, {}

    def layer(name: str, outer: int, *inner: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (outer, *inner)
        if bias:
            shapes[f"{name}.bias"] = (outer,)

    def blocks(name: str, first: int, channels: list[int], middle: int, attends: bool) -> None:
        place = first
        for inner, outer in itertools.pairwise(channels):
            layer(f"{name}.{place}.main.0.mapper", 2 * inner, feats)
            layer(f"{name}.{place}.main.2", middle, inner, 3, 3)
            layer(f"{name}.{place}.main.4.mapper", 2 * middle, feats)
            layer(f"{name}.{place}.main.6", outer, middle, 3, 3)
            if inner != outer:
                layer(f"{name}.{place}.skip", outer, inner, 1, 1, bias=False)
            if attends:
                layer(f"{name}.{place + 1}.norm_in.mapper", 2 * outer, feats)
                layer(f"{name}.{place + 1}.qkv_proj", 3 * outer, outer, 1, 1)
                layer(f"{name}.{place + 1}.out_proj", outer, outer, 1, 1)
            place += 2 if attends else 1

    shapes["timestep_embed.weight"] = (feats // 2, 1)
    if m["augment_wrapper"]:
        shapes["mapping_cond.weight"] = (feats, 9)
    layer("mapping.0", feats, feats)
    layer("mapping.2", feats, feats)
    layer("proj_in", widths[0], m["input_channels"] * squared, 1, 1)
    layer("proj_out", m["input_channels"] * squared + m["has_variance"], widths[0], 1, 1)
    for level, width in enumerate(widths):
        depth, attends, finer = m["depths"][level], m["self_attn_depths"][level], widths[max(0, level - 1)]
        down, up = f"u_net.d_blocks.{level}", f"u_net.u_blocks.{last - level}"
        blocks(down, 1, [finer, *[width] * depth], width, attends)
        blocks(up, 0, [width if level == last else 2 * width, *[width] * (depth - 1), finer], width, attends)
        if level:
            shapes[f"{down}.0.kernel"] = (4, 4)
            shapes[f"{up}.{depth * (2 if attends else 1)}.kernel"] = (4, 4)
    wrapper = "inner_model." if m["augment_wrapper"] else ""
    return {wrapper + name: shape for name, shape in shapes.items()}


def drawn(c: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in layout(c).items():
        size = 0.7 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.3
        state[name] = torch.randn(shape, generator=chance) * (1 if "timestep" in name else size)
        if name.endswith("kernel"):
            row = torch.tensor([1, 3, 3, 1]) / (8 if "d_blocks" in name else 4)
            state[name] = torch.outer(row, row)
    return state


def saved(folder: Path, c: dict[str, Any], name: str = "model_00100000.pth") -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint as training or the converter writes it, and its averaged weights."""
    path, state = folder / name, drawn(c)
    if name.endswith("safetensors"):
        save_file(state, path, metadata={"config": json.dumps(c, indent=4)})
    else:
        whole = {"config": c, "model": drawn(c, seed=1), "model_ema": state, "opt": {"state": {}}, "step": 9}
        torch.save({**whole, "gns_stats": None, "ema_stats": {}, "demo_gen": torch.get_rng_state()}, path)
    return path, state


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def reference(c: dict[str, Any], state: dict[str, Tensor], x: Tensor, sigma: Tensor) -> Tensor:
    """D(x, σ) in float64, written from the layout."""
    m = c["model"]
    w = {name.removeprefix("inner_model."): value.double() for name, value in state.items()}

    def conv(h: Tensor, name: str, padding: int = 0) -> Tensor:
        return F.conv2d(h, w[f"{name}.weight"], w.get(f"{name}.bias"), padding=padding)

    def dense(h: Tensor, name: str) -> Tensor:
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def gelu(h: Tensor) -> Tensor:
        return h * (1 + torch.erf(h / math.sqrt(2))) / 2

    def norm(h: Tensor, name: str) -> Tensor:
        parts = h.reshape(len(h), max(1, h.shape[1] // 32), -1)
        parts = (parts - parts.mean(2, keepdim=True)) / (parts.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
        told, half = dense(cond, f"{name}.mapper")[..., None, None], h.shape[1]
        return parts.reshape(h.shape) * (1 + told[:, :half]) + told[:, half:]

    def attention(h: Tensor, name: str) -> Tensor:
        qkv, heads = conv(norm(h, f"{name}.norm_in"), f"{name}.qkv_proj").flatten(2), max(1, h.shape[1] // 64)
        size, out = h.shape[1] // heads, []
        for head in range(heads):
            q, k, v = (qkv[:, part * h.shape[1] + head * size :][:, :size] for part in range(3))
            out.append(v @ torch.softmax(q.transpose(1, 2) @ k / math.sqrt(size), -1).transpose(1, 2))
        return h + conv(torch.cat(out, 1).reshape(h.shape), f"{name}.out_proj")

    def blocks(h: Tensor, name: str) -> Tensor:
        places = sorted({int(key.split(".")[3]) for key in w if key.startswith(f"{name}.")})
        for place in places:
            its = f"{name}.{place}"
            if f"{its}.kernel" in w and "d_blocks" in name:
                h = F.pad(h, (1, 1, 1, 1), "reflect")
                row = torch.tensor([1, 3, 3, 1], dtype=h.dtype) / 8
                h = sum(row[i] * h[..., i : h.shape[-1] - 3 + i : 1] for i in range(4))[..., ::2]  # type: ignore[index]
                h = sum(row[i] * h[..., i : h.shape[-2] - 3 + i, :] for i in range(4))[..., ::2, :]  # type: ignore[index]
            elif f"{its}.kernel" in w:  # between two pixels, 3/4 of the nearer one and 1/4 of the other
                for dim in (2, 3):
                    h = h.transpose(dim, 3)
                    wide = torch.cat([h[..., 1:2], h, h[..., -2:-1]], 3)
                    near = 0.75 * wide[..., 1:-1]
                    h = torch.stack([near + 0.25 * wide[..., :-2], near + 0.25 * wide[..., 2:]], 4).flatten(3)
                    h = h.transpose(dim, 3)
            elif f"{its}.qkv_proj.weight" in w:
                h = attention(h, its)
            else:
                inner = conv(gelu(norm(h, f"{its}.main.0")), f"{its}.main.2", 1)
                inner = conv(gelu(norm(inner, f"{its}.main.4")), f"{its}.main.6", 1)
                h = inner + (conv(h, f"{its}.skip") if f"{its}.skip.weight" in w else h)
        return h

    x, sigma, data = x.double(), sigma.double(), m["sigma_data"]
    total = (sigma**2 + data**2)[:, None, None, None]
    angles = 2 * math.pi * torch.outer(sigma.log() / 4, w["timestep_embed.weight"][:, 0])
    cond = gelu(dense(gelu(dense(torch.cat([angles.cos(), angles.sin()], 1), "mapping.0")), "mapping.2"))
    side, (batch, channels, height, width) = m["patch_size"], x.shape
    h = (x / total.sqrt()).reshape(batch, channels, height // side, side, width // side, side)
    h = conv(h.permute(0, 1, 3, 5, 2, 4).reshape(batch, -1, height // side, width // side), "proj_in")
    levels, skips = len(m["channels"]), []
    for level in range(levels):
        skips.append(h := blocks(h, f"u_net.d_blocks.{level}"))
    for number in range(levels):
        h = blocks(torch.cat([h, skips.pop()], 1) if number else skips.pop(), f"u_net.u_blocks.{number}")
    h = conv(h, "proj_out")[:, : channels * side**2].reshape(batch, channels, side, side, height // side, width // side)
    out = h.permute(0, 1, 4, 2, 5, 3).reshape(x.shape)
    return data**2 / total * x + sigma[:, None, None, None] * data / total.sqrt() * out


def close(ours: Tensor, theirs: Tensor, to: float = 1e-5) -> None:
    error = float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())
    assert error < to, error


KINDS: dict[str, dict[str, Any]] = {
    "augmented": {},
    "patches": {"patch_size": 2, "input_size": [8, 16], "augment_wrapper": False, "has_variance": True},
    "deep": {
        "depths": [2, 1, 2],
        "channels": [32, 32, 128],
        "self_attn_depths": [True, False, True],
        "input_channels": 1,
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["model_00100000.pth", "model_00100000.safetensors"])
def test_a_file_gives_its_network(kind: str, name: str, tmp_path: Path) -> None:
    c = config(**{**KINDS[kind], **({"input_size": [16, 16]} if kind == "deep" else {})})
    path, state = saved(tmp_path, c, name)
    field = odeddim.load(path)
    assert field.shape == (c["model"]["input_channels"], *c["model"]["input_size"])
    assert field.schedule == odeddim.Schedule.edm(sigma_min=0.01, sigma_max=80)
    assert (field.predicts, field.details["weights"]) == ("x0", "ema" if name.endswith("pth") else "as saved")
    sigma = torch.tensor([0.02, 0.7, 75.0])
    x = draw(3, *field.shape).float() * sigma[:, None, None, None]
    close(field.eps(x, sigma), reference(c, state, x, sigma))


def test_twenty_steps_of_its_sampler(tmp_path: Path) -> None:
    """sample_lms on Karras' grid, as sample.py has it: Lagrange polynomials of the last four slopes, integrated.

    Its last step, from σ_min to 0, is Euler's here.
    """
    c = config()
    path, state = saved(tmp_path, c)
    ramp = np.linspace(0, 1, 21)
    sigmas = (80 ** (1 / 7) + ramp * (0.01 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    x = noise = draw(2, 3, 8, 8) * 80
    slopes: list[Tensor] = []
    for i in range(20):
        sigma = torch.full((2,), sigmas[i], dtype=torch.float64)
        slopes = [(x - reference(c, state, x, sigma)) / sigmas[i], *slopes][:4]
        for j, slope in enumerate(slopes):
            others = [sigmas[i - k] for k in range(len(slopes)) if k != j]
            basis = np.poly1d(np.poly(others) if others else [1.0]).integ()
            scale = math.prod(sigmas[i - j] - other for other in others)
            x = x + (basis(sigmas[i + 1]) - basis(sigmas[i])) / scale * slope
    field = odeddim.load(path, dtype=torch.float64)
    nodes = torch.from_numpy(sigmas[::-1].copy())
    close(integrate(field, State(noise, 80.0), Plan(solvers.get("lms", warmup="lower"), nodes)).xbar, x)
    assert field.nfe == 20


@pytest.mark.parametrize(
    ("more", "parameters"),
    [
        ({"depths": [2, 4, 4], "channels": [128, 256, 512], "self_attn_depths": [False, True, True]}, 66_119_427),
        (
            {
                "depths": [2, 4, 4],
                "channels": [128, 128, 256],
                "self_attn_depths": [False, False, True],
                "input_channels": 1,
                "input_size": [28, 28],
            },
            19_596_545,
        ),
    ],
)
def test_the_sizes_of_its_own_configurations(
    more: dict[str, Any], parameters: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """config_cifar10.json and config_mnist.json, without what augmentations are told through."""
    c = config(mapping_out=256, **{"input_size": [32, 32], **more})
    state = {name: torch.empty(shape, device="meta") for name, shape in layout(c).items()}
    monkeypatch.setattr(weights, "read", lambda path: {"config": c, "model_ema": state})
    monkeypatch.setattr(weights, "hash_of", lambda *paths, **settings: "hash")
    taken: dict[str, Any] = {}
    monkeypatch.setattr(weights, "fit", lambda network, mine, path, **how: taken.update(network=network, mine=mine))
    k_diffusion.read(tmp_path / "model.pth")
    network = taken["network"]
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == {
        name: tensor.shape for name, tensor in taken["mine"].items()
    }
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_where_the_configuration_lies(tmp_path: Path) -> None:
    """In the file, or beside it as train.py took it; and raw weights."""
    c = config()
    path, state = saved(tmp_path, c)
    place = path.with_suffix(".json")
    x, sigma = draw(1, 3, 8, 8).float(), torch.tensor([0.5])
    place.write_text(json.dumps({"weights": "raw"}))
    field = odeddim.load(path)
    assert field.details["weights"] == "raw"
    close(field.eps(x, sigma), reference(c, drawn(c, seed=1), x, sigma))
    for text in ('{"weights": "best"}', '{"predicts": "eps"}', '{"weights": "raw", "shape": [3, 8, 8]}', "{", "[]"):
        place.write_text(text)
        refused(path)
    torch.save(state, path)
    place.write_text(json.dumps({"weights": "raw"}))
    refused(path, 'leave "weights" out')
    place.write_text(json.dumps(c))
    close(odeddim.load(path).eps(x, sigma), reference(c, state, x, sigma))
    place.unlink()
    refused(path, "does not hold the configuration", str(place), "--config")


def test_other_networks_are_named(tmp_path: Path) -> None:
    c, state = config(type="image_v2"), {"in.weight": torch.zeros(2, 2)}
    path = tmp_path / "flowers.pth"
    torch.save({"config": c, "model": state, "model_ema": state}, path)
    refused(path, "a network of type 'image_v2'", "image_v1, image_transformer_v1, image_transformer_v2 are read")
    save_file(state, tmp_path / "flowers.safetensors", metadata={"config": json.dumps(c)})
    refused(tmp_path / "flowers.safetensors", "a network of type 'image_v2'")
    for key in ("unet_cond_dim", "cross_cond_dim", "mapping_cond_dim", "skip_stages"):
        path, _ = saved(tmp_path, config(**{key: 1}))
        refused(path, key)


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    c = config()
    path, state = saved(tmp_path, c)
    content = path.read_bytes()
    for size in (len(content) - 1, len(content) // 2):
        path.write_bytes(content[:size])
        refused(path)
    for name in list(state)[::5]:
        less = {key: value for key, value in state.items() if key != name}
        torch.save({"config": c, "model_ema": less}, path)
        if not name.endswith("kernel"):
            refused(path)
    for name, value in {"proj_in.bias": torch.zeros(3), "proj_in.weight": torch.full((32, 3, 1, 1), math.nan)}.items():
        torch.save({"config": c, "model_ema": {**state, f"inner_model.{name}": value}}, path)
        refused(path)
    wrongs: list[dict[str, Any]] = [
        {"depths": [10**9, 1]}, {"depths": [1]}, {"depths": "12"}, {"channels": [32, 64.5]}, {"channels": [10**12, 1]},
        {"input_size": [9, 8]}, {"input_size": [8]}, {"patch_size": [4, 4]}, {"patch_size": 0}, {"mapping_out": 15},
        {"self_attn_depths": [0, 1]}, {"has_variance": 1}, {"sigma_data": 0}, {"sigma_min": 90}, {"sigma_max": "inf"},
        {"sigma_max": math.nan}, {"input_channels": True}, {"channels": [32, 96]},
    ]  # fmt: skip
    for wrong in wrongs:
        torch.save({"config": config(**wrong), "model_ema": state}, path)
        refused(path)
    for held in (
        {"config": {"model": 3}, "model_ema": state},
        {"config": c, "model_ema": 3},
        {"config": [], "model": {}},
    ):
        torch.save({**held, "name": "u_net.d_blocks.0."}, path)
        refused(path)
    save_file(state, tmp_path / "bad.safetensors", metadata={"config": "{"})
    refused(tmp_path / "bad.safetensors", "not JSON")


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    for name, blob in {"a.pth": b"", "b.pth": b"PK\x03\x04", "c.pkl": b"u_net.d_blocks.0."}.items():
        (tmp_path / name).write_bytes(blob)
        assert not k_diffusion.matches(tmp_path / name)
