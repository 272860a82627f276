"""EDM2's networks: names and equations of the paper written out over the state dict, its sizes, and its sampler."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import pickle
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import refused
from torch import Tensor
from torch.nn import functional as F

import odeddim
from odeddim import solvers
from odeddim.models import weights
from odeddim.models.formats import edm2
from odeddim.models.networks.edm2 import MagnitudeUNet
from odeddim.plans import Plan, integrate
from odeddim.types import InputError, State

SMALL: dict[str, Any] = {"size": 16, "channels": 3, "base": 64, "times": (1, 2, 2), "blocks": 1, "attends": (8,)}


def layout(
    *,
    size: int,
    channels: int,
    base: int,
    times: tuple[int, ...],
    blocks: int,
    attends: tuple[int, ...],
    classes: int = 0,
) -> dict[str, tuple[int, ...]]:
    """The names and shapes of `Precond` of networks_edm2, by the paper's figure 21."""
    widths = [base * time for time in times]
    features = max(widths)
    shapes: dict[str, tuple[int, ...]] = {
        "unet.out_gain": (),
        "unet.emb_fourier.freqs": (widths[0],),
        "unet.emb_fourier.phases": (widths[0],),
        "unet.emb_noise.weight": (features, widths[0]),
        f"unet.enc.{size}x{size}_conv.weight": (widths[0], channels + 1, 3, 3),
        "unet.out_conv.weight": (channels, widths[0], 3, 3),
        "logvar_fourier.freqs": (128,),
        "logvar_fourier.phases": (128,),
        "logvar_linear.weight": (1, 128),
    }
    if classes:
        shapes["unet.emb_label.weight"] = (features, classes)

    def block(name: str, inner: int, outer: int, attention: bool) -> None:
        side = "enc" if ".enc." in name else "dec"
        shapes[f"{name}.emb_gain"] = ()
        shapes[f"{name}.conv_res0.weight"] = (outer, outer if side == "enc" else inner, 3, 3)
        shapes[f"{name}.emb_linear.weight"] = (outer, features)
        shapes[f"{name}.conv_res1.weight"] = (outer, outer, 3, 3)
        if inner != outer:
            shapes[f"{name}.conv_skip.weight"] = (outer, inner, 1, 1)
        if attention:
            shapes[f"{name}.attn_qkv.weight"] = (3 * outer, outer, 1, 1)
            shapes[f"{name}.attn_proj.weight"] = (outer, outer, 1, 1)

    skips, width = [widths[0]], widths[0]
    for level, outer in enumerate(widths):
        side = size >> level
        if level:
            block(f"unet.enc.{side}x{side}_down", width, width, False)
            skips.append(width)
        for number in range(blocks):
            block(f"unet.enc.{side}x{side}_block{number}", width, outer, side in attends)
            skips.append(width := outer)
    for level, outer in reversed(list(enumerate(widths))):
        side = size >> level
        if level == len(widths) - 1:
            block(f"unet.dec.{side}x{side}_in0", width, width, True)
            block(f"unet.dec.{side}x{side}_in1", width, width, False)
        else:
            block(f"unet.dec.{side}x{side}_up", width, width, False)
        for number in range(blocks + 1):
            block(f"unet.dec.{side}x{side}_block{number}", width + skips.pop(), outer, side in attends)
            width = outer
    return shapes


def drawn(seed: int = 0, **settings: Any) -> dict[str, Tensor]:
    """Weights of the layout: gains near 1, frequencies and phases as in the paper."""
    chance = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in layout(**{**SMALL, **settings}).items():
        number = torch.randn(shape, generator=chance)
        state[name] = (
            0.7 + 0.3 * number if name.endswith("gain") else 2 * math.pi * number if "fourier" in name else number
        )
    return state


