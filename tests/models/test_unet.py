"""UNet: equal to another implementation of DDPM's network, DDIM's names, the paper's sizes, real-valued labels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from odeddim.models.networks.unet import UNet, time_embedding
from odeddim.types import InputError

SMALL: dict[str, Any] = {"image_size": 8, "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4]}


def randomised(net: UNet, seed: int = 0) -> UNet:
    """Every weight drawn anew: DDPM's zeros would hide most of the network."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return net.eval().requires_grad_(False)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def name_in_diffusers(name: str, levels: int) -> str:
    """The name of one of our parameters in diffusers' UNet2DModel, after its own conversion script."""
    part, *rest = name.split(".")
    if part == "temb":
        return f"time_embedding.linear_{int(rest[1]) + 1}.{rest[2]}"
    if part == "norm_out":
        return f"conv_norm_out.{rest[0]}"
    if part in ("conv_in", "conv_out"):
        return name
    if part == "mid":
        kind, index = rest[0].split("_")
        head = f"mid_block.{ {'block': 'resnets', 'attn': 'attentions'}[kind] }.{int(index) - 1}"
        tail = rest[1:]
    else:
        level = int(rest[0]) if part == "down" else levels - 1 - int(rest[0])
        kinds = {"block": "resnets", "attn": "attentions", "downsample": "downsamplers.0", "upsample": "upsamplers.0"}
        head = f"{part}_blocks.{level}.{kinds[rest[1]]}"
        tail = rest[2:]
    renamed = {"temb_proj": "time_emb_proj", "nin_shortcut": "conv_shortcut"}
    if "attentions" in head:
        renamed = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
    return ".".join([head, *(renamed.get(word, word) for word in tail)])


def test_equals_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    # 128 channels, so that every norm has DDPM's 32 groups in both.
    ours = randomised(
        UNet(in_channels=3, image_size=8, channels=128, multipliers=[1, 1], blocks=1, attention=[4], dropout=0.1)
    )
    theirs = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(128, 128),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        norm_num_groups=32,
        act_fn="silu",
    ).eval()
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    state = {}
    for name, value in ours.state_dict().items():
        other = name_in_diffusers(name, levels=2)
        state[other] = value.reshape(shapes[other])  # their q, k, v are linear layers, ours 1×1 convolutions
    theirs.load_state_dict(state)
    x, t = draw(4, 3, 8, 8), torch.tensor([0.0, 17.0, 500.0, 999.0])
    with torch.no_grad():
        want = theirs(x, t).sample
    assert float(want.std()) > 0.1
    assert torch.allclose(ours(x, t), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        ({"image_size": 32, "multipliers": [1, 2, 2, 2]}, 35.7),  # DDPM, appendix B: CIFAR-10
        ({"image_size": 256, "multipliers": [1, 1, 2, 2, 4, 4]}, 113.7),  # "114 million": LSUN
    ],
)
def test_sizes_of_the_paper(config: dict[str, Any], millions: float) -> None:
    with torch.device("meta"):
        net = UNet(in_channels=3, channels=128, blocks=2, attention=[16], **config)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == millions


def test_names_are_those_of_ddim() -> None:
    block = ["norm1", "conv1", "temb_proj", "norm2", "conv2"]
    attn = ["norm", "q", "k", "v", "proj_out"]
    modules = [
        "temb.dense.0",
        "temb.dense.1",
        "conv_in",
        "norm_out",
        "conv_out",
        "down.0.downsample.conv",
        "up.1.upsample.conv",
    ]
    modules += [f"{where}.{name}" for where in ("down.0.block.0", "mid.block_1", "mid.block_2") for name in block]
    wider = ["down.1.block.0", "up.0.block.0", "up.0.block.1", "up.1.block.0", "up.1.block.1"]
    modules += [f"{where}.{name}" for where in wider for name in [*block, "nin_shortcut"]]
    modules += [f"{where}.{n}" for where in ("down.1.attn.0", "mid.attn_1", "up.1.attn.0", "up.1.attn.1") for n in attn]
    assert set(UNet(**SMALL).state_dict()) == {f"{name}.{kind}" for name in modules for kind in ("weight", "bias")}


