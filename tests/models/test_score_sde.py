"""score_sde's checkpoints: its list of modules and its layers written out over the state dict, its sizes, its SDEs."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from support import refused
from torch import Tensor
from torch.nn import functional as F

import odeddim
from odeddim import solvers
from odeddim.models import weights
from odeddim.models.formats import score_sde
from odeddim.models.score_sde_configs import CONFIGS
from odeddim.plans import Plan, integrate
from odeddim.types import State

TINY = {"image_size": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4]}


def settings(config: str, **more: Any) -> dict[str, Any]:
    """All that a configuration says, smaller."""
    found = {**CONFIGS[config], **TINY, "nf": 8, "sigma_min": 0.01, "sigma_max": 50.0, "num_scales": 1000, **more}
    if found["model"] == "ddpm":
        found |= {"resblock_type": "ddpm", "progressive": "none", "progressive_input": "none", "fir": False}
        found |= {"skip_rescale": False, "embedding_type": "positional", "nf": 32 * ((found["nf"] + 31) // 32)}
    return found


def layout(c: dict[str, Any]) -> list[tuple[str, dict[str, tuple[int, ...]]]]:
    """The list of modules of `NCSNpp` and `DDPM`: the kind of each, and its tensors with their shapes."""
    nf, times, size = c["nf"], c["ch_mult"], c["image_size"]
    big, smooth = c["resblock_type"] == "biggan", c["fir"]
    made: list[tuple[str, dict[str, tuple[int, ...]]]] = []

    def norm(width: int, name: str = "") -> dict[str, tuple[int, ...]]:
        return {f"{name}weight": (width,), f"{name}bias": (width,)}

    def conv(inner: int, outer: int, name: str = "", side: int = 3) -> dict[str, tuple[int, ...]]:
        return {f"{name}weight": (outer, inner, side, side), f"{name}bias": (outer,)}

    def nin(inner: int, outer: int, number: int) -> dict[str, tuple[int, ...]]:
        return {f"NIN_{number}.W": (inner, outer), f"NIN_{number}.b": (outer,)}

    def residual(inner: int, outer: int, kind: str = "residual") -> None:
        parts = {**norm(inner, "GroupNorm_0."), **conv(inner, outer, "Conv_0.")}
        parts |= {"Dense_0.weight": (outer, 4 * nf), "Dense_0.bias": (outer,)}
        parts |= {**norm(outer, "GroupNorm_1."), **conv(outer, outer, "Conv_1.")}
        if inner != outer or kind != "residual":
            parts |= conv(inner, outer, "Conv_2.", 1) if big else nin(inner, outer, 0)
        made.append((kind, parts))

    def attention(width: int) -> None:
        parts = norm(width, "GroupNorm_0.")
        for number in range(4):
            parts |= nin(width, width, number)
        made.append(("attention", parts))

    fourier = c["embedding_type"] == "fourier"
    if fourier:
        made.append(("fourier", {"W": (nf,)}))
    wide = 2 * nf if fourier else nf
    made.append(("dense", {"weight": (4 * nf, wide), "bias": (4 * nf,)}))
    made.append(("dense", {"weight": (4 * nf, 4 * nf), "bias": (4 * nf,)}))
    made.append(("conv", conv(3, nf)))
    skips, width, image = [nf], nf, 3
    for level, time in enumerate(times):
        for _ in range(c["num_res_blocks"]):
            residual(width, nf * time)
            width = nf * time
            if size >> level in c["attn_resolutions"]:
                attention(width)
            skips.append(width)
        if level < len(times) - 1:
            if big:
                residual(width, width, "halved")
            else:
                made.append(("halving", conv(width, width, "Conv_0.")))
            if c["progressive_input"] == "input_skip":
                made.append(("combine", conv(3, width, "Conv_0.", 1)))
            elif c["progressive_input"] == "residual":
                made.append(("pyramid", conv(image, width, "Conv2d_0." if smooth else "Conv_0.")))
                image = width
            skips.append(width)
    residual(width, width)
    attention(width)
    residual(width, width)
    for level, time in reversed(list(enumerate(times))):
        for _ in range(c["num_res_blocks"] + 1):
            residual(width + skips.pop(), nf * time)
            width = nf * time
        if size >> level in c["attn_resolutions"]:
            attention(width)
        if c["progressive"] == "output_skip":
            made.append(("norm", norm(width)))
            made.append(("answer", conv(width, 3)))
        if level:
            if big:
                residual(width, width, "doubled")
            else:
                made.append(("doubling", conv(width, width, "Conv_0.")))
    if c["progressive"] != "output_skip":
        made.append(("norm", norm(width)))
        made.append(("conv", conv(width, 3)))
    return made


def drawn(c: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Weights by name, the noise levels first, as `state_dict` gives them."""
    chance = torch.Generator().manual_seed(seed)
    levels = np.exp(np.linspace(np.log(c["sigma_max"]), np.log(c["sigma_min"]), c["num_scales"]))
    state = {"sigmas": torch.tensor(levels)}
    for number, (kind, parts) in enumerate(layout(c)):
        for name, shape in parts.items():
            fan = math.prod(shape) / max(shape[:2]) if len(shape) > 1 else 1
            value = torch.randn(shape, generator=chance) * (0.7 / math.sqrt(fan) if len(shape) > 1 else 0.3)
            if kind == "fourier":
                value = value * 5
            elif len(shape) == 1 and name.endswith("weight"):
                value = value + 1
            state[f"all_modules.{number}.{name}"] = value
    return state


