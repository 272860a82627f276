"""Devices and dtypes by name, what float32 is on a GPU, and how the command line sets a GPU up: no GPU is needed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import odeddim
from odeddim.jobs.machine import Machine, Place
from odeddim.latents.latent_file import LatentFile, LatentRun
from odeddim.ode import devices
from odeddim.ode.devices import device_of, dtype_of, products
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.solvers import get
from odeddim.types import InputError

Command = Callable[..., tuple[int, str, str]]
CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch as a new process has it, before and after: TF32 in convolutions, and not in matrix products."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    kept = cudnn.deterministic, cudnn.benchmark
    cudnn.allow_tf32, matmul.allow_tf32 = True, False
    yield
    cudnn.deterministic, cudnn.benchmark = kept
    cudnn.allow_tf32, matmul.allow_tf32 = True, False
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four devices that hold numbers, as far as the command line asks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr("odeddim.ode.devices.device_of", torch.device)


def tf32() -> tuple[bool, bool]:
    """Whether convolutions and matrix products may use TF32, as CUDA will be told."""
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


def test_tf32_is_off_within_and_as_it_was_outside() -> None:
    torch.set_float32_matmul_precision("high")
    assert tf32() == (True, True)
    with products(CUDA):
        assert tf32() == (False, False)
        with products(CUDA, tf32=True):  # of another thread: float32 for whoever asks for it
            assert tf32() == (False, False)
    assert tf32() == (True, True)
    torch.set_float32_matmul_precision("highest")
    with products(CUDA, tf32=True):
        assert tf32() == (True, True)
        with products(CUDA):
            assert tf32() == (False, False)
        assert tf32() == (True, True)
    assert tf32() == (True, False)
    with pytest.raises(ValueError, match="a network's"), products(CUDA):
        raise ValueError("a network's")
    assert tf32() == (True, False)
    with products(torch.device("cpu")), products(None):
        assert tf32() == (True, False)


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="settings of each operation came with torch 2.9")
def test_tf32_is_off_whatever_was_set_in_the_newer_way() -> None:
    before = torch.backends.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.fp32_precision = "tf32"
    try:
        with products(CUDA):
            assert tf32() == (False, False)
            assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert torch.backends.cudnn.rnn.fp32_precision == "tf32"
    finally:
        torch.backends.fp32_precision = before


def test_threads_leave_what_they_found() -> None:
    """Whatever the order in which they come and go."""
    gate, seen = threading.Barrier(2, timeout=60), []

    def other() -> None:
        gate.wait()  # the first is inside
        with products(CUDA):
            gate.wait()
            gate.wait()  # the first has left
            seen.append(tf32())

    thread = threading.Thread(target=other)
    thread.start()
    with products(CUDA):
        gate.wait()
        gate.wait()
    seen.append(tf32())
    gate.wait()
    thread.join()
    assert seen == [(False, False)] * 2
    assert tf32() == (True, False)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", "cpu:x", 99])
def test_devices_that_are_not_there(device: Any) -> None:
    with pytest.raises(InputError, match=rf"the device '.*{device}' cannot be used here \(.+\): use cpu") as caught:
        odeddim.load("exact-gaussian", device=device)
    assert caught.value.__cause__ is not None
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be used here"):
        odeddim.load().to(device)


def test_dtypes_by_name() -> None:
    field = odeddim.load(dtype="float64")
    assert (field.dtype, field.tf32) == (torch.float64, False)
    assert field.to("cpu", "bfloat16").dtype == torch.bfloat16
    assert field.to("cpu", torch.float32).dtype == torch.float32
    assert dtype_of("tf32") == (torch.float32, True, None)
    with pytest.raises(InputError, match=r"unknown dtype 'float23'.*float32"):
        odeddim.load(dtype="float23")
    with pytest.raises(InputError, match=r"float32, tf32, float64, bfloat16, float16, .* or .* not torch.int32"):
        field.to("cpu", torch.int32)
    with pytest.raises(InputError, match="not 32"):
        field.to("cpu", 32)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"dtype='tf32' needs CUDA, and the device is cpu: give dtype='float32'"):
        field.to("cpu", "tf32")
    assert device_of("cpu") == torch.device("cpu")


# The command line.


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("name", ["cuda", None])
def test_each_rank_takes_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    assert Machine(name).at().device == torch.device("cuda:0")
    for local in range(6):
        monkeypatch.setenv("LOCAL_RANK", str(local))
        assert Machine(name).at().device == torch.device("cuda", local % 4)
        assert Machine("cuda:2").at().device == torch.device("cuda:2")


@pytest.mark.usefixtures("gpus")
def test_cuda_is_set_up_for_the_same_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def begin(name: str) -> torch.device:
        seen.update(workspace=os.environ.get("CUBLAS_WORKSPACE_CONFIG"), tf32=tf32())
        return torch.device(name)

    monkeypatch.setattr("odeddim.ode.devices.device_of", begin)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, True
    Machine("cpu").at()
    assert seen == {"workspace": None, "tf32": (True, False)}
    Machine("cuda").at()
    assert seen == {"workspace": ":4096:8", "tf32": (False, False)}  # before CUDA is begun
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (True, False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    Machine("cuda").at()
    assert seen["workspace"] == ":16:8"


def any_field() -> VectorField:
    return VectorField(lambda x, t: x, Schedule.linear())


@pytest.mark.usefixtures("gpus")
def test_which_gpu_and_how_it_multiplies_are_in_the_provenance() -> None:
    field, row = any_field(), get("ab3")
    found = []
    for device, dtype in (("cuda:0", None), ("cuda:1", "tf32"), ("cpu", None)):
        where = Machine(device, dtype).at()
        where.fit(field, row)
        found.append(where.details(field, row, where.at_once(field, row)))
    here = {"device": "cuda", "network_batch": 64, "cudnn": 91002}
    assert found[0] == {**here, "dtype": "float32", "gpu": "GPU 0"}
    assert found[1] == {**here, "dtype": "tf32", "gpu": "GPU 1"}
    its_own = {"cpu": torch.backends.cpu.get_cpu_capability(), "onednn": torch.backends.mkldnn.is_available()}
    assert found[2] == {"device": "cpu", "network_batch": 8, "dtype": "float32", "threads": 1, **its_own}


@pytest.mark.usefixtures("gpus")
def test_one_number_decides_how_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in work are whole batches of the network: none is filled up but the last."""
    field = any_field()
    for device, asked, batch_size, expected in (
        ("cuda", None, None, (64, 64)),
        ("cuda", 16, None, (16, 32)),
        ("cuda", 200, None, (200, 200)),
        ("cuda", None, 10, (64, 10)),
        ("cpu", None, None, (8, 32)),
        ("cpu", 5, None, (5, 30)),
    ):
        row = get("ab3")
        where = Machine(device, network_batch=asked, batch_size=batch_size).at()
        where.fit(field, row)
        assert (field.network_batch, where.at_once(field, row)) == expected