def test_config_makes_the_same_network() -> None:
    net = randomised(UNet(in_channels=2, out_channels=4, dropout=0.5, **SMALL))
    again = UNet(**net.config)
    again.load_state_dict(net.state_dict())
    x, t = draw(2, 2, 8, 8), torch.tensor([1.0, 2.0])
    assert net(x, t).shape == (2, 4, 8, 8)
    assert torch.equal(again.eval()(x, t), net(x, t))


def test_three_levels_at_28() -> None:
    net = randomised(UNet(channels=8, multipliers=[1, 2, 4], blocks=1))
    assert [len(level.attn) for level in net.down] == [0, 0, 1]
    assert net(draw(2, 1, 28, 28), torch.tensor([0.0, 999.0])).shape == (2, 1, 28, 28)


def test_images_of_a_batch_do_not_see_each_other() -> None:
    net = randomised(UNet(**SMALL))
    x, t = draw(3, 1, 8, 8), torch.tensor([0.0, 40.5, 999.0])
    whole = net(x, t)
    for i in range(3):
        assert torch.allclose(net(x[i : i + 1], t[i : i + 1]), whole[i : i + 1], atol=1e-5)


def test_labels_are_real_numbers() -> None:
    net = randomised(UNet(**SMALL)).double()
    x = draw(1, 1, 8, 8).double().expand(3, 1, 8, 8)
    low, middle, high = net(x, torch.tensor([10.0, 10.5, 11.0], dtype=torch.float64))
    assert float((high - low).abs().max()) > 1e-4
    assert float((middle - (low + high) / 2).abs().max()) < 0.2 * float((high - low).abs().max())


def test_time_embedding_is_ddpms() -> None:
    t, width = 37.25, 6
    angles = [t * 10000 ** (-i / 2) for i in range(3)]  # exponents 0, -1/2, -1: both ends included
    want = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    assert time_embedding(torch.tensor([t], dtype=torch.float64), width)[0].tolist() == pytest.approx(want, abs=1e-12)


def test_a_bfloat16_network_tells_neighbouring_labels_apart() -> None:
    net = randomised(UNet(**SMALL)).bfloat16()
    x = draw(1, 1, 8, 8).bfloat16().expand(2, 1, 8, 8)
    low, high = net(x, torch.tensor([999.0, 998.0]))
    assert low.dtype == torch.bfloat16
    assert not torch.equal(low, high)


def test_dropout_stands_before_the_last_convolution() -> None:
    net = randomised(UNet(**{**SMALL, "dropout": 0.25})).train()
    seen: list[Tensor] = []
    net.mid.block_2.conv2.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    net(draw(4, 1, 8, 8), torch.zeros(4))
    assert float((seen[0] == 0).float().mean()) == pytest.approx(0.25, abs=0.1)


def test_a_fresh_network_answers_zero() -> None:
    assert not UNet(**SMALL)(draw(2, 1, 8, 8), torch.tensor([0.0, 9.0])).any()


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 8, 7), (2, 1, 9, 8), (1, 8, 8)])
def test_refuses_other_inputs(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"takes \(B, 1, H, W\) with H and W divisible by 2"):
        UNet(**SMALL)(torch.zeros(shape), torch.zeros(shape[0]))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"channels": 7}, "channels"),
        ({"channels": 0}, "channels"),
        ({"blocks": 0}, "blocks"),
        ({"blocks": 1.5}, "blocks"),
        ({"multipliers": []}, "multipliers"),
        ({"multipliers": [1, 0]}, "multipliers"),
        ({"multipliers": [1] * 5}, "halved 4 times"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_refuses_impossible_settings(change: dict[str, Any], names: str) -> None:
    with pytest.raises(InputError, match=names):
        UNet(**{**SMALL, **change})
