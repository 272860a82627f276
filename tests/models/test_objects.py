"""Objects of diffusers as models: the model of the folder that `save_pretrained` writes, and objects left as they are.

The pipelines are the tiny ones of `test_latent_diffusion` and `test_diffusers_models`, which are compared there with
diffusers itself: here an object is compared with its folder.
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import odeddim
from odeddim import InputError, Schedule, VectorField
from odeddim.jobs import Machine, Subject
from odeddim.latents.provenance import provenance_of

diffusers = pytest.importorskip("diffusers", reason="diffusers is installed by the test extra")
pytest.importorskip("transformers", reason="transformers is installed by the test extra")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

import test_diffusers_models as pixels  # noqa: E402
import test_latent_diffusion as latents  # noqa: E402

STEPS = 3


def of_pixels(config: dict[str, Any], kind: str) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        scheduler = diffusers.DDIMScheduler(clip_sample=False, beta_schedule="squaredcos_cap_v2")
        pipeline = getattr(diffusers, kind)(pixels.network(config), scheduler)
        pipeline.save_pretrained(folder / "model")
        return pipeline

    return make


PIPELINES: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "pixels, our network": (of_pixels(pixels.SMALL, "DDPMPipeline"), {}),
    "pixels, diffusers' network": (of_pixels(pixels.OTHER, "DDIMPipeline"), {}),
    "SD": (
        lambda folder: latents.stable_diffusion(folder, diffusers.DPMSolverMultistepScheduler()),
        {"prompt": "a cat", "guidance": 3.0},
    ),
    "SDXL": (latents.stable_diffusion_xl, {"prompt": "a cat", "guidance": 3.0}),
    "SD3": (lambda folder: latents.stable_diffusion_3(folder, **latents.t5(folder)), {"prompt": "cat"}),
    "SD3 without T5": (
        lambda folder: latents.stable_diffusion_3(folder, text_encoder_3=None, tokenizer_3=None),
        {"prompt": "cat"},
    ),
    "DiT": (latents.dit, {"label": 3, "guidance": 2.0}),
    "LDM": (latents.ldm, {}),
}
"""What makes a pipeline and saves it as FOLDER/model, and a condition that it takes."""


@pytest.fixture(scope="module", params=PIPELINES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, dict[str, Any]]:
    """A pipeline, the folder that it was saved to, and a condition."""
    make, condition = PIPELINES[request.param]
    folder = tmp_path_factory.mktemp("pipeline")
    return make(folder), folder / "model", condition


@pytest.fixture(scope="module")
def pixel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("pixel")
    return of_pixels(pixels.OTHER, "DDPMPipeline")(folder), folder / "model"


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("sd")
    return latents.stable_diffusion(folder, diffusers.DDIMScheduler(**latents.AS_SD)), folder / "model"


def tensors(pipeline: Any) -> dict[str, Tensor]:
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": part for name, module in modules.items() for key, part in module.named_parameters()}


def images(field: VectorField) -> Tensor:
    assert field.image_shape is not None
    return torch.rand(2, *field.image_shape, generator=torch.Generator().manual_seed(6)) * 2 - 1


def test_an_object_is_the_model_of_its_folder(pair: tuple[Any, Path, dict[str, Any]]) -> None:
    pipeline, folder, condition = pair
    before = {name: part.clone() for name, part in tensors(pipeline).items()}
    wanted, found = odeddim.load(folder).conditioned(**condition), odeddim.load(pipeline).conditioned(**condition)
    assert found.details == wanted.details
    assert (found.image_shape, found.shape, found.schedule) == (wanted.image_shape, wanted.shape, wanted.schedule)
    made = [provenance_of(field, odeddim.plan(field, "belm", steps=STEPS), "encode") for field in (wanted, found)]
    assert made[1].model == type(pipeline).__name__
    assert {**vars(made[1]), "model": made[0].model} == vars(made[0])
    states = [odeddim.encode(images(field), "belm", model=field, steps=STEPS) for field in (wanted, found)]
    assert states[0] == states[1]
    assert torch.equal(*(odeddim.decode(states[0], model=field, steps=STEPS) for field in (wanted, found)))
    for name, part in tensors(pipeline).items():
        assert torch.equal(part, before[name]), name


def test_its_weights_are_shared_and_its_object_is_left_as_it_is(pair: tuple[Any, Path, dict[str, Any]]) -> None:
    pipeline = pair[0]
    network = pipeline.unet if "unet" in pipeline.components else pipeline.transformer
    network.train()
    flags = {name: part.requires_grad for name, part in tensors(pipeline).items()}
    field = odeddim.load(pipeline)
    assert isinstance(field.eps, torch.nn.Module)
    assert not field.eps.training
    assert not any(part.requires_grad for part in field.eps.parameters())
    theirs = {part.untyped_storage().data_ptr() for part in network.parameters()}
    assert {part.untyped_storage().data_ptr() for part in field.eps.parameters()} <= theirs
    assert network.training
    assert flags == {name: part.requires_grad for name, part in tensors(pipeline).items()}
    odeddim.load(pipeline, dtype="float64")
    assert {part.dtype for part in tensors(pipeline).values()} == {torch.float32}
    assert field.dtype == torch.float32
    network.eval()


def test_dtype_is_kept_unless_asked_otherwise(sd: tuple[Any, Path]) -> None:
    half = copy.deepcopy(sd[0]).to(torch.bfloat16)
    field = odeddim.load(half)
    assert field.dtype == torch.bfloat16
    assert odeddim.load(half, dtype="float32").dtype == torch.float32
    assert {part.dtype for part in tensors(half).values()} == {
        torch.bfloat16
    }  # the autoencoder's too, which runs in 32
    half.save_pretrained(sd[1].parent / "half")
    folder = odeddim.load(sd[1].parent / "half")
    assert (folder.sha256, folder.dtype) == (field.sha256, torch.float32)
    assert folder.sha256 != odeddim.load(sd[0]).sha256  # rounded weights are others
    x = odeddim.noise(2, (4, 8, 8))
    exact, low = (odeddim.solve(x, model=each.conditioned(prompt="cat"), steps=STEPS) for each in (folder, field))
    assert 0 < latents.off(low, exact) < 0.1


@pytest.mark.parametrize("name", ["SMALL", "OTHER"])
def test_a_network_with_its_scheduler(name: str, tmp_path: Path) -> None:
    net, scheduler = pixels.network(getattr(pixels, name)), diffusers.DDPMScheduler(prediction_type="v_prediction")
    wanted = odeddim.load(pixels.saved(tmp_path, net, scheduler))
    found = odeddim.load(net, scheduler=scheduler)
    assert (found.name, found.sha256, found.details) == ("UNet2DModel", wanted.sha256, wanted.details)
    assert (found.predicts, found.time, found.schedule) == ("v", "index", wanted.schedule)
    assert odeddim.encode(images(wanted), "ab2", model=found, steps=STEPS) == odeddim.encode(
        images(wanted), "ab2", model=wanted, steps=STEPS
    )


def test_a_transformer_with_its_scheduler(tmp_path: Path) -> None:
    """DiT's, on the data of its autoencoder, which it is not given."""
    pipeline = latents.dit(tmp_path)
    whole = odeddim.load(pipeline).conditioned(3)
    alone = odeddim.load(pipeline.transformer, scheduler=pipeline.scheduler).conditioned(3)
    assert (alone.codec, alone.shape, alone.schedule) == (None, (4, 8, 8), whole.schedule)
    x = odeddim.noise(2, (4, 8, 8))
    assert torch.equal(odeddim.solve(x, model=alone, steps=2), odeddim.solve(x, model=whole.on_data(), steps=2))


