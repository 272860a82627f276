"""Latent files: what goes in comes out bit for bit; damage, lies and other models' latents are one clear sentence."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from odeddim.latents.latent_file import LatentFile, LatentRun
from odeddim.latents.provenance import Provenance, provenance_of
from odeddim.ode import grids
from odeddim.ode.analytic import Gaussian
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.plans import Plan
from odeddim.storage.hdf5 import text, words
from odeddim.types import InputError, State

LINEAR = Schedule.linear()
NODES = grids.grid("karras", LINEAR, 7)


def model(
    name: str = "mine", sha256: str = "ab12" * 16, schedule: Schedule = LINEAR, time: str = "index"
) -> VectorField:
    return VectorField(Gaussian().network(schedule), schedule, time=time, name=name, sha256=sha256)


def provenance(field: VectorField | None = None) -> Provenance:
    plan = Plan.of(LINEAR, "ab2", 7, "karras")
    assert torch.equal(plan.nodes, NODES)
    return provenance_of(field or model(), plan, "encode", dtype="f")


def state(count: int, aux: int = 0, dtype: torch.dtype = torch.float32) -> State:
    generator = torch.Generator().manual_seed(count)
    parts = [torch.randn(count, 1, 4, 4, generator=generator, dtype=dtype) * 157 for _ in range(1 + aux)]
    return State(parts[0], float(NODES[-1]), tuple(parts[1:]))


def write(path: Path, count: int = 5, aux: int = 0, dtype: torch.dtype = torch.float32) -> State:
    whole = state(count, aux, dtype)
    with LatentRun(path, [f"bild-{i}-ä" for i in range(count)], provenance(), NODES, overwrite=True) as run:
        for start, stop in run.batches(2):
            rows = slice(start, stop)
            run.write(start, stop, State(whole.xbar[rows], whole.sigma, tuple(a[rows] for a in whole.aux)))
    return whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("aux", [0, 2])
def test_what_goes_in_comes_out(tmp_path: Path, aux: int, dtype: torch.dtype) -> None:
    path = tmp_path / "z.h5"
    whole = write(path, aux=aux, dtype=dtype)
    with LatentFile(path) as file:
        assert len(file) == 5
        assert file.shape == (1, 4, 4)
        assert file.dtype == str(dtype).removeprefix("torch.")
        read = file.read(0, 5)
        assert torch.equal(read.xbar, whole.xbar)
        assert read.sigma == whole.sigma == LINEAR.sigma_max
        assert len(read.aux) == file.aux_count == aux
        for a, b in zip(read.aux, whole.aux, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(file.pick(3).xbar, whole.xbar[3:4])
        assert list(file.names) == file.names[:] == [f"bild-{i}-ä" for i in range(5)]
        assert file.names[-1] == "bild-4-ä"
        assert file.total == 5
        assert not file.is_index
        assert torch.equal(file.nodes, NODES)
        assert file.provenance == provenance()
        assert file.provenance.settings == {}
        assert file.provenance.end == "zero"
        assert Schedule.from_dict(file.provenance.schedule) == LINEAR
        file.provenance.check_model(model(), "z.h5")


def test_layout_is_what_the_module_says(tmp_path: Path) -> None:
    path = tmp_path / "z.h5"
    write(path, count=130)
    with h5py.File(path) as file:
        assert file["xbar"].chunks == (64, 1, 4, 4)
        assert file["xbar"].fletcher32
        assert file["xbar"].compression is None
        assert file["xbar"].attrs["sigma"] == LINEAR.sigma_max
        assert "unit variance" in words(file["xbar"].attrs["unit"])


def test_a_latent_of_another_model_is_refused(tmp_path: Path) -> None:
    made = provenance()
    with pytest.raises(InputError, match=r"'mine' with the hash ab12.* have changed since \(cd34"):
        made.check_model(model(sha256="cd34" * 16), "z.h5")
    with pytest.raises(InputError, match=r"schedule name linear, .* 'mine' now has name cosine"):
        made.check_model(model(schedule=Schedule.cosine()), "z.h5")
    with pytest.raises(InputError, match="time index, but 'mine' now has integer"):
        made.check_model(model(time="integer"), "z.h5")
    with pytest.raises(InputError, match="not of 'other'"):
        made.check_model(model("other", "cd34" * 16), "z.h5")
    exact = provenance(model("exact-gaussian", ""))
    exact.check_model(model("exact-gaussian", ""), "z.h5")
    with pytest.raises(InputError, match="exact-mixture"):
        exact.check_model(model("exact-mixture", ""), "z.h5")


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "no").touch()
    with (
        pytest.raises(InputError, match=r"no is a file, so .* cannot be made below it"),
        LatentRun(tmp_path / "no" / "deeper" / "z.h5", ["a"], provenance(), NODES),
    ):
        pass


def damage_delete(name: str):  # type: ignore[no-untyped-def]
    def damage(file: h5py.File) -> None:
        del file[name]

    return damage


def damage_shape(file: h5py.File) -> None:
    del file["names"]
    file.create_dataset("names", data=np.array([b"a", b"b"]))


def damage_dtype(file: h5py.File) -> None:
    del file["xbar"]
    file.create_dataset("xbar", data=np.zeros((5, 1, 4, 4), np.int32)).attrs["sigma"] = LINEAR.sigma_max


def damage_sigma(file: h5py.File) -> None:
    file["xbar"].attrs["sigma"] = 3.0


def damage_sigma_type(file: h5py.File) -> None:
    file["xbar"].attrs["sigma"] = "high"


def damage_version(file: h5py.File) -> None:
    file.attrs["version"] = 99


def damage_format(file: h5py.File) -> None:
    file.attrs["format"] = "something else"


def stated(file: h5py.File) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(file["provenance"][()])
    return said


def restate(file: h5py.File, said: str) -> None:
    del file["provenance"]
    file.create_dataset("provenance", data=text(said)).attrs["sha256"] = hashlib.sha256(said.encode()).hexdigest()


def damage_json(file: h5py.File) -> None:
    restate(file, "{not json")


def damage_list(file: h5py.File) -> None:
    restate(file, "[1, 2]")


def damage_total(file: h5py.File) -> None:
    restate(file, json.dumps({**stated(file), "total": "many"}))


def damage_keys(file: h5py.File) -> None:
    said = stated(file)
    del said["model"]
    restate(file, json.dumps(said))


def damage_schedule(file: h5py.File) -> None:
    restate(file, json.dumps({**stated(file), "schedule": {"name": "liner"}}))


def damage_edited(file: h5py.File) -> None:
    said, checksum = json.dumps(stated(file)), file["provenance"].attrs["sha256"]
    del file["provenance"]
    file.create_dataset("provenance", data=text(said.replace("ab2", "ab3"))).attrs["sha256"] = checksum


def damage_nodes(file: h5py.File) -> None:
    file["nodes"][2] = -1.0


def damage_nodes_a_little(file: h5py.File) -> None:
    file["nodes"][2] *= 1 + 1e-15


def damage_group(file: h5py.File) -> None:
    del file["xbar"]
    file.create_group("xbar")


def damage_huge(file: h5py.File) -> None:
    del file["nodes"]
    file.create_dataset("nodes", (10**12,), "f8", chunks=(1024,))


def damage_huge_rows(file: h5py.File) -> None:
    """Rows that are only declared, 4 GB each."""
    del file["xbar"]
    data = file.create_dataset("xbar", (5, 1, 32768, 32768), "f4", chunks=(1, 1, 64, 64))
    data.attrs["sigma"] = LINEAR.sigma_max


def damage_compressed(file: h5py.File) -> None:
    """A file of a few kB that would unpack to more than it says."""
    content = file["xbar"][:]
    del file["xbar"]
    file.create_dataset("xbar", data=content, compression="gzip").attrs["sigma"] = LINEAR.sigma_max


def damage_external(file: h5py.File) -> None:
    del file["xbar"]
    place = [("/etc/passwd", 0, 5 * 16 * 4)]
    data = file.create_dataset("xbar", (5, 1, 4, 4), "f4", external=place)
    data.attrs["sigma"] = LINEAR.sigma_max


def damage_external_link(file: h5py.File) -> None:
    del file["xbar"]
    file["xbar"] = h5py.ExternalLink("/tmp/another.h5", "xbar")


def damage_soft_link(file: h5py.File) -> None:
    file.move("xbar", "elsewhere")
    file["xbar"] = h5py.SoftLink("/elsewhere")


def damage_virtual(file: h5py.File) -> None:
    """Rows that lie in a file of somebody else's choice."""
    del file["xbar"]
    layout = h5py.VirtualLayout((5, 1, 4, 4), "f4")
    layout[:] = h5py.VirtualSource("../another.h5", "xbar", (5, 1, 4, 4), "f4")
    file.create_virtual_dataset("xbar", layout).attrs["sigma"] = LINEAR.sigma_max


