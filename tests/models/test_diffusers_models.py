"""diffusers' models of pixels and the settings of its schedulers: saved by diffusers itself, the same numbers here.

Networks have every number drawn, in float64 where trajectories are compared; schedules are compared with what the
schedulers themselves computed, in their float32.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import refused as one_sentence
from torch import Tensor

import odeddim
from odeddim import solvers
from odeddim.models import schedulers
from odeddim.models.formats import diffusers_unet
from odeddim.models.schedulers import Posed, posed
from odeddim.ode import scheduler_settings
from odeddim.ode.analytic import GaussianMixture
from odeddim.ode.field import VectorField
from odeddim.ode.predictions import PREDICTIONS
from odeddim.plans import Plan, integrate
from odeddim.types import InputError, State

diffusers = pytest.importorskip("diffusers", reason="diffusers is installed by the test extra")

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # torch's tensors in its numpy

DDPM: dict[str, Any] = {  # what makes a UNet2DModel DDPM's, in the words of google/ddpm-cifar10-32
    "act_fn": "silu",
    "attention_head_dim": None,
    "center_input_sample": False,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-6,
    "time_embedding_type": "positional",
}
CIFAR: dict[str, Any] = DDPM | {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 32,
}
SMALL: dict[str, Any] = DDPM | {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
}
OTHER: dict[str, Any] = SMALL | {  # diffusers' own defaults: heads, cosines first, zeros on all sides
    "attention_head_dim": 8,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_eps": 1e-5,
}
DDIM = {"_class_name": "DDIMScheduler", "clip_sample": False}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, diffusers' float32 means float64: its sinusoids of labels, its states."""

    def start() -> None:
        monkeypatch.setattr(torch, "float32", torch.float64)
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)

    return start


def network(config: dict[str, Any] = SMALL, *, std: float = 0.1, seed: int = 0, **changed: Any) -> Any:
    """A UNet2DModel with every number drawn: zeros would hide what comes behind them."""
    net = diffusers.UNet2DModel(**{**config, **changed}).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.normal_(std=std, generator=generator)
    return net


def saved(folder: Path, net: Any, scheduler: Any = None, **options: Any) -> Path:
    """A pipeline's folder, as diffusers writes it."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False) if scheduler is None else scheduler
    diffusers.DDPMPipeline(net, scheduler).save_pretrained(folder, **options)
    return folder


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ratio(got: Tensor, want: Tensor) -> float:
    """The largest difference over the largest value."""
    return float((got.double() - want.double()).abs().max() / want.double().abs().max())


def edit(path: Path, **changed: Any) -> None:
    """Settings of a JSON file changed; those that are ... are left out."""
    config = {**json.loads(path.read_text()), **changed}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


# The settings of schedulers.

SINGLE = torch.float32
BETAS: tuple[dict[str, Any], ...] = (
    {},
    {"beta_schedule": "linear", "beta_start": 2e-4, "beta_end": 0.01, "num_train_timesteps": 250},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 400},
    {"beta_schedule": "sigmoid"},
    {"beta_schedule": "exp"},
    {"beta_schedule": "laplace"},
    {"trained_betas": [0.01, 0.03, 0.02, 0.2], "num_train_timesteps": 4},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    {"rescale_betas_zero_snr": True, "prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"},
)


CLASSES = sorted({*scheduler_settings.DISCRETE} - {"DPMSolverSDEScheduler"})  # that needs torchsde


@pytest.mark.parametrize("name", CLASSES)
def test_levels_are_those_of_the_scheduler(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, which its float32 is made to mean: 0 minus what is nearly it would leave few digits of 7."""
    made = 0
    for settings in BETAS:
        with monkeypatch.context() as patched:
            patched.setattr(torch, "float32", torch.float64)
            torch.set_default_dtype(torch.float64)
            try:
                scheduler = getattr(diffusers, name)(**settings)
            except (NotImplementedError, TypeError, ValueError):
                continue  # not a setting of this class
            finally:
                torch.set_default_dtype(SINGLE)
        found = posed(json.loads(scheduler.to_json_string()), Path(schedulers.NAME))
        made += 1
        alphas = scheduler.alphas_cumprod
        assert alphas.dtype == torch.float64
        rescaled = bool(settings.get("rescale_betas_zero_snr"))
        assert len(alphas) - rescaled == found.schedule.T
        assert float(alphas[-1]) < 1e-7 or not rescaled
        want = ((1 - alphas) / alphas).sqrt()[: found.schedule.T]
        assert ratio(found.schedule.levels / want, torch.ones(())) < 1e-8, settings
        assert (found.time, found.assumed) == ("index", [])
        labels = found.schedule.label(found.schedule.levels, "index")
        assert torch.equal(labels, torch.arange(found.schedule.T, dtype=torch.float64))
    assert made >= 2