def saved(
    folder: Path, config: str, name: str = "checkpoint_24.pth", **more: Any
) -> tuple[Path, dict[str, Tensor], Any]:
    """A checkpoint as training writes it, and the averaged weights in it."""
    c = settings(config, **more)
    state, other = drawn(c), drawn(c, seed=1)
    trained = [key for key in state if key != "sigmas" and not key.endswith("all_modules.0.W")]
    ema = {"decay": 0.999, "num_updates": 5, "shadow_params": [state[key] for key in trained]}
    raw = {f"module.{key}": other[key] if key in trained else state[key] for key in state}
    path = folder / name
    torch.save({"optimizer": {"state": {}, "param_groups": [{"lr": 2e-4}]}, "model": raw, "ema": ema, "step": 7}, path)
    told = {**TINY, **{key: value for key, value in more.items() if key in CONFIGS[config]}}
    path.with_suffix(".json").write_text(json.dumps({"config": config, **told}))
    return path, state, c


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filtered(x: Tensor, up: int, down: int, pad: tuple[int, int]) -> Tensor:
    """upfirdn2d with [1, 3, 3, 1]: zeros between pixels, padding, the filter, every second pixel."""
    batch, channels, height, width = x.shape
    h = torch.zeros(batch, channels, height, up, width, up, dtype=x.dtype)
    h[:, :, :, 0, :, 0] = x
    h = F.pad(h.reshape(batch, channels, height * up, width * up), (*pad, *pad))
    row = torch.tensor([1, 3, 3, 1], dtype=x.dtype) / 8 * up
    h = sum(row[i] * h[..., i : h.shape[-1] - 3 + i] for i in range(4))  # type: ignore[assignment]
    h = sum(row[i] * h[..., i : h.shape[-2] - 3 + i, :] for i in range(4))  # type: ignore[assignment]
    return h[..., ::down, ::down]


