"""flow_matching's checkpoints: its U-Net over the state dict, its average in order, its Euler steps, other files."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import test_guided
import torch
from support import refused
from torch import Tensor

import odeddim
from odeddim import solvers
from odeddim.models import weights
from odeddim.models.formats import flow_matching
from odeddim.plans import Plan, integrate
from odeddim.types import InputError, State

# The two kinds of networks in models/model_configs.py, small.
KINDS: dict[str, dict[str, Any]] = {
    "cifar10": {"channels": 32, "times": (2, 2, 2), "blocks": 1, "attention": [1], "blocks resize": False},
    "imagenet": {"channels": 64, "times": (1, 2), "blocks": 1, "attention": [1], "blocks resize": True, "classes": 5},
}


def layout(kind: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The names and shapes of `UNetModel`, in its order."""
    channels, features = kind["channels"], 4 * kind["channels"]
    widths = [channels * time for time in kind["times"]]
    last, resizes = len(widths) - 1, kind["blocks resize"]
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, outer: int, *inner: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outer, *inner), (outer,)

    def residual(name: str, inner: int, outer: int) -> None:
        layer(f"{name}.in_layers.0", inner)
        layer(f"{name}.in_layers.2", outer, inner, 3, 3)
        layer(f"{name}.emb_layers.1", 2 * outer, features)
        layer(f"{name}.out_layers.0", outer)
        layer(f"{name}.out_layers.3", outer, outer, 3, 3)
        if inner != outer:
            layer(f"{name}.skip_connection", outer, inner, 1, 1)

    def attention(name: str, width: int) -> None:
        layer(f"{name}.norm", width)
        layer(f"{name}.qkv", 3 * width, width, 1)
        layer(f"{name}.proj_out", width, width, 1)

    layer("time_embed.0", features, channels)
    layer("time_embed.2", features, features)
    if kind.get("classes"):
        shapes["label_emb.weight"] = (kind["classes"] + 1, features)
    layer("input_blocks.0.0", widths[0], 3, 3, 3)
    place, width, skips = 1, widths[0], [widths[0]]
    for level, outer in enumerate(widths):
        for _ in range(kind["blocks"]):
            residual(f"input_blocks.{place}.0", width, outer)
            if level in kind["attention"]:
                attention(f"input_blocks.{place}.1", outer)
            skips.append(width := outer)
            place += 1
        if level < last:
            if resizes:
                residual(f"input_blocks.{place}.0", width, width)
            skips.append(width)
            place += 1
    residual("middle_block.0", width, width)
    attention("middle_block.1", width)
    residual("middle_block.2", width, width)
    place = 0
    for level, outer in reversed(list(enumerate(widths))):
        for block in range(kind["blocks"] + 1):
            residual(f"output_blocks.{place}.0", width + skips.pop(), outer)
            if level in kind["attention"]:
                attention(f"output_blocks.{place}.1", outer)
            if level and block == kind["blocks"] and resizes:
                residual(f"output_blocks.{place}.{2 if level in kind['attention'] else 1}", outer, outer)
            width = outer
            place += 1
    layer("out.0", width)
    layer("out.2", 3, width, 3, 3)
    return shapes


def drawn(kind: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in layout(kind).items():
        size = 0.7 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.3
        state[name] = torch.randn(shape, generator=chance) * size
        if len(shape) == 1 and name.endswith("weight"):
            state[name] += 1
    return state


def saved(folder: Path, kind: str, name: str = "checkpoint-899.pth", **args: Any) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint as save_model writes it with --use_ema, and the averaged weights in it."""
    state, raw = drawn(KINDS[kind]), drawn(KINDS[kind], seed=1)
    whole = {f"model.{key}": tensor for key, tensor in raw.items()} | {"num_updates": torch.tensor(7)}
    whole |= {f"shadow_params.{number}": tensor for number, tensor in enumerate(state.values())}
    given = {"dataset": kind, "use_ema": True, "ode_options": {"step_size": 0.01}, "optimizer_betas": [0.9, 0.95]}
    path = folder / name
    made = argparse.Namespace(**{**given, "discrete_flow_matching": False, **args})
    rest = {"optimizer": {"state": {}}, "lr_schedule": {}, "epoch": 899, "scaler": {"scale": 2.0}}
    torch.save({"model": whole, **rest, "args": made}, path)
    return path, state


def reference(dataset: str, state: dict[str, Tensor], x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    """The velocity at t, in float64, by the interpreter of guided-diffusion's state dicts."""
    kind = KINDS[dataset]
    config = {
        "channels": kind["channels"],
        "widths": [kind["channels"] * time for time in kind["times"]],
        "blocks": kind["blocks"],
        "attention": kind["attention"],
        "head_channels": 64 if dataset == "imagenet" else None,
        "heads": 1,
        "up_heads": 1,
        "heads_first": False,
        "scale_shift": True,
        "resampling": "block" if kind["blocks resize"] else "pooling",
        "time_scale": 1.0,
    }
    net: Any = SimpleNamespace(named_parameters=state.items, config=config)
    return test_guided.reference(net, x, t, y)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def close(ours: Tensor, theirs: Tensor, to: float = 1e-5) -> None:
    error = float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())
    assert error < to, error


