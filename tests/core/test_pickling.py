"""A field comes back from a pickle, and from a deep copy, as it was: the same latents, bit for bit."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import odeddim
from odeddim.models.guarded import Loaded
from odeddim.ode.conditions import Given, Prompts
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.storage.images import open_images
from odeddim.types import InputError

Again = Callable[[VectorField], VectorField]


def through_pickle(field: VectorField) -> VectorField:
    again = pickle.loads(pickle.dumps(field))
    assert isinstance(again, VectorField)
    return again


AGAIN = pytest.mark.parametrize("again", [through_pickle, copy.deepcopy])


class Classy(torch.nn.Module):
    """A network with classes, whose last digits depend on the size of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        h: Tensor = self.conv(x) * (1 + 1e-6 * len(x)) + y.reshape(-1, 1, 1, 1) / 5
        return h + t.reshape(-1, 1, 1, 1) / 1000


class Halving:
    """A codec: data are images of half the brightness."""

    image_shape = (2, 4, 4)
    sha256 = ""

    def encode(self, images: Tensor) -> Tensor:
        return images / 2

    def decode(self, data: Tensor) -> Tensor:
        return data * 2

    def to(self, device: torch.device | str) -> Halving:
        return self


def embed(text: str) -> Given:
    return (torch.full((1,), float(len(text))),)


def told(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """A network that is told a text, as a function."""
    return x.sin() * text.reshape(-1, 1, 1, 1)


def log_label(sigma: Tensor) -> Tensor:
    return sigma.log()


def encoded(field: VectorField, *shape: int) -> Tensor:
    images = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return odeddim.encode(images, "ab2", model=field, steps=4).xbar


def same(field: VectorField, again: VectorField, *shape: int) -> None:
    assert torch.equal(encoded(again, *shape), encoded(field, *shape))
    assert type(again) is type(field)
    assert (again.name, again.sha256, again.schedule, again.condition) == (
        *(field.name, field.sha256, field.schedule),
        field.condition,
    )


@AGAIN
@pytest.mark.parametrize("name", odeddim.models.BUILT_IN)
def test_built_in_models(name: str, again: Again) -> None:
    field = odeddim.load(name)
    copied = again(field)
    same(field, copied, *(field.shape or (1, 6, 6)))
    assert copied.eps is not field.eps
    images = open_images()[:2]
    assert torch.equal(
        odeddim.encode(images, model=copied, steps=2).xbar, odeddim.encode(images, model=field, steps=2).xbar
    )


@AGAIN
def test_a_condition_a_dtype_and_a_batch_come_along(again: Again) -> None:
    field = VectorField.from_network(Classy(), Schedule.linear(), classes=3, null=3, shape=(2, 4, 4))
    field = field.to("cpu", torch.float64).conditioned(2, guidance=2.5, interval=(0.5, 20.0))
    field.network_batch = 2
    copied = again(field)
    assert (copied.dtype, copied.network_batch) == (torch.float64, 2)
    same(field, copied, 2, 4, 4)
    same(field.conditioned(1), copied.conditioned(1), 2, 4, 4)  # and it can be told something else
    copied.to("cpu", torch.float32)
    assert field.dtype == torch.float64


@AGAIN
def test_a_codec_prompts_and_labels_of_ones_own_come_along(again: Again) -> None:
    field = VectorField(
        told, Schedule.linear(), time=log_label, shape=(2, 4, 4), conditions=Prompts(embed), codec=Halving()
    ).conditioned(prompt="a cat")
    same(field, again(field), 2, 4, 4)
    data = field.on_data()
    assert again(data).codec is None
    same(data, again(data), 2, 4, 4)
    same(field.conditioned(prompt="a horse"), again(field).conditioned(prompt="a horse"), 2, 4, 4)


@AGAIN
def test_fields_of_one_network_still_share_it(again: Again) -> None:
    field = VectorField.from_network(Classy(), Schedule.linear(), classes=3)
    one, two = (pickle.loads(pickle.dumps([field.conditioned(i) for i in (0, 1)])) if again is through_pickle
                else copy.deepcopy([field.conditioned(i) for i in (0, 1)]))  # fmt: skip
    assert one.eps is two.eps
    one.to("cpu", torch.float64)
    assert two.dtype == torch.float64
    assert field.dtype == torch.float32


@AGAIN
def test_what_watches_stays_behind_and_counters_do_not(again: Again) -> None:
    field = VectorField(log_scaled, Schedule.linear())
    seen: list[int] = []
    field.watch = seen.append
    encoded(field, 1, 4, 4)
    copied = again(field)
    assert copied.watch is None
    assert copied.nfe == field.nfe > 0
    before = len(seen)
    encoded(copied, 1, 4, 4)
    assert len(seen) == before
    assert copy.copy(field).watch is not None  # a twin that shares the network is watched with it


def log_scaled(x: Tensor, t: Tensor) -> Tensor:
    return x.tanh()


def test_another_process_computes_the_same(tmp_path: Path) -> None:
    field = odeddim.load().conditioned()
    (tmp_path / "field.pkl").write_bytes(pickle.dumps(field))
    code = (
        "import pickle, sys, torch; torch.set_num_threads(1); import odeddim\n"
        "from odeddim.storage.images import open_images\n"
        "field = pickle.load(open(sys.argv[1], 'rb'))\n"
        "torch.save(odeddim.encode(open_images()[:2], model=field, steps=3).xbar, sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "field.pkl", tmp_path / "z.pt"], check=True)
    ours = odeddim.encode(open_images()[:2], model=field, steps=3).xbar
    assert torch.equal(torch.load(tmp_path / "z.pt"), ours)
    assert isinstance(field, Loaded)


class Locked(torch.nn.Module):
    """A network that holds what no pickle can."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("part", "make"),
    [
        ("network", lambda: VectorField(lambda x, t: x, Schedule.linear(), name="mine")),
        ("network", lambda: VectorField(Locked(), Schedule.linear(), name="mine")),
        ("network", lambda: VectorField.from_network(lambda x, t: x, Schedule.linear(), name="mine")),
        ("time labels", lambda: VectorField(log_scaled, Schedule.linear(), time=lambda sigma: sigma, name="mine")),
        (
            "conditions",
            lambda: VectorField(told, Schedule.linear(), name="mine", conditions=Prompts(lambda text: ())),
        ),
    ],
)
def test_what_cannot_be_pickled_is_one_sentence(part: str, make: Callable[[], VectorField]) -> None:
    with pytest.raises(InputError, match=f"the {part} of the model 'mine' cannot be pickled") as caught:
        pickle.dumps(make())
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_function_without_a_name_can_be_copied() -> None:
    field = VectorField(lambda x, t: x.sin(), Schedule.linear())
    same(field, copy.deepcopy(field), 1, 4, 4)
