"""Conditions per image: labels and prompts from lists, CSVs and folders, kept in the file, taken by `decode`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import torch
from PIL import Image
from support import Told, command, save_told
from torch import Tensor

import odeddim
from odeddim.jobs.each import Each
from odeddim.latents.latent_file import LatentFile
from odeddim.ode.conditions import Condition
from odeddim.ode.field import VectorField
from odeddim.types import InputError

LABELS = [2, 0, 0, 1, 2]


def model(*, null: int | None = 3) -> VectorField:
    return VectorField.from_network(Told(), odeddim.Schedule.linear(), classes=4, null=null, name="told")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of classes, five images in three folders, and a CSV of their labels."""
    folder = tmp_path_factory.mktemp("told")
    save_told(folder, Told(), null=3)
    places = ["bag/0.png", "coat/1.png", "coat/2.png", "dress/3.png", "dress/4.png"]
    for i, place in enumerate(places):
        (folder / "images" / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 40 * i + 50).save(folder / "images" / place)
    rows = [f"{place},{label},a text of {label}" for place, label in zip(places, LABELS, strict=True)]
    (folder / "labels.csv").write_text("\n".join(["file,class,text", *reversed(rows)]) + "\n")
    (folder / "ordered.csv").write_text("\n".join(["class", *map(str, LABELS)]) + "\n")
    return folder


@pytest.mark.parametrize("network_batch", [None, 2])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("interval", [None, (0.5, 20.0)])
def test_each_image_has_the_latent_of_its_own_condition(
    network_batch: int | None, guidance: float, interval: tuple[float, float] | None
) -> None:
    field, x_0 = model(), odeddim.noise(5, (1, 4, 4)) * 0.2
    field.network_batch = network_batch
    interval = interval if guidance != 1 else None
    conditions = [Condition(label, guidance=guidance, interval=interval) for label in LABELS]
    each = field.conditioned_each(conditions)
    state = odeddim.encode(x_0, "belm", model=each, steps=6)
    assert torch.equal(odeddim.decode(state, model=each), x_0)
    for i, label in enumerate(LABELS):
        alone = field.conditioned(label, guidance=guidance, interval=interval)
        assert torch.allclose(odeddim.encode(x_0[i : i + 1], "belm", model=alone, steps=6).xbar, state.xbar[i : i + 1])
    per_image = each(torch.tensor([0.1, 0.4, 1.0, 10.0, 50.0]), x_0)  # a level for each, some guided and some not
    for i, sigma in enumerate((0.1, 0.4, 1.0, 10.0, 50.0)):
        alone = field.conditioned(LABELS[i], guidance=guidance, interval=interval)
        assert torch.allclose(alone(torch.tensor(sigma), x_0[i : i + 1]), per_image[i : i + 1])


def test_a_batch_of_another_size_is_refused() -> None:
    each = model().conditioned_each([Condition(0), Condition(1)])
    with pytest.raises(InputError, match="conditions for 2 images, each for one, and was called with 3"):
        odeddim.encode(torch.zeros(3, 1, 4, 4), model=each, steps=3)
    with pytest.raises(InputError, match="not in how they are guided"):
        model().conditioned_each([Condition(0), Condition(1, guidance=2.0)])
    with pytest.raises(InputError, match="no unconditional mode"):
        model(null=None).conditioned_each([Condition(0, guidance=2.0)])


def columns(path: Path | str) -> tuple[Tensor, list[int]]:
    """The latents of a file, and the label of each."""
    with LatentFile(Path(path)) as file:
        kept = file.provenance.details["conditions"]
        which = file.figures("report")["condition"].tolist()
        assert "label" not in file.provenance.condition
        return file.read(0, len(file)).xbar, [kept[i]["label"] for i in which]


@pytest.fixture
def encode(world: Path, here: Path) -> Callable[..., str]:
    given = (world / "images", "--model", world / "told.pt2", "--steps", 6, "--device", "cpu")
    return lambda *more, code=0: command("encode", *given, *more, code=code)


def test_the_file_keeps_the_condition_of_each_latent(encode: Callable[..., str], world: Path) -> None:
    said = encode("-o", "z.h5", "--labels-from", f"{world / 'labels.csv'}:class", "--batch-size", 2)
    assert ", 3 conditions" in said
    encode("-o", "ordered.h5", "--labels-from", f"{world / 'ordered.csv'}:class")
    field = odeddim.load(world / "told.pt2")
    field.network_batch = 8
    images = odeddim.open_images(world / "images")[:5]
    each = field.conditioned_each([Condition(label) for label in LABELS])
    expected = odeddim.encode(images, "belm", model=each, steps=6).xbar
    for path in ("z.h5", "ordered.h5"):
        latents, labels = columns(path)
        assert labels == LABELS
        assert torch.equal(latents, expected)
    odeddim.jobs.encode(
        images, "list.h5", model=field, steps=6, labels_from=LABELS, machine=odeddim.jobs.Machine("cpu")
    )
    assert columns("list.h5")[1] == LABELS
    encode("-o", "folder.h5", "--labels-from", "folder")
    assert columns("folder.h5")[1] == [0, 1, 1, 2, 2]  # bag, coat, dress


