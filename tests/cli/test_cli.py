"""The commands as a user types them; bad input is one sentence, exit code 2, no traceback, and loses nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support import in_memory, tiles

import odeddim
from odeddim import defaults, solvers
from odeddim.cli import COMMANDS
from odeddim.latents.latent_file import LatentFile
from odeddim.models.formats import native
from odeddim.plans import Plan
from odeddim.storage.images import open_images


def command(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "odeddim", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def succeed(*arguments: object, cwd: Path) -> str:
    result = command(*arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout


FAST = ("-n", 4, "--steps", 4)


def test_encode_and_decode_the_open_images(here: Path) -> None:
    """The main job, in processes of its own, on the built-in model."""
    out = succeed("encode", "-o", "z.h5", "-n", 8, "--steps", 10, cwd=here)
    assert "8 latents at σ = 157.4" in out
    assert "10 evaluations per image" in out
    with LatentFile(here / "z.h5") as file:
        assert len(file) == 8
        assert file.shape == (1, 28, 28)
        x_T = file.read(0, 8).x
    assert 0.8 < float(x_T.std()) < 1.2  # unit variance
    out = succeed("decode", "z.h5", "-o", "out", cwd=here)
    assert "9 evaluations per image" in out  # the last one, at σ_1, serves twice
    pictures = sorted((here / "out").glob("*.png"))
    assert len(pictures) == 8
    images = open_images()
    for picture, original in zip(pictures, images[0:8], strict=True):
        pixels = np.asarray(Image.open(picture), np.float32) / 255
        assert np.allclose(pixels, (original[0].numpy() + 1) / 2, rtol=0, atol=1e-6)  # the default comes back exactly


BARE = ("--scale", 1, "--no-labels")


def test_other_outputs_and_another_solver(run, here: Path) -> None:  # type: ignore[no-untyped-def]
    assert run("encode", "-o", "z.h5", *FAST)[0] == 0
    code, out, err = run(
        "decode", "z.h5", "-o", "sheet.png", "--solver", "euler", "--grid", "quadratic", "--steps", 5, *BARE
    )
    assert code == 0
    assert err.startswith("warning: the latents were kept by 'belm'")
    assert "euler, 5 steps, 5 evaluations" in out
    assert len(tiles("sheet.png", 28, 28, 2)) == 2
    assert run("decode", "z.h5", "-o", "images.h5")[0] == 0
    with h5py.File("images.h5") as file:
        assert file["images"].shape == (4, 1, 28, 28)
        assert file["names"][0].decode() == open_images().names[0]
    # Decoded images are images: they can be encoded again.
    code, out, err = run("encode", "images.h5", "-o", "again.h5", "--steps", 4)
    assert (code, err) == (0, "")
    with LatentFile(here / "again.h5") as file:
        assert file.names[:] == [open_images().names[i] for i in range(4)]


MIXTURE = ("--model", "exact-mixture")


def test_decoding_keeps_to_the_file(run, here: Path) -> None:  # type: ignore[no-untyped-def]
    """Its nodes, with any solver; its tolerances, with its own; another grid or number of steps only when asked."""
    (here / "own.txt").write_text("0 0.01 0.5 3 20 157.40728")  # σ_T as printed: taken as σ_T
    run("encode", "-n", 2, "-o", "named.h5", *MIXTURE, "--steps", 5)
    run("encode", "-n", 2, "-o", "own.h5", *MIXTURE, "--grid", "own.txt")
    run("encode", "-n", 2, "-o", "adaptive.h5", *MIXTURE, "--solver", "dopri5", "--rtol", "1e-3", "--atol", "1e-3")
    (here / "own.txt").unlink()
    for arguments, words in (
        (["named.h5"], "belm, 5 steps, 4 evaluations"),
        (["named.h5", "--solver", "ab2"], "ab2, 5 steps, 5 evaluations"),
        (["named.h5", "--solver", "heun"], "heun, 5 steps, 9 evaluations"),
        (["named.h5", "--steps", "7"], "belm, 7 steps, 7 evaluations"),
        (["named.h5", "--solver", "dopri5"], "dopri5, adaptive"),
        (["named.h5", "--solver", "heun", "--grid", "karras"], "heun, 5 steps, 9 evaluations"),
        (["own.h5"], "belm, 5 steps"),
        (["own.h5", "--solver", "heun"], "heun, 5 steps, 9 evaluations"),
        (["adaptive.h5", "--solver", "euler", "--steps", "9"], "euler, 9 steps, 9 evaluations"),
        (["adaptive.h5", "--solver", "euler"], "euler, 50 steps"),
    ):
        code, out, err = run("decode", *arguments, "-o", "out.h5", "--overwrite")
        assert code == 0, arguments
        other = arguments[0] in ("named.h5", "own.h5") and len(arguments) > 1  # solver or steps than encoded it
        assert ("starts from x̄ alone" in err) == other, arguments
        assert words in out, arguments
    with h5py.File("out.h5") as file:  # the images say how they were really decoded
        made = json.loads(file["provenance"][()])
    assert (made["solver"], made["grid"], made["steps"], made["settings"]) == ("euler", "linear", 50, {})
    assert made["details"]["encoded"]["solver"] == "dopri5"
    counts = [
        run("decode", "adaptive.h5", "-o", "out.h5", "--overwrite", *more)[1] for more in ((), ("--solver", "dopri5"))
    ]
    assert re.findall(r"[\d.]+ evaluations", counts[0]) == re.findall(r"[\d.]+ evaluations", counts[1])
    code, out, err = run("decode", "named.h5", "-o", "out.h5", "--solver", "dopri5", "--steps", 5)
    assert code == 2
    assert "chooses its own steps" in err


def test_float64_goes_through_files(run, here: Path) -> None:  # type: ignore[no-untyped-def]
    for end in ("zero", "sigma_min"):
        arguments = (*MIXTURE, "--dtype", "float64", "--solver", "rk4", "--grid", "log", "--steps", 200, "--end", end)
        assert run("encode", "-n", 1, "-o", "z.h5", *arguments, "--overwrite")[0] == 0
        assert run("decode", "z.h5", "-o", "x.h5", "--overwrite")[0] == 0
        with h5py.File("x.h5") as file:
            assert file["images"].dtype == np.float64
            error = np.abs(file["images"][:] - open_images()[0:1].numpy()).max()
        assert error < (2e-3 if end == "zero" else 1e-5), end


def test_no_command_replaces_what_it_reads(run, here: Path) -> None:  # type: ignore[no-untyped-def]
    run("encode", "-n", 2, "-o", "z.h5", *MIXTURE, "--steps", 2)
    run("decode", "z.h5", "-o", "images.h5")
    (here / "link.h5").symlink_to("z.h5")
    before = (here / "z.h5").read_bytes(), (here / "images.h5").read_bytes()
    for arguments in (
        ("decode", "z.h5", "-o", "z.h5"),
        ("decode", "z.h5", "-o", "link.h5"),
        ("interpolate", "z.h5", "--pair", 0, 1, "-o", "z.h5"),
        ("encode", "images.h5", "-o", "images.h5", *MIXTURE),
    ):
        code, out, err = run(*arguments)
        assert code == 2, arguments
        assert "is being read" in err
        assert ((here / "z.h5").read_bytes(), (here / "images.h5").read_bytes()) == before


def test_odd_names(run, here: Path) -> None:  # type: ignore[no-untyped-def]
    folder = here / "bilder ü"
    folder.mkdir()
    picture = Image.new("L", (8, 8), 128)
    for name in (b"\xff\xfe.png", b"a" * 250 + b".png", "höhe 1.png".encode()):
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:
            picture.save(file, format="PNG")
    assert run("encode", "bilder ü/", "-o", "z.h5", *MIXTURE, "--steps", 2)[0] == 0
    assert run("decode", "z.h5", "-o", "out.d/")[0] == 2  # a suffix that is no format, and no such folder
    (here / "out.d").mkdir()
    assert run("decode", "z.h5", "-o", "out.d/")[0] == 0
    assert len(list((here / "out.d").glob("*.png"))) == 3
    (here / "link.h5").symlink_to("z.h5")
    assert run("encode", "bilder ü", "-o", "link.h5", *MIXTURE, "--steps", 3, "--overwrite")[0] == 0
    assert (here / "link.h5").is_symlink()  # the link stays, what it points to is new
    with LatentFile(here / "z.h5") as file:
        assert file.provenance.steps == 3


def test_a_failing_solver_does_not_cost_the_others(run) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run(
        "bench", "-n", 1, *MIXTURE, "--solvers", "euler,dopri5", "--steps", 3, "--max-nfe", 10, "--json"
    )
    assert code == 0
    euler, dopri5 = json.loads(out)["rows"]
    assert euler["round_trip"] > 0
    assert dopri5["round_trip"] is None
    assert "max_nfe" in dopri5["remark"]


def test_latents_find_a_model_of_ones_own(run, here: Path) -> None:  # type: ignore[no-untyped-def]
    built_in = native.BUILT_IN / "fashion-mnist"
    for name in ("one", "two"):
        shutil.copytree(built_in, here / name)
    tensors = in_memory(here / "two" / native.WEIGHTS)
    save_file({key: value * 1.01 for key, value in tensors.items()}, here / "two" / native.WEIGHTS)
    assert run("encode", "-o", "z.h5", *FAST, "--model", "one")[0] == 0
    assert run("decode", "z.h5", "-o", "a.png")[0] == 0  # the file says where its model is
    (here / "one").rename(here / "moved")
    code, out, err = run("decode", "z.h5", "-o", "b.png")
    assert code == 2
    assert "which was not found: give it with --model" in err
    assert run("decode", "z.h5", "-o", "b.png", "--model", "moved")[0] == 0
    assert run("decode", "z.h5", "-o", "c.png", "--model", "fashion-mnist")[0] == 0  # the same weights
    code, out, err = run("decode", "z.h5", "-o", "d.png", "--model", "two")
    assert code == 2
    assert "holds latents of the model" in err
    assert not Path("d.png").exists()
    for broken, words in (
        ({}, "lacks schedule"),
        ({"schedule": {"name": "linea"}}, "linear"),
        ({"architecture": {"x": 1}}, "U-Net"),
    ):
        description = json.loads((here / "two" / native.CONFIG).read_text()) | broken
        if not broken:
            del description["schedule"]
        (here / "moved" / native.CONFIG).write_text(json.dumps(description))
        code, out, err = run("sample", "-o", "e.png", "--model", "moved")
        assert code == 2, err
        assert words in err
    (here / "two" / native.WEIGHTS).write_bytes(b"nothing")
    code, out, err = run("sample", "-o", "e.png", "--model", "two")
    assert code == 2
    assert "safetensors" in err


def test_the_way_back_takes_the_batches_of_the_way_there(run, here: Path) -> None:  # type: ignore[no-untyped-def]
    """A network's last digits depend on the batch; so decoding takes that of encoding, and every image is exact."""
    assert run("encode", "-n", 7, "-o", "z.h5", "--steps", 5, "--batch-size", 3)[0] == 0
    assert run("decode", "z.h5", "-o", "images.h5")[0] == 0
    with h5py.File("images.h5") as file:
        assert np.array_equal(file["images"][:], open_images()[0:7].numpy())