@pytest.mark.parametrize("name", CLASSES)
def test_what_lacks_is_the_classs_default_and_said(name: str) -> None:
    scheduler = getattr(diffusers, name)()
    found = posed({"_class_name": name}, Path(schedulers.NAME))
    alphas = scheduler.alphas_cumprod.double()
    assert ratio(found.schedule.levels / ((1 - alphas) / alphas).sqrt(), torch.ones(())) < 3e-4
    assert found.predicts == scheduler_settings.PREDICTS[scheduler.config.prediction_type]
    said = " ".join(found.assumed)
    for key in ("num_train_timesteps", "prediction_type", "beta_schedule"):
        assert key in said
    assert ("beta_end" in said) == (scheduler.config.beta_schedule != "squaredcos_cap_v2")
    some = posed({"_class_name": name, "prediction_type": "sample", "num_train_timesteps": 10}, Path(schedulers.NAME))
    assert some.predicts == "x0"
    assert "prediction_type" not in " ".join(some.assumed)


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        diffusers.FlowMatchHeunDiscreteScheduler(num_train_timesteps=500),
        diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_flow(scheduler: Any) -> None:
    found = posed(json.loads(scheduler.to_json_string()), Path(schedulers.NAME))
    T = scheduler.config.num_train_timesteps
    assert found.schedule == odeddim.Schedule.rectified_flow(T)
    assert (found.predicts, found.time, found.assumed) == ("flow", "index", [])
    t = torch.tensor([0.1, 0.5, 0.9])
    assert found.schedule.label(t / (1 - t), "index").tolist() == pytest.approx((t * T).tolist())


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
        {"_class_name": "EulerDiscreteScheduler", "prediction_type": "sample", "rescale_betas_zero_snr": True},
        {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "trained_betas": [0.1, 0.4, 0.9, 1.0]},
        {"_class_name": "FlowMatchEulerDiscreteScheduler"},
    ],
    ids=["zero SNR, v", "zero SNR, x0", "a last β of 1", "flow"],
)
@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp-2m", "ab3", "unipc-3", "bdia"])
def test_every_start_is_finite(config: dict[str, Any], solver: str) -> None:
    """The exact network of a mixture, asked in these conventions, from noise at the level where x_T lies."""
    found = posed(config, Path(schedulers.NAME))
    exact = GaussianMixture(torch.tensor([-0.6, 0.6], dtype=torch.float64), 0.15)

    def net(x: Tensor, t: Tensor) -> Tensor:
        T = found.schedule.T
        assert bool(((t >= 0) & (t <= T)).all())  # what it knows: no label of the level that is left out
        sigma = found.schedule.sigma(t / T if found.schedule.kind == "flow" else t).reshape(-1, 1)
        xbar = x / found.schedule.scale(sigma)
        eps = torch.stack([exact(s, one[None])[0] for s, one in zip(sigma[:, 0], xbar, strict=True)])
        x0 = xbar - sigma * eps
        return {"v": (eps - sigma * x0) / (1 + sigma**2).sqrt(), "x0": x0, "flow": eps - x0}[found.predicts]

    field = VectorField(net, found.schedule, predicts=found.predicts, time=found.time)
    images = odeddim.solve(draw(16, 4), solver, model=field, steps=3 if found.schedule.T < 10 else 30)
    assert bool(torch.isfinite(images).all())
    assert float(images.abs().max()) < 3
    assert found.schedule.sigma_max > (1.0 if "trained_betas" in config else 900)


def refused(config: dict[str, Any], *words: str) -> None:
    where = Path("folder") / schedulers.NAME
    with pytest.raises(InputError) as caught:
        posed(config, where)
    message = str(caught.value)
    assert message.startswith(f"{where}: ")
    for word in words:
        assert word in message, message