def test_the_name_is_where_it_came_from(pixel: tuple[Any, Path], tmp_path: Path) -> None:
    pipeline, folder = pixel
    again = diffusers.DDPMPipeline.from_pretrained(str(folder))
    field = odeddim.load(again)
    assert (field.name, field.sha256) == (odeddim.load(folder).name, odeddim.load(folder).sha256)
    odeddim.jobs.encode(pictures(tmp_path, 8), tmp_path / "z.h5", model=again, solver="belm", steps=STEPS)
    with odeddim.open(tmp_path / "z.h5") as file:
        assert file.decode().shape == (2, 3, 8, 8)  # by the folder that its model names
    assert odeddim.load(pipeline).name == "DDPMPipeline"


def pictures(folder: Path, side: int) -> Path:
    """Two images (side, side, 3) uint8 in a file."""
    pixels = latents.images(side=side).permute(0, 2, 3, 1).numpy() * 127.5 + 127.5
    np.savez(folder / "x.npz", pixels.astype("uint8"))
    return folder / "x.npz"


def test_jobs_take_pipelines(sd: tuple[Any, Path], tmp_path: Path) -> None:
    """From Python with the object, from the command line with its folder: one latent file, one folder of images."""
    pipeline, folder = sd
    x, z = pictures(tmp_path, 16), {name: tmp_path / f"{name}.h5" for name in ("object", "folder")}
    for name, model in (("object", pipeline), ("folder", str(folder))):
        subject = Subject(model, {"prompt": "a cat"})
        odeddim.jobs.encode(x, z[name], model=subject, solver="belm", steps=STEPS)
    with odeddim.open(z["object"]) as ours, odeddim.open(z["folder"]) as theirs:
        assert ours[:] == theirs[:]
        assert (ours.provenance.model, ours.provenance.sha256) == (
            "StableDiffusionPipeline",
            theirs.provenance.sha256,
        )
        assert torch.equal(ours.decode(model=pipeline), theirs.decode())
        with pytest.raises(InputError, match=r"'StableDiffusionPipeline', which was not found: give .* the object"):
            ours.decode()
    odeddim.jobs.decode(z["object"], tmp_path / "out", model=folder)
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_a_job_runs_where_and_as_the_object_lies(sd: tuple[Any, Path]) -> None:
    half = copy.deepcopy(sd[0]).to(torch.bfloat16)
    for model in (half, Subject(half, {"prompt": "cat"}), odeddim.load(half)):
        assert Machine().at(model=model).dtype_name == "bfloat16"
        assert Machine(dtype="float32").at(model=model).dtype_name == "float32"