def damage_references(file: h5py.File) -> None:
    del file["names"]
    data = file.create_dataset("names", (5,), dtype=h5py.ref_dtype)
    data[0] = file["xbar"].ref


def damage_variable_text(file: h5py.File) -> None:
    del file["names"]
    file.create_dataset("names", data=["a"] * 5, dtype=h5py.string_dtype())


def damage_extra_column(file: h5py.File) -> None:
    file.create_dataset("weights", data=np.zeros((5, 2)))


def damage_report(file: h5py.File) -> None:
    file.create_dataset("report/evaluations", data=np.zeros((4,)))


DAMAGES = [
    *(damage_delete(name) for name in ("xbar", "names", "nodes", "provenance", "crc32")),
    damage_shape, damage_dtype, damage_sigma, damage_sigma_type, damage_version, damage_format, damage_json,
    damage_list, damage_total, damage_keys, damage_schedule, damage_edited, damage_nodes, damage_nodes_a_little,
    damage_group, damage_huge, damage_huge_rows, damage_compressed, damage_external, damage_external_link,
    damage_soft_link, damage_virtual, damage_references, damage_variable_text, damage_extra_column, damage_report,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_lies_in_a_file_are_one_sentence(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "z.h5"
    write(path)
    with h5py.File(path, "a") as file:
        damage(file)
    with pytest.raises(InputError) as error:
        LatentFile(path)
    assert "\n" not in str(error.value)


def test_nan_is_found(tmp_path: Path) -> None:
    path = tmp_path / "z.h5"
    write(path)
    with h5py.File(path, "a") as file:
        file["xbar"][3, 0, 0, 0] = np.nan
    with LatentFile(path) as file, pytest.raises(InputError, match="row 3 was changed"):
        file.read(2, 4)
    with LatentRun(path, ["a"], provenance(), NODES, overwrite=True) as run:
        run.write(0, 1, State(torch.full((1, 1, 4, 4), np.nan), float(NODES[-1])))
    with LatentFile(path) as file, pytest.raises(InputError, match="NaN"):
        file.read(0, 1)


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all", b"\x89HDF\r\n\x1a\n" + b"\0" * 100])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "z.h5"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"z\.h5"):
        LatentFile(path)
    with pytest.raises(InputError, match="does not exist"):
        LatentFile(tmp_path / "missing.h5")


def test_truncated_and_flipped_bytes_never_lie(tmp_path: Path) -> None:
    """A damaged file is refused, or reads exactly what was written where the damage does not touch it."""
    path = tmp_path / "z.h5"
    whole = write(path)
    good = path.read_bytes()
    chance = random.Random(0)
    refused = 0
    for round_ in range(150):
        data = bytearray(good)
        if round_ % 3 == 0:
            data = data[: chance.randrange(len(data))]
        else:
            for _ in range(round_ % 4 + 1):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        try:
            with LatentFile(path) as file:
                read = file.read(0, len(file))
                names = list(file.names)
                nodes = file.nodes
            assert torch.equal(read.xbar, whole.xbar)  # the checksum on every chunk sees to it
            assert torch.equal(nodes, NODES)
            assert names == [f"bild-{i}-ä" for i in range(5)]
        except InputError:
            refused += 1
    assert refused > 50