def test_what_is_filled_up_is_counted_and_said(run: Command) -> None:
    arguments = ("sample", "--model", "exact-gaussian", "--size", "1,4,4", "--solver", "euler", "--steps", 5)
    code, out, err = run(*arguments, "-n", 96, "--network-batch", 64, "-o", "x.h5")
    assert code == 0, err
    # Two batches of 64, the second of them half full: 32 images more in each of 5 evaluations, 5·32/96 an image.
    assert "5 evaluations per image, 1.667 more to fill batches" in out
    code, out, err = run(*arguments, "-n", 128, "--network-batch", 64, "-o", "y.h5")
    assert "5 evaluations per image, " in out
    assert "more" not in out
    code, out, err = run(
        "encode", "-n", 3, "--model", "exact-gaussian", *arguments[5:], "-o", "z.h5", "--device", "cpu"
    )
    assert "5 evaluations per image, 8.333 more to fill batches" in out  # 5·5/3, of 8
    code, out, err = run("decode", "z.h5", "-o", "z.png", "--device", "cpu")
    assert "5 evaluations per image, 8.333 more to fill batches" in out


def test_rows_of_each_image_fill_what_the_network_sees_at_once() -> None:
    """Not 16 whatever it sees: a network that sees 64 would be given 48 that nobody asked for."""
    x_0 = torch.rand(70, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    field = odeddim.load("exact-mixture")
    field.network_batch = 64
    state = odeddim.encode(x_0, "bosh3-per-image", model=field, rtol=0.1, atol=0.1)
    assert field.filled == 0  # the row fills its own calls
    wanted = int(state.report["evaluations"].sum())
    sizes = []
    field.watch = sizes.append
    odeddim.encode(x_0, "bosh3-per-image", model=field, rtol=0.1, atol=0.1)
    assert set(sizes) == {64}
    assert sum(sizes) < 3 * wanted  # it was four times, besides what the last images leave empty
    field.watch, field.network_batch, sizes[:] = sizes.append, None, []
    alone = odeddim.encode(x_0, "bosh3-per-image", model=field, rtol=0.1, atol=0.1)
    assert set(sizes) == {16}
    assert torch.equal(alone.report["evaluations"], state.report["evaluations"])


def test_another_gpu_does_not_go_on_with_a_run(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its digits are others: told as any other setting is."""
    gpu = {"gpu": "A"}
    details = Place.details

    def on(*given: Any) -> dict[str, Any]:
        return {**details(*given), **gpu}

    monkeypatch.setattr(Place, "details", on)
    arguments = ("encode", "-n", 4, "--model", "exact-gaussian", "--steps", 3, "--batch-size", 2, "-o", "z.h5")
    write, done = LatentRun.write, []

    def stop(self: LatentRun, *given: Any, **more: Any) -> None:
        if done:
            raise KeyboardInterrupt
        done.append(write(self, *given, **more))

    monkeypatch.setattr(LatentRun, "write", stop)
    assert run(*arguments)[0] == 130
    monkeypatch.setattr(LatentRun, "write", write)
    gpu["gpu"] = "B"
    code, _, err = run(*arguments)
    assert code == 2
    assert "z.h5 was begun with other settings (gpu: A then, B now)" in err
    gpu["gpu"] = "A"
    assert run(*arguments)[0] == 0
    with LatentFile(Path("z.h5")) as file:
        assert (len(file), file.provenance.details["gpu"]) == (4, "A")


def test_tf32_is_refused_where_there_is_none(run: Command) -> None:
    code, _, err = run("encode", "-n", 1, "--dtype", "tf32", "--device", "cpu", "-o", "z.h5")
    assert code == 2
    assert err == "Error: --dtype 'tf32' needs CUDA, and the device is cpu: give --dtype 'float32'\n"


def test_what_is_set_is_what_torch_knows() -> None:
    """`allow_tf32` can still be read after all this, which torch refuses where only one of its two ways was used."""
    devices.set_tf32(True)
    assert tf32() == (True, True)
    devices.set_tf32(False)
    assert tf32() == (False, False)
