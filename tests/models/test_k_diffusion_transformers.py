"""k-diffusion's transformers: written out over their state dicts, pixel by pixel, and what is not read."""

from __future__ import annotations

import itertools
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import refused
from torch import Tensor

import odeddim
from odeddim.models import k_diffusion_configs, weights
from odeddim.models.formats import k_diffusion
from odeddim.models.networks import local_attention

GLOBAL = {"type": "global", "d_head": 32}


def near(side: int, head: int = 32) -> dict[str, Any]:
    return {"type": "neighborhood", "kernel_size": side, "d_head": head}


def windows(side: int, head: int = 32) -> dict[str, Any]:
    return {"type": "shifted-window", "window_size": side, "d_head": head}


def config(kind: str = "image_transformer_v2", classes: int = 0, **more: Any) -> dict[str, Any]:
    """A configuration as train.py takes it, with all that has no default."""
    own = {"depth": 2, "width": 64} if kind.endswith("1") else {"depths": [1, 2], "widths": [32, 64]}
    model = {
        "type": kind,
        "input_channels": 3,
        "input_size": [16, 16],
        "patch_size": [2, 2],
        **own,
        "sigma_data": 0.5,
        "sigma_min": 1e-2,
        "sigma_max": 80,
        "sigma_sample_density": {"type": "cosine-interpolated"},
        **more,
    }
    return {"model": model, "dataset": {"type": "imagefolder", **({"num_classes": classes} if classes else {})}}


def first(**more: Any) -> dict[str, Any]:
    return config("image_transformer_v1", **more)


KINDS: dict[str, dict[str, Any]] = {
    "v1": first(classes=4, d_ff=48, patch_size=[4, 4]),
    "v1, tall patches": first(patch_size=[4, 2], input_channels=1, d_ff=48),
    "v1, wide patches, wide images": first(patch_size=[2, 4], input_size=[8, 24], d_ff=48),
    "global": config(classes=3, self_attns=[GLOBAL, GLOBAL], depths=[1, 1]),
    "neighbourhoods": config(depths=[1, 1], self_attns=[near(5), near(3, 16)], input_size=[12, 20], patch_size=[1, 1]),
    "windows": config(self_attns=[windows(4), windows(2)], patch_size=[2, 1], depths=[1, 2], input_size=[16, 8]),
    "three levels": config(
        classes=2, depths=[1, 1, 1], widths=[32, 24, 64], self_attns=[{"type": "none"}, near(3, 8), GLOBAL],
        d_ffs=[40, 50, 60], mapping_depth=1, mapping_width=16, mapping_d_ff=24,
    ),
    "defaults": config(widths=[64, 64], depths=[1, 1]),
}  # fmt: skip


def levels(m: dict[str, Any]) -> list[dict[str, Any]]:
    """The levels of image_transformer_v2, with what it takes where the configuration is silent."""
    count = len(m["widths"])
    usual = [near(7, 64)] * (count - 1) + [{"type": "global"}]
    rows = zip(
        m["depths"],
        m["widths"],
        m.get("d_ffs") or [3 * w for w in m["widths"]],
        m.get("self_attns") or usual,
        strict=True,
    )
    return [{"depth": d, "width": w, "hidden": h, "attention": a} for d, w, h, a in rows]