def test_a_field_under_a_condition_keeps_it_in_a_subject(sd: tuple[Any, Path]) -> None:
    from odeddim.jobs.subject import subject_on

    field = odeddim.load(sd[0]).conditioned(prompt="a cat")
    place = Machine("cpu").at(model=field)
    assert subject_on(place, Subject(field)).condition == field.condition
    assert subject_on(place, Subject(field, {"prompt": "dog"})).condition.prompt == "dog"


def test_an_object_can_be_pickled_as_its_folder_can(sd: tuple[Any, Path]) -> None:
    x = odeddim.noise(1, (4, 8, 8))
    field = odeddim.load(sd[0])
    again = pickle.loads(pickle.dumps(field))
    assert torch.equal(*(odeddim.solve(x, model=each.conditioned(prompt="cat"), steps=2) for each in (field, again)))


def test_the_hash_counts_numbers_and_no_files(sd: tuple[Any, Path], tmp_path: Path) -> None:
    """Weights in .bin, and settings that are their class's defaults left out, as older files have it."""
    sd[0].save_pretrained(tmp_path, safe_serialization=False)
    pixels.edit(tmp_path / "unet" / "config.json", act_fn=..., dropout=..., _diffusers_version="0.1")
    assert not list((tmp_path / "unet").glob("*.safetensors"))
    assert odeddim.load(tmp_path).sha256 == odeddim.load(sd[0]).sha256
    spoilt = copy.deepcopy(sd[0])
    with torch.no_grad():
        spoilt.text_encoder.get_input_embeddings().weight[3, 3] += 1e-6
    assert odeddim.load(spoilt).sha256 != odeddim.load(sd[0]).sha256