def test_settings_of_a_solver(run, here: Path) -> None:  # type: ignore[no-untyped-def]
    given = ("--solver", "bdia", "--set", "gamma=0.9")
    assert run("encode", "-n", 2, "-o", "z.h5", *MIXTURE, *given, "--steps", 6)[0] == 0
    with LatentFile(here / "z.h5") as file:
        assert file.provenance.settings == {"gamma": 0.9}
        assert file.kept.startswith("bdia up 6 steps")
    assert run("decode", "z.h5", "-o", "images.h5")[0] == 0  # with the setting of the file
    with h5py.File("images.h5") as file:
        assert np.array_equal(file["images"][:], open_images()[0:2].numpy())
    code, out, err = run("encode", "-o", "w.h5", "--solver", "bdia", "--set", "gamma=0.5", "--steps", 100)
    assert code == 2
    assert "amplify rounding errors" in err
    assert not (here / "w.h5").exists()


def test_unstable_runs_are_named(run, here: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, err = run("sample", "-n", 2, "-o", "s.png", "--solver", "leapfrog", "--steps", 10)
    assert code == 0
    assert "the images reach ±" in err
    code, _, err = run("encode", "-n", 2, "-o", "z.h5", "--solver", "obelm", "--grid", "quadratic", "--steps", 10)
    assert code == 0
    assert "the latents x_T have rms" in err
    code, out, _ = run("bench", "-n", 1, "--solvers", "exact-ab2@karras", "--steps", 4)
    assert code == 0
    assert "did not converge" in out


def test_more_precision_loses_nothing(run, here: Path) -> None:  # type: ignore[no-untyped-def]
    """A float32 file decoded in float64 is still the way back, but for the network's last digits; and it is said."""
    assert run("encode", "-n", 2, "-o", "z.h5", "--steps", 6)[0] == 0
    code, _, err = run("decode", "z.h5", "-o", "images.h5", "--dtype", "float64")
    assert code == 0
    assert "(dtype float64 where it was float32): expect images to be" in err
    with h5py.File("images.h5") as file:
        assert np.allclose(file["images"][:], open_images()[0:2].numpy(), rtol=0, atol=1e-3)


def test_explain(run) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run("explain", "--solver", "ab3", "--grid", "karras", "--steps", 6)
    assert (code, err) == (0, "")
    assert "7 evaluations per image" in out
    assert "999.000" in out
    assert "x̄4 = x̄3 + " in out
    code, out, _ = run("explain", "--solver", "edict", "--steps", 6, "--direction", "decode", "--json")
    assert code == 0
    assert json.loads(out)["growth"]["encode"] > 100


def test_explain_prints_both_ends_of_long_lists(run) -> None:  # type: ignore[no-untyped-def]
    _, short, _ = run("explain", "--model", "exact-mixture", "--steps", 40)
    _, whole, _ = run("explain", "--model", "exact-mixture", "--steps", 40, "--all")
    cut, every = short.splitlines(), whole.splitlines()
    assert [line for line in cut if line.startswith("...")] == [
        "... 25 more: --all prints them ...", "... 62 more: --all prints them ..."
    ]  # fmt: skip
    assert len(every) == len(cut) - 2 + 25 + 62
    nodes = every.index(" node               σ     label t") + 1
    del every[nodes + 8 : nodes + 33]
    assert cut[nodes : nodes + 8] + cut[nodes + 9 : nodes + 17] == every[nodes : nodes + 16]
    assert run("explain", "--model", "exact-mixture", "--steps", 8)[1].count("...") == 0


def test_sample(run) -> None:  # type: ignore[no-untyped-def]
    assert run("sample", "-n", 3, "-o", "a.h5", "--steps", 3, "--batch-size", 2)[0] == 0
    assert run("sample", "-n", 2, "-o", "b.h5", "--steps", 3)[0] == 0
    with h5py.File("a.h5") as a, h5py.File("b.h5") as b:
        made = json.loads(a["provenance"].asstr()[()])  # the settings lie beside the samples
        assert (made["solver"], made["steps"], made["details"]["seed"]) == (defaults.SAMPLE, 3, 0)
        assert np.allclose(a["images"][:2], b["images"][:], atol=1e-4)
    assert run("sample", "-n", 2, "-o", "c.png", "--steps", 3, "--eta", 1)[0] == 0
    assert (
        run(
            "sample",
            "-n",
            2,
            "-o",
            "d.png",
            "--steps",
            3,
            "--model",
            "exact-mixture",
            "--size",
            "3,8,8",
            "--no-labels",
            "--scale",
            1,
        )[0]
        == 0
    )
    assert Image.open("d.png").size == (4 + 2 * (8 + 4), 4 + 8 + 4)


def test_noise_while_decoding(run, here: Path) -> None:  # type: ignore[no-untyped-def]
    """Of the seed and the image's place in the file: another batch size draws the same."""
    run("encode", "-n", 3, "-o", "z.h5", *MIXTURE, "--steps", 4)
    images = []
    for name, *more in (("a.h5", 0), ("b.h5", 0, "--batch-size", 2), ("c.h5", 1)):
        code, out, err = run("decode", "z.h5", "-o", name, "--solver", "ddpm", "--seed", *more)
        assert (code, err) == (0, "")
        assert "ddpm, 4 steps, 4 evaluations" in out
        with h5py.File(name) as file:
            images.append(file["images"][:])
            assert json.loads(file["provenance"].asstr()[()])["settings"] == {"seed": more[0]}
    assert np.allclose(images[0], images[1], atol=1e-5)
    assert float(np.abs(images[0] - images[2]).max()) > 0.1
    assert run("decode", "z.h5", "-o", "d.h5", "--solver", "ddim-eta", "--eta", 0.2)[0] == 0
    assert run("sample", "-n", 2, "-o", "e.h5", *MIXTURE, "--size", "1,4,4", "--steps", 3, "--solver", "ddpm")[0] == 0


def test_images_that_do_not_converge_are_named(run) -> None:  # type: ignore[no-untyped-def]
    steps = ("--steps", 2, "--grid", "linear", "--batch-size", 1, "-n", 2)
    code, out, err = run("encode", "-o", "z.h5", "--solver", "exact-euler", *steps)
    assert code == 0
    assert re.search(
        r"2 of 2 images did not converge \(residual up to \de-0\d\): '000000', '000001'; --end sigma_min, more", err
    )
    assert re.search(r"[\d.]+ evaluations per image \(\d+ to \d+\)", out)
    code, out, err = run("encode", "-n", 1, "-o", "y.h5", *MIXTURE, "--solver", "exact-euler", "--steps", 20)
    assert (code, err) == (0, "")


def test_interpolate(run, here: Path) -> None:  # type: ignore[no-untyped-def]
    run("encode", "-o", "z.h5", "-n", 4, "--steps", 12)
    code, out, err = run("interpolate", "z.h5", "--pair", 0, 1, "-n", 5, "-o", "path.h5", "--sheet", "path.png", *BARE)
    assert (code, err) == (0, "")
    assert len(tiles("path.png", 28, 28, 5)) == 1
    with LatentFile(here / "path.h5") as path, LatentFile(here / "z.h5") as z:
        assert len(path) == 5
        assert torch.allclose(path.pick(0).xbar, z.pick(0).xbar, rtol=1e-6)
        assert torch.allclose(path.pick(4).xbar, z.pick(1).xbar, rtol=1e-6)
        assert path.provenance.made_by == "interpolate"
    assert run("decode", "path.h5", "-o", "line.png")[0] == 0
    code, out, err = run("interpolate", "z.h5", "--corners", 0, 1, 2, 3, "-n", 3, "--sheet", "grid.png", *BARE)
    assert (code, err) == (0, "")
    assert len(tiles("grid.png", 28, 28, 3)) == 3


def test_solvers_and_inspect(run) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run("solvers", "--json")
    names = [row["name"] for row in json.loads(out)]
    assert "euler" in names
    assert "dpmpp-2m" in names
    code, out, err = run("solvers")
    assert len(out.splitlines()) == len(names) + 1
    run("encode", "-o", "z.h5", *FAST)
    code, out, err = run("inspect", "z.h5", "--json")
    facts = json.loads(out)
    assert facts["latents"] == 4
    assert facts["model"] == "fashion-mnist"
    assert "unit variance" in facts["unit"]
    assert len(facts["nodes"]) == 5
    code, out, err = run("inspect", "fashion-mnist")
    assert code == 0
    assert re.search(r"parameters +\d+", out)
    assert run("inspect", "exact-gaussian")[0] == 0


def test_help_everywhere(run) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run("--help")
    assert code == 0
    for name in COMMANDS:
        assert name in out
        code, text, err = run(name, "--help")
        assert code == 0
        assert "Examples:" in text, name


def test_a_latent_file_is_not_replaced_by_a_failure(run, here: Path) -> None:  # type: ignore[no-untyped-def]
    run("encode", "-o", "z.h5", *FAST)
    before = (here / "z.h5").read_bytes()
    bad = np.zeros((3, 28, 28), np.float32)
    bad[2, 5, 5] = np.nan
    np.save("bad.npy", bad)
    code, out, err = run("encode", "bad.npy", "-o", "z.h5", "--steps", 2, "--batch-size", 1)
    assert code == 2
    assert (here / "z.h5").read_bytes() == before
    assert sorted(item.name for item in here.iterdir()) == ["bad.npy", "z.h5"]


MIXTURE = ("--model", "exact-mixture")


def test_a_computed_grid_encodes_decodes_and_stands_in_the_bench(run, here: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run("fit", "-o", "plan.json", "-n", 2, "--solver", "ab3", "--steps", 6, *MIXTURE)
    assert code == 0, err
    assert "computed" in out
    assert solvers.get("ab3").grid in out
    assert "grid of 6 steps in plan.json" in out
    plan = Plan.load(here / "plan.json")
    assert (plan.solver.name, plan.steps, plan.end, plan.grid) == ("ab3", 6, "zero", "computed")
    assert plan.notes["model"] == "exact-mixture"
    assert plan.notes["images"].startswith("the last 2 of")
    nodes = plan.nodes.tolist()
    code, out, err = run("encode", "-o", "p.h5", "-n", 2, "--plan", "plan.json", *MIXTURE)
    assert (code, err) == (0, "")
    code, out, err = run("encode", "-o", "z.h5", "-n", 2, "--solver", "ab3", "--grid", "plan.json", *MIXTURE)
    assert code == 0, err
    assert "warning" not in err
    with LatentFile(here / "z.h5") as file, LatentFile(here / "p.h5") as other:
        assert file.nodes.tolist() == other.nodes.tolist() == nodes
        assert (file.provenance.grid, other.provenance.grid) == ("plan.json", "computed")
        assert file.read(0, 2) == other.read(0, 2)
    assert run("decode", "p.h5", "-o", "of-p.h5")[0] == 0
    assert run("decode", "z.h5", "-o", "same.h5")[0] == 0
    assert run("decode", "z.h5", "-o", "again.h5", "--grid", "plan.json")[0] == 0
    with h5py.File("same.h5") as same, h5py.File("again.h5") as again:
        assert np.array_equal(same["images"], again["images"])

    code, out, err = run("bench", "-n", 2, "--solvers", "ab3,ab3@plan.json", "--steps", "6,10", "--json", *MIXTURE)
    assert code == 0, err
    rows = json.loads(out)["rows"]
    own = solvers.get("ab3").grid
    assert [(row["grid"], row["steps"]) for row in rows] == [(own, 6), (own, 10), ("plan.json", 6)]
    assert rows[0]["evaluations"] == rows[2]["evaluations"]
    assert rows[2]["latent"] < rows[0]["latent"]


def test_a_grid_of_another_model_is_a_warning(run, here: Path) -> None:  # type: ignore[no-untyped-def]
    plan = odeddim.plan(solver="euler", grid=[0, 0.01, 0.5, 3, 50, 157.407])
    dataclasses.replace(plan, notes={"model": "church", "sha256": "0123"}).save(here / "plan.json")
    (here / "plain.txt").write_text("# from a paper\n0 0.01 0.5 3 50 157.407\n")
    for name, words in (("plan.json", "computed for the model 'church', not 'exact-mixture'"), ("plain.txt", "")):
        code, out, err = run("encode", "-o", f"{name}.h5", "-n", 1, "--solver", "euler", "--grid", name, *MIXTURE)
        assert code == 0
        assert words in err
        assert bool(words) == ("warning" in err)


def test_bench_compares_latents_where_the_grid_ends(run) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run("bench", "-n", 2, "--solvers", "ab4@log,ab4@edm", "--steps", "40", "--json", *MIXTURE)
    assert code == 0, err
    at_the_top, at_80 = json.loads(out)["rows"]
    assert at_80["latent"] < 3 * at_the_top["latent"] < 0.1


BAD = {
    "unknown command": (["encod"], "did you mean encode"),
    "unknown solver": (["encode", "-o", "y.h5", "--solver", "heunn"], "did you mean heun"),
    "unknown grid": (["encode", "-o", "y.h5", "--grid", "kerras"], "did you mean karras"),
    "unknown model": (["encode", "-o", "y.h5", "--model", "fashion-mist"], "did you mean fashion-mnist"),
    "unknown device": (["encode", "-o", "y.h5", "--device", "cuda:99"], "use cpu"),
    "no output": (["encode"], "--output"),
    "zero steps": (["encode", "-o", "y.h5", "--steps", "0"], "--steps"),
    "too many steps": (
        ["encode", "-o", "y.h5", "--steps", "2000", "--grid", "linear", "--solver", "euler"],
        "at most 1000",
    ),
    "tolerance for a fixed-step solver": (["encode", "-o", "y.h5", "--solver", "euler", "--rtol", "1e-3"], "rtol"),
    "no such images": (["encode", "nowhere", "-o", "y.h5"], "nowhere"),
    "empty folder": (["encode", "empty", "-o", "y.h5"], "empty"),
    "text as image": (["encode", "text.png", "-o", "y.h5"], "text.png"),
    "wrong size": (["encode", "small.npy", "-o", "y.h5"], "1×28×28"),
    "file in place of a folder": (["encode", "-o", "text.png/y.h5", "-n", "1"], "text.png is a file"),
    "no such latents": (["decode", "missing.h5", "-o", "out"], "missing.h5"),
    "text as latents": (["decode", "text.png", "-o", "out"], "HDF5"),
    "cut latents": (["decode", "cut.h5", "-o", "out"], "cut.h5"),
    "images as latents": (["decode", "images.h5", "-o", "out"], "no latents of odeddim"),
    "latents of another model": (["decode", "z.h5", "-o", "out", "--model", "exact-samples"], "fashion-mnist"),
    "unknown output": (["decode", "z.h5", "-o", "out.jpg"], "sheet.png"),
    "output is a file": (["decode", "z.h5", "-o", "text"], "text"),
    "no pair": (["interpolate", "z.h5", "-o", "p.h5"], "--pair"),
    "nothing to write": (["interpolate", "z.h5", "--pair", "0", "1"], "give --output, --sheet or --animate"),
    "index out of range": (["interpolate", "z.h5", "--pair", "0", "9", "-o", "p.h5"], "0 to 1"),
    "one point": (["interpolate", "z.h5", "--pair", "0", "1", "-n", "1", "-o", "p.h5"], "--count"),
    "shape needed": (["sample", "-o", "s.png", "--model", "exact-mixture"], "--size"),
    "bad shape": (["sample", "-o", "s.png", "--model", "exact-mixture", "--size", "3,x"], "3,32,32"),
    "noise upwards": (["encode", "-o", "y.h5", "--solver", "ddpm"], "adds noise, so it can only decode"),
    "noise upwards, for a table": (["bench", "--solvers", "ab2,ddpm"], "adds noise, so it can only decode"),
    "a seed for nothing": (["decode", "z.h5", "-o", "out.h5", "--seed", "1"], "no setting 'seed'"),
    "eta with another solver": (["sample", "-o", "s.png", "--eta", "1", "--solver", "ab2"], "euler"),
    "bench of nothing": (["bench", "--solvers", "euler,nope"], "nope"),
    "tolerances for a grid": (["encode", "-o", "y.h5", "--solver", "dopri5", "--grid", "log"], "chooses its own steps"),
    "a tolerance on tops of their own": (
        ["encode", "-o", "y.h5", "--tol", "1", "--grid", "leading"],
        "another noise level",
    ),
    "latents without .h5": (["encode", "-o", "y.png"], "NAME.h5"),
    "zero-length steps": (["encode", "-o", "y.h5", "--grid", "karras:inf"], "karras:5"),
    "grid parameter missing": (["encode", "-o", "y.h5", "--grid", "karras:"], "karras:5"),
    "endless steps": (["encode", "-o", "y.h5", "--steps", "99999999999"], "is not in the range 1<=x<=1000000"),
    "endless name": (["encode", "a" * 5000, "-o", "y.h5"], "cannot be read"),
    "endless grid name": (["encode", "-o", "y.h5", "--grid", "a" * 5000], "unknown grid"),
    "grid above the model": (["encode", "-o", "y.h5", "--grid", "high.txt"], "above the model's"),
    "grid far below the model": (["sample", "-o", "s.png", "--grid", "low.txt"], "images still show through"),
    "grid at nothing": (["encode", "-o", "y.h5", "--grid", "tiny.txt"], "too close to 0"),
    "device without data": (["encode", "-o", "y.h5", "--device", "meta"], "use cpu"),
    "superscript size": (["sample", "-o", "s.png", "--model", "exact-mixture", "--size", "²,8,8"], "3,32,32"),
    "folder for a wrong grid": (["sample", "-o", "newdir", "--grid", "nosuch"], "unknown grid"),
    "inspect unknown": (["inspect", "fashion-mnst"], "did you mean fashion-mnist"),
    "bench into a file": (["bench", "-o", "text.png"], "is a file: give a folder"),
    "a word in place of a bench": (["bench", "qualty"], "unknown command 'qualty'; did you mean quality"),
    "bench of a folder without images": (["bench", "empty"], "the folder empty holds no images"),
    "no label of that name": (["bench", "reconstruction", "--labels", "both"], "'source', 'target'"),
    "no such plan": (["encode", "-o", "y.h5", "--plan", "nowhere.json"], "nowhere.json cannot be read"),
    "no plan": (["encode", "-o", "y.h5", "--plan", "text.png"], "is no plan"),
    "an eta of words": (["bench", "quality", "--eta", "much"], "is no η"),
    "one x_T": (["bench", "consistency", "-n", "1"], "-n"),
    "unknown features": (["bench", "quality", "--features", "incepton"], "feature network"),
    "quality of any shape": (["bench", "quality", "--model", "exact-mixture"], "--size"),
    "features of another shape": (
        ["bench", "quality", "--model", "exact-mixture", "--size", "3,8,8"],
        "which features",
    ),
    "steps where they are to be found": (
        ["bench", "work-precision", "--find", "1e-2", "--steps", "5"],
        "leave out --steps",
    ),
    "a setting of no candidate": (
        [
            "bench",
            "work-precision",
            "--find",
            "1e-1",
            "-n",
            "1",
            "--model",
            "exact-mixture",
            "--size",
            "1,4,4",
            "--set",
            "foo=1",
        ],
        "none of these solvers has the setting 'foo'",
    ),
    "a setting of no line": (
        ["bench", "quality", "-n", "4", "--eta", "0", "--set", "foo=1"],
        "none of these solvers has the setting 'foo'",
    ),
    "a setting of no run": (
        ["bench", "work-precision", "--solvers", "ab3", "--set", "foo=1", "-n", "1"],
        "none of these solvers has the setting 'foo'",
    ),
    "an infinite tolerance": (["encode", "-o", "y.h5", "--solver", "dopri5", "--rtol", "inf"], "is no tolerance"),
    "a setting that is no number": (["encode", "-o", "y.h5", "--solver", "bdia", "--set", "gamma=nan"], "no finite"),
    "tolerances that nothing keeps": (
        [
            "encode",
            "-o",
            "y.h5",
            "-n",
            "1",
            "--solver",
            "dopri5",
            "--rtol",
            "1e-30",
            "--atol",
            "1e-30",
            "--model",
            "exact-mixture",
        ],
        "reached σ = nan",
    ),
    "a reference of other sizes": (
        ["bench", "quality", "--model", "exact-mixture", "--size", "1,28,28", "--reference", "small.npy"],
        "small.npy are",
    ),
    "steps of a solver that chooses them": (
        ["bench", "work-precision", "--find", "1e-2", "--solvers", "dopri5"],
        "chooses its own steps",
    ),
    "fit without a file": (["fit"], "--output"),
    "fit to no images": (["fit", "nowhere", "-o", "g.json"], "nowhere"),
    "fit to an empty folder": (["fit", "empty", "-o", "g.json"], "empty"),
    "nodes for an adaptive solver": (["fit", "-o", "g.json", "--solver", "dopri5"], "chooses its own steps"),
    "two nodes": (["fit", "-o", "g.json", "--solver", "ab2", "--steps", "2"], "at least 3 steps"),
    "nodes with a direction": (
        ["fit", "-o", "g.json", "--solver", "ab2", "--direction", "both"],
        "leave out --direction",
    ),
    "fit of too many steps": (["fit", "-o", "g.json", "--steps", "30"], "from 1 to 20"),
    "fit as HDF5": (["fit", "-o", "g.h5"], "NAME.json"),
    "fit over its images": (["fit", "high.json", "-o", "high.json"], "being read"),
    "grid file of another end": (["encode", "-o", "y.h5", "--grid", "low.txt", "--end", "sigma_min"], "end 'zero'"),
    "no such list of ays": (["encode", "-o", "y.h5", "--grid", "ays:sd2"], "ays:sd15"),
    "a setting that is none": (["encode", "-o", "z.h5", "--solver", "ab3", "--set", "gamma=1"], "no setting 'gamma'"),
    "a setting of no solver of a table": (
        ["bench", "--solvers", "ab2,bdia", "--set", "p=0.9"],
        "none of these solvers",
    ),
    "a setting without a value": (["encode", "-o", "z.h5", "--set", "gamma"], "NAME=VALUE"),
    "an option as a setting": (["encode", "-o", "z.h5", "--set", "rtol=1"], "--rtol"),
    "a setting out of range": (["encode", "-o", "y.h5", "--solver", "bdia", "--set", "gamma=7"], "gamma must be"),
    "a setting of words": (["encode", "-o", "z.h5", "--solver", "bdia", "--set", "gamma=much"], "must be a number"),
    "an unknown warm-up": (["encode", "-o", "y.h5", "--solver", "ab3", "--set", "warmup=soon"], "unknown warmup"),
    "explaining noise upwards": (["explain", "--solver", "ddpm"], "adds noise"),
    "bench on no grid": (["bench", "--solvers", "ab2@nosuch.txt"], "unknown grid"),
    "inspect text": (["inspect", "text.png"], "text.png is nothing that odeddim writes, nor a model"),
    "inspect empty folder": (["inspect", "empty"], "empty is nothing that odeddim writes, nor a model"),
    "inspect foreign HDF5": (["inspect", "images.h5"], "odeddim did not write it"),
    "model is no model": (["sample", "-o", "s.png", "--model", "text.png"], "text.png"),
}


@pytest.mark.parametrize(("arguments", "words"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_sentence(run, here: Path, arguments: list[str], words: str, z: bytes) -> None:  # type: ignore[no-untyped-def]
    (here / "empty").mkdir()
    (here / "text.png").write_text("hello")
    (here / "text").write_text("hello")
    (here / "z.h5").write_bytes(z)
    (here / "cut.h5").write_bytes(z[: len(z) // 2])
    (here / "high.json").write_text("[0, 1, 200]")
    (here / "high.txt").write_text("0 0.5 3 1e4")
    (here / "low.txt").write_text("0 0.5 3")
    (here / "tiny.txt").write_text("5e-324 1e-300 3 157")
    np.save("small.npy", np.zeros((2, 8, 8), np.uint8))
    with h5py.File("images.h5", "w") as file:
        file["images"] = np.zeros((2, 28, 28), np.uint8)
    before = {path.name: path.read_bytes() for path in here.iterdir() if path.is_file()}
    code, out, err = run(*arguments)
    assert code == 2, (out, err)
    (message,) = (line for line in err.splitlines() if line.startswith("Error: "))
    assert words in message
    assert "Traceback" not in err
    after = {path.name: path.read_bytes() for path in here.iterdir() if path.is_file()}
    assert after == before  # nothing half-written, nothing replaced
    assert not (here / "newdir").exists()


@pytest.mark.slow
def test_a_run_that_is_finer_than_the_solution(run) -> None:  # type: ignore[no-untyped-def]
    words = ("--find", "1e-9", "-n", 1, "--solvers", "ab3", "--model", "exact-mixture", "--size", "1,4,4")
    code, out, err = run("bench", "work-precision", *words)
    assert code == 2
    assert "cannot be measured" in err


@pytest.fixture(scope="module")
def z(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A latent file of two sample images."""
    from odeddim.latents.latent_file import LatentRun
    from odeddim.latents.provenance import provenance_of

    field = odeddim.load("fashion-mnist")
    plan = odeddim.plan(field, "euler", steps=2, grid="linear")
    state = odeddim.encode(open_images()[0:2], model=field, plan=plan)
    made = provenance_of(field, plan, "encode")
    path = tmp_path_factory.mktemp("z") / "z.h5"
    with LatentRun(path, ["a", "b"], made, plan.nodes) as run:
        run.write(0, 2, state)
    return path.read_bytes()


def test_bad_input_in_a_process_of_its_own(here: Path) -> None:
    result = command("encode", "nowhere", "-o", "z.h5", cwd=here)
    assert result.returncode == 2
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.strip().splitlines()) == 1


def test_budget_says_where_and_why(run) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run("encode", "-o", "z.h5", "-n", 1, "--solver", "dopri5", "--max-nfe", 20, "--rtol", "1e-6")
    assert code == 1
    assert "σ" in err
    assert "20" in err
    assert not Path("z.h5").exists()
