"""Conditions per image: labels and prompts from lists, CSVs, texts and folders; kept in the file, taken by `decode`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from support import Told, command, save_told
from torch import Tensor

import odeddim
from odeddim.jobs.each import Each
from odeddim.latents.latent_file import LatentFile
from odeddim.ode.conditions import Condition, Prompts
from odeddim.ode.field import VectorField
from odeddim.ode.gaussian import Gaussian
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
    (folder / "labels.txt").write_text("\n".join(map(str, LABELS)) + "\n\n")
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
        (("--labels-from", "short.txt"), "short.txt has 2 lines for 5 images"),
        (("--labels-from", "none.txt"), "none.txt cannot be read"),
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
        "short.txt": "1\n2",
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


@pytest.fixture
def sample(world: Path, here: Path) -> Callable[..., str]:
    given = ("--model", world / "told.pt2", "--steps", 6, "--device", "cpu")
    return lambda *more, code=0: command("sample", *given, *more, code=code)


def test_samples_are_those_of_their_conditions(sample: Callable[..., str], world: Path) -> None:
    """Those of `odeddim.sample` under the condition of each, whatever the batch."""
    said = sample("-o", "s.h5", "--labels-from", f"{world / 'labels.csv'}:class", "--guidance", 2, "--batch-size", 2)
    assert "5 images in s.h5" in said
    assert ", 3 conditions" in said
    field = odeddim.load(world / "told.pt2")
    field.network_batch = 8
    rows = [2, 1, 0, 0, 2]  # of the CSV, in its order
    with h5py.File("s.h5") as file:
        made, which = torch.from_numpy(file["images"][:]), file["condition"][:].tolist()
        kept = json.loads(file["provenance"][()])["details"]["conditions"]
        names = [name.decode() for name in file["names"][:]]
    assert [kept[i] for i in which] == [{"label": label} for label in rows]
    assert names == [f"sample-0-{i:06d}-class-{label}" for i, label in enumerate(rows)]
    for i, label in enumerate(rows):
        alone = field.conditioned(label, guidance=2)
        assert torch.equal(odeddim.sample(1, model=alone, steps=6, start=i), made[i : i + 1])
    sample("-o", "out", "--labels-from", world / "labels.txt")
    assert {path.name for path in Path("out").glob("*.png")} == {
        f"sample-0-{i:06d}-class-{label}.png" for i, label in enumerate(LABELS)
    }


def test_a_run_goes_on_with_its_own_list_only(sample: Callable[..., str], encode: Callable[..., str]) -> None:
    Path("l.txt").write_text("0\n0\n1\n2\n2")
    for run, out in ((sample, "s.h5"), (encode, "z.h5")):
        Path("l.txt").write_text("0\n0\n1\n2\n2")
        run("-n", 3, "-o", out, "--labels-from", "l.txt")
        assert "2 now, the rest was there already" in run("-o", out, "--labels-from", "l.txt")
        Path("l.txt").write_text("0\n1\n0\n2\n2")  # the same classes, of other images
        assert "other conditions of the images" in run("-o", out, "--labels-from", "l.txt", code=2)
    assert columns("z.h5")[1] == [0, 0, 1, 2, 2]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("-n", 9, "--labels-from", "l.txt"), "3 rows of --labels-from or --prompts-from"),
        (("--labels-from", "empty.txt"), "0 rows of"),
        (("--labels-from", "folder"), "images that lie in folders"),
        (("--labels-from", "words.txt"), "the label of row 2 must be a whole number, not 'two'"),
        (("--labels-from", "high.txt"), "classes 0 to 2, not 9"),
        (("--labels-from", "l.txt", "--label", 1), "leave out one of the two"),
        (("--labels-from", "l.txt", "--density"), "unlike --density"),
        (("--labels-from", "l.txt", "--parallel", 3), "unlike --parallel"),
        (("--prompts-from", "l.txt"), "no prompts"),
    ],
)
def test_bad_conditions_of_samples_are_one_sentence(
    more: tuple[str, ...], words: str, sample: Callable[..., str]
) -> None:
    for name, text in {"l": "0\n1\n2", "empty": "\n", "words": "1\ntwo", "high": "0\n1\n9"}.items():
        Path(f"{name}.txt").write_text(text)
    assert words in sample("-o", "out", *more, code=2)
    assert not Path("out").exists()


def test_portable_runs_have_one_condition_for_all(here: Path) -> None:
    field = model().to("cpu", "float64")
    for job in (
        lambda: odeddim.jobs.sample(None, "s.h5", model=field, shape=(1, 4, 4), labels_from=LABELS, portable=True),
        lambda: odeddim.jobs.encode(
            torch.zeros(5, 1, 4, 4), "z.h5", model=field, steps=4, labels_from=LABELS, portable=True
        ),
    ):
        with pytest.raises(InputError, match="unlike portable="):
            job()


def test_the_gaussian_of_one_condition_is_not_that_of_all(here: Path) -> None:
    field = model()
    field.moments = Gaussian(
        torch.zeros(1, 4, 4), torch.empty(0, 16), torch.empty(0), 0.04, notes={"condition": "class 0"}
    )
    assert field.conditioned(0).moments is not None
    given: dict[str, Any] = {"model": field.conditioned(0), "steps": 4, "top": "gaussian", "labels_from": LABELS}
    with pytest.raises(InputError, match="no Gaussian of its data that holds under its condition"):
        odeddim.jobs.encode(torch.zeros(5, 1, 4, 4), "z.h5", **given)
    with pytest.raises(InputError, match="no Gaussian of its data that holds under its condition"):
        odeddim.jobs.sample(None, "s.h5", shape=(1, 4, 4), **given)


def test_samples_of_prompts_are_called_after_them(here: Path) -> None:
    """A prompt's text is a sum of letters here."""
    field = VectorField(
        lambda x, t, text: x * 0.5 - text[:, :, None, None], odeddim.Schedule.linear(), shape=(1, 4, 4), name="letters",
        conditions=Prompts(lambda text: (torch.tensor([[sum(map(ord, text)) / 1e4]]),)),
    )  # fmt: skip
    texts = ["a cat, / on a mat", "", "a cat, / on a mat", "é" * 80]
    odeddim.jobs.sample(None, "out", model=field, steps=4, prompts_from=texts)
    names = ["0-a-cat-on-a-mat", "1", "2-a-cat-on-a-mat", "3-" + "é" * 60]
    assert sorted(path.stem for path in Path("out").glob("*.png")) == [f"sample-0-00000{name}" for name in names]
    odeddim.jobs.sample(2, "s.npz", model=field, steps=4, prompts_from=texts)
    with np.load("s.npz") as file:
        assert file["condition"].tolist() == [0, 1]
        for i in range(2):
            alone = odeddim.sample(1, model=field.conditioned(prompt=texts[i]), steps=4, start=i)
            assert torch.allclose(torch.from_numpy(file["images"][i : i + 1]), alone, rtol=1e-6)
    odeddim.jobs.sample(None, odeddim.jobs.Pictures(Path("s.png"), labels=True, scale=20), model=field, steps=4,
                        prompts_from=texts)  # fmt: skip
    with pytest.raises(InputError, match="prompt must be a text, not 3"):
        odeddim.jobs.sample(None, "new", model=field, steps=4, prompts_from=["a", 3])
    assert not Path("new").exists()