def saved(folder: Path, state: Any, name: str = "edm2.pt", **said: Any) -> Path:
    path = folder / name
    if name.endswith("safetensors"):
        save_file(state, path)
    else:
        torch.save(state, path)
    if said:
        path.with_suffix(".json").write_text(json.dumps(said))
    return path


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def reference(
    state: dict[str, Tensor],
    x: Tensor,
    sigma: Tensor,
    y: Tensor | None = None,
    *,
    data: float = 0.5,
    balance: float = 0.3,
) -> Tensor:
    """D(x, σ) of the paper's equations in float64, a weight by its name; attention a head at a time."""
    w = {name: tensor.double() for name, tensor in state.items()}

    def unit(weight: Tensor) -> Tensor:
        flat = weight.flatten(1)
        rms = flat.norm(dim=1, keepdim=True) / math.sqrt(flat.shape[1])
        return (flat / (rms + 1e-4) / math.sqrt(flat.shape[1])).reshape(weight.shape)

    def conv(h: Tensor, name: str, gain: Tensor | float = 1.0) -> Tensor:
        weight = unit(w[f"{name}.weight"]) * gain
        return h @ weight.T if weight.ndim == 2 else F.conv2d(h, weight, padding=(weight.shape[-1] - 1) // 2)

    def silu(h: Tensor) -> Tensor:
        return h * torch.sigmoid(h) / 0.596

    def plus(a: Tensor, b: Tensor, t: float) -> Tensor:
        return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)

    def pixel(h: Tensor) -> Tensor:
        return h / ((h**2).mean(1, keepdim=True).sqrt() + 1e-4)

    def attention(h: Tensor, name: str) -> Tensor:
        qkv = conv(h, f"{name}.attn_qkv").flatten(2)
        out = []
        for head in qkv.split(3 * 64, dim=1):
            q, k, v = (pixel(head[:, part::3]) for part in range(3))
            share = torch.softmax(q.transpose(1, 2) @ k / 8, dim=-1)
            out.append(v @ share.transpose(1, 2))
        return conv(torch.cat(out, 1).reshape(h.shape), f"{name}.attn_proj")

    def block(h: Tensor, name: str) -> Tensor:
        skip = f"{name}.conv_skip" if f"{name}.conv_skip.weight" in w else None
        if "_down" in name:
            h = (h[..., ::2, ::2] + h[..., 1::2, ::2] + h[..., ::2, 1::2] + h[..., 1::2, 1::2]) / 4
        elif "_up" in name:
            h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
        if ".enc." in name:
            h = pixel(conv(h, skip) if skip else h)
        inner = conv(silu(h), f"{name}.conv_res0")
        inner = inner * (conv(told, f"{name}.emb_linear", w[f"{name}.emb_gain"]) + 1)[..., None, None]
        inner = conv(silu(inner), f"{name}.conv_res1")
        h = plus(conv(h, skip) if skip and ".dec." in name else h, inner, balance)
        if f"{name}.attn_qkv.weight" in w:
            h = plus(h, attention(h, name), balance)
        return h.clamp(-256, 256)

    x, sigma = x.double(), sigma.double()
    total = (sigma**2 + data**2)[:, None, None, None]
    waves = torch.outer(sigma.log() / 4, w["unet.emb_fourier.freqs"]) + w["unet.emb_fourier.phases"]
    told = conv(math.sqrt(2) * waves.cos(), "unet.emb_noise")
    if y is not None:
        table = unit(w["unet.emb_label.weight"]) * math.sqrt(w["unet.emb_label.weight"].shape[1])
        told = plus(told, table.T[y], 0.5)
    told = silu(told)
    ones = torch.ones(len(x), 1, *x.shape[2:], dtype=torch.float64)
    h, skips = torch.cat([x / total.sqrt(), ones], 1), []
    names = list(
        dict.fromkeys(".".join(name.split(".")[:3]) for name in w if name.startswith(("unet.enc", "unet.dec")))
    )
    for name in names:
        if name.endswith("_conv"):
            h = conv(h, name)
        elif ".dec." in name and "_block" in name:
            a, b = h, skips.pop()
            scale = math.sqrt((a.shape[1] + b.shape[1]) * 2) / 2
            h = torch.cat([a * scale / math.sqrt(a.shape[1]), b * scale / math.sqrt(b.shape[1])], 1)
            h = block(h, name)
        else:
            h = block(h, name)
        if ".enc." in name:
            skips.append(h)
    out = conv(h, "unet.out_conv", w["unet.out_gain"])
    return data**2 / total * x + sigma[:, None, None, None] * data / total.sqrt() * out


def close(ours: Tensor, theirs: Tensor, to: float = 1e-5) -> None:
    error = float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())
    assert error < to, error


KINDS: dict[str, dict[str, Any]] = {
    "classes": {"classes": 5},
    "latent": {"channels": 4, "size": 8, "times": (1, 1), "blocks": 2, "attends": (8, 4)},
    "one level": {"times": (1,), "attends": ()},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["edm2.pt", "edm2.safetensors"])
