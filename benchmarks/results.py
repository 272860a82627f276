"""The manual's page of results, docs/results.md: what commands printed, with the command, the machine and the date.

    python benchmarks/results.py measure [NAME ...]    # hours on one core; stop it and start it as you like
    python benchmarks/results.py page                  # writes docs/results.md from what was measured

`measure` runs the commands in the folder out/results, where benches keep what they have measured, and writes what they
printed to benchmarks/results/NAME.json. A result that is there is measured again only if it is named.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"
WIDTH = 118


@dataclass(frozen=True)
class Result:
    """A section of the page: the commands whose output it shows, and what a reader must know to read it."""

    title: str
    says: str
    commands: tuple[str, ...]
    keep: str = ""
    """Of the output only the lines in which this pattern is found; "" keeps all."""


@dataclass(frozen=True)
class Measured:
    commands: tuple[str, ...]
    output: str
    date: str
    machine: str
    seconds: int | None
    """None where it was measured in several sittings."""


RESULTS = {
    "defaults": Result(
        "Every row with fixed steps",
        "The four best rows of each error and budget. `latent` is the distance of x_T to the latent of a reference "
        "that shares no code with the solvers, `round trip` that of the image that comes back, and `decoded` that of "
        "the image of a noise. [defaults.csv](../benchmarks/defaults.csv) has all rows, and `python "
        "benchmarks/defaults.py measure` measures them. The defaults of odeddim are chosen by this table.",
        ("python benchmarks/defaults.py show --best 4",),
    ),
    "league": Result(
        "Every solver at the same numbers of evaluations",
        "The three best runs by each error, and where the round trip and the latent place solvers differently ([The "
        "league](league.md)). [league.csv](../benchmarks/league.csv) has all of them (`python benchmarks/league.py "
        "league league-flow`). Of the flow model 50 evaluations were left out, for their time.",
        (
            "odeddim bench league -n 64 --compile -o league",
            "odeddim bench league -n 64 --compile --model fashion-mnist-flow --evaluations 5,8,10,20 -o league-flow",
        ),
    ),
    "reconstruction": Result(
        "Round trip and latent: DDIM's Table 2, with the error that the paper does not have",
        "`round trip` is the rms over pixels in [-1, 1], and `latent` the rms distance to the ODE's true latent over "
        "σ_T: the medians over the images, and what one image and nine images in ten do not exceed. `evals` are "
        "evaluations of the network per image and direction (for `belm` the mean of both).",
        ("odeddim bench -n 64 --solvers euler@linear,ab3@log,unipc-2@log,belm@log --steps 10,20,50",),
    ),
    "reversible": Result(
        "Exactly reversible solvers",
        "All of them come back bit for bit; their latents differ. Where a row is missing, rounding would have reached"
        " 1% of the latents, and the run was refused.",
        (
            "odeddim bench -n 64 --solvers edict,bdia,belm,obelm,leapfrog,reversible-heun,mf-euler,mf-heun"
            " --steps 10,20",
        ),
    ),
    "flow": Result(
        "The same on a rectified flow",
        "`fashion-mnist-flow` is the same network, trained on the same images as a rectified flow.",
        (
            "odeddim bench -n 64 --model fashion-mnist-flow --solvers euler@linear,unipc-2,ab3,belm --steps 10,20"
            " -o flow",
        ),
    ),
    "quality": Result(
        "The quality of samples: Tables 1 and 3",
        "A small classifier of Fashion-MNIST stands in for Inception (64 features, 92.9% right on the test images), "
        "so that the distance is no FID. Distances are biased by the number of samples: compare only tables of as "
        "many.",
        ("odeddim bench quality",),
    ),
    "consistency": Result(
        "One x_T through every solver and number of steps: Figure 5",
        "The distance of each solver's images to those of the run with the most steps, from the same noise.",
        ("odeddim bench consistency",),
    ),
    "gradients": Result(
        "Gradients: what they cost, and how far they hold",
        "Time and memory of a run with its backward pass ([Gradients](gradients.md)), for each solver by its usual way "
        "and by plain autograd. Below, the largest singular values of the decode, and how far a linear prediction of "
        "the image's change misses, over the norm of the change.",
        ("python benchmarks/gradients.py cost", "python benchmarks/gradients.py trust"),
    ),
    "time": Result(
        "Seconds: Figure 4",
        "Seconds over the number of steps, for each batch size, with the fitted line, and the share of the time that "
        "is the solver's own and not the network's.",
        ("odeddim bench time",),
    ),
    "interpolation": Result(
        "Lines between latents: appendix D.5",
        "How far neighbours on a line of images are apart, DDPM's lines for contrast.",
        ("odeddim bench interpolation",),
    ),
    "fit": Result(
        "Few evaluations: solvers fitted to the model",
        "Errors of images decoded from 64 held-out noises, and of latents of 64 held-out images: medians, with 10% and "
        "90% in brackets, of the solver that `odeddim fit` finds and of the best of ten solvers on named grids at as "
        "many evaluations. [Few evaluations](few-evaluations.md) explains it, and `python benchmarks/fit.py measure` "
        "measures it.",
        ("python benchmarks/fit.py show",),
    ),
    "gaussian": Result(
        "Few evaluations: the Gaussian of the data",
        "The best of `ab2`, `ab3`, `dpmpp-2m`, `dpmpp-3m`, `ipndm`, `unipc-2` on the grids log and karras without a "
        "Gaussian, and the best of these and of `gauss-ab2`, `gauss-ab3` with top='gaussian', on 64 held-out noises "
        "and images. `gain` is the ratio of their medians; the last column is the smallest ratio of a row with the "
        "Gaussian to itself without. [Few evaluations](few-evaluations.md) explains it, and `python "
        "benchmarks/gaussian.py measure --compile` measures it.",
        ("python benchmarks/gaussian.py show",),
    ),
    "few": Result(
        "Few evaluations: the quality of samples",
        "2,000 samples of the diffusion model at 5 and at 10 evaluations. `fitted-N.json` is what `odeddim fit --steps "
        "N -o fitted-N.json` finds, `gaussian-5.json` what `odeddim.plan(solver='unipc-2', steps=5, grid='karras', "
        "top='gaussian')` saves; at 10 evaluations the Gaussian is not used above, as the curves of its error say. "
        "`dpmpp-3m` takes one evaluation more.",
        tuple(
            "odeddim bench quality -n 2000 --solvers euler@linear,unipc-2,ipndm,dpmpp-3m," + plans + f" --steps {steps}"
            f" --compile -o q{steps}"
            for steps, plans in ((5, "fitted-5.json,gaussian-5.json"), (10, "fitted-10.json"))
        ),
    ),
    "parallel": Result(
        "Steps in parallel: rounds and evaluations",
        "How many rounds and evaluations an image takes ([Steps in parallel](parallel.md)), and how far off the "
        "sequential run's result is: medians of 16, with the smallest and the largest.",
        ("python benchmarks/parallel.py",),
    ),
    "certified": Result(
        "Certified latents",
        "`trip` is the round trip, `error` the estimated distance to the ODE's latent; the other columns say how much"
        " the latent looks like white noise.",
        ("odeddim encode -o z.h5 -n 64 --certify", "odeddim verify z.h5 --worst 3"),
    ),
    "certificate": Result(
        "How far the estimate of a certificate can be trusted",
        "On 100 images of each built-in model, none of which it was trained on, against the true latents. "
        "[certificate.csv](../benchmarks/certificate.csv) has every image.",
        ("python benchmarks/certificate.py --table",),
    ),
    "density": Result(
        "Log density: what it costs, and how far it is off",
        "In bits per dimension, on held-out images. All methods share one draw of uniform dequantisation noise. "
        "The cost of reaching ±0.01 by independent probes counts a product with the Jacobian as the "
        "evaluations that its backward pass takes. [density.csv](../benchmarks/density.csv) has every image.",
        ("python benchmarks/density.py --table",),
    ),
    "tol": Result(
        "Encoding to a tolerance",
        "How many images took how many steps until their round trip kept 1e-3.",
        ("odeddim encode -o z.h5 -n 64 --tol 1e-3",),
    ),
    "tolerance": Result(
        "Decoding to a tolerance",
        "The share of the images whose true error keeps the tolerance, on 64 noises. Without a name the command "
        "measures both built-in models.",
        ("python benchmarks/tolerance.py fashion-mnist",),
    ),
    "starts": Result(
        "Encodings that begin with noise",
        "What `--start forward:K` does to latents and to the images that come back, on 64 held-out images of each "
        "built-in model: medians, and 10 to 90% of the images in brackets. White noise has correlations of 0 ± 0.026. "
        "`white` is the part of the latents that pass for standard normal noise; at σ_K the solver goes on.",
        ("python benchmarks/starts.py",),
    ),
    "bridge": Result(
        "A bridge and its cycle",
        "From the diffusion model to the flow and back: what the cycle there and back leaves, in the median and for "
        "the worst image.",
        ("odeddim bridge -n 64 --to fashion-mnist-flow -o bridge.h5",),
    ),
    "scores": Result(
        "Scores from the path: shifted images among held-out ones",
        "Areas under the ROC curve of the score and of simpler figures, from the same encodes ([Scores](scores.md)). "
        "The reference is 1,024 test images; 1,024 others are held out, and the shifts are of 256 of these. `digits` "
        "are those of scikit-learn, enlarged. `called strange` is the share above the threshold for 5%.",
        ("python benchmarks/scores.py",),
    ),
    "scores-choose": Result(
        "What the path and the rule of scores were chosen by",
        "The same on other images and other shifts: 512 images are the reference, 256 are as they should be, and 128 "
        "of these were changed.",
        ("python benchmarks/scores.py --choose",),
    ),
    "kills": Result(
        "A hundred kills",
        "Each run is killed with SIGKILL at a moment drawn at random, and goes on with the same command.",
        ("pytest -s tests/system/test_crash.py -m slow -k kills",),
        keep=r"\d+ kills|readable",
    ),
    "memory": Result(
        "Memory for 20,000 images",
        "The highest memory of each command for 20,000 images, over that for 1,000.",
        ("pytest -s tests/system/test_memory.py -m slow",),
        keep=r"times|MB",
    ),
}


def machine() -> str:
    """Processor, cores and versions, as a reader needs them to judge seconds."""
    import torch

    processor = platform.machine()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        processor = found[1] if found else processor
    return f"{os.cpu_count()} cores ({processor}), Python {platform.python_version()}, torch {torch.__version__}"


def arguments(command: str) -> list[str]:
    """The command as this Python runs it, in any folder."""
    program, *words = shlex.split(command)
    if program == "python":
        return [sys.executable, str(ROOT / words[0]), *words[1:]]
    if program == "pytest":
        return [
            sys.executable,
            "-m",
            "pytest",
            "--rootdir",
            str(ROOT),
            *(str(ROOT / w) if "/" in w else w for w in words),
        ]
    return [sys.executable, "-m", program, *words]


def measured(name: str, result: Result) -> Measured:
    """Run the commands of a result, and keep what they print."""
    folder = ROOT / "out" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.h5"):
        old.unlink()  # of an earlier measurement, which the command would only report as finished
    environment = {**os.environ, "COLUMNS": str(WIDTH), "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    begun, printed = time.time(), []
    for command in result.commands:
        print(f"{name}: {command}", flush=True)
        done = subprocess.run(
            arguments(command), cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        lines = [line.rstrip() for line in done.stdout.splitlines() if re.search(result.keep, line)]
        printed.append("\n".join(lines).strip("\n"))
    assert all(printed), f"{name} printed nothing"
    return Measured(
        result.commands, "\n\n".join(printed), date.today().isoformat(), machine(), round(time.time() - begun)
    )


def read(name: str) -> Measured | None:
    path = KEPT / f"{name}.json"
    if not path.exists():
        return None
    said = json.loads(path.read_text(encoding="utf-8"))
    return Measured(**{**said, "commands": tuple(said["commands"])})


def page() -> str:
    """The page: a section for each result."""
    lines = [
        "# Results",
        "",
        "<!-- Written by `python benchmarks/results.py page`. -->",
        "",
        "Each block is what the commands above it printed. `python benchmarks/results.py measure` runs them all again,",
        "and `python benchmarks/results.py page` writes this page. The models are the two small ones inside the",
        "package; the images are test images, on which they were not trained. Errors are rms: of images in [-1, 1], of",
        "latents in",
        "units of their standard deviation. The machine also did other work: the seconds are no benchmark of it.",
    ]
    for name, result in RESULTS.items():
        kept = read(name)
        if kept is None or kept.commands != result.commands:
            raise SystemExit(f"run `python benchmarks/results.py measure {name}`: its commands have not been measured")
        lines += ["", f"(results-{name})=", f"## {result.title}", "", result.says, ""]
        lines += ["```sh", *kept.commands, "```", ""]
        lines += ["```text", kept.output, "```", ""]
        took = "in several sittings" if kept.seconds is None else f"{kept.seconds} s"
        lines += [f"{kept.date}, {kept.machine}, {took}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("measure").add_argument("names", nargs="*", choices=[*RESULTS, []], metavar="NAME", default=[])
    verbs.add_parser("page")
    given = parser.parse_args()
    if given.verb == "page":
        PAGE.write_text(page(), encoding="utf-8")
        return
    KEPT.mkdir(exist_ok=True)
    for name, result in RESULTS.items():
        if name in given.names or (not given.names and read(name) is None):
            text = json.dumps(asdict(measured(name, result)), indent=1, ensure_ascii=False)
            (KEPT / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
