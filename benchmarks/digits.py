"""Compares the digits of this checkout with those of another one, as of the commit before: the same bits or not.

    git worktree add ../before HEAD~1
    python benchmarks/digits.py ../before

Each checkout runs by itself, in a process of its own, and hands back hashes: of what 12 solvers encode and decode with
both built-in models in float32 and float64, of the data of latent files, and of the images decoded from these. The
exit code is 1 if any differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
MODELS = ("fashion-mnist", "fashion-mnist-flow")
ROWS = (
    "euler", "ab3", "unipc-2", "dpmpp-2m", "deis-tab2", "heun", "rk4", "dopri5", "belm", "edict", "bdia", "mf-heun",
)  # fmt: skip
DTYPES = ("float32", "float64")
COUNT = 4  # images
STEPS = 7


def digits() -> dict[str, str]:
    """What this checkout computes, by name: hashes of the bytes."""
    import numpy as np
    import torch

    import odeddim

    torch.set_num_threads(1)
    with np.load(HERE / "odeddim" / "data" / "fashion-mnist-test.npz") as file:
        pixels = torch.from_numpy(next(iter(file.values()))[:COUNT])
    found = {}
    for model in MODELS:
        for name in DTYPES:
            dtype = getattr(torch, name)
            field = odeddim.load(model).to("cpu", dtype)
            x_0 = pixels.reshape(COUNT, 1, 28, 28).to(dtype) / 127.5 - 1
            x_T = odeddim.noise(COUNT, (1, 28, 28), seed=3).to(dtype)
            for row in ROWS:
                steps = None if odeddim.solvers.get(row).adaptive else STEPS
                state = odeddim.encode(x_0, row, model=field, steps=steps)
                found[f"encode {model} {name} {row}"] = _hash(state.xbar, *state.aux)
                found[f"decode {model} {name} {row}"] = _hash(odeddim.solve(x_T, row, model=field, steps=steps))
            found[f"sample {model} {name}"] = _hash(odeddim.sample(2, seed=5, eta=0.5, model=field, steps=STEPS))
    return found | _files()


def _hash(*tensors: object) -> str:
    import torch

    together = hashlib.sha256()
    for tensor in tensors:
        assert isinstance(tensor, torch.Tensor)
        together.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return together.hexdigest()


def _files() -> dict[str, str]:
    """The latent files that the command line writes, and the images it decodes from them."""
    import h5py

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for options in (["--steps", "6"], ["--solver", "unipc-2", "--certify", "--steps", "5"], ["--tol", "3e-2"]):
            for model in MODELS:
                name = f"{model} {' '.join(options)}"
                z, out = Path(folder, "z.h5"), Path(folder, "out.h5")
                _odeddim("encode", "-n", "5", "-o", z, "--model", model, "--overwrite", *options)
                _odeddim("decode", z, "-o", out, "--overwrite")
                for path in (z, out):
                    with h5py.File(path, "r") as file:
                        data: list[str] = []
                        file.visititems(lambda key, item, data=data: data.append(_data(key, item)))
                    found[f"{path.stem} {name}"] = hashlib.sha256("\n".join(sorted(data)).encode()).hexdigest()
    return found


def _data(key: str, item: object) -> str:
    import h5py

    if key == "provenance" or not isinstance(item, h5py.Dataset):  # which has paths in it
        return key
    return f"{key} {item.dtype} {item[()].tobytes().hex()}"


def _odeddim(*arguments: object) -> None:
    command = [sys.executable, "-m", "odeddim", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def of_checkout(folder: Path, script: str = __file__, *names: str) -> dict[str, Any]:
    """What a script of this folder prints of a checkout, in a process of its own: by default its digits."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, str(Path(script).resolve()), "--print", *names]
    result = subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", nargs="?", type=Path, help="the other checkout, or what --print has printed there")
    parser.add_argument("--print", dest="only", action="store_true", help="print this checkout's digits as JSON")
    given = parser.parse_args()
    if given.only:
        print(json.dumps(digits(), indent=1))
        return 0
    if given.other is None:
        parser.error("name the other checkout")
    ours = of_checkout(HERE)
    theirs = json.loads(given.other.read_text()) if given.other.is_file() else of_checkout(given.other.resolve())
    differ = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    for name in differ:
        print(f"differs: {name}")
    print(f"{len(ours) - len(differ)} of {len(ours)} the same")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
