"""Work on a cluster of Ray: the bits of one process, whoever is lost on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_engines import content

import odeddim
from odeddim.jobs import Machine
from odeddim.types import InputError

LONG: dict[str, Any] = {"model": "exact-mixture", "solver": "rk4", "steps": 50, "count": 96}


def test_without_ray_it_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(InputError, match="engine='ray' needs Ray: pip install 'odeddim\\[ray\\]'"):
        odeddim.jobs.encode(None, tmp_path / "z.h5", machine=Machine(engine="ray"), **LONG)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of this machine with room for two workers."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'odeddim[ray]'")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def actors() -> list[int]:
    """The processes of Ray that do our work."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray::Member" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            pass
    return found


@pytest.mark.slow  # a cluster of Ray, whose workers load torch
def test_a_worker_that_is_killed_changes_nothing(cluster: Any, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill(done: float, total: float) -> None:
        if done >= 16 and not killed:
            killed.extend(actors()[:1])
            os.kill(killed[0], signal.SIGKILL)

    machine = Machine(workers=2, engine="ray", batch_size=4)
    made = odeddim.jobs.encode(None, tmp_path / "z.h5", machine=machine, progress=kill, **LONG)
    assert killed
    assert made.done == 96
    odeddim.jobs.encode(None, tmp_path / "alone.h5", **LONG)
    assert content(tmp_path / "z.h5") == content(tmp_path / "alone.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.h5", "z.h5"]


@pytest.mark.slow  # a cluster of Ray, whose workers load torch
def test_jobs_on_ray(cluster: Any, tmp_path: Path) -> None:
    for way, machine in (("alone", Machine(batch_size=8)), ("ray", Machine(engine="ray", batch_size=8))):
        here, how = tmp_path / way, {"model": "exact-mixture", "machine": machine}
        odeddim.jobs.sample(20, here / "s.h5", shape=(1, 6, 6), solver="ddpm", steps=4, **how)
        odeddim.jobs.density(None, here / "d.h5", count=10, draws=1, steps=6, **how)
        odeddim.jobs.encode(None, here / "z.h5", count=20, steps=4, **how)
        odeddim.jobs.decode(here / "z.h5", here / "i.h5", machine=machine)
    for name in ("s.h5", "d.h5", "z.h5", "i.h5"):
        assert content(tmp_path / "alone" / name) == content(tmp_path / "ray" / name), name
    with pytest.raises(InputError, match=r"room for 2 workers \(times 1 CPUs\): give fewer workers"):
        odeddim.jobs.sample(4, tmp_path / "x", shape=(1, 6, 6), **{**how, "machine": Machine(engine="ray", workers=3)})
    with pytest.raises(InputError, match="NaN"):
        odeddim.jobs.encode(np.full((20, 1, 6, 6), torch.nan), tmp_path / "n.h5", steps=4, **how)


@pytest.mark.slow  # a cluster of Ray, whose workers load torch
def test_a_dataset_of_ray(cluster: Any, tmp_path: Path) -> None:
    data = pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install 'ray[data]'")
    how = {"model": "exact-samples", "solver": "belm", "steps": 4}
    images = ((odeddim.open_images()[:20][:, 0] + 1) * 127.5).round().to(torch.uint8).numpy()
    odeddim.jobs.encode(images, tmp_path / "z.h5", **how)
    found = data.from_numpy(images).map_batches(
        odeddim.Encoder, batch_size=8, concurrency=1, fn_constructor_kwargs={**how, "column": "data"}
    ).map_batches(odeddim.Decoder, batch_size=8, concurrency=1, fn_constructor_kwargs=how).materialize()  # fmt: skip
    odeddim.jobs.decode(tmp_path / "z.h5", tmp_path / "i.h5")
    wanted = odeddim.open_images(tmp_path / "i.h5")[:].numpy()
    assert {row["image"].tobytes() for row in found.iter_rows()} == {image.tobytes() for image in wanted}