@pytest.mark.parametrize(("dataset", "size"), [("cifar10", 32), ("imagenet", 64)])
def test_a_file_gives_its_network(dataset: str, size: int, tmp_path: Path) -> None:
    path, state = saved(tmp_path, dataset)
    field = odeddim.load(path)
    assert (field.predicts, field.time) == ("flow-to-data", "reversed")
    assert field.schedule == odeddim.Schedule.rectified_flow()
    assert (field.shape, field.details["weights"]) == ((3, size, size), "ema")
    assert f"of the example's network for {dataset}" in field.details["assumed"][0]
    x, t = draw(2, 3, 16, 16).float(), torch.tensor([0.07, 0.93])
    y = torch.tensor([1, 4]) if dataset == "imagenet" else None
    close(field.eps(x, t, *(() if y is None else (y,))), reference(dataset, state, x, t, y))
    path.with_suffix(".json").write_text(json.dumps({"weights": "raw", "shape": [3, 16, 16]}))
    raw = odeddim.load(path)
    assert (raw.details["weights"], raw.shape) == ("raw", (3, 16, 16))
    close(raw.eps(x, t, *(() if y is None else (y,))), reference(dataset, drawn(KINDS[dataset], seed=1), x, t, y))


def test_twenty_steps_of_its_sampler_with_guidance(tmp_path: Path) -> None:
    """ODESolver with Euler's method over its EDM grid of times, the velocity (1+w)·conditional - w·unconditional."""
    path, state = saved(tmp_path, "imagenet")
    path.with_suffix(".json").write_text(json.dumps({"image_size": 8}))
    step = torch.arange(20, dtype=torch.float64) / 19
    sigma = (80 ** (1 / 7) + step * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    sigma = torch.cat([sigma, torch.zeros(1, dtype=torch.float64)])
    times = 1 - sigma / (1 + sigma)
    x = noise = draw(1, 3, 8, 8)
    for here, there in itertools.pairwise(times):
        told, none = (reference("imagenet", state, x, here.expand(1), torch.tensor([k])) for k in (3, 5))
        x = x + (there - here) * (1.2 * told - 0.2 * none)
    field = odeddim.load(path, dtype=torch.float64).conditioned(3, guidance=1.2)
    start = State(noise * (1 + sigma[0]), float(sigma[0]))
    close(integrate(field, start, Plan(solvers.get("euler"), sigma.flip(0))).xbar, x)
    with pytest.raises(InputError, match="classes 0 to"):
        field.conditioned(6)


@pytest.mark.parametrize(("dataset", "parameters"), [("cifar10", 55_676_419), ("imagenet", 295_900_035)])
def test_the_sizes_of_its_own_networks(
    dataset: str, parameters: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "cifar10": {"channels": 128, "times": (2, 2, 2), "blocks": 4, "attention": [1], "blocks resize": False},
        "imagenet": {"channels": 192, "times": (1, 2, 3, 4), "blocks": 3, "attention": [1, 2, 3], "classes": 1000},
    }
    shapes = layout({"blocks resize": True, **kinds[dataset]})
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    monkeypatch.setattr(
        weights, "read", lambda *given, **how: {"model": state, "args": argparse.Namespace(dataset=dataset)}
    )
    monkeypatch.setattr(weights, "hash_of", lambda *paths, **settings: "hash")
    taken: dict[str, Any] = {}
    monkeypatch.setattr(weights, "fit", lambda network, mine, path, **how: taken.update(network=network, mine=mine))
    field = flow_matching.read(tmp_path / "checkpoint.pth")
    network = taken["network"]
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == shapes
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert field.details["weights"] == "as saved"


def test_what_the_arguments_do_not_say(tmp_path: Path) -> None:
    path, state = saved(tmp_path, "cifar10", dataset="faces")
    place = path.with_suffix(".json")
    refused(path, "does not say image_size, num_heads, num_head_channels, use_new_attention_order")
    place.write_text(json.dumps({"dataset": "cifar10"}))
    x, t = draw(1, 3, 16, 16).float(), torch.tensor([0.4])
    close(odeddim.load(path).eps(x, t), reference("cifar10", state, x, t))
    said = {"image_size": 16, "num_heads": 1, "num_head_channels": -1, "use_new_attention_order": True}
    place.write_text(json.dumps(said))
    field = odeddim.load(path)
    assert field.shape == (3, 16, 16)
    assert not field.details["assumed"]
    close(field.eps(x, t), reference("cifar10", state, x, t))
    wrongs: list[dict[str, Any]] = [
        {"dataset": "faces"}, {"dataset": 3}, {"image_size": 0}, {"image_size": 18}, {"num_heads": 7},
        {"num_head_channels": 0}, {"num_head_channels": 24}, {"use_new_attention_order": 1}, {"weights": "best"},
        {"shape": [1, 16, 16]}, {"time": "unit"}, {"null": 3}, {"solver": "euler"},
    ]  # fmt: skip
    for wrong in wrongs:
        place.write_text(json.dumps({**said, **wrong}))
        refused(path)


def test_discrete_flow_matching_is_named(tmp_path: Path) -> None:
    refused(saved(tmp_path, "cifar10", discrete_flow_matching=True)[0], "discrete flow matching")


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    path, state = saved(tmp_path, "cifar10")
    whole, content = torch.load(path, weights_only=False), path.read_bytes()
    for size in (len(content) - 1, len(content) // 2):
        path.write_bytes(content[:size])
        refused(path)
    for name in (*list(whole["model"])[::25], "shadow_params.3"):
        torch.save({**whole, "model": {key: value for key, value in whole["model"].items() if key != name}}, path)
        refused(path)
    for wrong in ({"model": 3}, {"model": {}}, {"model": {**whole["model"], "shadow_params.0": torch.zeros(3)}}):
        torch.save({**whole, "name": "time_embed.0.weight", **wrong}, path)
        refused(path)
    for name, value in {"out.2.weight": torch.zeros(6, 64, 3, 3), "out.2.bias": torch.full((3,), math.nan)}.items():
        torch.save({**whole, "model": {**state, name: value}}, path)
        refused(path)
    torch.save({**whole, "model": state}, path)
    path.with_suffix(".json").write_text(json.dumps({"weights": "ema"}))
    refused(path, 'leave "weights" out')


def test_other_records_are_not_made(tmp_path: Path) -> None:
    """A Namespace is the one class that is allowed, and only here; the list of what is allowed is as it was after."""
    marker = tmp_path / "ran"
    code = (
        "import argparse, sys, torch\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "class Args(argparse.Namespace):\n    def __reduce__(self):\n"
        f"        return open, ({str(marker)!r}, 'w')\n"
        "torch.save({'model': {'time_embed.0.weight': torch.zeros(1)}, 'a': argparse.Namespace(), 'args': Args()},\n"
        f"    {str(tmp_path / 'evil.pth')!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert flow_matching.matches(tmp_path / "evil.pth")
    refused(tmp_path / "evil.pth", "holds more than tensors and plain values")
    assert not marker.exists()
    path, _ = saved(tmp_path, "cifar10")
    odeddim.load(path)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()
    for name, blob in {
        "a.pth": b"",
        "b.pth": b"PK\x03\x04",
        "c.pkl": b"argparse\nNamespace time_embed.0.weight",
    }.items():
        (tmp_path / name).write_bytes(blob)
        assert not flow_matching.matches(tmp_path / name)