def test_decode_takes_each_condition_and_another_guidance(encode: Callable[..., str], world: Path) -> None:
    encode("-o", "z.h5", "--labels-from", f"{world / 'labels.csv'}:class", "--certify")
    images = odeddim.open_images(world / "images")[:5]
    command("decode", "z.h5", "-o", "back.h5", "--batch-size", 2)
    with h5py.File("back.h5") as file:
        assert torch.equal(torch.from_numpy(file["images"][:]), images)
    with odeddim.open("z.h5") as latents:
        assert torch.equal(latents.decode(), images)
        assert torch.equal(latents.decode(3), images[3:4])
        assert float(latents.certificate["round_trip"].max()) == 0
    command("decode", "z.h5", "-o", "five.h5", "--guidance", 5)  # up at 1, down at 5
    field = odeddim.load(world / "told.pt2")
    field.network_batch = 8
    with LatentFile(Path("z.h5")) as file, h5py.File("five.h5") as made:
        state = file.read(0, 5)
        each = field.conditioned_each([Condition(label, guidance=5) for label in LABELS])
        expected = odeddim.decode(odeddim.State(state.xbar, state.sigma), "unipc-2", model=each, steps=6)
        assert torch.allclose(torch.from_numpy(made["images"][:]), expected, atol=1e-5)
    command("decode", "z.h5", "-o", "ones.h5", "--label", 1)  # one for all, if it is said
    with h5py.File("ones.h5") as made:
        assert not torch.equal(torch.from_numpy(made["images"][:]), images)


def test_verify_computes_what_certify_does_and_others_refuse(encode: Callable[..., str], world: Path) -> None:
    given = ("--labels-from", f"{world / 'labels.csv'}:class")
    encode("-o", "certified.h5", *given, "--certify")
    encode("-o", "z.h5", *given)
    command("verify", "z.h5", "--sheet", "worst.png")
    with LatentFile(Path("z.h5")) as one, LatentFile(Path("certified.h5")) as other:
        for name, values in one.figures().items():
            assert torch.allclose(values, other.figures()[name], rtol=1e-4, atol=1e-6, equal_nan=True), name
    assert "3, one for each latent" in command("inspect", "z.h5")
    said = command("interpolate", "z.h5", "--pair", 1, 2, "--sheet", "line.png", code=2)
    assert "--label" in said


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--labels-from", "none.csv:class"), "none.csv cannot be read"),
        (("--labels-from", "labels.csv:clas"), "column of"),
        (("--labels-from", "labels.csv:text"), "must be a whole number"),
        (("--labels-from", "few.csv:class"), "no row for the image"),
        (("--labels-from", "short.csv:class"), "1 rows for 5 images"),
        (("--labels-from", "labels.csv"), "must be file.csv:column, file.txt, or 'folder'"),
        (("--labels-from", "labels.csv:class", "--label", 1), "leave out one of the two"),
        (("--labels-from", "labels.csv:class", "--prompts-from", "folder"), "not both"),
        (("--prompts-from", "folder"), "no prompts"),
        (("--labels-from", "labels.csv:class", "--tol", 1e-2), "--tol"),
        (("--labels-from", "labels.csv:class", "--trajectory", "t.h5"), "--trajectory"),
        (("--labels-from", "high.csv:class"), "classes 0 to 2, not 9"),
    ],
)
def test_bad_conditions_are_one_sentence(
    more: tuple[str, ...], words: str, encode: Callable[..., str], world: Path, here: Path
) -> None:
    for name, text in {
        "labels.csv": (world / "labels.csv").read_text(),
        "few.csv": "file,class\nbag/0.png,1\n",
        "short.csv": "class\n1\n",
        "high.csv": (world / "ordered.csv").read_text().replace("2", "9"),
    }.items():
        (here / name).write_text(text)
    said = encode("-o", "z.h5", *more, code=2)
    assert words in said
    assert not Path("z.h5").exists()


def test_prompts_of_folders_and_columns(world: Path) -> None:
    names = ["a cat/1.png", "a dog/2.png", "a cat/3.png"]
    each = Each.of(None, "folder", names)
    assert each is not None
    assert [each.distinct[i]["prompt"] for i in each.which] == ["a cat", "a dog", "a cat"]
    with pytest.raises(InputError, match="lies in none"):
        Each.of(None, "folder", ["1.png"])
    rows = Each.of(None, f"{world / 'labels.csv'}:text", ["coat/1.png", "bag/0.png"])
    assert rows is not None
    assert [it["prompt"] for it in rows.distinct] == ["a text of 0", "a text of 2"]