def refusal(*given: Any, **named: Any) -> str:
    with pytest.raises(InputError) as caught:
        odeddim.load(*given, **named)
    words = str(caught.value)
    assert "\n" not in words
    assert "/tmp" not in words
    return words


def test_what_is_refused_and_what_to_do(sd: tuple[Any, Path], pixel: tuple[Any, Path]) -> None:
    pipeline, unet = sd[0], pixel[0].unet
    for network in (torch.nn.Conv2d(1, 1, 3), lambda x, t: x):
        words = refusal(network)
        assert 'odeddim.VectorField.from_network(network, odeddim.Schedule.linear(), predicts="eps")' in words
    assert "not a int" in refusal(3)
    assert "odeddim.load(network, scheduler=pipeline.scheduler)" in refusal(unet)
    assert "Schedule.from_diffusers(scheduler)" in refusal(pipeline.scheduler)
    assert "give the whole pipeline" in refusal(pipeline.unet, scheduler=pipeline.scheduler)
    assert "must be a scheduler of diffusers, not a str" in refusal(unet, scheduler="ddim")
    assert "scheduler of its own" in refusal(pipeline, scheduler=pipeline.scheduler)
    assert "leave it out" in refusal("fashion-mnist", scheduler=pipeline.scheduler)
    odd = copy.deepcopy(pixel[0])
    odd.unet.register_to_config(sample_size=None)
    assert "DDPMPipeline: unet" in refusal(odd)
    adapted = copy.deepcopy(pixel[0])
    adapted.unet.conv_in.lora = torch.nn.Linear(2, 2)
    assert "unexpected conv_in.lora" in (words := refusal(adapted))
    assert "adapters such as LoRA" in words
    absent = copy.deepcopy(pixel[0])
    absent.unet.to("meta")
    assert "not in memory" in refusal(absent)


@pytest.mark.parametrize("kind", ["EDMEulerScheduler", "VQDiffusionScheduler", "IPNDMScheduler"])
def test_schedulers_that_say_nothing_we_know(kind: str) -> None:
    with pytest.raises(InputError, match=kind):
        Schedule.from_diffusers(getattr(diffusers, kind)(**({"num_vec_classes": 5} if kind[0] == "V" else {})))


def test_a_schedule_of_a_scheduler_is_that_of_its_file(tmp_path: Path) -> None:
    for scheduler in (
        diffusers.DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
        diffusers.DDPMScheduler(trained_betas=[0.01, 0.02, 0.3], num_train_timesteps=3),
        diffusers.FlowMatchEulerDiscreteScheduler(),
    ):
        scheduler.save_pretrained(tmp_path)
        made = Schedule.from_diffusers(scheduler)
        assert (
            made == pixels.posed(pixels.json.loads((tmp_path / "scheduler_config.json").read_text()), tmp_path).schedule
        )
        if hasattr(scheduler, "alphas_cumprod"):
            alphas = scheduler.alphas_cumprod[: made.T].double()
            assert torch.allclose(made.levels, ((1 - alphas) / alphas).sqrt(), rtol=1e-3)
    with pytest.raises(InputError, match="not of a str"):
        Schedule.from_diffusers("DDIMScheduler")


def test_diffusers_is_not_imported_for_objects_of_others() -> None:
    code = (
        "import odeddim, sys, torch\n"
        "for model in (torch.nn.Conv2d(1, 1, 1), 3, odeddim.load('exact-gaussian')):\n"
        "    try: odeddim.load(model)\n"
        "    except odeddim.InputError: pass\n"
        "print({'diffusers', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
