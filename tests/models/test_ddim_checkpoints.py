"""DDIM's checkpoints: the same ε and the same trajectories as an implementation of its U-Net and of its eq. 12 on the
state dict alone, whatever the file wraps it in; what is inferred, what must be said, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import refused
from torch import Tensor
from torch.nn import functional as F

import odeddim
from odeddim.models.formats import ddim
from odeddim.models.networks.unet import UNet

State = Mapping[str, Tensor]

# Two levels of 32·m channels with 32 groups each, attention at the second: images of 32×32.
SMALL: dict[str, Any] = {
    "in_channels": 3,
    "image_size": 32,
    "channels": 32,
    "multipliers": [1, 2],
    "blocks": 2,
    "attention": [16],
    "groups": 32,
}


def drawn(seed: int = 0, **changed: Any) -> dict[str, Tensor]:
    """A state dict of DDIM's network with every number drawn: zeros would hide what comes behind them."""
    generator = torch.Generator().manual_seed(seed)
    state = UNet(**{**SMALL, **changed}).state_dict()
    return {name: 0.1 * torch.randn(part.shape, generator=generator) for name, part in state.items()}


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# DDIM's network as functions of its state dict, written from the description of DDPM's appendix B.


def reference(state: State, x: Tensor, t: Tensor) -> Tensor:
    """ε(x, t) of DDIM's `Model`: 32 groups and eps 1e-6 in every norm, one head, zeros on the right and below."""
    w = {name: part.to(x.dtype) for name, part in state.items()}

    def conv(name: str, h: Tensor, **options: Any) -> Tensor:
        return F.conv2d(h, w[name + ".weight"], w[name + ".bias"], **options)

    def norm(name: str, h: Tensor) -> Tensor:
        grouped = h.reshape(h.shape[0], 32, -1)
        mean, var = grouped.mean(2, keepdim=True), grouped.var(2, keepdim=True, unbiased=False)
        grouped = (grouped - mean) / (var + 1e-6).sqrt()
        return grouped.reshape(h.shape) * w[name + ".weight"][:, None, None] + w[name + ".bias"][:, None, None]

    def swish(h: Tensor) -> Tensor:
        return h * torch.sigmoid(h)

    def block(name: str, h: Tensor) -> Tensor:
        inner = conv(f"{name}.conv1", swish(norm(f"{name}.norm1", h)), padding=1)
        inner = (
            inner + F.linear(swish(temb), w[f"{name}.temb_proj.weight"], w[f"{name}.temb_proj.bias"])[..., None, None]
        )
        inner = conv(f"{name}.conv2", swish(norm(f"{name}.norm2", inner)), padding=1)
        return inner + (conv(f"{name}.nin_shortcut", h) if f"{name}.nin_shortcut.weight" in w else h)

    def attention(name: str, h: Tensor) -> Tensor:
        if f"{name}.q.weight" not in w:
            return h
        inner = norm(f"{name}.norm", h)
        q, k, v = (conv(f"{name}.{one}", inner).flatten(2) for one in "qkv")
        shares = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / math.sqrt(h.shape[1]), dim=2)
        return h + conv(f"{name}.proj_out", torch.einsum("bij,bcj->bci", shares, v).reshape(h.shape))

    width = w["conv_in.weight"].shape[0]
    frequencies = 10000 ** (-torch.arange(width // 2, dtype=x.dtype) / (width // 2 - 1))
    angles = t.to(x.dtype)[:, None] * frequencies
    temb = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
    temb = F.linear(temb, w["temb.dense.0.weight"], w["temb.dense.0.bias"])
    temb = F.linear(swish(temb), w["temb.dense.1.weight"], w["temb.dense.1.bias"])

    levels = len({name.split(".")[1] for name in w if name.startswith("down.")})
    blocks = len({name.split(".")[3] for name in w if name.startswith("down.0.block.")})
    h = conv("conv_in", x, padding=1)
    kept = [h]
    for level in range(levels):
        for i in range(blocks):
            h = attention(f"down.{level}.attn.{i}", block(f"down.{level}.block.{i}", h))
            kept.append(h)
        if level < levels - 1:
            if f"down.{level}.downsample.conv.weight" in w:
                h = conv(f"down.{level}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2)
            else:
                h = F.avg_pool2d(h, 2)
            kept.append(h)
    h = block("mid.block_2", attention("mid.attn_1", block("mid.block_1", h)))
    for level in reversed(range(levels)):
        for i in range(blocks + 1):
            h = attention(f"up.{level}.attn.{i}", block(f"up.{level}.block.{i}", torch.cat([h, kept.pop()], 1)))
        if level > 0:
            h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
            if f"up.{level}.upsample.conv.weight" in w:
                h = conv(f"up.{level}.upsample.conv", h, padding=1)
    return conv("conv_out", swish(norm("norm_out", h)), padding=1)


def alpha(t: int) -> float:
    """DDIM's α_t of DDPM's β: t = 1..1000, and α_0 = 1."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return float(torch.prod(1 - betas[:t]))


def generalized_steps(state: State, x: Tensor, times: list[int]) -> Tensor:
    """DDIM's eq. 12 with η = 0 from times[-1] down to 0; the network knows the paper's t as t - 1."""
    for t, before in zip(reversed(times), reversed([0, *times[:-1]]), strict=True):
        a, b = alpha(t), alpha(before)
        eps = reference(state, x, torch.full((len(x),), t - 1.0))
        x0 = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
        x = math.sqrt(b) * x0 + math.sqrt(1 - b) * eps
    return x


def ratio(got: Tensor, want: Tensor) -> float:
    """The largest difference over the largest value."""
    return float((got.double() - want.double()).abs().max() / want.double().abs().max())


# The same numbers.


def test_the_same_epsilon(tmp_path: Path) -> None:
    state = drawn()
    torch.save(state, path := tmp_path / "model.ckpt")
    field = odeddim.load(path, dtype=torch.float64)
    x, t = draw(4, 3, 32, 32), torch.tensor([0.0, 517.0, 999.0, 123.456], dtype=torch.float64)
    want = reference(state, x, t)
    assert float(want.std()) > 0.1
    assert ratio(field.eps(x, t), want) < 1e-12
    assert ratio(odeddim.load(path).eps(x.float(), t.float()), want) < 1e-5


def test_a_published_configuration(tmp_path: Path) -> None:
    """DDIM's CIFAR-10: 35.7 million parameters, attention at the second level."""
    cifar = {"channels": 128, "multipliers": [1, 2, 2, 2]}
    state = {name: part / 3 for name, part in drawn(**cifar).items()}
    torch.save(state, path := tmp_path / "ema_diffusion_cifar10_model-790000.ckpt")
    field = odeddim.load(path)
    assert field.shape == (3, 32, 32)
    assert field.details["found"] == "DDIM checkpoint, U-Net 128×(1,2,2,2), 35.7 M parameters"
    x, t = draw(1, 3, 32, 32).float(), torch.tensor([417.25])
    assert ratio(field.eps(x, t), reference(state, x, t)) < 1e-5


def test_the_same_trajectory(tmp_path: Path) -> None:
    state = drawn()
    torch.save(state, path := tmp_path / "model.ckpt")
    field = odeddim.load(path, dtype=torch.float64)
    times = list(range(50, 1001, 50))
    nodes = odeddim.grid("linear", field.schedule, 20)
    assert nodes[1:].tolist() == pytest.approx([math.sqrt(1 / alpha(t) - 1) for t in times], rel=1e-9)
    x_T = draw(1, 3, 32, 32)
    want = generalized_steps(state, x_T, times)
    got = odeddim.solve(x_T, "euler", model=field, grid=nodes)
    assert ratio(got, want) < 1e-9
    # eq. 14 upwards: a step asks at the label where it starts, the first one, from the image, at the lowest
    x = image = draw(1, 3, 32, 32, seed=2).clamp(-1, 1)
    for t, after in zip([0, *times[:-1]], times, strict=True):
        eps = reference(state, x, torch.full((1,), max(t, 1) - 1.0))
        level, next_level = (math.sqrt(1 / alpha(one) - 1) for one in (t, after))
        x = math.sqrt(alpha(after)) * (x / math.sqrt(alpha(t)) + (next_level - level) * eps)
    assert ratio(odeddim.encode(image, "euler", model=field, grid=nodes).x, x) < 1e-9


@pytest.mark.parametrize(
    ("changed", "said", "shape"),
    [
        ({"convolves": False}, {}, (3, 32, 32)),
        ({"multipliers": [1, 1, 2], "attention": [16], "image_size": 64, "blocks": 1}, {}, (3, 64, 64)),
        ({"attention": [], "blocks": 1}, {"shape": [3, 32, 32]}, (3, 32, 32)),
        ({"attention": [32, 16], "blocks": 1}, {"shape": [3, 32, 48]}, (3, 32, 48)),
        ({"in_channels": 1, "multipliers": [1], "image_size": 16, "blocks": 1}, {}, (1, 16, 16)),
    ],
    ids=["means", "three levels", "no attention", "attention twice", "one level"],
)
def test_architectures(tmp_path: Path, changed: dict[str, Any], said: dict[str, Any], shape: tuple[int, ...]) -> None:
    state = drawn(**changed)
    torch.save(state, path := tmp_path / "model.ckpt")
    if said:
        (tmp_path / "model.json").write_text(json.dumps(said))
    field = odeddim.load(path, dtype=torch.float64)
    assert field.shape == shape
    assert ("attention at 16×16" in field.describe()) == (not said)
    x, t = draw(2, *shape), torch.tensor([3.5, 800.0], dtype=torch.float64)
    assert ratio(field.eps(x, t), reference(state, x, t)) < 1e-12


def test_learned_variances_are_left_out(tmp_path: Path) -> None:
    state = drawn(out_channels=6)
    torch.save(state, path := tmp_path / "model.ckpt")
    field = odeddim.load(path, dtype=torch.float64)
    assert "its variances left out" in field.describe()
    x, t = draw(1, 3, 32, 32), torch.tensor([40.0], dtype=torch.float64)
    assert ratio(field.eps(x, t), reference(state, x, t)[:, :3]) < 1e-12


# What files wrap the weights in.


def test_what_training_writes(tmp_path: Path) -> None:
    """[model, optimizer, epoch, step, EMA], the model's names behind "module.": EMA unless "raw" is asked for."""
    raw, ema = drawn(1), drawn(2)
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    states = [{f"module.{name}": part for name, part in raw.items()}, optimizer.state_dict(), 3, 100, ema]
    torch.save(states, path := tmp_path / "ckpt.pth")
    x, t = draw(1, 3, 32, 32), torch.tensor([9.0], dtype=torch.float64)

    hashes: list[str] = []

    def found() -> tuple[str, Tensor]:
        field = odeddim.load(path, dtype=torch.float64)
        hashes.append(field.sha256)
        return field.details["weights"], field.eps(x, t)

    which, eps = found()
    assert which == "ema"
    assert ratio(eps, reference(ema, x, t)) < 1e-12
    (tmp_path / "ckpt.json").write_text('{"weights": "raw"}')
    which, eps = found()
    assert which == "raw"
    assert ratio(eps, reference(raw, x, t)) < 1e-12
    (tmp_path / "ckpt.json").unlink()
    torch.save(states[:4], path)  # trained without EMA
    which, eps = found()
    assert which == "raw"
    assert ratio(eps, reference(raw, x, t)) < 1e-12
    assert len(set(hashes)) == 3  # latents of the one are none of the other's


def test_every_container(tmp_path: Path) -> None:
    state = drawn()
    torch.save(state, tmp_path / "zip.pt")
    torch.save(state, tmp_path / "legacy.ckpt", _use_new_zipfile_serialization=False)
    torch.save({f"module.{name}": part for name, part in state.items()}, tmp_path / "parallel.bin")
    torch.save({**state, "logvar": torch.zeros(1000)}, tmp_path / "bayesian.pth")
    torch.save({name: part.half() for name, part in state.items()}, tmp_path / "half.pth")
    save_file(state, tmp_path / "safe.safetensors")
    torch.save(state, tmp_path / "CAPITALS.CKPT")
    save_file(state, tmp_path / "LOUD.SAFETENSORS")
    x, t = draw(1, 3, 32, 32).float(), torch.tensor([77.0])
    want = reference(state, x, t)
    for path in sorted(tmp_path.iterdir()):
        assert ddim.matches(path), path
        field = odeddim.load(path)
        assert field.details["weights"] == "as saved"
        assert field.dtype == torch.float32
        assert field.name == str(path.resolve())
        assert len(field.sha256) == 64
        assert ratio(field.eps(x, t), want) < (2e-2 if path.stem == "half" else 1e-5)


def test_what_is_said_is_taken_and_what_is_not_is_assumed(tmp_path: Path) -> None:
    torch.save(drawn(), path := tmp_path / "model.ckpt")
    field = odeddim.load(path)
    assert field.schedule == odeddim.Schedule.linear()
    assert (field.predicts, field.time) == ("eps", "index")
    assert len(field.details["assumed"]) == 3
    said = {"schedule": {"name": "cosine", "T": 400}, "predicts": "v", "time": "unit", "shape": [3, 32, 32]}
    (tmp_path / "model.json").write_text(json.dumps(said))
    field = odeddim.load(path)
    assert field.schedule == odeddim.Schedule.cosine(400)
    assert (field.predicts, field.time) == ("v", "unit")
    assert field.details["assumed"] == []
    assert UNet(**field.details["architecture"]).config == field.eps.config  # type: ignore[attr-defined]


# What is refused.


def test_weights_of_another_network(tmp_path: Path) -> None:
    state = drawn()
    path = tmp_path / "model.ckpt"
    strange: dict[str, tuple[dict[str, Tensor], str]] = {
        "lacks": ({name: p for name, p in state.items() if name != "mid.attn_1.q.bias"}, "missing mid.attn_1.q.bias"),
        "extra": ({**state, "label_emb.weight": torch.ones(10, 128)}, "unexpected label_emb.weight"),
        "shape": ({**state, "temb.dense.1.weight": torch.ones(3, 128)}, "temb.dense.1.weight has the shape (3, 128)"),
        "no input": ({n: p for n, p in state.items() if n != "conv_in.weight"}, "lacks the convolution conv_in.weight"),
        "flat": ({**state, "conv_in.weight": torch.ones(32)}, "lacks the convolution conv_in.weight"),
        "outputs": ({**state, "conv_out.weight": torch.ones(5, 32, 3, 3)}, "5 output channels for images of 3"),
        "widths": ({**state, "down.1.block.0.conv2.weight": torch.ones(48, 48, 3, 3)}, "not multiples of 32"),
        "levels": ({**state, "down.999.block.0.conv2.weight": torch.ones(32, 32, 3, 3)}, "lacks levels"),
        "narrow": (drawn(channels=16, groups=16), "groups must divide its 16 channels"),
        "half resampled": (
            {n: p for n, p in state.items() if n != "up.1.upsample.conv.bias"},
            "missing up.1.upsample.conv.bias",
        ),
        "endless": (
            {**state, "conv_in.weight": torch.ones(1).expand(2**40, 3, 3, 3)}
            | {f"down.{level}.block.0.conv2.weight": torch.ones(1).expand(2**40, 1, 3, 3) for level in (0, 1)},
            "no network can be built",
        ),
        "whole": ({**state, "norm_out.bias": torch.ones(32, dtype=torch.int64)}, "norm_out.bias holds int64"),
        "not finite": ({**state, "norm_out.bias": torch.full((32,), math.nan)}, "norm_out.bias holds NaN"),
    }
    for weights, words in strange.values():
        torch.save(weights, path)
        refused(path, "model.ckpt", words)


def test_files_that_are_no_states(tmp_path: Path) -> None:
    state = drawn()
    path = tmp_path / "model.ckpt"
    for held in ([state["conv_in.bias"], state], {"state": state, "epoch": 3}, [{**state, "step": 3}], [[], state]):
        torch.save(held, path)
        refused(path, "neither a state dict nor a list")
    torch.save({**state, "made by": Path}, path)
    refused(path, "model.ckpt")


def test_what_is_said_wrongly(tmp_path: Path) -> None:
    path, beside = tmp_path / "model.ckpt", tmp_path / "model.json"
    torch.save(drawn(blocks=1), path)
    for said, words in (
        ('{"weights": "ema"}', "one set of weights"),
        ('{"weights": "best"}', "choice of weights"),
        ('{"classes": 10}', "takes no classes: leave out classes"),
        ('{"shape": [1, 32, 32]}', "shape must be [3, HEIGHT, WIDTH]"),
        ('{"shape": [3, 33, 32]}', "divisible by 2"),
        ('{"shape": [3, 32]}', "shape must be"),
        ('{"wieghts": "raw"}', "did you mean weights"),
        ('{"predicts": "noise"}', "unknown prediction"),
        ('{"schedule": {"name": "linear", "T": 1}}', "betas must satisfy T >= 2"),
        ("{", "cannot be read as JSON"),
    ):
        beside.write_text(said)
        refused(path, words)
    beside.unlink()
    torch.save([drawn(blocks=1), {}, 1, 2], path)
    beside.write_text('{"weights": "ema"}')
    refused(path, "holds no EMA weights")
    beside.unlink()
    torch.save(drawn(attention=[], blocks=1), path)
    refused(path, "has no attention", '{"shape": [3, HEIGHT, WIDTH]}')
    torch.save(drawn(attention=[32, 16], blocks=1), path)
    refused(path, "has attention at 2 levels")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_anywhere(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.ckpt")
    path = path.with_stem("cut")
    state = drawn(blocks=1, multipliers=[1], image_size=16)
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for share in (0, 0.001, 0.01, 0.03, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        refused(path, str(path))
    path.write_bytes(whole)
    odeddim.load(path)


def test_files_of_others_are_not_claimed(tmp_path: Path) -> None:
    others: dict[str, Any] = {
        "adm.pt": {"time_embed.0.weight": torch.ones(4, 4), "input_blocks.0.0.weight": torch.ones(4)},
        "ldm.ckpt": {"state_dict": {"model.diffusion_model.temb.dense.0.weight": torch.ones(4, 4)}},
        "text.txt": drawn(),
        "model.safetensors": drawn(),  # odeddim's own, without its model.json: the norms would be guessed
    }
    for name, held in others.items():
        save_file(held, tmp_path / name) if name.endswith(".safetensors") else torch.save(held, tmp_path / name)
        assert not ddim.matches(tmp_path / name)
    for path in (tmp_path, tmp_path / "missing.ckpt", Path("/"), Path()):
        assert not ddim.matches(path)