def layout(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the state dict of its network."""
    m, classes = c["model"], c["dataset"].get("num_classes", 0)
    is_first, shapes = m["type"].endswith("1"), {}
    pixels = m["input_channels"] * math.prod(m["patch_size"])
    features = m["width"] if is_first else m.get("mapping_width", 256)
    inner = m["d_ff"] if is_first else m.get("mapping_d_ff", 3 * features)

    def feed_forward(name: str, width: int, hidden: int) -> None:
        shapes[f"{name}.up_proj.weight"], shapes[f"{name}.down_proj.weight"] = (2 * hidden, width), (width, hidden)

    def layer(name: str, width: int, hidden: int, head: int | None) -> None:
        if head is not None:
            at = f"{name}.self_attn"
            shapes[f"{at}.norm.linear.weight"], shapes[f"{at}.qkv_proj.weight"] = (width, features), (3 * width, width)
            shapes[f"{at}.out_proj.weight"] = (width, width)
            if is_first:
                shapes[f"{at}.qk_norm.scale"] = (width // head,)
                shapes[f"{at}.pos_emb.freqs_h"] = shapes[f"{at}.pos_emb.freqs_w"] = (width // head, head // 4)
            else:
                shapes[f"{at}.scale"], shapes[f"{at}.pos_emb.freqs"] = (width // head,), (width // head, head // 8)
        shapes[f"{name}.ff.norm.linear.weight"] = (width, features)
        feed_forward(f"{name}.ff", width, hidden)

    shapes["time_emb.weight"], shapes["aug_emb.weight"] = (features // 2, 1), (features // 2, 9)
    shapes["time_in_proj.weight"] = shapes["aug_in_proj.weight"] = (features, features)
    if classes:
        shapes["class_emb.weight"] = (classes + 1, features)
    shapes["mapping.in_norm.scale"] = shapes["mapping.out_norm.scale"] = (features,)
    for block in range(2 if is_first else m.get("mapping_depth", 2)):
        shapes[f"mapping.blocks.{block}.norm.scale"] = (features,)
        feed_forward(f"mapping.blocks.{block}", features, inner)
    if is_first:
        shapes["in_proj.weight"], shapes["out_proj.weight"] = (features, pixels), (pixels, features)
        shapes["out_norm.scale"] = (features,)
        for block in range(m["depth"]):
            layer(f"blocks.{block}", features, inner, 64)
        return shapes
    its = levels(m)
    for number, level in enumerate(its):
        head = None if level["attention"]["type"] == "none" else level["attention"].get("d_head", 64)
        places = ["mid_level"] if number == len(its) - 1 else [f"down_levels.{number}", f"up_levels.{number}"]
        for place, block in itertools.product(places, range(level["depth"])):
            layer(f"{place}.{block}", level["width"], level["hidden"], head)
    for number, (fine, coarse) in enumerate(itertools.pairwise(level["width"] for level in its)):
        shapes[f"merges.{number}.proj.weight"], shapes[f"splits.{number}.proj.weight"] = (
            (coarse, 4 * fine),
            (4 * fine, coarse),
        )
        shapes[f"splits.{number}.fac"] = (1,)
    shapes["patch_in.proj.weight"] = (its[0]["width"], pixels)
    shapes["out_norm.scale"], shapes["patch_out.proj.weight"] = (its[0]["width"],), (pixels, its[0]["width"])
    return shapes


def drawn(c: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """A state dict. The scales of cosines are logarithms in the first network, some above its bound, ln 100."""
    chance = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in layout(c).items():
        numbers = torch.randn(shape, generator=chance)
        if name.endswith("self_attn.scale"):
            numbers = 4 + 3 * numbers.tanh()
        elif name.endswith("qk_norm.scale"):
            numbers = 1.5 + 5 * numbers.abs()
        elif name.endswith(("scale", "fac")):
            numbers = 1 + 0.3 * numbers
        elif "freqs" not in name and "_emb" not in name:
            numbers = numbers * 0.8 / math.sqrt(shape[-1])
        state[name] = numbers
    return state


def saved(folder: Path, c: dict[str, Any], name: str = "model_00100000.pth") -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint as training writes it, as its converter does, or the tensors alone with the configuration beside."""
    path, state = folder / name, drawn(c)
    if name.endswith("safetensors"):
        save_file(state, path, metadata={"config": json.dumps(c, indent=4)})
    elif name == "bare.pth":
        torch.save(state, path)
        path.with_suffix(".json").write_text(json.dumps(c))
    else:
        torch.save({"config": c, "model": drawn(c, seed=1), "model_ema": state, "opt": {"state": {}}, "step": 9}, path)
    return path, state


def sees(attention: dict[str, Any], height: int, width: int, number: int) -> Tensor:
    """Which pixels each pixel sees, (H·W, H·W): of each axis, one rule."""

    def axis(length: int) -> list[list[bool]]:
        if attention["type"] == "shifted-window":
            side = attention["window_size"]
            shift = side // 2 if number % 2 else 0  # the edges of windows lie `shift` before multiples of `side`
            return [[(q + shift) // side == (k + shift) // side for k in range(length)] for q in range(length)]
        if attention["type"] == "neighborhood":
            side = attention.get("kernel_size", 7)
            firsts = [min(max(q - side // 2, 0), length - side) for q in range(length)]
            return [[start <= k < start + side for k in range(length)] for start in firsts]
        return [[True] * length] * length

    rows, columns = torch.tensor(axis(height)), torch.tensor(axis(width))
    return (rows[:, None, :, None] & columns[None, :, None, :]).reshape(height * width, height * width)


def reference(c: dict[str, Any], state: dict[str, Tensor], x: Tensor, sigma: Tensor, label: int | None) -> Tensor:
    """D(x, σ) in float64, written from the layout; pixels are a list of tokens (B, H·W, C), angles complex numbers."""
    m = c["model"]
    is_first = m["type"].endswith("1")
    w = {name: value.double() for name, value in state.items()}

    def dense(h: Tensor, name: str) -> Tensor:
        return h @ w[f"{name}.weight"].T

    def rms(h: Tensor, scale: Tensor) -> Tensor:
        return h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt() * scale

    def feed_forward(h: Tensor, name: str, scale: Tensor) -> Tensor:
        up = dense(rms(h, scale), f"{name}.up_proj")
        half = up.shape[-1] // 2
        gate = up[..., half:]
        return h + dense(up[..., :half] * gate * (1 + torch.erf(gate / math.sqrt(2))) / 2, f"{name}.down_proj")

    def told(name: str) -> Tensor:
        return 1 + dense(cond, f"{name}.norm.linear")[:, None]

    def places(height: int, width: int) -> Tensor:
        """(H·W, 2): the height of the image in units of the patches' width, the longer side from -1 to 1."""
        tall = height * (m["patch_size"][0] / m["patch_size"][1] if is_first else 1)
        longer = max(tall, width)
        rows = [(2 * i + 1 - height) / height * tall / longer for i in range(height)]
        columns = [(2 * j + 1 - width) / width * width / longer for j in range(width)]
        return torch.tensor(list(itertools.product(rows, columns)), dtype=torch.float64)

    def compared(h: Tensor, name: str, head: int, at: int, where: Tensor) -> Tensor:
        h = h / (h.square().sum(-1, keepdim=True) + 1e-6 * (head if is_first else 1)).sqrt()
        if is_first:
            frequencies = [w[f"{name}.pos_emb.freqs_{axis}"][at].exp() for axis in "hw"]
            h = h * math.exp(min(float(w[f"{name}.qk_norm.scale"][at]), math.log(100)) / 2)
            points = torch.complex(h[..., 0::2], h[..., 1::2])
        else:
            frequencies = [w[f"{name}.pos_emb.freqs"][at]] * 2
            h = h * math.sqrt(float(w[f"{name}.scale"][at]))
            points = torch.complex(h[..., : head // 4], h[..., head // 4 : head // 2])
        angles = torch.cat([torch.outer(where[:, axis], frequencies[axis]) for axis in (0, 1)], 1)
        points = points * torch.exp(1j * angles)
        if is_first:
            return torch.view_as_real(points).flatten(-2)
        return torch.cat([points.real, points.imag, h[..., head // 2 :]], -1)

    def attention(h: Tensor, name: str, head: int, seen: Tensor, where: Tensor) -> Tensor:
        qkv, width, out = dense(rms(h, told(name)), f"{name}.qkv_proj"), h.shape[-1], []
        for at in range(width // head):
            q, k, v = (qkv[..., part * width + at * head :][..., :head] for part in range(3))
            logits = compared(q, name, head, at, where) @ compared(k, name, head, at, where).transpose(1, 2)
            out.append(torch.softmax(logits.masked_fill(~seen, -math.inf), -1) @ v)
        return h + dense(torch.cat(out, -1), f"{name}.out_proj")

    def layers(h: Tensor, name: str, size: tuple[int, int], level: dict[str, Any], start: int = 0) -> Tensor:
        its = level["attention"]
        for number in range(level["depth"]):
            place = f"{name}.{number}"
            if its["type"] != "none":
                seen = sees(its, *size, start + number)
                h = attention(h, f"{place}.self_attn", its.get("d_head", 64), seen, places(*size))
            h = feed_forward(h, f"{place}.ff", told(f"{place}.ff"))
        return h

    x, sigma, data = x.double(), sigma.double(), m["sigma_data"]
    total = (sigma**2 + data**2)[:, None, None, None]
    angles = 2 * math.pi * torch.outer(sigma.log() / 4, w["time_emb.weight"][:, 0])
    cond = dense(torch.cat([angles.cos(), angles.sin()], 1), "time_in_proj")
    none = 2 * math.pi * torch.zeros(len(x), 9, dtype=torch.float64) @ w["aug_emb.weight"].T
    cond = cond + dense(torch.cat([none.cos(), none.sin()], 1), "aug_in_proj")
    cond = cond if label is None else cond + w["class_emb.weight"][label]
    cond = rms(cond, w["mapping.in_norm.scale"])
    for block in range(sum(name.endswith("norm.scale") and "mapping.blocks" in name for name in w)):
        cond = feed_forward(cond, f"mapping.blocks.{block}", w[f"mapping.blocks.{block}.norm.scale"])
    cond = rms(cond, w["mapping.out_norm.scale"])

    def merged(h: Tensor, size: tuple[int, int], tall: int, wide: int, channels_first: bool = False) -> Tensor:
        """Tokens (B, H·W, C) -> those of tall×wide patches."""
        parts = [
            h.reshape(len(h), *size, -1)[:, i::tall, j::wide].flatten(1, 2)
            for i, j in itertools.product(range(tall), range(wide))
        ]
        return torch.stack(parts, 3 if channels_first else 2).flatten(2)

    def split(h: Tensor, size: tuple[int, int], tall: int, wide: int, channels_first: bool = False) -> Tensor:
        """The way back; size is that of the patches."""
        count = h.shape[-1] // (tall * wide)
        h = h.reshape(len(h), *size, *((count, tall, wide) if channels_first else (tall, wide, count)))
        out = h.new_empty(len(h), size[0] * tall, size[1] * wide, count)
        for i, j in itertools.product(range(tall), range(wide)):
            out[:, i::tall, j::wide] = h[..., i, j] if channels_first else h[..., i, j, :]
        return out.flatten(1, 2)

    (tall, wide), (batch, channels, *full) = m["patch_size"], x.shape
    size = (full[0] // tall, full[1] // wide)
    h = merged((x / total.sqrt()).flatten(2).transpose(1, 2), (full[0], full[1]), tall, wide, is_first)
    if is_first:
        h = layers(dense(h, "in_proj"), "blocks", size, {"depth": m["depth"], "attention": {"type": "global"}})
        h = dense(rms(h, w["out_norm.scale"]), "out_proj")
    else:
        h, its, skips = dense(h, "patch_in.proj"), levels(m), []
        for number, level in enumerate(its[:-1]):
            skips.append(h := layers(h, f"down_levels.{number}", size, level))
            h, size = dense(merged(h, size, 2, 2), f"merges.{number}.proj"), (size[0] // 2, size[1] // 2)
        h = layers(h, "mid_level", size, its[-1])
        for number, level in reversed(list(enumerate(its[:-1]))):
            share = w[f"splits.{number}.fac"]
            h = share * split(dense(h, f"splits.{number}.proj"), size, 2, 2) + (1 - share) * skips.pop()
            size = (size[0] * 2, size[1] * 2)
            h = layers(h, f"up_levels.{number}", size, level, level["depth"])
        h = dense(rms(h, w["out_norm.scale"]), "patch_out.proj")
    out = split(h, size, tall, wide, is_first).transpose(1, 2).reshape(batch, channels, *full)
    return data**2 / total * x + sigma[:, None, None, None] * data / total.sqrt() * out


def close(ours: Tensor, theirs: Tensor, to: float = 1e-5) -> None:
    error = float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())
    assert error < to, error


def draw(field: odeddim.VectorField, sigma: Tensor) -> Tensor:
    assert field.shape is not None
    chance = torch.Generator().manual_seed(1)
    return torch.randn(len(sigma), *field.shape, generator=chance) * sigma[:, None, None, None]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_its_network(kind: str, tmp_path: Path) -> None:
    c = KINDS[kind]
    path, state = saved(tmp_path, c)
    field = odeddim.load(path)
    assert field.shape == (c["model"]["input_channels"], *c["model"]["input_size"])
    assert field.schedule == odeddim.Schedule.edm(sigma_min=0.01, sigma_max=80)
    assert (field.predicts, field.details["weights"]) == ("x0", "ema")
    sigma = torch.tensor([0.02, 0.7, 75.0])
    x, classes = draw(field, sigma), c["dataset"].get("num_classes")
    for label in [0, classes] if classes else [None]:
        given = () if label is None else (torch.full((3,), label),)
        close(field.eps(x, sigma, *given), reference(c, state, x, sigma, label))


@pytest.mark.parametrize("kind", ["v1, tall patches", "windows"])
@pytest.mark.parametrize("name", ["model_00100000.safetensors", "bare.pth"])
def test_where_the_configuration_lies(kind: str, name: str, tmp_path: Path) -> None:
    """In the file that its converter writes, or beside the tensors alone."""
    path, state = saved(tmp_path, KINDS[kind], name)
    field, sigma = odeddim.load(path), torch.tensor([0.7])
    x = draw(field, sigma)
    close(field.eps(x, sigma), reference(KINDS[kind], state, x, sigma, None))


def test_in_float64_the_two_agree_to_its_digits(tmp_path: Path) -> None:
    """So nothing small is left out, as the ε of a norm would be."""
    for kind in ("v1, tall patches", "neighbourhoods", "windows"):
        path, state = saved(tmp_path, KINDS[kind])
        field, sigma = odeddim.load(path, dtype=torch.float64), torch.tensor([0.3, 2.0], dtype=torch.float64)
        x = draw(field, sigma)
        close(field.eps(x, sigma), reference(KINDS[kind], state, x, sigma, None), 1e-12)


@pytest.mark.parametrize(("height", "width", "side"), [(16, 16, 7), (12, 20, 3), (7, 13, 7), (9, 8, 5), (24, 3, 3)])
def test_neighbourhoods_one_query_at_a_time(height: int, width: int, side: int) -> None:
    """natten's borders: each query sees side×side keys, which are moved into the image at its edges."""
    chance = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, height, width, 4, generator=chance, dtype=torch.float64)
    out = local_attention.in_neighbourhoods(q, k, v, side=side)
    for row, column in itertools.product(range(height), range(width)):
        top, left = min(max(row - side // 2, 0), height - side), min(max(column - side // 2, 0), width - side)
        keys, values = (x[:, :, top : top + side, left : left + side].flatten(2, 3) for x in (k, v))
        share = torch.softmax((keys @ q[:, :, row, column, :, None])[..., 0], -1)
        torch.testing.assert_close(out[:, :, row, column], (share[..., None] * values).sum(2))


@pytest.mark.parametrize(
    ("more", "classes", "parameters"),
    [
        # Of each of 8 layers 6·256² + 4 of attention and norms, 3·768·256 of its feed-forward block; of the features
        # 2·256², 11·256, 2·256 and twice 256 + 3·768·256; at the ends 2·16·256 + 256.
        (
            {"input_channels": 1, "input_size": [28, 28], "patch_size": [4, 4], "depths": [8], "widths": [256]},
            10,
            9_187_360,
        ),
        (
            {
                "input_size": [256, 256],
                "patch_size": [4, 4],
                "depths": [2, 2, 4],
                "widths": [128, 256, 512],
                "self_attns": [windows(8, 64), windows(8, 64), {"type": "global", "d_head": 64}],
            },
            0,
            22_361_274,
        ),
        (
            {
                "input_size": [32, 32],
                "depths": [2, 4],
                "widths": [256, 512],
                "self_attns": [{"type": "global"}] * 2,
            },
            10,
            20_981_809,
        ),
    ],
    ids=["config_mnist_transformer", "config_oxford_flowers_shifted_window", "config_cifar10_transformer"],
)
def test_the_sizes_of_its_own_configurations(
    more: dict[str, Any], classes: int, parameters: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = config(classes=classes, **more)
    state = {name: torch.empty(shape, device="meta") for name, shape in layout(c).items()}
    monkeypatch.setattr(weights, "read", lambda path: {"config": c, "model_ema": state})
    monkeypatch.setattr(weights, "hash_of", lambda *paths, **settings: "hash")
    taken: dict[str, Any] = {}
    monkeypatch.setattr(weights, "fit", lambda network, mine, path, **how: taken.update(network=network, mine=mine))
    k_diffusion.read(tmp_path / "model.pth")
    assert {name: tensor.shape for name, tensor in taken["network"].state_dict().items()} == {
        name: tensor.shape for name, tensor in taken["mine"].items()
    }
    assert sum(parameter.numel() for parameter in taken["network"].parameters()) == parameters


@pytest.mark.parametrize(("width", "hidden"), [(64, 176), (192, 512), (512, 1408), (1024, 2816)])
def test_the_hidden_width_of_the_first_network(width: int, hidden: int) -> None:
    """Of 8/3 of the width the roundest number, in powers of 2, within 5%: 512·8/3 = 1365.3, 1408 = 11·128."""
    network: Any = weights.described(k_diffusion_configs.described(first(width=width), 99).make)
    assert network.blocks[0].ff.down_proj.weight.shape == (width, hidden)


def test_classes_are_conditions(tmp_path: Path) -> None:
    """Where training drops the class of some images, guidance has what it leads away from."""
    path, state = saved(tmp_path, KINDS["global"])
    field, sigma = odeddim.load(path), torch.tensor([0.7])
    x = draw(field, sigma)

    def eps(label: int) -> Tensor:
        return (x.double() - reference(KINDS["global"], state, x, sigma, label)) / sigma[:, None, None, None].double()

    close(field(sigma, x), eps(3))
    close(field.conditioned(2, guidance=1.5)(sigma, x), eps(3) + 1.5 * (eps(2) - eps(3)))
    again = pickle.loads(pickle.dumps(field.conditioned(2)))
    close(again(sigma, x), eps(2))
    with pytest.raises(odeddim.InputError, match="classes 0 to 2"):
        field.conditioned(4)
    always = {**KINDS["global"], "dataset": {"num_classes": 3, "cond_dropout_rate": 0}}
    other = odeddim.load(saved(tmp_path, always)[0])
    assert other.sha256 != field.sha256
    with pytest.raises(odeddim.InputError, match="needs a class"):
        other(sigma, x)
    close(other.conditioned(1)(sigma, x), eps(1))


def test_gradients_and_16_bits(tmp_path: Path) -> None:
    for kind in ("v1", "neighbourhoods", "windows"):
        field = odeddim.load(saved(tmp_path, KINDS[kind])[0])
        sigma = torch.tensor([0.7])
        given = (torch.tensor([1]),) if KINDS[kind]["dataset"].get("num_classes") else ()
        x = draw(field, sigma).requires_grad_()
        exact = field.eps(x, sigma, *given)
        (gradient,) = torch.autograd.grad(exact.square().sum(), x)
        assert bool(gradient.isfinite().all())
        assert float(gradient.abs().max()) > 0
        field.to("cpu", torch.bfloat16)
        close(field.eps(x.detach().bfloat16(), sigma, *given), exact.detach(), 0.1)


WRONG: list[tuple[dict[str, Any], str]] = [
    (config(depths=[10**9, 1]), "depths"),
    (config(depths=[100, 100]), "asks for 202 blocks"),
    (config(depths=[1]), "of one length"),
    (config(widths="64"), "widths"),
    (config(widths=[48, 64], self_attns=[GLOBAL, GLOBAL]), "attention heads of 32"),
    (config(self_attns=[GLOBAL, {"type": "global", "d_head": 4}]), "multiple of 8"),
    (config(self_attns=[GLOBAL]), "of one length"),
    (config(self_attns={"type": "global"}), "lists"),
    (config(self_attns=[GLOBAL, {"type": "linear"}]), "neighborhood, shifted-window or none"),
    (config(self_attns=[GLOBAL, 3]), "neighborhood, shifted-window or none"),
    (config(self_attns=[windows(3), GLOBAL]), "do not tile"),
    (config(self_attns=[{"type": "shifted-window"}, GLOBAL]), "window_size"),
    (config(self_attns=[near(4), GLOBAL]), "odd"),
    (config(self_attns=[near(9), GLOBAL]), "from 3 to the 8×8 patches"),
    (config(self_attns=[near(1), GLOBAL]), "odd"),
    (config(patch_size=2), "patch_size"),
    (config(patch_size=[2, 2, 2]), "patch_size"),
    (config(input_size=[18, 16], self_attns=[GLOBAL, GLOBAL]), "divisible by 4"),
    (config(input_size=[16], self_attns=[GLOBAL, GLOBAL]), "input_size"),
    (config(mapping_width=31), "even"),
    (config(mapping_depth=0), "mapping_depth"),
    (config(mapping_cond_dim=5), "mapping_cond_dim"),
    (config(has_variance=True), "has_variance"),
    (config(sigma_max=None), "sigma_max"),
    (config(classes=10**8), "num_classes"),
    ({**config(), "dataset": {"num_classes": 2, "cond_dropout_rate": "often"}}, "cond_dropout_rate"),
    (first(depth=0), "depth"),
    (first(depth=10**5), "blocks"),
    (first(width=96), "attention heads of 64"),
    (first(d_ff=-1), "d_ff"),
    (config("image_transformer_v3"), "image_v1, image_transformer_v1, image_transformer_v2 are read"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "words"), WRONG)
def test_a_wrong_configuration_is_one_sentence(wrong: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "flowers.pth"
    torch.save({"config": wrong, "model_ema": drawn(config())}, path)
    refused(path, words)


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    for c in (KINDS["v1"], KINDS["three levels"]):
        path, state = saved(tmp_path, c)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        refused(path)
        for name in list(state)[::4]:
            if name != "aug_emb.weight":  # which tells what was augmented, and is not read
                torch.save({"config": c, "model_ema": {key: state[key] for key in state if key != name}}, path)
                refused(path, name)
        for wrong in (torch.zeros(3), torch.full_like(state["time_in_proj.weight"], math.nan)):
            torch.save({"config": c, "model_ema": {**state, "time_in_proj.weight": wrong}}, path)
            refused(path, "time_in_proj.weight")
        torch.save({"config": {**c, "dataset": {"num_classes": 9}}, "model_ema": state}, path)
        refused(path, "class_emb.weight")
        torch.save({"config": {**c, "dataset": {}}, "model_ema": state}, path)
        refused(path, "unexpected class_emb.weight")
        torch.save(state, path)
        refused(path, "does not hold the configuration")
