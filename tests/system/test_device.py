"""Every solver and every command on a stand-in for a GPU (`device_double`): nothing here has seen a real one.

Tensors meet on one device, the bits are the CPU's, and the host waits no more often than it is known to.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_double import NAME, TORCH, Double, OnDevice
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import odeddim
from odeddim import solvers
from odeddim.latents.latent_file import LatentFile
from odeddim.models.networks.unet import UNet
from odeddim.ode.field import VectorField
from odeddim.ode.gaussian import Gaussian
from odeddim.ode.schedule import Schedule
from odeddim.plans import Plan
from odeddim.solvers import iterated, per_image
from odeddim.types import BudgetExceeded, InputError, Solver, State

Command = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.skipif(
    not torch.__version__.startswith(TORCH),
    reason=f"the stand-in for a GPU is made of private parts of torch {TORCH}*, and this is {torch.__version__}",
)

BESIDES = 2  # how often the host may wait in a whole run with fixed steps
# Rows that decide by what they find wait once in a step, or twice in an iteration, and call these functions once.
DECIDING = {"per image": (per_image._Crowd, "_step", 1), "iterated": (iterated, "_rms", 2)}
# And those of other libraries by how much the library looks at its tensors, in an evaluation.
FOREIGN = {"torchdiffeq": 7, "torchdiffeq adaptive": 25, "scipy": 6}
OVER_TORCHDIFFEQ = ("mf-midpoint", "mf-heun3", "mf-rk4")
IMAGES = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Network(nn.Module):
    """harsh: bent so sharply that steps fail, in some images and not in others."""

    def __init__(self, harsh: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.size, self.bend = (3, 20) if harsh else (0.1, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 0.7 * x + self.size * torch.tanh(self.bend * self.conv(x)) * torch.cos(t / 1000)[:, None, None, None]


def field(*, harsh: bool = False) -> VectorField:
    made = VectorField(Network(harsh).requires_grad_(False), Schedule.linear(), shape=(1, 4, 4))
    made.moments = Gaussian.isotropic(0.1, 0.2)  # which the rows of principal components need
    return made


class Budget:
    """Counts how often a row decides, and so how often the host may wait in what runs within it."""

    def __init__(self, row: Solver, monkeypatch: pytest.MonkeyPatch) -> None:
        self.row, self.decisions = row, 0
        if row.family in DECIDING:
            owner, name, _ = DECIDING[row.family]
            function = getattr(owner, name)

            def counted(*arguments: Any) -> Any:
                self.decisions += 1
                return function(*arguments)

            monkeypatch.setattr(owner, name, counted)

    def most(self, nfe: int) -> float:
        """The waits of a run of so many evaluations."""
        family = "torchdiffeq" if self.row.name in OVER_TORCHDIFFEQ else self.row.family
        if family in FOREIGN:
            return FOREIGN[family] * nfe + 10
        each = DECIDING[family][2] if family in DECIDING else 0
        starts = 8 if family == "iterated" else 0  # the first guess of each step is awaited, too
        return BESIDES + each * self.decisions + starts


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", solvers.names())
def test_every_row_runs_on_one_device_and_gives_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = solvers.get(name)
    row = row.with_settings(rtol=0.1, atol=0.1) if row.adaptive else row
    plan = Plan.of(Schedule.linear(), row, None if row.adaptive else 8)
    start = State(IMAGES * 157, plan.top) if row.stochastic else None
    latent = start or odeddim.encode(IMAGES, model=field(), plan=plan)
    image = odeddim.decode(latent, model=field(), plan=plan)
    with Double() as double:
        model = field().to("cuda:0")
        there = start
        for decoding in (False, True):
            double.waits.clear()
            model.reset()
            budget = Budget(row, monkeypatch)
            if decoding:
                back = odeddim.decode(there, model=model, plan=plan)
            elif not row.stochastic:
                there = odeddim.encode(IMAGES, model=model, plan=plan)
            assert double.waits.total() <= budget.most(model.nfe), double.waits.most_common(5)
    assert isinstance(back, OnDevice)
    assert torch.equal(back.inner, image)
    if not row.stochastic:
        assert torch.equal(there.xbar.inner, latent.xbar)
        assert [part.inner.tolist() for part in there.aux] == [part.tolist() for part in latent.aux]


@pytest.mark.parametrize("name", [name for name in solvers.names() if solvers.get(name).family == "per image"])
def test_images_that_fail_and_arrive_at_different_times(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More images than places, some of whose steps are accepted while others' are not."""
    pixels = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    images = pixels * torch.tensor([0.1, 0.5, 1, 2, 4]).reshape(-1, 1, 1, 1)
    tolerance = 0.003 if name == "dopri5-per-image" else 0.03  # which goes through this field without a failure
    row, ends = solvers.get(name).with_settings(rtol=tolerance, atol=tolerance, batch=2), [0.1, 10.0]
    there = odeddim.encode(images, row, model=field(harsh=True), grid=ends)
    accepted, rejected = there.report["accepted"], there.report["rejected"]
    assert len(set((accepted + rejected).tolist())) > 1
    assert len(set(rejected.tolist())) > 1
    back = odeddim.decode(there, row, model=field(harsh=True), grid=ends)
    with Double() as double:
        model = field(harsh=True).to("cuda:0")
        double.waits.clear()
        budget = Budget(row, monkeypatch)
        state = odeddim.encode(images, row, model=model, grid=ends)
        again = odeddim.decode(state, row, model=model, grid=ends)
    assert torch.equal(state.xbar.inner, there.xbar)
    assert torch.equal(again.inner, back)
    assert all(torch.equal(state.report[key], value) for key, value in there.report.items())
    assert double.waits.total() <= budget.most(model.nfe) + BESIDES, double.waits.most_common(5)