def test_contradictions_and_what_is_unknown() -> None:
    zero = {"rescale_betas_zero_snr": True}
    refused(DDIM | zero | {"prediction_type": "epsilon"}, "contradict each other", "pure noise")
    refused(DDIM | zero, "contradict each other")
    refused(DDIM | {"trained_betas": [0.1, 0.2, 1.0]}, "contradict each other")
    refused(DDIM | {"trained_betas": [0.1] * 9, "num_train_timesteps": 10}, "9 trained_betas")
    for betas in (
        [0.1, 1.0, 0.1],
        [0.1, 0.0, 0.1],
        [0.1, -0.1, 0.1],
        [0.1, 1.5, 0.1],
        [0.1],
        "linear",
        [0.1, "0.1", 1],
    ):
        refused(DDIM | {"trained_betas": betas}, "trained_betas must be")
    for key in ("beta_start", "beta_end"):
        for value in (0, 1.0, -0.1, "0.1", None, True, math.nan):
            refused(DDIM | {key: value}, f"{key} must be a number between 0 and 1")
    refused(DDIM | {"beta_start": 0.5, "beta_end": 0.1}, "beta_1 <= beta_T")
    for levels in (1, 0, -5, 10**9, "1000", 10.5, None, True):
        refused(DDIM | {"num_train_timesteps": levels}, "num_train_timesteps must be")
    refused(DDIM | {"beta_schedule": "scaled-linear"}, "did you mean scaled_linear")
    refused(DDIM | {"prediction_type": "v"}, "unknown prediction_type")
    refused(DDIM | {"prediction_type": "flow_prediction"}, "contradict each other", "DDPM's noise levels")
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    refused(flow | {"prediction_type": "v_prediction"}, "contradict each other", "straight flow paths")
    refused(flow | {"invert_sigmas": True}, "invert_sigmas")
    solver = {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}
    refused(solver | {"prediction_type": "epsilon"}, "straight flow paths")
    refused(
        {"_class_name": "EulerDiscreteScheduler", "prediction_type": "v_prediction", "timestep_type": "continuous"},
        "continuous",
    )
    for name in ("EDMEulerScheduler", "ScoreSdeVeScheduler", "LCMScheduler", "DDIM", None, 3, ["DDIMScheduler"]):
        refused({"_class_name": name}, "does not know", "from_network")


def test_what_is_found_is_said() -> None:
    said = posed(DDIM | {"clip_sample": True, "variance_type": "learned_range"}, Path())
    assert said.found == "DDIMScheduler, without its clipping"
    assert said.variances is True
    assert posed(DDIM | {"variance_type": "fixed_small"}, Path()).variances is False
    assert posed(DDIM, Path()) == Posed(
        odeddim.Schedule.linear(), "eps", "index", "DDIMScheduler", posed(DDIM, Path()).assumed, None
    )


# The same numbers.


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_a_published_configuration(tmp_path: Path, safe: bool) -> None:
    net = network(CIFAR, std=0.1)
    field = odeddim.load(saved(tmp_path, net, diffusers.DDPMScheduler(), safe_serialization=safe))
    assert field.details["found"].startswith("UNet2DModel, U-Net 128×(1,2,2,2), 35.7 M parameters, DDPMScheduler")
    assert field.shape == (3, 32, 32)
    x, t = draw(3, 3, 32, 32).float(), torch.tensor([0.0, 999.0, 123.456])
    want = net(x, t).sample
    assert float(want.std()) > 0.1
    assert ratio(field.eps(x, t), want) < 1e-5