def test_a_file_gives_the_papers_network(kind: str, name: str, tmp_path: Path) -> None:
    state = drawn(**KINDS[kind])
    field = odeddim.load(saved(tmp_path, state, name))
    kinds = {**SMALL, **KINDS[kind]}
    assert field.shape == (kinds["channels"], kinds["size"], kinds["size"])
    assert (field.predicts, field.time, field.schedule) == ("x0", "sigma", odeddim.Schedule.edm())
    assert field.details["found"].startswith("EDM2 network, ")
    assert "sigma_data 0.5, as in the paper" in field.details["assumed"]
    assert any("autoencoder" in word for word in field.details["assumed"]) == (kind == "latent")
    sigma = torch.tensor([0.003, 0.4, 70.0])
    x = draw(3, *field.shape).float() * sigma[:, None, None, None]
    y = torch.tensor([0, 4, 2]) if kind == "classes" else None
    ours = field.eps(x, sigma, *(() if y is None else (y,)))
    close(ours, reference(state, x, sigma, y))


def test_what_differs_from_the_paper_is_in_the_sidecar(tmp_path: Path) -> None:
    state = drawn()
    field = odeddim.load(saved(tmp_path, state, sigma_data=0.7, balance=0.4))
    assert field.details["assumed"] == ["head_channels 64, as in the paper"]
    x, sigma = draw(2, 3, 16, 16).float(), torch.tensor([0.2, 3.0])
    close(field.eps(x, sigma), reference(state, x, sigma, data=0.7, balance=0.4))
    other = odeddim.load(saved(tmp_path, state, sigma_data=0.7, balance=0.4, head_channels=32))
    assert other.sha256 != field.sha256
    assert not torch.allclose(other.eps(x, sigma), field.eps(x, sigma), rtol=1e-3)


