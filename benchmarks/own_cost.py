"""What a solver itself costs: its time with a network that answers at once, and the states that a run holds.

    python benchmarks/own_cost.py
    git worktree add ../before HEAD~1
    python benchmarks/own_cost.py ../before              # the time beside that of another checkout

The time is CPU time of one thread, in microseconds an evaluation, for 64 images of 3×32×32 in float32 and 20 nodes of a
log grid: the median of processes, each the median of 7 runs, which take turns with those of the other checkout. Memory
is kept as jobs keep it. States are those of encoding and decoding, counted while the network is evaluated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from digits import HERE, of_checkout

ROWS = (
    "euler", "heun", "ab2", "ab3", "dpmpp-2m", "dpmpp-3m", "unipc-1", "unipc-2", "unipc-3", "leapfrog", "belm", "edict",
    "mf-euler", "reversible-heun",
)  # fmt: skip
NODES, RUNS, PROCESSES = 20, 7, 5
BALLAST, STEPS = 500, 8


def times(names: list[str]) -> dict[str, float]:
    """Microseconds an evaluation, by this process."""
    import torch

    import odeddim
    from odeddim.runs.memory import keep_memory

    keep_memory()
    torch.set_num_threads(1)
    x = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    answers = {dtype: torch.tanh(x).to(dtype) for dtype in (torch.float32, torch.float64)}
    sigmas = odeddim.grid("log", odeddim.Schedule.linear(), NODES)
    sigmas = sigmas[sigmas > 0]
    found = {}
    for name in names:
        row, spent = odeddim.solvers.get(name), []
        for _ in range(RUNS + 1):
            asked: list[None] = []

            def field(sigma: torch.Tensor, xbar: torch.Tensor, asked: list[None] = asked) -> torch.Tensor:
                asked.append(None)
                return answers[xbar.dtype]

            began = time.process_time()
            with torch.no_grad():
                row.run(field, odeddim.State(x, float(sigmas[0])), sigmas)
            spent.append((time.process_time() - began) / len(asked) * 1e6)
        found[name] = statistics.median(spent[1:])
    return found


def states(name: str) -> list[float]:
    """The states that encoding and decoding hold beside a network in float32, its input among them."""
    import torch

    import odeddim
    from odeddim.bench.memory import peak

    class Heavy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))  # by which the dtype of a network is known

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            taken = torch.empty(BALLAST * x.numel())  # so that the peak lies here
            del taken
            return torch.tanh(x)

    model, x = odeddim.VectorField(Heavy(), odeddim.Schedule.linear(), name="heavy"), torch.zeros(1, 1, 64, 64)
    plan, start, found = odeddim.plan(model, name, steps=STEPS), odeddim.State(x, 0.0), []
    with torch.no_grad():
        for state in (start, odeddim.integrate(model, start, plan)):
            most = peak(lambda state=state: odeddim.integrate(model, state, plan))
            found.append(float("nan") if most is None else most / (4 * x.numel()) - BALLAST)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", nargs="?", type=Path, help="the other checkout")
    parser.add_argument("--print", dest="only", nargs="+", help="print this checkout's times of these rows as JSON")
    given = parser.parse_args()
    if given.only:
        print(json.dumps(times(given.only)))
        return
    folders = [folder.resolve() for folder in (given.other, HERE) if folder is not None]
    rounds = [[of_checkout(folder, __file__, *ROWS) for folder in folders] for _ in range(PROCESSES)]
    heads = ["other µs", "µs"][-len(folders) :]
    print(f"{'solver':16}" + "".join(f"{head:>10}" for head in (*heads, "encodes", "decodes")))
    for name in ROWS:
        medians = (statistics.median(found[n][name] for found in rounds) for n in range(len(folders)))
        print(
            f"{name:16}"
            + "".join(f"{value:10.0f}" for value in medians)
            + "".join(f"{value:10.1f}" for value in states(name)),
            flush=True,
        )


if __name__ == "__main__":
    main()