def test_the_trajectory_of_ddim(tmp_path: Path, in_float64: Callable[[], None]) -> None:
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    net = network()
    field = odeddim.load(saved(tmp_path, net, scheduler), dtype=torch.float64)
    net = net.double()
    in_float64()
    scheduler.alphas_cumprod = 1 / (1 + field.schedule.levels**2)  # theirs in float64
    scheduler.set_timesteps(20)
    x = x_T = draw(2, 3, 8, 8)
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t).sample, t, x).prev_sample
    levels = field.schedule.levels[scheduler.timesteps.flip(0)]
    nodes = torch.cat([torch.zeros(1, dtype=torch.float64), levels])
    assert ratio(odeddim.solve(x_T, "euler", model=field, grid=nodes), x) < 1e-10

    xbar = image = draw(2, 3, 8, 8, seed=2).clamp(-1, 1)
    labels = [0, *scheduler.timesteps.flip(0).tolist()]  # of where each step starts
    for label, low, high in zip(labels[:-1], nodes[:-1], nodes[1:], strict=True):
        xbar = xbar + (high - low) * net(xbar / (1 + low**2).sqrt(), torch.tensor(label)).sample
    state = odeddim.encode(image, "euler", model=field, grid=nodes)
    assert ratio(state.xbar, xbar) < 1e-10


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_the_trajectory_of_other_predictions(tmp_path: Path, kind: str, in_float64: Callable[[], None]) -> None:
    """On β rescaled to zero terminal SNR, from the last level with an image in it."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False, prediction_type=kind, rescale_betas_zero_snr=True)
    net = network()
    field = odeddim.load(saved(tmp_path, net, scheduler), dtype=torch.float64)
    net = net.double()
    in_float64()
    assert field.predicts == {"v_prediction": "v", "sample": "x0"}[kind]
    scheduler.alphas_cumprod = torch.cat([1 / (1 + field.schedule.levels**2), torch.zeros(1)])
    scheduler.num_inference_steps, labels = 20, list(range(48, 999, 50))
    assert labels[-1] == field.schedule.T - 1 == 998
    x = x_T = draw(2, 3, 8, 8)
    for t in reversed(labels):
        x = scheduler.step(net(x, torch.tensor(t)).sample, t, x).prev_sample
    nodes = torch.cat([torch.zeros(1, dtype=torch.float64), field.schedule.levels[labels]])
    assert ratio(odeddim.solve(x_T, "euler", model=field, grid=nodes), x) < 1e-8  # they divide by √α = 7e-5


def test_the_trajectory_of_a_flow(tmp_path: Path, in_float64: Callable[[], None]) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    net = network()
    field = odeddim.load(saved(tmp_path, net, scheduler), dtype=torch.float64)
    net = net.double()
    in_float64()
    scheduler.set_timesteps(sigmas=torch.linspace(0.9989, 0.04, 20).tolist())  # 0.999 in their float32 is beyond ours
    x = noise = draw(2, 3, 8, 8)
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t).sample, t, x).prev_sample
    flow_times = scheduler.sigmas.double().flip(0)
    nodes = flow_times / (1 - flow_times)
    top = float(nodes[-1])
    start = State(noise * (1 + top), top)  # their x at t is (1 - t)·x̄
    assert ratio(integrate(field, start, Plan(solvers.get("euler"), nodes)).xbar, x) < 1e-9

    x = image = draw(2, 3, 8, 8, seed=2).clamp(-1, 1)
    labels = [0.001 * 0.999, *flow_times[1:].tolist()]  # of where each step starts; the first level is t_max / T
    for label, low, high in zip(labels[:-1], flow_times[:-1], flow_times[1:], strict=True):
        xbar, slope = x / (1 - low), net(x, torch.tensor([1000 * label], dtype=torch.float64)).sample
        eps = x + (1 - low) * slope
        x = (1 - high) * (xbar + (high / (1 - high) - low / (1 - low)) * eps)
    assert ratio(odeddim.encode(image, "euler", model=field, grid=nodes).xbar * (1 - high), x) < 1e-10


# Folders.


def test_layouts(tmp_path: Path) -> None:
    net = network()
    pipeline = saved(tmp_path / "pipeline", net)
    flat = tmp_path / "flat"
    shutil.copytree(pipeline / "unet", flat)
    shutil.copy(pipeline / "scheduler" / schedulers.NAME, flat)
    shutil.copy(pipeline / "model_index.json", flat)
    shards = tmp_path / "shards"
    saved(shards, net)
    shutil.rmtree(shards / "unet")
    net.save_pretrained(shards / "unet", max_shard_size="100KB")
    assert len(list((shards / "unet").glob("*.safetensors"))) > 1
    x, t = draw(1, 3, 8, 8).float(), torch.tensor([55.5])
    want = net(x, t).sample
    for path in (
        *(pipeline, pipeline / "model_index.json", pipeline / "unet", pipeline / "unet" / "config.json"),
        *(flat, flat / "config.json", flat / "model_index.json", shards, shards / "unet"),
    ):
        assert diffusers_unet.matches(path)
        field = odeddim.load(path)
        assert ratio(field.eps(x, t), want) < 1e-5
        assert field.details["weights"] == "as saved"
        assert field.name == str((path if path.is_dir() else path.parent).resolve())
        assert (field.schedule, field.shape) == (odeddim.Schedule.linear(), (3, 8, 8))
    for path in (tmp_path, tmp_path / "missing", pipeline / "scheduler", Path("/"), Path()):
        assert not diffusers_unet.matches(path)
    assert odeddim.load(pipeline).sha256 == odeddim.load(flat).sha256
    saved(tmp_path / "another", network(seed=1))
    assert odeddim.load(pipeline).sha256 != odeddim.load(tmp_path / "another").sha256


def test_the_average_of_training_is_preferred(tmp_path: Path) -> None:
    net, ema = network(), network(seed=5)
    saved(tmp_path, net)
    ema.save_pretrained(tmp_path / "unet_ema")
    edit(tmp_path / "unet_ema" / "config.json", decay=0.9999, power=0.75, optimization_step=100)
    x, t = draw(1, 3, 8, 8).float(), torch.tensor([3.0])
    for path in (tmp_path, tmp_path / "unet_ema"):
        field = odeddim.load(path)
        assert ratio(field.eps(x, t), ema(x, t).sample) < 1e-5
        assert field.details["weights"] == "ema"
        assert "ema weights" in field.describe()
        assert field.details["found"].startswith("UNet2DModel, U-Net 16×(1,2)")
    assert ratio(odeddim.load(tmp_path / "unet").eps(x, t), net(x, t).sample) < 1e-5


def test_names_of_older_files(tmp_path: Path) -> None:
    net = network()
    saved(tmp_path, net, safe_serialization=False)
    path = tmp_path / "unet" / "diffusion_pytorch_model.bin"
    once = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = torch.load(path, weights_only=True)
    for now, name in once.items():
        state = {key.replace(f".{now}.", f".{name}."): part for key, part in state.items()}
    assert any(".proj_attn." in key for key in state)
    torch.save(state, path)
    x, t = draw(1, 3, 8, 8).float(), torch.tensor([3.0])
    assert ratio(odeddim.load(tmp_path).eps(x, t), net(x, t).sample) < 1e-5


def test_settings_that_files_lack(tmp_path: Path) -> None:
    """google/ddpm-cifar10-32 was written by diffusers 0.0.4 and 0.1.1: many settings were still to come."""
    net = network(SMALL)
    saved(tmp_path, net, diffusers.DDPMScheduler(clip_sample=True))
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    kept = {*SMALL, "_class_name", "_diffusers_version", "in_channels", "out_channels"}
    (tmp_path / "unet" / "config.json").write_text(json.dumps({key: config[key] for key in kept}))
    edit(tmp_path / "scheduler" / schedulers.NAME, prediction_type=..., thresholding=..., rescale_betas_zero_snr=...)
    field = odeddim.load(tmp_path)
    assert field.details["assumed"] == ["prediction_type 'epsilon' (its class's default)"]
    assert "U-Net 16×(1,2)" in field.describe()
    assert "without its clipping" in field.describe()
    x, t = draw(1, 3, 8, 8).float(), torch.tensor([3.0])
    assert ratio(field.eps(x, t), net(x, t).sample) < 1e-5


# Networks that are not DDPM's.


def test_settings_of_a_later_diffusers(tmp_path: Path) -> None:
    """A network with a setting that is unknown here is left to diffusers, which may know it."""
    saved(tmp_path, network())
    edit(tmp_path / "unet" / "config.json", halves_twice=True)
    assert odeddim.load(tmp_path).details["found"].startswith("UNet2DModel of diffusers")


@pytest.mark.parametrize(
    "changed",
    [
        *({key: OTHER[key]} for key in ("attention_head_dim", "downsample_padding", "flip_sin_to_cos", "freq_shift")),
        {"block_out_channels": (16, 24)},
        {"act_fn": "gelu"},
        {"center_input_sample": True},
        {"mid_block_scale_factor": 1.4},
        {"resnet_time_scale_shift": "scale_shift"},
        {"add_attention": False},
        {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("UpBlock2D", "AttnUpBlock2D")},
        {"attn_norm_num_groups": 8},
        {"downsample_type": "resnet"},
        {"upsample_type": "resnet"},
        {"norm_eps": 1e-2},
        {"norm_num_groups": 8},
        {"time_embedding_dim": 24},
        {"sample_size": (8, 16)},
        {"out_channels": 6},
        OTHER,
    ],
    ids=lambda changed: "defaults" if changed is OTHER else next(iter(changed)),
)
def test_other_networks(tmp_path: Path, changed: dict[str, Any]) -> None:
    net = network(SMALL, std=0.3, **changed)
    field = odeddim.load(saved(tmp_path, net))
    ours = {*changed} <= {"norm_eps", "norm_num_groups", "sample_size", "out_channels"}
    assert field.details["found"].startswith("UNet2DModel, U-Net" if ours else "UNet2DModel of diffusers")
    assert ("variances left out" in field.describe()) == ("out_channels" in changed)
    shape = (3, 8, 16) if changed.get("sample_size") == (8, 16) else (3, 8, 8)
    assert field.shape == shape
    x, t = draw(2, *shape).float(), torch.tensor([40.0, 999.0])
    assert ratio(field.eps(x, t), net(x, t).sample[:, :3]) < 1e-5
    t = torch.tensor([123.456, 7.25])
    assert ratio(field.eps(x, t), net(x, t).sample[:, :3]) < 1e-5


@pytest.mark.parametrize("config", [SMALL, OTHER], ids=["ddpm", "defaults"])
def test_classes(tmp_path: Path, config: dict[str, Any]) -> None:
    net = network(config, num_class_embeds=11)
    field = odeddim.load(saved(tmp_path, net), dtype=torch.float64)
    net = net.double()
    sigma, xbar = torch.tensor(2.0, dtype=torch.float64), draw(2, 3, 8, 8)
    label = field.schedule.label(sigma, "index").float()

    def want(kind: int) -> Tensor:
        return net(xbar / math.sqrt(5), label, torch.tensor([kind, kind])).sample

    assert ratio(field.conditioned(10)(sigma, xbar), want(10)) < 1e-5
    with pytest.raises(InputError, match="needs a class"):
        field(sigma, xbar)
    with pytest.raises(InputError, match="guidance"):
        field.conditioned(3, guidance=2.0)
    (tmp_path / "odeddim.json").write_text('{"classes": 10, "null": 10}')
    field = odeddim.load(tmp_path, dtype=torch.float64)
    guided = field.conditioned(3, guidance=2.5)(sigma, xbar)
    assert ratio(guided, want(10) + 2.5 * (want(3) - want(10))) < 1e-5
    with pytest.raises(InputError, match="classes 0 to 9"):
        field.conditioned(11)
    assert ratio(field(sigma, xbar), want(10)) < 1e-5


def test_settings_that_no_weights_tell_make_another_model(tmp_path: Path) -> None:
    """With the same weights: latents of the one are none of the other's."""
    folder = saved(tmp_path, network())
    hashes = {odeddim.load(folder).sha256}
    for change in ({"norm_eps": 1e-5}, {"flip_sin_to_cos": True}, {"flip_sin_to_cos": True, "freq_shift": 0}):
        edit(folder / "unet" / "config.json", **change)
        hashes.add(odeddim.load(folder).sha256)
    assert len(hashes) == 4
    edit(folder / "unet" / "config.json", _diffusers_version="0.0.1")
    assert odeddim.load(folder).sha256 in hashes