FEW_ROWS = ("heun", "unipc-2", "belm", "edict", "exact-euler", "exact-ab2", "ddim-eta", "dpm-solver-23", "dopri5")


def broken(x: Tensor, t: Tensor) -> Tensor:
    """A network that fails at the labels between 300 and 600."""
    return 0.7 * x + torch.where((t > 300) & (t < 600), math.inf, 0.0).reshape(-1, 1, 1, 1)


def wild(x: Tensor, t: Tensor) -> Tensor:
    """A network whose answers grow until the registers overflow, and then some."""
    return x * torch.exp(t / 8).reshape(-1, 1, 1, 1)


def huge(x: Tensor, t: Tensor) -> Tensor:
    """A network with finite answers whose sum is not."""
    return torch.full_like(x, 3e38)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FEW_ROWS)
@pytest.mark.parametrize("network", [broken, wild])
def test_errors_are_those_of_the_cpu(name: str, network: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The first evaluation that is wrong is named, although it is found at the end."""

    def error(place: str) -> tuple[str, int]:
        model = VectorField(network, Schedule.linear(), shape=(1, 4, 4), name="mine").to(place)
        row = solvers.get(name)
        row = row.with_settings(max_nfe=300) if row.adaptive else row
        begin = State(IMAGES.to(place) * 157, model.schedule.sigma_max)
        try:
            steps = {} if row.adaptive else {"steps": 20}
            if row.stochastic:
                odeddim.decode(begin, row, model=model, **steps)
            else:
                odeddim.encode(IMAGES.to(place), row, model=model, **steps)
        except (InputError, BudgetExceeded) as found:
            return str(found), model.nfe
        return "none", 0

    with Double():
        there = error("cuda:0")
    assert there == error("cpu")
    assert there[0] != "none" or network is wild


def test_a_false_alarm_changes_nothing() -> None:
    with Double() as double:
        model = VectorField(huge, Schedule.linear(), shape=(1, 4, 4)).to("cuda:0")
        found = odeddim.encode(IMAGES, "euler", model=model, grid=[1.0, 1.1, 1.2])
        assert model.nfe == 2
        assert double.waits.total() > 2  # it was made again
    assert torch.equal(found.xbar.inner, IMAGES + 3e38 * torch.tensor(0.2))


class Conditional(nn.Module):
    """A network with three classes, and none."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.linspace(-1, 1, 4), requires_grad=False)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return torch.tanh(x + self.shift[label].reshape(-1, 1, 1, 1))


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "flow"])
def test_labels_scales_and_conditions_are_put_on_the_device_once(predicts: str) -> None:
    def made() -> VectorField:
        field = VectorField.from_network(
            Conditional(), Schedule.linear(), predicts=predicts, classes=3, null=3, shape=(1, 4, 4)
        )
        return field.conditioned(1, guidance=2.0, interval=(0.5, 20.0))

    alone = odeddim.encode(IMAGES, "ab2", model=made(), steps=8)
    with Double() as double:
        model = made().to("cuda:0")
        for solver, most in (("ab2", BESIDES + 2), ("ab2", BESIDES), ("dpm-solver-12", 60)):
            double.waits.clear()
            settings = {"rtol": 0.1, "atol": 0.1} if solver != "ab2" else {"steps": 8}
            there = odeddim.encode(IMAGES, solver, model=model, **settings)
            assert double.waits.total() <= most, double.waits.most_common(5)
            if solver == "ab2":
                assert torch.equal(there.xbar.inner, alone.xbar)