def test_twenty_steps_of_its_sampler_and_back(tmp_path: Path) -> None:
    """Algorithm 1 of EDM with its grid, under a class; and up again."""
    state = drawn(classes=5, size=8, times=(1, 1), attends=(4,))
    field = odeddim.load(saved(tmp_path, state)).conditioned(3)
    y = torch.tensor([3])
    step = torch.arange(20, dtype=torch.float64) / 19
    t = (80 ** (1 / 7) + step * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    t = torch.cat([t, torch.zeros(1, dtype=torch.float64)])
    noise = draw(1, 3, 8, 8)
    x = noise * t[0]
    for here, there in itertools.pairwise(t):
        slope = (x - reference(state, x, here.expand(1), y)) / here
        ahead = x + (there - here) * slope
        if there > 0:
            slope = (slope + (ahead - reference(state, ahead, there.expand(1), y)) / there) / 2
            ahead = x + (there - here) * slope
        x = ahead
    start = State(noise * t[0], float(t[0]))
    close(integrate(field, start, Plan(solvers.get("heun"), t.flip(0))).xbar, x)
    assert field.nfe == 39
    x, rising = noise.clamp(-1, 1), t.flip(0)[1:]
    up = State(x, float(rising[0]))
    for here, there in itertools.pairwise(rising):
        x = x + (there - here) * (x - reference(state, x, here.expand(1), y)) / here
    close(integrate(field, up, Plan(solvers.get("euler"), rising)).xbar, x)


def test_no_class_is_a_row_of_zeros(tmp_path: Path) -> None:
    state = drawn(classes=5)
    x, sigma = draw(2, 3, 16, 16), torch.tensor(1.0, dtype=torch.float64)
    field = odeddim.load(saved(tmp_path, state))
    with pytest.raises(InputError, match="has no unconditional mode"):
        field.conditioned(1, guidance=2)
    field = odeddim.load(saved(tmp_path, state, null=5)).conditioned(1, guidance=3)
    zeroed = {**state, "unet.emb_label.weight": torch.zeros(128, 5)}
    none = x - reference(zeroed, x, sigma.expand(2), torch.tensor([1, 1]))
    told = x - reference(state, x, sigma.expand(2), torch.tensor([1, 1]))
    close(field(sigma, x), none + 3 * (told - none), 2e-5)


def test_the_averages_of_a_training_state(tmp_path: Path) -> None:
    first, second = drawn(0), drawn(1)
    whole = {"state": {"cur_nimg": 1}, "net": drawn(2), "ema": {"stds": [0.05, 0.1], "emas": [first, second]}}
    x, sigma = draw(1, 3, 16, 16).float(), torch.tensor([0.3])
    path = saved(tmp_path, whole, "training-state-0000001.pt")
    for said, state in (({}, first), ({"std": 0.1}, second), ({"std": 0.05}, first)):
        path.with_suffix(".json").write_text(json.dumps(said))
        field = odeddim.load(path)
        close(field.eps(x, sigma), reference(state, x, sigma))
        assert field.details["weights"] == f"ema {said.get('std', 0.05)}"
    path.with_suffix(".json").write_text(json.dumps({"std": 0.2}))
    refused(path, "std is one of 0.05, 0.1")


@pytest.mark.parametrize(
    ("base", "channels", "millions"),
    [(128, 4, 125), (192, 3, 280), (256, 3, 498), (320, 3, 777), (384, 4, 1119), (448, 4, 1523)],
)
def test_published_sizes(
    base: int, channels: int, millions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XS, S, M, L, XL and XXL of table 6, by their layout."""
    shapes = layout(size=64, channels=channels, base=base, times=(1, 2, 3, 4), blocks=3, attends=(16, 8), classes=1000)
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    monkeypatch.setattr(weights, "read", lambda path: state)
    monkeypatch.setattr(weights, "hash_of", lambda *paths, **settings: "hash")
    taken: dict[str, Any] = {}
    monkeypatch.setattr(weights, "fit", lambda network, mine, path, **how: taken.update(network=network, mine=mine))
    field = edm2.read(tmp_path / "edm2.pt")
    network = taken["network"]
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == {
        name: tensor.shape for name, tensor in taken["mine"].items()
    }
    count = sum(parameter.numel() for parameter in network.parameters())
    assert round(count / 1e6) == millions
    assert field.shape == (channels, 64, 64)


CODE = """
    import torch

    class Precond(torch.nn.Module):
        def __init__(self, channels, size, classes):
            super().__init__()
            self.img_channels, self.img_resolution, self.label_dim = channels, size, classes
            self.use_fp16, self.sigma_data = True, 0.5
            self.unet = torch.nn.Conv2d(channels, channels, 3, padding=1)

        def forward(self, x, sigma, class_labels=None):
            assert not self.use_fp16
            return self.unet(x) * 0.01 + x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)
"""


def test_its_pickles_run_code_only_where_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "networks_of_test.py").write_text(textwrap.dedent(CODE))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    code = importlib.import_module("networks_of_test")
    try:
        net = code.Precond(4, 8, 0)
        path = tmp_path / "edm2-img512-xs-2147483-0.135.pkl"
        path.write_bytes(pickle.dumps({"ema": net, "encoder": None}))
        with pytest.raises(InputError, match="runs the code in it"):
            odeddim.load(path)
        field = odeddim.load(path, allow_pickle=True)
        assert field.details["found"].startswith("EDM2 pickle, Precond, 4×8×8")
        assert field.schedule == odeddim.Schedule.edm()
        assert "autoencoder" in field.details["assumed"][0]
        net.use_fp16 = False
        x, sigma = draw(1, 4, 8, 8).float(), torch.tensor([2.0])
        assert torch.equal(field.eps(x, sigma), net(x, sigma))
    finally:
        sys.modules.pop("networks_of_test")


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    state = drawn(size=8, times=(1, 1), attends=())
    path = saved(tmp_path, state)
    content = path.read_bytes()
    for size in (len(content) - 1, len(content) // 2):
        path.write_bytes(content[:size])
        refused(path)
    for name in state:
        torch.save({key: value for key, value in state.items() if key != name}, path)
        if not name.startswith(("logvar", "unet.enc.8x8_conv")):
            refused(path)
    changed: dict[str, Any] = {
        "unet.emb_noise.weight": torch.zeros(64),
        "unet.out_conv.weight": torch.full((3, 64, 3, 3), math.nan),
        "unet.enc.8x8_conv.weight": torch.zeros(64, 1, 3, 3),
        "unet.enc.99999x99999_block0.conv_res1.weight": torch.zeros(1),
        "unet.enc.8x8_block99.conv_res1.weight": torch.zeros(64, 64, 3, 3),
        "unet.dec.4x4_block9.emb_gain": torch.zeros(()),
        "unet.enc.4x4_conv.weight": torch.zeros(64, 4, 3, 3),
        "unet.emb_fourier.freqs": torch.zeros(()),
    }
    for name, value in changed.items():
        torch.save({**state, name: value}, path)
        refused(path)
    torch.save({"net": state}, path)
    refused(path, "is no state dict of EDM2's network")
    torch.save({"net": state, "ema": {"stds": [0.1], "emas": []}}, path)
    refused(path, "does not hold averaged weights")
    torch.save(state, path)
    wrong: list[dict[str, Any]] = [
        {"sigma_data": "half"}, {"sigma_data": 0}, {"balance": 1.5}, {"head_channels": 48}, {"head_channels": 64.0},
        {"shape": [3, 16, 16]}, {"classes": 3}, {"null": 1}, {"predicts": "eps"}, {"time": "unit"}, {"std": 0.1},
        {"clip": 3},
    ]  # fmt: skip
    for said in wrong:
        path.with_suffix(".json").write_text(json.dumps(said))
        refused(path)


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    for name, blob in {"a.pt": b"", "b.pt": b"PK\x03\x04", "c.pkl": b"unet.enc.8x8_conv.weight"}.items():
        (tmp_path / name).write_bytes(blob)
        assert not edm2.matches(tmp_path / name)
    assert MagnitudeUNet(channels=1, widths=[64], blocks=1, attention=[], waves=8, features=8).config["classes"] == 0


@pytest.mark.parametrize("its_classes", [0, 5])
def test_guidance_by_a_second_network(its_classes: int, tmp_path: Path) -> None:
    """D = D_g + w·(D - D_g), by an unconditional network and by a smaller one that is told the class (autoguidance)."""
    state, small = drawn(classes=5), drawn(1, classes=its_classes, times=(1, 1), attends=())
    guide = odeddim.load(saved(tmp_path, small, "guide.pt"))
    field = odeddim.load(saved(tmp_path, state)).conditioned(3, guidance=1.4, guide=guide)
    x, sigma, y = draw(2, 3, 16, 16), torch.tensor([0.3, 5.0], dtype=torch.float64), torch.tensor([3, 3])
    own, other = reference(state, x, sigma, y), reference(small, x, sigma, y if its_classes else None)
    denoised = torch.lerp(other, own, 1.4)
    close(field(sigma, x), (x - denoised) / sigma[:, None, None, None], 2e-5)
    assert (field.nfe, field.rows) == (1, 4)


def test_the_autoencoder_of_latent_networks(tmp_path: Path) -> None:
    """Images in [0, 1] to the autoencoder, and the means z as the published code of its encoder brings them to data."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is installed by the test extra")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8), norm_num_groups=2, latent_channels=4, sample_size=16,
    ).eval()  # fmt: skip
    vae.save_pretrained(tmp_path / "vae")
    state = drawn(channels=4, size=8, times=(1, 1), attends=(4,))
    plain = odeddim.load(saved(tmp_path, state))
    field = odeddim.load(saved(tmp_path, state, autoencoder="vae"))
    assert (plain.image_shape, field.shape, field.image_shape) == ((4, 8, 8), (4, 8, 8), (3, 16, 16))
    assert "AutoencoderKL with data of z, shifted and scaled channel by channel" in field.details["found"]
    assert not any("autoencoder" in word for word in field.details["assumed"])
    assert field.codec is not None
    pixels = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    scale = 0.5 / torch.tensor([4.17, 4.62, 3.71, 3.28])[:, None, None]
    bias = -torch.tensor([5.81, 3.25, 0.12, -2.15])[:, None, None] * scale
    with torch.no_grad():
        data = vae.encode(pixels / 255).latent_dist.mean * scale + bias
        back = vae.decode((data - bias) / scale).sample.clamp(0, 1) * 255
    images = pixels / 127.5 - 1
    close(field.codec.encode(images), data)
    close((field.codec.decode(data).clamp(-1, 1) + 1) * 127.5, back)
    latents = odeddim.encode(images, "belm", model=field, steps=5)
    assert latents.xbar.shape == (2, 4, 8, 8)
    assert torch.equal(odeddim.decode(latents, model=field), field.codec.decode(field.codec.encode(images)))
    guided = field.conditioned(guidance=2, guide=plain)  # which needs no autoencoder
    assert guided.codec is field.codec
    torch.manual_seed(1)
    vae.encoder.conv_in.reset_parameters()
    vae.save_pretrained(tmp_path / "vae")
    hashes = {it.sha256 for it in (plain, field, odeddim.load(tmp_path / "edm2.pt"))}
    assert len(hashes) == 3  # an autoencoder is a part of the model
    path = saved(tmp_path, state, autoencoder="nowhere")
    refused(path, "and 'nowhere' is no folder")
    saved(tmp_path, state, autoencoder=3)
    refused(path, "autoencoder must be the folder")
    saved(tmp_path, drawn(size=8, times=(1, 1), attends=(4,)), autoencoder="vae")
    refused(path, "leave out autoencoder")