def test_rescaling_what_ends_at_noise_already_changes_nothing() -> None:
    betas = {"trained_betas": [0.1, 0.4, 0.9, 1.0], "num_train_timesteps": 4, "prediction_type": "v_prediction"}
    config = {"_class_name": "DDIMScheduler", **betas}
    where = Path(schedulers.NAME)
    found = posed({**config, "rescale_betas_zero_snr": True}, where).schedule
    assert torch.equal(found.levels, posed(config, where).schedule.levels)
    theirs = diffusers.DDIMScheduler(**betas, rescale_betas_zero_snr=True).alphas_cumprod[:-1]
    assert ratio(1 / (1 + found.levels**2), theirs.double()) < 1e-5


def test_classes_as_labels_of_their_own(tmp_path: Path) -> None:
    net = network(OTHER, class_embed_type="timestep")
    saved(tmp_path, net)
    (tmp_path / "odeddim.json").write_text('{"classes": 4}')
    field = odeddim.load(tmp_path).conditioned(3)
    xbar, sigma = draw(1, 3, 8, 8).float(), field.schedule.levels[500]
    want = net(xbar / float((1 + sigma**2).sqrt()), torch.tensor([500.0]), torch.tensor([3])).sample
    assert ratio(field(sigma, xbar), want) < 1e-5