def test_edit_takes_a_condition_for_each_image(world: Path, here: Path) -> None:
    given = (world / "images", "--model", world / "told.pt2", "--steps", 6, "--device", "cpu", "--batch-size", 2)
    to = ("--to-each", f"{world / 'ordered.csv'}:class", "--guidance", 2)
    said = command("edit", *given, "-o", "e.h5", "--from-each", "folder", *to)
    assert "3 conditions to 3 conditions, guidance 2 at" in said
    field = odeddim.load(world / "told.pt2")
    field.network_batch = 8
    before, images = [0, 1, 1, 2, 2], odeddim.open_images(world / "images")[:5]  # bag, coat, dress
    with h5py.File("e.h5") as file:
        details = json.loads(file["provenance"][()])["details"]
        for column, kept, labels in (
            ("from_condition", details["source"]["details"]["conditions"], before),
            ("condition", details["conditions"], LABELS),
        ):
            assert [kept[i]["label"] for i in file[column][:]] == labels
        for i in range(5):
            one = odeddim.edit(
                images[i : i + 1], field.conditioned(before[i]), field.conditioned(LABELS[i], guidance=2), steps=6
            )
            assert torch.equal(one.images, torch.from_numpy(file["images"][i : i + 1]))
            assert file["reconstruction_error"][i] == one.error
    said = command("edit", *given, "-o", "same.h5", "--from-each", "folder", "-n", 3)  # to what they show already
    assert "2 conditions to 2 conditions at" in said
    with h5py.File("same.h5") as file:
        for i in range(3):
            told = field.conditioned(before[i])
            one = odeddim.edit(images[i : i + 1], told, told, steps=6)
            assert torch.equal(one.images, torch.from_numpy(file["images"][i : i + 1]))
    more = command("edit", *given, "-o", "same.h5", "--from-each", "folder")
    assert "2 now, the rest was there already" in more
    command("edit", *given, "-o", "sheet.png", "--from", 0, *to)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), "Missing option '--from', or '--from-each'"),
        (("--from", 0, "--from-each", "folder"), "--from-each is for images that differ"),
        (("--from", 0, "--to", 1, "--to-each", "folder"), "--to-each is for images that differ"),
        (("--from", 0, "--to-each", "labels.csv"), "--to-each 'labels.csv' must be file.csv:column"),
        (("--from-each", "folder", "--to", 1, "--solver", "dpm-solver-23"), "takes the images of a batch apart"),
    ],
)
def test_bad_conditions_of_edits_are_one_sentence(more: tuple[str, ...], words: str, world: Path, here: Path) -> None:
    given = (world / "images", "--model", world / "told.pt2", "--device", "cpu", "-o", "out")
    assert words in command("edit", *given, *more, code=2)
    assert not Path("out").exists()