def reference(c: dict[str, Any], state: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
    """The network before any division by σ, in float64: x in [-1, 1], label σ or an index."""
    w = {name: value.double() for name, value in state.items()}
    kinds = [kind for kind, _ in layout(c)]
    place = iter(range(len(kinds)))
    root = math.sqrt(2) if c["skip_rescale"] else 1.0

    def next_of(*wanted: str) -> str:
        number = next(place)
        assert kinds[number] in wanted, (kinds[number], wanted)
        return f"all_modules.{number}."

    def conv(h: Tensor, name: str, **how: Any) -> Tensor:
        return F.conv2d(h, w[f"{name}weight"], w[f"{name}bias"], **how)

    def dense(h: Tensor, name: str) -> Tensor:
        return h @ w[f"{name}weight"].T + w[f"{name}bias"]

    def nin(h: Tensor, name: str) -> Tensor:
        return torch.einsum("bchw,cd->bdhw", h, w[f"{name}W"]) + w[f"{name}b"][:, None, None]

    def silu(h: Tensor) -> Tensor:
        return h * torch.sigmoid(h)

    def norm(h: Tensor, name: str) -> Tensor:
        groups = 32 if c["model"] == "ddpm" else min(h.shape[1] // 4, 32)
        parts = h.reshape(len(h), groups, -1)
        parts = (parts - parts.mean(2, keepdim=True)) / (parts.var(2, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return parts.reshape(h.shape) * w[f"{name}weight"][:, None, None] + w[f"{name}bias"][:, None, None]

    def halved(h: Tensor) -> Tensor:
        if c["fir"]:
            return filtered(h, 1, 2, (1, 1))
        return (h[..., ::2, ::2] + h[..., 1::2, ::2] + h[..., ::2, 1::2] + h[..., 1::2, 1::2]) / 4

    def doubled(h: Tensor) -> Tensor:
        return filtered(h, 2, 1, (2, 1)) if c["fir"] else h.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def residual(h: Tensor, name: str, resize: Callable[[Tensor], Tensor] = lambda h: h) -> Tensor:
        inner = conv(resize(silu(norm(h, f"{name}GroupNorm_0."))), f"{name}Conv_0.", padding=1)
        inner = inner + dense(silu(told), f"{name}Dense_0.")[..., None, None]
        inner = conv(silu(norm(inner, f"{name}GroupNorm_1.")), f"{name}Conv_1.", padding=1)
        h = resize(h)
        if f"{name}Conv_2.weight" in w:
            h = conv(h, f"{name}Conv_2.")
        elif f"{name}NIN_0.W" in w:
            h = nin(h, f"{name}NIN_0.")
        return (h + inner) / root

    def attention(h: Tensor, name: str) -> Tensor:
        q, k, v = (nin(norm(h, f"{name}GroupNorm_0."), f"{name}NIN_{number}.").flatten(2) for number in range(3))
        share = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(h.shape[1]), dim=-1)
        return (h + nin((v @ share.transpose(1, 2)).reshape(h.shape), f"{name}NIN_3.")) / root

    def blocks(h: Tensor, attends: bool) -> Tensor:
        h = residual(h, next_of("residual"))
        return attention(h, next_of("attention")) if attends else h

    x, label = x.double(), label.double()
    if c["embedding_type"] == "fourier":
        angles = torch.outer(label.log(), w[f"{next_of('fourier')}W"]) * 2 * math.pi
    else:
        half = c["nf"] // 2
        angles = torch.outer(label, 10000.0 ** (-torch.arange(half, dtype=torch.float64) / (half - 1)))
    told = dense(torch.cat([angles.sin(), angles.cos()], 1), next_of("dense"))
    told = dense(silu(told), next_of("dense"))
    image, h = x, conv(x, next_of("conv"), padding=1)
    skips = [h]
    levels = len(c["ch_mult"])
    for level in range(levels):
        for _ in range(c["num_res_blocks"]):
            skips.append(h := blocks(h, c["image_size"] >> level in c["attn_resolutions"]))
        if level < levels - 1:
            if c["resblock_type"] == "biggan":
                h = residual(h, next_of("halved"), halved)
            else:
                h = conv(F.pad(h, (0, 1, 0, 1)), f"{next_of('halving')}Conv_0.", stride=2)
            if c["progressive_input"] == "input_skip":
                image = halved(image)
                h = conv(image, f"{next_of('combine')}Conv_0.") + h
            elif c["progressive_input"] == "residual":
                name = next_of("pyramid")
                if c["fir"]:
                    image = conv(filtered(image, 1, 1, (2, 2)), f"{name}Conv2d_0.", stride=2)
                else:
                    image = conv(F.pad(image, (0, 1, 0, 1)), f"{name}Conv_0.", stride=2)
                h = image = (image + h) / root
            skips.append(h)
    h = residual(attention(residual(h, next_of("residual")), next_of("attention")), next_of("residual"))
    answer: Tensor | None = None
    for level in reversed(range(levels)):
        for _ in range(c["num_res_blocks"] + 1):
            h = residual(torch.cat([h, skips.pop()], 1), next_of("residual"))
        if c["image_size"] >> level in c["attn_resolutions"]:
            h = attention(h, next_of("attention"))
        if c["progressive"] == "output_skip":
            its = conv(silu(norm(h, next_of("norm"))), next_of("answer"), padding=1)
            answer = its if answer is None else doubled(answer) + its
        if level and c["resblock_type"] == "biggan":
            h = residual(h, next_of("doubled"), doubled)
        elif level:
            h = conv(h.repeat_interleave(2, 2).repeat_interleave(2, 3), f"{next_of('doubling')}Conv_0.", padding=1)
    if answer is None:
        answer = conv(silu(norm(h, next_of("norm"))), next_of("conv"), padding=1)
    assert next(place, None) is None
    return answer


def share_and_noise(c: dict[str, Any], t: float) -> tuple[float, float]:
    """a and the standard deviation of x = a·x0 + std·ε at a time of score_sde, in its units."""
    if c["sde"] == "vesde":
        return 1.0, c["sigma_min"] * (c["sigma_max"] / c["sigma_min"]) ** t
    if not c["continuous"]:
        betas = torch.linspace(0.1 / 1000, 20 / 1000, 1000, dtype=torch.float64)
        alpha = float(torch.cumprod(1 - betas, 0)[round(t * 999)])
        return math.sqrt(alpha), math.sqrt(1 - alpha)
    share = math.exp(-19.9 * t**2 / 4 - 0.1 * t / 2)
    return share, 1 - share**2 if c["sde"] == "subvpsde" else math.sqrt(1 - share**2)


def score_fn(c: dict[str, Any], state: dict[str, Tensor]) -> Callable[[Tensor, float], Tensor]:
    """`get_score_fn` of score_sde: the score of x, in its units, at a time t."""

    def score(x: Tensor, t: float) -> Tensor:
        _, noise = share_and_noise(c, t)
        inner = x if c["centered"] else 2 * x - 1
        if c["sde"] != "vesde":
            return -reference(c, state, inner, torch.full((len(x),), 999 * t)) / noise
        label = noise if c["continuous"] else round((1 - t) * 999)
        return reference(c, state, inner, torch.full((len(x),), label)) / noise

    return score


def ours(c: dict[str, Any], field: Any) -> Callable[[Tensor, float], Tensor]:
    """The same of a model of odeddim: from ε(σ, x̄) of images in [-1, 1]."""

    def score(x: Tensor, t: float) -> Tensor:
        share, noise = share_and_noise(c, t)
        factor = 1 if c["centered"] else 2
        xbar = factor * x / share - (factor - 1)
        return -field(torch.tensor(factor * noise / share, dtype=torch.float64), xbar) / noise

    return score


def close(a: Tensor, b: Tensor, to: float = 1e-5) -> None:
    error = float((a.double() - b.double()).abs().max() / b.double().abs().max())
    assert error < to, error


KINDS = {
    "vp/ddpm/cifar10_continuous": {},
    "vp/cifar10_ddpmpp": {},
    "subvp/cifar10_ddpmpp_continuous": {"num_res_blocks": 2},
    "vp/cifar10_ncsnpp_continuous": {},
    "ve/cifar10_ncsnpp": {},
    "ve/cifar10_ncsnpp_continuous": {"ch_mult": [1, 2, 2], "attn_resolutions": [4, 2]},
    "ve/church_ncsnpp_continuous": {"ch_mult": [2, 1, 2], "sigma_max": 380.0, "num_scales": 2000},
    "ve/cifar10_ddpm": {},
}


@pytest.mark.parametrize("config", KINDS)
def test_a_file_gives_the_papers_network(config: str, tmp_path: Path) -> None:
    more: dict[str, Any] = KINDS[config]  # type: ignore[assignment]
    path, state, c = saved(tmp_path, config, **more)
    field = odeddim.load(path, dtype=torch.float64)
    assert (field.shape, field.details["weights"]) == ((3, 8, 8), "ema")
    assert field.predicts == ("score" if c["sde"] == "vesde" else "eps")
    theirs = score_fn(c, state)
    for t in (1.0, 600 / 999, 0.1 if c["continuous"] else 100 / 999):
        _, noise = share_and_noise(c, t)
        x = draw(2, 3, 8, 8) * noise
        close(ours(c, field)(x, t), theirs(x, t), 1e-6)
    close(ours(c, odeddim.load(path))(x, t), theirs(x, t), 3e-5)  # in float32, as it is by default
    if c["sde"] == "vesde":
        low, high = 2 * 0.01, 2 * c["sigma_max"]
        assert (field.schedule.sigma_min, field.schedule.sigma_max) == pytest.approx((low, high), rel=1e-9)


def drift(c: dict[str, Any], x: Tensor, t: float, score: Callable[[Tensor, float], Tensor]) -> Tensor:
    """dx/dt of the probability flow, f - g²·score/2, in score_sde's units."""
    if c["sde"] == "vesde":
        _, noise = share_and_noise(c, t)
        return -(noise**2) * math.log(c["sigma_max"] / c["sigma_min"]) * score(x, t)
    beta = 0.1 + t * 19.9
    squared = beta * (1 - math.exp(-0.2 * t - 19.9 * t**2) if c["sde"] == "subvpsde" else 1)
    return -beta * x / 2 - squared / 2 * score(x, t)


TIMES_OF_SDES = [
    "vp/cifar10_ddpmpp_continuous",
    "subvp/cifar10_ncsnpp_continuous",
    "ve/cifar10_ncsnpp_continuous",
]


@pytest.mark.parametrize("config", TIMES_OF_SDES)
def test_twenty_steps_of_the_probability_flow(config: str, tmp_path: Path) -> None:
    """Its Euler predictor without noise, x - dt·(f - g²·score/2), by either score."""
    path, state, c = saved(tmp_path, config)
    field = odeddim.load(path, dtype=torch.float64)
    noise = draw(1, 3, 8, 8) * share_and_noise(c, 1.0)[1]
    times = np.linspace(1, 1e-3, 21)
    found = []
    for score in (ours(c, field), score_fn(c, state)):
        x = noise
        for here, there in itertools.pairwise(times):
            x = x + (there - here) * drift(c, x, float(here), score)
        found.append(x)
    close(found[0], found[1])
    assert field.nfe == 20


@pytest.mark.slow  # thousands of evaluations in float64
@pytest.mark.parametrize("config", TIMES_OF_SDES[1:])
def test_its_black_box_sampler_is_the_same_curve(config: str, tmp_path: Path) -> None:
    """RK45 over t from score_sde's drift, and an embedded pair over σ."""
    path, state, c = saved(tmp_path, config)
    if c["embedding_type"] == "positional":  # the label 999·t is told by slow sinusoids alone
        raw = torch.load(path)
        shadow = raw["ema"]["shadow_params"][0]
        for place in (0, 4):
            shadow[:, place] = 0
            state["all_modules.0.weight"][:, place] = 0
        torch.save(raw, path)
    flow = score_fn(c, state)
    noise = draw(1, 3, 8, 8) * share_and_noise(c, 1.0)[1]
    last = 0.7
    curve = solve_ivp(
        lambda t, y: drift(c, torch.from_numpy(y).reshape(noise.shape), t, flow).numpy().ravel(),
        (1.0, last),
        noise.numpy().ravel(),
        rtol=1e-7,
        atol=1e-8 * float(noise.abs().max()),
    )
    end = torch.from_numpy(curve.y[:, -1]).reshape(noise.shape)
    factor = 1 if c["centered"] else 2
    (top, first), (share, std) = share_and_noise(c, 1.0), share_and_noise(c, last)
    start = State(factor * noise / top - (factor - 1), factor * first / top)
    nodes = [factor * std / share, start.sigma]
    field = odeddim.load(path, dtype=torch.float64)
    pair = solvers.get("dopri5", rtol=1e-8, atol=1e-8)
    down = integrate(field, start, Plan(pair, torch.tensor(nodes, dtype=torch.float64))).xbar
    close(down, factor * end / share - (factor - 1))


# The sizes of the published networks, in millions of parameters that are trained.
SIZES = {
    "vp/cifar10_ddpmpp_continuous": 61.8,
    "vp/cifar10_ddpmpp_deep_continuous": 106.6,
    "ve/cifar10_ncsnpp_continuous": 62.8,
    "ve/church_ncsnpp_continuous": 65.6,
    "ve/ffhq_ncsnpp_continuous": 105.8,
    "vp/ddpm/church": 111.6,
}


@pytest.mark.parametrize("config", CONFIGS)
def test_published_configurations(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    c = settings(
        config, **{key: CONFIGS[config][key] for key in TINY}, nf=16 if "1024" in str(CONFIGS[config]) else 128
    )
    shapes = {f"all_modules.{n}.{name}": s for n, (_, its) in enumerate(layout(c)) for name, s in its.items()}
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    state["sigmas"] = torch.linspace(50, 0.01, 1000, dtype=torch.float64)
    (tmp_path / "checkpoint_8.json").write_text(json.dumps({"config": config}))
    monkeypatch.setattr(weights, "read", lambda path: state)
    monkeypatch.setattr(weights, "hash_of", lambda *paths, **settings: "hash")
    taken: dict[str, Any] = {}
    monkeypatch.setattr(weights, "fit", lambda network, mine, path, **how: taken.update(network=network, mine=mine))
    field = score_sde.read(tmp_path / "checkpoint_8.pth")
    assert field.shape == (3, c["image_size"], c["image_size"])
    here = {name: tensor.shape for name, tensor in taken["network"].state_dict().items()}
    assert here == {name: tensor.shape for name, tensor in taken["mine"].items()}
    if config in SIZES:
        count = sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith("all_modules.0.W"))
        assert round(count / 1e6, 1) == SIZES[config]


def test_raw_weights_and_plain_state_dicts(tmp_path: Path) -> None:
    path, state, c = saved(tmp_path, "ve/cifar10_ncsnpp_continuous")
    said = json.loads(path.with_suffix(".json").read_text())
    ema = odeddim.load(path)
    path.with_suffix(".json").write_text(json.dumps({**said, "weights": "raw"}))
    raw = odeddim.load(path)
    assert (raw.details["weights"], ema.sha256 == raw.sha256) == ("raw", False)
    x = draw(1, 3, 8, 8)
    other = {**drawn(c, seed=1), "all_modules.0.W": state["all_modules.0.W"]}
    close(ours(c, raw)(x, 0.5), score_fn(c, other)(x, 0.5))
    torch.save(state, path)
    refused(path, 'leave "weights" out')
    path.with_suffix(".json").write_text(json.dumps(said))
    plain = odeddim.load(path)
    assert plain.details["weights"] == "as saved"
    close(ours(c, plain)(x, 0.5), score_fn(c, state)(x, 0.5))


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    path, state, _ = saved(tmp_path, "ve/cifar10_ncsnpp_continuous")
    whole, content = torch.load(path), path.read_bytes()
    for size in (len(content) - 1, len(content) // 2):
        path.write_bytes(content[:size])
        refused(path)
    for name in list(state)[::7]:
        torch.save({key: value for key, value in state.items() if key != name}, path)
        if name != "all_modules.0.W":
            refused(path)
    changed: dict[str, Any] = {
        "sigmas": torch.tensor([1.0]),
        "all_modules.3.weight": torch.zeros(8, 3),
        "all_modules.4.Conv_0.bias": torch.zeros(9),
        "all_modules.99.Conv_0.bias": torch.zeros(9),
        "all_modules.1.weight": torch.full((32, 16), math.nan),
    }
    for name, value in changed.items():
        torch.save({**state, name: value}, path)
        refused(path)
    torch.save({**state, "sigmas": torch.full((9,), 2.0)}, path)
    refused(path, "sigma")
    shadows = whole["ema"]["shadow_params"]
    for wrong in (
        {"model": 3},
        {"ema": {}},
        {"ema": {"shadow_params": shadows[1:]}},
        {"ema": {"shadow_params": shadows[::-1]}},
    ):
        torch.save({**whole, **wrong}, path)
        refused(path)
    torch.save(whole, path)
    place = path.with_suffix(".json")
    place.unlink()
    refused(path, "does not hold the settings sde", str(place), '{"config": "ve/cifar10_ncsnpp_continuous"}')
    said = {"config": "ve/cifar10_ncsnpp_continuous", **TINY}
    wrongs: list[dict[str, Any]] = [
        {"config": "ve/cifar10"}, {"config": 3}, {"sde": "ve"}, {"sde": 1}, {"fir": 1}, {"continuous": "yes"},
        {"image_size": 0}, {"image_size": 9}, {"ch_mult": [1, 2.5]}, {"ch_mult": []}, {"ch_mult": [1] * 40},
        {"num_res_blocks": 9999}, {"attn_resolutions": 4}, {"beta_min": "a"}, {"predicts": "eps"}, {"classes": 3},
        {"shape": [3, 9, 9]}, {"continuous": False}, {"embedding_type": "positional"}, {"resblock_type": "ddpm"},
        {"progressive": "residual"}, {"weights": "best"}, {"sde": "vpsde"}, {"sde": "vpsde", "centered": True},
        {"model": "ddpm"},
    ]  # fmt: skip
    for wrong in wrongs:
        place.write_text(json.dumps({**said, **wrong}))
        refused(path)
    place.write_text(json.dumps({**said, "shape": [3, 8, 8]}))
    assert odeddim.load(path).shape == (3, 8, 8)


def test_a_network_of_the_vp_sde_says_its_betas(tmp_path: Path) -> None:
    path, _, _ = saved(tmp_path, "vp/cifar10_ddpmpp_continuous")
    assert odeddim.load(path).details["assumed"] == ["beta_min 0.1 and beta_max 20, as in score_sde"]
    said = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**said, "beta_min": 0.2, "beta_max": 10}))
    field = odeddim.load(path)
    assert field.schedule == odeddim.Schedule.vp_sde(beta_min=0.2, beta_max=10)
    assert not field.details["assumed"]


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    for name, blob in {"a.pth": b"", "b.pth": b"PK\x03\x04", "c.pkl": b"all_modules.0.W"}.items():
        (tmp_path / name).write_bytes(blob)
        assert not score_sde.matches(tmp_path / name)