def test_float32_is_float32_while_a_network_is_evaluated() -> None:
    """Whatever torch is set to: by default convolutions round what they multiply to TF32."""
    seen = []

    def eps(x: Tensor, t: Tensor) -> Tensor:
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return x

    kept = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with Double():
            model = VectorField(eps, Schedule.linear()).to("cuda:0")
            odeddim.encode(IMAGES, "euler", model=model, steps=2)
            assert seen == [(False, False)] * 2
            odeddim.encode(IMAGES, "euler", model=model.to("cuda:0", "tf32"), steps=1)
            assert (seen.pop(), model.dtype, model.tf32) == ((True, True), torch.float32, True)
            odeddim.encode(IMAGES, "euler", model=model.to("cuda:0", "float32"), steps=1)
            assert (seen.pop(), model.tf32) == ((False, False), False)
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (True, True)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept


def test_a_compiled_network_is_a_graph_whose_answers_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Like a graph of CUDA, the stand-in of torch.compile writes all its answers into one place."""
    asked = []

    def stand_in(network: nn.Module, **options: Any) -> Callable[..., Tensor]:
        asked.append(options)
        place: list[Tensor] = []

        def answer(x: Tensor, t: Tensor) -> Tensor:
            out = network(x, t)
            if not place:
                place.append(out.clone())
            return place[0].mul_(0).add_(out)

        return answer

    alone = odeddim.encode(IMAGES, "ab3", model=field(), steps=6)
    monkeypatch.setattr(torch, "compile", stand_in)
    begun: list[None] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(None))
    with Double() as double:
        model = field().to("cuda:0", compile=True)
        double.waits.clear()
        there = odeddim.encode(IMAGES, "ab3", model=model, steps=6)
        assert double.waits.total() <= BESIDES
    assert asked == [{"dynamic": False, "mode": "reduce-overhead"}]
    assert len(begun) == model.nfe
    assert torch.equal(there.xbar.inner, alone.xbar)


def test_the_double_refuses_what_cuda_refuses() -> None:
    with Double():
        there = torch.zeros(2, 3, device="cuda:0")
        with pytest.raises(RuntimeError, match="cuda:0 and cpu"):
            there + torch.zeros(2, 3)
        with pytest.raises(RuntimeError, match="cuda:0"):
            torch.zeros(2)[torch.zeros(1, dtype=torch.int64, device="cuda:0")]
        assert isinstance(there + torch.tensor(1.0), OnDevice)


def test_the_double_counts_what_the_host_waits_for() -> None:
    with Double() as double:
        there = torch.zeros(2, 3).to("cuda:0")
        there += 1
        assert there.sum() == 6
        there.cpu()
        there[there > 0] = 2.0
        there[there > 0]
    assert Counter(what for what, *_ in double.waits.elements()) == {
        "copy to cuda": 1,
        "bool": 1,
        "copy to cpu": 1,
        "index by a mask": 1,
    }


# The command line.


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model and images."""
    folder = tmp_path_factory.mktemp("device")
    (folder / "model").mkdir()
    settings = {"in_channels": 1, "image_size": 8, "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4]}
    torch.manual_seed(0)
    save_file(UNet(**settings).state_dict(), folder / "model" / "model.safetensors")
    about = {"format": "odeddim unet", "version": 1, "architecture": settings, "predicts": "eps"}
    about["schedule"] = Schedule.linear().to_dict()
    (folder / "model" / "model.json").write_text(json.dumps(about))
    for name, size in (("x.npy", 8), ("y.npy", 28)):
        np.save(folder / name, np.random.default_rng(0).integers(0, 256, (5, size, size), dtype=np.uint8))
    return folder


@pytest.fixture
def on_device(run: Command, place: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """A command on the double, beside the model and the images; it must end well."""
    for name in ("model", "x.npy", "y.npy"):
        Path(name).symlink_to(place / name)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)

    def call(*arguments: object) -> tuple[int, str, str]:
        with Double():
            code, out, err = run(*arguments, "--device", "cuda")
        assert code == 0, err
        return code, out, err

    return call


FEW = ("--network-batch", 2)
ENCODE = ("encode", "x.npy", "--model", "model", "-n", 3, *FEW)
SMALL = ("--model", "exact-gaussian", "--steps", 4, *FEW)  # for what takes a thousand evaluations
NOISE = ("--size", "1,4,4", *SMALL)
BENCHES: dict[str, tuple[Any, ...]] = {
    "reconstruction": ("x.npy", "-n", 2, "--solvers", "euler,belm", *SMALL),
    "consistency": ("-n", 2, "--solvers", "euler", *NOISE),
    "interpolation": ("--pairs", 1, "-n", 3, "--solvers", "euler,ddpm", *NOISE),
    "league": (
        "x.npy",
        "-n",
        2,
        "--solvers",
        "euler,belm,ddpm",
        "--evaluations",
        4,
        "--model",
        "exact-gaussian",
        *FEW,
    ),
    "quality": ("-n", 4, "--eta", "0,hat", "--reference", "y.npy", "--steps", 2, *FEW),
    "time": ("--solvers", "euler", "--batches", 2, "--repeats", 1, "--model", "model", "--steps", 3),
    "work-precision": ("-n", 2, "--solvers", "euler,dpm-solver-12", *NOISE),
}


def columns(path: str) -> dict[str, bytes]:
    with LatentFile(Path(path)) as file:
        return {name: values.tobytes() for name, values in file.rows(0, len(file)).items()}


HOW: dict[str, tuple[Any, ...]] = {
    "plain": ("--steps", 3),
    "certified": ("--steps", 5, "--certify"),
    "to a tolerance": ("--solver", "ab3", "--tol", 0.3),
    "per image": ("--solver", "dpm-solver-12", "--rtol", 0.1, "--atol", 0.1),
}


@pytest.mark.parametrize("how", HOW)
def test_latents_are_those_of_the_cpu(run: Command, on_device: Command, how: str) -> None:
    on_device(*ENCODE, *HOW[how], "-o", "z.h5")
    assert run(*ENCODE, *HOW[how], "-o", "cpu.h5", "--device", "cpu")[0] == 0
    assert columns("z.h5") == columns("cpu.h5")
    with LatentFile(Path("z.h5")) as file:
        details = file.provenance.details
    assert {key: details[key] for key in ("device", "gpu", "cudnn", "dtype")} == {
        "device": "cuda", "gpu": NAME, "cudnn": 91002, "dtype": "float32",
    }  # fmt: skip
    on_device("decode", "z.h5", "-o", "gpu.png")
    assert run("decode", "cpu.h5", "-o", "cpu.png", "--device", "cpu")[0] == 0
    sheets = [np.asarray(Image.open(name)) for name in ("gpu.png", "cpu.png")]
    assert np.array_equal(*sheets)  # their notes differ: of which run they are


def test_commands_on_latents(on_device: Command) -> None:
    on_device(*ENCODE, "--steps", 3, "-o", "z.h5")
    on_device("interpolate", "z.h5", "--pair", 0, 1, "-n", 3, "--sheet", "path.png")
    on_device("shift", "z.h5", "--from", "0", "--to", "1", "--by", "0,1", "--sheet", "shifted.png")
    on_device("neighbours", "z.h5", "-k", 1, "--sheet", "near.png")
    on_device("explore", "z.h5", "--corners", 0, 1, 1, 0, "--tiles", 2, "-o", "explore.html")
    on_device("verify", "z.h5", "--sheet", "worst.png")
    for name in ("path.png", "shifted.png", "near.png", "explore.html", "worst.png"):
        assert Path(name).exists()


def test_commands_that_begin_with_images_or_noise(on_device: Command) -> None:
    on_device("sample", "--model", "model", "-n", 3, "--steps", 2, "--eta", 0.5, *FEW, "-o", "noise.png")
    on_device("bridge", "x.npy", "--model", "model", "--to", "model", "--steps", 2, "-n", 2, *FEW, "-o", "bridged/")


def test_fit(on_device: Command) -> None:
    on_device("fit", "x.npy", *SMALL[:4], "--solver", "euler", "-n", 2, "-o", "plan.json")
    assert Path("plan.json").exists()
    on_device("fit", *NOISE[:4], "--steps", 2, "-n", 8, "-o", "fitted.json")
    assert Path("fitted.json").exists()


LONG = (
    "reconstruction",
    "consistency",
    "interpolation",
    "league",
    "work-precision",
)  # references of a thousand evaluations


@pytest.mark.parametrize("bench", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in BENCHES])
def test_benches(on_device: Command, bench: str) -> None:
    on_device("bench", bench, *BENCHES[bench])
    assert Path("bench", f"{bench}.csv").exists()