def test_without_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DDPM's network needs no diffusers; others say how to get it."""
    net = network()
    saved(tmp_path / "ddpm", net)
    saved(tmp_path / "other", network(OTHER))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert odeddim.load(tmp_path / "ddpm").shape == (3, 8, 8)
    with pytest.raises(InputError, match="pip install"):
        odeddim.load(tmp_path / "other")


# What is refused.


def test_without_a_scheduler(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    saved(folder, network())
    shutil.rmtree(folder / "scheduler")
    one_sentence(folder, "the schedule and the prediction of the network are unknown", "odeddim.json")
    said = folder / "odeddim.json"
    said.write_text('{"schedule": {"name": "cosine"}}')
    one_sentence(folder, "are unknown")
    said.write_text('{"schedule": {"name": "cosine"}, "predicts": "v"}')
    field = odeddim.load(folder)
    assert (field.schedule, field.predicts, field.time) == (odeddim.Schedule.cosine(), "v", "index")
    said.write_text('{"schedule": {"name": "cosine"}, "predicts": "noise"}')
    one_sentence(folder, "unknown prediction")
    said.write_text('{"schedule": {"name": "cosine"}, "predicts": "v", "time": "tau"}')
    one_sentence(folder, "unknown time label")
    said.write_text('{"schedule": {"name": "cosine"}, "predicts": "v", "time": "index"}')
    diffusers.DDIMScheduler().save_pretrained(folder)
    one_sentence(folder, "both state schedule: leave it out of odeddim.json")


Change = Callable[[Path], None]


def settings(**changed: Any) -> Change:
    return lambda folder: edit(folder / "unet" / "config.json", **changed)


def told(text: str) -> Change:
    return lambda folder: (folder / "odeddim.json").write_text(text) and None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (settings(_class_name="UNet2DConditionModel"), "describes a 'UNet2DConditionModel'"),
        (settings(sample_size=None), "does not give the size of the images"),
        (settings(sample_size="8"), "does not give the size of the images"),
        (settings(sample_size=[8, 8, 8]), "does not give the size of the images"),
        (settings(out_channels=4), "but ε, x0 or v has"),
        (settings(out_channels=6), "variances are fixed"),
        (settings(layers_per_block=2), "missing"),
        (settings(layers_per_block=10**9), "more than 64 layers"),
        (settings(layers_per_block=10**9, freq_shift=0), "more than 64 layers"),
        (settings(block_out_channels=[16] * 1000), "or levels"),
        (settings(layers_per_block="1"), "must be a whole number"),
        (settings(norm_num_groups=5), "groups must divide"),
        (settings(norm_eps="small"), "eps must be a number"),
        (settings(norm_eps=math.nan), "NaN is not a valid setting"),
        (settings(block_out_channels=[10**9, 2 * 10**9]), "no network can be built"),
        (settings(block_out_channels=[10**9, 2 * 10**9], freq_shift=0), "no network can be built"),
        (settings(sample_size=9), "images of 9×9 cannot be halved 1 times"),
        (settings(sample_size=[8, 9], freq_shift=0), "images of 8×9 cannot be halved 1 times"),
        (settings(in_channels=1, out_channels=1), "has the shape"),
        (settings(block_out_channels=[32, 64]), "has the shape"),
        (settings(down_block_types=["NoBlock", "DownBlock2D"]), "no network can be built"),
        (settings(block_out_channels=None), "no network can be built"),
        (settings(time_embedding_type="fourier"), "does not support time_embedding_type 'fourier'"),
        (settings(class_embed_type="identity"), "does not support class_embed_type 'identity'"),
        (settings(class_embed_type="timestep"), "does not give the number of classes"),
        (settings(num_class_embeds="ten"), "num_class_embeds must be a whole number"),
        (told('{"shape": [3, 8, 8]}'), "leave it out"),
        (told('{"null": 3}'), "takes no classes: leave out null"),
        (told('{"classes": 3}'), "contradict each other"),
        (told('{"weights": "raw"}'), "unknown setting"),
        (lambda folder: (folder / "unet" / "config.json").write_text("[]") and None, "must hold settings"),
        *(
            (lambda folder, text=text: (folder / "model_index.json").write_text(text) and None, "model_index.json")
            for text in ("null", "[", "", "\0")
        ),
        (lambda folder: os.truncate(folder / "model_index.json", 20 << 30), "model_index.json has 21,475 MB"),
        (lambda folder: os.truncate(folder / "scheduler" / schedulers.NAME, 20 << 30), "config.json has 21,475 MB"),
        (lambda folder: (folder / "vae").mkdir(), "give the folder of the whole pipeline"),
        (lambda folder: (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "holds no weights"),
        (lambda folder: edit(folder / "scheduler" / schedulers.NAME, _class_name="EDMEulerScheduler"), "EDMEuler"),
        (lambda folder: (folder / "scheduler" / schedulers.NAME).write_text("{") and None, "cannot be read as JSON"),
        (lambda folder: (folder / "scheduler" / schedulers.NAME).write_text("3") and None, "must hold settings"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_contradictions_of_folders(tmp_path: Path, change: Change, words: str) -> None:
    saved(tmp_path, network(), diffusers.DDPMScheduler())
    odeddim.load(tmp_path)
    change(tmp_path)
    one_sentence(tmp_path / "unet" if (tmp_path / "vae").exists() else tmp_path, words)


@pytest.mark.parametrize("changed", [{"norm_eps": "x"}, {"freq_shift": "a"}])
def test_settings_that_no_network_can_run_with(tmp_path: Path, changed: dict[str, Any]) -> None:
    saved(tmp_path, network(OTHER))
    edit(tmp_path / "unet" / "config.json", **changed)
    field = odeddim.load(tmp_path)
    with pytest.raises(InputError, match=f"{tmp_path} fails on 2×3×8×8") as caught:
        field(torch.tensor(1.0), draw(2, 3, 8, 8))
    assert "\n" not in str(caught.value)


def test_weights_are_named_as_in_their_file(tmp_path: Path) -> None:
    net = network()
    net.conv_norm_out.weight.data[0] = math.nan
    saved(tmp_path, net)
    one_sentence(tmp_path, "conv_norm_out.weight holds NaN")


def test_variances_that_the_scheduler_promises(tmp_path: Path) -> None:
    saved(tmp_path, network(), diffusers.DDPMScheduler(variance_type="learned_range"))
    one_sentence(tmp_path, "variances are learned")
    saved(tmp_path / "both", network(out_channels=6), diffusers.DDPMScheduler(variance_type="learned_range"))
    assert "variances left out" in odeddim.load(tmp_path / "both").describe()


def test_images_whose_size_is_said(tmp_path: Path) -> None:
    saved(tmp_path, network(sample_size=None))
    one_sentence(tmp_path, '{"shape": [3, HEIGHT, WIDTH]}')
    for text, shape in (
        ('{"shape": [3, 16, 8]}', (3, 16, 8)),
        ('{"shape": [1, 8, 8]}', None),
        ('{"shape": [8]}', None),
    ):
        (tmp_path / "odeddim.json").write_text(text)
        if shape is None:
            one_sentence(tmp_path, "shape must be [3, HEIGHT, WIDTH]")
        else:
            assert odeddim.load(tmp_path).shape == shape


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_truncated_anywhere(tmp_path: Path, safe: bool) -> None:
    saved(tmp_path, network(), safe_serialization=safe)
    weights = next((tmp_path / "unet").glob("diffusion_pytorch_model.*"))
    for path in (weights, tmp_path / "unet" / "config.json", tmp_path / "scheduler" / schedulers.NAME):
        whole = path.read_bytes()
        for share in (0, 0.01, 0.1, 0.5, 0.9, 0.999) if path is weights else (0, 0.3, 0.9):
            path.write_bytes(whole[: int(share * len(whole))])
            one_sentence(tmp_path, path.name)
        path.write_bytes(whole)
    odeddim.load(tmp_path)


def test_weights_of_another_network(tmp_path: Path) -> None:
    saved(tmp_path, network(), safe_serialization=False)
    path = tmp_path / "unet" / "diffusion_pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    for strange, words in (
        ({name: p for name, p in state.items() if name != "conv_in.bias"}, "missing conv_in.bias"),
        ({name: p for name, p in state.items() if ".to_v." not in name}, "attentions.0.to_v.weight"),
        ({**state, "class_embedding.weight": torch.ones(10, 64)}, "unexpected class_embedding.weight"),
        ({**state, "conv_norm_out.weight": torch.full((16,), math.inf)}, "NaN or infinite"),
        ({**state, "conv_out.bias": torch.ones(5)}, "has the shape (5,)"),
        ([state], "does not hold weights by name"),
    ):
        torch.save(strange, path)
        one_sentence(tmp_path, words)


def test_every_prediction_is_one_of_ours() -> None:
    assert {*scheduler_settings.PREDICTS.values()} <= {*PREDICTIONS}
