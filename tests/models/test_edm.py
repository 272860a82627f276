"""EDM's pickles: its four preconditionings and its sampler, written out; and that nothing runs unless it is allowed."""

from __future__ import annotations

import importlib
import itertools
import pickle
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import odeddim
from odeddim import solvers
from odeddim.models.formats import edm
from odeddim.plans import Plan, integrate
from odeddim.types import InputError, State

# In EDM's layout: a preconditioning with the attributes that samplers read, around a model with label_dropout.
CODE = """
    import torch

    class Inner(torch.nn.Module):
        def __init__(self, channels, label_dim, label_dropout=0):
            super().__init__()
            self.conv = torch.nn.Conv2d(channels, channels, 3, padding=1)
            self.map_label = torch.nn.Linear(label_dim, channels, bias=False) if label_dim else None
            self.label_dropout = label_dropout

        def forward(self, x, noise_labels, class_labels):
            h = self.conv(x) + torch.sin(noise_labels).reshape(-1, 1, 1, 1)
            if self.map_label is not None:
                h = h + self.map_label(class_labels)[:, :, None, None]
            return torch.tanh(h)

    class EDMPrecond(torch.nn.Module):
        def __init__(self, img_resolution, img_channels, label_dim=0, sigma_min=0, sigma_max=float("inf"), **inner):
            super().__init__()
            self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
            self.use_fp16, self.sigma_min, self.sigma_max, self.sigma_data = True, sigma_min, sigma_max, 0.5
            self.model = Inner(img_channels, label_dim, **inner)
            self.calls = 0

        def forward(self, x, sigma, class_labels=None, force_fp32=False):
            self.calls += len(x)
            assert not self.use_fp16
            x, sigma = x.to(torch.float32), sigma.to(torch.float32).reshape(-1, 1, 1, 1)
            if self.label_dim:
                none = torch.zeros([1, self.label_dim])
                class_labels = none if class_labels is None else class_labels.reshape(-1, self.label_dim)
            else:
                assert class_labels is None
            total = sigma**2 + self.sigma_data**2
            out = self.model(x / total.sqrt(), sigma.log().flatten() / 4, class_labels)
            return self.sigma_data**2 / total * x + sigma * self.sigma_data / total.sqrt() * out

    class VEPrecond(EDMPrecond):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, sigma_min=0.02, sigma_max=100, **kwargs)

        def forward(self, x, sigma, class_labels=None, force_fp32=False):
            x, sigma = x.to(torch.float32), sigma.to(torch.float32).reshape(-1, 1, 1, 1)
            return x + sigma * self.model(x, (0.5 * sigma).log().flatten(), class_labels)

    class iDDPMPrecond(EDMPrecond):
        # ε of improved DDPM: cosine schedule, β at most 1 - C_1; it is told the label of the nearest of 1000 levels
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            angle = torch.arange(1001, dtype=torch.float64) / 1000 / 1.008 * torch.pi / 2
            ratio = (angle[:-1].sin() / angle[1:].sin()).square().clamp(min=0.001)  # ᾱ of level j over that of j+1
            u = (1 / ratio.flip(0).cumprod(0) - 1).sqrt().flip(0)
            self.register_buffer("u", torch.cat([u, torch.zeros(1)]).float())
            self.sigma_min, self.sigma_max = float(self.u[999]), float(self.u[0])

        def index(self, sigma):
            return (sigma.float().reshape(-1, 1) - self.u).abs().argmin(1)

        def round_sigma(self, sigma):
            return self.u[self.index(sigma)].to(sigma.dtype).reshape(sigma.shape)

        def forward(self, x, sigma, class_labels=None, force_fp32=False):
            x, sigma = x.to(torch.float32), sigma.to(torch.float32).reshape(-1, 1, 1, 1)
            label = 999 - self.index(sigma).float()
            return x - sigma * self.model(x / (sigma**2 + 1).sqrt(), label, class_labels)

    class Failing(EDMPrecond):
        def forward(self, *args):
            raise ArithmeticError("no luck")

    class Twice(EDMPrecond):
        def forward(self, *args):
            return super().forward(*args), 0

    class Bomb:
        def __init__(self, path):
            self.path = str(path)

        def __reduce__(self):
            return open, (self.path, "w")

    class Raising:
        def __reduce__(self):
            return divmod, (1, 0)
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module that the pickles need; gone from Python with the test."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "torch_utils_of_test.py").write_text(textwrap.dedent(CODE))
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    importlib.invalidate_caches()
    yield importlib.import_module("torch_utils_of_test")
    sys.modules.pop("torch_utils_of_test", None)


def saved(folder: Path, content: object, name: str = "network-snapshot-000100.pkl") -> Path:
    path = folder / name
    path.write_bytes(pickle.dumps(content))
    return path


def make(code: ModuleType, kind: str = "EDMPrecond", **settings: Any) -> Any:
    torch.manual_seed(0)
    return getattr(code, kind)(8, 3, **settings)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def edm_sampler(
    denoise: Any, noise: Tensor, steps: int, low: float, high: float, rounded: Any = torch.as_tensor
) -> tuple[Tensor, Tensor]:
    """Algorithm 1 of the paper, with its grid (ρ = 7): the image, and the nodes with the 0 at their end."""
    step = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    t = rounded((high ** (1 / 7) + step * (low ** (1 / 7) - high ** (1 / 7))) ** 7)
    t = torch.cat([t, torch.zeros(1, dtype=torch.float64)])
    x = noise * t[0]
    for here, there in itertools.pairwise(t):
        slope = (x - denoise(x, here)) / here
        ahead = x + (there - here) * slope
        if there > 0:
            slope = (slope + (ahead - denoise(ahead, there)) / there) / 2
            ahead = x + (there - here) * slope
        x = ahead
    return x, t


@pytest.mark.parametrize("kind", ["EDMPrecond", "VEPrecond"])
def test_edms_own_sampler(kind: str, code: ModuleType, tmp_path: Path) -> None:
    net = make(code, kind)
    path = saved(tmp_path, {"ema": net, "loss_fn": None, "augment_pipe": None, "dataset_kwargs": {"path": "x"}})
    field = odeddim.load(path, allow_pickle=True)
    low, high = (0.02, 80.0) if kind == "VEPrecond" else (0.002, 80.0)
    known = 100.0 if kind == "VEPrecond" else 80.0  # a network's own range, where it has one
    assert (field.schedule.sigma_min, field.schedule.sigma_max) == (low, known)
    assert (field.shape, field.predicts, field.time) == ((3, 8, 8), "x0", "sigma")
    assert field.details["weights"] == "ema"
    assert f"{kind}, 3×8×8, 0.0 M" in field.details["found"]
    net.use_fp16 = False
    noise = draw(2, 3, 8, 8)
    with torch.no_grad():
        image, nodes = edm_sampler(lambda x, s: net(x, s).double(), noise, 20, low, high)
    start = State(noise * nodes[0], float(nodes[0]))
    ours = integrate(field, start, Plan(solvers.get("heun"), nodes.flip(0))).xbar
    assert float((ours - image).abs().max() / image.abs().max()) < 1e-5
    assert field.nfe == 2 * 20 - 1  # as many as EDM counts
    # And the network itself, at every noise level.
    for sigma in (0.0021, 0.3, 17.0, 79.0):
        given, level = noise.float(), torch.full((2,), sigma)
        assert torch.equal(field.eps(given, level), net(given, level))


@pytest.mark.parametrize("steps", [5, 18, 40])
def test_edms_own_sampler_of_an_iddpm_network(steps: int, code: ModuleType, tmp_path: Path) -> None:
    """It rounds its nodes to the levels that the network knows: it begins at 80.2, not at 80."""
    net = make(code, "iDDPMPrecond")
    field = odeddim.load(saved(tmp_path, {"ema": net}), allow_pickle=True)
    assert field.schedule == odeddim.Schedule.from_sigmas(net.u[:-1].flip(0))
    assert field.schedule.sigma_max == pytest.approx(odeddim.Schedule.cosine().sigma_max, rel=1e-3)
    net.use_fp16 = False
    noise = draw(2, 3, 8, 8)
    with torch.no_grad():
        image, nodes = edm_sampler(
            lambda x, s: net(x, s).double(), noise, steps, net.sigma_min, 80.0, rounded=net.round_sigma
        )
    assert float(nodes[0]) == pytest.approx(80.2037, abs=1e-4)
    assert torch.equal(odeddim.grid("edm", field.schedule, steps).flip(0), nodes)
    state = State(noise * nodes[0], float(nodes[0]))
    ours = odeddim.decode(state, "heun", model=field, grid="edm", steps=steps)
    assert float((ours - image).abs().max() / image.abs().max()) < 1e-6
    assert field.nfe == 2 * steps - 1
    odeddim.solve(noise, "heun", model=field, grid="edm", steps=steps)  # from below its σ_T = 20,291
    net.u[3] = net.u[2]
    with pytest.raises(InputError, match=r"network-snapshot.*rise strictly"):
        odeddim.load(saved(tmp_path, {"ema": net}), allow_pickle=True)


def test_up_again(code: ModuleType, tmp_path: Path) -> None:
    """Encoding is the same rule on rising nodes."""
    net = make(code)
    field = odeddim.load(saved(tmp_path, {"ema": net}), allow_pickle=True)
    net.use_fp16 = False
    nodes = torch.logspace(-2, 1.5, 21, dtype=torch.float64)
    x = start = draw(2, 3, 8, 8)
    with torch.no_grad():
        for here, there in itertools.pairwise(nodes):
            x = x + (there - here) * (x - net(x, here).double()) / here
    ours = integrate(field, State(start, float(nodes[0])), Plan(solvers.get("euler"), nodes)).xbar
    assert float((ours - x).abs().max() / x.abs().max()) < 1e-5


def test_classes_become_rows(code: ModuleType, tmp_path: Path) -> None:
    net = make(code, label_dim=4)
    field = odeddim.load(saved(tmp_path, {"ema": net}), allow_pickle=True)
    assert "4 classes" in field.details["found"]
    net.use_fp16 = False
    x, sigma = draw(2, 3, 8, 8), torch.tensor(2.0, dtype=torch.float64)
    rows = torch.eye(4)
    with torch.no_grad():
        for label in range(4):
            ours = field.conditioned(label)(sigma, x)
            theirs = (x - net(x, sigma, rows[label].repeat(2, 1)).double()) / sigma
            assert torch.allclose(ours, theirs, atol=1e-6)
    with pytest.raises(InputError, match="needs a class"):
        field(sigma, x)
    with pytest.raises(InputError, match="has no unconditional mode"):
        field.conditioned(1, guidance=2)
    with pytest.raises(InputError, match="classes 0 to 3, not 4"):
        field.conditioned(4)


def test_none_is_a_row_of_zeros_where_labels_were_dropped(code: ModuleType, tmp_path: Path) -> None:
    net = make(code, label_dim=4, label_dropout=0.1)
    field = odeddim.load(saved(tmp_path, {"ema": net}), allow_pickle=True)
    net.use_fp16 = False
    x, sigma = draw(2, 3, 8, 8), torch.tensor(2.0, dtype=torch.float64)
    with torch.no_grad():
        none = (x - net(x, sigma).double()) / sigma
        told = (x - net(x, sigma, torch.eye(4)[[1, 1]]).double()) / sigma
        assert torch.allclose(field(sigma, x), none, atol=1e-6)
        assert torch.allclose(field.conditioned(1, guidance=3)(sigma, x), none + 3 * (told - none), atol=1e-5)


def test_a_narrow_network_and_a_bare_one(code: ModuleType, tmp_path: Path) -> None:
    field = odeddim.load(saved(tmp_path, make(code, sigma_min=0.1, sigma_max=torch.tensor(10.0))), allow_pickle=True)
    assert (field.schedule.sigma_min, field.schedule.sigma_max) == (0.1, 10.0)
    assert field.details["weights"] == "as saved"


def test_nothing_is_opened_unless_it_is_allowed(
    code: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "exploded"
    path = saved(tmp_path, {"ema": code.Bomb(target)})
    opened: list[str] = []
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *args, **how: (opened.append(str(self)), real(self, *args, **how))[1]
    )
    monkeypatch.setattr(pickle, "load", lambda file: pytest.fail("unpickled"))
    with pytest.raises(InputError, match=r"network-snapshot.*runs the code in it.*give allow_pickle=True"):
        odeddim.load(path)
    assert edm.matches(path)
    assert str(path) not in opened
    assert not target.exists()
    monkeypatch.undo()
    with pytest.raises(InputError, match="no network of EDM under 'ema'"):
        odeddim.load(path, allow_pickle=True)
    assert target.exists()  # the bomb was a real one


def test_a_pickle_under_another_name_never_runs(code: ModuleType, tmp_path: Path) -> None:
    target = tmp_path / "exploded"
    for name in ("a.pt", "a.ckpt", "a.pt2", "a.safetensors", "a.bin"):
        for allowed in (False, True):
            with pytest.raises(InputError, match=name):
                odeddim.load(saved(tmp_path, {"ema": code.Bomb(target)}, name), allow_pickle=allowed)
    assert not target.exists()


def test_a_name_in_capitals(code: ModuleType, tmp_path: Path) -> None:
    path = saved(tmp_path, {"ema": make(code)}, "EDM.PKL")
    with pytest.raises(InputError, match=r"runs the code in it"):
        odeddim.load(path)
    odeddim.load(path, allow_pickle=True)


def test_missing_code_is_named(code: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, {"ema": make(code)})
    sys.modules.pop("torch_utils_of_test")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path / "code")])
    importlib.invalidate_caches()
    with pytest.raises(InputError, match=r"needs the module 'torch_utils_of_test'.*NVlabs/edm.*PYTHONPATH"):
        odeddim.load(path, allow_pickle=True)


def test_what_is_no_network_is_one_sentence(code: ModuleType, tmp_path: Path) -> None:
    def refused(content: object, words: str) -> None:
        with pytest.raises(InputError, match=words) as caught:
            odeddim.load(saved(tmp_path, content), allow_pickle=True)
        assert "network-snapshot-000100.pkl" in str(caught.value)
        assert "\n" not in str(caught.value)

    refused({"ema": None}, "a NoneType")
    refused([1, 2], "a list")
    refused({"model": 3}, "a dict")
    refused(code.Raising(), "ZeroDivisionError")
    refused(torch.nn.Linear(2, 2), "Linear.*img_channels is None")
    for name, value in {
        "img_channels": "3",
        "img_resolution": True,
        "label_dim": -1,
        "sigma_min": None,
        "sigma_max": float("nan"),
    }.items():
        net = make(code)
        setattr(net, name, value)
        refused({"ema": net}, f"its {name} is")
    refused({"ema": make(code, sigma_min=90)}, "no network of EDM, because its noise levels σ go from 90.* to 80")
    whole = pickle.dumps({"ema": make(code)})
    for size in (0, 1, len(whole) // 3, len(whole) - 1):
        path = tmp_path / "cut.pkl"
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"cut\.pkl cannot be read as a pickle"):
            odeddim.load(path, allow_pickle=True)
    x, sigma = draw(1, 3, 8, 8), torch.tensor(1.0)
    for kind, words in {"Failing": "ArithmeticError: no luck", "Twice": "returns a tuple"}.items():
        field = odeddim.load(saved(tmp_path, {"ema": make(code, kind)}), allow_pickle=True)
        with pytest.raises(InputError, match=words):
            field(sigma, x)
